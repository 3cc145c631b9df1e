"""`KernelFn.explain()`: the plan as a table that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import NAMES, InputKind
from infnet.computation import Computation
from infnet.context import Weights
from infnet.execute import Given
from infnet.explanation import Explanation, OutputError, Row
from infnet.nodes import Contraction, Elementwise, GroupedConvolution, GroupSum, Node, ParamNode, Repeated
from infnet.plan import Ask, Plan, Step
from infnet.priors import Prior
from infnet.running import Runner, Task
from infnet.step_costs import step_costs
from infnet.tiling import tile_sizes

NARROW = 16
MANY = 1000  # examples, of which the time of steps is that of a tile


@dataclass(frozen=True)
class Subject:
    """What is explained: a computation, the laws of its parameters, with their paths, and its precision."""

    computation: Computation
    weights: Weights
    paths: Sequence[str]
    priors: Sequence[Prior]
    precision: str

    @property
    def plan(self) -> Plan:
        """Of both kernels between two different examples."""
        return self.computation.plan(("ntk",), (1, 2))


@dataclass(frozen=True)
class Found:
    """What is known from examples.

    Attributes:
        step_errors: the largest relative error of a step, by the key of its request.
        errors: of the outputs.
    """

    step_errors: Mapping[Any, float]
    errors: tuple[OutputError, ...]


def found_from(runner: Runner, weights: Weights, kind: InputKind, x1: Given, x2: Given) -> Found:
    """What is known from a few examples: nothing on errors if the kernels are sampled."""
    if any(step.sampled for step in runner.computation(kind).plan(("ntk",), (1, 2)).steps):
        return Found({}, ())
    bounds, of_steps = runner.error_bounds(NAMES, weights, kind, x1, x2)
    kernels = runner.compute(Task("matrix", NAMES), weights, kind, x1, x2)
    errors = []
    for name in NAMES:
        for number, (bound, kernel) in enumerate(zip(bounds[name], kernels[name], strict=True)):
            absolute, largest = float(bound.max(initial=0)), float(jnp.abs(kernel).max(initial=0))
            errors.append(OutputError(number, name, absolute, absolute / largest if largest else 0.0))
    return Found({key: float(error.max(initial=0)) for key, error in of_steps.items()}, tuple(errors))


def explain(
    subject: Subject,
    example: Sequence[jax.ShapeDtypeStruct],
    error: float | None,
    found: Found | None = None,
) -> Explanation:
    """One row per step between two different examples.

    Args:
        subject: what is explained.
        example: shapes of the leaves of an example, without the batch axis.
        error: the largest bound of the last run; with examples, theirs are told instead.
        found: what is known from examples.
    """
    plan = subject.plan
    tile = tile_sizes(plan, MANY, MANY, False) if found else None
    costs = step_costs(subject.computation, plan, subject.weights, example, tile)
    steps = [s for s in plan.steps if isinstance(s.request, Ask) and s.request.side == (1, 2)]
    size = sum(costs[s.request.key].bytes for s in steps)
    seconds = sum(costs[s.request.key].seconds or 0.0 for s in steps)
    rows = []
    for step in steps:
        key, cost = step.request.key, costs[step.request.key]
        rows.append(
            Row(
                step.where.module,
                step.where.line,
                step.rule,
                cost.primitives,
                str(step.request.layout) if isinstance(step.request, Ask) else "",
                _is_gaussian(step),
                _exact(subject.computation, step),
                cost.bytes / max(size, 1),
                None if cost.seconds is None else cost.seconds / max(seconds, 1e-9),
                None if found is None else found.step_errors.get(key, 0.0),
            )
        )
    nodes = [s.request.u for s in steps if isinstance(s.request, Ask)]
    remarks = [*_on_numbers(subject, error, found), *subject.computation.program.remarks, *_on_limits(subject, nodes)]
    return Explanation(tuple(rows), tuple(remarks), found.errors if found else ())


def _is_gaussian(step: Step) -> bool:
    return isinstance(step.request, Ask) and step.request.u.gaussian and step.request.v.gaussian


def _exact(computation: Computation, step: Step) -> str:
    """With the number of terms that the examples need, where it is a series."""
    if step.error is None or not isinstance(step.request, Ask):
        return step.exact
    settled = computation.activations.get(step.request.u.index)
    return step.exact if settled is None else settled.exact


def _on_numbers(subject: Subject, error: float | None, found: Found | None) -> list[str]:
    """What is computed, in which dtype, and how far off it may be."""
    computation = subject.computation
    parameterization = "ntk" if computation.ntk_units else "as_model"
    dtype = "float64" if subject.precision == "highest" else jnp.dtype(computation.dtype).name
    remarks = [f"{parameterization} parameterization; NNGP and NTK per output channel, computed in {dtype}"]
    if error and found is None:
        remarks.append(f"in the last call, the relative error of each of these kernels was at most {error:.2g}")
    if found is not None:
        some = [str(one) for one in found.errors if one.absolute]
        text = "besides rounding errors, to first order, the error is at most " + ", ".join(some)
        exact = (
            "the kernels are sampled, with standard errors"
            if not found.errors
            else "no step has an error besides rounding"
        )
        remarks.append(text if some else exact)
    return remarks


def _on_limits(subject: Subject, nodes: Sequence[Node]) -> list[str]:
    """What is taken for infinite, and for Gaussian."""
    widths = [(width, node.where.module) for node in nodes if (width := width_of(node)) is not None]
    remarks = []
    if widths:
        width, module = min(widths)
        remarks.append(f"channels sent to infinity; the smallest width is {width} ({module})")
        if width < NARROW:
            remarks.append(f"warning: a width below {NARROW} is far from the infinite-width limit")
    for node in nodes:
        if isinstance(node, Contraction) and not isinstance(node, GroupedConvolution) and not node.operand.leaves:
            first = "meets the inputs directly: the first layer is Gaussian only up to kurtosis * sum x^4 / (sum x^2)^2"
            remarks += _on_law(subject, node.param.key.leaf, first)
    arguments = {key.leaf for node in nodes if isinstance(node, Elementwise) for key, _ in node.operand.leaves}
    for leaf in {node.param.key.leaf: None for node in nodes if isinstance(node, ParamNode)}:
        if leaf in arguments:
            added = "is added before a nonlinearity: its argument is Gaussian only up to kurtosis * std^4 / variance^2"
            remarks += _on_law(subject, leaf, added)
    return remarks


def _on_law(subject: Subject, leaf: int, use: str) -> list[str]:
    """What follows from the use of a parameter that is not normal; nothing if it is."""
    kurtosis = max(np.ravel(subject.priors[leaf].kurtosis), key=abs, default=0.0)
    return [f"{subject.paths[leaf]} has excess kurtosis {kurtosis:.3g} and {use}"] if kurtosis else []


def width_of(node: Node) -> int | None:
    """How many channels, or heads, a node takes for infinitely many."""
    if isinstance(node, Contraction):
        return node.channels if node.operand.leaves and not isinstance(node, GroupedConvolution) else None
    if isinstance(node, GroupSum):
        return node.count
    if isinstance(node, Repeated):
        return min(node.groups, node.stride) if node.stride > 1 else node.groups
    return None
