"""The rule for each pair of nodes: how a requested moment follows from moments of earlier nodes.

The cases, in order: inputs; independence; linear nodes, which are expanded; and the atoms of the normal form, whose
moments come from the kernel primitives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors.functions import CUSTOM_MEAN
from infnet.layout import coincident, filled, inner, spread_left, spread_right
from infnet.nodes import (
    Aggregation,
    ChannelSum,
    Contraction,
    Custom,
    Dropped,
    Elementwise,
    Field,
    GroupedConvolution,
    GroupSum,
    IndexLinear,
    InputFeature,
    KnownNode,
    Lookup,
    Node,
    OneNode,
    ParamNode,
    Product,
    Repeated,
    Scaled,
    Sum,
    Unfolded,
    WindowMax,
)
from infnet.plan import Ask, AskKnown, AskMean, Moments, Request, Step
from infnet.rules.channel_sums import channel_sum_step
from infnet.rules.contraction import contraction_step
from infnet.rules.convolution import grouped_step
from infnet.rules.custom import custom_step
from infnet.rules.dropout import mean_of_dropped
from infnet.rules.heads import group_sum_step, mean_of_repeated, repeated_step
from infnet.rules.known import known_step, reads_of
from infnet.rules.linear import LINEAR, index_map, linear_step
from infnet.rules.lookup import lookup_step
from infnet.rules.maximum import refuse_maximum
from infnet.rules.nonlinear import mean_of_elementwise, mixed_step, nonlinear_step
from infnet.rules.products import mean_of_product, product_step
from infnet.rules.random_input import mean_of_random_input, random_input_step
from infnet.rules.trained_scales import mean_of_scaled
from infnet.rules.unfold import mean_of_unfolded, unfolded_step
from infnet.trace import Trace


def rule(trace: Trace, request: Request) -> Step:
    """The step that computes what is requested; `trace`: where Known variables are computed."""
    if isinstance(request, AskKnown):
        return known_step(trace, request)
    return replace(_rule(request), reads=reads_of(request))


def _rule(request: Ask | AskMean) -> Step:
    if isinstance(request, AskMean):
        return mean_step(request)
    u, v = request.u, request.v
    if isinstance(u, KnownNode) and isinstance(v, KnownNode):
        return _inputs(request, u.field, v.field)
    if isinstance(u, Custom) and isinstance(v, Custom) and (u.operation, u.params) == (v.operation, v.params):
        return custom_step(request, u, v)
    if request.independent and (u.uniform or v.uniform):
        return _independent(request)
    if isinstance(u, LINEAR) or isinstance(v, LINEAR):
        return linear_step(request)
    if isinstance(u, WindowMax) or isinstance(v, WindowMax):
        refuse_maximum(request, u, v)
    if isinstance(u, Product) or isinstance(v, Product):
        return product_step(request)
    if isinstance(u, GroupedConvolution) or isinstance(v, GroupedConvolution):
        return grouped_step(request, u, v) or mixed_step(request)
    step = OF_A_KIND.get(type(u)) if type(u) is type(v) else None
    return step(request, u, v) if step else mixed_step(request)


# Inputs and independent fields


def _inputs(request: Ask, left: Field, right: Field) -> Step:
    """Inner products of known values: the average over channels of k_ic(a) k'_jc(b)."""

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
        left, right = (
            spread(request.layout, m) for spread, m in zip((spread_left, spread_right), results, strict=True)
        )
        return Moments(filled(request.layout, left * right))

    return Step(request, "independent", request.u.where, needs, evaluate)


def _added_param(request: Ask, u: ParamNode, v: ParamNode) -> Step:
    """A parameter with itself: s2 delta_ij + mean^2, and g2 delta_ij."""

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        same = coincident(request.layout)
        ratio = v.param.ratio(u.param)

        def where_same(factor: jax.Array) -> jax.Array:
            factor = factor if ratio == 1.0 else ratio * factor
            return filled(request.layout, factor if same.all() else jnp.where(same, factor, 0))

        s2, g2 = (where_same(factor) for factor in context.weight_factors(u.param, ()))
        s = s2 if u.zero_mean else s2 + context.mean(u.param) * context.mean(v.param)
        return Moments(s, g2 if request.ntk else None)

    return Step(request, "bias", u.where, (), evaluate)


# The joint moment of two atoms of one kind.
OF_A_KIND: dict[type[Node], Callable[[Ask, Any, Any], Step]] = {
    Contraction: contraction_step,
    ParamNode: _added_param,
    Elementwise: nonlinear_step,
    Lookup: lookup_step,
    Unfolded: unfolded_step,
    GroupSum: group_sum_step,
    Repeated: repeated_step,
    InputFeature: random_input_step,
}


# Means


def mean_step(request: AskMean) -> Step:
    """The mean of a node, at every position: an array of its sizes."""
    u = request.u
    if type(u) in MEANS:
        return MEANS[type(u)](request, u)
    if isinstance(u, Custom) and not u.zero_mean:
        raise CUSTOM_MEAN.at(u.where, operation=u.operation)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        if isinstance(u, KnownNode):
            values = context.read(u.field, request.side).mean(-1)
            return jnp.broadcast_to(values, u.sizes)
        number = 1.0 if isinstance(u, OneNode) else context.mean(u.param) if isinstance(u, ParamNode | Lookup) else 0.0
        return jnp.full(u.sizes, number, context.dtype)

    return Step(request, "mean", u.where, (), evaluate)


def _mean_of_mapped(request: AskMean, node: IndexLinear | Aggregation) -> Step:
    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return index_map(context, node, request.side).side(results[0])

    return Step(request, node.rule, node.where, (AskMean(node.operand, request.side),), evaluate)


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


MEANS: dict[type[Node], Callable[[AskMean, Any], Step]] = {
    Sum: _mean_of_sum,
    IndexLinear: _mean_of_mapped,
    Aggregation: _mean_of_mapped,
    Scaled: mean_of_scaled,
    Dropped: mean_of_dropped,
    Product: mean_of_product,
    Elementwise: mean_of_elementwise,
    Unfolded: mean_of_unfolded,
    Repeated: mean_of_repeated,
    InputFeature: mean_of_random_input,
    ChannelSum: channel_sum_step,
    WindowMax: refuse_maximum,
}
