"""Exact inference with a kernel that is given by features, without any matrix of n times n.

For the kernel K = Phi Phi^T of features Phi `(n, m)`, and noise of variance sigma^2, the posterior of Gaussian process
regression (Rasmussen & Williams 2006, eq. 2.11, in weight space) is

    mean = phi(x) A^-1 Phi^T y        cov = sigma^2 phi(x) A^-1 phi(x)^T        A = Phi^T Phi + sigma^2 I

which by Woodbury's identity is what `gp_inference` computes of K. With noise of variance sigma_i^2 of each point, every
row of Phi and y is multiplied by sigma / sigma_i, for any sigma. A, `(m, m)`, and Phi^T y are sums over the examples,
taken batch by batch in float64: n examples take O(n m^2) operations and O(m^2) memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from infnet.errors import InputError, NumericalError
from infnet.float64 import default_dtype, in_float64, kept, require_float64, split
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import is_traced, noise_variances, real, require_finite, require_gaussian, strength
from infnet.predict.cholesky import extreme_eigenvalues
from infnet.predict.posterior import Gaussian, Info, pytree
from infnet.predict.training_set import train_targets

Array = jax.Array
Parts = tuple[Array, ...]  # to be summed: see `float64.kept`


@pytree(meta=("features", "batch_size", "axes"))
@dataclass(frozen=True)
class FeaturePredictor:
    """The training set, digested: call it with test inputs."""

    features: Callable[[Any], Array]
    batch_size: int
    axes: OutputAxes
    lower: Parts
    """(m, m), the Cholesky factor of A."""
    weights: Parts
    """(m, t), A^-1 Phi^T y: the mean is linear in the features."""
    noise: Array
    """sigma^2."""
    info: Info

    def __call__(self, x_test: Any, covariance: bool = False) -> Gaussian:
        """The predictive distribution at k test inputs.

        Args:
          x_test: what the features take, each leaf (k, ...).
          covariance: whether the (k, k) covariance is wanted too, and not only the variances.
        """
        require_float64(self.lower)
        dtype = self.weights[0].dtype
        whole = self.batch_size if not covariance else _count(x_test, "x_test")
        found = [self._batch(phi, covariance) for phi, _ in _batches(self.features, x_test, whole, "x_test")]
        if not found:
            found = [self._batch(jnp.zeros((0, len(self.lower[0])), dtype), covariance)]
        columns, variance, full = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
        mean = self.axes.outputs(columns[None]).astype(dtype)
        return Gaussian(mean, full if covariance else None, variance, self.info, self.axes)

    def _batch(self, phi: Array, covariance: bool) -> tuple[Array, Array, Array]:
        require_finite(phi, "the features of x_test")
        predict = _predict_jointly if covariance else _predict
        return predict(phi, self.lower, self.weights, self.noise)


def feature_inference(
    features: Callable[[Any], Array],
    x_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    *,
    noise: Any = None,
    batch_size: int = 1024,
    any_law: bool = False,
) -> FeaturePredictor:
    """Prepares the predictions of a Gaussian process whose kernel is `features(x1) @ features(x2).T`.

    The same posterior as `gp_inference(phi @ phi.T, y_train, ...)("nngp", ...)`. With features of the NTK, that is the
    NTKGP of He et al. (arXiv:2007.05864), whose mean is that of fully trained networks.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, -1.0])
    >>> print(feature_inference(lambda x: x, x, y, noise=1.0)(x).mean)
    [ 0.5 -0.8]

    Args:
      features: a function of inputs whose values are (n, m), such as `infnet.random_features`.
      x_train: what it takes, each leaf (n, ...): arrays of NumPy stay on the host, and are read in batches.
      y_train: (n, ...) targets; outputs along all axes after the first are independent, and share the kernel.
      diag_reg: strength of the regularisation, as in `gp_inference`: a non-negative scalar.
      diag_reg_absolute_scale: whether `diag_reg` is in the units of the kernel, or relative to the mean of its
        diagonal.
      noise: variance of the noise of the targets, in their own units: a scalar, or one for each point, (n,).
      batch_size: how many examples have their features computed at once.
      any_law: whether to accept features of a network whose output is not a Gaussian process of mean zero.

    Raises:
      InputError: a shape or an option is wrong, or there is neither noise nor regularisation.
      NumericalError: (outside `jit`) a number is not finite, or the noise is below the rounding errors of the kernel.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size must be a positive integer, not {batch_size!r}")
    if not any_law:
        require_gaussian(features, "the kernel of the features")
    y = train_targets(y_train)
    n = _count(x_train, "x_train")
    if len(y) != n:
        raise InputError(f"y_train has {len(y)} rows, but x_train {n} examples")
    axes = OutputAxes.read(y.shape, range(1, y.ndim))
    regulariser, variances = strength(diag_reg), noise_variances(noise, axes, n)
    alike = noise is None or np.ndim(noise) == 0
    if not alike and not diag_reg_absolute_scale and (is_traced(regulariser) or float(regulariser)):
        raise InputError(
            "with noise of each point, diag_reg must be absolute (diag_reg_absolute_scale=True): the weights of the "
            "examples have to be known before the first is read"
        )
    own = jnp.zeros(n) if alike else variances + regulariser
    sigma2 = jnp.mean(own)
    weights = jnp.ones(n) if alike else sigma2 / own
    gram, moments, trace = _accumulated(features, x_train, axes.columns(y)[0], weights, int(batch_size))
    absolute = regulariser * (1.0 if diag_reg_absolute_scale else trace / n)
    sigma2 = variances[0] + absolute if alike else sigma2
    _require_noise(sigma2 if alike else own.min())
    lower, solved, rest = _factored(gram, moments, sigma2)
    if not is_traced(rest["ok"]) and not bool(rest["ok"]):
        raise NumericalError(
            f"the normal equations of {len(gram[0])} features could not be factored: the noise, {float(sigma2):.3g}, "
            "is below the rounding errors of their sum, or a feature is not finite; raise noise= or diag_reg="
        )
    zero = jnp.zeros_like(rest["eigenvalue_min"])
    info = Info(rest["ok"], absolute, zero, rest["eigenvalue_min"], rest["eigenvalue_max"], zero, "float64")
    return FeaturePredictor(features, int(batch_size), axes, kept(lower), kept(solved), sigma2, info)


def _require_noise(smallest: Array) -> None:
    if not is_traced(smallest) and not float(smallest) > 0:
        raise InputError(
            "inference with features needs noise= or diag_reg= above zero: the kernel of n > m examples is singular"
        )


def _count(x: Any, name: str) -> int:
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(counts) != 1 or () in counts:
        raise InputError(f"the leaves of {name} must have the same number of examples on axis 0")
    ((n,),) = counts
    return int(n)


def _batches(features: Callable[[Any], Array], x: Any, size: int, name: str) -> Any:
    """The features of one batch after another, and where it starts; all batches are computed with the same size."""
    n = _count(x, name)
    size = min(size, n)
    for start in range(0, n, size or 1):
        # The last example stands in for those that lack.
        whole = start + size <= n
        rows: Any = slice(start, start + size) if whole else np.minimum(np.arange(start, start + size), n - 1)
        phi = real(features(jax.tree.map(operator.itemgetter(rows), x)), "the features")
        if phi.ndim != 2 or len(phi) != size:
            raise InputError(f"features must return one row for each of {size} examples, not an array {phi.shape}")
        yield phi[: n - start], start


def _accumulated(
    features: Callable[[Any], Array], x: Any, y: Array, weights: Array, batch_size: int
) -> tuple[Parts, Parts, Array]:
    """Phi^T W Phi, Phi^T W y, and the sum of |phi|^2."""
    total: Any = None
    size = min(batch_size, len(y))
    for phi, start in _batches(features, x, batch_size, "x_train"):
        require_finite(phi, "the features of x_train")
        if total is None:
            m, dtype = phi.shape[1], default_dtype()
            total = [kept((jnp.zeros(shape, dtype),) * 2) for shape in ((m, m), (m, y.shape[1]), ())]
        missing = ((0, size - len(phi)), (0, 0))  # rows of zeros add nothing
        rows = slice(start, start + size)
        given = (jnp.pad(a, missing) for a in (phi, y[rows], weights[rows, None]))
        total = [kept(parts) for parts in _add(*total, *given)]
    gram, moments, trace = total
    return gram, moments, sum(trace)


@in_float64
def _add(gram: Parts, moments: Parts, trace: Parts, phi: Array, y: Array, weights: Array) -> Any:
    weighted = weights * phi
    more = (weighted.T @ phi, weighted.T @ y, jnp.sum(phi * phi))
    return [split(sum(before) + one) for before, one in zip((gram, moments, trace), more, strict=True)]


@in_float64
def _factored(gram: Parts, moments: Parts, noise: Array) -> Any:
    matrix = jnp.asarray(sum(gram))
    shift = noise * jnp.ones(len(matrix))
    lower = jnp.linalg.cholesky(matrix + jnp.diag(shift))
    solved = cho_solve((lower, True), sum(moments))
    smallest, largest = extreme_eigenvalues(matrix, shift, lower)
    rest = {"ok": jnp.all(jnp.isfinite(solved)), "eigenvalue_min": smallest, "eigenvalue_max": largest}
    return split(lower), split(solved), rest


@in_float64
def _predict(phi: Array, lower: Parts, weights: Parts, noise: Array) -> tuple[Array, Array, Array]:
    half = solve_triangular(sum(lower), phi.T, lower=True)
    return phi @ sum(weights), noise * jnp.sum(half * half, axis=0), jnp.zeros(0)


@in_float64
def _predict_jointly(phi: Array, lower: Parts, weights: Parts, noise: Array) -> tuple[Array, Array, Array]:
    half = solve_triangular(sum(lower), phi.T, lower=True)
    covariance = noise * half.T @ half
    return phi @ sum(weights), jnp.diagonal(covariance), covariance
