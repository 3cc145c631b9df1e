"""Kernels computed once for each replicate of the sample points: their mean, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from infnet.computation import Arrays, Computation
from infnet.monte_carlo.estimate import Estimate, estimates
from infnet.monte_carlo.moments import moments_of
from infnet.sampling.points import Replicate, Sampling


def over_replicates(
    make: Callable[[Computation], Callable[..., Arrays]], computation: Computation, sampling: Sampling
) -> Callable[..., Arrays]:
    """A function like `make(computation)`, with estimates in place of arrays.

    Everything after the first integral is computed anew for each replicate, so the standard error is that of the
    kernel itself, however the layers in between shrink or enlarge it.
    """

    def kernels(*args: Any) -> Arrays:
        def one(number: Any) -> Arrays:
            found = make(replace(computation, replicate=Replicate(sampling, number)))(*args)
            return {**found, "finite": found["finite"].astype(computation.dtype)}

        means, squares = moments_of(one, 0, sampling.replicates, 1)
        # No replicate is further from the mean than the root of the sum of squared distances.
        worst = means.pop("error") + jnp.sqrt(squares.pop("error"))
        finite = means.pop("finite") == 1
        del squares["finite"]
        return {**estimates(sampling.replicates, means, squares), "error": worst, "finite": finite}

    return kernels


def without_errors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in place of estimates, and the standard errors of these as "standard_errors", None if there are none."""
    means = {name: x.mean if isinstance(x, Estimate) else x for name, x in arrays.items()}
    errors = {name: x.standard_error for name, x in arrays.items() if isinstance(x, Estimate)}
    return {**means, "standard_errors": errors or None}
