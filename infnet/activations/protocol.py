"""What a layer needs to know of an elementwise function."""

from __future__ import annotations

from typing import Protocol

import jax

Means = tuple[jax.Array, jax.Array] | None
"""The means of u and v; None if both are exactly zero, which has simpler kernels."""


class Activation(Protocol):
    """An elementwise function phi, its derivative phi' as `jax.grad` makes it, and their moments.

    The arguments of phi are Gaussians `(u, v) ~ N(means, [[q11, q12], [q12, q22]])`; `q` and `mean` stand for one of
    them. All moments are second moments about zero. Arrays have one rank, and axes of size 1 broadcast. A variance
    that is not positive says that the argument is the constant `mean`; NaN gives NaN.
    """

    @property
    def name(self) -> str:
        """What it is called in explanations."""

    @property
    def odd(self) -> bool:
        """Whether E phi(u) vanishes at every variance if E u does."""

    @property
    def exact(self) -> str:
        """`"exact"`, or what is known of the error."""

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """`(E phi(u) phi(v),)`, and `E phi'(u) phi'(v)` if `derivative`."""

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """E phi(u)^2 and E phi'(u)^2."""

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """E phi(u)."""

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """E of the derivative of phi's values (as in Stein's lemma, jumps included), and E phi'."""
