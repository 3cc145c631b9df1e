"""Embeddings: rows of a parameter at indices that depend on the inputs.

With iid rows of variance s2 and gradient factor g2, and the index t_i(a) that example a has at position i,

    S[i, j] = s2 [t_i(a) = t_j(b)] + mean^2,      T[i, j] = g2 [t_i(a) = t_j(b)]:

the kernel of a Dense layer on one-hot vectors (Lee et al. 2018, arXiv:1711.00165, eq. 5), which are never formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors.parameters import LOOKUP_OUT_OF_BOUNDS, PARAMETER_INDEXED_IRREGULARLY
from infnet.layout import filled, spread_left, spread_right
from infnet.nodes import Lookup
from infnet.plan import Ask, Moments, Step
from infnet.program import Atom, Feature, Known, Segment
from infnet.reader import Reader
from infnet.rules.rearrange import new_channels
from infnet.trace import Equation


def read_lookup(reader: Reader, equation: Equation) -> None:
    """Rows of a table, a Param, at Known indices into one of its axes."""
    (x, indices), numbers, (out,) = equation.inputs, equation.params["dimension_numbers"], equation.outputs
    shape, param = reader.shape(x), reader.whole_param(equation, x)
    axis = numbers.start_index_map[0] if numbers.start_index_map else -1
    whole = tuple(1 if d == axis else n for d, n in enumerate(shape))
    simple = numbers.start_index_map == numbers.collapsed_slice_dims == (axis,) and not numbers.operand_batching_dims
    if not isinstance(reader.values[indices], Known) or not simple or equation.params["slice_sizes"] != whole:
        raise PARAMETER_INDEXED_IRREGULARLY.of(equation)
    reader.check_uniform(equation, param, ())
    free = [d for d in range(len(shape)) if d != axis]
    roles = ("looked up", param.factors[axis], tuple(param.factors[d] for d in free))
    reader.use_param(equation, param.key, roles)
    index_shape = reader.shape(indices)[:-1]
    known_dims = [[n] if n > 1 else [] for n in index_shape]
    node = reader.new(
        Lookup,
        sizes=tuple(n for n in index_shape if n > 1),
        where=equation.where,
        leaves=frozenset({(param.key, 0)}),
        gaussian=True,
        zero_mean=param.key.leaf not in reader.priors.nonzero_mean and not param.offset,
        param=param,
        indices=reader.field(indices, [*known_dims, []], [], (0, 1)),
        rows=shape[axis],
        outside=outside_value(reader, equation),
    )
    new, channels = new_channels([shape[d] for d in free])
    atoms = iter(Atom(False, k) for k in range(len(node.sizes)))
    rows = iter((next(atoms),) if n > 1 else () for n in index_shape)
    columns = iter(new)
    rank = len(reader.shape(out))
    dims = tuple(next(columns) if d in numbers.offset_dims else next(rows) for d in range(rank))
    reader.values[out] = Feature(dims, channels, (Segment(node, 0, math.prod(channels)),), out)


def outside_value(reader: Reader, equation: Equation) -> float | None:
    """What is read at an index that is not one of a row: NaN or 0, or None for the nearest row."""
    if equation.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return None
    fill = equation.params["fill_value"]
    number = math.nan if fill is None else float(fill)
    if number and not math.isnan(number):
        raise LOOKUP_OUT_OF_BOUNDS.of(equation, number=number)
    return number


def lookup_step(request: Ask, u: Lookup, v: Lookup) -> Step:
    """The moment of two lookups in one table."""

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        (left, right), (missing_left, missing_right) = zip(
            *(_read(context, node, side) for node, side in zip((u, v), request.side, strict=True)), strict=True
        )
        layout = request.layout
        same = spread_left(layout, left) == spread_right(layout, right)
        missing = spread_left(layout, missing_left) | spread_right(layout, missing_right)
        ratio = v.param.ratio(u.param)
        s2, g2 = (ratio * factor.reshape(()) for factor in context.weight_factors(u.param, ()))
        s = jnp.where(same, s2, jnp.zeros_like(s2))
        s = s if u.zero_mean else s + context.mean(u.param) * context.mean(v.param)
        outside = math.nan if math.isnan(u.outside or 0.0) or math.isnan(v.outside or 0.0) else 0.0
        s, t = (jnp.where(missing, outside, m) for m in (s, jnp.where(same, g2, jnp.zeros_like(g2))))
        return Moments(filled(layout, s), filled(layout, t) if request.ntk else None)

    return Step(request, "lookup", u.where, (), evaluate)


def _read(context: Any, node: Lookup, side: int) -> tuple[jax.Array, jax.Array]:
    """The indices, and where the model reads something else than a row."""
    indices = context.indices(node.indices, side)
    inside = jnp.clip(indices, 0, node.rows - 1)
    if node.outside is None:
        return inside, jnp.zeros(np.shape(indices), bool)
    return indices, inside != indices
