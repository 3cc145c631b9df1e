"""The random parameters that a channel has for itself: the taps of a depthwise filter, a trained scale.

No wide layer averages over them, so their law matters, and not their variance alone. It is told by the excess kurtosis,
for the laws that initialisers draw weights from: the normal, the normal cut off at two standard deviations, and the
uniform law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from scipy import stats

from infnet.nodes import Param

CUT = 2.0  # where jax.nn.initializers cuts off the normal law
CLOSE = 1e-3  # kurtoses are read off grids of random bits
Quantile = Callable[[jax.Array], jax.Array]  # of a standard normal number, to one of another law of variance 1


@dataclass(frozen=True)
class Weight:
    """The elements of a parameter that belong to one channel.

    Attributes:
        param: the parameter.
        axes: those of its array that `sizes` stand for; None or -1 where it has none.
        sizes: what the elements of one channel are counted by.
    """

    param: Param
    axes: tuple[int | None, ...] = ()
    sizes: tuple[int, ...] = ()

    def factors(self, context: Any) -> tuple[jax.Array, jax.Array]:
        """The variance and the gradient factor of each element, flat."""
        variance, rate = context.weight_factors(self.param, self.axes)
        return jnp.broadcast_to(variance, self.sizes).reshape(-1), jnp.broadcast_to(rate, self.sizes).reshape(-1)


def is_known(kurtosis: float | None) -> bool:
    """Whether the law with this excess kurtosis is one of those that initialisers draw from."""
    return kurtosis is not None and any(np.isclose(kurtosis, k, atol=CLOSE) for k in (0.0, *QUANTILES))


def quantile(kurtosis: float | None) -> Quantile | None:
    """How numbers of the law with this excess kurtosis are made of normal ones; None if they are normal themselves."""
    return next((law for k, law in QUANTILES.items() if np.isclose(kurtosis or 0.0, k, atol=CLOSE)), None)


def _truncated(z: jax.Array) -> jax.Array:
    low, high = stats.norm.cdf((-CUT, CUT))
    return ndtri(low + (high - low) * ndtr(z)) / stats.truncnorm.std(-CUT, CUT)


def _uniform(z: jax.Array) -> jax.Array:
    return math.sqrt(12) * (ndtr(z) - 0.5)


QUANTILES: dict[float, Quantile] = {
    float(stats.truncnorm.stats(-CUT, CUT, moments="k")): _truncated,
    -6 / 5: _uniform,
}
