"""What a prediction of training starts from: the kernel of the training set, targets, outputs at initialisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.predict.axes import OutputAxes, Shape
from infnet.predict.checks import has, is_array, is_traced, real, require_finite, require_symmetric

Array = jax.Array


def ntk_of(kernel: Any, label: str) -> Array:
    """The kernel that gradient descent follows: an array, or the `.ntk` of anything else."""
    if is_array(kernel):
        return real(kernel, label)
    if not has(kernel, "ntk"):
        raise InputError(
            f"{label} must be an array or have the attribute .ntk, the kernel that training by gradient descent "
            f"follows; got {type(kernel).__name__} without it. Networks of which only the last layer is trained follow "
            f"their NNGP: pass that as an array."
        )
    law = getattr(kernel, "law", None)
    if law is not None and not law.gaussian:
        raise InputError(
            f"{label} is the kernel of an output that is not Gaussian, such as that of a network that ends in a "
            "nonlinearity: its tangent kernel is random and changes in training, which therefore does not follow it. "
            "Take the kernel of the model up to its last dense layer, and let the loss hold the rest; or pass the "
            "array .ntk, to follow it all the same."
        )
    return real(kernel.ntk, f"{label}.ntk")


def train_matrices(kernel: Array, axes: OutputAxes, n: int, label: str = "k_train_train") -> Array:
    """The train-train kernel as matrices (d, N, N), checked."""
    matrices = axes.matrix(kernel, label)
    if kernel.shape[:2] != (n, n):
        raise InputError(
            f"{label} has shape {kernel.shape}: its first two axes must be the n = {n} training points of y_train."
        )
    require_finite(kernel, label)
    require_symmetric(matrices, label)
    return matrices


def cross_matrices(kernel: Array, axes: OutputAxes, n: int, label: str = "k_test_train") -> Array:
    """The test-train kernel as matrices (d, M, N), checked."""
    matrices = axes.matrix(kernel, label)
    if kernel.shape[1] != n:
        raise InputError(
            f"{label} has shape {kernel.shape}: axis 0 counts test points, axis 1 must be the n = {n} training points."
        )
    require_finite(kernel, label)
    return matrices


def train_targets(y: Any, label: str = "y_train") -> Array:
    """The targets (n, ...), real and finite."""
    array = real(y, label)
    if array.ndim == 0 or not array.size:
        raise InputError(f"{label} must have shape (n, ...) with n >= 1 training points; got {array.shape}.")
    require_finite(array, label, of_kernel=False)
    return array


def initial(fx: Any, shape: Shape, label: str) -> Array:
    """Outputs before training, broadcast to a shape."""
    array = real(fx, label)
    if array.ndim > len(shape) or any(a not in (1, b) for a, b in zip(array.shape[::-1], shape[::-1], strict=False)):
        raise InputError(f"{label} must have the shape {shape} of the outputs, or broadcast to it; got {array.shape}.")
    require_finite(array, label, of_kernel=False)
    return jnp.broadcast_to(array, shape)


def require_asked(fx_train_0: Any, fx_test_0: Any, k_test_train: Any) -> None:
    """Raise unless the arguments of a prediction say what to predict."""
    if fx_train_0 is None and fx_test_0 is None:
        raise InputError("fx_train_0 and fx_test_0 are both None, so that nothing is predicted.")
    if fx_test_0 is not None and k_test_train is None:
        raise InputError("predictions of the test set, fx_test_0, need its kernel with the training set: k_test_train.")
    if fx_test_0 is None and k_test_train is not None:
        raise InputError(
            "k_test_train is given, but not fx_test_0, the outputs on the test set before training: pass fx_test_0=0. "
            "for the average over initialisations."
        )


def times(t: Any) -> Array:
    """Times since the beginning of training, of any shape; infinity is allowed."""
    array = real(t, "t")
    if not array.size or (not is_traced(array) and not bool(jnp.all(array >= 0))):
        raise InputError(f"t must be times of training, 0 or more; got {t!r}.")
    return array


def step_counts(steps: Any) -> Array | np.ndarray:
    """Numbers of steps of training, of any shape; what is not of JAX stays so, and known under `jit`."""
    array = steps if isinstance(steps, jax.Array) else np.asarray(steps)
    largest, integers = jnp.iinfo(jnp.result_type(int)).max, jnp.issubdtype(array.dtype, jnp.integer)
    if not integers or not array.size or (not is_traced(array) and bool(((array < 0) | (array > largest)).any())):
        raise InputError(f"steps must be numbers of steps, integers 0, 1, 2, ... {largest}; got {steps!r}.")
    return array


def learning_rate_of(value: Any) -> Array:
    """A positive scalar."""
    rate = real(value, "learning_rate")
    if rate.ndim or not (is_traced(rate) or 0 < float(rate) < np.inf):
        raise InputError(f"learning_rate must be a finite, positive scalar; got {value!r}.")
    return rate


def momentum_of(value: Any) -> Array | None:
    """A scalar in [0, 1), or None."""
    if value is None:
        return None
    momentum = real(value, "momentum")
    if momentum.ndim or not (is_traced(momentum) or 0 <= float(momentum) < 1):
        raise InputError(f"momentum must be a scalar in [0, 1) or None; got {value!r}.")
    return momentum
