"""The eigenvalues of a kernel, and what of the labels lies along its eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.diagnostics.kernels import label_columns, require_rows, symmetric
from infnet.errors import InputError
from infnet.predict.spectrum import decompose


@dataclass(frozen=True)
class KernelSpectrum:
    """Eigenvalues λ_i of a kernel of n examples, the largest first; arrays `(n,)`, float64.

    Attributes:
        eigenvalues: what rounding made negative is 0.
        label_shares: |v_iᵀ y|² / |y|², the share of the labels along the eigenvector v_i: they sum to 1. Gradient flow
            on the squared error learns each at the rate λ_i (Arora et al. 2019, arXiv:1901.08584, theorem 4.1). None
            without labels.
        cutoff: eigenvalues up to this are rounding errors of zero.
    """

    eigenvalues: np.ndarray
    label_shares: np.ndarray | None
    cutoff: float

    @property
    def cumulative(self) -> np.ndarray | None:
        """The share of the labels along the first i eigenvectors, `(n,)`."""
        return None if self.label_shares is None else np.cumsum(self.label_shares)


def spectrum(kernel: Any, labels: Any = None) -> KernelSpectrum:
    """The spectrum of a kernel, and of labels in its eigenvectors; computed in float64 whatever JAX's default is.

    >>> import numpy as np
    >>> found = spectrum(np.diag([1.0, 3.0]), np.array([0.0, 2.0]))
    >>> found.eigenvalues.tolist(), found.cumulative.tolist()
    ([3.0, 1.0], [1.0, 1.0])

    Args:
        kernel: `(n, n)`, of the examples with themselves.
        labels: classes `(n,)`, integers or bools, of which one column each is made, with its mean taken out; or real
            targets `(n,)` or `(n, t)`, as they are.

    Raises:
        InputError: a shape is wrong, the kernel is not symmetric, or all labels are alike.
        NumericalError: an entry is not finite, or the kernel is not positive semidefinite beyond rounding.
    """
    matrix = symmetric(kernel, "kernel")
    with jax.enable_x64(True):
        floating = jnp.asarray(matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64))
        found = decompose(floating[None], jnp.zeros(()), True, "kernel")
        values, vectors = (np.asarray(sum(parts))[0] for parts in (found.values, found.vectors))
        cutoff = float(found.cutoff)
    shares = None if labels is None else _shares(vectors[:, ::-1], labels)
    return KernelSpectrum(values[::-1].copy(), shares, cutoff)


def _shares(vectors: np.ndarray, labels: Any) -> np.ndarray:
    columns = label_columns(labels)
    require_rows(columns, len(vectors))
    if np.asarray(labels).dtype.kind in "biu":
        columns = columns - columns.mean(0)
    total = np.sum(columns**2)
    if total == 0:
        raise InputError("all labels are alike, or zero: nothing of them lies along any eigenvector")
    return np.sum((vectors.T @ columns) ** 2, axis=1) / total
