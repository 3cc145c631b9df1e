"""Stage 1, the data: a flat list of equations over numbered variables."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import JaxprEqn, Primitive, evaluate_equation
from infnet._jax import lax_primitives as lax_p
from infnet.errors import Where
from infnet.numpy_rules import CALLS, NUMPY_RULES, called_jaxpr

# Inside an elementwise function these only spread constants to the shape of the argument.
FILLING = frozenset({lax_p.broadcast_in_dim_p, lax_p.reshape_p, lax_p.squeeze_p})


@dataclass(frozen=True, eq=False)
class Equation:
    """One operation of the flat program; `inputs` and `outputs` number its variables."""

    primitive: Primitive
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    where: Where
    source: JaxprEqn

    def evaluate(self, values: Sequence[Any]) -> list[jax.Array]:
        """Run this operation on `values`, one per input."""
        return evaluate_equation(self.source, values)


@dataclass(frozen=True)
class Variable:
    """A variable of a trace: its number, its shape for one example, and which axis counts the two examples."""

    number: int
    shape: tuple[int, ...]
    dtype: Any
    batch_axis: int | None

    def of_batch(self, value: jax.Array) -> jax.Array:
        """The value for a batch of two examples that are the same; axes of size 1 are broadcast."""
        one = jnp.broadcast_to(value, self.shape).astype(self.dtype)
        return one if self.batch_axis is None else jnp.concatenate([one, one], self.batch_axis)

    def of_one(self, value: Any) -> Any:
        """The first example's half of the value of a batch."""
        axis = self.batch_axis
        return value if axis is None else value[(slice(None),) * axis + (slice(0, value.shape[axis] // 2),)]


@dataclass(eq=False)
class Flat:
    """A jaxpr with its calls inlined: equations over numbered variables, literals and constants included."""

    equations: list[Equation] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _producers: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _indexed: int = field(default=0, init=False, repr=False)

    def new(self, aval: Any) -> int:
        """Number a new variable."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        """Number a new variable that holds `value`."""
        number = self.new(aval)
        self.constants[number] = value
        return number

    def producer(self, var: int) -> int | None:
        """The number of the equation that computes a variable; None for inputs and constants."""
        # Equations are appended while a program is read.
        for number in range(self._indexed, len(self.equations)):
            self._producers.update(dict.fromkeys(self.equations[number].outputs, number))
        self._indexed = len(self.equations)
        return self._producers.get(var)


@dataclass(eq=False)
class Trace(Flat):
    """The flat program of one example, as half of a program of two.

    `avals`, `constants` and the `source` of equations are those of a batch of two examples, and are what is evaluated
    (on the same example twice); shapes and the `params` of equations, which are read, are those of one example.

    Attributes:
        batch_axis: the axis of each variable that counts examples, if any.
        n_params: how many of the inputs are parameters.
    """

    batch_axis: list[int | None] = field(default_factory=list)
    n_params: int = 0

    @property
    def param_inputs(self) -> list[int]:
        """The variables that hold the parameters."""
        return self.inputs[: self.n_params]

    @property
    def data_inputs(self) -> list[int]:
        """The variables that hold the data."""
        return self.inputs[self.n_params :]

    def shape(self, var: int) -> tuple[int, ...]:
        """The shape of a variable for one example."""
        shape = self.avals[var].shape
        return tuple(n // 2 if axis == self.batch_axis[var] else n for axis, n in enumerate(shape))

    def variable(self, var: int) -> Variable:
        """All about one variable."""
        return Variable(var, self.shape(var), self.avals[var].dtype, self.batch_axis[var])

    def rows_of_one(self, var: int, value: Any) -> Any:
        """The first example's half of the value of a variable."""
        return self.variable(var).of_one(value)


def is_elementwise(equation: JaxprEqn) -> bool:
    """Whether each element of the output depends on the same element of the operands alone."""
    if equation.primitive in CALLS:
        inner = called_jaxpr(equation).jaxpr.eqns
        return all(e.primitive in FILLING or is_elementwise(e) for e in inner)
    return equation.primitive in NUMPY_RULES


def needed_equations(flat: Flat, variables: Iterable[int], given: Container[int] | None = None) -> list[Equation]:
    """The equations that these variables depend on, in order; those in `given` (the constants) have a value already."""
    known = flat.constants if given is None else given
    waiting, kept = [v for v in variables if v not in known], set[int]()
    while waiting:
        number = flat.producer(waiting.pop())
        if number is not None and number not in kept:
            kept.add(number)
            waiting.extend(v for v in flat.equations[number].inputs if v not in known)
    return [flat.equations[number] for number in sorted(kept)]


def evaluate(flat: Flat, variables: Sequence[int], inputs: Mapping[int, Any]) -> dict[int, Any]:
    """The values of these variables, by ordinary JAX, from those of the `inputs` that they depend on."""
    env = {**flat.constants, **inputs}
    for equation in needed_equations(flat, variables):
        values = equation.evaluate([env[v] for v in equation.inputs])
        env.update(zip(equation.outputs, values, strict=True))
    return {v: env[v] for v in variables}


def constant_value(flat: Flat, var: int) -> Any | None:
    """The value of a variable that depends on constants alone; None if it does not, or is being traced."""
    sources = {v for e in needed_equations(flat, [var]) for v in e.inputs} | {var}
    if sources.intersection(flat.inputs):
        return None
    with jax.ensure_compile_time_eval():
        if any(isinstance(flat.constants.get(v), jax.core.Tracer) for v in sources):
            return None
        return evaluate(flat, [var], {})[var]
