"""Reshape, transpose, squeeze, broadcast: they regroup the atoms of an array and leave its fields alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infnet._jax import lax_primitives as lax_p
from infnet._jax import tile_p
from infnet.atoms import regroup
from infnet.errors import Where
from infnet.errors.features import AXES_MIXED_BY_RESHAPE, CHANNELS_PERMUTED
from infnet.errors.parameters import PARAMETER_REPEATED
from infnet.index_maps import Rearrange
from infnet.nodes import Node, Param, Term
from infnet.program import Atom, Feature, Segment
from infnet.reader import READS, Reader
from infnet.rules.maps import index_linear
from infnet.trace import Equation


@READS.register(lax_p.transpose_p, lax_p.squeeze_p)
def read_axes(reader: Reader, equation: Equation) -> None:
    """Reorder axes, or drop axes of size 1."""
    value = reader.values[equation.inputs[0]]
    if equation.primitive is lax_p.transpose_p:
        order = tuple(equation.params["permutation"])
    else:
        order = tuple(d for d in range(len(reader.shape(equation.inputs[0]))) if d not in equation.params["dimensions"])
    if isinstance(value, Param):
        factors = tuple(value.factors[d] for d in order)
        reader.values[equation.outputs[0]] = replace(value, factors=factors)
    else:
        assert isinstance(value, Feature)
        reader.values[equation.outputs[0]] = _redimensioned(value, tuple(value.dims[d] for d in order))


def _redimensioned(feature: Feature, dims: tuple[tuple[Atom, ...], ...]) -> Feature:
    return Feature(dims, feature.channels, feature.segments, feature.base, feature.polynomial)


@READS.register(lax_p.reshape_p)
def read_reshape(reader: Reader, equation: Equation) -> None:
    """Regroup atoms; split those that an axis boundary cuts through."""
    (var,), (out,) = equation.inputs, equation.outputs
    shape, value = reader.shape(out), reader.values[var]
    try:
        if isinstance(value, Param):
            param = reader.whole_param(equation, var)
            reader.values[out] = replace(param, factors=regroup(param.factors, shape))
        else:
            assert isinstance(value, Feature)
            reader.values[out] = _reshape(reader, value, shape, var, out)
    except ValueError as error:
        raise AXES_MIXED_BY_RESHAPE.of(equation, how=error) from error


def _reshape(reader: Reader, feature: Feature, shape: Sequence[int], var: int, out: int) -> Feature:
    try:
        grouped = regroup(_factors(feature), shape)
    except ValueError:  # positions are regrouped as a whole, if they come before all channels
        feature = _one_index_axis(reader, in_dim_order(reader, reader.settled(var), var), var)
        grouped = regroup(_factors(feature), shape)
    if all(isinstance(name, Atom) for dim in grouped for name, _ in dim):
        return _redimensioned(feature, tuple(tuple(name for name, _ in dim) for dim in grouped))
    feature = in_dim_order(reader, reader.settled(var) if feature.base != var else feature, var)
    grouped = regroup(_factors(feature), shape)
    sizes: tuple[list[int], list[int]] = ([], [])
    dims = []
    for dim in grouped:
        atoms = []
        for name, size in dim:
            kind = _root(name).is_channel
            atoms.append(Atom(kind, len(sizes[kind])))
            sizes[kind].append(size)
        dims.append(tuple(atoms))
    index_sizes, channels = map(tuple, sizes)
    if len(channels) > 1 and len(feature.segments) > 1 and var not in reader.read_apart:
        raise ValueError("cannot split concatenated channels into several axes")
    feature = split_index_axes(reader, feature, index_sizes, var)
    return Feature(tuple(dims), channels, feature.segments, out)


def _one_index_axis(reader: Reader, feature: Feature, var: int) -> Feature:
    """The feature with all its positions on one axis."""
    atoms = [a for dim in feature.dims for a in dim]
    if any(not a.is_channel for a in atoms[len(feature.sizes) :]):
        raise ValueError("an axis boundary of the result falls inside an axis of the operand")
    merged = split_index_axes(reader, feature, (math.prod(feature.sizes),), var)
    channels = tuple(a for a in atoms if a.is_channel)
    return Feature(((Atom(False, 0), *channels),), merged.channels, merged.segments, var)


def _factors(feature: Feature) -> list[list[tuple[Any, int]]]:
    return [[(a, feature.size(a)) for a in dim if feature.size(a) > 1] for dim in feature.dims]


def _root(name: Any) -> Atom:
    while not isinstance(name, Atom):
        name = name[0]
    return name


@READS.register(lax_p.broadcast_in_dim_p)
def read_broadcast(reader: Reader, equation: Equation) -> None:
    """Insert axes of size 1, or repeat a feature along new index axes."""
    (var,), (out,) = equation.inputs, equation.outputs
    shape, value = reader.shape(out), reader.values[var]
    places = {int(d): axis for axis, d in enumerate(equation.params["broadcast_dimensions"])}
    old = reader.shape(var)
    repeated = [d for d, n in enumerate(shape) if n > 1 and (d not in places or old[places[d]] == 1)]
    if isinstance(value, Param):
        factors = tuple(value.factors[places[d]] if d in places else () for d in range(len(shape)))
        reader.values[out] = replace(value, factors=factors)
        return
    assert isinstance(value, Feature)
    dims = tuple(value.dims[places[d]] if d in places else () for d in range(len(shape)))
    if not repeated:
        reader.values[out] = _redimensioned(value, dims)
        return
    _repeat(reader, equation, dims, {d: shape[d] for d in repeated})


@READS.register(tile_p)
def read_tile(reader: Reader, equation: Equation) -> None:
    """Repeat a feature along axes that it has: a new index axis, outside of what the axis is made of."""
    (var,), (out,), reps = equation.inputs, equation.outputs, equation.params["reps"]
    value = reader.values[var]
    repeated = {d: int(n) for d, n in enumerate(reps) if n > 1}
    if not repeated:
        reader.values[out] = value
    elif isinstance(value, Param):
        raise PARAMETER_REPEATED.of(equation)
    else:
        assert isinstance(value, Feature)
        _repeat(reader, equation, value.dims, repeated)


def _repeat(reader: Reader, equation: Equation, dims: Sequence[tuple[Atom, ...]], counts: Mapping[int, int]) -> None:
    """Set the result: the operand on axes made of `dims`, repeated along some axes."""
    (var,), (out,) = equation.inputs, equation.outputs
    feature = reader.settled(var)
    axes = tuple(range(len(feature.sizes)))
    sizes = (*feature.sizes, *counts.values())

    def repeated(node: Node) -> Node:
        return reader.sum([Term(1.0, node, 0, axes)], sizes, equation.where)

    new = {d: (Atom(False, len(axes) + k),) for k, d in enumerate(counts)}
    dims = tuple((*new.get(d, ()), *dim) for d, dim in enumerate(dims))
    reader.values[out] = Feature(dims, feature.channels, reader.replace_nodes(feature, repeated, var), out)


def in_dim_order(reader: Reader, feature: Feature, var: int) -> Feature:
    """The same feature with its atoms numbered in the order of the array axes; axes of size 1 are dropped."""
    order = [a for dim in feature.dims for a in dim if feature.size(a) > 1]
    index = tuple(a.number for a in order if not a.is_channel)
    channel = [a.number for a in order if a.is_channel]
    if channel != sorted(channel):
        raise CHANNELS_PERMUTED.of(reader.producer[var])
    if index == tuple(range(len(feature.sizes))) and len(channel) == len(feature.channels):
        return feature
    shape = tuple(feature.sizes[k] for k in index)
    segments = _mapped(reader, feature, Rearrange(feature.sizes, index, shape), var)
    count = [0, 0]
    dims = []
    for dim in feature.dims:
        atoms = []
        for a in dim:
            if feature.size(a) > 1:
                atoms.append(Atom(a.is_channel, count[a.is_channel]))
                count[a.is_channel] += 1
        dims.append(tuple(atoms))
    return Feature(tuple(dims), tuple(feature.channels[k] for k in channel), segments, var)


def with_unit_axes(reader: Reader, feature: Feature, axes: Sequence[int], var: int) -> Feature:
    """The same feature with an index atom of size 1 on each of these array axes that has no atom."""
    new = [d for d in axes if not feature.dims[d]]
    if not new:
        return feature
    count = len(feature.sizes)
    sizes = (*feature.sizes, *(1 for _ in new))

    def extended(node: Node) -> Node:
        return reader.sum([Term(1.0, node, 0, tuple(range(count)))], sizes, reader.producer[var].where)

    atoms = {d: (Atom(False, count + k),) for k, d in enumerate(new)}
    dims = tuple(atoms.get(d, dim) for d, dim in enumerate(feature.dims))
    return Feature(dims, feature.channels, reader.replace_nodes(feature, extended, var), var)


def split_index_axes(reader: Reader, feature: Feature, sizes: tuple[int, ...], var: int) -> Feature:
    """The same feature with its index axes cut (or merged) to `sizes`, in row-major order; `dims` is left as it was."""
    if feature.sizes == sizes:
        return feature
    assert math.prod(feature.sizes) == math.prod(sizes)
    regrouped = Rearrange(feature.sizes, tuple(range(len(feature.sizes))), sizes)
    return Feature(feature.dims, feature.channels, _mapped(reader, feature, regrouped, var), var)


def _mapped(reader: Reader, feature: Feature, mapping: Rearrange, var: int) -> tuple[Segment, ...]:
    where = reader.producer[var].where if var in reader.producer else Where()
    return reader.replace_nodes(
        feature, lambda node: index_linear(reader, node, mapping, mapping.shape, where, "reshape"), var
    )


def new_channels(sizes: Sequence[int]) -> tuple[list[tuple[Atom, ...]], tuple[int, ...]]:
    """Array axes that hold new channels, and the sizes of their atoms."""
    dims: list[tuple[Atom, ...]] = []
    channels: list[int] = []
    for size in sizes:
        dims.append((Atom(True, len(channels)),) if size > 1 else ())
        if size > 1:
            channels.append(size)
    return dims, tuple(channels)
