"""Cholesky factors of kernel matrices, with the smallest jitter of a ladder that works."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from infnet.errors import NumericalError
from infnet.predict.checks import is_traced
from infnet.predict.posterior import Info, pytree

Array = jax.Array

# Jitter, relative to the mean of the diagonal, by the kernel's own precision (bytes a number).
LADDERS = {8: (-12, -2), 4: (-6, -2), 2: (-3, -2)}

POWER_ITERATIONS = 16


@pytree(meta=("dtype",))
@dataclass(frozen=True)
class Factor:
    """The Cholesky factor of a regularised train-train kernel."""

    matrix: Array
    lower: Array
    diag_reg: Array
    jitter: Array
    ok: Array
    dtype: str

    def solve(self, b: Array) -> Array:
        """matrix⁻¹ b for b of shape (n, …).

        Derivatives are those of the linear system, not of the factorisation, whose jitter is
        chosen by a loop that reverse-mode differentiation cannot enter.
        """
        columns = b.reshape(len(b), -1)
        return lax.custom_linear_solve(
            lambda x: self.matrix @ x,
            columns,
            lambda _, rhs: cho_solve((self.lower, True), rhs),
            symmetric=True,
        ).reshape(b.shape)

    def info(self, ok: Array, negative_variance: Array) -> Info:
        """The report on a prediction made with this factor from inputs that are `ok`."""
        smallest, largest = _extreme_eigenvalues(lax.stop_gradient(self.matrix), self.lower)
        ok = ok & self.ok
        return Info(ok, self.diag_reg, self.jitter, smallest, largest, negative_variance, self.dtype)


@functools.partial(jax.jit, static_argnames=("absolute",))
def factorise(kernel: Array, diag_reg: Array, absolute: bool) -> Factor:
    """The factor of `kernel + diag_reg`, in the working precision."""
    dtype = _working_dtype()
    matrix, n = kernel.astype(dtype), len(kernel)
    identity = jnp.eye(n, dtype=dtype)
    scale = jnp.array(1.0, dtype) if absolute else jnp.trace(matrix) / n
    regulariser = diag_reg.astype(dtype) * scale
    matrix = matrix + regulariser * identity
    lower, jitter, ok = _climb(lax.stop_gradient(matrix), jnp.finfo(kernel.dtype))
    ok &= jnp.all(jnp.isfinite(matrix))
    return Factor(matrix + jitter * identity, lower, regulariser, jitter, ok, dtype.name)


def _climb(matrix: Array, precision: Any) -> tuple[Array, Array, Array]:
    """`(lower, jitter, ok)` of the first rung of the ladder at which the matrix can be factored.

    Squared pivots are Schur complements. Those below √n ε max(diag) are rounding errors, of the
    factorisation or of the kernel itself (ε is the kernel's own), and do not count as positive.
    """
    n, first_last = len(matrix), LADDERS[precision.bits // 8]
    exponents = range(first_last[0], first_last[1] + 1)
    rungs = jnp.array([0.0, *(10.0**e for e in exponents)], matrix.dtype)
    diagonal = jnp.diagonal(matrix)
    smallest_pivot = n**0.5 * float(precision.eps) * jnp.max(diagonal)

    def attempt(rung: Array) -> tuple[Array, Array, Array, Array]:
        jitter = rungs[rung] * jnp.mean(diagonal)
        lower = jnp.linalg.cholesky(matrix + jitter * jnp.eye(n, dtype=matrix.dtype))
        # written so that a NaN is a failure
        ok = jnp.all(jnp.square(jnp.diagonal(lower)) > smallest_pivot)
        return rung + 1, lower, jitter, ok

    _, lower, jitter, ok = lax.while_loop(
        lambda state: ~state[3] & (state[0] < len(rungs)),
        lambda state: attempt(state[0]),
        attempt(jnp.array(0)),
    )
    return lower, jitter, ok


@jax.jit
def _extreme_eigenvalues(matrix: Array, lower: Array) -> tuple[Array, Array]:
    """Estimates by power iteration with the matrix and with its inverse."""
    n = len(matrix)
    start = 1 + jnp.cos(jnp.arange(n, dtype=matrix.dtype)) / 2  # not orthogonal to any eigenvector

    def growth(apply: Callable[[Array], Array]) -> Array:
        def step(_: int, v: Array) -> Array:
            return apply(v / jnp.linalg.norm(v))

        return jnp.linalg.norm(lax.fori_loop(0, POWER_ITERATIONS, step, start))

    return 1 / growth(lambda v: cho_solve((lower, True), v)), growth(lambda v: matrix @ v)


def _working_dtype() -> np.dtype:
    """float64 if JAX has it enabled, otherwise float32, whatever the kernel's precision."""
    return np.dtype(jnp.result_type(float))


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
