"""Fixed linear maps of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.errors import InputError
from infnet.functional.masks import where_present

Contractions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def identity(x: jax.Array) -> jax.Array:
    """X itself."""
    return x


def flatten(x: jax.Array, *, mask: Any = None) -> jax.Array:
    """All positions and channels as one axis: `(n, *positions, channels)` to `(n, size)`, zeros included."""
    return where_present(x, mask).reshape(x.shape[0], -1)


def index(x: jax.Array, idx: Any) -> jax.Array:
    """`x[idx]`, for a tuple of slices, integers and `...`; the first axis is that of the examples.

    Raises:
        InputError: the example axis is indexed by an integer, or an array takes part.
    """
    items = idx if isinstance(idx, tuple) else (idx,)
    if not all(isinstance(i, slice | int | type(...) | None) for i in items):
        raise InputError(f"an index consists of slices, integers and `...`, not {idx!r}")
    if isinstance(items[0], int):
        raise InputError(f"the index {idx!r} picks one example; begin it with `:`")
    return x[idx]


def dot_general(
    x: jax.Array,
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: Contractions = (((), ()), ((), ())),
    precision: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general` of x and a constant array.

    Args:
        x: `(n, *positions, channels)`.
        lhs, rhs: the constant, as the left or as the right operand; without either, x itself is returned.
        dimension_numbers: `((contracted axes of the left, of the right), (batch axes of the left, of the right))`.
        precision: see `jax.lax.Precision`.

    Returns:
        What `jax.lax.dot_general` returns: batch axes, the other axes of the left operand, those of the right one.

    Raises:
        InputError: both `lhs` and `rhs` are given.
    """
    if lhs is not None and rhs is not None:
        raise InputError("dot_general takes one constant, `lhs` or `rhs`: the other operand is the input")
    if lhs is None and rhs is None:
        return x
    if rhs is None:
        return lax.dot_general(jnp.asarray(lhs, x.dtype), x, dimension_numbers, precision)
    return lax.dot_general(x, jnp.asarray(rhs, x.dtype), dimension_numbers, precision)


def image_resize(
    x: jax.Array,
    shape: Sequence[int],
    method: str | jax.image.ResizeMethod,
    antialias: bool = True,
    precision: Any = lax.Precision.HIGHEST,
) -> jax.Array:
    """`jax.image.resize` of the positions.

    Args:
        x: `(n, *positions, channels)`.
        shape: of the result, with -1 for axes that stay as they are, as those of examples and channels have to.
        method, antialias, precision: see `jax.image.resize`.

    Raises:
        InputError: `shape` has another rank, or resizes examples or channels.
    """
    if len(shape) != x.ndim or not all(isinstance(size, int) and (size == -1 or size > 0) for size in shape):
        raise InputError(f"the shape of resized inputs {x.shape} needs a size > 0 or -1 for each axis, not {shape!r}")
    sizes = tuple(s if s != -1 else n for s, n in zip(shape, x.shape, strict=True))
    if (sizes[0], sizes[-1]) != (x.shape[0], x.shape[-1]):
        raise InputError(f"only positions can be resized: begin and end the shape {tuple(shape)} with -1")
    return jax.image.resize(x, sizes, method, antialias, precision)
