"""Constant matrices applied to an axis of positions: cumulative sums, products with constants, constant indices."""

from __future__ import annotations

import math

import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors import MONTE_CARLO
from infnet.index_maps import Matrix, Total
from infnet.program import Atom, Feature, Known, Param
from infnet.reader import READS, Reader
from infnet.rules.edges import taken
from infnet.rules.index_linear import mapped, with_whole_axes
from infnet.rules.lookup import read_lookup
from infnet.rules.masks import at_position
from infnet.trace import Equation

Dims = tuple[tuple[Atom, ...], ...]


@READS.register(lax_p.cumsum_p)
def read_cumulative_sum(reader: Reader, equation: Equation) -> None:
    """Cumulative sums over positions."""
    axis = equation.params["axis"]
    ones = np.tri(reader.shape(equation.inputs[0])[axis])
    feature = _times(reader, equation, equation.inputs[0], axis, ones.T if equation.params["reverse"] else ones)
    reader.values[equation.outputs[0]] = feature


def is_matrix(reader: Reader, equation: Equation, constant: int) -> bool:
    """Whether a product with constants contracts one axis, and makes at most one new one."""
    contracted, batch = equation.params["dimension_numbers"]
    own = contracted[equation.inputs.index(constant)]
    long = [n for d, n in enumerate(reader.shape(constant)) if d not in own and n > 1]
    return len(own) == 1 and not any(batch) and len(long) <= 1


def read_matrix(reader: Reader, equation: Equation, constant: int) -> None:
    """A feature times a matrix of constants."""
    contracted, _ = equation.params["dimension_numbers"]
    which = 1 - equation.inputs.index(constant)
    matrix = reader.constant_array(constant)
    assert matrix is not None
    x_dims, m_dims = contracted[which], contracted[1 - which]
    if np.iscomplexobj(matrix):
        what, why = "a feature is multiplied by complex constants", "kernels are those of real features"
        reader.refuse(equation, what, why)
    free = [k for k in range(matrix.ndim) if k not in m_dims]
    rows = np.moveaxis(matrix, m_dims[0], -1).reshape(-1, matrix.shape[m_dims[0]])
    feature = _times(reader, equation, equation.inputs[which], x_dims[0], rows)
    kept = tuple(dim for d, dim in enumerate(feature.dims) if d != x_dims[0])
    new = tuple(feature.dims[x_dims[0]] if matrix.shape[k] > 1 else () for k in free)
    _set(reader, equation, feature, (kept + new, new + kept)[which], x_dims[0] if len(rows) == 1 else None)


@READS.register(lax_p.gather_p)
def read_gather(reader: Reader, equation: Equation) -> None:
    """Rows of a parameter, or positions of a feature: at constant indices along one axis, or one for each example."""
    (x, indices), numbers, sizes = equation.inputs, equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if isinstance(reader.values[x], Param):
        read_lookup(reader, equation)
        return
    if not isinstance(reader.values[x], Feature) or not isinstance(reader.values[indices], Known):
        reader.refuse_operation(equation)
    shape, index_shape = reader.shape(x), reader.shape(indices)[:-1]
    cut = [d for d, n in enumerate(shape) if sizes[d] < n] or [numbers.start_index_map[0]]
    if (
        len(cut) > 1
        or sizes[cut[0]] != 1
        or cut[0] not in numbers.start_index_map
        or sum(n > 1 for n in index_shape) > 1
    ):
        reader.refuse(equation, "indexing of several axes at once", "infnet follows indices into one axis only")
    axis = cut[0]
    component, wanted = numbers.start_index_map.index(axis), reader.constant_array(indices)
    if wanted is not None:
        flat = wanted.astype(np.int64)[..., component].reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < shape[axis]:
            why = f"the axis has {shape[axis]} positions, and the indices are from {flat.min()} to {flat.max()}"
            reader.refuse(equation, "indices out of bounds", why, "use indices that exist")
        feature = _times(reader, equation, x, axis, np.eye(shape[axis])[flat])
    elif math.prod(index_shape) == 1:
        feature = at_position(reader, equation, axis, component)
    else:
        feature = taken(reader, equation, axis, component)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter(() if d == axis else dim for d, dim in enumerate(feature.dims) if d not in gone)
    new = iter(feature.dims[axis] if n > 1 else () for n in index_shape)
    count = len(reader.shape(equation.outputs[0]))
    dims = tuple(next(kept) if d in numbers.offset_dims else next(new) for d in range(count))
    _set(reader, equation, feature, dims, axis if math.prod(index_shape) == 1 else None)


def _times(reader: Reader, equation: Equation, var: int, axis: int, matrix: np.ndarray) -> Feature:
    """The feature with a matrix `[rows, positions]` applied to an axis."""
    feature = with_whole_axes(reader, equation, var, [axis])
    (atom,) = feature.dims[axis]
    if atom.is_channel:
        reader.refuse(
            equation,
            "channels are mixed by constants, or taken one by one",
            "the channels become infinitely many, all with the same law",
            f"mix channels with `nn.Dense`; or {MONTE_CARLO}",
        )
    (out,) = equation.outputs
    segments = mapped(reader, equation, feature, Matrix.of(feature.sizes, atom.number, matrix), "matrix", out)
    return Feature(feature.dims, feature.channels, segments, out)


def _set(reader: Reader, equation: Equation, feature: Feature, dims: Dims, dropped: int | None) -> None:
    """Set the result, its axes being made of `dims`, without the one position that is left of axis `dropped`."""
    (out,) = equation.outputs
    segments = feature.segments
    if dropped is not None:
        number = feature.dims[dropped][0].number
        segments = mapped(reader, equation, feature, Total(feature.sizes, (number,)), "matrix", out)
        dims = tuple(
            tuple(a if a.is_channel or a.number < number else Atom(False, a.number - 1) for a in dim) for dim in dims
        )
    reader.values[out] = Feature(dims, feature.channels, segments, out)
