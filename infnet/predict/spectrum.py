"""Functions of train-train kernels, by an eigendecomposition that is done once for all times of training.

A function of a kernel K = V diag(λ) Vᵀ is f(K) = V diag(f(λ)) Vᵀ. Its derivative in K is not taken through eigenvectors
(they have none where eigenvalues coincide) but by divided differences (Daleckii & Krein; Higham 2008, "Functions of
matrices", theorem 3.11),

    df(K) = V (F ∘ Vᵀ dK V) Vᵀ,     F_ij = (f(λᵢ) - f(λⱼ)) / (λᵢ - λⱼ), or f'(λᵢ) where both are equal.

Second derivatives are those of eigenvalues and eigenvectors too, and NaN where these are not well separated.

All of this is done in float64, whatever JAX's default is, for the reasons that `infnet/predict/cholesky.py` has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from infnet.errors import NumericalError
from infnet.float64 import default_dtype, in_float64, kept, split
from infnet.predict.checks import is_traced
from infnet.predict.filters import Filter
from infnet.predict.posterior import Info, pytree

Array = jax.Array
Combine = Callable[[Array, Array], Array]

# A negative eigenvalue is a rounding error up to this share of the mean of the diagonal, as jitter is elsewhere.
ROUNDING = 1e-2

# Divided differences over gaps that are smaller than this, relative to the scale on which filters vary, are means of
# the derivative at the two points of Gauss and Legendre: the rounding errors of a quotient are 1e-16 over the gap.
CLOSE = 1e-5


@pytree()
@dataclass(frozen=True)
class Spectrum:
    """A regularised train-train kernel V diag(values) Vᵀ, of d blocks of size N."""

    kernel: Array
    """(d, N, N), without the regularisation."""
    values: tuple[Array, ...]
    """(d, N), to be summed: eigenvalues in ascending order; what rounding made negative is 0."""
    vectors: tuple[Array, ...]
    """(d, N, N), to be summed: eigenvectors, in columns."""
    cutoff: Array
    """Eigenvalues up to this are rounding errors of zero: N ε times the largest, ε that of the kernel's own dtype."""
    horizon: Array
    """The time after which such an eigenvalue could have moved an output by more than the square root of ε."""
    lowest: Array
    """The smallest eigenvalue before it was raised to 0."""
    largest: Array
    diag_reg: Array
    """The regularisation, in absolute units."""
    ok: Array
    """Whether all of this is finite, and the matrix positive semidefinite up to rounding."""

    def filtered(self, filter_: Filter, columns: Array, combine: Combine = lambda _, s: s) -> Array:
        """V diag(combine(λ, s(λ))) Vᵀ columns, `(*times, d, N, t)`, of columns `(d, N, t)`; to be called in float64.

        `combine` works element by element, and is a function of its arguments alone.
        """
        matrix = regularised(self.kernel, self.diag_reg)
        return _filtered(combine, filter_, matrix, sum(self.values), sum(self.vectors), columns)

    def info(self, ok: Array, negative_variance: Any = 0.0) -> Info:
        """The report on a prediction made from inputs that are `ok`."""
        jitter, negative = (jnp.asarray(x, self.lowest.dtype) for x in (0.0, negative_variance))
        return Info(ok & self.ok, self.diag_reg, jitter, self.lowest, self.largest, negative, "float64")


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
    dtype, precision = default_dtype(), float(jnp.finfo(matrices.dtype).eps)
    known = (jnp.asarray(x, dtype) for x in (diag_reg, absolute, precision))
    values, vectors, rest = _decompose(matrices.astype(dtype), *known)
    spectrum = Spectrum(matrices, kept(values), kept(vectors), **rest)
    if is_traced(spectrum.ok) or bool(spectrum.ok):
        return spectrum
    raise NumericalError(
        f"{label} is not positive semidefinite: its smallest eigenvalue is {float(spectrum.lowest):.3g}, its largest "
        f"{float(spectrum.largest):.3g}. A kernel cannot be that far off by rounding: check that it is the kernel "
        "of the training points with themselves and that no entry overflowed; otherwise compute it in float64, or "
        "regularise it, by diag_reg where there is one."
    )


def regularised(kernel: Array, shift: Array) -> Array:
    """`kernel + shift` on the diagonal."""
    return kernel + shift * jnp.eye(kernel.shape[-1], dtype=kernel.dtype)


@in_float64
def _decompose(kernel: Array, diag_reg: Array, absolute: Array, epsilon: Array) -> tuple[Any, Any, dict[str, Array]]:
    """Eigenvalues and eigenvectors, `split`, and all else that is known of them. Only `diag_reg` has derivatives."""
    mean = jnp.mean(jnp.diagonal(kernel, axis1=-2, axis2=-1))
    shift = diag_reg * jnp.where(absolute > 0, 1.0, mean)
    values, vectors = jnp.linalg.eigh(lax.stop_gradient(regularised(kernel, shift)))
    lowest, largest = jnp.min(values), jnp.max(values)
    cutoff = kernel.shape[-1] * epsilon * jnp.maximum(largest, 0)
    ok = (lowest >= -ROUNDING * mean) & jnp.isfinite(largest)
    rest = {"cutoff": cutoff, "horizon": epsilon**0.5 / cutoff, "lowest": lowest, "largest": largest}
    return split(jnp.maximum(values, 0)), split(vectors), rest | {"diag_reg": shift, "ok": ok}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _filtered(combine: Combine, filter_: Filter, kernel: Array, values: Array, vectors: Array, columns: Array) -> Array:
    """See `Spectrum.filtered`. Eigenvalues and eigenvectors are those of the kernel, and have no derivatives."""
    return vectors @ (combine(values, filter_(values))[..., None] * (vectors.mT @ columns))


def _filtered_jvp(combine: Combine, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    filter_, kernel, values, vectors, columns = primals
    values, vectors = _of_kernel(kernel, values, vectors)
    s, projected = filter_(values), vectors.mT @ columns
    factors = combine(values, s)
    moved = jnp.zeros((*factors.shape, columns.shape[-1]))
    if not all(map(_is_zero, jax.tree.leaves(tangents[0], is_leaf=_is_zero))):
        moving = jax.tree.map(_instantiated, tangents[0], filter_, is_leaf=_is_zero)
        moved += jax.jvp(lambda f: combine(values, f(values)), (filter_,), (moving,))[1][..., None] * projected
    if not _is_zero(tangents[4]):
        moved += factors[..., None] * (vectors.mT @ tangents[4])
    if not _is_zero(tangents[1]):
        turned = vectors.mT @ _symmetric(tangents[1]) @ vectors

        @jax.checkpoint  # of which reverse mode keeps nothing, so that its memory does not grow with the times
        def at(time: tuple[Array, Array]) -> Array:
            when, s = time
            ratios = _divided_differences(combine, dataclasses.replace(filter_, when=when), values, s)
            return (ratios * turned) @ projected

        times = filter_.when.ravel(), s.reshape(-1, *values.shape)
        moved += lax.map(at, times).reshape(moved.shape)
    return _filtered(combine, *primals), vectors @ moved


_filtered.defjvp(_filtered_jvp, symbolic_zeros=True)


def _divided_differences(combine: Combine, filter_: Filter, values: Array, s: Array) -> Array:
    """F of the docstring at the top, `(d, N, N)`, of f = combine(λ, s(λ)) at one time.

    The scale on which filters of eigenvalues vary is 1 / s: at first the inverse of the time, at last λ itself.
    """
    f, sizes = combine(values, s), jnp.abs(s)
    gap = values[..., :, None] - values[..., None, :]
    close = jnp.abs(gap) * jnp.maximum(sizes[..., :, None], sizes[..., None, :]) <= CLOSE
    secants = (f[..., :, None] - f[..., None, :]) / jnp.where(close, 1, gap)
    means = (values[..., :, None] + values[..., None, :]) / 2
    nodes = means + jnp.stack([gap, -gap]) / 12**0.5
    slopes = jax.jvp(lambda x: combine(x, filter_(x)), (nodes,), (jnp.ones_like(nodes),))[1]
    return jnp.where(close, jnp.mean(slopes, 0), secants)


@jax.custom_jvp
def _of_kernel(kernel: Array, values: Array, vectors: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors, as given, with derivatives in the kernel: NaN for those that are too close."""
    return values, vectors


@_of_kernel.defjvp
def _of_kernel_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> Any:
    values, vectors = _of_kernel(*primals)
    turned = vectors.mT @ _symmetric(tangents[0]) @ vectors
    gap = values[..., None, :] - values[..., :, None]
    apart = jnp.abs(gap) > jnp.finfo(values.dtype).eps ** 0.5 * jnp.max(values)
    turns = jnp.where(jnp.eye(values.shape[-1], dtype=bool), 0, turned / jnp.where(apart, gap, jnp.nan))
    return (values, vectors), (jnp.diagonal(turned, axis1=-2, axis2=-1), vectors @ turns)


def _symmetric(matrices: Array) -> Array:
    return (matrices + matrices.mT) / 2


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any, primal: Array) -> Any:
    return zero_from_primal(primal) if _is_zero(tangent) else tangent
