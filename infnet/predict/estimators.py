"""`fit` and `predict`, as scikit-learn has them, of a kernel function and arrays. Needs no scikit-learn.

With its mixins, these are estimators for cross-validation and grid search too:

    class Estimator(RegressorMixin, BaseEstimator, predict.Regressor): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from infnet.errors import InputError
from infnet.predict.checks import diagonals, require_gaussian
from infnet.predict.gp_inference import MODES, Predictor, gp_inference
from infnet.predict.laplace_classification import LaplacePredictor, laplace_classification
from infnet.predict.posterior import Gaussian


@dataclass
class _Estimator:
    """What both have in common.

    Attributes:
      kernel_fn: a `KernelFn`, or any function `k(x1, x2, get)`.
    """

    kernel_fn: Any

    def _fitted(self, name: str) -> Any:
        if not hasattr(self, name):
            raise InputError(f"this {type(self).__name__} has not been fitted: call fit(X, y) first.")
        return getattr(self, name)


@dataclass
class Regressor(_Estimator):
    """Exact inference with the kernels of a network: see `gp_inference`.

    Attributes:
      kernel_fn: a `KernelFn`, or any function `k(x1, x2, get)`.
      get: "nngp" (the Bayesian posterior), "ntk" (an ensemble of trained networks) or "ntkgp".
      noise: the variance of the noise of the targets: a scalar, or one for each training point.
      diag_reg: the regularisation, relative to the mean of the kernel's diagonal.
      trace_axes: axes of the targets that are independent and share the kernel; the kernel has all others twice.
      any_law: whether to accept networks whose output is not Gaussian.
    """

    get: str = "nngp"
    noise: Any = None
    diag_reg: Any = 0.0
    trace_axes: Any = (-1,)
    any_law: bool = False

    def fit(self, X: Any, y: Any) -> Self:
        """Factors the kernel of X, the n training inputs as `kernel_fn` takes them, with targets y, (n, …)."""
        if self.get not in MODES:
            raise InputError(f'get must be "nngp", "ntk" or "ntkgp"; got {self.get!r}.')
        if not self.any_law:
            require_gaussian(self.kernel_fn, "kernel_fn")
        kernel = self.kernel_fn(X, None, self._names)
        options = {"trace_axes": self.trace_axes, "noise": self.noise, "any_law": self.any_law}
        self.predictor_: Predictor = gp_inference(kernel, y, self.diag_reg, **options)
        self.X_train_ = X
        return self

    def posterior(self, X: Any, *, covariance: bool = True) -> Gaussian:
        """The predictive distribution at m test inputs; without `covariance`, only the variance of each."""
        predictor = self._fitted("predictor_")
        test = self.kernel_fn(X, None, self._names) if covariance else diagonals(self.kernel_fn, X, self._names)
        return predictor(self.get, self.kernel_fn(X, self.X_train_, self._names), test)

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The mean at m test inputs, (m, …); with the standard deviations, or the covariance, if asked for."""
        if return_std and return_cov:
            raise InputError("choose one of return_std and return_cov.")
        if return_cov:
            gaussian = self.posterior(X)
            return np.asarray(gaussian.mean), np.asarray(gaussian.covariance)
        if return_std:
            gaussian = self.posterior(X, covariance=False)
            return np.asarray(gaussian.mean), np.sqrt(np.asarray(gaussian.variance))
        predictor = self._fitted("predictor_")
        return np.asarray(predictor(self.get, self.kernel_fn(X, self.X_train_, self._names)).mean)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(MODES[self.get]))


@dataclass
class Classifier(_Estimator):
    """Laplace's approximation with a softmax likelihood: see `laplace_classification`.

    Attributes:
      kernel_fn: a `KernelFn`, or any function `k(x1, x2, get)`.
      get: which kernel, "nngp" or "ntk".
      any_law: whether to accept networks whose output is not Gaussian.
    """

    get: str = "nngp"
    any_law: bool = False

    def fit(self, X: Any, y: Any) -> Self:
        """Finds the mode of the posterior of X, the n training inputs, with labels y, (n,), of any kind."""
        if not self.any_law:
            require_gaussian(self.kernel_fn, "kernel_fn")
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y must hold two classes or more; got {self.classes_}.")
        kernel = self.kernel_fn(X, None, (self.get,))
        fitted = laplace_classification(kernel, labels, get=self.get, any_law=self.any_law)
        self.predictor_: LaplacePredictor = fitted
        self.X_train_ = X
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of `classes_` at m test inputs, (m, C)."""
        predictor = self._fitted("predictor_")
        kernel = self.kernel_fn(X, self.X_train_, (self.get,))
        latent = predictor(kernel, diagonals(self.kernel_fn, X, (self.get,)), get=self.get)
        return np.asarray(latent.probabilities())

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class at m test inputs, (m,)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]
