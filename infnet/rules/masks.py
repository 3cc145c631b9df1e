"""Choices between features by data: masks, and one position of each example. Each is a sum of products with 0 and 1."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from infnet.errors.features import CHOICE_BY_ONE_NUMBER
from infnet.errors.parameters import PARAMETER_SELECTED
from infnet.nodes import Param
from infnet.program import Feature, Known
from infnet.reader import Reader
from infnet.rules.index_linear import with_whole_axes
from infnet.rules.lookup import outside_value
from infnet.rules.sums import combine, scaled
from infnet.trace import Equation


def read_select(reader: Reader, equation: Equation) -> None:
    """`where(mask, u, v)` is mask * u + (1 - mask) * v; the mask is known, and zeros are left out."""
    which, *cases = equation.inputs
    if any(isinstance(reader.values[v], Param) for v in cases):
        raise PARAMETER_SELECTED.of(equation)
    chosen = reader.constant(which)
    if chosen is not None:
        cases = [cases[int(chosen)]]
        parts = cases
    else:
        if not reader.shape(which):
            raise CHOICE_BY_ONE_NUMBER.of(equation)
        parts = [_part(reader, equation, which, k, v) for k, v in enumerate(cases) if reader.constant(v) != 0.0]
    if len(parts) > 1 or isinstance(reader.values[parts[0]], Known):
        combine(reader, equation, [(1.0, part) for part in parts])
        return
    feature, (out,) = reader.settled(parts[0]), equation.outputs
    reader.values[out] = Feature(feature.dims, feature.channels, feature.segments, out)


def _part(reader: Reader, equation: Equation, which: int, number: int, case: int) -> int:
    """One case where it is selected, and zero elsewhere."""
    (out,) = equation.outputs
    dtype, axis = reader.trace.avals[out].dtype, reader.trace.batch_axis[out]
    if isinstance(reader.values[case], Known):
        return reader.known(equation, lambda w, x: jnp.where(w == number, x, jnp.zeros_like(x)), [which, case], axis)
    mask = reader.known(equation, lambda w: (w == number).astype(dtype), [which], axis)
    part = reader.variable_like(out, equation)
    scaled(reader, replace(equation, outputs=(part,)), case, mask)
    return part


def at_position(reader: Reader, equation: Equation, axis: int, component: int) -> Feature:
    """The operand of a gather, zero but for the position on `axis` that its known index says for each example."""
    x, indices = equation.inputs
    shape, batch = reader.shape(x), reader.trace.batch_axis[x]
    positions, missing, dtype = shape[axis], outside_value(reader, equation), reader.trace.avals[x].dtype

    def along(d: int | None, values: jax.Array) -> jax.Array:
        return values.reshape([-1 if k == d else 1 for k in range(len(shape))])

    def indicator(index: jax.Array) -> jax.Array:
        index = along(batch, index[..., component])
        outside = (index < 0) | (index >= positions)
        place = along(axis, jnp.arange(positions))
        found = (place == jnp.clip(index, 0, positions - 1)).astype(dtype)
        return found if missing is None else jnp.where(outside, missing, found)

    weights = reader.known(equation, indicator, [indices], batch)
    part = reader.variable_like(x, equation)
    scaled(reader, replace(equation, outputs=(part,)), x, weights)
    return with_whole_axes(reader, equation, part, [axis])
