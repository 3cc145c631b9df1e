"""Products with matrices that depend on the example: graphs given as input, attention weights that have concentrated.

A linear map of positions A(a) gives S'(a, b) = A(a) S(a, b) A(b)^T, and likewise T (Du et al. 2019, arXiv:1905.13192,
section 3, for graphs; Hron et al. 2020, arXiv:2006.10540, section 3, for attention).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from infnet.errors.features import CHANNELS_MIXED_BY_INPUTS, COMPLEX_MATRIX, MATRIX_PER_CHANNEL, SUM_OVER_CHANNELS
from infnet.nodes import Aggregation, Field, Node
from infnet.program import Atom, Feature, Known
from infnet.reader import Reader
from infnet.rules.rearrange import in_dim_order
from infnet.trace import Equation

Dims = tuple[tuple[Atom, ...], ...]


def read_aggregation(reader: Reader, equation: Equation) -> None:
    """`dot_general` of a Known array and a feature, contracted over positions."""
    which = 0 if isinstance(reader.values[equation.inputs[0]], Feature) else 1
    x, matrix = equation.inputs[which], equation.inputs[1 - which]
    known = reader.values[matrix]
    assert isinstance(known, Known)
    if known.excess:
        raise SUM_OVER_CHANNELS.of(equation)
    if jnp.issubdtype(reader.trace.avals[matrix].dtype, jnp.complexfloating):
        raise COMPLEX_MATRIX.of(equation)
    contracted, batch = equation.params["dimension_numbers"]
    pairs = _Pairs(
        dict(zip(contracted[1 - which], contracted[which], strict=True)),
        dict(zip(batch[1 - which], batch[which], strict=True)),
    )
    feature = in_dim_order(reader, reader.settled(x), x)
    _check_axes(reader, equation, feature, known, pairs)
    letters = iter(string.ascii_lowercase)
    atoms = {Atom(False, k): next(letters) for k in range(len(feature.sizes))}
    shape, names, sizes = reader.shape(matrix), {}, {}
    for axis, size in enumerate(shape):
        partner = pairs.partner(axis)
        own = [a for a in feature.dims[partner] if not a.is_channel] if partner is not None else []
        if partner is None and size > 1:
            names[axis], sizes[axis] = [next(letters)], [size]
        else:
            names[axis], sizes[axis] = [atoms[a] for a in own], [feature.size(a) for a in own]
    channel_axes = [axis for axis in pairs.batch if _has_channels(feature, pairs.batch[axis])]
    field = reader.field(matrix, [sizes[axis] for axis in range(len(shape))], channel_axes, (0, 1))
    rows = [names[axis] for axis in range(len(shape)) if pairs.partner(axis) is None]
    kept = [feature.dims[d] for d in range(len(feature.dims)) if d not in pairs.touched]
    shared = [feature.dims[d] for d in batch[which]]
    result = _Result(atoms, field, "".join(n for axis in field.index_axes for n in names[axis]))
    dims = [*shared, *kept, *rows] if which == 0 else [*shared, *rows, *kept]
    _set(reader, equation, feature, result, dims)


@dataclass(frozen=True)
class _Pairs:
    """The axes of the matrix and the axes of the feature that they are contracted with, or run along with."""

    contracted: dict[int, int]
    batch: dict[int, int]

    def partner(self, axis: int) -> int | None:
        return self.contracted.get(axis, self.batch.get(axis))

    @property
    def touched(self) -> set[int]:
        return {*self.contracted.values(), *self.batch.values()}


@dataclass(frozen=True)
class _Result:
    """The letters of the feature's positions, the matrix as a field, and the letters of its axes."""

    atoms: dict[Atom, str]
    field: Field
    matrix: str


def _has_channels(feature: Feature, d: int) -> bool:
    return any(a.is_channel and feature.size(a) > 1 for a in feature.dims[d])


def _check_axes(reader: Reader, equation: Equation, feature: Feature, known: Known, pairs: _Pairs) -> None:
    if any(_has_channels(feature, d) for d in pairs.contracted.values()):
        raise CHANNELS_MIXED_BY_INPUTS.of(equation)
    for axis, d in pairs.batch.items():
        if not _has_channels(feature, d):
            continue
        if axis in known.varies or not all(a.is_channel for a in feature.dims[d]):
            raise MATRIX_PER_CHANNEL.of(equation)


def _set(
    reader: Reader,
    equation: Equation,
    feature: Feature,
    result: _Result,
    dims: Sequence[Sequence[Atom] | Sequence[str]],
) -> None:
    """The result, whose axes consist of atoms of the feature and of rows of the matrix (letters)."""
    (out,) = equation.outputs
    new_dims: list[tuple[Atom, ...]] = []
    letters: list[str] = []
    for dim in dims:
        atoms = []
        for one in dim:
            if isinstance(one, Atom) and one.is_channel:
                atoms.append(one)
                continue
            letters.append(result.atoms[one] if isinstance(one, Atom) else one)
            atoms.append(Atom(False, len(letters) - 1))
        new_dims.append(tuple(atoms))
    size = {letter: feature.size(atom) for atom, letter in result.atoms.items()}
    size.update(zip(result.matrix, result.field.sizes, strict=True))
    axes = "".join(result.atoms.values())
    subscripts = f"{result.matrix},{axes}->{''.join(letters)}"

    def aggregated(node: Node) -> Node:
        return reader.new_map(
            Aggregation,
            node,
            sizes=tuple(size[letter] for letter in letters),
            where=equation.where,
            matrix=result.field,
            subscripts=subscripts,
        )

    segments = reader.replace_nodes(feature, aggregated, out)
    reader.values[out] = Feature(tuple(new_dims), feature.channels, segments, out)
