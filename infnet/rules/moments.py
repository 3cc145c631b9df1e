"""The rule for each pair of nodes: how a requested moment follows from moments of earlier nodes.

The cases, in order: inputs; independence; linear nodes, which are expanded; and the atoms of the normal form, whose
moments come from the kernel primitives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import MONTE_CARLO, NonGaussianError, UnsupportedError
from infnet.layout import Layout, coincident, from_sides, inner, restrict, spread_left, spread_right, to_sides
from infnet.plan import Ask, AskMean, Moments, Request, Step, ask, variance
from infnet.program import (
    Contraction,
    Elementwise,
    Field,
    IndexLinear,
    KnownNode,
    Node,
    OneNode,
    ParamNode,
    Sum,
    Term,
)
from infnet.rules.contraction import contraction_step

LINEAR = (Sum, IndexLinear)


def rule(request: Request) -> Step:
    """The step that computes a requested moment."""
    if isinstance(request, AskMean):
        return mean_step(request)
    u, v = request.u, request.v
    if isinstance(u, KnownNode) and isinstance(v, KnownNode):
        return _inputs(request)
    if request.independent and (u.uniform or v.uniform):
        return _independent(request)
    if isinstance(u, LINEAR) or isinstance(v, LINEAR):
        return _linear(request)
    if isinstance(u, Contraction) and isinstance(v, Contraction):
        return contraction_step(request)
    if isinstance(u, ParamNode) and isinstance(v, ParamNode):
        return _added_param(request)
    if isinstance(u, Elementwise) and isinstance(v, Elementwise):
        return _nonlinear(request)
    return _mixed(request)


# Inputs and independent fields


def _inputs(request: Ask) -> Step:
    """Inner products of known values: sum over channels of k_ic(a) k'_jc(b), averaged, as every moment is."""
    left, right = request.u.field, request.v.field

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        x, y = context.read(left, request.side[0]), context.read(right, request.side[1])
        width = max(x.shape[-1], y.shape[-1])
        if x.shape[-1] != y.shape[-1]:  # one of them does not vary along channels
            x, y, width = x.mean(-1, keepdims=True), y.mean(-1, keepdims=True), 1
        x = jnp.broadcast_to(x, (*request.u.sizes, x.shape[-1]))
        y = jnp.broadcast_to(y, (*request.v.sizes, y.shape[-1]))
        return Moments(inner(request.layout, x, y) / width)

    return Step(request, "input", request.u.where, (), evaluate)


def _independent(request: Ask) -> Step:
    """E[u v] = E[u] E[v]; nothing that one depends on changes the other, so the tangent kernel is zero."""
    needs = (AskMean(request.u, request.side[0]), AskMean(request.v, request.side[1]))

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        left, right = (spread(request.layout, m) for spread, m in zip((spread_left, spread_right), results, strict=True))
        return Moments(_filled(request.layout, left * right))

    return Step(request, "independent", request.u.where, needs, evaluate)


def _filled(layout: Layout, block: jax.Array) -> jax.Array:
    return jnp.broadcast_to(block, layout.shape)


# Linear nodes


def _linear(request: Ask) -> Step:
    """Expand one linear node, or both where they are the same map."""
    u, v = request.u, request.v
    if isinstance(u, IndexLinear) and isinstance(v, IndexLinear) and u.map == v.map:
        return _map_both(request)
    if isinstance(u, Sum) and isinstance(v, Sum) and u is v:
        return _sum(request, u.terms, v.terms)
    left_first = isinstance(u, LINEAR) and (not isinstance(v, LINEAR) or u.index >= v.index)
    if left_first:
        return _sum(request, u.terms, _whole(v)) if isinstance(u, Sum) else _map_left(request)
    return _sum(request, _whole(u), v.terms) if isinstance(v, Sum) else _map_right(request)


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
        return Moments(*(None if t is None else _filled(request.layout, t) for t in total))

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
    order = [*sorted(range(n), key=lambda a: k.axes[a]), *sorted(range(n, n + len(m.axes)), key=lambda a: m.axes[a - n])]
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


def _map_both(request: Ask) -> Step:
    u, v = request.u, request.v
    layout = u.map.needs(request.layout)
    need = ask(u.operand, v.operand, request.shift, request.side, layout, request.ntk)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        present = [m for m in results[0] if m is not None]
        mapped = iter(u.map.both(tuple(present), layout, request.layout))
        return Moments(*(None if m is None else next(mapped) for m in results[0]))

    return Step(request, u.rule, u.where, (need,), evaluate)


def _map_left(request: Ask) -> Step:
    return _map_one_side(request, request.u, Ask(request.u.operand, request.v, *_rest(request, True)), "left")


def _map_right(request: Ask) -> Step:
    return _map_one_side(request, request.v, Ask(request.u, request.v.operand, *_rest(request, False)), "right")


def _rest(request: Ask, left: bool) -> tuple[Any, ...]:
    u, v = request.u, request.v
    sizes = (u.operand.sizes, v.sizes) if left else (u.sizes, v.operand.sizes)
    return request.shift, request.side, Layout.full(*sizes), request.ntk


def _map_one_side(request: Ask, node: Any, need: Ask, side: str) -> Step:
    full = Layout.full(request.u.sizes, request.v.sizes)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        mapped = [None if m is None else getattr(node.map, side)(m, need.layout) for m in results[0]]
        return Moments(*(None if m is None else restrict(m, full, request.layout) for m in mapped))

    return Step(request, node.rule, node.where, (None if need.vanishes else need,), evaluate)


# The atoms of the normal form


def _added_param(request: Ask) -> Step:
    """A parameter with itself: s2 delta_ij + mean^2, and g2 delta_ij."""
    u, v = request.u, request.v

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        same = coincident(request.layout)
        ratio = v.param.scale / u.param.scale

        def where_same(factor: jax.Array) -> jax.Array:
            factor = factor if ratio == 1.0 else ratio * factor
            return _filled(request.layout, factor if same.all() else jnp.where(same, factor, 0))

        s2, g2 = (where_same(factor) for factor in context.weight_factors(u.param, ()))
        s = s2 if u.zero_mean else s2 + context.mean(u.param) * context.mean(v.param)
        return Moments(s, g2 if request.ntk else None)

    return Step(request, "bias", u.where, (), evaluate)


def _nonlinear(request: Ask) -> Step:
    """E[phi(g) psi(h)] and E[phi'(g) psi'(h)] T_gh, for jointly Gaussian g and h."""
    u, v = request.u, request.v
    activation = _checked(u)
    if _checked(v) != activation:
        raise UnsupportedError(
            f"the joint moment of two different nonlinearities, {activation.name} and {_checked(v).name}",
            where=v.where,
            why="they act on dependent fields, and infnet knows the joint law only of one function with itself",
            remedy=f"use the same activation on both branches; or {MONTE_CARLO}",
        )
    needs = (
        ask(u.operand, v.operand, request.shift, request.side, request.layout, request.ntk),
        variance(u.operand, request.side[0]),
        variance(v.operand, request.side[1]),
    )

    with_itself = u is v and request.shift == 0 and request.side[0] == request.side[1] and request.layout.is_diagonal

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        joint, *variances = results
        s, t = joint or Moments(None)
        if with_itself and s is not None:
            k, kdot = activation.squares(s)
            return Moments(k, None if t is None else kdot * t)
        q1, q2 = (_at_positions(context, q, n.operand) for q, n in zip(variances, (u, v), strict=True))
        q1, q2 = spread_left(request.layout, q1), spread_right(request.layout, q2)
        s = jnp.zeros(request.layout.shape, q1.dtype) if s is None else s
        k, *kdot = activation.kernel(s, q1, q2, derivative=t is not None)
        return Moments(_filled(request.layout, k), None if t is None else kdot[0] * t)

    return Step(request, activation.name, u.where, needs, evaluate)


def _at_positions(context: Any, moments: Moments | None, node: Node) -> jax.Array:
    if moments is None or moments.s is None:
        return jnp.zeros(node.sizes, context.dtype)
    return moments.s.reshape(node.sizes)


def _checked(node: Node) -> Any:
    """The activation of an elementwise node, if its argument allows a closed form."""
    assert isinstance(node, Elementwise)
    operand = node.operand
    if not operand.gaussian:
        source = _not_gaussian(operand)
        raise NonGaussianError(
            f"a nonlinearity ({_name(node)}) of something that is not Gaussian at infinite width",
            where=node.where,
            why=f"its argument contains {_name(source)} ({source.where}), so its joint law has no closed form",
            remedy=f"put a Dense or Conv layer between the two; or {MONTE_CARLO}",
        )
    if isinstance(node.activation, UnsupportedError):
        raise node.activation
    if not operand.uniform:
        raise UnsupportedError(
            f"a nonlinearity ({_name(node)}) of a feature whose channels are not alike",
            where=node.where,
            why="inputs, or constants that vary along the channels, were added or multiplied, so each channel has a law "
            "of its own",
            remedy=f"put a Dense or Conv layer between the two; or {MONTE_CARLO}",
        )
    if not operand.zero_mean:
        raise UnsupportedError(
            f"a nonlinearity ({_name(node)}) of a feature whose mean is not zero",
            where=node.where,
            why="infnet knows the kernels of this nonlinearity for Gaussian arguments of mean zero only, so far",
            remedy=f"initialise biases with mean zero; or {MONTE_CARLO}",
        )
    return node.activation


def _name(node: Node) -> str:
    if isinstance(node, Elementwise) and not isinstance(node.activation, UnsupportedError):
        return node.activation.name
    if isinstance(node, Elementwise):
        return node.activation.what
    return type(node).__name__


def _not_gaussian(node: Node) -> Node:
    """The node that makes an argument not Gaussian."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Sum):
            waiting.extend(t.node for t in node.terms if not t.node.gaussian)
        elif isinstance(node, IndexLinear):
            waiting.append(node.operand)
        else:
            return node
    raise AssertionError("a linear map of Gaussian fields is Gaussian")


def _mixed(request: Ask) -> Step:
    """A nonlinear function with a Gaussian field that it depends on: Stein, E[phi(g) h] = E[phi'(g)] E[g h]."""
    u, v = request.u, request.v
    function, other = (u, v) if isinstance(u, Elementwise) else (v, u)
    if not isinstance(function, Elementwise) or isinstance(other, OneNode | KnownNode):
        raise UnsupportedError(
            f"the joint moment of {_name(u)} and {_name(v)}",
            where=v.where,
            why="infnet has no rule for this pair yet",
            remedy=MONTE_CARLO,
        )
    activation = _checked(function)
    left = function is u
    pair = (function.operand, other) if left else (other, function.operand)
    needs = (
        ask(*pair, request.shift, request.side, request.layout, request.ntk),
        variance(function.operand, request.side[0 if left else 1]),
    )

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        s, t = results[0] or Moments(None)
        q = _at_positions(context, results[1], function.operand)
        spread = spread_left if left else spread_right
        value_slope, slope = (spread(request.layout, m) for m in activation.mean_slopes(q))
        return Moments(None if s is None else value_slope * s, None if t is None else slope * t)

    return Step(request, f"{activation.name} with its argument", function.where, needs, evaluate)


# Means


def mean_step(request: AskMean) -> Step:
    """The mean of a node, at every position: an array of its sizes."""
    u = request.u
    if isinstance(u, Sum):
        return _mean_of_sum(request, u)
    if isinstance(u, IndexLinear):
        return Step(
            request, u.rule, u.where, (AskMean(u.operand, request.side),), lambda context, results: u.map.side(results[0])
        )
    if isinstance(u, Elementwise):
        return _mean_of_elementwise(request, u)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        if isinstance(u, KnownNode):
            values = context.read(u.field, request.side).mean(-1)
            return jnp.broadcast_to(values, u.sizes)
        number = 1.0 if isinstance(u, OneNode) else context.mean(u.param) if isinstance(u, ParamNode) else 0.0
        return jnp.full(u.sizes, number, context.dtype)

    return Step(request, "mean", u.where, (), evaluate)


def _mean_of_sum(request: AskMean, node: Sum) -> Step:
    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        total = jnp.zeros(node.sizes, context.dtype)
        for term, mean in zip(node.terms, results, strict=True):
            factor = term.coefficient
            if isinstance(factor, Field):
                factor = context.read(factor, request.side).mean(-1)
                factor = factor.reshape((*factor.shape, *(1,) * (len(node.sizes) - factor.ndim)))
            order = sorted(range(len(term.axes)), key=lambda a: term.axes[a])
            shape = [1] * len(node.sizes)
            for a, size in zip(term.axes, term.node.sizes, strict=True):
                shape[a] = size
            total = total + factor * jnp.transpose(mean, order).reshape(shape)
        return total

    needs = tuple(AskMean(t.node, request.side) for t in node.terms)
    return Step(request, "mean", node.where, needs, evaluate)


def _mean_of_elementwise(request: AskMean, node: Elementwise) -> Step:
    activation = _checked(node)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return activation.mean(_at_positions(context, results[0], node.operand))

    return Step(request, f"mean of {activation.name}", node.where, (variance(node.operand, request.side),), evaluate)
