"""Channels of an earlier layer as positions of a later one: Dense, reshape to (h, w, c), convolution.

The channels of one field are independent, so two different positions that are made of them are, too:

    S[(i, p), (j, q)] = delta_pq S[i, j] + (1 - delta_pq) m[i] m[j],      T[(i, p), (j, q)] = delta_pq T[i, j].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors.features import CHANNELS_AS_POSITIONS, DEPENDENT_CHANNELS_AS_POSITIONS
from infnet.layout import Layout, coincident, filled, spread_left, spread_right
from infnet.nodes import Unfolded
from infnet.plan import Ask, AskMean, Moments, Step
from infnet.program import Atom, Feature, Segment
from infnet.reader import Reader
from infnet.trace import Equation


def unfold(reader: Reader, equation: Equation, feature: Feature, atoms: Sequence[Atom], var: int) -> Feature:
    """The feature with these channel atoms as index atoms, after all others."""
    unfolded = sorted(a.number for a in atoms)
    kept = [k for k in range(len(feature.channels)) if k not in unfolded and feature.channels[k] > 1]
    (segment, *others), sizes = feature.segments, tuple(feature.channels[k] for k in unfolded)
    together = [k for k in unfolded if kept and kept[0] < k < kept[-1]]
    if not kept or together or others or not segment.node.uniform:
        raise CHANNELS_AS_POSITIONS.of(equation)
    node, count = segment.node, len(feature.sizes)
    new = reader.new(
        Unfolded,
        sizes=(*node.sizes, *sizes),
        where=equation.where,
        leaves=frozenset((key, None) for key, _ in node.leaves),
        gaussian=node.gaussian,
        zero_mean=node.zero_mean,
        scales=node.scales,
        operand=node,
        start=segment.start,
        steps=tuple(math.prod(feature.channels[k + 1 :]) for k in unfolded),
        stride=math.prod(feature.channels[kept[-1] + 1 :]),
    )
    names = {Atom(True, k): Atom(False, count + place) for place, k in enumerate(unfolded)}
    names |= {Atom(True, k): Atom(True, place) for place, k in enumerate(kept)}
    dims = tuple(tuple(names.get(a, a) for a in dim if feature.size(a) > 1) for dim in feature.dims)
    channels = tuple(feature.channels[k] for k in kept)
    return Feature(dims, channels, (Segment(new, 0, math.prod(channels)),), var)


def unfolded_step(request: Ask, u: Unfolded, v: Unfolded) -> Step:
    """The moment of two features whose channels became positions in the same way."""
    _check(request, u, v)
    first = v.start - u.start + request.shift * u.stride
    count = len(u.operand.sizes)
    layout = Layout(u.operand.sizes, v.operand.sizes, request.layout.offsets[:count])
    need = Ask(u.operand, v.operand, first, request.side, layout, request.ntk)
    need_mean = not (u.zero_mean or v.zero_mean)
    means = (AskMean(u, request.side[0]), AskMean(v, request.side[1])) if need_mean else (None, None)
    same = coincident(Layout(u.sizes, v.sizes, ((0,),) * count + request.layout.offsets[count:]))

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        moments, left, right = results
        s, t = (None if m is None else _repeated(m, len(u.steps)) for m in moments or Moments(None))
        elsewhere: Any = 0
        if left is not None:
            elsewhere = spread_left(request.layout, left) * spread_right(request.layout, right)
            s = jnp.zeros((), context.dtype) if s is None else s
        return Moments(
            *(
                None if m is None else filled(request.layout, jnp.where(same, m, other))
                for m, other in ((s, elsewhere), (t, 0))
            )
        )

    return Step(request, "channels as positions", u.where, (None if need.vanishes else need, *means), evaluate)


def mean_of_unfolded(request: AskMean, node: Unfolded) -> Step:
    """The mean of the operand, at all positions of the new axes."""

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return jnp.broadcast_to(results[0].reshape((*node.operand.sizes, *(1,) * len(node.steps))), node.sizes)

    return Step(request, "mean", node.where, (AskMean(node.operand, request.side),), evaluate)


def _repeated(block: jax.Array, axes: int) -> jax.Array:
    return block.reshape((*block.shape, *(1,) * (2 * axes)))


def _check(request: Ask, u: Unfolded, v: Unfolded) -> None:
    """Raise unless equal positions, and those alone, are channels that depend on each other."""
    sizes = u.sizes[len(u.operand.sizes) :]
    manner = (len(u.operand.sizes), u.steps, u.stride, sizes)
    alike = manner == (len(v.operand.sizes), v.steps, v.stride, v.sizes[len(v.operand.sizes) :])
    first = v.start - u.start + request.shift * u.stride
    starts: dict[Any, list[Any]] = {}
    for key, start in u.operand.leaves:
        starts.setdefault(key, []).append(start)
    # Channel c of u's operand depends on channel c + d of v's for these d.
    pairs = [(one, two) for key, two in v.operand.leaves for one in starts.get(key, [])]
    unknown = any(one is None or two is None for one, two in pairs)
    reached = (range(-(n - 1), n) for n in sizes)
    distances = {first + sum(k * s for k, s in zip(ks, u.steps, strict=True)) for ks in itertools.product(*reached)}
    if not alike or unknown or {one - two for one, two in pairs} & (distances - {first}):
        raise DEPENDENT_CHANNELS_AS_POSITIONS.at(max(u, v, key=lambda node: node.index).where)
