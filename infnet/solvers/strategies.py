"""How a kernel matrix is solved with: what `solver=` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError, NumericalError
from infnet.progress import bar
from infnet.solvers import host_cholesky, sharded_cholesky
from infnet.solvers.conjugate_gradients import Prepared, Solution, tolerance, variances
from infnet.solvers.low_rank import APPROXIMATIONS, LowRank
from infnet.solvers.operators import Operator, Sharded, Stored, load, operator
from infnet.solvers.products import Matrix

LADDER = (1, 10, 100, 1000)


class Solver(Protocol):
    """A way to solve."""

    def prepare(self, kernel: Any, noise: Any) -> Prepared:
        """Everything that does not depend on the right-hand side."""


@dataclass(frozen=True)
class ConjugateGradients:
    """Conjugate gradients, preconditioned by an approximation of low rank.

    It needs memory for `rank` columns of the kernel, in float64, and reads the kernel once in every iteration. The
    larger the rank, the fewer iterations: choose one at which making the preconditioner, n rank² operations, takes no
    longer than iterating.

    Attributes:
      rank: of the preconditioner; 0 for none. By default 8 √n.
      tol: the relative residual to reach, |b - (K + N) x| / |b|; by default 1e-10 for a kernel in float64, else 1e-6.
      preconditioner: "rpcholesky", which reads `rank` columns, or "nystrom", which multiplies with `rank` vectors:
        more work for a slightly better approximation.
      max_iterations: of all right-hand sides, which advance together.
      key: of `jax.random`: the same key, the same solution. By default `jax.random.key(0)`.
      progress: whether to show progress bars, with tqdm.
      require_convergence: whether it is an error if `tol` is not reached.
    """

    rank: int | None = None
    tol: float | None = None
    preconditioner: str = "rpcholesky"
    max_iterations: int = 1000
    key: jax.Array | None = None
    progress: bool = False
    require_convergence: bool = True

    def prepare(self, kernel: Any, noise: Any) -> Prepared:
        """Make the preconditioner of `kernel + noise`.

        Args:
          kernel: (n, n): whatever `infnet.solvers.operator` takes.
          noise: on the diagonal, a positive number or (n,).

        Raises:
          InputError: an argument or a field is not what it should be, or the kernel is not symmetric.
          NumericalError: the kernel contains numbers that are not finite.
        """
        matrix = operator(kernel)
        n = matrix.shape[0]
        rank = self._rank(n)
        if self.preconditioner not in APPROXIMATIONS:
            raise InputError(f"preconditioner must be one of {', '.join(APPROXIMATIONS)}; got {self.preconditioner!r}")
        require_iterations(self.max_iterations)
        added, tol = variances(noise, n, positive=True), tolerance(self.tol, matrix.dtype)
        diagonal = matrix.diagonal()
        key = jax.random.key(0) if self.key is None else self.key
        with bar(self.progress, "preconditioner", rank, "column") as shown:
            factor = APPROXIMATIONS[self.preconditioner](matrix, rank, key, shown.update) if rank else np.empty((n, 0))
        precondition = LowRank(factor, diagonal, added)
        limits = tol, self.max_iterations, self.progress, self.require_convergence
        return Prepared(matrix, added, precondition, precondition.rank, *limits)

    def _rank(self, n: int) -> int:
        if self.rank is None:
            return min(n, round(8 * n**0.5))
        if not isinstance(self.rank, int) or self.rank < 0:
            raise InputError(f"rank must be a number of columns, at least 0; got {self.rank!r}")
        return min(n, self.rank)


@dataclass(frozen=True)
class Cholesky:
    """A Cholesky factorisation, in the precision of the kernel, and conjugate gradients to correct it.

    It needs memory for one matrix: L is written over the lower triangle, the kernel stays above the diagonal, and a few
    iterations with both, in float64, give a solution of the true system. (A float32 factor alone has no digits left at
    a condition number of 1e7.) Of a kernel whose rows or columns are on several devices, a `jax.sharding.Mesh`, each
    device keeps its own part and factors it together with the others.

    Attributes:
      block: the number of columns that are factored at a time, of a kernel on a mesh. (LAPACK chooses its own.)
      tol: as in `ConjugateGradients`.
      overwrite: whether to factor the given array, a NumPy array, a memory map or a `jax.Array` on a mesh, where it is,
        without a copy of it: it does not hold the kernel any longer afterwards.
      max_iterations: of the correction.
      progress: whether to show progress bars, with tqdm. (LAPACK's factorisation is one step of one.)
      require_convergence: whether it is an error if `tol` is not reached.
    """

    block: int = 1024
    tol: float | None = None
    overwrite: bool = False
    max_iterations: int = 1000
    progress: bool = False
    require_convergence: bool = True

    def prepare(self, kernel: Any, noise: Any = 0.0) -> Prepared:
        """Factor `kernel + noise`.

        What is factored has at least √n roundings of the kernel added to its diagonal, or as many times 10, 100 or
        1000 as it takes; what is solved has not.

        Args:
          kernel: (n, n): whatever `infnet.solvers.operator` takes. One that is not in memory is read into memory.
          noise: on the diagonal, a number or (n,), not negative.

        Raises:
          InputError: an argument or a field is not what it should be, or the kernel is not symmetric.
          NumericalError: the kernel contains numbers that are not finite, or has no factor.
        """
        if not isinstance(self.block, int) or self.block < 1:
            raise InputError(f"block must be a number of columns, at least 1; got {self.block!r}")
        require_iterations(self.max_iterations)
        matrix = operator(kernel)
        n = matrix.shape[0]
        added, tol = variances(noise, n, positive=False), tolerance(self.tol, matrix.dtype)
        diagonal = matrix.diagonal()
        rounding = n**0.5 * float(jnp.finfo(matrix.dtype).eps) * diagonal.mean()
        shifts = [np.maximum(added, rung * rounding) for rung in LADDER]
        if isinstance(matrix, Sharded):
            remaining, precondition = self._on_devices(matrix, diagonal, shifts)
        else:
            remaining, precondition = self._on_host(matrix, diagonal, shifts)
        limits = tol, self.max_iterations, self.progress, self.require_convergence
        return Prepared(remaining, added, precondition, n, *limits)

    def _on_host(self, matrix: Operator, diagonal: Matrix, shifts: list[Matrix]) -> tuple[Operator, Any]:
        given = matrix.array if isinstance(matrix, Stored) else None
        a = host_cholesky.writable(given) if self.overwrite else load(matrix)

        def attempt(shift: Matrix) -> None:
            with bar(self.progress, "Cholesky", 1, "matrix") as shown:
                host_cholesky.factor_in_place(a, diagonal + shift)
                shown.update(1)

        _first_that_works(attempt, shifts, lambda: host_cholesky.restore(a))
        return Stored(a, diagonal=diagonal), partial(host_cholesky.substitute, a)

    def _on_devices(self, matrix: Sharded, diagonal: Matrix, shifts: list[Matrix]) -> tuple[Operator, Any]:
        array = matrix.array if matrix.dtype in (np.float32, np.float64) else matrix.array.astype(np.float32)

        def attempt(shift: Matrix) -> jax.Array:
            return sharded_cholesky.factor(array, shift, self.block, self.overwrite)

        # What was overwritten is not there for a second attempt.
        a = _first_that_works(attempt, shifts[:1] if self.overwrite else shifts, lambda: None)
        return Sharded(a, diagonal), partial(sharded_cholesky.substitute, a, block=self.block)


def _first_that_works(attempt: Callable[[Matrix], Any], shifts: list[Matrix], restore: Callable[[], None]) -> Any:
    for shift in shifts[:-1]:
        try:
            return attempt(shift)
        except NumericalError:
            restore()
    return attempt(shifts[-1])


def require_iterations(limit: Any) -> None:
    """Raise `InputError` where a limit on iterations is none."""
    if not isinstance(limit, int) or limit < 1:
        raise InputError(f"max_iterations must be at least 1; got {limit!r}")


def solve(kernel: Any, b: Any, noise: Any, solver: Solver | None = None) -> Solution:
    """x with (kernel + noise) x = b; see `ConjugateGradients`, which is the default, and `Cholesky`."""
    return (solver or ConjugateGradients()).prepare(kernel, noise).solve(b)
