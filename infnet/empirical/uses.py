"""Where a model uses a parameter, and the gradients of outputs there.

The gradient of an output with respect to the result of an equation is that with respect to a zero which is added to it.
So the gradients at all uses of all parameters come from one backward pass, which need not form that of any parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import lax_primitives as lax_p
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
        results: which results are floating-point, so that a gradient arrives there.
    """

    equation: Equation
    renaming: tuple[Equation, ...]
    places: tuple[int, ...]
    results: tuple[int, ...]


class Program:
    """The equations of one example of a side whose examples are separate.

    Attributes:
        flat: the equations.
        uses: those of each parameter.
    """

    def __init__(self, side: Side):
        one: Any = side.one
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), side.x)
        closed = jax.make_jaxpr(one)(side.leaves, example)
        self.flat: Flat = flatten(closed, len(side.leaves), unroll=False)
        self._parameters = self.flat.inputs[: len(side.leaves)]
        self.uses: list[list[Use]] = [self._uses(var) for var in self._parameters]

    @property
    def returns_parameter(self) -> bool:
        """Whether an output is a parameter, renamed at most."""
        return any(v in self._aliases(parameter) for parameter in self._parameters for v in self.flat.outputs)

    def gradients(self, leaves: Leaves, example: Any) -> tuple[dict[int, jax.Array], dict[int, Any]]:
        """The gradients of all elements of the output at the uses, `(*output, *result)`, and the values of variables.

        Both are by the number of the variable.
        """
        inputs = dict(zip(self.flat.inputs, [*leaves, *jax.tree.leaves(example)], strict=True))
        results = sorted({v for uses in self.uses for use in uses for v in use.results})
        zeros = [jnp.zeros(self.flat.avals[v].shape, self.flat.avals[v].dtype) for v in results]

        def outputs(added: Leaves) -> tuple[jax.Array, dict[int, Any]]:
            env = self._evaluate(inputs, dict(zip(results, added, strict=True)))
            (output,) = self.flat.outputs
            return env[output], env

        y, pullback, env = jax.vjp(outputs, zeros, has_aux=True)
        rows = jax.vmap(partial(row_of, pullback, zeros))(basis(y))
        shaped = [row.reshape(*y.shape, *row.shape[1:]) for row in rows]
        return dict(zip(results, shaped, strict=True)), env

    def pull_back(self, leaf: int, gradients: Mapping[int, jax.Array], env: Mapping[int, Any]) -> jax.Array:
        """The gradients with respect to a parameter itself, `(*output, *parameter)`."""
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

    def _evaluate(self, inputs: Mapping[int, Any], added: Mapping[int, jax.Array]) -> dict[int, Any]:
        env = {**self.flat.constants, **inputs}
        for equation in self.flat.equations:
            values = equation.evaluate([env[v] for v in equation.inputs])
            for var, value in zip(equation.outputs, values, strict=True):
                env[var] = value + added[var] if var in added else value
        return env

    def _aliases(self, var: int) -> dict[int, tuple[Equation, ...]]:
        """The variables that are a parameter renamed, each with the equations that rename it."""
        aliases: dict[int, tuple[Equation, ...]] = {var: ()}
        for equation in self.flat.equations:
            first = equation.inputs[0] if equation.inputs else None
            if first in aliases and equation.primitive in RENAMING:
                before, after = (self.flat.avals[v] for v in (first, *equation.outputs))
                if math.prod(before.shape) == math.prod(after.shape):
                    aliases[equation.outputs[0]] = (*aliases[first], equation)
        return aliases

    def _uses(self, var: int) -> list[Use]:
        aliases = self._aliases(var)
        found = []
        for equation in self.flat.equations:
            places = tuple(k for k, v in enumerate(equation.inputs) if v in aliases)
            if places and equation.outputs[0] not in aliases:
                renaming = dict.fromkeys(e for k in places for e in aliases[equation.inputs[k]])
                results = tuple(v for v in equation.outputs if _is_real(self.flat.avals[v]))
                if results:
                    found.append(Use(equation, tuple(renaming), places, results))
        return found


def _is_real(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating))
