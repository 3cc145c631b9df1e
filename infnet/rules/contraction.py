"""A weight contracted with a feature or with inputs: Dense, DenseGeneral, and what convolutions share with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import SUM_OVER_CHANNELS
from infnet.errors.parameters import (
    POSITIONS_MIXED_BY_WEIGHT,
    PRODUCT_OF_PARAMETERS,
    WEIGHT_OF_CHANNEL_SUMS,
    WEIGHT_REUSED_WITH_OTHER_WINDOWS,
    WEIGHT_WITH_MEAN,
)
from infnet.layout import Layout, spread_coincident
from infnet.nodes import Contraction, KnownNode, Node, Param, ParamKey, Term
from infnet.plan import Ask, Moments, Step, ask
from infnet.primitives.contraction import Geometry, contraction
from infnet.primitives.windows import Window, conv_offsets
from infnet.program import Atom, Feature, Known, Segment
from infnet.reader import READS, Reader
from infnet.rules.aggregation import read_aggregation
from infnet.rules.fused import ranges_read
from infnet.rules.matrix import is_matrix, read_matrix
from infnet.rules.rearrange import in_dim_order, new_channels
from infnet.rules.scores import read_scores
from infnet.rules.unfold import unfold
from infnet.trace import Equation


@READS.register(lax_p.dot_general_p)
def read_dot_general(reader: Reader, equation: Equation) -> None:
    """Dense layers: a parameter contracted with all channels, and perhaps with positions.

    Along an axis that the parameter shares with the feature, every position has a weight of its own.
    """
    dims = equation.params["dimension_numbers"]
    kinds = [isinstance(reader.values[v], Param) for v in equation.inputs]
    if sum(kinds) != 1:
        _product(reader, equation, kinds)
        return
    weight_first = kinds[0]
    x, w = equation.inputs[::-1] if weight_first else equation.inputs
    (x_dims, w_dims), (x_own, w_own) = (pair[::-1] if weight_first else pair for pair in dims)
    operand, param = _dense_operand(reader, equation, x, x_dims, x_own), reader.weight(equation, w)
    contracted = {a: (d, e) for d, e in zip(x_dims, w_dims, strict=True) for a in operand.dims[d]}
    geometry: list[Window | None] = []
    weight_axes: list[int | None] = []
    for k in range(len(operand.sizes)):
        axis = contracted.get(Atom(False, k))
        geometry.append(Window() if axis is None else None)
        weight_axes.append(None if axis is None else _whole_axis(operand, param, *axis))
    free = [e for e in range(len(param.factors)) if e not in (*w_dims, *w_own)]
    pairs = ((*x_dims, -1, *x_own), (*w_dims, -1, *w_own))
    pairing = tuple(_pairing(operand, param, d, e) for d, e in zip(*pairs, strict=True) if d >= 0)
    weight = Weight(
        param,
        next((e for d, e in zip(x_dims, w_dims, strict=True) if any(a.is_channel for a in operand.dims[d])), None),
        tuple(weight_axes),
        ("dense", len(x_dims), pairing, tuple(param.factors[e] for e in free)),
        frozenset(a.number for d in x_own for a in operand.dims[d]),
    )
    new, channels = new_channels([reader.shape(w)[e] for e in free])
    own = _renumbered([operand.dims[d] for d in x_own], geometry)
    kept = _renumbered([dim for d, dim in enumerate(operand.dims) if d not in (*x_dims, *x_own)], geometry)
    (out,) = equation.outputs
    result = (*own, *new, *kept) if weight_first else (*own, *kept, *new)
    segments = _segments(reader, equation, operand, weight, tuple(geometry), result)
    reader.values[out] = Feature(result, channels, segments, out)


def _segments(
    reader: Reader,
    equation: Equation,
    operand: Feature,
    weight: Weight,
    geometry: Geometry,
    dims: Sequence[tuple[Atom, ...]],
) -> tuple[Segment, ...]:
    """The result, of these dims: one node, or one for each range of channels that is read apart from the others."""
    axes = [d for d, dim in enumerate(dims) if any(a.is_channel for a in dim)]
    width = math.prod(reader.shape(equation.outputs[0])[d] for d in axes)
    # What is sampled is nonlinear in products of such ranges; elsewhere one node with a shift of channels will do.
    ranges = ranges_read(reader, equation, axes) if reader.sampling else ((0, width),)
    if len(ranges) == 1:
        return (Segment(contract(reader, equation, operand, weight, geometry), 0, width),)
    segments = []
    for start, stop in ranges:
        key = ParamKey(weight.param.key.leaf, (*weight.param.key.slices, (-1, start, stop)))
        part = replace(weight, param=replace(weight.param, key=key))
        segments.append(Segment(contract(reader, equation, operand, part, geometry), 0, stop - start))
    return tuple(segments)


def _product(reader: Reader, equation: Equation, kinds: Sequence[bool]) -> None:
    """Without a weight, a feature times constants."""
    features = [isinstance(reader.values[v], Feature) for v in equation.inputs]
    if all(kinds):
        raise PRODUCT_OF_PARAMETERS.of(equation)
    if all(features):
        read_scores(reader, equation)
        return
    constant = next(v for v, is_feature in zip(equation.inputs, features, strict=True) if not is_feature)
    if reader.constant_array(constant) is not None and is_matrix(reader, equation, constant):
        read_matrix(reader, equation, constant)
    else:
        read_aggregation(reader, equation)


def _dense_operand(
    reader: Reader, equation: Equation, var: int, contracted: Sequence[int], own: Sequence[int]
) -> Feature:
    """The feature that is contracted; inputs become one, with the contracted axes as their channels.

    If the last channel axes are contracted, the layer is applied along those before, which count as positions then.
    """
    shape = reader.shape(var)
    if not isinstance(reader.values[var], Feature):
        index = [d for d in range(len(shape)) if d not in contracted and shape[d] > 1]
        return input_feature(reader, equation, var, index, [d for d in contracted if shape[d] > 1])
    feature = reader.settled(var)
    long = [[a for a in dim if a.is_channel and feature.size(a) > 1] for dim in feature.dims]
    left_over = [d for d in range(len(shape)) if d not in contracted and long[d]]
    if not left_over:
        return in_dim_order(reader, feature, var)
    stays, goes = ([a for d in dims for a in long[d]] for dims in (left_over, contracted))
    if not goes or max(stays) > min(goes):
        filtered = "filtered by a weight of its own for each channel" if set(left_over) & set(own) else "mixed"
        raise POSITIONS_MIXED_BY_WEIGHT.of(equation, filtered=filtered, axis=left_over[-1])
    feature = unfold(reader, equation, feature, stays, var)
    return in_dim_order(reader, feature, var)


def input_feature(
    reader: Reader, equation: Equation, var: int, index: Sequence[int], channel: Sequence[int]
) -> Feature:
    """Inputs as a feature, with these axes as positions and as channels."""
    shape, known = reader.shape(var), reader.values[var]
    if isinstance(known, Known) and known.excess:
        raise SUM_OVER_CHANNELS.of(equation)
    if isinstance(known, Known) and known.sums:
        raise WEIGHT_OF_CHANNEL_SUMS.of(equation)
    width = math.prod(shape[d] for d in channel)
    dims = [[shape[d]] if d in index else [] for d in range(len(shape))]
    node = reader.new(
        KnownNode,
        sizes=tuple(shape[d] for d in index),
        where=equation.where,
        leaves=frozenset(),
        gaussian=True,
        zero_mean=False,
        uniform=width == 1,
        field=reader.field(var, dims, channel, (0, width)),
    )
    atoms = {d: (Atom(False, k),) for k, d in enumerate(index)}
    atoms.update({d: (Atom(True, k),) for k, d in enumerate(channel)})
    channels = tuple(shape[d] for d in channel)
    return Feature(tuple(atoms.get(d, ()) for d in range(len(shape))), channels, (Segment(node, 0, width),), var)


def _pairing(operand: Feature, param: Param, d: int, e: int) -> Any:
    return tuple(a for a in operand.dims[d] if operand.size(a) > 1), param.factors[e]


def _whole_axis(operand: Feature, param: Param, d: int, e: int) -> int | None:
    """The leaf axis behind a contracted array axis, if both are one piece; -1 if they are not."""
    factors = param.factors[e]
    if len(factors) == 1 and isinstance(factors[0][0], int) and len(operand.dims[d]) == 1:
        return factors[0][0]
    return -1


def _renumbered(dims: Sequence[tuple[Atom, ...]], geometry: Sequence[Window | None]) -> list[tuple[Atom, ...]]:
    kept = [k for k, window in enumerate(geometry) if window is not None]
    return [tuple(Atom(False, kept.index(a.number)) for a in dim if not a.is_channel) for dim in dims]


@dataclass(frozen=True)
class Weight:
    """How a parameter is contracted.

    Attributes:
        param: the parameter.
        channel_axis: its array axis that is contracted with channels, if any.
        axes: `weight_axes` of the node.
        roles: of its axes (see `Reader.use_param`).
        own: the index axes of the operand along which every position has a weight of its own.
    """

    param: Param
    channel_axis: int | None
    axes: tuple[int | None, ...]
    roles: Any
    own: frozenset[int] = frozenset()


def check_weight(reader: Reader, equation: Equation, weight: Weight) -> None:
    """Raise unless the elements of a parameter have mean zero, and laws that differ along `weight.axes` at most."""
    if weight.param.key.leaf in reader.priors.nonzero_mean:
        raise WEIGHT_WITH_MEAN.of(equation)
    reader.check_uniform(equation, weight.param, weight.axes)


def contract(reader: Reader, equation: Equation, operand: Feature, weight: Weight, geometry: Geometry) -> Node:
    """The contraction of every segment with its own slice of the weight, summed."""
    check_weight(reader, equation, weight)
    terms, position = [], 0
    for segment in operand.segments:
        key = weight.param.key
        if len(operand.segments) > 1:
            assert weight.channel_axis is not None
            key = ParamKey(key.leaf, (*key.slices, (-2, position, position + segment.width)))
        position += segment.width
        reader.use_param(equation, key, weight.roles)
        node = reader.new(
            Contraction,
            sizes=contracted_sizes(operand, geometry),
            where=equation.where,
            leaves=frozenset({(key, 0)}),
            gaussian=True,
            zero_mean=True,
            param=replace(weight.param, key=key),
            operand=segment.node,
            start=segment.start,
            channels=segment.width,
            geometry=geometry,
            weight_axes=weight.axes,
            own_weights=weight.own,
        )
        terms.append(Term(1.0, node, 0, tuple(range(len(node.sizes)))))
    return reader.sum(terms, terms[0].node.sizes, equation.where)


def contracted_sizes(operand: Feature, geometry: Geometry) -> tuple[int, ...]:
    """The positions that are left."""
    return tuple(w.output_size(n) for w, n in zip(geometry, operand.sizes, strict=True) if w is not None)


def contraction_step(request: Ask, u: Contraction, v: Contraction) -> Step:
    """The moment of two contractions with the same weight."""
    if _manner(u) != _manner(v):
        raise WEIGHT_REUSED_WITH_OTHER_WINDOWS.at(v.where)
    outer = _equal_positions(request.layout, u)
    offsets, rest = [], iter(outer.offsets)
    for window in u.geometry:
        offsets.append((0,) if window is None else conv_offsets(window, next(rest)))
    layout = Layout(u.operand.sizes, v.operand.sizes, tuple(offsets))
    need = ask(u.operand, v.operand, v.start - u.start, request.side, layout, request.ntk)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        moments = results[0] or Moments(None)
        s, t = moments
        if s is None and t is None:
            return Moments(None)
        s = context.zeros_like(t) if s is None else s
        s2, g2 = context.weight_factors(u.param, u.weight_axes)
        if request.ntk and t is None:
            t = context.zeros_like(s)
        outputs = contraction(
            s, t if request.ntk else None, s2, g2, layout=layout, geometry=u.geometry, channels=u.channels
        )
        return Moments(*(spread_coincident(m, outer, request.layout) for m in outputs))

    rule = "dense" if all(w is None or w.is_identity for w in u.geometry) else "conv"
    return Step(request, rule, u.where, (need,), evaluate)


def _manner(node: Contraction) -> tuple[Any, ...]:
    return node.geometry, node.own_weights, node.param.scale, node.param.mask, node.channels


def _equal_positions(layout: Layout, node: Contraction) -> Layout:
    """The layout without pairs of different positions that have weights of their own: these are uncorrelated."""
    kept = [k for k, window in enumerate(node.geometry) if window is not None]
    own = [k in node.own_weights for k in kept]
    offsets = tuple((0,) if alone else d for alone, d in zip(own, layout.offsets, strict=True))
    return Layout(layout.left, layout.right, offsets)
