"""Preconditioned conjugate gradients for (K + N) x = b, N a diagonal of noise, with several right-hand sides at once.

Hestenes & Stiefel (1952), preconditioned: Golub & Van Loan, Matrix Computations (4th ed.), algorithm 11.5.1. What is
updated along the way, `r ← r - α (K + N) p`, drifts away from the residual `b - (K + N) x`. So the residual is computed
anew when the updated one says that it is small enough, and the iteration starts again from there unless it really is.

Products with a kernel in memory that is not float64 itself are in float32, which takes less than half of the time, as
long as they help. Whenever a residual has fallen tenfold it is computed anew in float64, and takes the place of the
updated one, while the search goes on (van der Vorst & Ye 2000, doi:10.1137/S1064827599353865). The next direction is
made orthogonal to the last one only, by what the residual was and is, `β = zᵀ (r - r_before) / z_beforeᵀ r_before`,
which bears such changes (flexible conjugate gradients: Notay 2000, doi:10.1137/S1064827599362314); without them it is
the usual one. Where the two residuals differ by more than was left, the noise is too small for float32: the iteration
starts again, in float64, from where they last agreed. So it does after many steps, in which rounding makes conjugate
gradients lose directions that they had: they took up to 1.8 times as many steps, where float64 took some hundreds.

Vectors are float64 on the host: a matrix in parts, on disk or computed as it goes is a function there, not an operation
to be traced, each of its products takes as long as thousands of vector operations, and float64 does not exist on
devices where x64 is off. (That is why this is not `lineax.CG`, which is a `while_loop` of one right-hand side.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet.errors import InputError, NumericalError
from infnet.progress import bar
from infnet.solvers.operators import Operator
from infnet.solvers.products import Matrix

STRICTER = 0.5  # what the updated residual must reach, relative to what the true one must
ROUNDING = float(np.finfo(np.float64).eps) ** 0.5
REPLACED = 0.1  # the fall of a residual after which float32 products are not trusted any further
LONG = 100  # steps with products in float32
LARGEST = 1e30  # of n diagonal entries, for products that do not overflow in float32
WORTH_A_RESTART = 0.5  # the residual that a restart must leave, relative to the one before


@dataclass(frozen=True)
class SolveInfo:
    """How a solution was found."""

    converged: bool
    """Whether every `residual` is at most the tolerance."""
    residual: Matrix
    """(m,) |b - (K + N) x| / |b| of each right-hand side, computed from x at the end."""
    iterations: int
    """Steps of conjugate gradients, each a product with the kernel."""
    history: tuple[float, ...]
    """The largest residual after each step, as updated by the step: an estimate."""
    restarts: int
    """How often the true residual was not small enough when its update was, and the iteration began again from it."""
    rank: int
    """Of the preconditioner; n if it is a Cholesky factor."""
    dtype: str
    """In which the kernel is given. The residual is computed in float64 whatever it is."""


@dataclass(frozen=True)
class Solution:
    """x and how it was found."""

    x: Matrix
    """Of the shape of the right-hand side, float64."""
    info: SolveInfo


@dataclass(frozen=True)
class Prepared:
    """A kernel matrix with noise, ready to be solved with."""

    kernel: Operator
    noise: Matrix
    """(n,)."""
    precondition: Callable[[Matrix], Matrix]
    """An approximation of the inverse, (n, m) of (n, m)."""
    rank: int
    tol: float
    max_iterations: int
    progress: bool
    require_convergence: bool

    @property
    def float32_may_do(self) -> bool:
        """Whether to begin with products in float32: not for what takes a few steps only, or is not just multiplied."""
        largest = len(self.noise) * self.kernel.diagonal().max()
        worth_it = getattr(self.kernel, "in_memory", False) and self.rank < len(self.noise)
        return bool(worth_it and self.kernel.dtype != np.float64 and 1 / LARGEST < largest < LARGEST)

    def rough_product(self, v: Matrix) -> Matrix:
        """(K + N) v, with the digits of float32."""
        scale = np.abs(v).max(0)
        return self.kernel.matmul((v / scale).astype(np.float32)) * scale + self.noise[:, None] * v

    def matmul(self, v: Matrix) -> Matrix:
        """(K + N) v."""
        product = self.kernel.matmul(v) + self.noise[:, None] * v
        if not np.isfinite(product).all():
            row = int(np.argwhere(~np.isfinite(product))[0, 0])
            raise NumericalError(
                f"the product of the kernel with a finite vector is not finite in row {row}: an entry of this row is "
                "not, or their sum overflows. Compute the kernel in float64, or divide it and the noise by a "
                "number, and leave out inputs whose kernel is not finite."
            )
        return product

    def solve(self, b: Any) -> Solution:
        """x with (K + N) x = b.

        Args:
          b: (n,) or (n, m).

        Raises:
          InputError: `b` has another shape, or is not finite.
          NumericalError: the kernel is not positive definite, or the tolerance was not reached.
        """
        b = right_hand_sides(b, len(self.noise))
        columns = b.reshape(len(b), -1)
        norms = np.linalg.norm(columns, axis=0)
        with bar(self.progress, "conjugate gradients", self.max_iterations, "step") as shown:
            run = _Run(self, columns / np.where(norms, norms, 1), shown)
            residual = run.to_the_end()
        converged = bool((residual <= self.tol).all())
        info = SolveInfo(
            converged, residual, len(run.history), tuple(run.history), run.restarts, self.rank, str(self.kernel.dtype)
        )
        if not converged and self.require_convergence:
            raise NumericalError(self._explanation(info))
        return Solution((run.x * norms).reshape(b.shape), info)

    def _explanation(self, info: SolveInfo) -> str:
        stalled = info.iterations < self.max_iterations
        why = (
            "restarts no longer improve it, which is the limit of float64 at this condition number: allow a larger tol"
            if stalled
            else "take a preconditioner of higher rank, or allow more iterations (max_iterations)"
        )
        return (
            f"conjugate gradients reached a relative residual of {info.residual.max():.2g}, not {self.tol:.2g}, in "
            f"{info.iterations} iterations with a preconditioner of rank {info.rank}: {why}; or add noise. "
            "(require_convergence=False returns the solution as it is.)"
        )


class _Run:
    """The iteration for right-hand sides of norm 1 (or 0)."""

    def __init__(self, system: Prepared, b: Matrix, shown: Any):
        self.system, self.b, self.shown = system, b, shown
        self.x = np.zeros_like(b)
        self.history: list[float] = []
        self.restarts = -1
        self.rough = system.float32_may_do
        self.trusted = self.x, b
        """Solutions and their residuals, as last computed in float64 while products are in float32."""

    def to_the_end(self) -> Matrix:
        """Iterate until the true residuals are small, or no longer fall; returns their norms."""
        r = self.b.copy()
        size = np.linalg.norm(r, axis=0)
        while (size > self.system.tol).any() and len(self.history) < self.system.max_iterations:
            self.restarts += 1
            before, left, rough = size, np.flatnonzero(size > self.system.tol), self.rough
            if rough:
                self.trusted = self.x.copy(), r.copy()
            self._descend(r[:, left], left)
            r = self.b - self.system.matmul(self.x)
            size = np.linalg.norm(r, axis=0)
            falls = (size[left] <= WORTH_A_RESTART * before[left]).all()
            if rough and not (self.rough and falls):
                self.rough = False
                r, size = self._as_trusted(r, size)
            elif not falls:
                break
        self.restarts = max(self.restarts, 0)
        return size

    def _as_trusted(self, r: Matrix, size: Matrix) -> tuple[Matrix, Matrix]:
        """Take back what products in float32 have made worse; returns the residuals and their norms."""
        x, residual = self.trusted
        worse = size > np.linalg.norm(residual, axis=0)
        self.x[:, worse], r[:, worse] = x[:, worse], residual[:, worse]
        return r, np.linalg.norm(r, axis=0)

    def _descend(self, r: Matrix, columns: Matrix) -> None:
        """Improve these columns of x, whose residuals are `r`; a column that is done takes no further part."""
        z = self.system.precondition(r)
        p, rz, exact = z, np.sum(r * z, 0), np.linalg.norm(r, axis=0)
        while len(columns) and len(self.history) < self.system.max_iterations:
            product = self.system.rough_product(p) if self.rough else self.system.matmul(p)
            curvature = np.sum(p * product, 0)
            if not ((curvature > 0).all() and (rz > 0).all()):
                self._at_the_limit(p, product, curvature)
                return
            step = rz / curvature
            self.x[:, columns] += step * p
            last, r = r, r - step * product
            size = np.linalg.norm(r, axis=0)
            self.history.append(float(size.max()))
            self.shown.update(1)
            self.shown.set_postfix_str(f"residual {self.history[-1]:.1e}")
            if self.rough:
                if (size < REPLACED * exact).any():
                    r = self._replaced(r, columns)
                    size = exact = np.linalg.norm(r, axis=0)
                self.rough = self.rough and len(self.history) < LONG
                if not self.rough:
                    return
            going = size > STRICTER * self.system.tol
            columns, exact = columns[going], exact[going]
            last, r, p, rz = last[:, going], r[:, going], p[:, going], rz[going]
            z = self.system.precondition(r)
            p = z + np.sum((r - last) * z, 0) / rz * p
            rz = np.sum(r * z, 0)

    def _replaced(self, updated: Matrix, columns: Matrix) -> Matrix:
        """The true residuals, which are trusted if they are close to the updated ones."""
        x, residual = self.trusted
        r = self.b[:, columns] - self.system.matmul(self.x[:, columns])
        self.rough = bool((np.linalg.norm(r - updated, axis=0) <= np.linalg.norm(updated, axis=0)).all())
        if self.rough:
            x[:, columns], residual[:, columns] = self.x[:, columns], r
        return r

    def _at_the_limit(self, p: Matrix, product: Matrix, curvature: Matrix) -> None:
        """Only rounding is left: that of float32, of float64, or none that could explain it."""
        if self.rough:
            self.rough = False
        elif (curvature < -ROUNDING * np.linalg.norm(p, axis=0) * np.linalg.norm(product, axis=0)).any():
            raise NumericalError(
                "the kernel with its noise is not positive definite, beyond what rounding can do: add noise, check "
                "that it is the kernel of the training points with themselves, or compute it in float64."
            )


def right_hand_sides(b: Any, n: int) -> Matrix:
    """`b` in float64, checked."""
    array = np.asarray(b)
    if array.dtype.kind == "c" or array.ndim not in (1, 2) or len(array) != n:
        raise InputError(f"b must be real, of shape ({n},) or ({n}, m); got shape {array.shape}, dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"b is not finite at index {tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])}")
    return array


def variances(noise: Any, n: int, *, positive: bool) -> Matrix:
    """The noise on the diagonal, (n,), checked."""
    array = np.asarray(noise, np.float64)
    if array.shape not in ((), (n,)):
        raise InputError(f"noise must be a number or one for each row of the kernel, ({n},); got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any() or (positive and not (array > 0).all()):
        kind = "positive" if positive else "not negative"
        more = "; conjugate gradients solve K + noise, which must not be singular" * positive
        raise InputError(f"noise must be finite and {kind}; the smallest is {array.min()}{more}")
    return np.broadcast_to(array, (n,))


def tolerance(tol: float | None, dtype: Any) -> float:
    """What was asked for, or 1e-10 for a kernel in float64 and 1e-6 for any other."""
    if tol is None:
        return 1e-10 if np.dtype(dtype) == np.float64 else 1e-6
    if not 0 < float(tol) < 1:
        raise InputError(f"tol must be between 0 and 1, a residual relative to the right-hand side; got {tol!r}")
    return float(tol)
