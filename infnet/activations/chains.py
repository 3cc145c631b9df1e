"""Chains: jaxprs of one array to one array, which may or may not be elementwise functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from infnet._jax import lax_primitives as lax
from infnet.numpy_rules import CALLS, NUMPY_RULES, SHAPE_ONLY, called_jaxpr, evaluate

_KNOWN = NUMPY_RULES.keys() | SHAPE_ONLY | CALLS


def equations(chain: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """All equations, those inside calls included."""
    for eqn in chain.jaxpr.eqns:
        yield eqn
        if eqn.primitive in CALLS:
            yield from equations(called_jaxpr(eqn))


def operations(chain: ClosedJaxpr) -> str:
    """The names of the operations, for messages."""
    names = [e.primitive.name for e in equations(chain) if e.primitive not in SHAPE_ONLY | CALLS]
    return ", ".join(dict.fromkeys(names)) or "constant"


def derivative(chain: ClosedJaxpr) -> ClosedJaxpr:
    """phi' of an elementwise phi, exactly as `jax.grad` defines it; traced, not run."""
    function = jaxpr_as_fun(chain)

    def forward(x):
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    def reverse(x):
        (y,), pullback = jax.vjp(function, x)
        return pullback([jnp.ones_like(y)])

    # A custom_vjp has no forward derivative. Where both exist, the forward one is the shorter.
    custom_vjp = any(eqn.primitive is lax.custom_vjp_call_p for eqn in equations(chain))
    aval = chain.in_avals[0]
    x = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    return jax.make_jaxpr(reverse if custom_vjp else forward)(x)


def obstacle(chain: ClosedJaxpr) -> str | None:
    """Why the chain is not an elementwise function with concrete constants, if it is not."""
    avals = (*chain.in_avals, *chain.out_avals)
    if len(avals) != 2 or not all(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
        return "it is not a function of one real array to one real array"
    for eqn in equations(chain):
        if eqn.primitive not in _KNOWN:
            return f"`{eqn.primitive}` is not an elementwise operation known here"
    try:
        _orders(chain, [()])
        with np.errstate(all="ignore"):
            evaluate(chain, 0.0)
    except _Obstacle as error:
        return str(error)
    except ValueError:
        return "it contains an array of different constants: its elements are different functions"
    except TypeError:  # a tracer is not an array
        return "it depends on a value that is not known while the kernel function is traced"
    return None


class _Obstacle(Exception):
    """Never leaves this module."""


Order = tuple[str, ...] | None
"""How the elements were moved since the input; None for what does not depend on the input."""


def _orders(jaxpr: ClosedJaxpr, arguments: list[Order]) -> list[Order]:
    """Check that every operation combines each element with itself: `x + x.T` does not."""
    env: dict[Var, Order] = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.jaxpr.eqns:
        inputs = [None if isinstance(a, Literal) else env.get(a) for a in eqn.invars]
        if eqn.primitive in CALLS:
            outputs = _orders(called_jaxpr(eqn), inputs)
        else:
            different = {order for order in inputs if order is not None}
            if len(different) > 1:
                raise _Obstacle(f"`{eqn.primitive}` combines different elements of the array")
            order = different.pop() if different else None
            outputs = [_moved(eqn, order)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [None if isinstance(a, Literal) else env.get(a) for a in jaxpr.jaxpr.outvars]


def _moved(eqn: JaxprEqn, order: Order) -> Order:
    if order is None or eqn.primitive not in SHAPE_ONLY:
        return order
    avals: list[Any] = [eqn.invars[0].aval, eqn.outvars[0].aval]
    before, after = (aval.shape for aval in avals)
    move = f"{eqn.primitive} {before} {after} {eqn.params}"
    if eqn.primitive in (lax.transpose_p, lax.rev_p):
        return (*order, move)
    # reshape, squeeze and broadcast_in_dim keep the row-major order unless elements are repeated
    return order if math.prod(before) == math.prod(after) else (*order, move)
