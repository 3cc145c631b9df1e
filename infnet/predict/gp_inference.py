"""Exact inference: the Bayesian posterior (NNGP) and the fully trained ensemble (NTK).

With K the NNGP, Θ the NTK, d the training and t the test set, Lee et al. (arXiv:1902.06720) have

    NNGP (eq. 12 and 13)   mean = K_td K_dd⁻¹ y     cov = K_tt − K_td K_dd⁻¹ K_dt
    NTK  (eq. 15 and 16,   mean = Θ_td Θ_dd⁻¹ y     cov = K_tt + A K_dd Aᵀ − (A K_dt + K_td Aᵀ),
          time → ∞)                                       where A = Θ_td Θ_dd⁻¹

and He et al. (arXiv:2007.05864) the NTKGP, the NNGP's formulas with Θ in place of K. The matrix that is
inverted is regularised: `+ diag_reg * trace / n * I`, or `+ diag_reg * I`.

A kernel matrix is positive semidefinite but, in floating point, often not quite: near-duplicate inputs or
smooth kernels make its smallest eigenvalue a rounding error of either sign. It is factored as it is if
possible, otherwise with the smallest jitter of a ladder that works. `Info` reports which.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from infnet.errors import InputError, NumericalError

Array = jax.Array
Get = str | Sequence[str] | None

# `get` -> (the kernel that is inverted, the kernel of the networks at initialisation)
MODES = {"nngp": ("nngp", "nngp"), "ntk": ("ntk", "nngp"), "ntkgp": ("ntk", "ntk")}

# Jitter, relative to the mean of the diagonal, by the kernel's own precision (bytes a number).
LADDERS = {8: (-12, -2), 4: (-6, -2), 2: (-3, -2)}

POWER_ITERATIONS = 16


def _pytree(*, meta: Sequence[str] = ()) -> Callable[[type], type]:
    """A frozen dataclass registered with JAX; fields in `meta` are static."""

    def decorate(cls: type) -> type:
        data = [name for name in cls.__annotations__ if name not in meta]
        return jax.tree_util.register_dataclass(cls, data, list(meta))

    return decorate


# What comes back.


@_pytree(meta=("dtype",))
@dataclass(frozen=True)
class Info:
    """How the linear algebra went. Under `jit`, look at `ok`; outside, `ok=False` is an error."""

    ok: Array
    """Whether every input was finite and the factorisation succeeded."""
    diag_reg: Array
    """The regularisation that was asked for, in absolute units."""
    jitter: Array
    """What had to be added to the diagonal beyond that, in absolute units; 0 when nothing was."""
    eigenvalue_min: Array
    """Estimate, from above, of the smallest eigenvalue of the factored matrix."""
    eigenvalue_max: Array
    """Estimate, from below, of its largest eigenvalue."""
    negative_variance: Array
    """The most negative predictive variance before it was raised to 0; 0 when none was negative."""
    dtype: str
    """The precision of the linear algebra."""

    @property
    def condition(self) -> Array:
        """Estimate, from below, of the condition number of the factored matrix."""
        return self.eigenvalue_max / self.eigenvalue_min


@_pytree()
@dataclass(frozen=True)
class Gaussian:
    """The predictive distribution at m test points; trailing axes of the targets are independent."""

    mean: Array
    """(m, …), like the targets."""
    covariance: Array | None
    """(m, m), the same for every trailing axis; None unless `k_test_test` was a matrix."""
    variance: Array | None
    """(m,), never negative; None unless `k_test_test` was given."""
    info: Info

    def sample(self, key: Array, n: int = 1) -> Array:
        """`n` joint draws, (n, m, …)."""
        if self.covariance is None:
            raise InputError(
                "sampling needs the covariance between test points: pass the full (m, m) matrix as "
                "k_test_test to the prediction function."
            )
        eigenvalues, vectors = jnp.linalg.eigh(self.covariance)
        root = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))
        noise = jax.random.normal(key, (n, *self.mean.shape), self.mean.dtype)
        return self.mean + jnp.einsum("ij,nj...->ni...", root, noise)


# The factorisation.


@_pytree(meta=("dtype",))
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
def _factorise(kernel: Array, diag_reg: Array, absolute: bool) -> Factor:
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


# Prediction.


@_pytree()
@dataclass(frozen=True)
class Predictor:
    """The training set, digested: call it with test kernels. A pytree, to be saved or passed to `jit`."""

    kernels: dict[str, Array]
    factors: dict[str, Factor]
    y_train: Array

    def __call__(self, get: Get = None, k_test_train: Any = None, k_test_test: Any = None) -> Any:
        """The predictive distribution of the test set.

        Args:
          get: "nngp", "ntk" or "ntkgp" gives a `Gaussian`; a tuple of them gives a namedtuple of
            Gaussians in that order; None stands for all of "nngp" and "ntk" that the training kernel
            contains (for a bare array: one Gaussian).
          k_test_train: (m, n) kernel between test and training points: an array, or anything with
            attributes `.nngp` and `.ntk`. None predicts the training set without regularisation,
            which is N(y_train, 0); for smoothed predictions on it pass `k_train_train`.
          k_test_test: the test points' own kernel, for the covariance: the (m, m) matrix, or only
            its diagonal (m,) for the variance without m² memory. For "ntk", which needs the NNGP at
            initialisation, this is `.nngp` (a bare array is taken for it), and both other kernels
            must contain both. With `k_test_train=None` any value but None asks for the (zero)
            covariance.
        """
        if get is None and "bare" in self.kernels:
            return self._gaussian("nngp", k_test_train, k_test_test)
        if isinstance(get, str):
            return self._gaussian(get, k_test_train, k_test_test)
        names = tuple(self.kernels if get is None else get)
        gaussians = [self._gaussian(name, k_test_train, k_test_test) for name in names]
        return _named(names)(*gaussians)

    def _gaussian(self, get: str, k_test_train: Any, k_test_test: Any) -> Gaussian:
        if get not in MODES:
            raise InputError(f'get must be "nngp", "ntk", "ntkgp" or a tuple of these; got {get!r}.')
        solved, initial = MODES[get]
        factor = _lookup(self.factors, solved, get)
        if k_test_train is None:
            return self._on_training_set(factor, k_test_test is not None)
        k_td = self._cross_kernel(k_test_train, solved, get)
        mean = _mean(factor, k_td, self.y_train)
        if k_test_test is None:
            info = self._info(factor, jnp.zeros((), factor.dtype), k_test_train=k_td)
            return Gaussian(mean, None, None, info)
        cross, k_dd = k_td, None
        if initial != solved:
            cross = self._cross_kernel(k_test_train, initial, get, need_both=True)
            k_dd = _lookup(self.kernels, initial, get, need_both=True)
        k_tt = _test_kernel(k_test_test, initial, get, len(k_td))
        covariance, variance, negative = _covariance(factor, k_td, cross, k_dd, k_tt)
        tested = {"k_test_train": k_td, "k_test_train (at initialisation)": cross}
        info = self._info(factor, negative, **tested, k_test_test=k_tt)
        return Gaussian(mean, covariance, variance, info)

    def _on_training_set(self, factor: Factor, with_covariance: bool) -> Gaussian:
        n, dtype = len(self.y_train), self.y_train.dtype
        covariance = jnp.zeros((n, n), dtype) if with_covariance else None
        variance = jnp.zeros(n, dtype) if with_covariance else None
        info = self._info(factor, jnp.zeros((), factor.dtype))
        return Gaussian(self.y_train, covariance, variance, info)

    def _info(self, factor: Factor, negative_variance: Array, **arrays: Array) -> Info:
        """Raises on concrete test kernels that are not finite; on traced ones, `ok` says so."""
        ok = jnp.all(jnp.isfinite(self.y_train))
        for label, array in arrays.items():
            _require_finite(array, label)
            ok &= jnp.all(jnp.isfinite(array))
        return factor.info(ok, negative_variance)

    def _cross_kernel(self, kernel: Any, name: str, get: str, need_both: bool = False) -> Array:
        k_td = _real(_part(kernel, name, "k_test_train", get, need_both), "k_test_train")
        n = len(self.y_train)
        if k_td.ndim != 2 or k_td.shape[1] != n:
            raise InputError(
                f"k_test_train must have shape (m, n): one row for each of the m test points and one "
                f"column for each of the n = {n} training points; got {k_td.shape}."
            )
        return k_td


@functools.cache
def _named(names: tuple[str, ...]) -> Callable[..., Any]:
    """The namedtuple class of a `get`: one class each, so that results have equal tree structures."""
    return namedtuple("Gaussians", names)


@jax.jit
def _mean(factor: Factor, k_td: Array, y: Array) -> Array:
    """K_td K_dd⁻¹ y, in the dtype of the targets."""
    weights = factor.solve(y.astype(factor.dtype))
    return jnp.tensordot(k_td.astype(factor.dtype), weights, 1).astype(y.dtype)


@jax.jit
def _covariance(
    factor: Factor, k_td: Array, cross: Array, k_dd: Array | None, k_tt: Array
) -> tuple[Array | None, Array, Array]:
    """`(covariance, variance, most negative variance)`, the formulas at the top of this file.

    `k_td` and `factor` belong to the kernel that is inverted, `cross`, `k_dd` and `k_tt` to the one at
    initialisation; `k_dd=None` says they are the same. A diagonal `k_tt` gives a diagonal answer.
    """
    dtype, out = factor.dtype, k_tt.dtype
    k_td, cross, k_tt = (k.astype(dtype) for k in (k_td, cross, k_tt))
    a = factor.solve(k_td.T)  # Aᵀ, (n, m)

    def product(left: Array, right: Array) -> Array:
        """left @ right, or only its diagonal."""
        return left @ right if k_tt.ndim == 2 else jnp.sum(left.T * right, 0)

    covariance = k_tt - product(cross, a)
    if k_dd is not None:
        covariance += product(a.T, k_dd.astype(dtype) @ a) - product(cross, a)

    if k_tt.ndim == 1:
        return None, jnp.maximum(covariance, 0).astype(out), jnp.min(covariance, initial=0)
    covariance = (covariance + covariance.T) / 2
    raw = jnp.diagonal(covariance)
    variance = jnp.maximum(raw, 0)
    covariance = jnp.fill_diagonal(covariance, variance, inplace=False)
    return covariance.astype(out), variance.astype(out), jnp.min(raw, initial=0)


def gp_inference(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Predictor:
    """Prepares predictions of infinitely wide networks from their kernel on the training set.

    Every kernel contained in `k_train_train` is factored here, once; pass `k_train_train.nngp` alone if
    you do not want the NTK. Works under `jit`, `vmap` and `grad`.

    The matrix that is factored is `K + diag_reg * mean(diag(K)) * I`, or `K + diag_reg * I` with
    `diag_reg_absolute_scale`:

    >>> import jax.numpy as jnp
    >>> k = jnp.array([[2.0, 1.0], [1.0, 4.0]])
    >>> y = jnp.array([1.0, -1.0])
    >>> by_hand = k @ jnp.linalg.solve(k + 0.5 * jnp.mean(jnp.diagonal(k)) * jnp.eye(2), y)
    >>> predicted = gp_inference(k, y, diag_reg=0.5)("nngp", k_test_train=k).mean
    >>> bool(jnp.allclose(predicted, by_hand))
    True

    Args:
      k_train_train: (n, n) kernel of the training points: an array, or anything with attributes `.nngp`
        and `.ntk` (either may be None).
      y_train: (n, …) targets; trailing axes are independent outputs that share the kernel.
      diag_reg: strength of the regularisation, a non-negative scalar.
      diag_reg_absolute_scale: whether `diag_reg` is in the units of the kernel, or relative to the mean
        of its diagonal.
      trace_axes: axes of the outputs that the kernels lack. Kernels are (n, n) here: (-1,), or () for
        targets without trailing axes.

    Raises:
      InputError: a shape, a dtype or an option is wrong.
      NumericalError: (outside `jit`; under it, see `Info.ok`) a number is not finite, or the kernel
        could not be factored.
    """
    bare = _is_array(k_train_train)
    names = ("bare",) if bare else tuple(k for k in ("nngp", "ntk") if _has(k_train_train, k))
    if not names:
        raise InputError(
            "k_train_train must be an (n, n) array or contain one as attribute .nngp or .ntk; got "
            f"{type(k_train_train).__name__}."
        )
    label = {name: "k_train_train" if bare else f"k_train_train.{name}" for name in names}
    kernels = {name: _square(k_train_train if bare else getattr(k_train_train, name), label[name]) for name in names}
    dtype = jnp.result_type(*kernels.values())
    y = _targets(y_train, len(kernels[names[0]]), dtype, trace_axes)
    strength = _strength(diag_reg)
    factors = {}
    for name, kernel in kernels.items():
        factors[name] = _factorise(kernel, strength, bool(diag_reg_absolute_scale))
        _require_factored(factors[name], label[name])
    return Predictor(kernels, factors, y)


# Checks. Those that depend on data raise on concrete arrays and become `ok` on traced ones.


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, list))


def _has(kernel: Any, name: str) -> bool:
    return getattr(kernel, name, None) is not None


def _is_traced(*arrays: Array) -> bool:
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def _both_needed(get: str) -> str:
    return (
        f'the covariance of get="{get}" is that of an ensemble of trained networks and needs the NNGP '
        "as well as the NTK: k_train_train and k_test_train must have both .nngp and .ntk."
    )


def _lookup(table: dict[str, Any], name: str, get: str, need_both: bool = False) -> Any:
    """The training set's kernel or factor called `name`; a bare array stands for any, but for one."""
    if name in table:
        return table[name]
    if need_both:
        raise InputError(_both_needed(get))
    if "bare" in table:
        return table["bare"]
    raise InputError(f'get="{get}" needs the kernel .{name}, which k_train_train lacks.')


def _part(kernel: Any, name: str, label: str, get: str, need_both: bool = False) -> Any:
    """The array called `name` in a test kernel, or the kernel itself if it is an array."""
    if _is_array(kernel):
        if need_both:
            raise InputError(_both_needed(get))
        return kernel
    if not _has(kernel, name):
        raise InputError(f'get="{get}" needs the kernel .{name}, which {label} lacks.')
    return getattr(kernel, name)


def _real(x: Any, label: str) -> Array:
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{label} must be real; got dtype {array.dtype}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _require_finite(array: Array, label: str) -> None:
    if _is_traced(array):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = ", ".join(str(tuple(int(i) for i in index)) for index in bad[:3])
        raise NumericalError(
            f"{label} contains {len(bad)} number(s) that are not finite, the first at {where}. An "
            "input that is not finite, or that overflows in the network, makes its whole row and "
            "column of the kernel so."
        )


def _square(kernel: Any, label: str) -> Array:
    array = _real(kernel, label)
    if array.ndim > 2:
        raise InputError(
            f"{label} has shape {array.shape}: kernels with axes for positions or outputs are not "
            "supported here, only (n, n) matrices. Pool or flatten the positions in the model, or, if "
            "the outputs are to be predicted jointly, reshape kernels and targets to 2 axes and 1."
        )
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise InputError(
            f"{label} must be a square (n, n) matrix, one row and one column for each of n >= 1 "
            f"training points; got shape {array.shape}."
        )
    _require_finite(array, label)
    _require_symmetric(array, label)
    return array


def _require_symmetric(array: Array, label: str) -> None:
    if _is_traced(array):
        return
    asymmetry = jnp.abs(array - array.T)
    if asymmetry.max() > float(jnp.finfo(array.dtype).eps) ** 0.5 * jnp.abs(array).max():
        i, j = np.unravel_index(int(asymmetry.argmax()), array.shape)
        raise InputError(
            f"{label} must be symmetric, the kernel of the training points with themselves; its "
            f"entries ({i}, {j}) and ({j}, {i}) are {array[i, j]} and {array[j, i]}."
        )


def _targets(y: Any, n: int, dtype: Any, trace_axes: int | Sequence[int]) -> Array:
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
    if axes not in ((-1,), ()):
        raise InputError(f"trace_axes must be (-1,) or (); got {trace_axes!r}.")
    array = _real(y, "y_train")
    if array.ndim == 0 or len(array) != n:
        raise InputError(
            f"y_train must have shape (n, …) with n = {n}, the number of training points in "
            f"k_train_train; got {array.shape}."
        )
    if not axes and array.ndim > 1:
        raise InputError(
            "trace_axes=() says that the kernel has a pair of axes for every axis of the targets, but "
            f"it is ({n}, {n}) and y_train is {array.shape}: use trace_axes=(-1,)."
        )
    _require_finite(array, "y_train")
    return array.astype(dtype)


def _strength(diag_reg: Any) -> Array:
    strength = _real(diag_reg, "diag_reg")
    valid = _is_traced(strength) or (strength.ndim == 0 and 0 <= float(strength) < np.inf)
    if strength.ndim or not valid:
        raise InputError(f"diag_reg must be a finite, non-negative scalar; got {diag_reg!r}.")
    return strength


def _test_kernel(kernel: Any, name: str, get: str, m: int) -> Array:
    k_tt = _real(_part(kernel, name, "k_test_test", get), "k_test_test")
    if k_tt.shape not in ((m, m), (m,)):
        raise InputError(
            f"k_test_test must have shape (m, m), or (m,) for its diagonal, where m = {m} is the "
            f"number of rows of k_test_train; got {k_tt.shape}."
        )
    return k_tt


def _require_factored(factor: Factor, label: str) -> None:
    if _is_traced(factor.ok) or bool(factor.ok):
        return
    raise NumericalError(
        f"{label} is not positive definite: its Cholesky factorisation failed even with a jitter of "
        f"{float(factor.jitter):.3g} on its diagonal, 1% of its mean. A kernel cannot be that far off "
        "by rounding: check that it is the kernel of the training points with themselves and that no "
        "entry overflowed; otherwise compute it in float64, or raise diag_reg."
    )
