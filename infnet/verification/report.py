"""What `verify` returns: what was compared, how far it is off, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from infnet.verification.trend import Trend

# A comparison that would not have noticed a larger deviation than this has tested little.
COARSE = 0.1
SHARE = "ntk share"


@dataclass(frozen=True, eq=False)
class Comparison:
    """One kernel of one output; entries have the shape of the kernel, `(n, n, h, h', w, w', ...)`.

    Deviations are relative: sampled mean minus kernel, divided by the root of the product of the two diagonal entries.

    Attributes:
        name: "nngp", "ntk" or "ntk share of Dense_0/kernel"; and of which output if there are several.
        deviations: by width, `(widths, ...)`.
        standard_errors: of these.
        trend: the fit.
    """

    name: str
    deviations: np.ndarray
    standard_errors: np.ndarray
    trend: Trend


@dataclass(frozen=True)
class Verification:
    """How a kernel function compares with random networks; print it, or read its fields. The last line is the verdict.

    Attributes:
        comparisons: of each kernel.
        multipliers: of the width, of the networks that were drawn.
        n_samples: their numbers.
        level: the probability of a false alarm, at most.
        threshold: of z-scores, that follows from it.
        resolution: the relative deviation that would have been found in any entry, with a probability of 0.9.
        remarks: what else there is to know.
        finite: whether all samples and kernels are finite numbers.
    """

    comparisons: tuple[Comparison, ...]
    multipliers: tuple[float, ...]
    n_samples: tuple[int, ...]
    level: float
    threshold: float
    resolution: float
    remarks: tuple[str, ...]
    finite: bool

    @property
    def z_scores(self) -> dict[str, np.ndarray]:
        """By kernel, entry by entry: the deviation at infinite width beyond the allowance, in standard errors."""
        return {one.name: one.trend.z_scores for one in self.comparisons}

    @property
    def deviates(self) -> bool:
        """Whether a z-score exceeds the threshold, or something is not finite."""
        return not self.finite or any(np.abs(z).max() > self.threshold for z in self.z_scores.values())

    @property
    def passed(self) -> bool:
        """Whether no deviation was found, and one of 10 % would have been."""
        return not self.deviates and self.resolution <= COARSE

    @property
    def verdict(self) -> str:
        """In one line."""
        if not self.finite:
            return "failed: a kernel, or that of a random network, is not finite"
        if self.deviates:
            return f"failed: {self._worst()}"
        found = f"a deviation of {self.resolution:.1%} in any entry would have been found"
        if not self.passed:
            return f"inconclusive: no deviation was found, but only {found.removeprefix('a deviation of ')}"
        return f"passed: {found}"

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """A picture, by `infnet.plot.verification`.

        Args:
            path: where to write it.

        Raises:
            InputError: matplotlib is not installed.
        """
        from infnet.plot import verification

        return verification(self, path)

    @property
    def shown(self) -> list[Comparison]:
        """What the table and the picture show: of the shares of parameters, that with the largest z-score alone."""
        shares = [one for one in self.comparisons if one.name.startswith(SHARE)]
        kernels = [one for one in self.comparisons if one not in shares]
        return [*kernels, *sorted(shares, key=_largest_score)[-1:]]

    def _worst(self) -> str:
        one = max(self.comparisons, key=_largest_score)
        z = one.trend.z_scores
        entry = np.unravel_index(np.abs(z).argmax(), z.shape)
        where = ", ".join(map(str, entry))
        deviation, error = one.trend.intercept[entry], one.trend.standard_error[entry]
        limit = "at infinite width" if len(self.multipliers) > 1 else "at this width"
        return (
            f"the sampled {one.name}[{where}] is off by {deviation:+.2%} ± {error:.2%} {limit}: "
            f"{abs(z[entry]):.1f} standard errors beyond the allowance, where chance may be {self.threshold:.1f}"
        )

    def __str__(self) -> str:
        head = ("kernel", "width", "networks", "deviation, rms", "largest", "standard error", "largest z")
        rows = [row for one in self.shown for row in self._rows(one)]
        sizes = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, sizes, strict=True)).rstrip() for row in (head, *rows)]
        return "\n".join([lines[0], "  ".join("-" * w for w in sizes), *lines[1:], *self.remarks, self.verdict])

    def _rows(self, one: Comparison) -> list[tuple[str, ...]]:
        widths = [f"{m:g} x" for m in self.multipliers]
        counts = [str(n) for n in self.n_samples]
        deviations, errors = list(one.deviations), list(one.standard_errors)
        with np.errstate(all="ignore"):
            scores = [d / e for d, e in zip(deviations, errors, strict=True)]
        if len(self.multipliers) > 1:
            widths, counts = [*widths, "infinite"], [*counts, ""]
            deviations, errors = [*deviations, one.trend.intercept], [*errors, one.trend.standard_error]
            scores = [*scores, one.trend.z_scores]
        table = zip(widths, counts, deviations, errors, scores, strict=True)
        return [
            (
                one.name,
                width,
                count,
                f"{np.sqrt(np.mean(d**2)):.2%}",
                f"{np.abs(d).max():.2%}",
                f"{e.max():.2%}",
                f"{np.abs(z).max():.1f}",
            )
            for width, count, d, e, z in table
        ]


def _largest_score(one: Comparison) -> float:
    return float(np.abs(one.trend.z_scores).max(initial=0))
