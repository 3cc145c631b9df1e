"""Moments of linear nodes: sums are bilinear, and ONE rule applies any linear map of positions to both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.index_maps import IndexMap, InputMatrix
from infnet.layout import Layout, filled, from_sides, inner, restrict, spread_left, spread_right, to_sides
from infnet.nodes import Aggregation, Dropped, Field, IndexLinear, Node, Scaled, Sum, Term
from infnet.plan import Ask, Moments, Step, ask
from infnet.rules.dropout import dropped_step
from infnet.rules.trained_scales import scaled_step

LINEAR = (Sum, IndexLinear, Aggregation, Scaled, Dropped)


def linear_step(request: Ask) -> Step:
    """Expand one linear node, or both where they are the same map."""
    u, v = request.u, request.v
    if isinstance(u, Scaled) and isinstance(v, Scaled):
        return scaled_step(request)
    if isinstance(u, Dropped) and isinstance(v, Dropped):
        return dropped_step(request)
    if isinstance(u, IndexLinear) and isinstance(v, IndexLinear) and u.map == v.map:
        return _map_both(request, u, v)
    if isinstance(u, Sum) and isinstance(v, Sum) and u is v:
        return _sum(request, u.terms, v.terms)
    # The later node first, so that requests only ever lead to earlier nodes.
    later_left = isinstance(u, LINEAR) and (not isinstance(v, LINEAR) or u.index >= v.index)
    later = u if later_left else v
    if isinstance(later, Scaled):
        return scaled_step(request)
    if isinstance(later, Dropped):
        return dropped_step(request)
    if isinstance(later, Sum):
        return _sum(request, later.terms, _whole(v)) if later_left else _sum(request, _whole(u), later.terms)
    assert isinstance(later, IndexLinear | Aggregation)
    return _map_left(request, later) if later_left else _map_right(request, later)


def _whole(node: Node) -> tuple[Term, ...]:
    return (Term(1.0, node, 0, tuple(range(len(node.sizes)))),)


def _sum(request: Ask, left: tuple[Term, ...], right: tuple[Term, ...]) -> Step:
    """Bilinear: sum over pairs of terms of c_k[i] c_l[j] M_kl[i, j]."""
    pairs, needs = [], []
    for k in left:
        for m in right:
            need = _term_request(request, k, m)
            if need is not None:
                pairs.append((k, m, need))
                needs.append(need)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        total: list[Any] = [None, None]
        for (k, m, need), moments in zip(pairs, results, strict=True):
            factor = _coefficients(context, request, k, m)
            for part, value in enumerate(moments):
                if value is not None:
                    value = _placed(request.layout, value, need, k, m)
                    value = value if _is_one(factor) else factor * value
                    total[part] = value if total[part] is None else total[part] + value
        return Moments(*(None if t is None else filled(request.layout, t) for t in total))

    where = request.u.where if isinstance(request.u, Sum) else request.v.where
    name = "sum" if len(left) > 1 or len(right) > 1 else "scale"
    return Step(request, name, where, tuple(needs), evaluate)


def _is_one(factor: jax.Array | float) -> bool:
    return isinstance(factor, float) and factor == 1.0


def _term_request(request: Ask, k: Term, m: Term) -> Ask | None:
    sizes = (k.node.sizes, m.node.sizes)
    if k.axes == m.axes and request.u.sizes == request.v.sizes:
        layout = Layout(*sizes, tuple(request.layout.offsets[a] for a in k.axes))
    else:
        layout = Layout.full(*sizes)
    return ask(k.node, m.node, request.shift + m.start - k.start, request.side, layout, request.ntk)


def _placed(layout: Layout, block: jax.Array, need: Ask, k: Term, m: Term) -> jax.Array:
    """A block of two terms on the axes of the block of their sums; axes that a term lacks broadcast."""
    pairs = len(layout.offsets)
    if k.axes == m.axes:
        order = sorted(range(len(k.axes)), key=lambda a: k.axes[a])
        block = jnp.transpose(block, [axis for a in order for axis in (2 * a, 2 * a + 1)])
        shape = [1] * (2 * pairs)
        for a in order:
            shape[2 * k.axes[a] : 2 * k.axes[a] + 2] = need.layout.shape[2 * a : 2 * a + 2]
        return block.reshape(shape)
    array = to_sides(need.layout, block)
    n = len(k.axes)
    order = [
        *sorted(range(n), key=lambda a: k.axes[a]),
        *sorted(range(n, n + len(m.axes)), key=lambda a: m.axes[a - n]),
    ]
    array = jnp.transpose(array, order)
    shape = [1] * (len(layout.left) + len(layout.right))
    for a, size in zip(k.axes, k.node.sizes, strict=True):
        shape[a] = size
    for a, size in zip(m.axes, m.node.sizes, strict=True):
        shape[len(layout.left) + a] = size
    full = Layout.full(layout.left, layout.right)
    array = jnp.broadcast_to(array.reshape(shape), (*layout.left, *layout.right))
    return restrict(from_sides(full, array), full, layout)


def _coefficients(context: Any, request: Ask, k: Term, m: Term) -> jax.Array | float:
    """c_k[i] c_l[j], averaged over channels where they vary along them."""
    left, right = k.coefficient, m.coefficient
    if not isinstance(left, Field) and not isinstance(right, Field):
        return left * right
    x = context.read(left, request.side[0]) if isinstance(left, Field) else jnp.full((1,), left)
    y = context.read(right, request.side[1]) if isinstance(right, Field) else jnp.full((1,), right)
    if x.shape[-1] > 1 and y.shape[-1] > 1:
        x = jnp.broadcast_to(x.reshape(_padded(x, request.u.sizes)), (*request.u.sizes, x.shape[-1]))
        y = jnp.broadcast_to(y.reshape(_padded(y, request.v.sizes)), (*request.v.sizes, y.shape[-1]))
        return inner(request.layout, x, y) / x.shape[-1]
    x, y = x.mean(-1), y.mean(-1)
    x = x.reshape(_padded(x[..., None], request.u.sizes)[:-1])
    y = y.reshape(_padded(y[..., None], request.v.sizes)[:-1])
    return spread_left(request.layout, x) * spread_right(request.layout, y)


def _padded(x: jax.Array, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (*x.shape[:-1], *(1,) * (len(sizes) + 1 - x.ndim), x.shape[-1])


def _map_both(request: Ask, u: IndexLinear, v: IndexLinear) -> Step:
    layout = u.map.needs(request.layout)
    need = ask(u.operand, v.operand, request.shift, request.side, layout, request.ntk)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        moments = results[0] or Moments(None)
        mapped = iter(u.map.both(tuple(m for m in moments if m is not None), layout, request.layout))
        return Moments(*(None if m is None else next(mapped) for m in moments))

    return Step(request, u.rule, u.where, (need,), evaluate)


def _map_left(request: Ask, u: IndexLinear | Aggregation) -> Step:
    layout = Layout.full(u.operand.sizes, request.v.sizes)
    need = Ask(u.operand, request.v, request.shift, request.side, layout, request.ntk)
    side = request.side[0]
    return _map_one_side(request, u, need, lambda context, block: index_map(context, u, side).left(block, layout))


def _map_right(request: Ask, v: IndexLinear | Aggregation) -> Step:
    layout = Layout.full(request.u.sizes, v.operand.sizes)
    need = Ask(request.u, v.operand, request.shift, request.side, layout, request.ntk)
    side = request.side[1]
    return _map_one_side(request, v, need, lambda context, block: index_map(context, v, side).right(block, layout))


def index_map(context: Any, node: IndexLinear | Aggregation, side: int) -> IndexMap:
    """The map of a node's positions, on one example."""
    if isinstance(node, IndexLinear):
        return node.map
    matrix = context.read(node.matrix, side)[..., 0]
    return InputMatrix(node.operand.sizes, node.sizes, jnp.broadcast_to(matrix, node.matrix.sizes), node.subscripts)


def _map_one_side(
    request: Ask, node: IndexLinear | Aggregation, need: Ask, apply: Callable[[Any, jax.Array], jax.Array]
) -> Step:
    full = Layout.full(request.u.sizes, request.v.sizes)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        blocks = (None if m is None else apply(context, m) for m in results[0] or Moments(None))
        return Moments(*(None if b is None else restrict(b, full, request.layout) for b in blocks))

    return Step(request, node.rule, node.where, (None if need.vanishes else need,), evaluate)
