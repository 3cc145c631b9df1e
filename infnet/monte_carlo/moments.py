"""Means and variances of samples that are drawn one after the other, or in several rounds.

Within a round they are accumulated sample by sample (Welford 1962, doi:10.1080/00401706.1962.10490022), and rounds are
merged (the pairwise algorithm of Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115): neither loses digits
to the size of the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any


class Moments(NamedTuple):
    """Of some samples, entry by entry.

    Attributes:
        means: pytree of arrays.
        squares: sums of squared distances from the mean, likewise.
    """

    means: PyTree
    squares: PyTree


def moments_of(sample: Callable[[jax.Array], PyTree], start: Any, stop: Any, step: Any) -> Moments:
    """Of the samples with the numbers start, start + step, ... below stop; of none of them, zeros.

    Args:
        sample: `number -> pytree of arrays`.
        start, stop, step: integers, which may be traced.
    """
    shapes = jax.eval_shape(sample, start)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def one_more(k: jax.Array, moments: Moments) -> Moments:
        found = sample(start + k * step)
        means = jax.tree.map(lambda mean, x: mean + (x - mean) / (k + 1), moments.means, found)
        squares = jax.tree.map(
            lambda total, x, old, new: total + ((x - old) * (x - new).conj()).real,
            moments.squares,
            found,
            moments.means,
            means,
        )
        return Moments(means, squares)

    start_from = Moments(zeros, jax.tree.map(lambda x: x.real, zeros))
    return lax.fori_loop(0, (stop - start + step - 1) // step, one_more, start_from)


@jax.jit
def merged(count1: Any, one: Moments, count2: Any, two: Moments) -> Moments:
    """Of the samples of two rounds together; `count1` and `count2` are their numbers, not both zero."""
    share = count2 / (count1 + count2)
    means = jax.tree.map(lambda a, b: a + (b - a) * share, one.means, two.means)
    squares = jax.tree.map(
        lambda s, t, a, b: s + t + (jnp.abs(b - a) ** 2 * (count1 * share)).astype(s.dtype),
        one.squares,
        two.squares,
        one.means,
        two.means,
    )
    return Moments(means, squares)
