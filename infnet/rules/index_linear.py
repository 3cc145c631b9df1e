"""Fixed linear maps of positions: slice, pad, flip, sums, pooling. All are read into one kind of node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infnet._jax import lax_primitives as lax_p
from infnet._jax import split_p, stack_p, unstack_p
from infnet.errors.features import (
    CHANNELS_IN_IRREGULAR_STEPS,
    CHANNELS_PADDED,
    CHANNELS_POOLED,
    MIXED_AXIS_CUT,
    PADDING_WITH_VALUES,
    PART_OF_UNLIKE_CHANNELS,
    POOLING_WITH_DILATED_BASE,
    SLICE_AT_INPUTS,
    STACKED_WITH_OTHERS,
)
from infnet.errors.parameters import PARAMETER_SLICED_IRREGULARLY, PARAMETER_THROUGH_OPERATION, PARAMETERS_CONCATENATED
from infnet.index_maps import IndexMap, Pool, Select, Spread, Total
from infnet.nodes import Param
from infnet.primitives.windows import Window
from infnet.program import Atom, Feature, Segment
from infnet.reader import READS, Reader
from infnet.rules.channel_sums import read_channel_sum
from infnet.rules.maps import index_linear
from infnet.rules.rearrange import in_dim_order, split_index_axes, with_unit_axes
from infnet.rules.sums import combine, concatenate_channels, merge_segments, place_in
from infnet.trace import Equation

Range = tuple[int, int, int]  # step, first, count


@READS.register(lax_p.slice_p)
def read_slice(reader: Reader, equation: Equation) -> None:
    """Slices of positions, of channels, or of a parameter."""
    start, stop = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(start)
    ranges = [(k, a, -(-(b - a) // k)) for a, b, k in zip(start, stop, strides, strict=True)]
    _select(reader, equation, equation.outputs[0], ranges)


@READS.register(lax_p.dynamic_slice_p)
def read_dynamic_slice(reader: Reader, equation: Equation) -> None:
    """Slices that start at constants, such as the number of a step of a loop."""
    sizes, ranges = equation.params["slice_sizes"], []
    for var, n, size in zip(equation.inputs[1:], reader.shape(equation.inputs[0]), sizes, strict=True):
        start = 0.0 if size == n else reader.constant(var)
        if start is None:
            raise SLICE_AT_INPUTS.of(equation)
        ranges.append((1, min(max(int(start), 0), n - size), size))  # as JAX does, it starts where it fits
    _select(reader, equation, equation.outputs[0], ranges)


@READS.register(split_p)
def read_split(reader: Reader, equation: Equation) -> None:
    """Consecutive slices along one axis."""
    axis, start = equation.params["axis"], 0
    for size, out in zip(equation.params["sizes"], equation.outputs, strict=True):
        ranges = [(1, 0, n) for n in reader.shape(equation.inputs[0])]
        ranges[axis] = (1, start, int(size))
        _select(reader, equation, out, ranges)
        start += int(size)


@READS.register(unstack_p)
def read_unstack(reader: Reader, equation: Equation) -> None:
    """The positions along one axis, or the rows of a parameter, one by one."""
    axis = equation.params["axis"]
    for position, out in enumerate(equation.outputs):
        ranges = [(1, 0, n) for n in reader.shape(equation.inputs[0])]
        ranges[axis] = (1, position, 1)
        _select(reader, equation, out, ranges)
        value = reader.values[out]
        if isinstance(value, Param):
            factors = (*value.factors[:axis], *value.factors[axis + 1 :])
            reader.values[out] = Param(value.key, factors, value.scale)
        elif isinstance(value, Feature):
            dims = (*value.dims[:axis], *value.dims[axis + 1 :])
            reader.values[out] = Feature(dims, value.channels, value.segments, out)


@READS.register(lax_p.rev_p)
def read_rev(reader: Reader, equation: Equation) -> None:
    """Flips: of positions, or of the axes of a parameter, which is then another arrangement of equal elements."""
    flipped = equation.params["dimensions"]
    shape, value = reader.shape(equation.inputs[0]), reader.values[equation.inputs[0]]
    if isinstance(value, Param):
        factors = (tuple(map(_reversed, f)) if d in flipped else f for d, f in enumerate(value.factors))
        reader.values[equation.outputs[0]] = replace(value, factors=tuple(factors))
        return
    ranges = [(-1, n - 1, n) if d in flipped else (1, 0, n) for d, n in enumerate(shape)]
    _select(reader, equation, equation.outputs[0], ranges)


def _reversed(factor: tuple[Any, int]) -> tuple[Any, int]:
    name, size = factor
    back = isinstance(name, tuple) and name[0] == "reversed"
    return (name[1] if back else ("reversed", name)), size


@READS.register(lax_p.pad_p)
def read_pad(reader: Reader, equation: Equation) -> None:
    """Padding with zeros (or, with negative amounts, cropping)."""
    if reader.constant(equation.inputs[1]) != 0.0:
        raise PADDING_WITH_VALUES.of(equation)
    config = [tuple(map(int, c)) for c in equation.params["padding_config"]]
    (out,) = equation.outputs
    ranges = [(1, -low, n) for (low, _, _), n in zip(config, reader.shape(out), strict=True)]
    if not any(interior for *_, interior in config):
        _select(reader, equation, out, ranges)
        return
    padded = [d for d, c in enumerate(config) if any(c)]
    feature = with_whole_axes(reader, equation, equation.inputs[0], padded)
    if any(a.is_channel for d in padded for a in feature.dims[d]):
        raise CHANNELS_PADDED.of(equation)
    number = {d: feature.dims[d][0].number for d in padded}
    factors, picks = [1] * len(feature.sizes), {number[d]: ranges[d] for d in padded}
    for d in padded:
        factors[number[d]] += config[d][2]
    spread = Spread(feature.sizes, tuple(factors))
    feature = replace(feature, segments=mapped(reader, equation, feature, spread, "pad", out))
    pick = Select(spread.shape, tuple(picks.get(k, (1, 0, n)) for k, n in enumerate(spread.shape)))
    reader.values[out] = replace(feature, segments=mapped(reader, equation, feature, pick, "pad", out), base=out)


def _select(reader: Reader, equation: Equation, out: int, ranges: Sequence[Range]) -> None:
    var = equation.inputs[0]
    shape = reader.shape(var)
    touched = [d for d, (n, r) in enumerate(zip(shape, ranges, strict=True)) if r != (1, 0, n)]
    if isinstance(reader.values[var], Param):
        _slice_param(reader, equation, out, touched, ranges)
        return
    feature = with_whole_axes(reader, equation, var, touched)
    along = [d for d in touched if any(a.is_channel for a in feature.dims[d])]
    for d in along:
        (atom,) = feature.dims[d]
        feature = _cut_channels(reader, equation, feature, atom.number, ranges[d], out)
    steps = [(1, 0, n) for n in feature.sizes]
    dims = list(feature.dims)
    for d in touched:
        if d in along:
            continue
        steps[feature.dims[d][0].number] = ranges[d]
    segments = mapped(reader, equation, feature, Select(feature.sizes, tuple(steps)), "select", out)
    reader.values[out] = Feature(tuple(dims), feature.channels, segments, out)


def _cut_channels(reader: Reader, equation: Equation, feature: Feature, atom: int, cut: Range, out: int) -> Feature:
    """A range of an atom of channels, the first that is longer than 1: so it is a range of channels too."""
    step, first, count = cut
    outer, inner = feature.channels[:atom], math.prod(feature.channels[atom + 1 :])
    if step != 1 or first < 0 or math.prod(outer) != 1 or first + count > feature.channels[atom]:
        raise CHANNELS_IN_IRREGULAR_STEPS.of(equation)
    channels = (*outer, count, *feature.channels[atom + 1 :])
    first, count = first * inner, count * inner
    pieces, position = [], 0
    for s in feature.segments:
        low, high = max(first, position), min(first + count, position + s.width)
        if low < high:
            if not s.node.uniform:
                raise PART_OF_UNLIKE_CHANNELS.of(equation)
            pieces.append(Segment(s.node, s.start + low - position, high - low))
        position += s.width
    return Feature(feature.dims, channels, merge_segments(pieces), out)


def _slice_param(reader: Reader, equation: Equation, out: int, touched: Sequence[int], ranges: Sequence[Range]) -> None:
    param = reader.whole_param(equation, equation.inputs[0])
    slices, factors = list(param.key.slices), list(param.factors)
    for d in touched:
        step, first, count = ranges[d]
        if step != 1 or first < 0 or len(factors[d]) != 1 or not isinstance(factors[d][0][0], int):
            raise PARAMETER_SLICED_IRREGULARLY.of(equation)
        axis = factors[d][0][0]
        before = next((a for k, a, _ in slices if k == axis), 0)
        slices = [(k, a, b) for k, a, b in slices if k != axis]
        slices.append((axis, before + first, before + first + count))
        factors[d] = ((axis, count),) if count > 1 else ()
    key = type(param.key)(param.key.leaf, tuple(sorted(slices)))
    reader.values[out] = replace(param, key=key, factors=tuple(factors))


@READS.register(lax_p.reduce_sum_p)
def read_sum(reader: Reader, equation: Equation) -> None:
    """Sums over positions; those over channels are no longer random."""
    var, (out,) = equation.inputs[0], equation.outputs
    reduced, value = equation.params["axes"], reader.values[var]
    if isinstance(value, Feature) and any(a.is_channel and value.size(a) > 1 for d in reduced for a in value.dims[d]):
        read_channel_sum(reader, equation, var)
        return
    feature = _feature(reader, equation, var)
    summed = [a for d in reduced for a in feature.dims[d] if feature.size(a) > 1]
    numbers = tuple(sorted(a.number for a in summed))
    kept = [k for k in range(len(feature.sizes)) if k not in numbers]
    segments = mapped(reader, equation, feature, Total(feature.sizes, numbers), "sum over positions", out)
    dims = tuple(
        tuple(a if a.is_channel else Atom(False, kept.index(a.number)) for a in dim if a.is_channel or a.number in kept)
        for d, dim in enumerate(feature.dims)
        if d not in reduced
    )
    reader.values[out] = Feature(dims, feature.channels, segments, out)


@READS.register(lax_p.reduce_window_sum_p)
def read_pool(reader: Reader, equation: Equation) -> None:
    """Average and sum pooling."""
    feature, windows = windows_of(reader, equation)
    (out,) = equation.outputs
    segments = mapped(reader, equation, feature, Pool(feature.sizes, windows), "pool", out)
    reader.values[out] = Feature(feature.dims, feature.channels, segments, out)


def windows_of(reader: Reader, equation: Equation) -> tuple[Feature, tuple[Window, ...]]:
    """What is pooled, and the windows on its axes of positions."""
    var, params = equation.inputs[0], equation.params
    windows = [
        Window(size, stride, dilation, low, high)
        for size, stride, dilation, (low, high) in zip(
            params["window_dimensions"],
            params["window_strides"],
            params["window_dilation"],
            params["padding"],
            strict=True,
        )
    ]
    if any(b != 1 for b in params["base_dilation"]):
        raise POOLING_WITH_DILATED_BASE.of(equation)
    touched = [d for d, w in enumerate(windows) if not w.is_identity]
    feature = with_whole_axes(reader, equation, var, touched)
    per_axis = [Window() for _ in feature.sizes]
    for d in touched:
        if feature.dims[d][0].is_channel:
            raise CHANNELS_POOLED.of(equation)
        per_axis[feature.dims[d][0].number] = windows[d]
    return feature, tuple(per_axis)


@READS.register(lax_p.concatenate_p)
def read_concatenate(reader: Reader, equation: Equation) -> None:
    """Concatenation of channels (segments side by side) or of positions (a sum of padded parts)."""
    axis = equation.params["dimension"]
    if not any(_is_feature(reader, v) for v in equation.inputs):
        raise PARAMETERS_CONCATENATED.of(equation)
    features = {v: with_whole_axes(reader, equation, v, [axis]) for v in equation.inputs if _is_feature(reader, v)}
    along_channels = any(a.is_channel for f in features.values() for a in f.dims[axis])
    if along_channels or not any(f.channels for f in features.values()):
        concatenate_channels(reader, equation, axis)
        return
    for var in equation.inputs:
        if var not in features:
            features[var] = place_in(reader, equation, var, axis, [v for v in features if _is_feature(reader, v)])
    parts = [(features[v], reader.shape(v)[axis]) for v in equation.inputs]
    _concatenate_positions(reader, equation, parts, axis)


@READS.register(stack_p)
def read_stack(reader: Reader, equation: Equation) -> None:
    """Arrays side by side along a new axis of positions."""
    axis = equation.params["axis"]
    if not all(_is_feature(reader, v) for v in equation.inputs):
        raise STACKED_WITH_OTHERS.of(equation)
    parts = []
    for var in equation.inputs:
        feature = in_dim_order(reader, reader.settled(var), var)
        dims = (*feature.dims[:axis], (), *feature.dims[axis:])
        feature = Feature(dims, feature.channels, feature.segments, var)
        parts.append((with_unit_axes(reader, feature, [axis], var), 1))
    _concatenate_positions(reader, equation, parts, axis)


def _is_feature(reader: Reader, var: int) -> bool:
    return isinstance(reader.values[var], Feature)


def _concatenate_positions(reader: Reader, equation: Equation, parts: Sequence[tuple[Feature, int]], axis: int) -> None:
    """The sum of (feature, its size along the axis), each padded to its place."""
    (out,) = equation.outputs
    total, start, padded = reader.shape(out)[axis], 0, []
    for feature, size in parts:
        ranges = [(1, 0, n) for n in feature.sizes]
        ranges[feature.dims[axis][0].number] = (1, -start, total)
        # Each part is a variable of its own, so that the sum can be read like any other.
        part = reader.variable_like(out, equation)
        segments = mapped(reader, equation, feature, Select(feature.sizes, tuple(ranges)), "concatenate", part)
        reader.values[part] = Feature(feature.dims, feature.channels, segments, part)
        padded.append(part)
        start += size
    combine(reader, equation, [(1.0, part) for part in padded])


def _feature(reader: Reader, equation: Equation, var: int) -> Feature:
    if isinstance(reader.values[var], Param):
        raise PARAMETER_THROUGH_OPERATION.of(equation)
    return reader.settled(var)


def with_whole_axes(reader: Reader, equation: Equation, var: int, touched: Sequence[int]) -> Feature:
    """The settled feature with one atom on each of the touched array axes."""
    return whole_axes(reader, equation, _feature(reader, equation, var), touched, var)


def whole_axes(reader: Reader, equation: Equation, feature: Feature, touched: Sequence[int], var: int) -> Feature:
    """The feature with one atom on each of the touched axes of the array `var`."""
    if all(len([a for a in feature.dims[d] if feature.size(a) > 1]) <= 1 for d in touched):
        return with_unit_axes(reader, in_dim_order(reader, feature, var), touched, var)
    if any(a.is_channel for d in touched for a in feature.dims[d]):
        raise MIXED_AXIS_CUT.of(equation)
    feature = in_dim_order(reader, feature, var)
    sizes, dims, count = [], [], 0
    for d, dim in enumerate(feature.dims):
        index = [feature.size(a) for a in dim if not a.is_channel]
        if d in touched and len(index) > 1:
            index = [reader.shape(var)[d]]
        sizes.extend(index)
        channels = tuple(a for a in dim if a.is_channel)
        dims.append((*(Atom(False, count + k) for k in range(len(index))), *channels))
        count += len(index)
    merged = split_index_axes(reader, feature, tuple(sizes), var)
    return with_unit_axes(reader, Feature(tuple(dims), merged.channels, merged.segments, var), touched, var)


def mapped(
    reader: Reader, equation: Equation, feature: Feature, mapping: IndexMap, rule: str, out: int
) -> tuple[Segment, ...]:
    """The segments of a feature after a linear map of its positions."""
    if _is_identity(mapping):
        return feature.segments
    return reader.replace_nodes(
        feature, lambda node: index_linear(reader, node, mapping, mapping.shape, equation.where, rule), out
    )


def _is_identity(mapping: IndexMap) -> bool:
    return isinstance(mapping, Select) and all(
        r == (1, 0, n) for r, n in zip(mapping.ranges, mapping.sizes, strict=True)
    )
