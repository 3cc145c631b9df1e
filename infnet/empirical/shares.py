"""The gradients of outputs with respect to one parameter, factored where its use has structure; and their products.

A weight W that acts as y = Σ_f h_f W (f counts positions) has the gradient Σ_f h_fᵀ δ_f, with δ the gradient at y. The
product of two of these is

    Σ_fg (h_f · h'_g) (δ_f · δ'_g)        (Novak et al. 2022, arXiv:2206.08720, section 3.4),

which forms no gradient of W. With one position it is the elementwise product of two Gram matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.empirical.axes import Axes


@dataclass(frozen=True)
class Dense:
    """The gradient with respect to a parameter, of every example: `(n, *output, *parameter)`."""

    gradient: jax.Array


@dataclass(frozen=True)
class Outer:
    """The gradient of a weight as Σ_f h_fᵀ δ_f, of every example.

    Attributes:
        delta: `(n, *output, f, g)`.
        h: `(n, f, c)`.
    """

    delta: jax.Array
    h: jax.Array

    @property
    def gradient(self) -> jax.Array:
        """The gradient itself, of every example: `(n, *output, g, c)`."""
        return jnp.einsum("n...fg,nfc->n...gc", self.delta, self.h, precision=lax.Precision.HIGHEST)

    @staticmethod
    def joined(shares: Sequence[Outer]) -> Outer:
        """The sum of gradients with respect to the same weight: one with the positions of all."""
        delta = jnp.concatenate([share.delta for share in shares], axis=-2)
        return Outer(delta, jnp.concatenate([share.h for share in shares], axis=-2))

    def of_turns(self) -> Outer:
        """From `(turns, *output, f, g)` and `(turns, f, c)`: the sum over the turns."""
        return Outer(_merged(self.delta), self.h.reshape(-1, self.h.shape[-1]))

    def products(self, other: Outer) -> jax.Array:
        """h_f · h'_g, of a single example each."""
        return jnp.matmul(self.h, other.h.T, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Rows:
    """The gradient of a table, of which row `indices[f]` is the one used at f; none if it is negative.

    Attributes:
        delta: `(n, *output, f, g)`.
        indices: `(n, f)`.
    """

    delta: jax.Array
    indices: jax.Array

    @staticmethod
    def joined(shares: Sequence[Rows]) -> Rows:
        """The sum of gradients with respect to the same table: one with the positions of all."""
        delta = jnp.concatenate([share.delta for share in shares], axis=-2)
        return Rows(delta, jnp.concatenate([share.indices for share in shares], axis=-1))

    def of_turns(self) -> Rows:
        """From `(turns, *output, f, g)` and `(turns, f)`: the sum over the turns."""
        return Rows(_merged(self.delta), self.indices.ravel())

    def products(self, other: Rows) -> jax.Array:
        """Whether the rows are the same, of a single example each."""
        same = (self.indices[:, None] == other.indices) & (self.indices[:, None] >= 0)
        return same.astype(self.delta.dtype)


for _kind, _fields in ((Dense, ["gradient"]), (Outer, ["delta", "h"]), (Rows, ["delta", "indices"])):
    jax.tree_util.register_dataclass(_kind, _fields, [])

Share = Dense | Outer | Rows


def _merged(delta: jax.Array) -> jax.Array:
    """`(*output, turns * f, g)` of `(turns, *output, f, g)`."""
    moved = jnp.moveaxis(delta, 0, -3)
    return moved.reshape(*moved.shape[:-3], -1, moved.shape[-1])


def product(axes: Axes, one: Any, two: Any, dtype: Any, memory_limit: int) -> jax.Array:
    """The kernel of two gradients of the same kind.

    Args:
        axes: of the output.
        one, two: `Dense`, `Outer` or `Rows`, for x1 and x2.
        dtype: of the kernel.
        memory_limit: bytes that gradients may take at a time.
    """
    if isinstance(one, Dense):
        return axes.gram(one.gradient, two.gradient, dtype)
    if isinstance(one, Outer):
        if one.h.shape[1] == two.h.shape[1] == 1:
            return _of_one_position(axes, one, two, dtype)
        if _is_cheaper_dense(axes, one, two, memory_limit):
            return axes.gram(one.gradient, two.gradient, dtype)
    return _of_pairs(axes, one, two, dtype, memory_limit)


def _of_one_position(axes: Axes, one: Outer, two: Outer, dtype: Any) -> jax.Array:
    diagonal = (0,) if 0 in axes.diagonal else ()
    examples = replace(axes, shape1=axes.shape1[:1], shape2=axes.shape2[:1], traced=(), diagonal=diagonal)
    h = examples.gram(one.h, two.h, dtype)
    return axes.gram(one.delta, two.delta, dtype) * h.reshape(h.shape + (1,) * (len(axes.shape) - h.ndim))


def _is_cheaper_dense(axes: Axes, one: Outer, two: Outer, memory_limit: int) -> bool:
    """Whether forming the gradients of the weight takes fewer multiplications than the products of all positions."""
    (n1, *outputs, f1, g), (n2, *_, f2, _), c = one.delta.shape, two.delta.shape, one.h.shape[-1]
    rows, pairs = math.prod(outputs), n1 if 0 in axes.diagonal else n1 * n2
    columns = math.prod(axes.shape2[k] for k in axes.free if k)
    if (n1 + n2) * rows * g * c * one.delta.dtype.itemsize > memory_limit:
        return False
    dense = (n1 * f1 + n2 * f2) * rows * g * c + pairs * rows * columns * g * c
    return dense <= pairs * (f1 * f2 * c + rows * f1 * f2 * g + rows * columns * f2 * g)


def _of_pairs(axes: Axes, one: Any, two: Any, dtype: Any, memory_limit: int) -> jax.Array:
    """Pair by pair of examples: Σ_fg (h_f · h'_g) (δ_f · δ'_g)."""
    inner = Axes(
        axes.shape1[1:],
        axes.shape2[1:],
        tuple(k - 1 for k in axes.traced),
        tuple(k - 1 for k in axes.diagonal if k),
    )

    def pair(a: Any, b: Any) -> jax.Array:
        moved = jnp.einsum("...fg,fh->...hg", a.delta, a.products(b), precision=lax.Precision.HIGHEST)
        return inner.gram(moved, b.delta, dtype)

    if 0 in axes.diagonal:
        return jax.vmap(pair)(one, two)
    # Of one example of x1, `moved` for all examples of x2.
    size = two.delta.dtype.itemsize * two.delta.size
    rows = max(1, min(axes.shape1[0], memory_limit // max(1, size)))
    return lax.map(lambda a: jax.vmap(lambda b: pair(a, b))(two), one, batch_size=rows)
