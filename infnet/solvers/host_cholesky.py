"""Cholesky factorisation in place, of a matrix in memory or in a memory-mapped file.

K + S = L Lᵀ by LAPACK's potrf, which works where the matrix is and touches one triangle only. L takes the place of the
lower triangle and of the diagonal; what is above the diagonal stays the kernel, from which, with a copy of its
diagonal, true residuals can still be computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack

from infnet.errors import InputError, NumericalError
from infnet.solvers.products import Matrix

RESTORED_ROWS = 1024


def factor_in_place(a: Matrix, diagonal: Matrix) -> None:
    """Write L of `a`, (n, n), with this `diagonal` instead of its own, over the lower triangle of `a`.

    Raises:
      NumericalError: the matrix is not positive definite; `a` is then factored in part.
    """
    a[np.diag_indices_from(a)] = diagonal
    # Seen by columns, as LAPACK does, `a` is its transpose: its lower triangle is the upper one there.
    _, failed = lapack.get_lapack_funcs("potrf", (a,))(a.T, lower=0, overwrite_a=1, clean=0)
    if failed:
        raise not_positive_definite(failed - 1)


def restore(a: Matrix) -> None:
    """Write what is above the diagonal over what `factor_in_place` wrote below it."""
    for start in range(0, len(a), RESTORED_ROWS):
        here = slice(start, min(start + RESTORED_ROWS, len(a)))
        a[here, :start] = a[:start, here].T
        a[here, here] = np.triu(a[here, here], 1) + np.triu(a[here, here], 1).T


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
    if not (a.flags.c_contiguous or a.flags.f_contiguous) or not a.flags.aligned:  # LAPACK would be given a copy
        raise InputError(
            "a matrix that is factored in place must be contiguous and aligned: pass overwrite=False, or copy it"
        )
    return a if a.flags.c_contiguous else a.T


def not_positive_definite(row: int) -> NumericalError:
    """Of a matrix whose factorisation broke down in this row."""
    return NumericalError(
        f"the kernel with its noise is not positive definite: its Cholesky factorisation broke down in row {row}. A "
        "kernel cannot be that far off by rounding: check that it is that of the training points with themselves and "
        "that no entry overflowed; otherwise compute it in float64, or add noise."
    )
