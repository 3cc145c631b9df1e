"""Covariances of outputs that are linear in the outputs at initialisation, or only their diagonals.

With f = f₀ + A (y − f₀) at the test set, of networks whose outputs f₀ at initialisation have the covariance K,

    cov = K_tt + A K_dd Aᵀ − (A K_dt + K_td Aᵀ),     and K_tt − K_td Aᵀ where A K_dd = K_td

(Lee et al. 2019, arXiv:1902.06720, eqs. 13 and 16).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
Covariance = tuple[Array | None, Array, Array]


def covariance_after(a: Array, k_td: Array, k_dd: Array | None, k_tt: Array) -> Covariance:
    """`(covariance, variance, most negative variance)`, the formulas at the top of this file; to be called in float64.

    Args:
        a: Aᵀ, (..., n, m).
        k_td: (..., m, n) kernel at initialisation, between test and training set.
        k_dd: (..., n, n), that of the training set; None where A K_dd = K_td, or A is chosen for the second formula.
        k_tt: that of the test set: (..., m, m), or its diagonal, (..., m), for variances without m² memory.
    """
    full = k_tt.ndim == k_td.ndim
    product = jnp.matmul if full else _diagonal_of_product
    cross = product(k_td, a)
    if k_dd is None:
        return completed(k_tt - cross, full)
    return completed(k_tt + product(a.mT, k_dd @ a) - cross - (cross.mT if full else cross), full)


def completed(raw: Array, full: bool) -> Covariance:
    """As above, of a covariance `(..., m, m)`, or if not `full` its diagonal: symmetric, and no variance negative."""
    diagonal = jnp.diagonal(raw, axis1=-2, axis2=-1) if full else raw
    variance, negative = jnp.maximum(diagonal, 0), jnp.min(diagonal, initial=0)
    if not full:
        return None, variance, negative
    own = jnp.eye(raw.shape[-1], dtype=bool)
    return jnp.where(own, variance[..., None], (raw + raw.mT) / 2), variance, negative


def _diagonal_of_product(a: Array, b: Array) -> Array:
    return jnp.sum(a.mT * b, -2)
