"""From prompts to images: a trained text-to-image model in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jdiff.data.tokenizer import Tokenizer
from jdiff.diffusion.guidance import Corrections
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.tableau import Tableau, stack_tableaux
from jdiff.inference.program import SamplerInputs, SamplerSpec, draw, draw_chunk
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import TextTower

MAX_ROWS = 1000  # of a tableau, in the program that is compiled by default
DenoisingMse = tuple[tuple[float, ...], tuple[float, ...]]  # log SNRs, and the mean squared error of x0 at each


class Trajectory(NamedTuple):
    """Images at every row, (rows, n, h, w, 3) uint8: xt as it was denoised, and the denoiser's x0 of it.

    An image that is finished early stays as it is.
    """

    xt: np.ndarray
    x0: np.ndarray


class _Request(NamedTuple):
    """What is asked of a sampler: settings of each image, their tableaux, columns of ``CAPTIONS``, noise (n, ...)."""

    settings: list[Settings]
    tableaux: dict[Settings, Tableau]
    columns: list[np.ndarray]
    noise: np.ndarray | None

    @property
    def num_rows(self) -> int:
        return max(tableau.num_rows for tableau in self.tableaux.values())


@dataclass(frozen=True)
class Sampler:
    """A trained text-to-image model, ready to draw.

    params: of each network, by its name.
    autoencoder: None where the denoiser works in pixels.
    shape: (h, w, c) of what the denoiser works in.
    learned_variance: whether the denoiser also predicts, in as many more channels, the variance of DDPM's steps.
    weak_networks: text tower and denoiser of a weaker model, see ``with_autoguidance``.
    denoising_mse: from ``calibrate.measure_denoising_mse``, None where it was not measured.
    """

    tokenizer: Tokenizer
    text: TextTower
    denoiser: nn.Module
    autoencoder: Autoencoder | None
    params: Mapping[str, Any]
    schedule: Schedule
    prediction_type: str
    shape: tuple[int, int, int]
    settings: Settings = field(default_factory=Settings)
    learned_variance: bool = False
    weak_networks: tuple[TextTower, nn.Module] | None = None
    denoising_mse: DenoisingMse | None = None

    def sample(
        self,
        prompts: Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        guidance_scale: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
        noise: np.ndarray | None = None,
        settings: Settings | Sequence[Settings] | None = None,
        batch_size: int = 64,
        max_rows: int = MAX_ROWS,
        trajectory: bool = False,
        progress: Callable[[Sequence], Iterable] = iter,
    ) -> Any:  # the images, or with trajectory a pair
        """Draw an image for each prompt.

        One compiled program for a batch size and ``max_rows`` draws everything: all arguments are runtime data, and
        each image may have its own.

        negative: negative prompts; the default is the empty caption.
        guidance_scale: in place of that of the settings.
        seed: image i of one seed has seed + i, so each can be drawn again alone.
        noise: initial noise in place of the seeds' own, (n, h, w, c) standard normal, of latents where there are any.
        settings: how to sample, for all or for each.
        batch_size: images per run of the compiled program; an image does not depend on its batch.
        max_rows: the most rows (network evaluations) of a method; those that no image uses cost nothing.
        progress: wraps the sequence of batches, and may report how far it is.
        Returns images (n, h, w, 3) uint8 and, on request, their ``Trajectory``.
        Raises ``ValueError`` where an argument has not one value for each prompt, or cannot be used.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be 1 or more")
        request = self._request(prompts, negative, guidance_scale, seed, noise, settings)
        rows = request.num_rows if trajectory else max(request.num_rows, max_rows)
        spec, n = self.spec(trajectory=trajectory), len(request.settings)
        batches = make_batches([request.tableaux[setting] for setting in request.settings], min(batch_size, n))
        images, paths = [], []
        for batch in progress(batches):
            image, path = draw(spec, self.params, *self._batch(request, batch, rows))
            images.append(np.asarray(image))
            paths.append(path and tuple(map(np.asarray, path)))
        # Batches repeat images to be full: take each where it was drawn first.
        first = np.unique(np.concatenate(batches), return_index=True)[1]
        result = np.concatenate(images)[first]
        if not trajectory:
            return result
        return result, Trajectory(*(np.concatenate(of_batches, axis=1)[:, first] for of_batches in zip(*paths)))

    def stream(
        self,
        prompts: Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        guidance_scale: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
        noise: np.ndarray | None = None,
        settings: Settings | Sequence[Settings] | None = None,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[np.ndarray]:
        """Draw as ``sample``, in one batch, and yield the images after every few rows as the denoiser sees them then.

        The last ones are those that ``sample`` returns; a caller may stop before.
        """
        request = self._request(prompts, negative, guidance_scale, seed, noise, settings)
        inputs = self._batch(request, np.arange(len(request.settings)), max(request.num_rows, max_rows))
        chunk, rows_left = None, True
        while rows_left:
            chunk, images, rows_left = draw_chunk(self.spec(), self.params, *inputs, chunk)
            yield np.asarray(images)

    def _request(self, prompts, negative, guidance_scale, seed, noise, settings) -> _Request:
        """The arguments of ``sample``, checked, one value for each image. Raises ``ValueError``."""
        if isinstance(prompts, str):
            raise ValueError(f"prompts is one string, {prompts!r}, but must be a list of them")
        n = len(prompts)
        if n < 1:
            raise ValueError("there are no prompts; pass one or more")
        per_image = broadcast("settings", self.settings if settings is None else settings, n)
        if guidance_scale is not None:
            scales = broadcast("guidance_scale", guidance_scale, n)
            per_image = [replace(setting, guidance_scale=float(scale)) for setting, scale in zip(per_image, scales)]
        seeds = np.array([seed + i for i in range(n)] if np.ndim(seed) == 0 else broadcast("seed", seed, n))
        if seeds.min() < 0 or seeds.max() >= 2**32:
            raise ValueError(f"seeds are from {seeds.min()} to {seeds.max()}, but must be from 0 to {2**32 - 1}")
        negatives = broadcast("negative", negative, n)
        if self.weak_networks is not None and any(negatives):
            raise ValueError("negative prompts cannot be combined with autoguidance; leave out one of them")
        if noise is not None and np.shape(noise) != (n, *self.shape):
            raise ValueError(f"noise is of shape {np.shape(noise)}, but must be {(n, *self.shape)}")
        columns = [*self.tokenizer.encode(list(prompts)), *self.tokenizer.encode(negatives), seeds.astype(np.uint32)]
        return _Request(
            per_image,
            {setting: self.tableau(setting) for setting in set(per_image)},
            columns,
            None if noise is None else np.asarray(noise, np.float32),
        )

    def _batch(self, request: _Request, batch: np.ndarray, rows: int) -> tuple[SamplerInputs, list, np.ndarray | None]:
        """What the program takes for some images of a request."""
        inputs = self.inputs([request.settings[i] for i in batch], request.tableaux, max_rows=rows)
        noise = None if request.noise is None else request.noise[batch]
        return inputs, [column[batch] for column in request.columns], noise

    def tableau(self, settings: Settings) -> Tableau:
        """The coefficients of some settings on this model's schedule. Raises ``ValueError``."""
        curve = self.denoising_mse
        return settings.tableau(
            self.schedule,
            self.prediction_type,
            learned_variance=self.learned_variance,
            denoising_mse=curve and (lambda level: np.interp(level.logsnr, *curve)),
        )

    def spec(self, *, trajectory: bool = False) -> SamplerSpec:
        """What this model's compiled program depends on."""
        return SamplerSpec(
            self.text, self.denoiser, self.autoencoder, self.prediction_type, self.shape, self.weak_networks, trajectory
        )

    def with_autoguidance(self, weak: Sampler) -> Sampler:
        """This model guided away from the prediction of a weaker one for the same prompt, such as an earlier checkpoint
        or a smaller network, in place of a negative prompt [autoguidance].

        Raises ``ValueError`` where the two do not predict the same quantity of the same captions.
        """
        for quantity, value, weak_value in (
            ("prediction type", self.prediction_type, weak.prediction_type),
            ("shape", self.shape, weak.shape),
            ("token layout", self.tokenizer.layout(), weak.tokenizer.layout()),
            ("vocabulary size", self.tokenizer.vocab_size, weak.tokenizer.vocab_size),
            ("number of timesteps", self.schedule.timesteps, weak.schedule.timesteps),
            ("schedule's log SNRs", _sample_levels(self.schedule), _sample_levels(weak.schedule)),
            ("learned_variance", self.learned_variance, weak.learned_variance),
        ):
            if value != weak_value:
                raise ValueError(f"the weaker model's {quantity} is {weak_value}, but must be this model's, {value}")
        params = {**self.params, "weak": {name: weak.params[name] for name in ("text", "denoiser")}}
        return replace(self, weak_networks=(weak.text, weak.denoiser), params=params)

    def inputs(
        self,
        settings: Sequence[Settings],
        tableaux: Mapping[Settings, Tableau] | None = None,
        *,
        max_rows: int = MAX_ROWS,
    ) -> SamplerInputs:
        """The program's inputs for images of one of these settings each. Latents are not clipped.

        tableaux: of the settings, where they were made before.
        """

        def column(values: Iterable) -> np.ndarray:
            return np.array(list(values), np.float32)

        pixels = self.autoencoder is None
        tableaux = tableaux or {setting: self.tableau(setting) for setting in set(settings)}
        rows = max(max_rows, *(tableaux[setting].num_rows for setting in settings))
        return SamplerInputs(
            stack_tableaux([tableaux[setting] for setting in settings], rows),
            Corrections(
                rescale=column(setting.guidance_rescale for setting in settings),
                parallel=column(setting.apg_parallel for setting in settings),
                norm=column(np.inf if setting.apg_norm is None else setting.apg_norm for setting in settings),
                momentum=column(setting.apg_momentum for setting in settings),
            ),
            clip=np.array([setting.clip and pixels for setting in settings]),
            percentile=column(setting.threshold_percentile if pixels else 0.0 for setting in settings),
        )


def _sample_levels(schedule: Schedule) -> list[float]:
    """Log SNRs at a schedule's start, middle and end, which distinguish it from others."""
    return schedule.rates(np.linspace(schedule.first, schedule.last, 3)).logsnr.round(6).tolist()


def broadcast(name: str, value: object, n: int) -> list:
    """One value for each of n images, from one for all or one for each. Raises ``ValueError``."""
    values = [value] * n if np.ndim(value) == 0 else list(value)
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values, but there are {n} prompts")
    return values


def make_batches(tableaux: Sequence[Tableau], size: int) -> list[np.ndarray]:
    """Which images are drawn together, each batch filled up with repeats, so that one program serves all.

    A network rounds a batch of 2b differently from one of b, so guided images are not drawn beside unguided ones, nor
    those that are guided in some rows beside others that are guided in different rows: then an image's bits do not
    depend on what it is drawn with.
    """
    groups: dict[bytes, list[int]] = {}
    for i, tableau in enumerate(tableaux):
        guided = tableau.guidance_scale != 1
        key = np.flatnonzero(guided).tobytes() if guided.any() and not guided.all() else bytes([int(guided.any())])
        groups.setdefault(key, []).append(i)
    batches = []
    for members in groups.values():
        for first in range(0, len(members), size):
            batches.append(np.resize(members[first : first + size], size))
    return batches
