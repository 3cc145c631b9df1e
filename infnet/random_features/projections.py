"""Random projections in O(p log p): Gaussian ones and orthogonal ones, of vectors of p numbers.

Both are made of the Walsh-Hadamard matrix H of P = 2^k >= p rows, whose entries are 1 and -1. It is the Kronecker
product of two of about sqrt(P) rows, and so two products with small matrices. Random numbers are drawn by NumPy, once:
JAX would compile a program for every size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hadamard

SMALLEST = 64  # vectors are padded to this size: below, too few random signs are drawn


class GaussianNumbers(NamedTuple):
    """B, Pi and G of `gaussian_projection`: signs, permutations and normal numbers, `(blocks, P)` each."""

    signs: np.ndarray
    order: np.ndarray
    normal: np.ndarray


class MixingNumbers(NamedTuple):
    """The signs, `(P,)`, of `mixed`, and the columns that it keeps, `(m,)`."""

    signs: np.ndarray
    chosen: np.ndarray


def gaussian_numbers(rng: np.random.Generator, p: int, m: int) -> GaussianNumbers:
    """What is random in a projection of p numbers to m."""
    size = _power_of_two(max(p, min(m, SMALLEST)))
    shape = (-(-m // size), size)
    order = rng.permuted(np.broadcast_to(np.arange(size, dtype=np.int32), shape), axis=1)
    return GaussianNumbers(_signs(rng, shape), order, rng.standard_normal(shape))


def gaussian_projection(numbers: GaussianNumbers, x: jax.Array, m: int) -> jax.Array:
    """`x @ w` for a random `w (p, m)` of which every column is N(0, I).

    Fastfood (Le, Sarlos & Smola 2013, section 3) without its last factor, w = B H Pi G H / sqrt(P) for blocks of P
    columns: random signs B, a permutation Pi, and G = diag(g) with g ~ N(0, I). Given B and Pi, a column is an
    orthogonal map of (+-g_1, ..., +-g_P), so its law is exactly Gaussian. Columns of one block are uncorrelated, nearly
    orthogonal, and all of the norm |g|. (The last factor gives each its own: no gain for features of exact norm.)

    Args:
        numbers: of `gaussian_numbers`.
        x: `(n, p)`.
        m: the number of columns.

    Returns:
        `(n, m)`.
    """
    signs, order, normal = numbers
    blocks, size = signs.shape
    y = hadamard_transform(_padded(x, size)[:, None, :] * jnp.asarray(signs, x.dtype)) / math.sqrt(size)
    columns = jnp.asarray(order) + size * jnp.arange(blocks)[:, None]
    y = jnp.take(y.reshape(len(x), blocks * size), columns.reshape(-1), axis=1, mode="clip").reshape(y.shape)
    return hadamard_transform(y * jnp.asarray(normal, x.dtype)).reshape(len(x), blocks * size)[:, :m]


def mixing_numbers(rng: np.random.Generator, p: int, m: int) -> MixingNumbers:
    """What is random in a map of p numbers to m."""
    size = _power_of_two(max(p, m))
    return MixingNumbers(_signs(rng, (size,)), rng.permutation(np.arange(size, dtype=np.int32))[:m])


def mixed(numbers: MixingNumbers, x: jax.Array, m: int) -> jax.Array:
    """A random map to m columns whose inner products are those of x on average, column by column.

    Signs, H and m columns chosen without replacement: the subsampled randomized Hadamard transform (Ailon & Chazelle
    2009). Each column j has E[y_j(a) y_j(b)] = <x(a), x(b)> / m; their sum is <x(a), x(b)> exactly where m = P.

    Args:
        numbers: of `mixing_numbers`.
        x: `(n, p)`.
        m: the number of columns.

    Returns:
        `(n, m)`.
    """
    y = hadamard_transform(_padded(x, len(numbers.signs)) * jnp.asarray(numbers.signs, x.dtype))
    return y[:, numbers.chosen] / math.sqrt(m)


def hadamard_transform(x: jax.Array) -> jax.Array:
    """`x @ H` for x `(..., P)`, P a power of two."""
    *lead, size = x.shape
    rows = 1 << ((size.bit_length() - 1) // 2)
    left, right = (jnp.asarray(hadamard(k, np.int8), x.dtype) for k in (rows, size // rows))
    grid = x.reshape(*lead, rows, size // rows)
    y = jnp.matmul(grid, right, precision="highest")
    return jnp.einsum("ij,...jk->...ik", left, y, precision="highest").reshape(x.shape)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice(np.array([-1, 1], np.int8), shape)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1])))
