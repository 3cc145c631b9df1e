"""Fixed linear maps of positions. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional


class Flatten(hk.Module):
    """All positions and channels as one axis: `(n, *positions, channels)` to `(n, size)`."""

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.flatten`."""
        return functional.flatten(jnp.asarray(x), mask=mask)


class Identity(hk.Module):
    """The inputs themselves."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.identity`."""
        return functional.identity(jnp.asarray(x))


class Index(hk.Module):
    """`x[idx]`.

    Args:
        idx: a tuple of slices, integers and `...`, for all axes; `np.s_[:, 1:3, ..., :]` makes one.

    Raises:
        infnet.errors.InputError: when called, if `idx` is something else or picks one example.
    """

    def __init__(self, idx: Any, name: str | None = None):
        super().__init__(name=name)
        self.idx = idx

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.index`."""
        return functional.index(jnp.asarray(x), self.idx)


class DotGeneral(hk.Module):
    """`jax.lax.dot_general` with a constant array.

    Args:
        lhs, rhs: the constant, as the left or as the right operand; without either, the inputs are returned.
        dimension_numbers: `((contracted axes of the left, of the right), (batch axes of the left, of the right))`.
        precision: of products, see `jax.lax.Precision`.

    Raises:
        infnet.errors.InputError: when called, if both operands are given.
    """

    def __init__(
        self,
        lhs: Any = None,
        rhs: Any = None,
        dimension_numbers: functional.Contractions = (((), ()), ((), ())),
        precision: Any = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.lhs = lhs
        self.rhs = rhs
        self.dimension_numbers = dimension_numbers
        self.precision = precision

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.dot_general`."""
        x = jnp.asarray(x)
        return functional.dot_general(
            x, lhs=self.lhs, rhs=self.rhs, dimension_numbers=self.dimension_numbers, precision=self.precision
        )


class ImageResize(hk.Module):
    """`jax.image.resize` of the positions.

    Args:
        shape: of the outputs, with -1 for axes that stay as they are, as those of examples and channels have to.
        method: "linear" or "nearest", say.
        antialias: whether linear filters are wider where there are fewer outputs than inputs.
        precision: of products, see `jax.lax.Precision`.

    Raises:
        infnet.errors.InputError: when called, if the shape does not fit.
    """

    def __init__(
        self,
        shape: Sequence[int],
        method: str | jax.image.ResizeMethod,
        antialias: bool = True,
        precision: Any = jax.lax.Precision.HIGHEST,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.shape = shape
        self.method = method
        self.antialias = antialias
        self.precision = precision

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.image_resize`."""
        return functional.image_resize(jnp.asarray(x), self.shape, self.method, self.antialias, self.precision)
