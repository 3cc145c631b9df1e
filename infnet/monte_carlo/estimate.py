"""What comes back: means of samples, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from infnet.errors import InputError

PyTree = Any


@dataclass(frozen=True)
class Estimate:
    """A kernel estimated from random networks, or by sampling moments that have no closed form.

    Attributes:
        mean: over the samples.
        standard_error: of the mean, entry by entry; infinite for a single sample.
        n_samples: the number of networks, or of replicates of the points (see `Sampling`).
        target_reached: whether `target_error` was reached; None if there was none.
    """

    mean: jax.Array
    standard_error: jax.Array
    n_samples: int
    target_reached: bool | None = None

    @property
    def relative_error(self) -> jax.Array:
        """The root mean square of the standard errors, divided by that of the means: a number.

        Its square is the expected squared distance of the estimate from the mean of infinitely many samples, in the
        Frobenius norm, relative to the estimate. The error of an entry relative to this entry would not do: where the
        kernel of two examples is near zero, it is large for any number of samples.
        """
        error, size = (jnp.sqrt(jnp.mean(jnp.abs(x) ** 2)) for x in (self.standard_error, self.mean))
        return jnp.where(error > 0, error / size, 0.0)

    def interval(self, level: float = 0.95) -> tuple[jax.Array, jax.Array]:
        """An interval that covers the mean of infinitely many samples, entry by entry, with this probability.

        The mean plus and minus the standard error times the quantile of Student's t with n_samples - 1 degrees of
        freedom (Student 1908, doi:10.1093/biomet/6.1.1): exact for normal samples, and for others as n_samples grows.

        Args:
            level: the probability, between 0 and 1.

        Returns:
            the lower and the upper ends, arrays of the shape of `mean`; infinite for a single sample.

        Raises:
            InputError: the level is no probability, or the kernel is complex.
        """
        if isinstance(level, bool) or not 0 < level < 1:
            raise InputError(f"level must be a probability between 0 and 1, not {level!r}")
        if jnp.iscomplexobj(self.mean):
            raise InputError("there are no intervals of complex numbers: use standard_error, which is that of |mean|")
        distance = stdtrit(max(self.n_samples - 1, 1), (1 + level) / 2) * self.standard_error
        return self.mean - distance, self.mean + distance


jax.tree_util.register_dataclass(Estimate, ["mean", "standard_error"], ["n_samples", "target_reached"])


def estimates(count: int, means: PyTree, squares: PyTree, target_reached: bool | None = None) -> PyTree:
    """An `Estimate` for each array of `means` over `count` samples.

    Args:
        count: the number of samples.
        means: of the samples, arrays.
        squares: sums of squared distances from the mean, likewise.
        target_reached: as of `Estimate`.
    """

    def one(mean: jax.Array, sum_of_squares: jax.Array) -> Estimate:
        error = jnp.sqrt(sum_of_squares / (count * (count - 1))) if count > 1 else jnp.full_like(sum_of_squares, np.inf)
        return Estimate(mean, error, count, target_reached)

    return jax.tree.map(one, means, squares)


def largest_relative_error(found: Sequence[Estimate]) -> float:
    """Of all arrays; infinite if one is not a number."""
    error = max((float(estimate.relative_error) for estimate in found), default=0.0)
    worst = any(math.isnan(float(estimate.relative_error)) for estimate in found)
    return math.inf if worst else error
