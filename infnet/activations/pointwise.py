"""Elementwise jaxprs as JAX functions of arrays of any shape and floating dtype, and when two of them are the same.

A jaxpr was traced on one shape and in one dtype. `callable_of` runs its equations again, one primitive at a time, on
arrays of another shape: moving and repeating elements is the identity, constants are scalars. It is the counterpart
of `numpy_rules.evaluate` for use inside of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, Primitive, Var, evaluate_equation
from infnet._jax import lax_primitives as lax
from infnet.numpy_rules import CALLS, SHAPE_ONLY, called_jaxpr, float64

_IDENTITY = SHAPE_ONLY | {lax.reduce_precision_p}
_CUSTOM = frozenset({lax.custom_jvp_call_p, lax.custom_vjp_call_p})


def callable_of(chain: ClosedJaxpr, *, custom_rules: bool) -> Callable[[jax.Array], jax.Array]:
    """The function of an elementwise jaxpr (see `chains.obstacle`), which can be differentiated forward.

    Args:
        chain: jaxpr of one array to one array.
        custom_rules: whether its derivatives follow `custom_jvp`, `custom_vjp` and `stop_gradient` in it, or are
            those of the values.
    """

    def function(x: jax.Array) -> jax.Array:
        (y,) = _run(chain, [x], x.dtype, custom_rules)
        return jnp.broadcast_to(y, x.shape)

    return function


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _run(jaxpr: ClosedJaxpr, operands: Sequence[Any], dtype: Any, custom_rules: bool) -> list[Any]:
    def constant(value: Any) -> jax.Array:
        array = np.asarray(value).reshape(-1)[0]
        return jnp.asarray(array, dtype if _floating(array) else array.dtype)

    env: dict[Var, Any] = dict(zip(jaxpr.jaxpr.invars, operands, strict=True))
    env.update(zip(jaxpr.jaxpr.constvars, map(constant, jaxpr.consts), strict=True))

    def read(atom: Var | Literal) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else env[atom]

    identity = _IDENTITY if custom_rules else _IDENTITY | {lax.stop_gradient_p}
    for eqn in jaxpr.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if eqn.primitive in _CUSTOM and custom_rules and len(eqn.outvars) == 1 and all(map(_floating, inputs)):
            outputs = [_with_rule(eqn, dtype)(*inputs)]
        elif eqn.primitive in CALLS:
            outputs = _run(called_jaxpr(eqn), inputs, dtype, custom_rules)
        elif eqn.primitive in identity:
            outputs = inputs[:1]
        else:
            outputs = [_apply(eqn, inputs, dtype)]
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _apply(eqn: JaxprEqn, inputs: Sequence[Any], dtype: Any) -> Any:
    """One elementwise equation; whatever float type it was traced in, it is computed in `dtype`."""
    params = dict(eqn.params)
    if eqn.primitive is lax.convert_element_type_p and jnp.issubdtype(params["new_dtype"], jnp.floating):
        return inputs[0].astype(dtype)
    if eqn.primitive is lax.bitcast_convert_type_p:  # bits have a meaning in the traced type only
        traced: Any = eqn.invars[0].aval
        output = eqn.primitive.bind(inputs[0].astype(traced.dtype), **params)
        return output.astype(dtype) if _floating(output) else output
    return eqn.primitive.bind(*jnp.broadcast_arrays(*inputs), **params)


def _with_rule(eqn: JaxprEqn, dtype: Any) -> Callable[..., jax.Array]:
    """A call with its own derivative, which is traced as the call was, and then run like any jaxpr."""

    @jax.custom_jvp
    def call(*primals: jax.Array) -> jax.Array:
        (y,) = _run(called_jaxpr(eqn), primals, dtype, True)
        return y

    def rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        tangent = _run(_tangent(eqn), [*primals, *tangents], dtype, True)[0]
        y = call(*primals)
        return y, jnp.broadcast_to(tangent, y.shape)

    call.defjvp(rule)
    return call


def _tangent(eqn: JaxprEqn) -> ClosedJaxpr:
    """The directional derivative of an elementwise call, as the call's own rule has it."""

    def function(*xs: jax.Array) -> jax.Array:
        return evaluate_equation(eqn, xs)[0]

    def forward(xs: Any, tangents: Any) -> jax.Array:
        return jax.jvp(function, xs, tangents)[1]

    def reverse(xs: Any, tangents: Any) -> jax.Array:
        y, pullback = jax.vjp(function, *xs)
        return sum(g * t for g, t in zip(pullback(jnp.ones_like(y)), tangents, strict=True))

    avals: list[Any] = [atom.aval for atom in eqn.invars]
    xs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)
    return jax.make_jaxpr(forward if eqn.primitive is lax.custom_jvp_call_p else reverse)(xs, xs)


# Equality.


def structure(chain: ClosedJaxpr) -> Hashable:
    """What an elementwise jaxpr computes, as a key: equal keys, equal functions, however often they were traced.

    Rules of custom derivatives are not part of it: take the structure of the derivative as well.
    """
    equations: list[Hashable] = []
    numbers: dict[Var, Hashable] = {chain.jaxpr.invars[0]: 0}
    numbers.update(zip(chain.jaxpr.constvars, map(_constant_key, chain.consts), strict=True))
    outputs = _record(chain, numbers, equations)
    return (tuple(equations), tuple(outputs))


def _constant_key(value: Any) -> Hashable:
    array = float64(value).reshape(-1)[:1]
    return (str(array.dtype), array.tobytes())


def _record(jaxpr: ClosedJaxpr, numbers: dict[Var, Hashable], equations: list[Hashable]) -> list[Hashable]:
    """Append the equations, those inside of calls included, with their results numbered in order."""

    def read(atom: Var | Literal) -> Hashable:
        return _constant_key(atom.val) if isinstance(atom, Literal) else numbers[atom]

    for eqn in jaxpr.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if eqn.primitive in CALLS:
            body = called_jaxpr(eqn)
            inner = dict(zip(body.jaxpr.invars, inputs, strict=True))
            inner.update(zip(body.jaxpr.constvars, map(_constant_key, body.consts), strict=True))
            outputs = _record(body, inner, equations)
        elif eqn.primitive in SHAPE_ONLY:
            outputs = inputs[:1]
        else:
            equations.append((eqn.primitive, tuple(inputs), _params_key(eqn.primitive, eqn.params)))
            outputs = [len(equations)]
        numbers.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _params_key(primitive: Primitive, params: dict[str, Any]) -> Hashable:
    if primitive is lax.convert_element_type_p:
        return str(np.dtype(params["new_dtype"]))
    return tuple(sorted((name, repr(value)) for name, value in params.items()))
