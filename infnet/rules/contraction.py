"""A weight contracted with a feature or with inputs: Dense, DenseGeneral, convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infnet._jax import lax_primitives as lax_p
from infnet.errors import MONTE_CARLO, UnsupportedError
from infnet.layout import Layout
from infnet.plan import Ask, Moments, Step, ask
from infnet.primitives.contraction import Geometry, contraction
from infnet.primitives.windows import Window, conv_offsets
from infnet.program import Atom, Contraction, Feature, Known, KnownNode, Node, Param, ParamKey, Segment, Term
from infnet.reader import READS, Reader
from infnet.rules.aggregation import read_aggregation
from infnet.rules.matrix import is_matrix, read_matrix
from infnet.rules.rearrange import in_dim_order
from infnet.rules.scores import read_scores
from infnet.trace import Equation

SEPARATE = "each channel would be filtered by a weight of its own, or share one with other channels"


@READS.register(lax_p.dot_general_p)
def read_dot_general(reader: Reader, equation: Equation) -> None:
    """Dense layers: a parameter contracted with all channels, and perhaps with positions."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    kinds = [isinstance(reader.values[v], Param) for v in equation.inputs]
    if sum(kinds) != 1:
        _product(reader, equation, kinds)
        return
    weight_first = kinds[0]
    x, w = equation.inputs[::-1] if weight_first else equation.inputs
    x_dims, w_dims = (right, left) if weight_first else (left, right)
    if left_batch or right_batch:
        reader.refuse(equation, "a weight with an axis of its own for each position or channel", SEPARATE)
    operand = _dense_operand(reader, equation, x, x_dims)
    param = reader.weight(equation, w)
    geometry, weight_axes, pairing = [], [], []
    contracted = {a: (d, e) for d, e in zip(x_dims, w_dims, strict=True) for a in operand.dims[d]}
    for k in range(len(operand.sizes)):
        axis = contracted.get(Atom(False, k))
        geometry.append(Window() if axis is None else None)
        weight_axes.append(None if axis is None else _whole_axis(operand, param, *axis))
    for d, e in zip(x_dims, w_dims, strict=True):
        pairing.append((tuple(a for a in operand.dims[d] if operand.size(a) > 1), param.factors[e]))
    free = [d for d in range(len(param.factors)) if d not in w_dims]
    roles = ("dense", tuple(pairing), tuple(param.factors[d] for d in free))
    channel_axis = next(
        (e for d, e in zip(x_dims, w_dims, strict=True) if any(a.is_channel for a in operand.dims[d])), None
    )
    node = _contract(reader, equation, operand, param, channel_axis, tuple(geometry), tuple(weight_axes), roles)
    kept = [operand.dims[d] for d in range(len(operand.dims)) if d not in x_dims]
    new, channels = new_channels([reader.shape(w)[d] for d in free])
    dims = [*new, *_renumbered(kept, geometry)] if weight_first else [*_renumbered(kept, geometry), *new]
    (out,) = equation.outputs
    reader.values[out] = Feature(tuple(dims), channels, (Segment(node, 0, math.prod(channels)),), out)


def _product(reader: Reader, equation: Equation, kinds: Sequence[bool]) -> None:
    """Without a weight, a feature times constants."""
    features = [isinstance(reader.values[v], Feature) for v in equation.inputs]
    if all(kinds):
        what, why = "two parameters are multiplied", "the product is not a Gaussian weight with independent elements"
        reader.refuse(equation, what, why)
    if all(features):
        read_scores(reader, equation)
        return
    constant = next(v for v, is_feature in zip(equation.inputs, features, strict=True) if not is_feature)
    if reader.constant_array(constant) is not None and is_matrix(reader, equation, constant):
        read_matrix(reader, equation, constant)
    else:
        read_aggregation(reader, equation)


def _dense_operand(reader: Reader, equation: Equation, var: int, x_dims: Sequence[int]) -> Feature:
    """The feature that is contracted; inputs become one, with the contracted axes as their channels."""
    shape = reader.shape(var)
    if not isinstance(reader.values[var], Feature):
        index = [d for d in range(len(shape)) if d not in x_dims and shape[d] > 1]
        return input_feature(reader, equation, var, index, [d for d in x_dims if shape[d] > 1])
    feature = in_dim_order(reader, reader.settled(var), var)
    left_over = [
        d
        for d, dim in enumerate(feature.dims)
        if d not in x_dims and any(a.is_channel and feature.size(a) > 1 for a in dim)
    ]
    if left_over:
        reader.refuse(
            equation,
            f"a weight is contracted with positions while channels (axis {left_over[0]}) stay (token mixing, or a "
            "layer on a part of the channels)",
            "all channels then share one finite weight: the result is a scale mixture, not Gaussian, so a nonlinearity "
            "after it has no closed form",
        )
    return feature


def input_feature(
    reader: Reader, equation: Equation, var: int, index: Sequence[int], channel: Sequence[int]
) -> Feature:
    """Inputs as a feature, with these axes as positions and as channels."""
    shape, known = reader.shape(var), reader.values[var]
    if isinstance(known, Known) and known.sums:
        reader.refuse(
            equation,
            "a weight is applied to sums over channels",
            "their derivatives in the weights before are as large as those in this weight, and random",
            f"apply the weight before the channels are summed; or {MONTE_CARLO}",
        )
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


def _whole_axis(operand: Feature, param: Param, d: int, e: int) -> int | None:
    """The leaf axis behind a contracted array axis, if both are one piece; -1 if they are not."""
    factors = param.factors[e]
    if len(factors) == 1 and isinstance(factors[0][0], int) and len(operand.dims[d]) == 1:
        return factors[0][0]
    return -1


def new_channels(sizes: Sequence[int]) -> tuple[list[tuple[Atom, ...]], tuple[int, ...]]:
    """Array axes that hold new channels, and the sizes of their atoms."""
    dims: list[tuple[Atom, ...]] = []
    channels: list[int] = []
    for size in sizes:
        dims.append((Atom(True, len(channels)),) if size > 1 else ())
        if size > 1:
            channels.append(size)
    return dims, tuple(channels)


def _renumbered(dims: Sequence[tuple[Atom, ...]], geometry: Sequence[Window | None]) -> list[tuple[Atom, ...]]:
    kept = [k for k, window in enumerate(geometry) if window is not None]
    return [tuple(Atom(False, kept.index(a.number)) for a in dim if not a.is_channel) for dim in dims]


@READS.register(lax_p.conv_general_dilated_p)
def read_conv(reader: Reader, equation: Equation) -> None:
    """Convolutions with shared weights, in any number of dimensions."""
    params, (x, w), (out,) = equation.params, equation.inputs, equation.outputs
    numbers = params["dimension_numbers"]
    if isinstance(reader.values[x], Param) or not isinstance(reader.values[w], Param):
        reader.refuse(equation, "a convolution whose filter is not a parameter", "infnet has no rule for this yet")
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        reader.refuse(
            equation,
            "a grouped or depthwise convolution",
            "each channel is filtered by a few weights of its own: the result is a scale mixture, not Gaussian, so a "
            "nonlinearity after it has no closed form, and infnet has no rule for it yet",
            f"use an ordinary convolution (`feature_group_count=1`); or {MONTE_CARLO}",
        )
    if any(d != 1 for d in params["lhs_dilation"]):
        reader.refuse(equation, "a transposed convolution", "infnet has no rule for it yet")
    operand = _conv_operand(reader, equation, x, numbers.lhs_spec)
    param = reader.weight(equation, w)
    spatial = zip(
        [reader.shape(w)[d] for d in numbers.rhs_spec[2:]],
        params["window_strides"],
        params["rhs_dilation"],
        params["padding"],
        strict=True,
    )
    geometry = tuple(Window(size, stride, dilation, low, high) for size, stride, dilation, (low, high) in spatial)
    out_axis, in_axis, *taps = numbers.rhs_spec
    roles = ("conv", param.factors[in_axis], param.factors[out_axis], tuple(param.factors[d] for d in taps))
    weight_axes = tuple(
        param.factors[d][0][0] if param.factors[d] and isinstance(param.factors[d][0][0], int) else None for d in taps
    )
    node = _contract(reader, equation, operand, param, in_axis, geometry, weight_axes, roles)
    (new,), channels = new_channels([reader.shape(w)[out_axis]])
    dims: list[tuple[Atom, ...]] = [()] * len(numbers.out_spec)
    dims[numbers.out_spec[1]] = new
    for k, d in enumerate(numbers.out_spec[2:]):
        dims[d] = (Atom(False, k),)
    reader.values[out] = Feature(tuple(dims), channels, (Segment(node, 0, math.prod(channels)),), out)


def _conv_operand(reader: Reader, equation: Equation, var: int, spec: Sequence[int]) -> Feature:
    """The feature that is convolved, with one index atom on each spatial axis, in order."""
    _, channel, *spatial = spec
    shape = reader.shape(var)
    if not isinstance(reader.values[var], Feature):
        return input_feature(reader, equation, var, spatial, [channel] if shape[channel] > 1 else [])
    feature = reader.settled(var)
    atoms = [[a for a in feature.dims[d] if feature.size(a) > 1] for d in spatial]
    own = [a for a in feature.dims[channel] if feature.size(a) > 1]
    if any(len(found) > 1 or any(a.is_channel for a in found) for found in atoms) or not all(a.is_channel for a in own):
        reader.refuse(
            equation,
            "channels of an earlier layer are used as positions of a convolution, or positions as its channels",
            "infnet has no rule for this yet",
        )
    feature = in_dim_order(reader, feature, var)
    sizes = tuple(shape[d] for d in spatial)
    order = [k for k, found in sorted(enumerate(atoms), key=lambda item: spatial[item[0]]) if found]

    def place(node: Node) -> Node:
        return reader.sum([Term(1.0, node, 0, tuple(order))], sizes, equation.where)

    dims = list(feature.dims)
    for k, d in enumerate(spatial):
        dims[d] = (Atom(False, k),)
    return Feature(tuple(dims), feature.channels, reader.replace_nodes(feature, place, var), var)


def _contract(
    reader: Reader,
    equation: Equation,
    operand: Feature,
    param: Param,
    channel_axis: int | None,
    geometry: Geometry,
    weight_axes: tuple[int | None, ...],
    roles: Any,
) -> Node:
    """The contraction of every segment with its own slice of the weight, summed."""
    if param.key.leaf in reader.nonzero_mean:
        reader.refuse(
            equation,
            "a weight whose mean is not zero",
            "the mean of the output would grow with the width, and all its channels would be alike",
            f"initialise the weight with mean zero; or {MONTE_CARLO}",
        )
    reader.check_uniform(equation, param, weight_axes)
    sizes = tuple(w.output_size(n) for w, n in zip(geometry, operand.sizes, strict=True) if w is not None)
    terms, position = [], 0
    for segment in operand.segments:
        key = param.key
        if len(operand.segments) > 1:
            assert channel_axis is not None
            key = ParamKey(key.leaf, (*key.slices, (-2, position, position + segment.width)))
        position += segment.width
        reader.use_param(equation, key, roles)
        node = reader.new(
            Contraction,
            sizes=sizes,
            where=equation.where,
            leaves=frozenset({(key, 0)}),
            gaussian=True,
            zero_mean=True,
            param=Param(key, param.factors, param.scale),
            operand=segment.node,
            start=segment.start,
            channels=segment.width,
            geometry=geometry,
            weight_axes=weight_axes,
        )
        terms.append(Term(1.0, node, 0, tuple(range(len(sizes)))))
    return reader.sum(terms, sizes, equation.where)


def contraction_step(request: Ask, u: Contraction, v: Contraction) -> Step:
    """The moment of two contractions with the same weight."""
    if (u.geometry, u.param.scale, u.channels) != (v.geometry, v.param.scale, v.channels):
        raise UnsupportedError(
            "one weight is used with two strides, paddings or scales",
            where=v.where,
            why="infnet has no rule yet for the moment of two different uses of one weight",
            remedy=f"use the shared layer in the same way each time; or {MONTE_CARLO}",
        )
    outer = iter(request.layout.offsets)
    offsets = tuple((0,) if w is None else conv_offsets(w, next(outer)) for w in u.geometry)
    layout = Layout(u.operand.sizes, v.operand.sizes, offsets)
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
        return Moments(*outputs)

    rule = "dense" if all(w is None or w.is_identity for w in u.geometry) else "conv"
    return Step(request, rule, u.where, (need,), evaluate)
