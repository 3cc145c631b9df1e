"""Linear combinations of features, inputs and parameters: residual connections, biases, scalings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from infnet._jax import lax_primitives as lax_p
from infnet.atoms import common_factors
from infnet.errors.features import (
    ARRAY_ON_MIXED_AXIS,
    CHANNEL_SPREAD_OVER_OTHERS,
    PART_OF_UNLIKE_CHANNELS,
    POSITIONS_MEET_CHANNELS,
    SCALE_OF_UNLIKE_CHANNELS,
    SUM_OVER_CHANNELS,
)
from infnet.errors.parameters import PARAMETER_SHARED_BY_CHANNELS, PARAMETER_TIMES_INPUT_ADDED
from infnet.nodes import Field, KnownNode, Node, Param, ParamKey, ParamNode, Term
from infnet.program import Atom, Feature, Known, ScaledParam, Segment
from infnet.reader import Reader
from infnet.rules.rearrange import in_dim_order, split_index_axes, with_unit_axes
from infnet.trace import Equation

Template = tuple[tuple[tuple[bool, int], ...], ...]  # per array axis, (is_channel, size) of each of its factors


def scale(reader: Reader, equation: Equation) -> None:
    """A feature times (or divided by) an array of known values."""
    feature = next(v for v in equation.inputs if isinstance(reader.values[v], Feature))
    known = next(v for v in equation.inputs if v != feature)
    scaled(reader, equation, feature, known, 1 if equation.primitive is lax_p.mul_p else -1)


def scaled(reader: Reader, equation: Equation, feature: int, known: int, power: int = 1) -> None:
    """Read the output of `equation` as a feature times a Known variable to this power."""
    (out,), value = equation.outputs, reader.values[known]
    if isinstance(value, Known) and value.excess and not value.squares:
        raise SUM_OVER_CHANNELS.of(equation)
    template = common_template(reader, equation, [feature])
    axes, segments = aligned(reader, equation, feature, template)
    pieces = []
    for piece, position in zip(segments, starts(segments), strict=True):
        coefficient = _field(reader, equation, known, template, (position, position + piece.width), power)
        if coefficient.varies_along_channels and not piece.node.uniform:
            raise SCALE_OF_UNLIKE_CHANNELS.of(equation)
        term = Term(coefficient, piece.node, piece.start, axes)
        node = reader.sum([term], index_sizes(template), equation.where)
        pieces.append(Segment(node, 0, piece.width))
    reader.values[out] = with_template(template, pieces, out)


def combine(reader: Reader, equation: Equation, operands: Sequence[tuple[float, int]]) -> None:
    """Read the output of `equation` as the sum of coefficient * operand: Features, Knowns and Params."""
    (out,) = equation.outputs
    features = [v for _, v in operands if isinstance(reader.values[v], Feature)]
    template = common_template(reader, equation, features)
    placed = {v: aligned(reader, equation, v, template) for v in features}
    pieces = []
    for start, stop in cuts([segments for _, segments in placed.values()]):
        terms = []
        for coefficient, var in operands:
            if var in placed:
                axes, segments = placed[var]
                segment, offset = segment_at(segments, start)
                if not segment.node.uniform and (offset, segment.width) != (0, stop - start):
                    raise PART_OF_UNLIKE_CHANNELS.of(equation)
                terms.append(Term(coefficient, segment.node, segment.start + offset, axes))
            elif isinstance(reader.values[var], Known):
                node = known_node(reader, equation, var, template, (start, stop))
                terms.append(Term(coefficient, node, 0, tuple(range(len(node.sizes)))))
            elif isinstance(reader.values[var], ScaledParam):
                raise PARAMETER_TIMES_INPUT_ADDED.of(equation)
            else:
                node, axes = _param_node(reader, equation, var, template, (start, stop))
                terms.append(Term(coefficient, node, 0, axes))
        node = reader.sum(terms, index_sizes(template), equation.where)
        pieces.append(Segment(node, 0, stop - start))
    reader.values[out] = with_template(template, pieces, out)


def concatenate_channels(reader: Reader, equation: Equation, axis: int) -> None:
    """Features and inputs side by side along their one channel axis."""
    (out,) = equation.outputs
    features = [v for v in equation.inputs if isinstance(reader.values[v], Feature)]
    template = common_template(reader, equation, features, concatenated=axis)
    pieces = []
    for var in equation.inputs:
        own = list(template)
        width = reader.shape(var)[axis]
        own[axis] = ((True, width),) if width > 1 else ()
        if var in features:
            axes, segments = aligned(reader, equation, var, tuple(own))
            for s in segments:
                node = reader.sum([Term(1.0, s.node, 0, axes)], index_sizes(template), equation.where)
                pieces.append(Segment(node, s.start, s.width))
        elif isinstance(reader.values[var], Param):
            pieces.extend(with_axes(reader, equation, var, tuple(own)).segments)
        else:
            node = known_node(reader, equation, var, tuple(own), (0, width), channel_dims=[axis])
            pieces.append(Segment(node, 0, width))
    reader.values[out] = with_template(template, pieces, out)


def with_axes(reader: Reader, equation: Equation, var: int, template: Template) -> Feature:
    """A Known or a Param as a feature whose axes are those of the template."""
    width = math.prod(n for factors in template for is_channel, n in factors if is_channel)
    if isinstance(reader.values[var], Known):
        node = known_node(reader, equation, var, template, (0, width))
        axes = tuple(range(len(node.sizes)))
    else:
        node, axes = _param_node(reader, equation, var, template, (0, width))
    node = reader.sum([Term(1.0, node, 0, axes)], index_sizes(template), equation.where)
    return with_template(template, [Segment(node, 0, width)], var)


def place_in(reader: Reader, equation: Equation, var: int, axis: int, features: Sequence[int]) -> Feature:
    """A Known or a Param as a feature with the axes of `features`, except that `axis` holds its own positions."""
    template, size = list(common_template(reader, equation, features, concatenated=axis)), reader.shape(var)[axis]
    template[axis] = ((False, size),) if size > 1 else ()
    return with_unit_axes(reader, with_axes(reader, equation, var, tuple(template)), [axis], var)


def common_template(
    reader: Reader, equation: Equation, features: Sequence[int], concatenated: int | None = None
) -> Template:
    """The factors of each axis of the result: the common refinement of the features' own."""
    settled = [reader.settled(v) for v in features]
    rank = len(reader.shape(equation.outputs[0]))
    template: list[tuple[tuple[bool, int], ...]] = []
    for d in range(rank):
        if d == concatenated:
            template.append(((True, reader.shape(equation.outputs[0])[d]),))
            continue
        own = [[(a.is_channel, f.size(a)) for a in f.dims[d] if f.size(a) > 1] for f in settled if len(f.dims) > d]
        own = [factors for factors in own if factors]
        merged = own[0] if own else []
        for factors in own[1:]:
            merged = _refine(reader, equation, merged, factors)
        size = reader.shape(equation.outputs[0])[d]
        template.append(tuple(merged) if merged else ((False, size),) if size > 1 else ())
    return tuple(template)


def _refine(reader: Reader, equation: Equation, one: list, two: list) -> list:
    if one == two:
        return one
    kinds = {k for k, _ in (*one, *two)}
    sizes = common_factors([n for _, n in one], [n for _, n in two])
    if len(kinds) == 1 and sizes is not None:
        return [(kind, n) for kind in kinds for n in sizes]
    raise POSITIONS_MEET_CHANNELS.of(equation)


def aligned(
    reader: Reader, equation: Equation, var: int, template: Template
) -> tuple[tuple[int, ...], tuple[Segment, ...]]:
    """The segments of a feature with index axes as in the template, and which of its axes they are."""
    feature = in_dim_order(reader, reader.settled(var), var)
    width = math.prod(n for factors in template for is_channel, n in factors if is_channel)
    if sum(s.width for s in feature.segments) != width:
        raise CHANNEL_SPREAD_OVER_OTHERS.of(equation, width=width)
    present = [d for d in range(len(template)) if any(feature.size(a) > 1 for a in feature.dims[d])]
    wanted = [n for d in present for is_channel, n in template[d] if not is_channel]
    feature = split_index_axes(reader, feature, tuple(wanted), var)
    axes, number = [], 0
    for d, factors in enumerate(template):
        for is_channel, _ in factors:
            if is_channel:
                continue
            if d in present:
                axes.append(number)
            number += 1
    return tuple(axes), feature.segments


def index_sizes(template: Template) -> tuple[int, ...]:
    """The sizes of the index axes of a template."""
    return tuple(n for factors in template for is_channel, n in factors if not is_channel)


def with_template(template: Template, pieces: Sequence[Segment], out: int) -> Feature:
    """The feature `out` with the axes of a template."""
    dims, counts, channels = [], [0, 0], []
    for factors in template:
        atoms = []
        for is_channel, size in factors:
            atoms.append(Atom(is_channel, counts[is_channel]))
            counts[is_channel] += 1
            if is_channel:
                channels.append(size)
        dims.append(tuple(atoms))
    return Feature(tuple(dims), tuple(channels), merge_segments(pieces), out)


def merge_segments(pieces: Sequence[Segment]) -> tuple[Segment, ...]:
    """Join neighbouring ranges of one node."""
    merged: list[Segment] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and last.node is piece.node and last.start + last.width == piece.start:
            merged[-1] = Segment(last.node, last.start, last.width + piece.width)
        else:
            merged.append(piece)
    return tuple(merged)


def starts(segments: Sequence[Segment]) -> list[int]:
    """The first channel of each segment."""
    return [sum(s.width for s in segments[:k]) for k in range(len(segments))]


def cuts(lists: Sequence[Sequence[Segment]]) -> list[tuple[int, int]]:
    """The common refinement of several cuts of the same channels."""
    bounds = sorted({0, *(sum(s.width for s in segments[: k + 1]) for segments in lists for k in range(len(segments)))})
    return list(itertools.pairwise(bounds))


def segment_at(segments: Sequence[Segment], channel: int) -> tuple[Segment, int]:
    """The segment that holds a channel, and which of its channels that is."""
    position = 0
    for segment in segments:
        if channel < position + segment.width:
            return segment, channel - position
        position += segment.width
    raise AssertionError("all operands have the same number of channels")


def _channel_dims(template: Template) -> list[int]:
    return [d for d, factors in enumerate(template) if any(is_channel for is_channel, _ in factors)]


def _field(
    reader: Reader,
    equation: Equation,
    var: int,
    template: Template,
    channels: tuple[int, int],
    power: int = 1,
    channel_dims: Sequence[int] | None = None,
) -> Field:
    channel_dims = _channel_dims(template) if channel_dims is None else channel_dims
    dims = [[n for is_channel, n in factors if not is_channel] for factors in template]
    known = reader.values[var]
    assert isinstance(known, Known)
    if any(is_channel != factors[0][0] for factors in template for is_channel, _ in factors) and known.varies:
        raise ARRAY_ON_MIXED_AXIS.of(equation)
    return reader.field(var, dims, channel_dims, channels, power)


def known_node(
    reader: Reader,
    equation: Equation,
    var: int,
    template: Template,
    channels: tuple[int, int],
    channel_dims: Sequence[int] | None = None,
) -> Node:
    """A Known array as a summand of a feature."""
    value = reader.values[var]
    if isinstance(value, Known) and value.excess:
        raise SUM_OVER_CHANNELS.of(equation)
    field = _field(reader, equation, var, template, channels, channel_dims=channel_dims)
    return reader.new(
        KnownNode,
        sizes=index_sizes(template),
        where=equation.where,
        leaves=frozenset(),
        gaussian=True,
        zero_mean=False,
        uniform=not field.varies_along_channels,
        field=field,
    )


def _param_node(
    reader: Reader, equation: Equation, var: int, template: Template, channels: tuple[int, int]
) -> tuple[Node, tuple[int, ...]]:
    """A parameter that is added, and which index axes of the sum it has."""
    param = reader.param(var)
    axes, sizes, number, width = [], [], 0, 1
    for factors, own in zip(template, param.factors, strict=True):
        present = math.prod(n for _, n in own) > 1
        for is_channel, n in factors:
            if not is_channel:
                if present:
                    axes.append(number)
                    sizes.append(n)
                number += 1
            elif present:
                width *= n
    total = math.prod(n for factors in template for is_channel, n in factors if is_channel)
    if width != total:
        raise PARAMETER_SHARED_BY_CHANNELS.of(equation)
    key = param.key
    if channels != (0, total):
        key = ParamKey(key.leaf, (*key.slices, (-1, *channels)))
    reader.use_param(equation, key, ("added", param.factors))
    reader.check_uniform(equation, param, ())
    node = reader.new(
        ParamNode,
        sizes=tuple(sizes),
        where=equation.where,
        leaves=frozenset({(key, 0)}),
        gaussian=True,
        zero_mean=param.key.leaf not in reader.priors.nonzero_mean and not param.offset,
        param=replace(param, key=key),
    )
    return node, tuple(axes)
