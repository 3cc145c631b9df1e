"""Where a model uses a parameter, and the gradients of outputs there.

The gradient of an output with respect to the result of an equation is that with respect to a zero which is added to it.
So the gradients at all uses of all parameters come from one backward pass, which need not form that of any parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet._jax import lax_primitives as lax_p
from infnet._jax import scan_counts
from infnet.empirical.side import Leaves, Side, basis, row_of
from infnet.flatten import flatten
from infnet.trace import Equation, Flat

# Where the result has as many elements, these only name them anew: the sum of squares of a gradient stays the same.
RENAMING = frozenset({lax_p.reshape_p, lax_p.transpose_p, lax_p.squeeze_p, lax_p.broadcast_in_dim_p})


@dataclass(frozen=True)
class Use:
    """An equation that one parameter enters.

    Attributes:
        equation: that equation.
        renaming: the equations before it that rename the elements of the parameter.
        places: which operands are the parameter, renamed.
        operands: the variables that are operands; None in the places of the parameter.
        results: the variables that are results and floating-point, so that a gradient arrives there.
        avals: of the operands.
        turns: how often a scan has it; None if it is in no scan.
    """

    equation: Equation
    renaming: tuple[Equation, ...]
    places: tuple[int, ...]
    operands: tuple[int | None, ...]
    results: tuple[int, ...]
    avals: tuple[Any, ...]
    turns: int | None = None


class Program:
    """The equations of one example of a side whose examples are separate.

    Variables are numbered; after those of the equations come those of the bodies of scans.

    Attributes:
        flat: the equations.
        uses: those of each parameter.
    """

    def __init__(self, side: Side, is_structured: Callable[[Use], bool]):
        """Read a program.

        Args:
            side: what to read.
            is_structured: whether the gradient at a use in a scan should be taken turn by turn.
        """
        one: Any = side.one
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), side.x)
        closed = jax.make_jaxpr(one)(side.leaves, example)
        self.flat: Flat = flatten(closed, len(side.leaves), unroll=False)
        self._parameters = self.flat.inputs[: len(side.leaves)]
        self._avals = list(self.flat.avals)
        self._scans: dict[tuple[int, ...], _Scan] = {}
        for equation in self.flat.equations:
            if equation.primitive is lax_p.scan_p:
                scan = _Scan(equation, len(self._avals))
                self._scans[equation.outputs] = scan
                self._avals += scan.body.avals
        self.uses: list[list[Use]] = [self._uses(var, is_structured) for var in self._parameters]

    @property
    def returns_parameter(self) -> bool:
        """Whether an output is a parameter, renamed at most."""
        return any(v in _aliases(self.flat, parameter) for parameter in self._parameters for v in self.flat.outputs)

    def gradients(self, leaves: Leaves, example: Any) -> tuple[dict[int, jax.Array], dict[int, Any]]:
        """The gradients of all elements of the output at the uses, `(*output, *result)`, and the values of variables.

        In a scan, both have an axis for its turns before those of the result.
        """
        inputs = dict(zip(self.flat.inputs, [*leaves, *jax.tree.leaves(example)], strict=True))
        results = {v: use.turns for uses in self.uses for use in uses for v in use.results}
        zeros = [self._zeros(v, turns) for v, turns in results.items()]

        def outputs(added: Leaves) -> tuple[jax.Array, dict[int, Any]]:
            env = self._evaluate(inputs, dict(zip(results, added, strict=True)))
            (output,) = self.flat.outputs
            return env[output], env

        y, pullback, env = jax.vjp(outputs, zeros, has_aux=True)
        rows = jax.vmap(partial(row_of, pullback, zeros))(basis(y))
        shaped = [row.reshape(*y.shape, *row.shape[1:]) for row in rows]
        return dict(zip(results, shaped, strict=True)), env

    def pull_back(self, leaf: int, gradients: Mapping[int, jax.Array], env: Mapping[int, Any]) -> jax.Array:
        """The gradients with respect to a parameter itself, `(*output, *parameter)`, if none of its uses has turns."""
        var = self.flat.inputs[leaf]
        lead = self.flat.avals[self.flat.outputs[0]].shape
        total = jnp.zeros((*lead, *env[var].shape), env[var].dtype)
        for use in self.uses[leaf]:

            def results(parameter: jax.Array, use: Use = use) -> list[jax.Array]:
                known = {**env, var: parameter}
                for equation in (*use.renaming, use.equation):
                    values = equation.evaluate([known[v] for v in equation.inputs])
                    known.update(zip(equation.outputs, values, strict=True))
                return [known[v] for v in use.results]

            pullback = jax.vjp(results, env[var])[1]
            for _ in lead:
                pullback = jax.vmap(pullback)
            total += pullback([gradients[v] for v in use.results])[0]
        return total

    def _uses(self, var: int, is_structured: Callable[[Use], bool]) -> list[Use]:
        found = _uses(self.flat, var)
        refined = [inner for use in found for inner in self._in_scan(use)]
        in_scans = any(use.turns is not None for use in refined)
        return refined if in_scans and all(map(is_structured, refined)) else found

    def _in_scan(self, use: Use) -> list[Use]:
        """A use of a constant of a scan as those in its body, where that is all that the scan does with it."""
        scan = self._scans.get(use.equation.outputs)
        return (scan and scan.uses(use)) or [use]

    def _zeros(self, var: int, turns: int | None) -> jax.Array:
        aval = self._avals[var]
        return jnp.zeros(aval.shape if turns is None else (turns, *aval.shape), aval.dtype)

    def _evaluate(self, inputs: Mapping[int, Any], added: Mapping[int, jax.Array]) -> dict[int, Any]:
        wanted = {v for uses in self.uses for use in uses for v in use.operands if v is not None}
        env: dict[int, Any] = {**self.flat.constants, **inputs}
        for equation in self.flat.equations:
            operands, scan = [env[v] for v in equation.inputs], self._scans.get(equation.outputs)
            if scan and scan.has(added):
                values, of_turns = scan.evaluate(operands, added, wanted)
                env.update(of_turns)
            else:
                values = equation.evaluate(operands)
            _assign(env, equation, values, added)
        return env


class _Scan:
    """A scan into whose body one sees.

    Attributes:
        body: its equations.
    """

    def __init__(self, equation: Equation, first: int):
        """Read a body, whose variable 0 has the number `first` in the program."""
        closed = equation.params["jaxpr"]
        self._equation, self._first = equation, first
        self._n_consts, self._n_carry = scan_counts(equation.source)
        self.body = flatten(closed, len(closed.in_avals), unroll=False)

    def uses(self, use: Use) -> list[Use]:
        """The uses in the body of a parameter that enters the scan as a constant; none if it leaves it otherwise."""
        if len(use.places) != 1 or use.places[0] >= self._n_consts:
            return []
        var = self.body.inputs[use.places[0]]
        if any(v in _aliases(self.body, var) for v in self.body.outputs):
            return []
        return [
            replace(
                inner,
                renaming=(*use.renaming, *inner.renaming),
                operands=tuple(None if v is None else self._first + v for v in inner.operands),
                results=tuple(self._first + v for v in inner.results),
                turns=self._equation.params["length"],
            )
            for inner in _uses(self.body, var)
        ]

    def has(self, variables: Iterable[int]) -> bool:
        """Whether any of these is a variable of the body."""
        return any(self._first <= v < self._first + len(self.body.avals) for v in variables)

    def evaluate(
        self, operands: list[Any], added: Mapping[int, jax.Array], wanted: Iterable[int]
    ) -> tuple[list[Any], dict[int, Any]]:
        """The results, with `added` to variables in each turn; and in all turns the variables that are `wanted`."""
        zeros = {v - self._first: zero for v, zero in added.items() if self.has([v])}
        keep = [v - self._first for v in wanted if self.has([v])]

        def turn(carry: list[Any], rows: Any) -> Any:
            xs, more = rows
            env = {**self.body.constants, **dict(zip(self.body.inputs, [*consts, *carry, *xs], strict=True))}
            for equation in self.body.equations:
                _assign(env, equation, equation.evaluate([env[v] for v in equation.inputs]), more)
            outputs = [env[v] for v in self.body.outputs]
            return outputs[: self._n_carry], (outputs[self._n_carry :], [env[v] for v in keep])

        end, params = self._n_consts + self._n_carry, self._equation.params
        consts, start, xs = operands[: self._n_consts], operands[self._n_consts : end], operands[end:]
        carry, (ys, kept) = lax.scan(turn, start, (xs, zeros), params["length"], params["reverse"])
        return [*carry, *ys], {self._first + v: value for v, value in zip(keep, kept, strict=True)}


def _assign(env: dict[int, Any], equation: Equation, values: list[Any], added: Mapping[int, Any]) -> None:
    for var, value in zip(equation.outputs, values, strict=True):
        env[var] = value + added[var] if var in added else value


def _aliases(flat: Flat, var: int) -> dict[int, tuple[Equation, ...]]:
    """The variables that are a parameter renamed, each with the equations that rename it."""
    aliases: dict[int, tuple[Equation, ...]] = {var: ()}
    for equation in flat.equations:
        first = equation.inputs[0] if equation.inputs else None
        if first in aliases and equation.primitive in RENAMING:
            before, after = (flat.avals[v] for v in (first, *equation.outputs))
            if math.prod(before.shape) == math.prod(after.shape):
                aliases[equation.outputs[0]] = (*aliases[first], equation)
    return aliases


def _uses(flat: Flat, var: int) -> list[Use]:
    aliases = _aliases(flat, var)
    found = []
    for equation in flat.equations:
        places = tuple(k for k, v in enumerate(equation.inputs) if v in aliases)
        if places and equation.outputs[0] not in aliases:
            renaming = dict.fromkeys(e for k in places for e in aliases[equation.inputs[k]])
            results = tuple(v for v in equation.outputs if _is_real(flat.avals[v]))
            if results:
                avals = tuple(flat.avals[v] for v in equation.inputs)
                operands = tuple(None if k in places else v for k, v in enumerate(equation.inputs))
                found.append(Use(equation, tuple(renaming), places, operands, results, avals))
    return found


def _is_real(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating))
