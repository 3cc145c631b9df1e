"""Constant matrices applied to an axis of positions: cumulative sums, products with constants, constant indices."""

from __future__ import annotations

import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import CHANNELS_MIXED_BY_CONSTANTS, COMPLEX_MATRIX
from infnet.index_maps import Matrix, Total
from infnet.program import Atom, Feature
from infnet.reader import READS, Reader
from infnet.rules.index_linear import mapped, with_whole_axes
from infnet.rules.unfold import unfold
from infnet.trace import Equation

Dims = tuple[tuple[Atom, ...], ...]


@READS.register(lax_p.cumsum_p)
def read_cumulative_sum(reader: Reader, equation: Equation) -> None:
    """Cumulative sums over positions."""
    axis = equation.params["axis"]
    ones = np.tri(reader.shape(equation.inputs[0])[axis])
    feature = times_matrix(reader, equation, equation.inputs[0], axis, ones.T if equation.params["reverse"] else ones)
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
        raise COMPLEX_MATRIX.of(equation)
    free = [k for k in range(matrix.ndim) if k not in m_dims]
    rows = np.moveaxis(matrix, m_dims[0], -1).reshape(-1, matrix.shape[m_dims[0]])
    feature = times_matrix(reader, equation, equation.inputs[which], x_dims[0], rows)
    kept = tuple(dim for d, dim in enumerate(feature.dims) if d != x_dims[0])
    new = tuple(feature.dims[x_dims[0]] if matrix.shape[k] > 1 else () for k in free)
    set_rows(reader, equation, feature, (kept + new, new + kept)[which], x_dims[0] if len(rows) == 1 else None)


def times_matrix(reader: Reader, equation: Equation, var: int, axis: int, matrix: np.ndarray) -> Feature:
    """The feature with a matrix `[rows, positions]` applied to an axis."""
    feature = with_whole_axes(reader, equation, var, [axis])
    (out,) = equation.outputs
    if feature.dims[axis][0].is_channel:
        feature = _channels_as_positions(reader, equation, feature, axis)
    (atom,) = feature.dims[axis]
    segments = mapped(reader, equation, feature, Matrix.of(feature.sizes, atom.number, matrix), "matrix", out)
    return Feature(feature.dims, feature.channels, segments, out)


def _channels_as_positions(reader: Reader, equation: Equation, feature: Feature, axis: int) -> Feature:
    """An axis of channels as positions, with all others but the last: Dense, reshape to (h, w, c), image resize."""
    *positions, last = [Atom(True, k) for k, n in enumerate(feature.channels) if n > 1]
    if feature.dims[axis] == (last,):
        raise CHANNELS_MIXED_BY_CONSTANTS.of(equation)
    return unfold(reader, equation, feature, positions, equation.outputs[0])


def set_rows(reader: Reader, equation: Equation, feature: Feature, dims: Dims, dropped: int | None) -> None:
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
