"""Classification: Laplace's approximation of the posterior under a softmax likelihood.

Williams & Barber (1998); Rasmussen & Williams (2006), section 3.5, algorithms 3.3 and 3.4. Every class c has a latent
function f_c, independent a priori, each a Gaussian process of the network's kernel K, and p(y = c | f) = softmax(f)_c.
The posterior of f at the training points is replaced by the Gaussian at its mode, of the curvature there. The mode is
found by Newton's method, whose steps are halved where they overshoot: the log posterior is concave, so this converges.

With π the probabilities at the mode, D_c = diag(π_c), B_c = I + √D_c K √D_c and E_c = √D_c B_c⁻¹ √D_c,

    ½ log |I + K W| = Σ_c ½ log |B_c| + ½ log |Σ_c E_c|,      W = diag(π) − ΠΠᵀ,

by the determinant lemma, since Σ_c D_c = I. (Algorithm 3.3 as printed lacks the second term.) No kernel matrix is
inverted: singular kernels need no jitter. As everywhere in `infnet.predict`, this is done in float64.

Where the latent functions may be large a priori (standard deviations beyond about 5), the posterior is skewed, its mode
nearer to zero than its mean, and the probabilities of this approximation are too cautious (Nickisch & Rasmussen 2008).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp, ndtri
from scipy.stats import qmc

from infnet.errors import InputError, NumericalError
from infnet.float64 import in_float64, kept, require_float64, split
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import (
    is_traced,
    part,
    real,
    require_finite,
    require_gaussian,
    require_symmetric,
    square,
    test_kernel,
)
from infnet.predict.posterior import pytree

Array = jax.Array

# Newton steps are tried at 1, 1/2, 1/4, ... of their length.
STEPS = 0.5 ** np.arange(12)
NO_AXES = OutputAxes((), (), ())


@pytree()
@dataclass(frozen=True)
class Classification:
    """The latent functions at m test points, one for each of C classes."""

    mean: Array
    """(m, C)."""
    covariance: Array
    """(m, C, C), between the classes at each test point."""

    def probabilities(self, n_points: int = 2048) -> Array:
        """The probability of every class, (m, C): the mean of the softmax over the latent Gaussian.

        Taken over the first `n_points` (a power of 2) of the Sobol sequence, mapped to the Gaussian: no key, the
        same at every call. With 10 classes the error is about 1e-3 at 2048 points.
        """
        if n_points < 2 or n_points & (n_points - 1):
            raise InputError(f"n_points must be a power of 2, from 2; got {n_points!r}.")
        points = ndtri(jnp.asarray(_sobol(self.mean.shape[-1], n_points), self.mean.dtype))
        eigenvalues, vectors = jnp.linalg.eigh(self.covariance)
        roots = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None, :]

        def of_one(moments: tuple[Array, Array]) -> Array:
            mean, root = moments
            return jnp.mean(jax.nn.softmax(mean + points @ root.T), 0)

        return lax.map(of_one, (self.mean, roots), batch_size=64)


@functools.cache
def _sobol(dimension: int, n_points: int) -> np.ndarray:
    """Points in the open unit cube."""
    sequence = qmc.Sobol(dimension, scramble=False).random_base2(n_points.bit_length() - 1)
    return np.asarray(sequence + 0.5 / n_points)


@pytree()
@dataclass(frozen=True)
class LaplacePredictor:
    """The training set, digested: call it with test kernels. A pytree, to be saved or passed to `jit`."""

    log_marginal_likelihood: Array
    """Laplace's approximation of log p(labels | x), the total in nats (eq. 3.44). Differentiable in the kernel."""
    weights: Array
    """(n, C): labels, one-hot, minus their probabilities at the mode; the mode is the kernel times these."""
    iterations: Array
    """Newton's."""
    gradient: Array
    """The largest entry of the gradient of the log posterior at the end, a difference of probabilities."""
    ok: Array
    """Whether Newton's method converged, from a finite kernel. Outside `jit`, False is an error."""
    whitened: tuple[Array, ...]
    """(C, n, n), to be summed: E_c."""
    lower: tuple[Array, ...]
    """(n, n), to be summed: the Cholesky factor of Σ_c E_c."""

    def __call__(self, k_test_train: Any, k_test_test: Any, get: str = "nngp") -> Classification:
        """The latent functions at the test points, from which `probabilities()` follow.

        Args:
          k_test_train: (m, n) kernel between test and training points: an array, or anything with attributes
            `.nngp` and `.ntk`.
          k_test_test: the test points' own kernel, (m, m) or its diagonal (m,).
          get: which kernel of these to take.

        Raises:
          InputError: a shape or a dtype is wrong.
          NumericalError: (outside `jit`; under it the results are NaN) a number is not finite.
        """
        require_float64(self.lower)
        k_td, n = real(part(k_test_train, get, "k_test_train", get), "k_test_train"), len(self.weights)
        if k_td.ndim != 2 or k_td.shape[1] != n:
            raise InputError(
                f"k_test_train must have shape (m, n), with n = {n}, the number of training points; got {k_td.shape}."
            )
        (k_tt,) = test_kernel(k_test_test, get, get, NO_AXES, len(k_td))
        require_finite(k_td, "k_test_train")
        require_finite(k_tt, "k_test_test")
        own = jnp.diagonal(k_tt) if k_tt.ndim == 2 else k_tt
        moments = _latent(self.weights, self.whitened, self.lower, k_td, own)
        return Classification(*(x.astype(self.weights.dtype) for x in moments))


def laplace_classification(
    k_train_train: Any,
    labels: Any,
    n_classes: int | None = None,
    *,
    get: str = "nngp",
    tol: float = 1e-8,
    max_iterations: int = 100,
    any_law: bool = False,
) -> LaplacePredictor:
    """Prepares predictions of classes, with probabilities, from the kernel of the training set.

    Every class has a latent function of its own, a Gaussian process with this kernel, and their softmax is the
    probability: with two classes, the log odds have twice the kernel. Works under `jit`, `vmap` and `grad`. Takes
    C n³ operations a Newton step and C n² memory, for C classes.

    >>> kernel = jnp.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    >>> predictor = laplace_classification(kernel, jnp.array([0, 1, 2]))
    >>> print(predictor(kernel, kernel).probabilities().argmax(1))
    [0 1 2]

    Args:
      k_train_train: (n, n) kernel of the training points: an array, or anything with attributes `.nngp` and `.ntk`.
      labels: (n,) integers from 0.
      n_classes: their number; None for the largest label and one more.
      get: which kernel to take, "nngp" or "ntk".
      tol: the gradient of the log posterior, a difference of probabilities, at which Newton's method stops.
      max_iterations: after which it gives up.
      any_law: whether to accept a `Kernel` which says that its output is not a Gaussian process of mean zero.

    Raises:
      InputError: a shape, a dtype or an option is wrong, or the output is not Gaussian.
      NumericalError: (outside `jit`; under it, see `ok`) a number is not finite, or Newton's method failed.
    """
    if get not in ("nngp", "ntk"):
        raise InputError(f'get must be "nngp" or "ntk"; got {get!r}.')
    if not any_law:
        require_gaussian(k_train_train, "k_train_train")
    kernel = square(part(k_train_train, get, "k_train_train", get), "k_train_train")
    (kernel,) = NO_AXES.matrix(kernel, "k_train_train")
    require_symmetric(kernel, "k_train_train")
    targets = _one_hot(labels, len(kernel), n_classes)
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    options = (jnp.asarray(x, dtype) for x in (tol, max_iterations))
    whitened, lower, rest = _fit(kernel.astype(dtype), targets.astype(dtype), *options)
    predictor = LaplacePredictor(whitened=kept(whitened), lower=kept(lower), **rest)
    if not is_traced(predictor.ok) and not predictor.ok:
        raise NumericalError(
            f"Newton's method did not find the mode of the posterior: after {int(predictor.iterations)} iterations the "
            f"gradient is {float(predictor.gradient):.2g}, above tol={tol:g}. The cause may be a kernel with large "
            "negative eigenvalues, or of very large scale (then divide it); otherwise raise max_iterations or tol."
        )
    return predictor


def _one_hot(labels: Any, n: int, n_classes: int | None) -> Array:
    """The labels, checked, as (n, C)."""
    array: Any = labels if is_traced(labels) else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.shape != (n,):
        raise InputError(
            f"labels must be integers from 0, of shape ({n},), one for each training point in k_train_train; got dtype "
            f"{array.dtype} and shape {array.shape}. Of one-hot labels take argmax(-1)."
        )
    if n_classes is None:
        if is_traced(array):
            raise InputError("under jit and vmap the number of classes cannot be read off the labels: give n_classes=.")
        n_classes = max(2, int(array.max()) + 1)
    if not is_traced(array) and not (int(array.min()) >= 0 and int(array.max()) < n_classes):
        raise InputError(f"labels must be from 0 to {n_classes - 1}; they are from {array.min()} to {array.max()}.")
    return jax.nn.one_hot(array, n_classes)


@in_float64
def _fit(kernel: Array, y: Array, tol: Array, max_iterations: Array) -> tuple[Any, Any, dict[str, Array]]:
    """`(split(E), split(Cholesky of Σ_c E_c), all else)` at the mode."""
    fixed = lax.stop_gradient(kernel)

    def gradient(a: Array) -> Array:
        return jnp.max(jnp.abs(a - y + jax.nn.softmax(fixed @ a)))

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, _, count = state
        towards = _newton(fixed, y, fixed @ a)
        tried = a + STEPS[:, None, None] * (towards - a)
        best = tried[jnp.nanargmax(jax.vmap(functools.partial(_log_posterior, fixed, y))(tried))]
        return best, gradient(best), count + 1

    start = jnp.zeros_like(y)
    _, slope, iterations = state = lax.while_loop(
        lambda state: (state[1] > tol) & (state[2] < max_iterations),
        improve,
        (start, gradient(start), jnp.zeros_like(tol)),
    )
    # Newton's map does not depend on where it starts from, to first order at the mode: one more step, differentiated,
    # has the derivatives of the mode itself.
    a = _newton(kernel, y, fixed @ lax.stop_gradient(state[0]))
    _, lower, whitened, outer = _curvature(kernel, kernel @ a)
    half_determinants = jnp.sum(jnp.log(_diagonals(lower))) + jnp.sum(jnp.log(_diagonals(outer)))
    evidence = _log_posterior(kernel, y, a) - half_determinants
    ok = (slope <= tol) & jnp.isfinite(evidence)
    rest = {"log_marginal_likelihood": evidence, "weights": a, "iterations": iterations, "gradient": slope, "ok": ok}
    return split(whitened), split(outer), rest


def _log_posterior(kernel: Array, y: Array, a: Array) -> Array:
    """log p(y | f) − ½ fᵀ K⁻¹ f at f = K a, whose maximum over a is the mode."""
    f = kernel @ a
    return jnp.sum(y * f) - jnp.sum(logsumexp(f, axis=1)) - 0.5 * jnp.sum(a * f)


def _curvature(kernel: Array, f: Array) -> tuple[Array, Array, Array, Array]:
    """`(π (n, C), Cholesky factors of B_c (C, n, n), E_c (C, n, n), Cholesky factor of Σ_c E_c (n, n))`."""
    probabilities = jax.nn.softmax(f)
    roots, identity = jnp.sqrt(probabilities).T, jnp.eye(len(kernel))
    lower = jnp.linalg.cholesky(identity + roots[:, :, None] * kernel * roots[:, None, :])
    half = jax.vmap(lambda b, root: solve_triangular(b, jnp.diag(root), lower=True))(lower, roots)
    whitened = half.mT @ half
    return probabilities, lower, whitened, jnp.linalg.cholesky(jnp.sum(whitened, 0))


def _newton(kernel: Array, y: Array, f: Array) -> Array:
    """Algorithm 3.3, lines 4 to 11: the weights a of the next f = K a."""
    p, _, whitened, outer = _curvature(kernel, f)
    b = p * f - p * jnp.sum(p * f, 1, keepdims=True) + y - p
    c = jnp.einsum("cij,jc->ic", whitened, kernel @ b)
    return b - c + jnp.einsum("cij,j->ic", whitened, cho_solve((outer, True), jnp.sum(c, 1)))


def _diagonals(matrices: Array) -> Array:
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


@in_float64
def _latent(weights: Array, whitened: Any, lower: Any, k_td: Array, k_tt: Array) -> tuple[Array, Array]:
    """Algorithm 3.4: means (m, C) and covariances (m, C, C)."""
    through = jnp.einsum("cij,mj->cim", sum(whitened), k_td)
    own = k_tt - jnp.einsum("mi,cim->cm", k_td, through)
    between = jax.vmap(lambda v: solve_triangular(sum(lower), v, lower=True))(through)
    covariance = jnp.einsum("cim,dim->mcd", between, between) + jax.vmap(jnp.diag, 1)(own)
    return k_td @ weights, covariance
