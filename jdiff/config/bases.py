"""What the configs of a task share: a config file takes a base, sets what it is about, and ends with ``variant``."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def contrastive() -> ConfigDict:
    """A dual encoder: CLIP's loss, no EMA, data parallel."""
    return ConfigDict(
        dict(
            encoder=dict(use_logit_bias=False),
            contrastive=dict(loss="softmax", form="dense", chunk=0),
            ema=dict(decays=(), widths=(), snapshot_every=0),
            mesh=dict(data=-1),
            watchdog=dict(),
            train=dict(task="contrastive", seed=0, log_every=20, save_every=200, sample_every=400),
        )
    )


def text_to_image() -> ConfigDict:
    """A U-Net in pixels, folded by 2, that predicts x0: one EMA, deterministic DDIM, data parallel."""
    return ConfigDict(
        dict(
            denoiser=dict(blocks=1, groups=16, patch_size=2, pooled=True, scale_shift_norm=True),
            diffusion=dict(
                schedule="cosine", timesteps=1000, prediction_type="x0", weighting="root_snr", caption_dropout=0.1
            ),
            ema=dict(decays=(0.998,), widths=(), snapshot_every=0),
            mesh=dict(data=-1),
            watchdog=dict(),
            train=dict(task="text_to_image", batch_size=32, seed=0, log_every=50, save_every=1000, sample_every=1000),
            sample=dict(solver="ddim", spacing="trailing", eta=0.0),
        )
    )


def variant(config: ConfigDict, name: str, **tiny: dict[str, Any]) -> ConfigDict:
    """A variant of a config: itself, or ``tiny``, two training steps and two sampling steps with small networks.

    tiny: further changes of that variant, by section.   Raises ``ValueError`` at another name.
    """
    if not name:
        return config
    if name != "tiny":
        raise ValueError(f"'{name}' is no variant of this config; there is only 'tiny'")
    sections: dict[str, Any] = dict(config.items())
    for tower in ("text", "vision"):
        if "width" in sections.get(tower, {}):
            sections[tower].update(width=32, layers=1, heads=2, embed_dim=32)
    if "channels" in sections.get("denoiser", {}):
        sections["denoiser"].update(channels=(16, 32), attention=(False, True), heads=(1, 2), blocks=1, groups=8)
    train = sections["train"]
    train.steps = 2
    if "save_every" in train:
        train.update(batch_size=8, log_every=1, save_every=1, sample_every=1)
    if "sample" in sections:
        sections["sample"].steps = 2
    for section, changes in tiny.items():
        sections[section].update(changes)
    return config
