"""Stage 1: from `apply(params, *inputs)` to a flat list of equations.

`apply` is traced with abstract values at batch sizes 1, 2 and 3. Comparing the three shows which axes count
examples, and `independence` proves that no operation mixes them. The batch-1 trace is the one that is kept: it is
the program of ONE example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from infnet._jax import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    evaluate_equation,
    summarize,
)
from infnet._jax import lax_primitives as lax_p
from infnet.errors import InputError, Where
from infnet.numpy_rules import CALLS, NUMPY_RULES, called_jaxpr

BATCH_SIZES = (1, 2, 3)
CUSTOM_CALLS = frozenset({lax_p.custom_jvp_call_p, lax_p.custom_vjp_call_p})
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


@dataclass(eq=False)
class Flat:
    """A jaxpr with its calls inlined: equations over numbered variables, literals and constants included."""

    equations: list[Equation] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def new(self, aval: Any) -> int:
        """Number a new variable."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        """Number a new variable that holds `value`."""
        number = self.new(aval)
        self.constants[number] = value
        return number


def is_elementwise(equation: JaxprEqn) -> bool:
    """Whether each element of the output depends on the same element of the operands alone."""
    if equation.primitive in CALLS:
        inner = called_jaxpr(equation).jaxpr.eqns
        return all(e.primitive in FILLING or is_elementwise(e) for e in inner)
    return equation.primitive in NUMPY_RULES


def flatten(closed: ClosedJaxpr, random_inputs: int) -> Flat:
    """Inline all calls. The first `random_inputs` inputs are parameters: what depends on them is random.

    Functions with a derivative of their own (`jax.custom_jvp`, `jax.custom_vjp`) stay whole where they act element
    by element, since that derivative is the one the NTK must use; on data alone only their value matters.
    """
    flat = Flat()
    flat.inputs = [flat.new(v.aval) for v in closed.jaxpr.invars]
    random = set(flat.inputs[:random_inputs])
    env: dict[Any, int] = dict(zip(closed.jaxpr.invars, flat.inputs, strict=True))
    for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        env[var] = flat.constant(value, var.aval)
    _inline(flat, closed.jaxpr, env, random, Where())
    flat.outputs = [_read(flat, env, v) for v in closed.jaxpr.outvars]
    return flat


def _read(flat: Flat, env: dict[Any, int], atom: Any) -> int:
    return flat.constant(atom.val, atom.aval) if isinstance(atom, Literal) else env[atom]


def _inline(flat: Flat, jaxpr: Jaxpr, env: dict[Any, int], random: set[int], outer: Where) -> None:
    for eqn in jaxpr.eqns:
        inputs = tuple(_read(flat, env, v) for v in eqn.invars)
        where = _where(eqn, outer)
        stays_whole = eqn.primitive in CUSTOM_CALLS and (is_elementwise(eqn) or any(v in random for v in inputs))
        if eqn.primitive in CALLS and not stays_whole:
            closed = called_jaxpr(eqn)
            inner = closed.jaxpr
            inner_env = dict(zip(inner.invars, inputs, strict=True))
            for var, value in zip(inner.constvars, closed.consts, strict=True):
                inner_env[var] = flat.constant(value, var.aval)
            _inline(flat, inner, inner_env, random, where)
            results = [_read(flat, inner_env, v) for v in inner.outvars]
            env.update(zip(eqn.outvars, results, strict=True))
            continue
        outputs = tuple(flat.new(v.aval) for v in eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
        if any(v in random for v in inputs):
            random.update(outputs)
        flat.equations.append(Equation(eqn.primitive, inputs, outputs, eqn.params, where, eqn))


def _where(eqn: JaxprEqn, outer: Where) -> Where:
    # The body of a jitted library function is traced once and cached, with the lines of its first caller: the
    # line of the outermost call is the one that is always right.
    inner = str(eqn.source_info.name_stack)
    module = "/".join(part for part in (outer.module, inner) if part)
    return Where(module, outer.line or summarize(eqn.source_info))


def trace_at_batch_sizes(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> list[Flat]:
    """Trace `apply_fn(params, *inputs)` abstractly, once for each of `BATCH_SIZES`.

    Args:
        apply_fn: the function, its inputs with a leading batch axis.
        params: pytree of `jax.ShapeDtypeStruct`.
        inputs: pytrees of `jax.ShapeDtypeStruct`, without the batch axis.

    Raises:
        InputError: the model cannot be traced on inputs of these shapes.
    """
    n_params = len(jax.tree.leaves(params))
    one, *others = (flatten(_jaxpr_at(apply_fn, params, inputs, size), n_params) for size in BATCH_SIZES)
    return [_with_broadcasts(one, others[0]), *others]


def _jaxpr_at(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], size: int) -> ClosedJaxpr:
    batched = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), inputs)
    try:
        return jax.make_jaxpr(apply_fn)(params, *batched)
    except Exception as error:
        shapes = jax.tree.map(lambda x: tuple(x.shape), list(batched))
        raise InputError(
            f"the model cannot be traced on inputs of shape {shapes} (batch size {size}): "
            f"{type(error).__name__}: {error}\n  infnet traces it at batch sizes 1, 2 and 3: check the shape of "
            "the example input (its first axis counts examples) and that no batch size is written into the model"
        ) from error


def _with_broadcasts(one: Flat, two: Flat) -> Flat:
    """The trace at batch size 1 with the broadcasts that JAX leaves out there, numbered as the one at batch size 2.

    A class token is `jnp.broadcast_to(token, (x.shape[0], 1, c))`: nothing at batch size 1, an operation at others. Put
    back, it makes the traces alike, and says that the token is the same for every example.

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
