"""Cholesky factorisation in place, by blocks, of a matrix in memory or in a memory-mapped file.

K + S = L Lᵀ by panels of columns, each finished before the next (left-looking; Golub & Van Loan, Matrix Computations,
4th ed., section 4.2.5 to 4.2.9): a panel is read and written once, and takes what is left of it from those before. L
takes the place of the lower triangle and of the diagonal; what is above the diagonal stays the kernel, from which,
with a copy of its diagonal, true residuals can still be computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack
from scipy.linalg.blas import get_blas_funcs

from infnet.errors import InputError, NumericalError
from infnet.solvers.products import Matrix


def factor_in_place(a: Matrix, shift: Matrix, block: int, advance: Any) -> None:
    """Write L of `a + diag(shift)` over the lower triangle of `a`, (n, n); needs memory for a panel, n × block.

    Raises:
      NumericalError: the matrix is not positive definite; `a` is then factored in part.
    """
    n = len(a)
    for start in range(0, n, block):
        stop = min(start + block, n)
        done, pivot = a[start:stop, :start], a[start:stop, start:stop]
        corner = pivot - done @ done.T
        corner[np.diag_indices_from(corner)] += shift[start:stop].astype(a.dtype)
        corner = _factor(corner, start)
        np.copyto(pivot, corner, where=np.tri(stop - start, dtype=bool))
        left = a[stop:, :start] @ done.T  # one large product: BLAS's threads wait for each other after each
        np.subtract(a[stop:, start:stop], left, out=left)
        a[stop:, start:stop] = _divide(left, corner)
        advance(stop - start)


def restore(a: Matrix, diagonal: Matrix, block: int) -> None:
    """Write the kernel over what `factor_in_place` wrote: what is above the diagonal, and the `diagonal`."""
    for start in range(0, len(a), block):
        here = slice(start, min(start + block, len(a)))
        a[here, :start] = a[:start, here].T
        a[here, here] = np.triu(a[here, here], 1) + np.triu(a[here, here], 1).T
    a[np.diag_indices_from(a)] = diagonal


def substitute(a: Matrix, v: Matrix) -> Matrix:
    """L⁻ᵀ L⁻¹ v, with L in the lower triangle of `a`; in the precision of `a`."""
    for transposed in (1, 0):  # seen by columns, `a` holds Lᵀ above its diagonal
        v, _ = lapack.get_lapack_funcs("trtrs", (a,))(a.T, v.astype(a.dtype), lower=0, trans=transposed)
    return v.astype(np.float64)


def writable(a: Any) -> Matrix:
    """`a` as rows that are contiguous, which a symmetric matrix by columns is too.

    Raises:
      InputError: LAPACK cannot work on it where it is.
    """
    if not isinstance(a, np.ndarray) or a.dtype not in (np.float32, np.float64) or not a.flags.writeable:
        what = f"{a.dtype} {type(a).__name__}" if isinstance(a, np.ndarray) else type(a).__name__
        raise InputError(
            "a matrix is factored in place only if it is a writable NumPy array (or memory map) of float32 or float64; "
            f"got {what}: pass overwrite=False, or copy it into one"
        )
    if not (a.flags.c_contiguous or a.flags.f_contiguous):
        raise InputError("a matrix that is factored in place must be contiguous: pass overwrite=False, or copy it")
    return a if a.flags.c_contiguous else a.T


def _factor(corner: Matrix, start: int) -> Matrix:
    # The upper triangle of the transpose, where LAPACK reads columns, is the lower triangle.
    lower, failed = lapack.get_lapack_funcs("potrf", (corner,))(corner.T, lower=0, overwrite_a=1, clean=1)
    if failed:
        raise not_positive_definite(start + failed - 1)
    return lower.T


def _divide(rows: Matrix, corner: Matrix) -> Matrix:
    """rows corner⁻ᵀ, by the solution of corner Xᵀ = rowsᵀ."""
    return get_blas_funcs("trsm", (rows, corner))(1.0, corner.T, rows.T, lower=0, trans_a=1, overwrite_b=1).T


def not_positive_definite(row: int) -> NumericalError:
    """Of a matrix whose factorisation broke down in this row."""
    return NumericalError(
        f"the kernel with its noise is not positive definite: its Cholesky factorisation broke down in row {row}. A "
        "kernel cannot be that far off by rounding: check that it is that of the training points with themselves and "
        "that no entry overflowed; otherwise compute it in float64, or add noise."
    )
