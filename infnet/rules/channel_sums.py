"""Sums over channels: the statistics of normalisation layers, the scores of attention.

The mean over infinitely many channels of u, of u^2 or of u v is no longer random (the law of large numbers over
channels that are independent in the limit; Ba et al. 2016, arXiv:1607.06450, use it for LayerNorm, Hron et al. 2020,
arXiv:2006.10540, section 3, for scores divided by d). So it is Known, and its derivative in any weight is smaller than
that of a channel by their number. A sum that is not divided by the number of channels fluctuates: it may only be
divided later, or, if it is a sum of squares, multiply something.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import (
    CHANNEL_SUM_ON_MIXED_AXIS,
    GROUP_SUM_OF_UNLIKE_CHANNELS,
    HEAD_SUM_OF_DEPENDENT_CHANNELS,
    SUM_OVER_CHANNELS,
)
from infnet.layout import Layout, to_sides
from infnet.nodes import (
    Aggregation,
    ChannelSum,
    Contraction,
    Custom,
    Dropped,
    Elementwise,
    Field,
    GroupSum,
    IndexLinear,
    Node,
    Product,
    Repeated,
    Scaled,
    Sum,
    SummedPart,
    Term,
    Unfolded,
    WindowMax,
)
from infnet.plan import Ask, AskMean, Request, Step, ask, variance
from infnet.primitives.stored import stored
from infnet.program import Feature, Known, Segment
from infnet.reader import Reader
from infnet.rules.rearrange import in_dim_order
from infnet.trace import Equation, is_elementwise
from infnet.variation import long_axes

WITH_OPERAND = (Aggregation, Custom, Dropped, Elementwise, GroupSum, IndexLinear, Scaled, Unfolded, WindowMax)
ROUNDING = 1e-3  # of the product of a sum's factor and the number of channels
SHAPE_ONLY = frozenset(
    {
        lax_p.reshape_p,
        lax_p.broadcast_in_dim_p,
        lax_p.squeeze_p,
        lax_p.transpose_p,
        lax_p.convert_element_type_p,
        lax_p.copy_p,
    }
)
LINEAR_IN_EACH = SHAPE_ONLY | {lax_p.reduce_sum_p, lax_p.mul_p, lax_p.dot_general_p}
# Of a sum of squares these keep the relative size of its fluctuations, which vanishes, and do not enlarge them.
ROOTS = frozenset({lax_p.sqrt_p, lax_p.rsqrt_p})
SMALL_CHANGES = frozenset({lax_p.add_p, lax_p.add_jaxvals_p, lax_p.max_p})


def read_known(reader: Reader, equation: Equation) -> None:
    """An operation on Known variables; a sum over channels among them has to be divided by their number first."""
    reader.read_known(equation)
    known = [k for k in map(reader.values.get, equation.inputs) if isinstance(k, Known)]
    sums, excess = [k for k in known if k.excess], None
    if len(sums) == 1:
        excess = excess_after(reader, equation, sums[0].var)
    if sums and excess is None:
        raise SUM_OVER_CHANNELS.of(equation)
    vanishing = vanishes(reader, equation)
    for var in equation.outputs if excess is not None or vanishing else ():
        value = reader.values[var]
        assert isinstance(value, Known)
        left = 0.0 if excess is None or excess <= 1 + ROUNDING else excess
        squares = bool(left) and sums[0].squares
        reader.values[var] = replace(value, excess=left, squares=squares, vanishing=vanishing)


def vanishes(reader: Reader, equation: Equation) -> bool:
    """Whether a function of Known variables is zero where those are that vanish at infinite width."""
    zeros = {k.var for k in map(reader.values.get, equation.inputs) if isinstance(k, Known) and k.vanishing}
    primitive, rest = equation.primitive, [v for v in equation.inputs if v not in zeros]
    if not zeros or primitive in LINEAR_IN_EACH:
        return bool(zeros)
    if primitive is lax_p.select_n_p:
        return equation.inputs[0] in rest and all(reader.constant(v) == 0.0 for v in rest[1:])
    numbers = [0.0 if v in zeros else reader.constant(v) for v in equation.inputs]
    if not is_elementwise(equation.source) or None in numbers:
        return False
    avals = [reader.trace.avals[v] for v in equation.inputs]
    with jax.ensure_compile_time_eval():
        arguments = [np.full(aval.shape, number, aval.dtype) for aval, number in zip(avals, numbers, strict=True)]
        return not any(np.asarray(result).any() for result in equation.evaluate(arguments))


def excess_after(reader: Reader, equation: Equation, var: int) -> float | None:
    """How often the result of scaling the sum `var` exceeds a mean over channels; None if it cannot be said."""
    primitive, inputs, known = equation.primitive, equation.inputs, reader.values[var]
    assert isinstance(known, Known)
    if primitive is lax_p.reduce_sum_p:
        return known.excess * math.prod(reader.shape(var)[axis] for axis in equation.params["axes"])
    if primitive in SHAPE_ONLY:
        return known.excess
    others = [reader.constant(v) for v in inputs if v != known.var]
    if primitive is lax_p.mul_p and None not in others and others:
        return known.excess * abs(others[0] or 0.0)
    if primitive is lax_p.div_p and inputs[0] == known.var and others and others[0]:
        return known.excess / abs(others[0])
    if not known.squares:
        return None
    if primitive in ROOTS or (primitive in SMALL_CHANGES and None not in others):
        return known.excess
    if primitive is lax_p.pow_p and inputs[0] == known.var and others and others[0] is not None:
        return known.excess if abs(others[0]) <= 1 else None
    return known.excess if primitive is lax_p.div_p else None


def read_channel_sum(reader: Reader, equation: Equation, var: int) -> None:
    """`reduce_sum` over axes that hold channels, and perhaps positions."""
    feature, reduced = reader.values[var], equation.params["axes"]
    assert isinstance(feature, Feature)
    polynomial = feature.polynomial
    if polynomial is None or not polynomial[2]:
        feature, polynomial = reader.settled(var), (0.0, 1.0, 0.0)
    feature = in_dim_order(reader, Feature(feature.dims, feature.channels, feature.segments, var), var)
    summed = [a for d in reduced for a in feature.dims[d]]
    kept_dims = [feature.dims[d] for d in range(len(feature.dims)) if d not in reduced]
    count = math.prod(feature.size(a) for a in summed if a.is_channel)
    _check_channels(reader, equation, feature, count)
    letters = string.ascii_letters[: len(feature.sizes)]
    kept = "".join(letters[a.number] for dim in kept_dims for a in dim if not a.is_channel)
    share = count / math.prod(feature.channels)
    parts, largest = [], 0.0
    for segment in feature.segments:
        own = _parts(reader, equation, segment, polynomial, share)
        largest = max(largest, magnitude(reader, segment.node, polynomial))
        parts.extend(own)
    squares = polynomial[:2] == (0.0, 0.0) and polynomial[2] > 0
    define_sum(reader, equation, parts, f"{letters}->{kept}", kept_dims, count * largest, squares=squares)


def _parts(
    reader: Reader, equation: Equation, segment: Segment, polynomial: tuple[float, float, float], share: float
) -> list[SummedPart]:
    """The sum of c + b x + a x^2 over `share` of the channels of a segment."""
    node, weight, (c, b, a) = segment.node, share * segment.width, polynomial
    if not a:
        return [SummedPart(weight, node)]
    parts = [SummedPart(a * weight, node, node)]
    if b:
        parts.append(SummedPart(b * weight, node))
    if c:
        ones = reader.sum([Term(1.0, reader.one, 0, ())], node.sizes, equation.where)
        parts.append(SummedPart(c * weight, ones))
    return parts


def _check_channels(reader: Reader, equation: Equation, feature: Feature, count: int) -> None:
    partial = count < math.prod(feature.channels)
    if partial:
        check_independent(reader, equation, [s.node for s in feature.segments])
    if any(not s.node.uniform and (partial or s.start) for s in feature.segments):
        raise GROUP_SUM_OF_UNLIKE_CHANNELS.of(equation)


def check_independent(reader: Reader, equation: Equation, nodes: Iterable[Node]) -> None:
    """Raise if the channels of a head share a factor, as after attention: then their mean does not concentrate."""
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node.index in seen or isinstance(node, Contraction):
            continue
        seen.add(node.index)
        if isinstance(node, Repeated):
            raise HEAD_SUM_OF_DEPENDENT_CHANNELS.of(equation)
        if isinstance(node, Sum):
            waiting.extend(term.node for term in node.terms)
        elif isinstance(node, Product):
            waiting.extend(node.factors)
        elif isinstance(node, WITH_OPERAND):
            waiting.append(node.operand)


def magnitude(reader: Reader, node: Node, polynomial: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> float:
    """The largest constant factor of a field of order 1: 1 / sqrt(d) for `q / sqrt(d)`.

    The factor 1 / sqrt(C) that goes with C weights of variance 1, or 1 / n with a sum over n positions, counts as 1:
    only with it is the field of order 1.
    """
    factor, size = _scale(node, lambda leaf: 1.0), _scale(node, lambda leaf: _size(reader, leaf))
    size = max(factor, min(1.0, size))
    return max(abs(polynomial[1]) * size, abs(polynomial[2]) * size**2)


def _scale(node: Node, size: Callable[[Node], float]) -> float:
    """The largest product of coefficients on the way from a sum to what is summed, times the size of this."""
    sums, waiting = {}, [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Sum) and part.index not in sums:
            sums[part.index] = part
            waiting.extend(term.node for term in part.terms)
    scales: dict[int, float] = {}
    for index, part in sorted(sums.items()):
        factors = [1.0 if isinstance(t.coefficient, Field) else abs(t.coefficient) for t in part.terms]
        below = (scales[t.node.index] if t.node.index in scales else size(t.node) for t in part.terms)
        scales[index] = max(f * s for f, s in zip(factors, below, strict=True))
    return scales.get(node.index, size(node))


def _size(reader: Reader, node: Node) -> float:
    """How large a field is if what it is a linear map of has order 1, if that may be more than 1."""
    size = 1.0
    while isinstance(node, IndexLinear):
        size *= max(1.0, math.prod(node.operand.sizes) / math.prod(node.sizes))
        node = node.operand
    if isinstance(node, Contraction):
        std = abs(node.param.scale) * reader.priors.largest_std[node.param.key.leaf]
        # Initialisers that scale with the number of weights make this 1, up to factors such as sqrt(2).
        size *= math.sqrt(node.channels) if std > node.channels**-0.25 else 1.0
    return size


def define_sum(
    reader: Reader,
    equation: Equation,
    parts: Sequence[SummedPart],
    subscripts: str,
    dims: Sequence[Sequence[Any]],
    excess: float,
    *,
    squares: bool,
    pairs: bool = False,
) -> None:
    """Set the result of an equation to a sum over channels, its axes made of `dims`; see `ChannelSum` and `Known`."""
    (out,) = equation.outputs
    channel_axes = {d for d, dim in enumerate(dims) if any(a.is_channel for a in dim)}
    if any(not a.is_channel for d in channel_axes for a in dims[d]):
        raise CHANNEL_SUM_ON_MIXED_AXIS.of(equation)
    excess = 0.0 if excess <= 1 + ROUNDING else excess
    shape, present = reader.shape(out), [part for part in parts if not _vanishes(part)]
    if not present:
        reader.set_zero(out, excess, vanishing=pairs)
        return
    node = reader.new(
        ChannelSum,
        sizes=tuple(1 if d in channel_axes else n for d, n in enumerate(shape)),
        where=equation.where,
        leaves=frozenset(),
        gaussian=True,
        zero_mean=False,
        var=out,
        parts=tuple(present),
        pairs=pairs,
        subscripts=subscripts,
    )
    varies = long_axes(shape) - channel_axes
    reader.values[out] = Known(out, varies, False, frozenset({node}), excess, squares and excess > 0)


def _vanishes(part: SummedPart) -> bool:
    """Whether the mean is zero by structure: a field without mean, or products of fields of different weights."""
    if part.v is None:
        return part.u.zero_mean
    return Ask(part.u, part.v, part.shift, (1, 1), Layout.full(part.u.sizes, part.v.sizes)).vanishes


def channel_sum_step(request: AskMean, node: ChannelSum) -> Step:
    """The value of a sum over channels on one example."""

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        total = jnp.zeros(node.sizes, context.dtype)
        for part, result in zip(node.parts, results, strict=True):
            value = _at_positions(node, part, result)
            if value is not None:
                total = total + part.weight * jnp.einsum(node.subscripts, value).reshape(node.sizes)
        return stored(total)

    needs = tuple(_need(node, part, request.side) for part in node.parts)
    return Step(request, "channel sum", node.where, needs, evaluate)


def _need(node: ChannelSum, part: SummedPart, side: int) -> Request | None:
    if part.v is None:
        return AskMean(part.u, side)
    if not node.pairs:
        return variance(part.u, side)
    return ask(part.u, part.v, part.shift, (side, side), Layout.full(part.u.sizes, part.v.sizes))


def _at_positions(node: ChannelSum, part: SummedPart, result: Any) -> jax.Array | None:
    """The mean of one channel of a part at its positions, or pairs of them."""
    if part.v is None:
        return result
    if result is None or result.s is None:
        return None
    if not node.pairs:
        return result.s.reshape(part.u.sizes)
    return to_sides(Layout.full(part.u.sizes, part.v.sizes), result.s)
