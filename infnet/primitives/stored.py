"""The identity, as an operation whose result XLA computes once and keeps.

XLA on CPU fuses by recomputing: sums, products and comparisons are cheap, so every loop that needs their results
computes them again, back to the last expensive operation. If the kernel of one layer is used twice, then in each loop
all layers before it are run again: the time to compile and to run grows with the square of the depth, 25 times slower
at 20 layers. A division is never run twice, so the kernels of layers are divided by a 1 that XLA cannot know to
be 1. (An `optimization_barrier` does not help: it is gone before fusion.)

Its derivative, in forward and reverse mode, is the identity too, stored for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infnet._jax import ad
from infnet.primitives.define import define


def _divided(x: jax.Array) -> tuple[jax.Array]:
    return (x / jnp.where(x == x, 1, x),)  # NaN stays NaN


def _jvp(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[tuple[jax.Array], tuple[jax.Array]]:
    return (stored(primals[0]),), (stored(tangents[0]),)


def _transpose(cotangents: Sequence[jax.Array], _: jax.Array) -> list[jax.Array]:
    return [stored(cotangents[0])]


stored_p = define("stored", _divided, jvp=_jvp)
ad.primitive_transposes[stored_p] = _transpose


def stored(x: jax.Array) -> jax.Array:
    """`x`, computed once however often it is used."""
    return stored_p.bind(x)[0]
