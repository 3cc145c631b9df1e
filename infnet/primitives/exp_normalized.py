"""The kernel `sqrt(q11 q22) exp(gamma (rho + shift))`, rho the correlation: the normalised Gaussian kernel.

From V. Shankar et al., "Neural kernels without tangents", ICML 2020 (arXiv:2003.02237), where gamma = 1 and shift = -1
(`exp(rho - 1)` is a Gaussian of the distance of normalised examples). No elementwise function has this kernel at all
variances. At the variance q it belongs to the one with positive Hermite coefficients, with c = exp(gamma shift),

    phi(x) = sqrt(q) sum_n sqrt(c gamma^n / n!) h_n(x / sqrt(q)),    h_n normalised,

of which `E phi'(u) phi'(v)`, phi' being the derivative by x, is the derivative of the kernel by q12:
`Kdot = gamma exp(gamma (rho + shift))`. This is what the tangent kernel uses.

Domain: gamma >= 0, q11, q22 >= 0 and |q12| <= sqrt(q11 q22); rounding errors beyond it are clipped, NaN is not.
Smooth at |rho| = 1, and close to rho = 1 as accurate as the gap `sqrt(q11 q22) - q12`. At zero variance rho counts as
zero: K = 0 and Kdot = c gamma; derivatives that are unbounded there are 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infnet.primitives.angles import gaps, safe_inverse
from infnet.primitives.define import define


def _root_and_correlation(q12: jax.Array, q11: jax.Array, q22: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`sqrt(q11 q22)`, the correlation, and the correlation less 1: at zero variance 0, 0 and -1."""
    q12, below, above = gaps(q12, q11, q22)
    root = (below + above) / 2
    inverse = safe_inverse(root)
    return root, q12 * inverse, jnp.where(inverse == 0, -1, -below * inverse)


def _kernel(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, gamma: float, shift: float, derivative: bool
) -> tuple[jax.Array, ...]:
    root, _, minus_one = _root_and_correlation(q12, q11, q22)
    power = jnp.exp(gamma * (1 + shift) + gamma * minus_one)
    return (root * power, gamma * power) if derivative else (root * power,)


def _jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, gamma: float, shift: float, derivative: bool
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    k, kdot = exp_normalized_p.bind(*primals, gamma=gamma, shift=shift, derivative=True)
    root, rho, _ = _root_and_correlation(*primals)
    dq12, *dq = tangents
    relative = sum(safe_inverse(q) * d for q, d in zip(primals[1:], dq, strict=True)) / 2  # change of log(root)
    dk = kdot * dq12 + (k - kdot * rho * root) * relative
    dkdot = gamma * kdot * (safe_inverse(root) * dq12 - rho * relative)
    return ((k, kdot), (dk, dkdot)) if derivative else ((k,), (dk,))


exp_normalized_p = define("exp_normalized_kernel", _kernel, jvp=_jvp)


def exp_normalized(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, gamma: float, shift: float, derivative: bool
) -> tuple[jax.Array, ...]:
    """`(K,)`, and Kdot if `derivative`.

    Args:
        q12: covariance of u and v; like the variances, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        gamma: factor of the correlation.
        shift: added to the correlation.
        derivative: whether the second kernel is wanted.
    """
    return tuple(exp_normalized_p.bind(q12, q11, q22, gamma=gamma, shift=shift, derivative=derivative))
