"""Cholesky factors of kernel matrices, with the smallest jitter of a ladder that works.

All of this is done in float64, whatever JAX's default is: the smallest eigenvalues of kernels of smooth functions are
rounding errors already at 100 points in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from infnet.errors import NumericalError
from infnet.float64 import default_dtype, in_float64, kept, split
from infnet.predict.checks import is_traced
from infnet.predict.posterior import Info, pytree

Array = jax.Array

# Jitter, relative to the mean of the kernel's diagonal, by the kernel's own precision (bytes a number).
LADDERS = {8: (-12, -2), 4: (-7, -2), 2: (-3, -2)}

POWER_ITERATIONS = 16


@pytree()
@dataclass(frozen=True)
class Factor:
    """A kernel with what is added to its diagonal, and the Cholesky factor of both."""

    kernel: Array
    """(n, n)."""
    shift: Array
    """(n,): regularisation, noise and jitter."""
    lower: tuple[Array, ...]
    """(n, n), to be summed."""
    diag_reg: Array
    jitter: Array
    eigenvalue_min: Array
    eigenvalue_max: Array
    ok: Array

    def __len__(self) -> int:
        return len(self.kernel)

    def info(self, ok: Array, negative_variance: Array) -> Info:
        """The report on a prediction made with this factor from inputs that are `ok`."""
        eigenvalues = self.eigenvalue_min, self.eigenvalue_max
        return Info(ok & self.ok, self.diag_reg, self.jitter, *eigenvalues, negative_variance, "float64")


def factorise(kernel: Array, diag_reg: Array, absolute: bool, noise: Array) -> Factor:
    """The factor of `kernel + diag_reg + diag(noise)`; `diag_reg` relative to the mean of the diagonal, or absolute."""
    precision = jnp.finfo(kernel.dtype)
    first, last = LADDERS[precision.bits // 8]
    rungs = np.array([0.0, *(10.0**e for e in range(first, last + 1))], default_dtype())
    known = [jnp.asarray(x, default_dtype()) for x in (diag_reg, absolute, noise, precision.eps)]
    parts, rest = _factorise(kernel.astype(default_dtype()), *known, rungs)
    return Factor(kernel, rest.pop("shift"), kept(parts), **rest)


def solve(factor: Factor, b: Array) -> Array:
    """matrix⁻¹ b for b of shape (n, …); to be called in float64.

    Derivatives are those of the linear system, not of the factorisation, whose jitter is chosen by a loop that
    reverse-mode differentiation cannot enter.
    """
    columns, lower = b.reshape(len(b), -1), sum(factor.lower)
    return lax.custom_linear_solve(
        lambda x: factor.kernel @ x + factor.shift[:, None] * x,
        columns,
        lambda _, rhs: cho_solve((lower, True), rhs),
        symmetric=True,
    ).reshape(b.shape)


@jax.custom_jvp
def log_determinant(factor: Factor) -> Array:
    """log det(matrix); to be called in float64. Its differential is tr(matrix⁻¹ d matrix)."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(sum(factor.lower))))


@log_determinant.defjvp
def _log_determinant_jvp(primals: tuple[Factor], tangents: tuple[Factor]) -> tuple[Array, Array]:
    (factor,), (moved,) = primals, tangents
    inverse = solve(factor, jnp.eye(len(factor)))
    return log_determinant(factor), jnp.sum(inverse * moved.kernel) + jnp.sum(jnp.diagonal(inverse) * moved.shift)


@in_float64
def _factorise(
    kernel: Array, diag_reg: Array, absolute: Array, noise: Array, epsilon: Array, rungs: Array
) -> tuple[tuple[Array, Array], dict[str, Array]]:
    """The factor as a sum of what fits into float32 and the rest; and all else."""
    diagonal = jnp.diagonal(kernel)
    regulariser = diag_reg * jnp.where(absolute > 0, 1.0, jnp.mean(diagonal))
    shift = regulariser + noise * jnp.ones(len(kernel))
    lower, jitter, ok = _climb(*map(lax.stop_gradient, (kernel, shift, epsilon, rungs)))
    ok &= jnp.all(jnp.isfinite(kernel)) & jnp.all(jnp.isfinite(shift))
    shift += jitter
    smallest, largest = extreme_eigenvalues(lax.stop_gradient(kernel), lax.stop_gradient(shift), lower)
    rest = {"shift": shift, "diag_reg": regulariser, "jitter": jitter, "ok": ok}
    return split(lower), rest | {"eigenvalue_min": smallest, "eigenvalue_max": largest}


def _climb(kernel: Array, shift: Array, epsilon: Array, rungs: Array) -> tuple[Array, Array, Array]:
    """`(lower, jitter, ok)` of the first rung of the ladder at which the matrix can be factored.

    Squared pivots are Schur complements. Those below √n ε, relative to the diagonal, are rounding errors, of the
    kernel itself (`epsilon` is that of its own precision) or of the factorisation, and do not count as positive.
    """
    n, own = len(kernel), jnp.diagonal(kernel)
    smallest_pivot = n**0.5 * (epsilon * own + jnp.finfo(kernel.dtype).eps * shift)

    def attempt(rung: Array) -> tuple[Array, Array, Array, Array]:
        jitter = rungs[rung] * jnp.mean(own)
        lower = jnp.linalg.cholesky(kernel + jnp.diag(shift + jitter))
        # written so that a NaN is a failure
        ok = jnp.all(jnp.square(jnp.diagonal(lower)) > smallest_pivot)
        return rung + 1, lower, jitter, ok

    _, lower, jitter, ok = lax.while_loop(
        lambda state: ~state[3] & (state[0] < len(rungs)),
        lambda state: attempt(state[0]),
        attempt(jnp.array(0)),
    )
    return lower, jitter, ok


def extreme_eigenvalues(kernel: Array, shift: Array, lower: Array) -> tuple[Array, Array]:
    """Estimates by power iteration with the matrix and with its inverse."""
    n = len(kernel)
    start = 1 + jnp.cos(jnp.arange(n, dtype=kernel.dtype)) / 2  # not orthogonal to any eigenvector

    def growth(apply: Callable[[Array], Array]) -> Array:
        def step(_: int, v: Array) -> Array:
            return apply(v / jnp.linalg.norm(v))

        return jnp.linalg.norm(lax.fori_loop(0, POWER_ITERATIONS, step, start))

    return 1 / growth(lambda v: cho_solve((lower, True), v)), growth(lambda v: kernel @ v + shift * v)


def require_factored(factor: Factor, label: str) -> None:
    """Raise `NumericalError` where no rung of the ladder was enough."""
    if is_traced(factor.ok) or bool(factor.ok):
        return
    raise NumericalError(
        f"{label} is not positive definite: its Cholesky factorisation failed even with a jitter of "
        f"{float(factor.jitter):.3g} on its diagonal, 1% of its mean. A kernel cannot be that far off "
        "by rounding: check that it is the kernel of the training points with themselves and that no "
        "entry overflowed; otherwise compute it in float64, or raise diag_reg."
    )
