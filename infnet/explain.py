"""`KernelFn.explain()`: the plan as a table that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from infnet.computation import Computation
from infnet.nodes import Contraction, GroupedConvolution, GroupSum, Node, Repeated
from infnet.plan import Ask
from infnet.priors import Prior

NARROW = 16


@dataclass(frozen=True)
class Row:
    """One step: where it comes from, the rule, which pairs of positions it computes, and how exact it is."""

    module: str
    line: str
    rule: str
    offsets: str
    gaussian: bool
    exact: str


@dataclass(frozen=True)
class Explanation:
    """The steps of a kernel computation, and remarks. Print it, or read `rows`."""

    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        head = ("module", "rule", "positions", "Gaussian", "exact", "line")
        cells = [
            (r.module, r.rule, r.offsets, "yes" if r.gaussian else "no", r.exact, r.line.rsplit("/", 1)[-1])
            for r in self.rows
        ]
        widths = [max(len(row[k]) for row in (head, *cells)) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *cells)]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join([lines[0], rule, *lines[1:], *self.remarks])


def explain(
    computation: Computation, paths: Sequence[str], priors: Sequence[Prior], precision: str, error: float | None
) -> Explanation:
    """One row per step between two different examples; `error`: the largest bound of the last run."""
    plan = computation.plan(("ntk",), (1, 2))
    rows, widths, kurtosis = [], [], []
    for step in plan.steps:
        request = step.request
        if not isinstance(request, Ask) or request.side != (1, 2):
            continue
        gaussian = request.u.gaussian and request.v.gaussian
        settled = computation.activations.get(request.u.index)
        exact = step.exact if settled is None else settled.exact
        rows.append(Row(step.where.module, step.where.line, step.rule, str(request.layout), gaussian, exact))
        node = request.u
        width = width_of(node)
        if width is not None:
            widths.append((width, node.where.module))
        if isinstance(node, Contraction) and not isinstance(node, GroupedConvolution) and not node.operand.leaves:
            leaf = node.param.key.leaf
            if np.any(np.asarray(priors[leaf].kurtosis)):
                kurtosis.append((paths[leaf], float(np.max(np.abs(priors[leaf].kurtosis)))))
    parameterization = "ntk" if computation.ntk_units else "as_model"
    dtype = "float64" if precision == "highest" else jnp.dtype(computation.dtype).name
    remarks = [f"{parameterization} parameterization; NNGP and NTK per output channel, computed in {dtype}"]
    if error:
        remarks.append(f"in the last call, the relative error of each of these kernels was at most {error:.2g}")
    remarks.extend(computation.program.remarks)
    if widths:
        width, module = min(widths)
        remarks.append(f"channels sent to infinity; the smallest width is {width} ({module})")
        if width < NARROW:
            remarks.append(f"warning: a width below {NARROW} is far from the infinite-width limit")
    remarks.extend(
        f"{path} has excess kurtosis {k:.3g} and meets the inputs directly: the first layer is Gaussian only up to "
        "kurtosis * sum x^4 / (sum x^2)^2"
        for path, k in kurtosis
    )
    return Explanation(tuple(rows), tuple(remarks))


def width_of(node: Node) -> int | None:
    """How many channels, or heads, a node takes for infinitely many."""
    if isinstance(node, Contraction):
        return node.channels if node.operand.leaves and not isinstance(node, GroupedConvolution) else None
    if isinstance(node, GroupSum):
        return node.count
    if isinstance(node, Repeated):
        return min(node.groups, node.stride) if node.stride > 1 else node.groups
    return None
