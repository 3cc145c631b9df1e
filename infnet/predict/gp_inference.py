"""Exact inference: the Bayesian posterior (NNGP) and the fully trained ensemble (NTK).

With K the NNGP, Θ the NTK, d the training and t the test set, Lee et al. (arXiv:1902.06720) have

    NNGP (eq. 12 and 13)   mean = K_td K_dd⁻¹ y     cov = K_tt − K_td K_dd⁻¹ K_dt
    NTK  (eq. 15 and 16,   mean = Θ_td Θ_dd⁻¹ y     cov = K_tt + A K_dd Aᵀ − (A K_dt + K_td Aᵀ),
          time → ∞)                                       where A = Θ_td Θ_dd⁻¹

and He et al. (arXiv:2007.05864) the NTKGP, the NNGP's formulas with Θ in place of K. The matrix that is
inverted is regularised: `+ diag_reg * trace / n * I`, or `+ diag_reg * I`, and `+ diag(noise)`.

A kernel matrix is positive semidefinite but, in floating point, often not quite: near-duplicate inputs or
smooth kernels make its smallest eigenvalue a rounding error of either sign. It is factored as it is if
possible, otherwise with the smallest jitter of a ladder that works. `Info` reports which.

The linear algebra is done in float64, also where x64 is off and under `jit`.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.float64 import in_float64, require_float64
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import (
    has,
    is_array,
    is_store,
    lookup,
    noise_variances,
    part,
    real,
    require_finite,
    require_gaussian,
    require_symmetric,
    square,
    strength,
    targets,
    test_kernel,
)
from infnet.predict.cholesky import Factor, factorise, require_factored, solve
from infnet.predict.covariance import Covariance, covariance_after
from infnet.predict.posterior import Gaussian, Info, pytree
from infnet.predict.systems import System, as_operator, system

Array = jax.Array
Get = str | Sequence[str] | None

# `get` -> (the kernel that is inverted, the kernel of the networks at initialisation)
MODES = {"nngp": ("nngp", "nngp"), "ntk": ("ntk", "nngp"), "ntkgp": ("ntk", "ntk")}


@pytree(meta=("axes",))
@dataclass(frozen=True)
class Predictor:
    """The training set, digested: call it with test kernels. A pytree, to be saved or passed to `jit`.

    `jax.eval_shape` of what made it, which computes nothing, gives the structure that a file is read into:

    >>> import io
    >>> import numpy as np
    >>> kernel, y = 2 * np.eye(3), np.arange(3.0)
    >>> file = io.BytesIO()
    >>> np.savez(file, *jax.tree.leaves(gp_inference(kernel, y)))
    >>> _ = file.seek(0)
    >>> structure = jax.tree.structure(jax.eval_shape(gp_inference, kernel, y))
    >>> restored = jax.tree.unflatten(structure, np.load(file).values())
    >>> print(restored("nngp", k_test_train=kernel).mean)
    [0. 1. 2.]
    """

    factors: dict[str, Factor | System]
    y_train: Array
    axes: OutputAxes

    def __call__(self, get: Get = None, k_test_train: Any = None, k_test_test: Any = None) -> Any:
        """The predictive distribution of the test set.

        Args:
          get: "nngp", "ntk" or "ntkgp" gives a `Gaussian`; a tuple of them gives a namedtuple of
            Gaussians in that order; None stands for all of "nngp" and "ntk" that the training kernel
            contains (for a bare array: one Gaussian).
          k_test_train: (m, n, …) kernel between test and training points: an array, or anything with
            attributes `.nngp` and `.ntk`. None predicts the training set without regularisation,
            which is N(y_train, 0); for smoothed predictions on it pass `k_train_train`.
          k_test_test: the test points' own kernel, for the covariance: (m, m, …), or only the kernel of
            each with itself, (m, …), for the variance without m² memory. For "ntk", which needs the NNGP at
            initialisation, this is `.nngp` (a bare array is taken for it), and both other kernels
            must contain both. With `k_test_train=None` any value but None asks for the (zero)
            covariance.
        """
        if get is None and "bare" in self.factors:
            return self._gaussian("nngp", k_test_train, k_test_test)
        if isinstance(get, str):
            return self._gaussian(get, k_test_train, k_test_test)
        names = tuple(self.factors if get is None else get)
        gaussians = [self._gaussian(name, k_test_train, k_test_test) for name in names]
        return named_gaussians(names)(*gaussians)

    def _gaussian(self, get: str, k_test_train: Any, k_test_test: Any) -> Gaussian:
        if get not in MODES:
            raise InputError(f'get must be "nngp", "ntk", "ntkgp" or a tuple of these; got {get!r}.')
        solved, initial = MODES[get]
        factor = lookup(self.factors, solved, get)
        if isinstance(factor, Factor):
            require_float64(factor.lower)
        if k_test_train is None:
            return self._on_training_set(factor, k_test_test is not None)
        k_td = self._cross_kernel(k_test_train, solved, get)
        if isinstance(factor, System):
            columns = jnp.asarray(factor.mean(k_td))
        else:
            columns = _mean(factor, k_td, self.axes.columns(self.y_train)[0])
        mean = self.axes.outputs(columns[None]).astype(self.y_train.dtype)
        if k_test_test is None:
            info = self._info(factor, jnp.zeros_like(factor.jitter), k_test_train=k_td)
            return Gaussian(mean, None, None, info, self.axes)
        cross, k_dd = k_td, None
        if initial != solved:
            cross = self._cross_kernel(k_test_train, initial, get, need_both=True)
            k_dd = lookup(self.factors, initial, get, need_both=True).kernel
        (k_tt,) = test_kernel(k_test_test, initial, get, self.axes, len(mean))
        covariance_of = factor.covariance if isinstance(factor, System) else functools.partial(_covariance, factor)
        covariance, variance, negative = covariance_of(k_td, cross, k_dd, k_tt)
        variance = self.axes.variances(variance[None]).astype(k_tt.dtype)
        tested = {"k_test_train": k_td, "k_test_train (at initialisation)": cross}
        info = self._info(factor, negative, **tested, k_test_test=k_tt)
        if covariance is not None:
            covariance = self.axes.kernel(covariance[None]).astype(k_tt.dtype)
        return Gaussian(mean, covariance, variance, info, self.axes)

    def _on_training_set(self, factor: Factor | System, with_covariance: bool) -> Gaussian:
        n, dtype = len(self.y_train), self.y_train.dtype
        covariance = jnp.zeros(self.axes.kernel_shape(n, n), dtype) if with_covariance else None
        variance = jnp.zeros(self.axes.of_variances.shape(n), dtype) if with_covariance else None
        info = self._info(factor, jnp.zeros_like(factor.jitter))
        return Gaussian(self.y_train, covariance, variance, info, self.axes)

    def _info(self, factor: Factor | System, negative_variance: Array, **arrays: Array) -> Info:
        """Raises on concrete test kernels that are not finite; on traced ones, `ok` says so."""
        ok = jnp.all(jnp.isfinite(self.y_train))
        for label, array in arrays.items():
            require_finite(array, label)
            ok &= jnp.all(jnp.isfinite(array))
        return factor.info(ok, negative_variance)

    def _cross_kernel(self, kernel: Any, name: str, get: str, need_both: bool = False) -> Array:
        k_td = real(part(kernel, name, "k_test_train", get, need_both), "k_test_train")
        n = len(self.y_train)
        if k_td.ndim < 2 or k_td.shape[1] != n:
            raise InputError(
                f"k_test_train must have shape (m, n, …): one row for each of the m test points and one "
                f"column for each of the n = {n} training points; got {k_td.shape}."
            )
        return self.axes.matrix(k_td, "k_test_train")[0]


@functools.cache
def named_gaussians(names: tuple[str, ...]) -> Callable[..., Any]:
    """The namedtuple class of a `get`: one class each, so that results have equal tree structures."""
    return namedtuple("Gaussians", names)


@in_float64
def _mean(factor: Factor, k_td: Array, y: Array) -> Array:
    """K_td K_dd⁻¹ y."""
    return jnp.tensordot(k_td, solve(factor, y), 1)


@in_float64
def _covariance(factor: Factor, k_td: Array, cross: Array, k_dd: Array | None, k_tt: Array) -> Covariance:
    """`factor` and `k_td` belong to the kernel that is inverted, the rest to that at initialisation."""
    return covariance_after(solve(factor, k_td.T), cross, k_dd, k_tt)


def gp_inference(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    noise: Any = None,
    any_law: bool = False,
    solver: Any = "cholesky",
) -> Predictor:
    """Prepares predictions of infinitely wide networks from their kernel on the training set.

    Every kernel contained in `k_train_train` is factored here, once; pass `k_train_train.nngp` alone if
    you do not want the NTK. Works under `jit`, `vmap` and `grad`, unless it is solved on the host (see `solver`).

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
      k_train_train: (n, n, …) kernel of the training points: an array, or anything with attributes `.nngp`
        and `.ntk` (either may be None). It has every axis of the targets that is not in `trace_axes` twice,
        in natural order: (n, n, o, o', p, p', …). Or a matrix (n, n) that is read by parts, an array of
        TensorStore, Zarr or HDF5, or an operator of `infnet.solvers`.
      y_train: (n, …) targets.
      diag_reg: strength of the regularisation, a non-negative scalar.
      diag_reg_absolute_scale: whether `diag_reg` is in the units of the kernel, or relative to the mean
        of its diagonal.
      trace_axes: axes of the targets that the kernels lack: outputs along them are independent, and share
        the kernel. The posterior is that of all others jointly.
      noise: variance of the noise of the targets, in their own units: a scalar, (n,), or one for each row of
        the kernel, of the shape of the targets without `trace_axes`. It is added to the diagonal as it is.
      any_law: whether to accept a `Kernel` which says that its output is not a Gaussian process of mean
        zero, such as that of a network that ends in a nonlinearity.
      solver: how linear systems are solved: "cholesky", in memory for several matrices, or, on the host,
        `infnet.solvers.Cholesky(...)`, in memory for one in the precision of the kernel, or
        `infnet.solvers.ConjugateGradients(...)`, which reads the kernel by parts. What is read by parts is
        solved by the second of these unless the third is given.

    Raises:
      InputError: a shape, a dtype or an option is wrong, or the output is not Gaussian.
      NumericalError: (outside `jit`; under it, see `Info.ok`) a number is not finite, or the kernel
        could not be factored.
    """
    bare = is_array(k_train_train) or is_store(k_train_train)
    names = ("bare",) if bare else tuple(k for k in ("nngp", "ntk") if has(k_train_train, k))
    if not names:
        raise InputError(
            "k_train_train must be an (n, n) array or contain one as attribute .nngp or .ntk; got "
            f"{type(k_train_train).__name__}" + (", whose `.mean` is one." if has(k_train_train, "mean") else ".")
        )
    label = {name: "k_train_train" if bare else f"k_train_train.{name}" for name in names}
    kernels = {name: k_train_train if bare else getattr(k_train_train, name) for name in names}
    on_host = solver != "cholesky" or any(map(is_store, kernels.values()))
    checked = as_operator if on_host else square
    kernels = {name: checked(kernel, label[name]) for name, kernel in kernels.items()}
    if not any_law:
        require_gaussian(k_train_train, "k_train_train")
    dtype = jnp.result_type(*(kernel.dtype for kernel in kernels.values()))
    y = targets(y_train, kernels[names[0]].shape[0], dtype)
    axes = OutputAxes.read(y.shape, trace_axes)
    added = strength(diag_reg), bool(diag_reg_absolute_scale), noise_variances(noise, axes, len(y))
    factors: dict[str, Factor | System] = {}
    for name, kernel in kernels.items():
        if on_host:
            factors[name] = system(kernel, y, axes, solver, *added)
        else:
            factors[name] = _factored(kernel, axes, *added, label[name])
    return Predictor(factors, y, axes)


def _factored(kernel: Array, axes: OutputAxes, diag_reg: Array, absolute: bool, noise: Array, label: str) -> Factor:
    (matrix,) = axes.matrix(kernel, label)
    require_symmetric(matrix, label)
    factor = factorise(matrix, diag_reg, absolute, noise)
    require_factored(factor, label)
    return factor
