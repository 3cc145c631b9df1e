"""One set of examples, as an output of the model depends on the trained parameters; rows of its Jacobian.

Complex numbers: the kernel is J Jᴴ. With respect to real parameters, J is the derivative of the real and of the
imaginary part of an output, put together; with respect to complex ones it is the holomorphic derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Leaves = list[jax.Array]


@dataclass(frozen=True)
class Side:
    """One output of a model for one set of examples.

    Attributes:
        leaves: the trained parameters.
        whole: `leaves -> (n, ...)`, the output for all examples.
        one: `(leaves, example) -> (...)`, that of one; None if they depend on each other.
        x: the examples.
        shape, dtype: of the output.
    """

    leaves: Leaves
    whole: Callable[[Leaves], jax.Array]
    one: Callable[[Leaves, PyTree], jax.Array] | None
    x: PyTree
    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """The number of rows of the Jacobian."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """The size of a row of the Jacobian."""
        return sum(leaf.size * jnp.result_type(leaf, self.dtype).itemsize for leaf in self.leaves)

    @property
    def is_complex(self) -> bool:
        """Whether the output or a trained parameter is."""
        return jnp.issubdtype(self.dtype, jnp.complexfloating) or any(map(jnp.iscomplexobj, self.leaves))

    def only(self, numbers: Sequence[int], leaves: Leaves) -> Side:
        """The same with `leaves` in the place of those of these `numbers`, and the others constant."""

        def merged(some: Leaves) -> Leaves:
            merged = list(self.leaves)
            for number, leaf in zip(numbers, some, strict=True):
                merged[number] = leaf
            return merged

        one = self.one
        return Side(
            leaves,
            lambda some: self.whole(merged(some)),
            None if one is None else lambda some, example: one(merged(some), example),
            self.x,
            self.shape,
            self.dtype,
        )

    def jacobian(self) -> Leaves:
        """For each parameter `(*shape, *parameter shape)`."""
        one = self.one
        if one is None:
            return _all_rows(self.whole, self.leaves)
        return jax.vmap(lambda x: _all_rows(lambda leaves: one(leaves, x), self.leaves))(self.x)

    def row(self, number: jax.Array) -> Leaves:
        """The gradient of one element of the output."""
        f, one, shape = self.whole, self.one, self.shape
        if one is not None:
            place, number = jnp.divmod(number, math.prod(shape[1:]))
            example = jax.tree.map(itemgetter(place), self.x)
            f, shape = (lambda leaves: one(leaves, example)), shape[1:]
        pullback = jax.vjp(f, self.leaves)[1]
        cotangent = jax.nn.one_hot(number, math.prod(shape), dtype=self.dtype).reshape(shape)
        return row_of(pullback, self.leaves, cotangent)


def basis(y: jax.Array) -> jax.Array:
    """The vectors of a basis, `(size of y, *shape of y)`."""
    return jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)


def _all_rows(f: Callable[[Leaves], jax.Array], leaves: Leaves) -> Leaves:
    y, pullback = jax.vjp(f, leaves)
    rows = jax.vmap(partial(row_of, pullback, leaves))(basis(y))
    return [row.reshape(*y.shape, *leaf.shape) for row, leaf in zip(rows, leaves, strict=True)]


def row_of(pullback: Callable[[jax.Array], Any], leaves: Leaves, cotangent: jax.Array) -> Leaves:
    """The gradients of <cotangent, output>, without a complex conjugate."""
    (row,) = pullback(cotangent)
    if not jnp.iscomplexobj(cotangent) or all(map(jnp.iscomplexobj, leaves)):
        return list(row)
    # Of a real parameter t, JAX's pullback gives Re(cotangent dy/dt).
    (imaginary,) = pullback(-1j * cotangent)
    return [a if jnp.iscomplexobj(leaf) else a + 1j * b for leaf, a, b in zip(leaves, row, imaginary, strict=True)]
