"""Random projections in O(p log p): Gaussian ones and orthogonal ones, of vectors of p numbers.

Both are made of the Walsh-Hadamard matrix H of P = 2^k >= p rows, whose entries are 1 and -1. It is the Kronecker
product of two of about sqrt(P) rows, and so two products with small matrices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hadamard

SMALLEST = 64  # vectors are padded to this size: below, too few random signs are drawn


def gaussian_projection(key: jax.Array, x: jax.Array, m: int) -> jax.Array:
    """`x @ w` for a random `w (p, m)` of which every column is N(0, I).

    Fastfood (Le, Sarlos & Smola 2013, section 3) without its last factor, w = B H Pi G H / sqrt(P) for blocks of P
    columns: random signs B, a permutation Pi, and G = diag(g) with g ~ N(0, I). Given B and Pi, a column is an orthogonal
    map of (+-g_1, ..., +-g_P), so its law is exactly Gaussian. Columns of one block are uncorrelated, nearly orthogonal,
    and all of the norm |g|. (The last factor gives each its own, which features of exact norm have no use for.)

    Args:
        key: of the numbers.
        x: `(n, p)`.
        m: the number of columns.

    Returns:
        `(n, m)`.
    """
    size = _power_of_two(max(x.shape[1], min(m, SMALLEST)))
    blocks = -(-m // size)
    signs, order, normal = jax.random.split(key, 3)
    b = jax.random.rademacher(signs, (blocks, size), x.dtype)
    g = jax.random.normal(normal, (blocks, size), x.dtype)
    pi = _permutations(order, blocks, size)
    y = hadamard_transform(_padded(x, size)[:, None, :] * b) / math.sqrt(size)
    y = jnp.take_along_axis(y, jnp.broadcast_to(pi, y.shape), axis=2)
    y = hadamard_transform(y * g)
    return y.reshape(len(x), -1)[:, :m]


def mixed(key: jax.Array, x: jax.Array, m: int) -> jax.Array:
    """A random map to m columns whose inner products are those of x on average, column by column.

    Signs, H and m columns chosen without replacement: the subsampled randomized Hadamard transform (Ailon & Chazelle
    2009). Each column j has E[y_j(a) y_j(b)] = <x(a), x(b)> / m; their sum is <x(a), x(b)> exactly where m = P.

    Args:
        key: of the numbers.
        x: `(n, p)`.
        m: the number of columns.

    Returns:
        `(n, m)`.
    """
    size = _power_of_two(max(x.shape[1], m))
    signs, order = jax.random.split(key)
    y = hadamard_transform(_padded(x, size) * jax.random.rademacher(signs, (size,), x.dtype))
    return (y if m == size else y[:, _permutations(order, 1, size)[0, :m]]) / math.sqrt(m)


def hadamard_transform(x: jax.Array) -> jax.Array:
    """`x @ H` for x `(..., P)`, P a power of two."""
    *lead, size = x.shape
    rows = 1 << ((size.bit_length() - 1) // 2)
    left, right = (jnp.asarray(hadamard(k, np.int8), x.dtype) for k in (rows, size // rows))
    grid = x.reshape(*lead, rows, size // rows)
    y = jnp.matmul(grid, right, precision="highest")
    return jnp.einsum("ij,...jk->...ik", left, y, precision="highest").reshape(x.shape)


def _permutations(key: jax.Array, count: int, size: int) -> jax.Array:
    """`(count, size)`; by one sort, where `jax.random.permutation` takes several."""
    return jnp.argsort(jax.random.bits(key, (count, size)), axis=1)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1])))
