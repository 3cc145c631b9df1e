"""Positions taken or added up at indices: lists of constants, one index of each example, the edges of its graph."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

from infnet._jax import lax_primitives as lax_p
from infnet.nodes import Param
from infnet.program import Feature, Known
from infnet.reader import READS, Reader
from infnet.rules.aggregation import read_aggregation
from infnet.rules.lookup import read_lookup
from infnet.rules.masks import at_position
from infnet.rules.matrix import set_rows, times_matrix
from infnet.rules.sums import combine
from infnet.trace import Equation

FILL = GatherScatterMode.FILL_OR_DROP


@READS.register(lax_p.gather_p)
def read_gather(reader: Reader, equation: Equation) -> None:
    """Rows of a parameter, or positions of a feature along one axis, at indices that are constant or Known."""
    (x, indices), numbers, sizes = equation.inputs, equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if isinstance(reader.values[x], Param):
        read_lookup(reader, equation)
        return
    if not isinstance(reader.values[x], Feature) or not isinstance(reader.values[indices], Known):
        reader.refuse_operation(equation)
    shape, index_shape = reader.shape(x), reader.shape(indices)[:-1]
    cut = [d for d, n in enumerate(shape) if sizes[d] < n] or [numbers.start_index_map[0]]
    if len(cut) > 1 or sizes[cut[0]] != 1 or cut[0] not in numbers.start_index_map:
        reader.refuse(equation, "indexing of several axes at once", "infnet follows indices into one axis only")
    axis = cut[0]
    component, wanted = numbers.start_index_map.index(axis), reader.constant_array(indices)
    if wanted is None and math.prod(index_shape) > 1:
        _read_rows(reader, equation, axis, component)
        return
    if wanted is not None:
        if sum(n > 1 for n in index_shape) > 1:
            what, why = "an array of constant indices with several axes", "infnet follows lists of constant indices"
            reader.refuse(equation, what, why, "index with a list, and reshape the result")
        flat = wanted.astype(np.int64)[..., component].reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < shape[axis]:
            why = f"the axis has {shape[axis]} positions, and the indices are from {flat.min()} to {flat.max()}"
            reader.refuse(equation, "indices out of bounds", why, "use indices that exist")
        feature = times_matrix(reader, equation, x, axis, np.eye(shape[axis])[flat])
    else:
        feature = at_position(reader, equation, axis, component)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter(() if d == axis else dim for d, dim in enumerate(feature.dims) if d not in gone)
    new = iter(feature.dims[axis] if n > 1 else () for n in index_shape)
    count = len(reader.shape(equation.outputs[0]))
    dims = tuple(next(kept) if d in numbers.offset_dims else next(new) for d in range(count))
    set_rows(reader, equation, feature, dims, axis if math.prod(index_shape) == 1 else None)


def _read_rows(reader: Reader, equation: Equation, axis: int, component: int) -> None:
    """Several indices of each example: a matrix with a single 1 in each row."""
    (x, indices), numbers, (out,) = equation.inputs, equation.params["dimension_numbers"], equation.outputs
    mode, fill = equation.params["mode"], equation.params["fill_value"]
    size, dtype = reader.shape(x)[axis], reader.trace.avals[x].dtype

    def rows(index: jax.Array) -> jax.Array:
        index = index[..., component]
        found = (jnp.clip(index, 0, size - 1)[..., None] == jnp.arange(size)).astype(dtype)
        outside = ((index < 0) | (index >= size))[..., None]
        return jnp.where(outside, jnp.nan if fill is None else fill, found) if mode == FILL else found

    batch = _batch_axis(reader, equation, indices)
    matrix = reader.known(equation, rows, [indices], batch)
    last = len(reader.shape(indices)) - 1
    feature = _product(reader, equation, matrix, x, last, axis, batch)
    index_dims = [d for d in range(last) if d != batch]
    by_index = {batch: feature.dims[0], **dict(zip(index_dims, feature.dims[1:], strict=False))}
    untouched = [d for d in range(len(reader.shape(x))) if d not in (axis, reader.trace.batch_axis[x])]
    by_axis = dict(zip(untouched, feature.dims[1 + len(index_dims) :], strict=True))
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter(by_axis.get(d, ()) for d in range(len(reader.shape(x))) if d not in gone)
    new = iter(by_index[d] for d in range(last))
    dims = tuple(next(kept) if d in numbers.offset_dims else next(new) for d in range(len(reader.shape(out))))
    reader.values[out] = Feature(dims, feature.channels, feature.segments, out)


@READS.register(lax_p.scatter_add_p)
def read_scatter_add(reader: Reader, equation: Equation) -> None:
    """Positions of a feature added up at Known indices into one axis, as `jax.ops.segment_sum` does."""
    (x, indices, updates), numbers, (out,) = equation.inputs, equation.params["dimension_numbers"], equation.outputs
    shape, batch = reader.shape(x), reader.trace.batch_axis[updates]
    into = numbers.scatter_dims_to_operand_dims
    if (
        not isinstance(reader.values[updates], Feature)
        or not isinstance(reader.values[indices], Known)
        or len(into) != 1
        or tuple(map(int, numbers.inserted_window_dims)) != tuple(map(int, into))
        or batch is None
    ):
        reader.refuse(
            equation,
            "values are added at indices into several axes, or at random ones",
            "infnet follows sums of positions at indices into one axis, that depend on the inputs alone",
            "use `jax.vmap(jax.ops.segment_sum)` over the examples",
        )
    axis = int(into[0])
    size, dtype = shape[axis], reader.trace.avals[updates].dtype

    def columns(index: jax.Array) -> jax.Array:
        return (index[..., :1] == jnp.arange(size)).astype(dtype)

    own = _batch_axis(reader, equation, indices)
    rows = [d for d in range(len(reader.shape(updates))) if d not in numbers.update_window_dims]
    summed = [d for k, d in enumerate(rows) if k != own]
    if len(summed) != 1:
        reader.refuse(equation, "an array of indices with several axes", "infnet follows one list of each example")
    matrix = reader.known(equation, columns, [indices], own)
    feature = _product(reader, equation, matrix, updates, next(k for k in range(len(rows)) if k != own), summed[0], own)
    rest = iter(feature.dims[2:])
    dims = tuple(
        feature.dims[0] if d == reader.trace.batch_axis[out] else feature.dims[1] if d == axis else next(rest)
        for d in range(len(shape))
    )
    if reader.constant(x) == 0.0:
        reader.values[out] = Feature(dims, feature.channels, feature.segments, out)
        return
    part = reader.variable_like(out, equation)
    reader.values[part] = Feature(dims, feature.channels, feature.segments, part)
    combine(reader, equation, [(1.0, x), (1.0, part)])


def _batch_axis(reader: Reader, equation: Equation, indices: int) -> int:
    axis = reader.trace.batch_axis[indices]
    if axis is None or reader.shape(indices)[axis] != 1:
        what, why = "indices that do not have one row for each example", "infnet cannot tell the examples apart"
        reader.refuse(equation, what, why, "keep the examples on an axis of their own")
    return axis


def _product(
    reader: Reader, equation: Equation, matrix: int, x: int, contracted: int, axis: int, batch: int
) -> Feature:
    """The feature `x` times a Known matrix of each example, with axes (batch, rows ..., other axes of x)."""
    part = reader.variable_like(equation.outputs[0], equation)
    numbers = (((contracted,), (axis,)), ((batch,), (reader.trace.batch_axis[x],)))
    product = replace(equation, inputs=(matrix, x), outputs=(part,), params={"dimension_numbers": numbers})
    read_aggregation(reader, product)
    feature = reader.values[part]
    assert isinstance(feature, Feature)
    return feature
