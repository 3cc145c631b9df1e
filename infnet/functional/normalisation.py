"""Layers that depend on more than one number at a time, or on chance: norms and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.functional.masks import checked


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    offset: jax.Array | None = None,
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    mask: Any = None,
) -> jax.Array:
    """`(x - mean) / sqrt(var + epsilon) * scale + offset` (Ba et al. 2016, arXiv:1607.06450).

    Args:
        x: `(n, *positions, channels)`.
        scale, offset: `(channels,)`, or None.
        axes: over which mean and variance are taken.
        epsilon: not negative.
        mask: where there are inputs; mean and variance are those of what is there.

    Raises:
        InputError: `axes` contain that of the examples, or the mask does not fit.
    """
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    over = tuple(axis % x.ndim for axis in given if -x.ndim <= axis < x.ndim)
    if len(set(over)) < len(given) or 0 in over or not over:
        raise InputError(f"the axes of a norm of {x.shape} must be axes of one example, not {axes!r}")
    if not isinstance(epsilon, Real) or epsilon < 0:
        raise InputError(f"epsilon must be a number >= 0, not {epsilon!r}")
    there = None if mask is None else checked(mask, x.shape)[..., None]
    mean = _mean(x, over, there)
    y = (x - mean) / jnp.sqrt(_mean((x - mean) ** 2, over, there) + epsilon)
    y = y if scale is None else y * scale
    return y if offset is None else y + offset


def _mean(x: jax.Array, axes: tuple[int, ...], there: jax.Array | None) -> jax.Array:
    """The mean over channels, and then over the positions that are there."""
    positions = tuple(axis for axis in axes if axis != x.ndim - 1)
    if there is None or not positions:
        return x.mean(axes, keepdims=True)
    x = x.mean(-1, keepdims=True) if len(positions) < len(axes) else x
    counts = jnp.broadcast_to(there, (*x.shape[:-1], 1)).sum(positions, keepdims=True)
    return jnp.where(there, x, 0).sum(positions, keepdims=True) / jnp.maximum(counts, 1)


def dropout(x: jax.Array, key: jax.Array, rate: float, *, broadcast_dims: Sequence[int] = ()) -> jax.Array:
    """Each number becomes zero with probability `rate`, and is divided by `1 - rate` otherwise.

    Args:
        x: of any shape.
        key: of `jax.random`.
        rate: of what is dropped, in [0, 1). (The rate of Neural Tangents' `Dropout` is that of what is kept.)
        broadcast_dims: axes along which all numbers share their fate.

    Raises:
        InputError: `rate` is out of its range.
    """
    check_rate(rate)
    shape = [1 if axis in {d % x.ndim for d in broadcast_dims} else size for axis, size in enumerate(x.shape)]
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(jnp.broadcast_to(keep, x.shape), x / (1 - rate), 0)


def check_rate(rate: float) -> None:
    """Raises `InputError` unless the rate is in [0, 1)."""
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise InputError(f"the rate of what is dropped must be in [0, 1), not {rate!r}")
