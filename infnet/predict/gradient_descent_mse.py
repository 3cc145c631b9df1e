"""Training on the mean squared error, in closed form: gradient flow, gradient descent, momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.float64 import default_dtype, in_float64, require_float64
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import strength
from infnet.predict.filters import Filter
from infnet.predict.posterior import Info, pytree
from infnet.predict.spectrum import Spectrum, decompose
from infnet.predict.training_set import (
    cross_matrices,
    initial,
    learning_rate_of,
    momentum_of,
    ntk_of,
    require_asked,
    step_counts,
    times,
    train_matrices,
    train_targets,
)

Array = jax.Array


@pytree(meta=("nesterov",))
@dataclass(frozen=True)
class Rule:
    """How the parameters move: learning rate, momentum (None is none), and whether it is Nesterov's."""

    learning_rate: Array
    momentum: Array | None
    nesterov: bool

    @classmethod
    def read(cls, learning_rate: Any, momentum: Any, nesterov: bool) -> Rule:
        """From what users pass."""
        if nesterov and momentum is None:
            raise InputError("nesterov=True needs a momentum, which is None.")
        return cls(learning_rate_of(learning_rate), momentum_of(momentum), bool(nesterov))

    def filter(self, spectrum: Spectrum, size: int, t: Any, steps: Any) -> Filter:
        """What it has done at times t, after steps, or forever, to as many targets as `size`."""
        require_float64(spectrum.values)
        if t is not None and steps is not None:
            raise InputError("give t, for gradient flow, or steps, for gradient descent, but not both.")
        if t is not None and self.momentum is not None:
            raise InputError(
                "gradient flow, at times t, has no momentum: ask for steps=, or leave momentum out. For the "
                "differential equation of momentum see infnet.predict.gradient_descent."
            )
        when = jnp.asarray(step_counts(steps)) if steps is not None else times(jnp.inf if t is None else t)
        of_kernel = {"cutoff": spectrum.cutoff, "horizon": spectrum.horizon}
        return Filter(when, self.learning_rate, self.momentum, size=size, nesterov=self.nesterov, **of_kernel)


@pytree(meta=("axes",))
@dataclass(frozen=True)
class MseTraining:
    """The training set, digested: call it with times or steps. A pytree, to be saved or passed to `jit`."""

    spectrum: Spectrum
    y_train: Array
    rule: Rule
    axes: OutputAxes

    def __call__(
        self,
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
        *,
        steps: Any = None,
    ) -> Any:
        """The outputs at times of training.

        Args:
            t: times, a scalar or an array of any shape: of gradient flow whose learning rate is that of the training,
                so that a time counts steps, in the limit of small ones. None, and infinity, are its limit.
            fx_train_0: outputs on the training set before training, `(n, o, ...)` or what broadcasts to it: 0 for the
                average over initialisations. None: the training set is not predicted (and starts from 0).
            fx_test_0: outputs on the test set before training, `(m, o, ...)`. None: it is not predicted.
            k_test_train: `(m, n, o, o', ...)`, the kernel between test and training set, if the former is predicted: an
                array, or anything with the attribute `.ntk`. It is not regularised.
            steps: in place of t: numbers of steps of `optax.sgd`, integers of any shape.

        Returns:
            `fx_train`, `(*times, n, o, ...)`; with `fx_test_0` the tuple of it and `fx_test`, `(*times, m, o, ...)`, or
            `fx_test` alone if `fx_train_0` is None. Too large a learning rate diverges, as it does in training.

        Raises:
            InputError: a shape, a dtype or a combination of arguments is wrong.
            NumericalError: (outside `jit`) a number is not finite.
        """
        require_asked(fx_train_0, fx_test_0, k_test_train)
        n, axes, dtype = len(self.y_train), self.axes, default_dtype()

        def columns(fx: Any, n: int, label: str) -> Array:
            return axes.columns(initial(0.0 if fx is None else fx, axes.shape(n), label).astype(dtype))

        start = columns(fx_train_0, n, "fx_train_0")
        errors = axes.columns(self.y_train.astype(dtype)) - start
        trained = (self.spectrum, self.rule.filter(self.spectrum, self.y_train.size, t, steps), errors)
        results = []
        if fx_train_0 is not None:
            results.append(_on_training_set(*trained, start))
        if fx_test_0 is not None:
            kernel = ntk_of(k_test_train, "k_test_train")
            k_td = cross_matrices(kernel, axes, n).astype(dtype)
            results.append(_on_test_set(*trained, columns(fx_test_0, len(kernel), "fx_test_0"), k_td))
        results = [axes.outputs(fx).astype(self.y_train.dtype) for fx in results]
        return results[0] if len(results) == 1 else tuple(results)

    @property
    def info(self) -> Info:
        """The report on the eigendecomposition: whether it is `ok`, extreme eigenvalues, condition number, dtype."""
        return self.spectrum.info(jnp.all(jnp.isfinite(self.y_train)))


def gradient_descent_mse(
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    diagonal_axes: int | Sequence[int] = (),
    momentum: Any = None,
    nesterov: bool = False,
) -> MseTraining:
    """Predicts training on the mean squared error, in closed form.

    The loss is `0.5 * mean((f(x_train) - y_train) ** 2)`, over examples and outputs. The kernel is decomposed here,
    once, in float64 whatever JAX's default is (see `MseTraining.info`); then outputs at any times cost matrix products.
    Works under `jit`, `vmap` and `grad`. (Second derivatives in the kernel are NaN where eigenvalues nearly coincide.)

    Time is that of gradient flow, df/dt = -learning_rate * Θ (f - y) / y.size, or counts the steps of
    `optax.sgd(learning_rate, momentum, nesterov)`, exactly (`infnet/predict/filters.py` has the formulas):

    >>> import jax.numpy as jnp
    >>> k, y = jnp.array([[2.0, 1.0], [1.0, 4.0]]), jnp.array([1.0, -1.0])
    >>> predict = gradient_descent_mse(k, y, learning_rate=0.1)
    >>> first = 0.1 * k @ y / y.size
    >>> second = first + 0.1 * k @ (y - first) / y.size
    >>> bool(jnp.allclose(predict(steps=jnp.array([1, 2])), jnp.stack([first, second])))
    True

    With `diag_reg` the kernel of the training set is `K + diag_reg * mean(diag(K)) * I` in all of this (or
    `K + diag_reg * I`, with `diag_reg_absolute_scale`), but that of the test set is as it is: to predict what a
    regularised fit says at the training points, pass them as a test set, too.

    >>> fitted = gradient_descent_mse(k, y, diag_reg=0.5)(None, None, 0.0, k)
    >>> bool(jnp.allclose(fitted, k @ jnp.linalg.solve(k + 0.5 * jnp.trace(k) / 2 * jnp.eye(2), y), atol=1e-6))
    True

    Where a kernel is singular (duplicated points; more points than features), the limit of gradient flow is the
    pseudo-inverse: directions of eigenvalue zero, up to rounding, stay where they start.

    Args:
        k_train_train: `(n, n, o, o', ...)` kernel of the training set: an array, or anything with the attribute `.ntk`
            (such as a `Kernel`), which is used.
        y_train: `(n, o, ...)` targets.
        learning_rate: a positive scalar.
        diag_reg: strength of the regularisation, a non-negative scalar.
        diag_reg_absolute_scale: whether `diag_reg` is in the units of the kernel, or relative to the mean of its
            diagonal.
        trace_axes: axes of the targets that kernels lack, as independent outputs that share the kernel. The kernels of
            infinitely wide networks lack the channel axis, (-1,); those of `empirical_ntk_fn` lack none by default, ().
        diagonal_axes: axes of the targets that kernels have once.
        momentum: of `optax.sgd`, in [0, 1), for predictions after steps.
        nesterov: whether momentum is Nesterov's.

    Returns:
        `predict(t=None, fx_train_0=0., fx_test_0=None, k_test_train=None, *, steps=None)`, see `MseTraining`.

    Raises:
        InputError: a shape, a dtype or an option is wrong.
        NumericalError: (outside `jit`) a number is not finite, or the kernel is not positive semidefinite.
    """
    kernel, y = ntk_of(k_train_train, "k_train_train"), train_targets(y_train)
    axes = OutputAxes.read(y.shape, trace_axes, diagonal_axes)
    matrices = train_matrices(kernel, axes, len(y))
    spectrum = decompose(matrices, strength(diag_reg), bool(diag_reg_absolute_scale), "k_train_train")
    return MseTraining(spectrum, y.astype(kernel.dtype), Rule.read(learning_rate, momentum, nesterov), axes)


def share(values: Array, s: Array) -> Array:
    """How much of an error in the training set is gone, λ s(λ)."""
    return values * s


@in_float64
def _on_training_set(spectrum: Spectrum, filter_: Filter, errors: Array, start: Array) -> Array:
    return start + spectrum.filtered(filter_, errors, share)


@in_float64
def _on_test_set(spectrum: Spectrum, filter_: Filter, errors: Array, start: Array, k_td: Array) -> Array:
    return start + k_td @ spectrum.filtered(filter_, errors)
