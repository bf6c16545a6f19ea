"""The contrastive losses of CLIP and SigLIP, over a global batch that no single device needs to hold.

Row i of the captions belongs to row i of the images. With the logits

    l_ij = scale text_i . image_j + bias                                                                           (1)

each caption must identify its image, and each image its caption [clip fig. 3]. Both losses are sums over the rows and
columns of (1), minus its diagonal:

    softmax:   mean over i of  (log sum_j exp l_ij + log sum_j exp l_ji) / 2 - l_ii                                (2)
    sigmoid:   mean over i of  sum_j log(1 + exp l_ij) - l_ii            as log(1 + 1/e^l) = log(1 + e^l) - l      (3)

Every form computes the same number, with a different memory layout. ``dense`` is the whole matrix (1), b x b, sharded
by XLA. ``gathered`` all-gathers the images to each device, which keeps its own rows of (1). ``ring`` passes the images
from device to device, so that a device holds one block of (1) at a time, or a chunk of one; the row sums stay, and the
column sums travel with the images. For the gradient the images travel once more, with theirs:

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
TIE = 1e-6  # cosines that differ by less count as equal


@dataclass(frozen=True)
class BlockwiseLoss:
    """A loss as reductions over the rows and columns of blocks of (1); a reduction is a tuple of arrays (n,).

    identity: n -> the reduction of no block.   reduce: (logits, axis) -> the reduction of one block.
    combine: two reductions -> that of both.   all_reduce: (reduction, axes) -> that of all devices.
    finalize: reduction -> its term in (2) or (3), (n,).   symmetric: whether columns count, too.
    gradient: (logits, rows, columns) -> (4) or (5), without the diagonal.
    """

    identity: Callable
    reduce: Callable
    combine: Callable
    all_reduce: Callable
    finalize: Callable
    symmetric: bool
    gradient: Callable

    def loss(self, rows: Sums, columns: Sums, positive: Array) -> Array:
        """(2) or (3) of each row. positive: l_ii."""
        sums = (self.finalize(rows) + self.finalize(columns)) / 2 if self.symmetric else self.finalize(rows)
        return sums - positive


def _reduce_exponentials(logits: Array, axis: int) -> Sums:
    """A sum of exponentials, as the largest exponent and the sum relative to it, which neither over- nor underflows."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis, keepdims=True))
    return jnp.squeeze(top, axis), jnp.sum(jnp.exp(logits - top), axis)


def _combine_exponentials(a: Sums, b: Sums) -> Sums:
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


def _all_reduce_exponentials(a: Sums, axes: tuple[str, ...]) -> Sums:
    top = jax.lax.pmax(a[0], axes)
    return top, jax.lax.psum(a[1] * jnp.exp(a[0] - top), axes)


def _softmax_gradient(logits: Array, rows: Sums, columns: Sums) -> Array:
    """The mean of the softmax over the row and the softmax over the column of each logit."""
    row_softmax = jnp.exp(logits - rows[0][:, None]) / rows[1][:, None]
    return (row_softmax + jnp.exp(logits - columns[0][None]) / columns[1][None]) / 2


LOSSES = {
    "softmax": BlockwiseLoss(
        identity=lambda n: (jnp.full(n, -jnp.inf), jnp.zeros(n)),
        reduce=_reduce_exponentials,
        combine=_combine_exponentials,
        all_reduce=_all_reduce_exponentials,
        finalize=lambda sums: sums[0] + jnp.log(sums[1]),
        symmetric=True,
        gradient=_softmax_gradient,
    ),
    "sigmoid": BlockwiseLoss(
        identity=lambda n: (jnp.zeros(n),),
        reduce=lambda logits, axis: (jnp.sum(jax.nn.softplus(logits), axis),),
        combine=lambda a, b: (a[0] + b[0],),
        all_reduce=lambda a, axes: jax.lax.psum(a, axes),
        finalize=lambda sums: sums[0],
        symmetric=False,
        gradient=lambda logits, rows, columns: jax.nn.sigmoid(logits),
    ),
}


def dense_loss(kind: BlockwiseLoss, mesh: Mesh, axes: tuple[str, ...]) -> Loss:
    """The loss from the whole matrix (1): (text (b, d), image (b, d), scale, bias) -> the loss and a report.

    The embeddings are of unit length, scale is 1 / temperature. The report has retrieval accuracies in the batch: the
    shares of captions and of images that are nearer to their partner than to anything else. A tie counts as a miss.
    """

    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        logits, positive = _logits(text, image, scale, bias), _positive(text, image, scale, bias)
        loss = jnp.mean(kind.loss(kind.reduce(logits, 1), kind.reduce(logits, 0), positive))
        return loss, _accuracies(*_ranks(logits, positive, positive, scale), jnp.mean)

    return loss


def gathered_loss(kind: BlockwiseLoss, mesh: Mesh, axes: tuple[str, ...]) -> Loss:
    """As ``dense_loss``, for rows sharded over ``axes`` of a mesh; each device computes its own rows of (1)."""
    sharded, replicated = PartitionSpec(axes), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(sharded, sharded, replicated, replicated), out_specs=replicated)
    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        n, positive = len(text), _positive(text, image, scale, bias)
        images, positives = jax.lax.all_gather((image, positive), axes, tiled=True)
        logits, first = _logits(text, images, scale, bias), jax.lax.axis_index(axes) * n
        text_rank, image_rank = _ranks(logits, positive, positives, scale)
        all_columns = kind.all_reduce(kind.reduce(logits, 0), axes), jax.lax.psum(image_rank, axes)
        columns, image_rank = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, n), all_columns)
        mean = partial(_mean, axes=axes)
        return mean(kind.loss(kind.reduce(logits, 1), columns, positive)), _accuracies(text_rank, image_rank, mean)

    return loss


def ring_loss(kind: BlockwiseLoss, mesh: Mesh, axes: tuple[str, ...], *, chunk: int | None = None) -> Loss:
    """As ``gathered_loss``, where a device holds one block of (1) at a time.

    chunk: the number of a visiting block's images that are processed at once; None for all. Raises ``ValueError``
    where it does not divide a block.
    """
    sharded, replicated = PartitionSpec(axes), PartitionSpec()
    devices, spec = math.prod(mesh.shape[axis] for axis in axes), (sharded, sharded, replicated, replicated)

    def rotate(visit: Callable, state, visiting):
        """Pass each device's rows around the ring, past all devices and back.

        visit: (state, a chunk of visiting rows) -> state, the updated chunk.
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

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=spec,
        out_specs=(replicated, replicated, sharded, sharded),
        check_vma=False,
    )
    def forward(text: Array, image: Array, scale: Array, bias: Array):
        positive = _positive(text, image, scale, bias)

        def visit(state, visiting):
            (rows, text_rank), (image, columns, image_rank, image_positive) = state, visiting
            logits = _logits(text, image, scale, bias)
            rows = kind.combine(rows, kind.reduce(logits, 1))
            if kind.symmetric:
                columns = kind.combine(columns, kind.reduce(logits, 0))
            ranks = _ranks(logits, positive, image_positive, scale)
            return (rows, text_rank + ranks[0]), (image, columns, image_rank + ranks[1], image_positive)

        identity, zeros = kind.identity(len(text)), jnp.zeros(len(text))
        state, visiting = rotate(visit, (identity, zeros), (image, identity, zeros, positive))
        (rows, text_rank), (_, columns, image_rank, _) = state, visiting
        mean = partial(_mean, axes=axes)
        return mean(kind.loss(rows, columns, positive)), _accuracies(text_rank, image_rank, mean), rows, columns

    @partial(jax.shard_map, mesh=mesh, in_specs=(*spec, sharded, sharded), out_specs=spec, check_vma=False)
    def backward(text: Array, image: Array, scale: Array, bias: Array, rows: Sums, columns: Sums):
        """The gradient of the loss with respect to each of its arguments, times b."""

        def visit(state, visiting):
            (text_grad, bias_grad), (image, columns, image_grad) = state, visiting
            grad = kind.gradient(_logits(text, image, scale, bias), rows, columns)
            return (text_grad + grad @ image, bias_grad + jnp.sum(grad)), (image, columns, image_grad + grad.T @ text)

        state = -_float32(image), -jnp.float32(len(text))  # the diagonal of (4) and (5)
        visiting = image, columns, -_float32(text)
        (text_grad, bias_grad), (_, _, image_grad) = rotate(visit, state, visiting)
        scale_grad = jnp.sum(text * text_grad)  # as dl_ij / dscale is text_i . image_j
        return scale * text_grad, scale * image_grad, *jax.lax.psum((scale_grad, bias_grad), axes)

    @jax.custom_vjp
    def loss(text: Array, image: Array, scale: Array, bias: Array) -> tuple[Array, dict[str, Array]]:
        return forward(text, image, scale, bias)[:2]

    def loss_fwd(*arguments: Array):
        value, report, rows, columns = forward(*arguments)
        return (value, report), (*arguments, rows, columns)

    def loss_bwd(residuals: tuple[Array, ...], cotangents):
        factor = cotangents[0] / len(residuals[0])
        grads = backward(*residuals)
        return tuple((factor * grad).astype(argument.dtype) for grad, argument in zip(grads, residuals))

    loss.defvjp(loss_fwd, loss_bwd)
    return loss


FORMS = {"dense": dense_loss, "gathered": gathered_loss, "ring": ring_loss}


def _logits(text: Array, image: Array, scale: Array, bias: Array) -> Array:
    """(1), in float32 on every device: a scale of 100 amplifies rounding."""
    return jnp.matmul(scale * _float32(text), _float32(image).T, precision=jax.lax.Precision.HIGHEST) + bias


def _float32(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _positive(text: Array, image: Array, scale: Array, bias: Array) -> Array:
    """l_ii, the logits of the matching pairs, without the matrix."""
    return scale * jnp.sum(_float32(text) * _float32(image), axis=1) + bias


def _ranks(logits: Array, row_positive: Array, column_positive: Array, scale: Array) -> tuple[Array, Array]:
    """The rank of the matching pair in each row and column, from 1: how many logits are at least as large as its."""
    logits = jax.lax.stop_gradient(logits + TIE * scale)
    rows = jnp.sum(logits >= row_positive[:, None], axis=1, dtype=jnp.float32)
    return rows, jnp.sum(logits >= column_positive[None], axis=0, dtype=jnp.float32)


def _accuracies(text_rank: Array, image_rank: Array, mean: Callable) -> dict[str, Array]:
    """The shares of rows and columns in which the matching pair has rank 1."""
    return {"text_to_image": mean(text_rank == 1), "image_to_text": mean(image_rank == 1)}


def _mean(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.pmean(jnp.mean(x), axes)
