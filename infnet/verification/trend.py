"""How sampled kernels depend on the width, and what that says about the limit.

Of a relative deviation D from the limit, networks of m times the width have a mean

    D(m) = δ + c / m + O(1 / m²)                                  (Dyer & Gur-Ari 2020, arXiv:1909.11304)

with δ = 0 if the kernel is right. δ and c are fitted by weighted least squares: with x = 1 / m, weights w and
S_k = Σ w x^k, the estimate of δ is Σ a D with a = w (S₂ - S₁ x) / Δ, and that of c is Σ b D with b = w (S₀ x - S₁) / Δ,
where Δ = S₀ S₂ - S₁². Their standard errors are those of these sums. The weights would best be 1 / se², but must not
depend on the samples: these are skewed, so that a width whose mean happens to be too small seems to vary less, and
would count for more. As variances are about proportional to 1 / m, w is the number of networks times m.

The next term, q / m², moves the estimate of δ by q Σ a x². Kernels of wide networks are products of a factor
1 + O(1 / width) per layer (Hanin & Nica 2020, arXiv:1909.05989, for ReLU), whose product is about exp(c / m), with
q = c² / 2. Twice that, q = c², is allowed for, with c at two standard errors above its estimate.

Widths may also grow as m², next to others that grow as m, as those of attention do. What layers of such widths add to D
decays as c' / m². Deviations are of the size of the sum of 1 / width over the layers (Hanin & Nica), so |c'| is about
|c| r at most, where r is that sum over the widths that grow as m², divided by that over those that grow as m. So
q = c² + |c| r is allowed for then, with the same c.

Networks of a single width show D(1) = δ + c alone. By the delta method, a function g of fluctuating sums has a bias
g'' Var / 2 of the order of its variance: as much as the relative variance of the kernel between networks is allowed
for, which is O(1 / width) as c is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

# A deviation that counts as detectable is found with this probability.
POWER = 0.9


class Trend(NamedTuple):
    """Of a kernel, entry by entry, all relative.

    Attributes:
        intercept: δ, the deviation of infinitely wide networks.
        standard_error: of δ.
        slope: c, the deviation of networks of the width of the model, without δ.
        allowance: how much of δ is explained by what the fit leaves out.
    """

    intercept: np.ndarray
    standard_error: np.ndarray
    slope: np.ndarray
    allowance: np.ndarray

    @property
    def z_scores(self) -> np.ndarray:
        """What of δ goes beyond the allowance, in standard errors."""
        beyond = np.maximum(np.abs(self.intercept) - self.allowance, 0.0)
        # No noise at all: any deviation counts.
        return np.sign(self.intercept) * beyond / np.maximum(self.standard_error, np.finfo(float).tiny ** 0.5)


def fit(
    multipliers: Sequence[float],
    counts: Sequence[int],
    deviations: np.ndarray,
    errors: np.ndarray,
    variances: np.ndarray,
    ratio: float = 0.0,
) -> Trend:
    """Of networks of several widths, or of one.

    Args:
        multipliers: of the width, m of them.
        counts: of networks, likewise.
        deviations: relative deviations of the mean kernels from the limit, `(m, ...)`.
        errors: their standard errors, likewise.
        variances: of single networks, relative, likewise.
        ratio: r, the sum of 1 / width over the widths that grow as the square of the multiplier, divided by that over
            those that grow as the multiplier.
    """
    if len(multipliers) == 1:
        zeros = np.zeros_like(deviations[0])
        return Trend(deviations[0], errors[0], zeros, np.full_like(zeros, variances.max()))
    x = 1 / np.asarray(multipliers, float)
    w = np.asarray(counts) / x
    s0, s1, s2 = (np.sum(w * x**k) for k in range(3))
    of_intercept, of_slope = (w * numbers / (s0 * s2 - s1**2) for numbers in (s2 - s1 * x, s0 * x - s1))

    def error(coefficients: np.ndarray) -> np.ndarray:
        return np.sqrt(np.tensordot(coefficients**2, errors**2, 1))

    slope = np.tensordot(of_slope, deviations, 1)
    steepest = np.max(np.abs(slope) + 2 * error(of_slope))
    return Trend(
        intercept=np.tensordot(of_intercept, deviations, 1),
        standard_error=error(of_intercept),
        slope=slope,
        allowance=np.full_like(slope, (steepest**2 + steepest * ratio) * abs(of_intercept @ x**2)),
    )


def threshold(level: float, entries: int, samples: int) -> float:
    """The z-score that, if all kernels are right, one of so many entries exceeds with a probability of at most `level`.

    Bonferroni's bound, which holds however entries depend on each other, and they depend strongly: level / entries is
    the probability, on both sides, for Student's t with samples - 1 degrees of freedom.

    Args:
        level: of false alarms, of the whole comparison.
        entries: their number.
        samples: the number of networks of the width of which there are fewest.
    """
    return float(-stdtrit(samples - 1, level / (2 * entries)))


def counted_for(level: float, entries: int, samples: int) -> float:
    """What a standard error from so few samples is multiplied with, so that the threshold of many holds.

    The quantile of Student's t with samples - 1 degrees of freedom, divided by that of the normal law.

    Args:
        level, entries, samples: as of `threshold`.
    """
    return threshold(level, entries, samples) / float(-ndtri(level / (2 * entries)))


def detectable(trends: Sequence[Trend], limit: float) -> tuple[float, float]:
    """The relative deviation of any entry that would exceed the limit of z with probability `POWER`, in two parts.

    Returns:
        what of it is noise, which decreases with the number of networks, and what is allowed for.
    """
    noise = max((float(trend.standard_error.max(initial=0)) for trend in trends), default=0.0)
    allowance = max((float(trend.allowance.max(initial=0)) for trend in trends), default=0.0)
    return (limit + float(ndtri(POWER))) * noise, allowance
