"""The output of a model: its positions in the order of the array's axes, its channels averaged over."""

from __future__ import annotations

from infnet.errors import UnsupportedError, Where
from infnet.program import Feature, Output
from infnet.reader import Reader
from infnet.rules.rearrange import in_dim_order, split_index_axes


def read_output(reader: Reader, var: int) -> Output:
    """The feature that the model returns, with one index atom for each array axis that holds positions alone.

    Raises:
        UnsupportedError: the output is not a random function of the input.
    """
    if not isinstance(reader.values[var], Feature):
        raise UnsupportedError(
            "the output of the model is not a random function of its input",
            where=reader.producer[var].where if var in reader.producer else Where(),
            why="it depends on the input alone, or on parameters alone, so it has no infinite-width limit",
            remedy="return what comes after the first Dense or Conv layer",
        )
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
    return Output(feature.segments, tuple(averaged))
