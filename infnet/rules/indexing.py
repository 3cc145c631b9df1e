"""Positions taken, or added to, at indices: lists of constants, or data of each example, such as edges of a graph.

With the matrix E(a)[e, i] = [i is index e of example a], what is taken is E h and what is added is E^T h: maps of
positions that differ from example to example, as in `aggregation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import INDICES_OUT_OF_BOUNDS, SEVERAL_AXES_INDEXED
from infnet.nodes import Param
from infnet.program import Atom, Feature, Known
from infnet.reader import READS, Reader
from infnet.rules.aggregation import read_aggregation
from infnet.rules.lookup import outside_value, read_lookup
from infnet.rules.masks import at_position
from infnet.rules.matrix import set_rows, times_matrix
from infnet.rules.sums import combine
from infnet.trace import Equation


@READS.register(lax_p.gather_p)
def read_gather(reader: Reader, equation: Equation) -> None:
    """Rows of a parameter, or positions of a feature: at constant indices along one axis, or one for each example."""
    (x, indices), numbers, sizes = equation.inputs, equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if isinstance(reader.values[x], Param):
        read_lookup(reader, equation)
        return
    if not isinstance(reader.values[x], Feature) or not isinstance(reader.values[indices], Known):
        raise reader.unknown_operation(equation)
    shape, index_shape = reader.shape(x), reader.shape(indices)[:-1]
    cut = [d for d, n in enumerate(shape) if sizes[d] < n] or [numbers.start_index_map[0]]
    if (
        len(cut) > 1
        or sizes[cut[0]] != 1
        or cut[0] not in numbers.start_index_map
        or sum(n > 1 for n in index_shape) > 1
    ):
        raise SEVERAL_AXES_INDEXED.of(equation)
    axis = cut[0]
    component, wanted = numbers.start_index_map.index(axis), reader.constant_array(indices)
    if wanted is not None:
        flat = wanted.astype(np.int64)[..., component].reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < shape[axis]:
            raise INDICES_OUT_OF_BOUNDS.of(equation, size=shape[axis], lowest=flat.min(), highest=flat.max())
        feature = times_matrix(reader, equation, x, axis, np.eye(shape[axis])[flat])
    elif math.prod(index_shape) == 1:
        feature = at_position(reader, equation, axis, component)
    else:
        feature = _taken(reader, equation, axis, component)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter(() if d == axis else dim for d, dim in enumerate(feature.dims) if d not in gone)
    new = iter(feature.dims[axis] if n > 1 else () for n in index_shape)
    count = len(reader.shape(equation.outputs[0]))
    dims = tuple(next(kept) if d in numbers.offset_dims else next(new) for d in range(count))
    set_rows(reader, equation, feature, dims, axis if math.prod(index_shape) == 1 else None)


def _taken(reader: Reader, equation: Equation, axis: int, component: int) -> Feature:
    """The operand of a gather with the positions on `axis` that its known indices say, in their order."""
    x, indices = equation.inputs
    matrix = _one_hot(reader, equation, x, (axis, component), outside_value(reader, equation) or 0.0)
    last, rank = len(reader.shape(matrix)) - 1, len(reader.shape(x))
    batch, x_batch = (reader.trace.batch_axis[v] for v in (indices, x))
    pairs = [] if batch is None or x_batch is None else [(batch, x_batch)]
    shared = (tuple(k for k, _ in pairs), tuple(d for _, d in pairs))
    dims, feature = _product(reader, equation, (matrix, x), (((last,), (axis,)), shared))
    found = {d: next(dims) for _, d in pairs}
    found[axis] = tuple(atom for _ in range(last - len(pairs)) for atom in next(dims))
    found.update({d: next(dims) for d in range(rank) if d not in found})
    return replace(feature, dims=tuple(found[d] for d in range(rank)))


@READS.register(lax_p.scatter_add_p)
def read_scatter_add(reader: Reader, equation: Equation) -> None:
    """A feature added to positions of an array, at Known indices into one axis: `jax.ops.segment_sum`."""
    (x, indices, updates), numbers, (out,) = equation.inputs, equation.params["dimension_numbers"], equation.outputs
    if not isinstance(reader.values[updates], Feature) or not isinstance(reader.values[indices], Known):
        raise reader.unknown_operation(equation)
    axes, window = numbers.scatter_dims_to_operand_dims, numbers.update_window_dims
    rows = [d for d in range(len(reader.shape(updates))) if d not in window]
    kept = [d for d in range(len(reader.shape(x))) if d not in (*axes, *numbers.operand_batching_dims)]
    whole = [reader.shape(x)[d] for d in kept] == [reader.shape(updates)[d] for d in window]
    batch = reader.trace.batch_axis[indices]
    with_examples = numbers.operand_batching_dims == ((reader.trace.batch_axis[x],) if batch is not None else ())
    if len(axes) != 1 or numbers.inserted_window_dims != axes or not whole or not with_examples:
        raise SEVERAL_AXES_INDEXED.of(equation)
    matrix = _one_hot(reader, equation, updates, (axes[0], 0), 0.0)
    contracted = [k for k in range(len(rows)) if k != batch]
    shared = ((batch,), (rows[batch],)) if batch is not None else ((), ())
    product = ((tuple(contracted), tuple(rows[k] for k in contracted)), shared)
    dims, feature = _product(reader, equation, (matrix, updates), product)
    order = [*numbers.operand_batching_dims, axes[0], *kept]
    found = dict(zip(order, dims, strict=True))
    part = reader.variable_like(out, equation)
    reader.values[part] = replace(feature, dims=tuple(found[d] for d in range(len(found))))
    combine(reader, equation, [(1.0, part)] if reader.constant(x) == 0.0 else [(1.0, x), (1.0, part)])


def _one_hot(reader: Reader, equation: Equation, like: int, place: tuple[int, int], outside: float) -> int:
    """The matrix of indices into (axis, at this component): their shape, then the positions of the axis."""
    (x, indices, *_), (axis, component), mode = equation.inputs, place, equation.params["mode"]
    positions, dtype = reader.shape(x)[axis], reader.trace.avals[like].dtype

    def indicator(index: jax.Array) -> jax.Array:
        index = index[..., component : component + 1]
        nearest = jnp.clip(index, 0, positions - 1)
        found = (nearest == jnp.arange(positions)).astype(dtype)
        return jnp.where(index == nearest, found, outside) if mode == GatherScatterMode.FILL_OR_DROP else found

    return reader.known(equation, indicator, [indices], reader.trace.batch_axis[indices])


def _product(
    reader: Reader, equation: Equation, factors: tuple[int, int], numbers: tuple[object, object]
) -> tuple[Iterator[tuple[Atom, ...]], Feature]:
    """A `dot_general` of a matrix and a feature: the axes of the result, and the result."""
    read_aggregation(reader, replace(equation, inputs=factors, params={"dimension_numbers": numbers}))
    feature = reader.values[equation.outputs[0]]
    assert isinstance(feature, Feature)
    return iter(feature.dims), feature
