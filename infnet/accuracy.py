"""How many terms a series needs for the examples at hand, and what to say where a result cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from infnet.activations import Activation
from infnet.activations.series import SeriesActivation
from infnet.computation import Computation
from infnet.context import Weights
from infnet.errors import NumericalError, UnsupportedError
from infnet.execute import Given, example_values, steps_one_by_one
from infnet.nodes import Elementwise
from infnet.plan import Ask, AskKnown, Moments, Plan, variance
from infnet.results import Results


def series_nodes(plan: Plan) -> list[Elementwise]:
    """The nonlinearities of a plan whose kernels are series, and not only sampled."""
    asked = [step.request for step in plan.steps if not isinstance(step.request, AskKnown) and not step.sampled]
    nodes = {u.index: u for request in asked for u in (request.u, getattr(request, "v", request.u))}
    found = [n for n in nodes.values() if isinstance(n, Elementwise) and isinstance(n.activation, SeriesActivation)]
    found = [
        n for n in found if (own := variance(n.operand, 1)) is None or own.key in plan.by_key or n.operand.gaussian
    ]
    return sorted(found, key=lambda node: node.index)


def settled(
    computation: Computation, plan: Plan, tol: float, variances: Mapping[int, float], margin: float
) -> tuple[dict[int, Activation], dict[int, UnsupportedError]]:
    """The series of each node, with terms enough for a relative error below `tol` at the variances of its argument.

    With terms for variances larger by the factor `margin`, if so many are at hand. Layers with the same function get
    the same number of terms, so that they stay alike (see `schedule`).

    Returns:
        the series; and where moments are sampled, those that do not converge, with the error that says so.

    Raises:
        UnsupportedError: a series does not converge to `tol` at the variances themselves, and moments are not sampled.
    """
    alike: dict[Activation, list[Elementwise]] = {}
    for node in series_nodes(plan):
        if node.index in computation.too_slow:
            continue
        alike.setdefault(_series(computation, node), []).append(node)
    found: dict[int, Activation] = {}
    too_slow = dict(computation.too_slow)
    for nodes in alike.values():
        worst, indices = max(nodes, key=lambda node: variances[node.index]), [node.index for node in nodes]
        try:
            found.update(dict.fromkeys(indices, _with_terms(computation, worst, tol, variances, margin)))
        except UnsupportedError as error:
            if computation.replicate is None:
                raise
            too_slow.update(dict.fromkeys(indices, error))
    return found, too_slow


def _with_terms(
    computation: Computation, node: Elementwise, tol: float, variances: Mapping[int, float], margin: float
) -> SeriesActivation:
    series, q = _series(computation, node), variances[node.index]
    with suppress(UnsupportedError):
        return series.with_order(tol, margin * q)
    return series.with_order(tol, q)


def _series(computation: Computation, node: Elementwise) -> SeriesActivation:
    activation = computation.activations.get(node.index, node.activation)
    assert isinstance(activation, SeriesActivation)
    return activation


def largest_variances(computation: Computation, plan: Plan, weights: Weights, x: Given) -> dict[int, float]:
    """The largest second moment of the argument of each series, over examples and positions."""
    nodes = series_nodes(plan)
    requests = [variance(n.operand, 1) for n in nodes]
    # As outputs they are kept, also those that only other steps about the same example need.
    plan = replace(plan, outputs=(*plan.outputs, *requests))
    schedule = computation.schedule(plan)

    def of_example(given: Given) -> list[jax.Array]:
        context = computation.context(weights)
        values = example_values(schedule, computation.program.trace, context, 1, given)
        results = Results(plan, schedule.places, {1: values})
        blocks = [results.read(request) for request in requests]
        return [jnp.zeros(()) if b is None or b.s is None else b.s.max(initial=0) for b in blocks]

    if not nodes or not len(jax.tree.leaves(x)[0]):
        return {n.index: 0.0 for n in nodes}
    found = jax.jit(jax.vmap(of_example))(x)
    return {n.index: float(np.nanmax(np.asarray(q), initial=0)) for n, q in zip(nodes, found, strict=True)}


def raise_not_finite(computation: Computation, plan: Plan, weights: Weights, given: Mapping[int, Given]) -> None:
    """Say in which layer a pair of finite examples first gave a number that is not finite.

    Args:
        computation, plan: of pairs of examples.
        weights: laws of the parameters.
        given: one example of x1 (1), one of x2 (2), and the moments of the pair (0) if the input is random itself.

    Raises:
        NumericalError: always.
    """
    context = computation.context(weights)
    for step, result in steps_one_by_one(plan, computation.program.trace, context, given):
        moments = [m for m in result if m is not None] if isinstance(result, Moments) else [result]
        if all(m is None or bool(jnp.isfinite(m).all()) for m in moments):
            continue
        what = "variance" if isinstance(step.request, Ask) and len(set(step.request.side)) == 1 else "kernel"
        raise NumericalError(
            f"the {what} is not finite from this layer on\n"
            f"  where:  {step.where}\n"
            f"  why:    the inputs are finite, but the result of `{step.rule}` does not fit into "
            f"{jnp.dtype(computation.dtype).name}\n"
            "  remedy: smaller weights or inputs, a normalisation between the layers, or float64 "
            "(`jax.config.update('jax_enable_x64', True)`, or precision=\"highest\" if the result fits)"
        )
    output = plan.steps[-1]
    raise NumericalError(
        "the kernel is not finite\n"
        f"  where:  {output.where}, or a layer before it\n"
        "  why:    the inputs are finite, and so is each step by itself of the first pair of examples for which the "
        f"kernel is not: compiled together, they do not fit into {jnp.dtype(computation.dtype).name}\n"
        '  remedy: smaller weights or inputs, or precision="highest"'
    )
