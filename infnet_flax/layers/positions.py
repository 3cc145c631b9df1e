"""Fixed linear maps of positions. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_flax.annotate import annotate


@annotate
class Flatten(nn.Module):
    """All positions and channels as one axis: `(n, *positions, channels)` to `(n, size)`."""

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.flatten`."""
        return functional.flatten(jnp.asarray(x), mask=mask)


@annotate
class Identity(nn.Module):
    """The inputs themselves."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.identity`."""
        return functional.identity(jnp.asarray(x))


@annotate
class Index(nn.Module):
    """`x[idx]`.

    Attributes:
        idx: a tuple of slices, integers and `...`, for all axes; `np.s_[:, 1:3, ..., :]` makes one.

    Raises:
        infnet.errors.InputError: when called, if `idx` is something else or picks one example.
    """

    idx: Any

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.index`."""
        return functional.index(jnp.asarray(x), self.idx)


@annotate
class DotGeneral(nn.Module):
    """`jax.lax.dot_general` with a constant array.

    Attributes:
        lhs, rhs: the constant, as the left or as the right operand; without either, the inputs are returned.
        dimension_numbers: `((contracted axes of the left, of the right), (batch axes of the left, of the right))`.
        precision: of products, see `jax.lax.Precision`.

    Raises:
        infnet.errors.InputError: when called, if both operands are given.
    """

    lhs: Any = None
    rhs: Any = None
    dimension_numbers: functional.Contractions = (((), ()), ((), ()))
    precision: Any = None

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.dot_general`."""
        x = jnp.asarray(x)
        return functional.dot_general(
            x, lhs=self.lhs, rhs=self.rhs, dimension_numbers=self.dimension_numbers, precision=self.precision
        )


@annotate
class ImageResize(nn.Module):
    """`jax.image.resize` of the positions.

    Attributes:
        shape: of the outputs, with -1 for axes that stay as they are, as those of examples and channels have to.
        method: "linear" or "nearest", say.
        antialias: whether linear filters are wider where there are fewer outputs than inputs.
        precision: of products, see `jax.lax.Precision`.

    Raises:
        infnet.errors.InputError: when called, if the shape does not fit.
    """

    shape: Sequence[int]
    method: str | jax.image.ResizeMethod
    antialias: bool = True
    precision: Any = jax.lax.Precision.HIGHEST

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.image_resize`."""
        return functional.image_resize(jnp.asarray(x), self.shape, self.method, self.antialias, self.precision)
