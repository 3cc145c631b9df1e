"""Broadcasts along the batch axis that JAX leaves out at batch size 1, where they do nothing.

A class token is `jnp.broadcast_to(token, (x.shape[0], 1, c))`: one operation at batch sizes 2 and 3, none at 1. Put
back, it makes the three traces alike, and says that the token is the same for every example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infnet._jax import lax_primitives as lax_p
from infnet.trace import Equation, Flat


def with_broadcasts(one: Flat, two: Flat) -> Flat:
    """The trace at batch size 1 with the broadcasts of the one at batch size 2, numbered as that one.

    Traces that differ in anything else are left as they are: `independence` finds out.
    """
    missing = _missing(one.equations, two)
    outputs = {equation.outputs[0]: equation.inputs[0] for equation in missing}
    number = [n for n in range(len(two.avals)) if n not in outputs]  # of a variable of `one`, in `two`
    if not missing or len(number) != len(one.avals):
        return one
    avals = dict(zip(number, one.avals, strict=True))
    for var in sorted(outputs):
        avals[var] = avals[outputs[var]]

    def same(mine: Sequence[int], theirs: Sequence[int]) -> tuple[int, ...]:
        """Variables of `one` by their numbers in `two`, which may read the result of a broadcast instead."""
        if len(mine) != len(theirs):
            return tuple(number[v] for v in mine)
        pairs = zip((number[v] for v in mine), theirs, strict=True)
        return tuple(other if outputs.get(other) == v else v for v, other in pairs)

    mine, equations = iter(one.equations), []
    for equation in two.equations:
        if equation in missing:
            equations.append(_at_one(equation, tuple(avals[equation.inputs[0]].shape)))
            continue
        own = next(mine)
        inputs, results = same(own.inputs, equation.inputs), tuple(number[v] for v in own.outputs)
        equations.append(replace(own, inputs=inputs, outputs=results))
    return Flat(
        equations,
        [avals[n] for n in range(len(two.avals))],
        {number[v]: value for v, value in one.constants.items()},
        [number[v] for v in one.inputs],
        list(same(one.outputs, two.outputs)),
    )


def _missing(one: Sequence[Equation], two: Flat) -> list[Equation]:
    """The broadcasts along an axis of size 1 that `two` has and `one` lacks; none if they differ otherwise."""
    missing, position = [], 0
    for equation in two.equations:
        if position < len(one) and _alike(one[position], equation):
            position += 1
        elif _is_broadcast(equation) and _does_nothing_at_one(equation, two):
            missing.append(equation)
        else:
            return []
    return missing if position == len(one) else []


def _alike(one: Equation, two: Equation) -> bool:
    places = [e.params["broadcast_dimensions"] if _is_broadcast(e) else None for e in (one, two)]
    ranks = [len(e.params["shape"]) if _is_broadcast(e) else None for e in (one, two)]
    return one.primitive is two.primitive and places[0] == places[1] and ranks[0] == ranks[1]


def _is_broadcast(equation: Equation) -> bool:
    return equation.primitive is lax_p.broadcast_in_dim_p


def _does_nothing_at_one(equation: Equation, two: Flat) -> bool:
    before, after = tuple(two.avals[equation.inputs[0]].shape), equation.params["shape"]
    in_place = tuple(equation.params["broadcast_dimensions"]) == tuple(range(len(after)))
    grown = [d for d, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    return in_place and len(before) == len(after) and len(grown) == 1 and before[grown[0]] == 1


def _at_one(equation: Equation, shape: tuple[int, ...]) -> Equation:
    params = {**equation.params, "shape": shape}
    return replace(equation, params=params, source=equation.source.replace(params=params))
