"""Sums over the neighbours of each node of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.functional.masks import where_present


def aggregate(
    x: jax.Array,
    pattern: Any,
    *,
    aggregate_axis: int | Sequence[int] | None = None,
    implementation: str = "DENSE",
    mask: Any = None,
) -> jax.Array:
    """Each node becomes the sum of those that have an edge to it (Du et al. 2019, arXiv:1905.13192).

    Args:
        x: `(n, *positions, channels)`. The nodes are the places along `aggregate_axis`.
        pattern: the edges of every example, or None, where x itself is returned. If the implementation is

            * "DENSE": their weights, `(n, *nodes, *nodes)`, that of an edge from i to j at `[n, *i, *j]`;
            * "SPARSE": integers `(n, edges, k, 2)`, k being the number of axes of nodes: `[..., 0]` is where an edge
              comes from, `[..., 1]` where it goes to. With k = 1 also `(n, edges, 2)`. Edges that are listed several
              times count several times, those with a negative entry not at all.
        aggregate_axis: axes of x; None is all axes of positions.
        implementation: "DENSE" or "SPARSE".
        mask: where there are inputs, see `where_present`.

    Returns:
        Of the shape of x.

    Raises:
        InputError: an argument is malformed, or shapes do not fit.
    """
    if implementation not in ("DENSE", "SPARSE"):
        raise InputError(f"implementation must be 'DENSE' or 'SPARSE', not {implementation!r}")
    axes = _axes(x, aggregate_axis)
    x = where_present(x, mask)
    if pattern is None:
        return x
    pattern = jnp.asarray(pattern)
    return _dense(x, pattern, axes) if implementation == "DENSE" else _sparse(x, pattern, axes)


def _axes(x: jax.Array, aggregate_axis: int | Sequence[int] | None) -> tuple[int, ...]:
    if aggregate_axis is None:
        return tuple(range(1, x.ndim - 1))
    given = (aggregate_axis,) if isinstance(aggregate_axis, int) else tuple(aggregate_axis)
    axes = tuple(axis % x.ndim for axis in given if -x.ndim <= axis < x.ndim)
    if not given or len(set(axes)) < len(given) or not all(0 < axis < x.ndim - 1 for axis in axes):
        raise InputError(f"aggregate_axis must name axes of the positions of {x.shape}, not {aggregate_axis!r}")
    return axes


def _dense(x: jax.Array, pattern: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    sizes = tuple(x.shape[axis] for axis in axes)
    if pattern.shape != (x.shape[0], *sizes, *sizes):
        raise InputError(
            f"the pattern of nodes {sizes} must have shape {(x.shape[0], *sizes, *sizes)}, not {pattern.shape}"
        )
    heads = {axis: x.ndim + i for i, axis in enumerate(axes)}
    result = [heads.get(axis, axis) for axis in range(x.ndim)]
    return jnp.einsum(x, [*range(x.ndim)], pattern.astype(x.dtype), [0, *axes, *heads.values()], result)


def _sparse(x: jax.Array, pattern: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    k, sizes = len(axes), tuple(x.shape[axis] for axis in axes)
    pattern = pattern[:, :, None] if k == 1 and pattern.ndim == 3 else pattern
    if pattern.ndim != 4 or (pattern.shape[0], *pattern.shape[2:]) != (x.shape[0], k, 2):
        raise InputError(f"the edges of {x.shape[0]} graphs must have shape (n, edges, {k}, 2), not {pattern.shape}")
    if not jnp.issubdtype(pattern.dtype, jnp.integer):
        raise InputError(f"the edges of a sparse pattern are integers, not {pattern.dtype}")
    places = sum(pattern[:, :, i] * math.prod(sizes[i + 1 :]) for i in range(k))
    listed = (pattern >= 0).all((-2, -1))
    tails, heads = jnp.where(listed[..., None], places, jnp.array([0, math.prod(sizes)])).transpose(2, 0, 1)

    def messages(x: jax.Array, tails: jax.Array, heads: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(x[tails], heads, len(x))  # leaves out heads beyond the last node

    nodes = jnp.moveaxis(x, axes, range(1, k + 1))
    flat = nodes.reshape(x.shape[0], math.prod(sizes), *nodes.shape[k + 1 :])
    return jnp.moveaxis(jax.vmap(messages)(flat, tails, heads).reshape(nodes.shape), range(1, k + 1), axes)
