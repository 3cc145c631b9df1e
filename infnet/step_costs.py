"""What each step of a plan for pairs takes: kernel primitives, bytes, and the time of a tile of pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import ClosedJaxpr
from infnet.computation import Computation
from infnet.context import InputMoments, KnownValues, Weights
from infnet.independence import bodies
from infnet.nodes import InputFeature
from infnet.plan import Ask, AskKnown, Plan, Step, home
from infnet.results import as_function
from infnet.signature import Signatures

SUFFIX = "_kernel"  # of the names of the primitives that compute kernels
RUNS = 3  # of which the fastest counts


@dataclass(frozen=True)
class StepCost:
    """What a step takes.

    Attributes:
        primitives: the kernel primitives that it binds, without their suffix; none where it only adds and moves.
        bytes: of its result, for one pair of examples, or for one example if it is about one.
        seconds: that a tile of pairs takes, compiled by itself and run on made-up numbers; None if not measured.
    """

    primitives: tuple[str, ...]
    bytes: int
    seconds: float | None = None


def step_costs(
    computation: Computation,
    plan: Plan,
    weights: Weights,
    example: Sequence[jax.ShapeDtypeStruct],
    tile: tuple[int, int] | None = None,
) -> dict[Any, StepCost]:
    """The cost of each step, by the key of its request. Steps that do the same (`signature`) are looked at once.

    Args:
        computation: of the plan.
        plan: of pairs of examples.
        weights: laws of the parameters.
        example: shapes of the leaves of an example, without the batch axis.
        tile: for how many examples x1 and x2 to measure the time; None for not at all.
    """
    context = replace(computation.context(weights), inputs=_random_inputs(plan, computation.dtype))
    signatures, trace = Signatures(plan, computation.activations), computation.program.trace
    shapes, alike, found = dict[Any, Any](), dict[Any, tuple[Any, StepCost]](), dict[Any, StepCost]()
    for step in plan.steps:
        key = step.request.key
        if isinstance(step.request, AskKnown) and not step.request.sums:
            var = step.request.var
            shapes[key] = jax.eval_shape(lambda x, var=var: KnownValues(trace, x)[var], list(example))
            continue
        given = [None if r is None else shapes[r.key] for r in step.requests]
        same = (signatures.of(step)[0], jax.tree.structure(given), tuple(map(_shape, jax.tree.leaves(given))))
        if same not in alike:
            alike[same] = _cost(as_function(plan, context, step), step, given, tile)
        shapes[key], found[key] = alike[same]
    return found


def _shape(x: Any) -> tuple[Any, ...]:
    return x.shape, x.dtype


def _random_inputs(plan: Plan, dtype: Any) -> dict[int, InputMoments]:
    """Moments of an input that is random itself, of the right shapes."""
    sizes = {
        s.request.u.sizes for s in plan.steps if isinstance(s.request, Ask) and isinstance(s.request.u, InputFeature)
    }
    for own in sizes:
        block = jnp.ones([n for n in own for _ in range(2)], dtype)
        return dict.fromkeys((0, 1, 2), InputMoments(block, block, jnp.ones(own, dtype)))
    return {}


def _cost(
    function: Callable[..., Any], step: Step, given: Sequence[Any], tile: tuple[int, int] | None
) -> tuple[Any, StepCost]:
    jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*given)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(result))
    measured = tile is not None and home(step.request) == 0
    seconds = _seconds(function, step, given, tile) if tile is not None and measured else None
    return result, StepCost(tuple(dict.fromkeys(_primitives(jaxpr))), size, seconds)


def _primitives(closed: ClosedJaxpr) -> list[str]:
    found: list[str] = []
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name.endswith(SUFFIX):
            found.append(equation.primitive.name.removesuffix(SUFFIX))
        for body in bodies(equation):
            found.extend(_primitives(body))
    return found


def _seconds(function: Callable[..., Any], step: Step, given: Sequence[Any], tile: tuple[int, int]) -> float:
    """The time of a tile: what is about one example of x1 has an axis of rows, about x2 of columns, a pair both."""
    sides = [None if r is None else home(r) for r in step.requests]
    axes = {0: tile, 1: tile[:1], 2: tile[1:], None: ()}
    values = [
        jax.tree.map(lambda x, side=side: _made_up((*axes[side], *x.shape), x.dtype), own)
        for own, side in zip(given, sides, strict=True)
    ]
    for other in (1, 2):  # the columns, and then the rows
        mapped = [None if side in (other, None) else 0 for side in sides]
        function = jax.vmap(function, mapped) if any(axis == 0 for axis in mapped) else function
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*values))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*values))
        times.append(time.perf_counter() - start)
    return min(times)


def _made_up(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.full(shape, 0.5, dtype) if jnp.issubdtype(dtype, jnp.inexact) else jnp.zeros(shape, dtype)
