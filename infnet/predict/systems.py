"""Inference with a kernel that is not one array in memory, or is not to be factored: `gp_inference(..., solver=)`.

The formulas are those of `gp_inference`. Every K_dd⁻¹ in them is a solution to the solver's tolerance, of the targets
once, and of the test points' kernels whenever a covariance is asked for. All of it is float64 on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import is_traced
from infnet.predict.covariance import Covariance, completed
from infnet.predict.posterior import Info
from infnet.solvers import Cholesky, Operator, Prepared, Solution, operator

Array = jax.Array


@dataclass(frozen=True)
class System:
    """A kernel with what is added to its diagonal, ready to be solved with, and the solution for the targets."""

    prepared: Prepared
    diag_reg: float
    targets: Solution

    @property
    def kernel(self) -> Operator:
        """(n, n), without what is added."""
        return self.prepared.kernel

    @property
    def jitter(self) -> Array:
        """Nothing is added that was not asked for."""
        return jnp.zeros(())

    def info(self, ok: Array, negative_variance: Array) -> Info:
        """The report on a prediction made with this from inputs that are `ok`; eigenvalues are not known."""
        unknown = jnp.array(jnp.nan)
        residual = jnp.asarray(self.targets.info.residual.max(initial=0))
        ok &= self.targets.info.converged
        diag_reg = jnp.asarray(self.diag_reg)
        return Info(ok, diag_reg, self.jitter, unknown, unknown, negative_variance, "float64", residual)

    def mean(self, k_td: Array) -> np.ndarray:
        """K_td K_dd⁻¹ y."""
        return np.asarray(k_td, np.float64) @ self.targets.x

    def covariance(self, k_td: Array, cross: Array, k_dd: Operator | None, k_tt: Array) -> Covariance:
        """As `covariance_after`; a diagonal `k_tt` gives a diagonal answer."""
        full = k_tt.ndim == 2
        a = self.prepared.solve(np.asarray(k_td, np.float64).T).x  # Aᵀ, (n, m)

        def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return left @ right if full else np.einsum("mn,nm->m", left, right)

        start = np.asarray(cross, np.float64)
        covariance = np.asarray(k_tt, np.float64) - product(start, a)
        if k_dd is not None:
            covariance += product(a.T, k_dd.matmul(a)) - product(start, a)
        return completed(jnp.asarray(covariance), full)


def as_operator(kernel: Any, label: str) -> Operator:
    """A training kernel as an operator.

    Raises:
      InputError: it is traced, or not a real square matrix.
    """
    if is_traced(kernel):
        raise InputError(f"{label} is traced, but is to be solved with on the host: call gp_inference outside of jit")
    return operator(kernel if hasattr(kernel, "shape") else np.asarray(kernel, float))


def system(
    kernel: Operator, y: Array, axes: OutputAxes, solver: Any, diag_reg: Array, absolute: bool, noise: Array
) -> System:
    """The system of one training kernel.

    Raises:
      InputError: the solver is none, or the kernel would need axes of the outputs.
      NumericalError: it could not be solved.
    """
    if isinstance(solver, str) and solver == "cholesky":
        solver = Cholesky()
    if not hasattr(solver, "prepare"):
        raise InputError(
            f'solver must be "cholesky", infnet.solvers.Cholesky(...) or ConjugateGradients(...); got {solver!r}'
        )
    if axes.free:
        raise InputError(
            "a kernel that is read by parts, or for which a solver is given, is one (n, n) matrix, in which outputs "
            f"have no rows of their own; targets with axes {axes.free}: pass trace_axes={(*axes.traced, *axes.free)}"
        )
    if is_traced(y, diag_reg, noise):
        raise InputError("the targets or the noise are traced, but a solver runs on the host: call it outside of jit")
    regulariser = float(diag_reg) * (1.0 if absolute else float(kernel.diagonal().mean()))
    prepared = solver.prepare(kernel, regulariser + np.asarray(noise, np.float64))
    return System(prepared, regulariser, prepared.solve(np.asarray(axes.columns(y)[0], np.float64)))
