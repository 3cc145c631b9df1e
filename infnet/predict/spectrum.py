"""Eigendecompositions of train-train kernels, done once for all times of training."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import NumericalError
from infnet.predict.checks import is_traced
from infnet.predict.posterior import Info, pytree

Array = jax.Array

# A negative eigenvalue is a rounding error up to this share of the mean of the diagonal, as jitter is elsewhere.
ROUNDING = 1e-2


@pytree(meta=("dtype",))
@dataclass(frozen=True)
class Spectrum:
    """A regularised train-train kernel V diag(values) Vᵀ, of d blocks of size N."""

    values: Array
    """(d, N) eigenvalues in ascending order; what rounding made negative is 0."""
    vectors: Array
    """(d, N, N) eigenvectors, in columns."""
    cutoff: Array
    """Eigenvalues up to this are rounding errors of zero: N ε times the largest, ε that of the kernel's own dtype."""
    horizon: Array
    """The time after which such an eigenvalue could have moved an output by more than the square root of ε."""
    lowest: Array
    """The smallest eigenvalue before it was raised to 0."""
    diag_reg: Array
    """The regularisation, in absolute units."""
    ok: Array
    """Whether all of this is finite, and the matrix positive semidefinite up to rounding."""
    dtype: str

    def filtered(self, factors: Array, columns: Array) -> Array:
        """V diag(factors) Vᵀ applied to columns `(d, N, t)`, for factors `(..., d, N)`."""
        return self.vectors @ (factors[..., None] * (self.vectors.mT @ columns))

    def matrix(self, factors: Array) -> Array:
        """V diag(factors) Vᵀ, `(..., d, N, N)`, for factors `(..., d, N)`."""
        return (self.vectors * factors[..., None, :]) @ self.vectors.mT

    def info(self, ok: Array, negative_variance: Array) -> Info:
        """The report on a prediction made from inputs that are `ok`."""
        jitter = jnp.zeros((), self.dtype)
        largest = jnp.max(self.values)
        return Info(ok & self.ok, self.diag_reg, jitter, self.lowest, largest, negative_variance, self.dtype)


def decompose(matrices: Array, diag_reg: Array, absolute: bool, label: str) -> Spectrum:
    """The eigenvalues and eigenvectors of `matrices + diag_reg`.

    Args:
        matrices: (d, N, N), symmetric.
        diag_reg: the strength of the regularisation: of the mean of the diagonal, or of 1 if it is `absolute`.
        absolute: see `diag_reg`.
        label: of the kernel, for errors.

    Raises:
        NumericalError: (outside `jit`; under it, `ok` is False) an eigenvalue is negative beyond rounding.
    """
    spectrum = _decompose(matrices, diag_reg, absolute)
    if is_traced(spectrum.ok) or bool(spectrum.ok):
        return spectrum
    raise NumericalError(
        f"{label} is not positive semidefinite: its smallest eigenvalue is {float(spectrum.lowest):.3g}, its largest "
        f"{float(spectrum.values.max()):.3g}. A kernel cannot be that far off by rounding: check that it is the kernel "
        "of the training points with themselves and that no entry overflowed; otherwise compute it in float64, or "
        "raise diag_reg."
    )


@functools.partial(jax.jit, static_argnames=("absolute",))
def _decompose(matrices: Array, diag_reg: Array, absolute: bool) -> Spectrum:
    # float64 if JAX has it enabled, otherwise float32, whatever the kernel's precision
    dtype = np.dtype(jnp.result_type(float))
    precision, size = float(jnp.finfo(matrices.dtype).eps), matrices.shape[-1]
    matrices = matrices.astype(dtype)
    mean = jnp.mean(jnp.diagonal(matrices, axis1=-2, axis2=-1))
    regulariser = diag_reg.astype(dtype) * (1 if absolute else mean)
    values, vectors = jnp.linalg.eigh(matrices + regulariser * jnp.eye(size, dtype=dtype))
    lowest, largest = jnp.min(values), jnp.max(values)
    ok = (lowest >= -ROUNDING * mean) & jnp.isfinite(largest)
    cutoff = size * precision * jnp.maximum(largest, 0)
    horizon = precision**0.5 / cutoff
    return Spectrum(jnp.maximum(values, 0), vectors, cutoff, horizon, lowest, regulariser, ok, dtype.name)
