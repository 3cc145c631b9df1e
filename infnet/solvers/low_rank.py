"""Preconditioners of K + N, with N a diagonal of noise, from approximations F Fᵀ of K of low rank.

    randomly pivoted Cholesky   r columns of K, chosen at random in proportion to what is not explained yet: Chen,
                                Epperly, Tropp & Webber (arXiv:2207.06503), algorithm 1; here by blocks of proposals
                                of which some are rejected, so that the law of the pivots stays the same: Epperly,
                                Tropp & Webber (arXiv:2410.03969), algorithms 2.1 and 2.2
    Nyström                     one product of K with r random vectors: Frangella, Tropp & Udell (arXiv:2110.02820),
                                algorithm 2.1

Either F Fᵀ is at most K, so that the eigenvalues of K + N relative to P = F Fᵀ + N are at least 1, and few are large
(Díaz et al., arXiv:2304.12465, theorem 2.2). The kernels of networks with ReLU have long tails, of which all
eigenvalues may lie above the noise. Let δ = tr(K - F Fᵀ) / n be the mean of what is left out. With P = F Fᵀ + N + δ I
in its place the upper bound of the condition number, (λ + ν) / ν with λ the largest eigenvalue of K - F Fᵀ and N = ν I,
is the same, since K + N <= P (λ + ν) / (δ + ν) and K + N >= P ν / (δ + ν); and a tail around δ is no longer far from
the eigenvalues that are captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular, svd

from infnet.errors import NumericalError
from infnet.solvers.operators import Operator
from infnet.solvers.products import Matrix

LARGEST_BLOCK = 256
PREVENTS_CANCELLATION = 10  # pivots below this many roundings of the diagonal are noise


class LowRank:
    """P⁻¹ of P = F Fᵀ + D for a diagonal D, by the identity of Woodbury, with G = D^(-1/2) F and I + Gᵀ G = L Lᵀ:

    P⁻¹ = D^(-1/2) (I - G L⁻ᵀ L⁻¹ Gᵀ) D^(-1/2)

    In float64, also where F is float32: between the first eigenvectors of F Fᵀ the difference is as small as D / F Fᵀ.
    """

    def __init__(self, factor: Matrix, diagonal: Matrix, noise: Matrix):
        self.rank = factor.shape[1]
        left_out = max(0.0, (diagonal.sum() - np.square(factor, dtype=np.float64).sum()) / len(diagonal))
        self._root = np.sqrt(noise + left_out)[:, None]
        self._scaled = factor / self._root
        inner = self._scaled.T @ self._scaled
        inner[np.diag_indices_from(inner)] += 1
        self._lower = cholesky(inner, lower=True, overwrite_a=True)

    def __call__(self, v: Matrix) -> Matrix:
        """P⁻¹ v of (n, m)."""
        v = v / self._root
        inner = cho_solve((self._lower, True), self._scaled.T @ v)
        return (v - self._scaled @ inner) / self._root


def randomly_pivoted_cholesky(kernel: Operator, rank: int, key: jax.Array, advance: Callable[[int], Any]) -> Matrix:
    """F (n, r) with F Fᵀ the best approximation of K from the r columns that it chose; r is less where K has less rank.

    Reads the diagonal, and few more columns than `rank`. F is float64 if K is, and otherwise float32.
    """
    random = generator(key)
    left = kernel.diagonal().copy()
    floor = PREVENTS_CANCELLATION * float(jnp.finfo(kernel.dtype).eps) * left.max()
    dtype = np.float64 if kernel.dtype == np.float64 else np.float32
    factor, found = np.zeros((rank, len(left)), dtype), 0  # Fᵀ, whose rows are contiguous
    block = min(max(1, rank // 8), LARGEST_BLOCK)
    while found < rank and left.max() > floor:
        proposed = random.choice(len(left), block, p=left / left.sum())
        proposed = proposed[left[proposed] > floor]
        if not len(proposed):
            continue
        rows, before = kernel.columns(proposed).T, factor[:found]
        explained = before[:, proposed].astype(np.float64)
        unexplained = rows[:, proposed] - explained.T @ explained
        kept = _accepted(unexplained, random, floor)[: rank - found]
        if not len(kept):
            continue
        pivots = proposed[kept]
        fresh = rows[kept].astype(dtype) - before[:, pivots].T @ before
        lower = cholesky(unexplained[np.ix_(kept, kept)], lower=True)
        fresh = solve_triangular(lower.astype(dtype), fresh, lower=True)
        factor[found : found + len(kept)] = fresh
        left = np.maximum(left - np.square(fresh, dtype=np.float64).sum(0), 0)
        left[pivots] = 0
        found += len(kept)
        advance(len(kept))
    return factor[:found].T


def _accepted(unexplained: Matrix, random: np.random.Generator, floor: float) -> Matrix:
    """The proposals that are accepted, each with the share of its pivot that those before it have not explained."""
    left, at_first = unexplained.copy(), np.diagonal(unexplained).copy()
    kept = []
    for i, threshold in enumerate(at_first * random.uniform(size=len(at_first))):
        if left[i, i] > max(threshold, floor):
            kept.append(i)
            left -= np.outer(left[:, i], left[i]) / left[i, i]
    return np.array(kept, int)


def nystrom(kernel: Operator, rank: int, key: jax.Array, advance: Callable[[int], Any]) -> Matrix:
    """F (n, rank) with F Fᵀ = K Ω (Ωᵀ K Ω)⁺ Ωᵀ K for random Ω; one product with `rank` vectors."""
    n = kernel.shape[0]
    probes = np.linalg.qr(generator(key).standard_normal((n, rank)))[0]
    sketch = kernel.matmul(probes)
    advance(rank)
    shift = n**0.5 * float(jnp.finfo(kernel.dtype).eps) * kernel.diagonal().max()  # the norm of K's own rounding
    sketch += shift * probes
    try:
        core = cholesky(probes.T @ sketch, lower=False)
    except np.linalg.LinAlgError as error:
        raise NumericalError(
            "the kernel is not positive semidefinite, which no kernel is beyond rounding: its restriction to random "
            "vectors has a negative eigenvalue. Compute it in float64 or take preconditioner='rpcholesky'."
        ) from error
    left, singular, _ = svd(solve_triangular(core, sketch.T, lower=False, trans="T").T, full_matrices=False)
    return left * np.sqrt(np.maximum(np.square(singular) - shift, 0))


def generator(key: jax.Array) -> np.random.Generator:
    """NumPy's random numbers, seeded by a key of JAX: the choices are made on the host."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data).astype(np.uint32).ravel())


APPROXIMATIONS = {"rpcholesky": randomly_pivoted_cholesky, "nystrom": nystrom}
