"""The points at which integrals over Gaussian fields are evaluated: scrambled Sobol sequences.

Owen (1995, doi:10.1007/978-1-4612-2552-2_19): an average over a scrambled sequence is an unbiased estimate, so several
independent scramblings, the *replicates*, show how far it is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

from infnet.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How moments without a closed form are sampled; `on_unsupported=` of `infnet.kernel_fn` takes it.

    Attributes:
        points: of each replicate, a power of 2. An error decreases almost as their number grows.
        replicates: independent estimates, at least 2, of which the result is the mean: it decides how well the
            standard error is known, by Student's t with `replicates - 1` degrees of freedom.
        seed: of the scrambling.
    """

    points: int = 1024
    replicates: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("replicates", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} of Sampling must be an integer, at least {least}, not {value!r}")
        if self.points & (self.points - 1):
            raise InputError(f"the number of points of Sampling must be a power of 2, not {self.points}")


@lru_cache(maxsize=16)
def standard_normals(sampling: Sampling, dimension: int) -> np.ndarray:
    """Points of the standard normal law, `(replicates, points, dimension)` in float64."""
    engines = (
        qmc.MultivariateNormalQMC(
            np.zeros(dimension), engine=qmc.Sobol(dimension, seed=np.random.default_rng((sampling.seed, k)))
        )
        for k in range(sampling.replicates)
    )
    return np.stack([engine.random(sampling.points) for engine in engines])


@dataclass(frozen=True)
class Replicate:
    """One of the replicates; `number` may be traced."""

    sampling: Sampling
    number: Any

    def normals(self, dimension: int) -> jax.Array:
        """Its points of the standard normal law, `(points, dimension)`."""
        return jnp.asarray(standard_normals(self.sampling, dimension))[self.number]
