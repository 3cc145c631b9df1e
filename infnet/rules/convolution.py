"""Convolutions in any number of dimensions: ordinary, transposed, grouped and depthwise, and by constant filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import CHANNELS_FILTERED_BY_CONSTANTS
from infnet.errors.parameters import (
    BATCH_GROUPS,
    DEPTHWISE_OF_ITSELF,
    FILTER_NOT_A_PARAMETER,
    GROUPS_OF_SEVERAL_FEATURES,
    ONE_FILTER_PER_INPUT_CHANNEL,
)
from infnet.index_maps import Filter, Select, Spread
from infnet.nodes import GroupedConvolution, Param, ParamKey
from infnet.plan import Ask, Moments, Step
from infnet.primitives.contraction import Geometry
from infnet.primitives.windows import Window
from infnet.program import Atom, Feature, Known, Segment
from infnet.reader import READS, Reader
from infnet.rules.contraction import (
    Weight,
    check_weight,
    contract,
    contracted_sizes,
    contraction_step,
    input_feature,
)
from infnet.rules.index_linear import mapped, whole_axes
from infnet.rules.rearrange import new_channels
from infnet.rules.unfold import unfold
from infnet.trace import Equation


@READS.register(lax_p.conv_general_dilated_p)
def read_conv(reader: Reader, equation: Equation) -> None:
    """A convolution of a feature, or of inputs, with a parameter, or of a feature with constants."""
    params, (x, w), (out,) = equation.params, equation.inputs, equation.outputs
    if isinstance(reader.values[x], Param) or isinstance(reader.values[w], Feature):
        raise FILTER_NOT_A_PARAMETER.of(equation)
    if params["batch_group_count"] != 1:
        raise BATCH_GROUPS.of(equation)
    numbers = params["dimension_numbers"]
    operand = _operand(reader, equation, x, numbers.lhs_spec)
    spatial = [operand.dims[d][0].number for d in numbers.lhs_spec[2:]]
    operand, windows = _windows(reader, equation, operand, spatial)
    if isinstance(reader.values[w], Known):
        dims, channels, segments = _filtered(reader, equation, operand, windows, spatial)
    else:
        dims, channels, segments = _convolved(reader, equation, operand, windows, spatial)
    axes: list[tuple[Atom, ...]] = [()] * len(numbers.out_spec)
    kept = sorted(spatial)
    for d, number in zip(numbers.out_spec[2:], spatial, strict=True):
        axes[d] = (Atom(False, kept.index(number)),)
    axes[numbers.out_spec[1]] = dims
    reader.values[out] = Feature(tuple(axes), channels, segments, out)


def _operand(reader: Reader, equation: Equation, var: int, spec: Sequence[int]) -> Feature:
    """The feature that is convolved, with one index atom on each spatial axis.

    Channels of an earlier layer on a spatial axis become positions; positions on the channel axis are contracted.
    """
    _, channel, *spatial = spec
    shape = reader.shape(var)
    if not isinstance(reader.values[var], Feature):
        return input_feature(reader, equation, var, spatial, [channel] if shape[channel] > 1 else [])
    feature = reader.settled(var)
    atoms = [a for d in spatial for a in feature.dims[d] if a.is_channel and feature.size(a) > 1]
    feature = unfold(reader, equation, feature, atoms, var) if atoms else feature
    return whole_axes(reader, equation, feature, spatial, var)


def _windows(
    reader: Reader, equation: Equation, operand: Feature, spatial: Sequence[int]
) -> tuple[Feature, list[Window]]:
    """The operand with zeros between its positions and cropped, as the convolution has it, and its windows."""
    params, (_, w), (out,) = equation.params, equation.inputs, equation.outputs
    sizes = [reader.shape(w)[d] for d in params["dimension_numbers"].rhs_spec[2:]]
    factors = [1] * len(operand.sizes)
    for number, factor in zip(spatial, params["lhs_dilation"], strict=True):
        factors[number] = int(factor)
    if any(f > 1 for f in factors):
        spread = Spread(operand.sizes, tuple(factors))
        operand = replace(operand, segments=mapped(reader, equation, operand, spread, "dilate", out))
    ranges = [(1, 0, n) for n in operand.sizes]
    windows = []
    settings = (params["window_strides"], params["rhs_dilation"], params["padding"])
    for number, size, stride, dilation, (low, high) in zip(spatial, sizes, *settings, strict=True):
        cropped = operand.sizes[number] + min(low, 0) + min(high, 0)
        ranges[number] = (1, max(-low, 0), cropped)
        windows.append(Window(size, int(stride), int(dilation), max(int(low), 0), max(int(high), 0)))
    crop = Select(operand.sizes, tuple(ranges))
    return replace(operand, segments=mapped(reader, equation, operand, crop, "select", out)), windows


Result = tuple[tuple[Atom, ...], tuple[int, ...], tuple[Segment, ...]]  # dims of the channel axis, channels, segments


def _convolved(
    reader: Reader, equation: Equation, operand: Feature, windows: Sequence[Window], spatial: Sequence[int]
) -> Result:
    w, groups = equation.inputs[1], equation.params["feature_group_count"]
    spec, numbers = equation.params["dimension_numbers"].lhs_spec, equation.params["dimension_numbers"].rhs_spec
    param, (out_axis, in_axis, *taps) = reader.weight(equation, w), numbers
    geometry: list[Window | None] = [None] * len(operand.sizes)
    weight_axes: list[int | None] = [-1] * len(operand.sizes)
    for number, window, tap in zip(spatial, windows, taps, strict=True):
        factors = param.factors[tap]
        geometry[number] = window
        weight_axes[number] = factors[0][0] if len(factors) == 1 and isinstance(factors[0][0], int) else None
    own = tuple(a for a in operand.dims[spec[1]] if operand.size(a) > 1)
    roles = ("conv", groups, own, tuple(spatial), tuple(param.factors[d] for d in numbers))
    weight = Weight(param, in_axis, tuple(weight_axes), roles)
    (dims,), channels = new_channels([reader.shape(w)[out_axis]])
    if groups > 1:
        segments = _grouped(reader, equation, operand, weight, tuple(geometry))
    else:
        node = contract(reader, equation, operand, weight, tuple(geometry))
        segments = (Segment(node, 0, math.prod(channels)),)
    return dims, channels, segments


def _grouped(
    reader: Reader, equation: Equation, operand: Feature, weight: Weight, geometry: Geometry
) -> tuple[Segment, ...]:
    """Groups of channels, each with weights of its own: the channels of a segment stay side by side."""
    check_weight(reader, equation, weight)
    out_axis, in_axis, *_ = equation.params["dimension_numbers"].rhs_spec
    size, made = reader.shape(equation.inputs[1])[in_axis], reader.shape(equation.inputs[1])[out_axis]
    made //= equation.params["feature_group_count"]
    segments, position = [], 0
    if any(w is None for w in geometry) or any(s.width % size for s in operand.segments):
        raise GROUPS_OF_SEVERAL_FEATURES.of(equation)
    for segment in operand.segments:
        groups = segment.width // size
        key = weight.param.key
        if len(operand.segments) > 1:
            key = ParamKey(key.leaf, (*key.slices, (-2, position, position + groups)))
        position += groups
        _check_filters(reader, equation, key, segment, made)
        reader.use_param(equation, key, weight.roles)
        node = reader.new(
            GroupedConvolution,
            sizes=contracted_sizes(operand, geometry),
            where=equation.where,
            leaves=frozenset({(key, 0), *((k, None) for k, _ in segment.node.leaves)}),
            gaussian=not segment.node.leaves,
            zero_mean=True,
            uniform=segment.node.uniform,
            scales=segment.node.scales,
            param=replace(weight.param, key=key),
            operand=segment.node,
            start=segment.start,
            channels=size,
            geometry=geometry,
            weight_axes=weight.axes,
            filters=made,
        )
        segments.append(Segment(node, 0, groups * made))
    return tuple(segments)


def _check_filters(reader: Reader, equation: Equation, key: ParamKey, segment: Segment, made: int) -> None:
    if not segment.node.leaves and made == 1:
        raise ONE_FILTER_PER_INPUT_CHANNEL.of(equation)
    if any(k.leaf == key.leaf for k, _ in segment.node.leaves):
        raise DEPTHWISE_OF_ITSELF.of(equation)


def grouped_step(request: Ask, u: Any, v: Any) -> Step | None:
    """The moment of two fields of which one is a grouped convolution; None if there is no rule.

    The filters have mean zero and are independent of all else, so what is not the same filter is uncorrelated.
    """
    if (
        isinstance(u, GroupedConvolution)
        and isinstance(v, GroupedConvolution)
        and u.param.key == v.param.key
        and request.shift == 0
    ):
        return contraction_step(request, u, v)
    one, other = (u, v) if isinstance(u, GroupedConvolution) else (v, u)
    filters_both = isinstance(other, GroupedConvolution) or all(key != one.param.key for key, _ in other.leaves)
    return Step(request, "uncorrelated", one.where, (), lambda *_: Moments(None)) if filters_both else None


def _filtered(
    reader: Reader, equation: Equation, operand: Feature, windows: Sequence[Window], spatial: Sequence[int]
) -> Result:
    """Every channel convolved with the same constant filters: patches, blurs."""
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    constants, (out,) = reader.constant_array(equation.inputs[1]), equation.outputs
    own = tuple(a for a in operand.dims[numbers.lhs_spec[1]] if operand.size(a) > 1)
    channels = operand.channels
    if constants is None or np.iscomplexobj(constants) or not all(a.is_channel for a in own):
        raise FILTER_NOT_A_PARAMETER.of(equation)
    # [group, filter, channel of the group, *window]
    filters = np.transpose(np.asarray(constants, np.float64), numbers.rhs_spec)
    filters = filters.reshape(groups, -1, *filters.shape[1:])
    if filters.shape[2] != 1 or not (filters == filters[:1]).all():
        raise CHANNELS_FILTERED_BY_CONSTANTS.of(equation)
    order = np.argsort(spatial)
    one = filters[0, :, 0].transpose(0, *(1 + order))
    filter_map = Filter(operand.sizes, tuple(windows[k] for k in order), len(one), one.tobytes())
    segments = mapped(reader, equation, operand, filter_map, "constant filters", out)
    return (*own, Atom(False, len(spatial))), channels, segments
