"""The one door to the parts of JAX that move between versions.

Everything here is public (`jax.extend`, `jax.interpreters`), but `jax.extend` promises no compatibility
between releases: when a JAX release moves a name, this file is the only one that changes. All other
modules import jaxpr types and primitives from here, and recognise primitives by these objects, never by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun
from jax.extend.core import primitives as lax_primitives
from jax.extend.random import define_prng_impl
from jax.extend.source_info_util import register_exclusion, summarize
from jax.interpreters import ad, batching, mlir

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "ad",
    "batching",
    "define_prng_impl",
    "evaluate_equation",
    "jaxpr_as_fun",
    "jit_is_disabled",
    "lax_primitives",
    "mlir",
    "optimization_barrier_p",
    "register_exclusion",
    "scan_counts",
    "split_p",
    "stack_p",
    "summarize",
    "tile_p",
    "unstack_p",
]


def evaluate_equation(equation: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr on `values`, one per input; literals keep their own."""
    bound = {v: x for v, x in zip(equation.invars, values, strict=True) if not isinstance(v, Literal)}
    name = DebugInfo("infnet", equation.primitive.name, None, None)
    jaxpr = Jaxpr((), list(bound), equation.outvars, [equation], equation.effects, name)
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*bound.values())


def scan_counts(equation: JaxprEqn) -> tuple[int, int]:
    """The numbers of constants and of carried values of a `scan`; how its parameters say so depends on the version."""
    body = equation.params["jaxpr"].jaxpr

    def more_axes(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        # What is scanned over, or stacked, has one more axis outside.
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outer, inner, strict=True))

    n_carry = len(equation.outvars) - more_axes(equation.outvars, body.outvars)
    return len(equation.invars) - more_axes(equation.invars, body.invars) - n_carry, n_carry


def jit_is_disabled() -> bool:
    """Whether the code runs inside of `jax.disable_jit()`; `jax.config` does not declare its options' types."""
    config: Any = jax.config
    return bool(config.jax_disable_jit)


def _primitive_of(function: Callable[..., Any], *shape: int) -> Primitive:
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, "float32")).eqns[0].primitive


# Not listed in `jax.extend.core.primitives` (jax 0.10 to 0.12).
split_p = _primitive_of(lambda x: jax.lax.split(x, (1, 1), 0), 2)
stack_p = _primitive_of(lambda x: jax.numpy.stack([x, x]), 2)
tile_p = _primitive_of(lambda x: jax.lax.tile(x, (2,)), 2)
unstack_p = _primitive_of(lambda x: jax.numpy.unstack(x)[0], 2)
optimization_barrier_p = _primitive_of(lambda x: jax.lax.optimization_barrier(x), 2)
