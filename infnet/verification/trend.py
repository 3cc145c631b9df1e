"""How sampled kernels depend on the width, and what that says about the limit.

Of a relative deviation D from the limit, networks of m times the width have a mean

    D(m) = δ + c / m + O(1 / m²)                                  (Dyer & Gur-Ari 2020, arXiv:1909.11304)

with δ = 0 if the kernel is right. δ and c are fitted by weighted least squares: with x = 1 / m, weights w = 1 / se² and
S_k = Σ w x^k, the estimate of δ is Σ a D with a = w (S₂ - S₁ x) / Δ, of c it is Σ w (S₀ x - S₁) D / Δ, and their
variances are S₂ / Δ and S₀ / Δ, where Δ = S₀ S₂ - S₁².

The next term, q / m², moves the estimate of δ by q Σ a x². Kernels of wide networks are products of a factor
1 + O(1 / width) per layer (Hanin & Nica 2020, arXiv:1909.05989, for ReLU), whose product is about exp(c / m), with
q = c² / 2. Twice that, q = c², is allowed for, with c at two standard errors above its estimate.

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


def fit(multipliers: Sequence[float], deviations: np.ndarray, errors: np.ndarray, variances: np.ndarray) -> Trend:
    """Of networks of several widths, or of one.

    Args:
        multipliers: of the width, m of them.
        deviations: relative deviations of the mean kernels from the limit, `(m, ...)`.
        errors: their standard errors, likewise.
        variances: of single networks, relative, likewise.
    """
    if len(multipliers) == 1:
        zeros = np.zeros_like(deviations[0])
        return Trend(deviations[0], errors[0], zeros, np.full_like(zeros, variances.max()))
    x = 1 / np.asarray(multipliers, float).reshape(-1, *[1] * (deviations.ndim - 1))
    # Entries that do not vary are fitted too: all weights are then the same.
    w = 1 / np.maximum(errors, 1e-6 * errors.max() + np.finfo(float).tiny ** 0.25) ** 2
    s0, s1, s2 = (np.sum(w * x**k, 0) for k in range(3))
    determinant = s0 * s2 - s1**2
    of_intercept = w * (s2 - s1 * x) / determinant
    slope = np.sum(w * (s0 * x - s1) * deviations, 0) / determinant
    steepest = np.max(np.abs(slope) + 2 * np.sqrt(np.sum((w * (s0 * x - s1) * errors / determinant) ** 2, 0)))
    return Trend(
        intercept=np.sum(of_intercept * deviations, 0),
        standard_error=np.sqrt(np.sum((of_intercept * errors) ** 2, 0)),
        slope=slope,
        allowance=steepest**2 * np.abs(np.sum(of_intercept * x**2, 0)),
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


def detectable(trends: Sequence[Trend], limit: float) -> tuple[float, float]:
    """The relative deviation of any entry that would exceed the limit of z with probability `POWER`, in two parts.

    Returns:
        what of it is noise, which decreases with the number of networks, and what is allowed for.
    """
    noise = max((float(trend.standard_error.max(initial=0)) for trend in trends), default=0.0)
    allowance = max((float(trend.allowance.max(initial=0)) for trend in trends), default=0.0)
    return (limit + float(ndtri(POWER))) * noise, allowance
