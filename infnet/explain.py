"""`KernelFn.explain()`: the plan as a table that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infnet.plan import Ask, Plan
from infnet.priors import Prior
from infnet.program import Contraction, KnownNode, Program

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
    program: Program, plan: Plan, paths: Sequence[str], priors: Sequence[Prior], parameterization: str
) -> Explanation:
    """One row per step between two different examples."""
    rows, widths, kurtosis = [], [], []
    for step in plan.steps:
        request = step.request
        if not isinstance(request, Ask) or request.side != (1, 2):
            continue
        gaussian = request.u.gaussian and request.v.gaussian
        rows.append(Row(step.where.module, step.where.line, step.rule, str(request.layout), gaussian, step.exact))
        node = request.u
        if not isinstance(node, Contraction):
            continue
        leaf = node.param.key.leaf
        if not isinstance(node.operand, KnownNode):
            widths.append((node.channels, node.where.module))
        elif np.any(np.asarray(priors[leaf].kurtosis)):
            kurtosis.append((paths[leaf], float(np.max(np.abs(priors[leaf].kurtosis)))))
    remarks = [f"{parameterization} parameterization; NNGP and NTK per output channel"]
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
