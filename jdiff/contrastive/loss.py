"""The contrastive losses of CLIP and SigLIP, over a global batch that no device needs to hold.

Row i of the captions belongs to row i of the images. With the logits

    l_ij = scale text_i . image_j + bias                                                                           (1)

each caption must find its image, and each image its caption [clip fig. 3]. Both losses are sums over the rows and
columns of (1), less its diagonal:

    softmax:   mean over i of  (log sum_j exp l_ij + log sum_j exp l_ji) / 2 - l_ii                                (2)
    sigmoid:   mean over i of  sum_j log(1 + exp l_ij) - l_ii            as log(1 + 1/e^l) = log(1 + e^l) - l      (3)

Every form computes the same number, and differs in what lies where. ``dense`` is (1) as it is written, b x b, cut up by
XLA. ``gathered`` brings all images to each device, which keeps its own rows of (1). ``ring`` sends the images on from
device to device, so that no more than one block of (1) is there at a time, or a chunk of one; the sums of its rows
stay, those of its columns go round with the images. For the gradient the images go round once more, with theirs:

    softmax:   b dL/dl_ij = (exp(l_ij - rows_i) + exp(l_ij - columns_j)) / 2 - [i = j]                             (4)
    sigmoid:   b dL/dl_ij = sigmoid(l_ij) - [i = j]                                                                (5)

[clip]: arXiv 2103.00020, [siglip]: arXiv 2303.15343 eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

Loss = Callable[[Array, Array, Array, Array], tuple[Array, dict[str, Array]]]
Sums = tuple[Array, ...]
TIE = 1e-6  # cosines that differ by less are alike


@dataclass(frozen=True)
class Kind:
    """A loss as sums over the rows and columns of blocks of (1); a sum is a tuple of arrays (n,).

    nothing: n -> the sum of no block.   of: (logits, axis) -> of one.   add: two -> of both.
    across: (sum, axes) -> that of all devices.   value: sum -> what (2) or (3) has of it, (n,).
    both: whether columns count.   slope: (logits, rows, columns) -> (4) or (5), but for its diagonal.
    """

    nothing: Callable
    of: Callable
    add: Callable
    across: Callable
    value: Callable
    both: bool
    slope: Callable

    def loss(self, rows: Sums, columns: Sums, positive: Array) -> Array:
        """(2) or (3) of each row. positive: l_ii."""
        sums = (self.value(rows) + self.value(columns)) / 2 if self.both else self.value(rows)
        return sums - positive


def _exponentials(logits: Array, axis: int) -> Sums:
    """A sum of exponentials as its largest exponent and the sum over that, which keep the digits that a log loses."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis, keepdims=True))
    return jnp.squeeze(top, axis), jnp.sum(jnp.exp(logits - top), axis)


def _both_exponentials(a: Sums, b: Sums) -> Sums:
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


def _exponentials_across(a: Sums, axes: tuple[str, ...]) -> Sums:
    top = jax.lax.pmax(a[0], axes)
    return top, jax.lax.psum(a[1] * jnp.exp(a[0] - top), axes)


def _mean_share(logits: Array, rows: Sums, columns: Sums) -> Array:
    """How much of its row's sum, and of its column's, an exponential is; the mean of the two."""
    of_row = jnp.exp(logits - rows[0][:, None]) / rows[1][:, None]
    return (of_row + jnp.exp(logits - columns[0][None]) / columns[1][None]) / 2


KINDS = {
    "softmax": Kind(
        nothing=lambda n: (jnp.full(n, -jnp.inf), jnp.zeros(n)),
        of=_exponentials,
        add=_both_exponentials,
        across=_exponentials_across,
        value=lambda sums: sums[0] + jnp.log(sums[1]),
        both=True,
        slope=_mean_share,
    ),
    "sigmoid": Kind(
        nothing=lambda n: (jnp.zeros(n),),
        of=lambda logits, axis: (jnp.sum(jax.nn.softplus(logits), axis),),
        add=lambda a, b: (a[0] + b[0],),
        across=lambda a, axes: jax.lax.psum(a, axes),
        value=lambda sums: sums[0],
        both=False,
        slope=lambda logits, rows, columns: jax.nn.sigmoid(logits),
    ),
}


def dense(of: Kind, mesh: Mesh, axes: tuple[str, ...]) -> Loss:
    """(text (b, d), image (b, d), scale, bias) -> the loss, by (1) whole, and a report.

    The embeddings are of unit length, scale is 1 / temperature. The report has the shares of captions and of images
    that are nearer to their partner than to anything else; where all are alike, none is.
    """

    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        logits, positive = _logits(text, image, scale, bias), _positive(text, image, scale, bias)
        loss = jnp.mean(of.loss(of.of(logits, 1), of.of(logits, 0), positive))
        return loss, _found(*_near(logits, positive, positive, scale), jnp.mean)

    return loss


def gathered(of: Kind, mesh: Mesh, axes: tuple[str, ...]) -> Loss:
    """As ``dense``, of rows that lie spread over ``axes`` of a mesh; each device has its own rows of (1)."""
    spread, one = PartitionSpec(axes), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(spread, spread, one, one), out_specs=one)
    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        n, positive = len(text), _positive(text, image, scale, bias)
        images, positives = jax.lax.all_gather((image, positive), axes, tiled=True)
        logits, first = _logits(text, images, scale, bias), jax.lax.axis_index(axes) * n
        of_text, of_image = _near(logits, positive, positives, scale)
        everywhere = of.across(of.of(logits, 0), axes), jax.lax.psum(of_image, axes)
        columns, of_image = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, n), everywhere)
        mean = partial(_mean, axes=axes)
        return mean(of.loss(of.of(logits, 1), columns, positive)), _found(of_text, of_image, mean)

    return loss


def ring(of: Kind, mesh: Mesh, axes: tuple[str, ...], *, chunk: int | None = None) -> Loss:
    """As ``gathered``, where a device sees one block of (1) at a time.

    chunk: how many images of a visiting block are looked at together; all of them if not said. Raises ``ValueError``
    where it does not divide a block.
    """
    spread, one = PartitionSpec(axes), PartitionSpec()
    devices, spec = math.prod(mesh.shape[axis] for axis in axes), (spread, spread, one, one)

    def around(visit: Callable, state, visiting):
        """Bring each device's rows past all devices, and home again.

        visit: (state, a chunk of visiting rows) -> state, what becomes of the chunk.
        """
        n = len(jax.tree.leaves(visiting)[0])
        size = n if chunk is None else chunk
        if n % size:
            raise ValueError(f"chunk is {size}, but must divide the {n} images of a device")

        def block(carry, _):
            state, visiting = carry
            parts = jax.tree.map(lambda x: x.reshape(n // size, size, *x.shape[1:]), visiting)
            state, parts = jax.lax.scan(visit, state, parts)
            visiting = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), parts)
            return (state, jax.lax.ppermute(visiting, axes, [(i, (i + 1) % devices) for i in range(devices)])), None

        return jax.lax.scan(block, (state, visiting), length=devices)[0]

    @partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=(one, one, spread, spread), check_vma=False)
    def forwards(text: Array, image: Array, scale: Array, bias: Array):
        positive = _positive(text, image, scale, bias)

        def visit(state, visiting):
            (rows, of_text), (image, columns, of_image, theirs) = state, visiting
            logits = _logits(text, image, scale, bias)
            rows = of.add(rows, of.of(logits, 1))
            if of.both:
                columns = of.add(columns, of.of(logits, 0))
            near = _near(logits, positive, theirs, scale)
            return (rows, of_text + near[0]), (image, columns, of_image + near[1], theirs)

        nothing, none = of.nothing(len(text)), jnp.zeros(len(text))
        state, visiting = around(visit, (nothing, none), (image, nothing, none, positive))
        (rows, of_text), (_, columns, of_image, _) = state, visiting
        mean = partial(_mean, axes=axes)
        return mean(of.loss(rows, columns, positive)), _found(of_text, of_image, mean), rows, columns

    @partial(jax.shard_map, mesh=mesh, in_specs=(*spec, spread, spread), out_specs=spec, check_vma=False)
    def backwards(text: Array, image: Array, scale: Array, bias: Array, rows: Sums, columns: Sums):
        """The gradient of the loss by each of its arguments, times b."""

        def visit(state, visiting):
            (to_text, to_bias), (image, columns, to_image) = state, visiting
            slope = of.slope(_logits(text, image, scale, bias), rows, columns)
            return (to_text + slope @ image, to_bias + jnp.sum(slope)), (image, columns, to_image + slope.T @ text)

        state = -_precise(image), -jnp.float32(len(text))  # the diagonal of (4) and (5)
        visiting = image, columns, -_precise(text)
        (to_text, to_bias), (_, _, to_image) = around(visit, state, visiting)
        to_scale = jnp.sum(text * to_text)  # as what multiplies the slope is text_i . image_j
        return scale * to_text, scale * to_image, *jax.lax.psum((to_scale, to_bias), axes)

    @jax.custom_vjp
    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        return forwards(text, image, scale, bias)[:2]

    def and_residuals(*given: Array):
        value, found, rows, columns = forwards(*given)
        return (value, found), (*given, rows, columns)

    def gradient(residuals: tuple[Array, ...], slopes):
        share = slopes[0] / len(residuals[0])
        return tuple((share * x).astype(like.dtype) for x, like in zip(backwards(*residuals), residuals))

    loss.defvjp(and_residuals, gradient)
    return loss


FORMS = {"dense": dense, "gathered": gathered, "ring": ring}


def _logits(text: Array, image: Array, scale: Array, bias: Array) -> Array:
    """(1), in float32 on every device: a scale of 100 makes much of a little rounding."""
    return jnp.matmul(scale * _precise(text), _precise(image).T, precision=jax.lax.Precision.HIGHEST) + bias


def _precise(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _positive(text: Array, image: Array, scale: Array, bias: Array) -> Array:
    """l_ii, without the matrix that it is in."""
    return scale * jnp.sum(_precise(text) * _precise(image), axis=1) + bias


def _near(logits: Array, of_rows: Array, of_columns: Array, scale: Array) -> tuple[Array, Array]:
    """How many logits of each row and column are no less than the positive one of it."""
    logits = jax.lax.stop_gradient(logits + TIE * scale)
    rows = jnp.sum(logits >= of_rows[:, None], axis=1, dtype=jnp.float32)
    return rows, jnp.sum(logits >= of_columns[None], axis=0, dtype=jnp.float32)


def _found(of_text: Array, of_image: Array, mean: Callable) -> dict[str, Array]:
    """The shares of rows and columns in which nothing but the partner is that near."""
    return {"text_to_image": mean(of_text == 1), "image_to_text": mean(of_image == 1)}


def _mean(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.pmean(jnp.mean(x), axes)
