"""The outputs of a model: their positions in the order of the array's axes, their channels averaged over."""

from __future__ import annotations

from infnet.errors import Where
from infnet.errors.programs import OUTPUT_NOT_RANDOM, OUTPUTS_OF_OTHER_WIDTHS
from infnet.program import Feature, Output, OutputPair, Piece
from infnet.reader import Reader
from infnet.rules.rearrange import in_dim_order, split_index_axes
from infnet.rules.sums import cuts, segment_at


def read_outputs(reader: Reader, cross: bool) -> tuple[OutputPair, ...]:
    """Each output with itself, or with `cross` every output with every one, in row-major order."""
    outputs = [read_output(reader, var) for var in reader.trace.outputs]
    if not cross:
        return tuple(_pair(one, one) for one in outputs)
    return tuple(_pair(one, two) for one in outputs for two in outputs)


def _pair(one: Output, two: Output) -> OutputPair:
    widths = [sum(s.width for s in output.segments) for output in (one, two)]
    if one is not two and (widths[0] != widths[1] or one.averaged or two.averaged):
        raise OUTPUTS_OF_OTHER_WIDTHS.at(two.where, one=widths[0], two=widths[1])
    pieces = []
    for start, stop in cuts([one.segments, two.segments]):
        (left, first), (right, second) = segment_at(one.segments, start), segment_at(two.segments, start)
        width = stop - start
        pieces.append(
            Piece(
                left._replace(start=left.start + first, width=width),
                right._replace(start=right.start + second, width=width),
                width / widths[0],
            )
        )
    return OutputPair(one, two, tuple(pieces))


def read_output(reader: Reader, var: int) -> Output:
    """The feature that the model returns, with one index atom for each array axis that holds positions alone.

    Raises:
        UnsupportedError: the output is not a random function of the input.
    """
    if not isinstance(reader.values[var], Feature):
        raise OUTPUT_NOT_RANDOM.at(reader.producer[var].where if var in reader.producer else Where())
    feature = in_dim_order(reader, reader.settled(var), var)
    sizes: list[int] = []
    averaged: list[int] = []
    for d, dim in enumerate(feature.dims):
        index = [feature.size(a) for a in dim if not a.is_channel]
        if len(index) < len(dim):  # positions that were flattened together with channels count as channels
            averaged.extend(range(len(sizes), len(sizes) + len(index)))
            sizes.extend(index)
        elif index:
            sizes.append(reader.shape(var)[d])
    feature = split_index_axes(reader, feature, tuple(sizes), var)
    where = reader.producer[var].where if var in reader.producer else Where()
    return Output(where, feature.segments, tuple(averaged))
