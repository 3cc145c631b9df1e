"""Structured derivatives: the NTK from the gradients at the uses of parameters (Novak et al. 2022, arXiv:2206.08720).

One backward pass gives the gradients at all uses. A weight of a dense layer or a convolution (a product with patches of
its input) and the rows of an embedding then have factored gradients, see `infnet.empirical.shares`. From every other
use the gradient is pulled back to the parameter, which is what Jacobian contraction does; never more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet._jax import lax_primitives as lax_p
from infnet.empirical.axes import Axes
from infnet.empirical.contraction import groups, jacobian_contraction
from infnet.empirical.shares import Dense, Outer, Rows, Share, product
from infnet.empirical.side import Side
from infnet.empirical.uses import Program, Use
from infnet.registry import Rules

# (use, gradients at its result `(*output, *result)`, operands) -> the gradient of one example; None if it has no
# structure that the rule knows. Of the parameter, only the shape is an operand.
Rule = Callable[[Use, jax.Array, list[Any]], Outer | Rows | None]
RULES: Rules[Rule] = Rules()


def structured_derivatives(
    side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any, memory_limit: int
) -> jax.Array:
    """The NTK of one output; as `jacobian_contraction`, which does what depends on the whole batch or is complex."""
    sides = [side for side in (side1, side2) if side]
    sketches = [_sketch(side) for side in sides]
    kinds = [None if sketch is None else [type(share) for share in sketch] for sketch in sketches]
    if None in kinds or kinds[0] != kinds[-1]:  # examples of different shapes may be treated differently
        return jacobian_contraction(side1, side2, axes, rates, dtype, memory_limit)
    total = jnp.zeros(axes.shape, dtype)
    costs = [sum(_bytes(sketch[k]) for sketch in sketches if sketch) for k in range(len(side1.leaves))]
    for group in groups(costs, memory_limit):
        # One group after the other, so that never two of them are in memory.
        chosen, total = lax.optimization_barrier(([side1.leaves[k] for k in group], total))
        one, two = side1.only(group, chosen), side2 and side2.only(group, chosen)
        multiply = _at_once if sum(costs[k] for k in group) <= memory_limit else jacobian_contraction
        total += multiply(one, two, axes, [rates[k] for k in group], dtype, memory_limit)
    return total


def _at_once(
    side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any, memory_limit: int
) -> jax.Array:
    one = _shares(side1)
    two = _shares(side2) if side2 else one
    terms = [rate * product(axes, a, b, dtype, memory_limit) for rate, a, b in zip(rates, one, two, strict=True)]
    return sum(terms, start=jnp.zeros(axes.shape, dtype))


def _sketch(side: Side) -> list[Share] | None:
    """The gradients with respect to each parameter, without values; None if they are not those of single examples."""
    if side.one is None or side.is_complex or Program(side, _is_structured).returns_parameter:
        return None
    return jax.eval_shape(lambda: _shares(side))


def _bytes(share: Share) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(share))


def _shares(side: Side) -> list[Share]:
    """The gradients with respect to each parameter, of all examples."""
    program = Program(side, _is_structured)

    def of_example(example: Any) -> list[Share]:
        gradients, env = program.gradients(side.leaves, example)
        return [_share(program, leaf, gradients, env) for leaf in range(len(side.leaves))]

    return jax.vmap(of_example)(side.x)


def _share(program: Program, leaf: int, gradients: dict[int, jax.Array], env: dict[int, Any]) -> Share:
    uses = program.uses[leaf]
    found: list[Any] = [_of_use(use, gradients, env) for use in uses]
    if found and len({(type(share), _form(use)) for share, use in zip(found, uses, strict=True)}) == 1 and found[0]:
        return type(found[0]).joined(found)
    return Dense(program.pull_back(leaf, gradients, env))


def _of_use(use: Use, gradients: Mapping[int, jax.Array], env: Mapping[int, Any]) -> Outer | Rows | None:
    """The gradient at one use, where it has structure."""
    rule = RULES.get(use.equation.primitive)
    if rule is None or len(use.places) != 1:
        return None
    delta = gradients[use.results[0]]
    values = {k: env[v] for k, v in enumerate(use.operands) if v is not None}

    def of_turn(delta: jax.Array, values: dict[int, Any]) -> Outer | Rows | None:
        return rule(use, delta, [values.get(k, aval) for k, aval in enumerate(use.avals)])

    if use.turns is None:
        return of_turn(delta, values)
    found = jax.vmap(of_turn, (len(_lead(use, delta)) - 1, 0))(delta, values)
    return found and found.of_turns()


def _is_structured(use: Use) -> bool:
    """Whether the gradient has structure, and in all turns of a scan no more positions than the weight has channels.

    Otherwise a scan adds up the gradient of the weight itself with less memory, and no more work.
    """
    gradients = {use.results[0]: _struct(use.equation.source.outvars[0].aval)}
    env = {v: _struct(aval) for v, aval in zip(use.operands, use.avals, strict=True) if v is not None}
    share = jax.eval_shape(partial(_of_use, replace(use, turns=None)), gradients, env)
    if use.turns is None or not isinstance(share, Outer):
        return share is not None
    positions, channels = share.h.shape
    return use.turns * positions <= channels


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _form(use: Use) -> Any:
    """What says which elements of a parameter the axes of a structured gradient are."""
    renaming = tuple((e.primitive, str(e.params)) for e in use.renaming)
    return use.equation.primitive, use.places, str(use.equation.params.get("dimension_numbers")), renaming


def _lead(use: Use, delta: jax.Array) -> tuple[int, ...]:
    """The axes of the output."""
    result: Any = use.equation.source.outvars[0].aval
    return delta.shape[: delta.ndim - len(result.shape)]


@RULES.register(lax_p.dot_general_p)
def _dot_general(use: Use, delta: jax.Array, operands: list[Any]) -> Outer | None:
    contracted, batched = use.equation.params["dimension_numbers"]
    if batched[0]:
        return None
    (place,) = use.places
    other, over = operands[1 - place], contracted[1 - place]
    free = [k for k in range(other.ndim) if k not in over]
    h = other.transpose(*free, *over).reshape(math.prod(other.shape[k] for k in free), -1)
    lead = _lead(use, delta)
    if place == 1:  # the result has the axes of the left operand first
        return Outer(delta.reshape(*lead, len(h), -1), h)
    return Outer(delta.reshape(*lead, -1, len(h)).swapaxes(-1, -2), h)


@RULES.register(lax_p.conv_general_dilated_p)
def _conv(use: Use, delta: jax.Array, operands: list[Any]) -> Outer | None:
    params, (x, w) = use.equation.params, operands
    if use.places != (1,) or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    h = _patches(x.transpose(_channels_last(numbers.lhs_spec)), [w.shape[k] for k in numbers.rhs_spec[2:]], params)
    lead = _lead(use, delta)
    k = len(lead)
    moved = delta.transpose(*range(k), *(k + axis for axis in _channels_last(numbers.out_spec)))
    return Outer(moved.reshape(*lead, -1, moved.shape[-1]), h.reshape(-1, h.shape[-1]))


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes of an operand of a convolution as (batch, *spatial, channels)."""
    return (spec[0], *spec[2:], spec[1])


def _patches(x: jax.Array, window: Sequence[int], params: Mapping[str, Any]) -> jax.Array:
    """What a window over `(n, *spatial, channels)` sees, `(n, *positions, ...)`.

    By slices of one axis after the other: `lax.conv_general_dilated_patches` multiplies with ones instead, which is
    slower, and rounds where matrix units do.
    """
    settings = zip(
        window,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    for axis, (taps, stride, (low, high), dilation, spacing) in enumerate(settings, 1):
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (low, high, dilation - 1)
        padded = lax.pad(x, jnp.zeros((), x.dtype), padding)
        last = padded.shape[axis] - (taps - 1) * spacing  # where a window may start, exclusive
        starts = [tap * spacing for tap in range(taps)]
        seen = [lax.slice_in_dim(padded, start, start + max(0, last), stride, axis) for start in starts]
        x = jnp.concatenate(seen, axis=-1)
    return x


@RULES.register(lax_p.gather_p)
def _gather(use: Use, delta: jax.Array, operands: list[Any]) -> Rows | None:
    params, (table, indices) = use.equation.params, operands
    numbers, positions = params["dimension_numbers"], indices.shape[:-1]
    whole_rows = (
        use.places == (0,)
        and numbers.start_index_map == numbers.collapsed_slice_dims == (0,)
        and not numbers.operand_batching_dims
        and tuple(params["slice_sizes"]) == (1, *table.shape[1:])
        and numbers.offset_dims == tuple(range(len(positions), len(positions) + table.ndim - 1))
    )
    if not whole_rows:
        return None
    flat = indices.reshape(-1).astype(int)
    if lax.GatherScatterMode.from_any(params["mode"]) is lax.GatherScatterMode.CLIP:
        flat = jnp.clip(flat, 0, table.shape[0] - 1)
    flat = jnp.where((flat >= 0) & (flat < table.shape[0]), flat, -1)
    return Rows(delta.reshape(*_lead(use, delta), len(flat), -1), flat)
