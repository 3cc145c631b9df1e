"""Reads the law of every output of an init function off its jaxpr: abstract interpretation.

The jaxpr is walked once, forwards, over the equations that some output needs (the model's own
forward pass inside `init` is dropped). What the variables hold is in `values.py`, the rules of
the primitives are in `elementwise.py` and `moves.py`; here are calls, branches and loops.

Elements of one array must be independent for a law of elements to make sense, so an operation that
spreads one random number over several elements (broadcast, gather with repeated indices) or mixes
elements (sort, reductions, dot) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jax import numpy as jnp

from infnet._jax import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var, scan_counts
from infnet._jax import lax_primitives as lax
from infnet.laws.elementwise import elementwise_rule, known_rule
from infnet.laws.moments import (
    Cumulants,
    Moments,
    NoLaw,
    compress,
)
from infnet.laws.moves import factor_rule, qr_rule
from infnet.laws.values import (
    DATA,
    RULES,
    Constant,
    Factor,
    Key,
    Opaque,
    Value,
    as_moments,
    constant,
    roots_of,
    scalar_int,
)
from infnet.numpy_rules import CALLS, NUMPY_RULES, called_jaxpr

MAX_SCAN = 4096
"""Loops of more steps are not unrolled."""
SAMPLERS = {lax.random_bits_p, lax.random_gamma_p, lax.rng_bit_generator_p, lax.rng_uniform_p}
"""Random arrays of known keys: read as laws (the first) or refused, never computed."""


# The walk.


def read(jaxpr: ClosedJaxpr, args: Sequence[Value], needed: Sequence[bool]) -> list[Value]:
    """The values of the needed outputs; of the others, anything."""
    env: dict[Var, Value] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
    consts = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))

    def get(atom: Var | Literal) -> Value:
        if isinstance(atom, Literal):
            return constant(atom.val)
        if atom not in env and atom in consts:
            env[atom] = constant(consts[atom])
        return env.get(atom, DATA)

    for eqn, wanted in _needed_equations(jaxpr.jaxpr, needed):
        operands = [get(atom) for atom in eqn.invars]
        env.update(zip(eqn.outvars, _step(eqn, operands, wanted), strict=True))
    return [get(atom) for atom in jaxpr.jaxpr.outvars]


def _needed_equations(jaxpr: Jaxpr, needed: Sequence[bool]) -> list[tuple[JaxprEqn, list[bool]]]:
    """The equations that a needed output depends on, each with which of its outputs are needed."""
    outputs = zip(jaxpr.outvars, needed, strict=True)
    wanted = {v for v, need in outputs if need and isinstance(v, Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        flags = [v in wanted for v in eqn.outvars]
        if any(flags):
            kept.append((eqn, flags))
            wanted.update(v for v in eqn.invars if isinstance(v, Var))
    return kept[::-1]


def _step(eqn: JaxprEqn, operands: list[Value], needed: list[bool]) -> Sequence[Value]:
    """One equation, in the order in which kinds of values take precedence."""
    if eqn.primitive in CALLS:
        return _call(eqn, operands, needed)
    try:
        if eqn.primitive in CONTROL and (values := CONTROL[eqn.primitive](eqn, operands, needed)):
            return values
        if any(isinstance(v, Factor) for v in operands):
            return factor_rule(eqn, operands)
        refusals = [v for v in operands if isinstance(v, Opaque)]
        if refusals:
            return [_at(refusals[0], eqn)] * len(eqn.outvars)
        return _apply(eqn, operands)
    except NoLaw as reason:
        return [Opaque(str(reason), eqn, roots_of(operands))] * len(eqn.outvars)


def _apply(eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
    known = all(isinstance(v, Constant | Key) for v in operands)
    if known and eqn.primitive not in SAMPLERS:
        return known_rule(eqn, operands)
    if eqn.primitive in RULES:
        return [RULES[eqn.primitive](eqn, *operands)]
    if eqn.primitive is lax.qr_p:
        return qr_rule(eqn, operands[0])
    if eqn.primitive in NUMPY_RULES:
        return [elementwise_rule(eqn, operands)]
    if eqn.primitive in SAMPLERS:
        raise NoLaw("of the samplers, only those made of uniform floats are read")
    raise NoLaw("it mixes, orders or repeats the elements, which are then not independent")


def _call(eqn: JaxprEqn, operands: list[Value], needed: list[bool]) -> list[Value]:
    """Inside a library function there may be no line of the user's: the caller's is kept too."""
    values = read(called_jaxpr(eqn), operands, needed)
    known = {id(v) for v in operands}
    return [replace(v, calls=(*v.calls, eqn)) if isinstance(v, Opaque) and id(v) not in known else v for v in values]


def _at(value: Opaque, eqn: JaxprEqn) -> Opaque:
    """Data have no equation of their own: the first that reads them is where the reading stopped."""
    return replace(value, eqn=eqn) if value.eqn is None else value


# Control flow: rule(eqn, operands, needed) -> values, or None to let the other rules refuse.


def _cond_rule(eqn: JaxprEqn, operands: Sequence[Value], needed: Sequence[bool]) -> Sequence[Value] | None:
    which, *args = operands
    if not isinstance(which, Constant):
        return None
    branches = eqn.params["branches"]
    return read(branches[min(max(scalar_int(which), 0), len(branches) - 1)], args, needed)


def _scan_rule(eqn: JaxprEqn, operands: Sequence[Value], needed: Sequence[bool]) -> Sequence[Value]:
    """Unrolled: initialisers of stacked layers scan over their keys."""
    body, length, reverse = (eqn.params[k] for k in ("jaxpr", "length", "reverse"))
    if length > MAX_SCAN:
        raise NoLaw(f"it is a loop of more than {MAX_SCAN} steps")
    num_consts, num_carry = scan_counts(eqn)
    first_row = num_consts + num_carry
    consts, carry = operands[:num_consts], list(operands[num_consts:first_row])
    wanted = [True] * num_carry + list(needed[num_carry:])
    steps: list[list[Value]] = []
    for i in reversed(range(length)) if reverse else range(length):
        rows = [_row(column, i) for column in operands[first_row:]]
        outputs = read(body, [*consts, *carry, *rows], wanted)
        carry = outputs[:num_carry]
        steps.append(outputs[num_carry:])
    columns = zip(*(steps[::-1] if reverse else steps), strict=True)
    return [*carry, *(_stack(eqn, column) for column in columns)]


def _row(column: Value, i: int) -> Value:
    if isinstance(column, Key):
        return Key(column.value[i])
    if isinstance(column, Constant):
        value = column.value
        row = value[i if value.shape[0] > 1 else 0] if value.ndim else value
        return Constant(column.shape[1:], compress(row))
    if isinstance(column, Opaque):
        return column
    raise NoLaw("it is a loop over random numbers")


def _stack(eqn: JaxprEqn, rows: Sequence[Value]) -> Value:
    """One array of the results of all steps."""
    for row in rows:
        if isinstance(row, Opaque):
            return row
    keys = [row.value for row in rows if isinstance(row, Key)]
    if keys and len(keys) == len(rows):
        return Key(jnp.stack(keys))
    try:
        laws = [as_moments(row) for row in rows]
        if len(roots_of(laws)) < sum(len(law.roots) for law in laws):
            raise NoLaw("steps of the loop use the same random numbers")
    except NoLaw as reason:
        return Opaque(str(reason), eqn, roots_of(rows))
    if not laws:
        raise NoLaw("it is a loop of no steps")
    shape = (len(laws), *laws[0].shape)
    rank = len(laws[0].shape)
    orders = [_stack_arrays([law.cumulants.orders[n] for law in laws], rank) for n in range(4)]
    if not roots_of(laws):
        return Constant(shape, orders[0])
    return Moments(shape, Cumulants((orders[0], orders[1], orders[2], orders[3])), roots_of(laws))


def _stack_arrays(arrays: Sequence[np.ndarray], rank: int) -> np.ndarray:
    full = np.broadcast_arrays(*(a.reshape(a.shape or (1,) * rank) for a in arrays))
    return compress(np.stack(full))


CONTROL: dict[Primitive, Callable[..., Sequence[Value] | None]] = {
    lax.cond_p: _cond_rule,
    lax.scan_p: _scan_rule,
}
