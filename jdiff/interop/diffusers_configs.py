"""The config files of a diffusers folder, of Stable Diffusion 1.x and 2.x, as sections of a jdiff config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jdiff.diffusion.spacing import SPACINGS
from jdiff.interop.foreign_config import ForeignConfig
from jdiff.interop.safetensors_files import WrongWeights

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# {diffusers' name: (name in jdiff, its beta_start and beta_end)}; other betas are not supported.
SCHEDULES = {
    "linear": ("linear", (1e-4, 0.02)),
    "scaled_linear": ("scaled_linear", (0.00085, 0.012)),
    "squaredcos_cap_v2": ("cosine", None),
}
# Defaults that differ between diffusers' schedulers, for files that leave them out.
SPACING_DEFAULTS = dict.fromkeys(
    (
        *("DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler"),
        *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
        *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
        *("LMSDiscreteScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
    ),
    "linspace",
)
CLIPPING_SCHEDULERS = [f"{name}Scheduler" for name in ("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel")]
# Keys of diffusers' solvers, in place of which jdiff samples by DDIM, and of thresholding, which is off.
SOLVER_KEYS = frozenset(
    """
    algorithm_type corrector_order disable_corrector dynamic_thresholding_ratio eta euler_at_final
    final_sigmas_type lambda_min_clipped lower_order_final predict_x0 predictor_order sample_max_value
    skip_prk_steps solver_order solver_p solver_type tau_func time_shift_type variance_type
    """.split()  # noqa: SIM905
)
BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


def unet_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The denoiser section of a U-Net's config.json. Raises ``WrongWeights`` where jdiff would compute otherwise."""
    config = ForeignConfig(content, "unet/config.json")
    channels = tuple(config.required("block_out_channels", (1,)))
    levels = len(channels)
    down_attention = [_lookup("down_block_types", name, BLOCKS) for name in config.required("down_block_types", ("",))]
    up_attention = [_lookup("up_block_types", name, BLOCKS) for name in config.required("up_block_types", ("",))]
    if up_attention != down_attention[::-1]:
        raise WrongWeights("its unet/config.json has other blocks on the way up than on the way down")
    config.require(
        {
            "act_fn": "silu",
            "addition_embed_type": None,
            "addition_time_embed_dim": None,
            "attention_type": "default",
            "center_input_sample": False,
            "class_embed_type": None,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_norm": None,
            "downsample_padding": 1,
            "dropout": 0.0,
            "dual_cross_attention": False,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "mid_block_only_cross_attention": None,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "projection_class_embeddings_input_dim": None,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "reverse_transformer_layers_per_block": None,
            "time_cond_proj_dim": None,
            "time_embedding_act_fn": None,
            "time_embedding_dim": None,
            "time_embedding_type": "positional",
            "timestep_post_act": None,
            "transformer_layers_per_block": 1,
        }
    )
    # diffusers' "attention_head_dim" is the number of heads, a mistake that its config files preserve.
    head_dim = config.get("attention_head_dim") or 8
    heads = config.get("num_attention_heads") or head_dim
    result = {
        "channels": channels,
        "attention": tuple(down_attention),
        "heads": tuple(heads) if isinstance(heads, list | tuple) else (heads,) * levels,
        "blocks": config.get("layers_per_block", 2),
        "groups": config.get("norm_num_groups", 32),
        "scale_shift_norm": config.lookup(
            "resnet_time_scale_shift", "default", {"default": False, "scale_shift": True}
        ),
        "attend_to_padding": True,
    }
    if not isinstance(result["blocks"], int):
        raise WrongWeights(
            f"its unet/config.json has layers_per_block = {result['blocks']!r}; expected the same number at every level"
        )
    # The tensors' shapes have the first four; attention is in float32 anyway; and there is no added embedding.
    config.finish(
        {"in_channels", "out_channels", "cross_attention_dim", "use_linear_projection"}
        | {"upcast_attention", "addition_embed_type_num_heads", "sample_size"}
    )
    return result


def unet_sample_size(content: Mapping[str, Any]) -> int:
    """The side of the latents that a U-Net was trained on. Raises ``WrongWeights`` where they are oblong."""
    size = content.get("sample_size") or 64
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise WrongWeights(
            f"its unet/config.json has sample_size = {size!r}; expected one number, as images are square"
        )
    return sides.pop()


def autoencoder_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The autoencoder section of a VAE's config.json. Raises ``WrongWeights``, as ``unet_config``."""
    config = ForeignConfig(content, "vae/config.json")
    channels = tuple(config.required("block_out_channels", (1,)))
    config.require(
        {
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "act_fn": "silu",
            "in_channels": 3,
            "out_channels": 3,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
        }
    )
    result = {
        "channels": channels,
        "blocks": config.get("layers_per_block", 1),
        "groups": config.get("norm_num_groups", 32),
        "latent_channels": config.get("latent_channels", 4),
        "scale": config.get("scaling_factor", 0.18215),
    }
    config.finish({"sample_size", "force_upcast"})  # it works at every size, in float32
    return result


def scheduler_config(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The diffusion and sample sections of a scheduler_config.json; whatever its solver, sampling is by DDIM."""
    config = ForeignConfig(content, "scheduler/scheduler_config.json")
    name, betas = config.lookup("beta_schedule", "linear", SCHEDULES)
    for key, value in zip(("beta_start", "beta_end"), betas or (None, None)):
        default = {"beta_start": 1e-4, "beta_end": 0.02}[key]
        if value is not None and config.get(key, default) != value:
            raise WrongWeights(
                f"its scheduler/scheduler_config.json has {key} = {config.get(key, default)!r}, which is not supported "
                f"with beta_schedule '{content.get('beta_schedule', 'linear')}'; expected {value!r}"
            )
    config.require({"trained_betas": None, "thresholding": False, "clip_sample_range": 1.0})
    # What changes the timesteps or levels that a solver visits.
    config.require(dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False))
    config.require(dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"), False))
    config.require({"flow_shift": 1.0, "shift_terminal": None, "sigma_min": None, "sigma_max": None})
    config.require({"timestep_type": "discrete", "interpolation_type": "linear"})
    if name != "cosine":  # jdiff rescales these betas to other numbers of timesteps, diffusers does not
        config.require({"num_train_timesteps": 1000})
    prediction_type = config.lookup("prediction_type", "epsilon", PREDICTIONS)
    class_name = content.get("_class_name", "")
    spacing = config.get("timestep_spacing", SPACING_DEFAULTS.get(class_name, "leading"))
    _lookup("timestep_spacing", spacing, SPACINGS)
    steps_offset = config.get("steps_offset", 0)
    diffusion = {
        "schedule": name,
        "timesteps": config.get("num_train_timesteps", 1000),
        "prediction_type": prediction_type,
        "zero_terminal_snr": config.get("rescale_betas_zero_snr", False),
    }
    sample = {
        "solver": "ddim",
        "steps": 50,
        "spacing": spacing,
        "steps_offset": steps_offset if spacing == "leading" else 0,
        "final_step_to_zero": config.get("set_alpha_to_one", class_name != "PNDMScheduler"),
        "guidance_scale": 7.5,
        "clip": config.get("clip_sample", class_name in CLIPPING_SCHEDULERS),
    }
    config.finish(SOLVER_KEYS | {"beta_start", "beta_end"})  # the cosine schedule has no betas of its own
    return diffusion, sample


def _lookup(key: str, name: Any, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise WrongWeights(f"its config has {key} = {name!r}; supported are {', '.join(table)}")
    return table[name]
