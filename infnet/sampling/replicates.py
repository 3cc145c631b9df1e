"""Kernels computed once for each replicate of the sample points: their mean, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet.computation import Arrays, Computation
from infnet.monte_carlo import Estimate, accumulated, estimate
from infnet.points import Replicate, Sampling

NOTES = ("error", "finite")


def over_replicates(
    make: Callable[[Computation], Callable[..., Arrays]], computation: Computation, sampling: Sampling
) -> Callable[..., Arrays]:
    """A function like `make(computation)`, with estimates in place of arrays.

    Everything after the first integral is computed anew for each replicate, so the standard error is that of the
    kernel itself, however the layers in between shrink or enlarge it.
    """

    def kernels(*args: Any) -> Arrays:
        def one(number: Any) -> tuple[Arrays, Arrays]:
            found = make(replace(computation, replicate=Replicate(sampling, number)))(*args)
            return {k: x for k, x in found.items() if k not in NOTES}, {k: found[k] for k in NOTES}

        def one_more(number: Any, state: Any) -> Any:
            moments, notes = state
            found, own = one(number)
            worst = {"error": jnp.maximum(notes["error"], own["error"]), "finite": notes["finite"] & own["finite"]}
            return accumulated(number, found, moments), worst

        found, notes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
        start = (found, jax.tree.map(lambda x: x.real, found)), {**notes, "finite": jnp.asarray(True)}
        (means, squares), notes = jax.lax.fori_loop(0, sampling.replicates, one_more, start)
        return {**jax.tree.map(partial(estimate, sampling.replicates), means, squares), **notes}

    return kernels


def without_errors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in place of estimates, and the standard errors of these as "standard_errors", None if there are none."""
    means = {name: x.mean if isinstance(x, Estimate) else x for name, x in arrays.items()}
    errors = {name: x.standard_error for name, x in arrays.items() if isinstance(x, Estimate)}
    return {**means, "standard_errors": errors or None}
