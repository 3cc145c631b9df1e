"""Sums over the neighbours of nodes. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional


class Aggregate(hk.Module):
    """Sums over the neighbours of each node of a graph, which is an input too.

    Args:
        aggregate_axis: the axes of nodes; None is all positions.
        implementation: "DENSE" for matrices of weights, "SPARSE" for lists of edges.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or shapes do not fit.
    """

    def __init__(
        self, aggregate_axis: int | Sequence[int] | None = None, implementation: str = "DENSE", name: str | None = None
    ):
        super().__init__(name=name)
        self.aggregate_axis = aggregate_axis
        self.implementation = implementation

    def __call__(self, x: Any, pattern: Any = None, mask: Any = None) -> jax.Array:
        """See `infnet.functional.aggregate`."""
        return functional.aggregate(
            jnp.asarray(x),
            pattern,
            aggregate_axis=self.aggregate_axis,
            implementation=self.implementation,
            mask=mask,
        )
