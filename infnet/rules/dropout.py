"""Dropout in training mode: features times random numbers that are drawn anew for every example.

For v_ic = xi_ic u_ic, with numbers xi of mean m and second moment m2, independent of each other and of the weights,

    S_vv(a, b)[i, j] = m^2 S_uu(a, b)[i, j],   but m2 S_uu(a, a)[i, i] for an example with itself,

and T likewise (Schoenholz et al. 2017, arXiv:1611.01232, section 5; m = 1 and m2 = 1 / keep for dropout that rescales).
Numbers that are shared along an axis of positions are the same at all pairs of positions of it. The product is
Gaussian only given the numbers, so no nonlinearity may follow before the next contraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import SUM_OVER_CHANNELS
from infnet.errors.functions import (
    NOISE_LAW_UNKNOWN,
    NOISE_LAWS_DIFFER,
    NOISE_OTHER_THAN_DROPOUT,
    NOISE_REUSED,
    NOISE_SHARED_BY_CHANNELS,
    NOISE_WITH_INPUTS,
)
from infnet.laws.moments import Moments as LawMoments
from infnet.laws.moments import NoLaw, Pointwise
from infnet.laws.read_init import read as read_laws
from infnet.layout import coincident
from infnet.nodes import Dropped, ParamKey, Term, shifted
from infnet.plan import Ask, AskMean, Moments, Step, ask
from infnet.program import Feature, Known, Noise, Segment
from infnet.reader import Reader
from infnet.rules.sums import aligned, common_template, index_sizes, with_template
from infnet.trace import Equation, evaluate
from infnet.variation import long_axes, varying_axes


def is_noise(reader: Reader, equation: Equation) -> bool:
    """Whether an operation draws random bits for every example; those for all examples together are constants."""
    return equation.primitive is lax_p.random_bits_p and reader.trace.batch_axis[equation.outputs[0]] is not None


def read_noise(reader: Reader, equation: Equation) -> None:
    """Random bits for every example, and functions of them."""
    values = [reader.values[v] for v in equation.inputs]
    if not all(isinstance(v, Noise) or (isinstance(v, Known) and v.constant) for v in values):
        raise NOISE_WITH_INPUTS.of(equation)
    if any(isinstance(v, Known) and v.excess for v in values):
        raise SUM_OVER_CHANNELS.of(equation)
    if equation.primitive is lax_p.random_bits_p:
        varies = [long_axes(reader.trace.avals[v].shape) for v in equation.outputs]
    else:
        varies = varying_axes(equation.source, [v.varies for v in values if isinstance(v, Known | Noise)])
    for var, axes in zip(equation.outputs, varies, strict=True):
        reader.values[var] = Noise(var, axes & long_axes(reader.shape(var)))


def read_dropout(reader: Reader, equation: Equation) -> None:
    """A feature times random numbers, or selected by them against zeros."""
    noise, feature, is_kept = _operands(reader, equation)
    mean, second = _law(reader, equation, noise, is_kept)
    template = common_template(reader, equation, [feature])
    axes, segments = aligned(reader, equation, feature, template)
    own = _own_axes(reader, equation, noise, template)
    key, sizes = ParamKey(-1 - noise), index_sizes(template)
    pieces = []
    for piece in segments:
        operand = reader.sum([Term(1.0, piece.node, 0, axes)], sizes, equation.where)
        node = reader.new(
            Dropped,
            sizes=sizes,
            where=equation.where,
            leaves=shifted(operand.leaves, piece.start) | {(key, 0)},
            gaussian=False,
            zero_mean=operand.zero_mean or mean == 0,
            uniform=operand.uniform,
            scales=operand.scales,
            operand=operand,
            start=piece.start,
            noise=key,
            mean=mean,
            second=second,
            axes=own,
        )
        pieces.append(Segment(node, 0, piece.width))
    reader.values[equation.outputs[0]] = with_template(template, pieces, equation.outputs[0])


def _operands(reader: Reader, equation: Equation) -> tuple[int, int, float | None]:
    """The noise, the feature, and the value of the noise at which the feature is selected (None for a product)."""
    kinds = [type(reader.values[v]) for v in equation.inputs]
    if equation.primitive is lax_p.mul_p and set(kinds) == {Noise, Feature}:
        first, second = equation.inputs
        return (first, second, None) if kinds[0] is Noise else (second, first, None)
    if equation.primitive is lax_p.select_n_p and kinds[0] is Noise and kinds.count(Feature) == 1 and len(kinds) == 3:
        chosen = kinds.index(Feature)
        if reader.constant(equation.inputs[3 - chosen]) == 0.0:
            return equation.inputs[0], equation.inputs[chosen], float(chosen - 1)
    raise NOISE_OTHER_THAN_DROPOUT.of(equation)


def _law(reader: Reader, equation: Equation, noise: int, is_kept: float | None) -> tuple[float, float]:
    """Mean and second moment of the numbers that multiply the feature."""

    drawn = _before_repeats(reader, noise)

    def numbers() -> jax.Array:
        value = evaluate(reader.trace, [drawn], {})[drawn]
        value = value.astype(jnp.float32)
        return value if is_kept is None else (value == is_kept).astype(jnp.float32)

    try:
        (law,) = read_laws(jax.make_jaxpr(numbers)(), [], [True])
        if not isinstance(law, Pointwise | LawMoments):
            raise NoLaw(getattr(law, "why", "it is not a law that infnet can read"))
        if reader.noise_roots & law.roots:
            raise NoLaw("the same key is used for other random numbers, which are then the same")
        mean, variance, *_ = law.cumulants.orders
    except NoLaw as reason:
        raise NOISE_LAW_UNKNOWN.of(equation, why=reason) from reason
    if np.size(mean) > 1 or np.size(variance) > 1:
        raise NOISE_LAWS_DIFFER.of(equation)
    reader.noise_roots |= law.roots
    return float(mean), float(variance) + float(mean) ** 2


def _before_repeats(reader: Reader, noise: int) -> int:
    """The variable that random numbers were repeated from, if they were."""
    while reader.producer[noise].primitive in (lax_p.broadcast_in_dim_p, lax_p.reshape_p):
        (noise,) = reader.producer[noise].inputs
    return noise


def _own_axes(reader: Reader, equation: Equation, noise: int, template: Any) -> tuple[int, ...]:
    """The index axes along which every position has a number of its own."""
    value = reader.values[noise]
    assert isinstance(value, Noise)
    if reader.trace.batch_axis[noise] is None:
        raise NOISE_OTHER_THAN_DROPOUT.of(equation)
    own, number = [], 0
    for d, factors in enumerate(template):
        for is_channel, _ in factors:
            if is_channel and d not in value.varies:
                raise NOISE_SHARED_BY_CHANNELS.of(equation)
            if not is_channel:
                if d in value.varies:
                    own.append(number)
                number += 1
    return tuple(own)


# Moments


def dropped_step(request: Ask) -> Step:
    """A dropped feature with itself, or with anything that does not contain the same random numbers."""
    u, v = request.u, request.v
    if isinstance(u, Dropped) and isinstance(v, Dropped) and u.noise == v.noise:
        return _same_numbers(request, u, v)
    if isinstance(u, Dropped) and (not isinstance(v, Dropped) or u.index >= v.index):
        node, other = u, v
        need = ask(u.operand, v, request.shift - u.start, request.side, request.layout, request.ntk)
    else:
        assert isinstance(v, Dropped)
        node, other = v, u
        need = ask(u, v.operand, request.shift + v.start, request.side, request.layout, request.ntk)
    if any(key == node.noise for key, _ in other.leaves):
        raise NOISE_REUSED.at(node.where)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        return Moments(*(None if m is None else node.mean * m for m in results[0] or Moments(None)))

    return Step(request, "dropout", node.where, (need,), evaluate)


def _same_numbers(request: Ask, u: Dropped, v: Dropped) -> Step:
    need = ask(u.operand, v.operand, request.shift + v.start - u.start, request.side, request.layout, request.ntk)
    same = request.side[0] == request.side[1] and request.shift == 0
    factor: Any = u.mean * v.mean
    if same:
        factor = np.where(coincident(request.layout, u.axes), u.second, factor)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        moments = results[0] or Moments(None)
        return Moments(*(None if m is None else jnp.asarray(factor, m.dtype) * m for m in moments))

    return Step(request, "dropout", u.where, (need,), evaluate)


def mean_of_dropped(request: AskMean, node: Dropped) -> Step:
    """The mean of the numbers times that of the operand."""
    need = AskMean(node.operand, request.side)
    return Step(request, "mean", node.where, (need,), lambda context, results: node.mean * results[0])
