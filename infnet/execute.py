"""Stage 4: run a plan, for single examples and then for one pair of them.

`jax.vmap` makes it a kernel matrix (`tiling`): what depends on one example alone is computed once per example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from infnet.context import Context, InputMoments, KnownValues
from infnet.loops import run_loop
from infnet.plan import AskKnown, Plan, Step
from infnet.results import Results, Values, run_step
from infnet.schedule import Loop, Schedule
from infnet.trace import Trace

Given = Sequence[Any] | InputMoments  # the leaves of an example; or its moments, if the input is random itself


def example_values(schedule: Schedule, trace: Trace, context: Context, side: int, inputs: Given) -> Values:
    """What the plan needs of one example by itself: known variables, variances and means.

    Args:
        schedule: of the steps for pairs of examples, and for single ones.
        trace: where the known variables are computed.
        context: of this computation.
        side: 1 for an example of x1, 2 for one of x2.
        inputs: leaves of the example, without the batch axis, or its moments.
    """
    values = Values()
    context = _given(context, trace, {side: inputs})
    _run(schedule, context, side, {side: values})
    return values.picked(schedule.kept(side), schedule.places)


def pair_moments(
    schedule: Schedule, context: Context, values: Mapping[int, Values], inputs: InputMoments | None = None
) -> tuple[list[Any], jax.Array | None]:
    """What the plan's outputs ask for, of one pair of examples (or one example with itself).

    Args:
        schedule: as above.
        context: of this computation.
        values: what was computed of each example.
        inputs: the moments of the pair, if the input is random itself.

    Returns:
        the moments and means (None for zero), and the largest bound on the relative error if any step reported one.
    """
    if inputs is not None:
        context = replace(context, inputs={**context.inputs, 0: inputs})
    found = {**values, 0: Values()}
    _run(schedule, context, 0, found)
    errors = [e for v in found.values() for e in v.errors]
    worst = jnp.stack(errors).max() if errors else None
    results = Results(schedule.plan, schedule.places, found)
    return [results.read(request) for request in schedule.plan.outputs], worst


def _given(context: Context, trace: Trace, inputs: Mapping[int, Given]) -> Context:
    """The context in which these examples are known, or these moments of examples and pairs."""
    moments = {side: x for side, x in inputs.items() if isinstance(x, InputMoments)}
    examples = {side: KnownValues(trace, () if isinstance(x, InputMoments) else x) for side, x in inputs.items()}
    return replace(context, examples=examples, inputs=moments)


def _run(schedule: Schedule, context: Context, side: int, values: Mapping[int, Values]) -> None:
    results = Results(schedule.plan, schedule.places, values)
    for part in schedule.parts[side]:
        if isinstance(part, Loop):
            run_loop(part, context, results, side)
        else:
            run_step(part, context, results)


def steps_one_by_one(
    plan: Plan, trace: Trace, context: Context, inputs: Mapping[int, Given]
) -> Iterator[tuple[Step, Any]]:
    """Each step of a plan with its result, for one pair of examples; to find out where something goes wrong."""
    values = {side: Values() for side in (0, 1, 2)}
    context = _given(context, trace, inputs)
    results = Results(plan, {}, values)
    for step in plan.steps:
        run_step(step, context, results)
        if not isinstance(step.request, AskKnown):
            yield step, results.whole(step.request)
