"""The largest learning rate at which gradient descent does not diverge."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.float64 import default_dtype, in_float64
from infnet.kernel import Kernel
from infnet.predict.axes import OutputAxes
from infnet.predict.training_set import momentum_of, ntk_of, train_matrices

Array = jax.Array


def max_learning_rate(
    ntk_train_train: Any,
    y_train_size: int | None = None,
    momentum: Any = 0.0,
    eps: float = 1e-12,
    nesterov: bool = False,
) -> Array:
    """The learning rate from which on gradient descent on the mean squared error diverges.

    The loss is `0.5 * mean((f(x_train) - y_train) ** 2)`, as everywhere in `infnet.predict`; for a mean without the 0.5
    it is half as large. With λ the largest eigenvalue and size that of the targets, it is

        size / λ * 2                              optax.sgd(learning_rate)
        size / λ * 2 (1 + μ)                      optax.sgd(learning_rate, momentum=μ)
        size / λ * 2 (1 + μ) / (1 + 2 μ)          optax.sgd(learning_rate, momentum=μ, nesterov=True)

    the first two being Neural Tangents' (Goh 2017, "Why momentum really works", distill.pub). All follow from the
    recursion of `infnet/predict/filters.py`, whose roots are within the unit circle if |D| < 1, a > 0 and
    1 + T + D > 0: the last is 2 + 2 D - a > 0, with D = μ, or D = μ (1 - a) after Nesterov.

    >>> import jax.numpy as jnp
    >>> float(max_learning_rate(jnp.array([[1.0, 0.0], [0.0, 4.0]])))
    1.0

    Args:
        ntk_train_train: `(n, n, o, o', ...)` kernel of the training set: an array, or what has the attribute `.ntk`.
        y_train_size: the number of targets, `y_train.size`. None: as many as the kernel has rows, which is right if it
            has every axis of the targets twice (`trace_axes=()`); of a `Kernel`, times the number of its channels.
        momentum: in [0, 1).
        eps: is added to the largest eigenvalue.
        nesterov: whether momentum is Nesterov's.

    Returns:
        A scalar, of the dtype of the kernel; its eigenvalues are computed in float64.

    Raises:
        InputError: a shape, a dtype or an option is wrong.
        NumericalError: (outside `jit`) a number is not finite.
    """
    kernel = ntk_of(ntk_train_train, "ntk_train_train")
    sizes, repeated = kernel.shape[2::2], kernel.shape[3::2]
    if kernel.ndim < 2 or not kernel.size or sizes != repeated:
        raise InputError(
            f"ntk_train_train must have shape (n, n, o, o, ...), every axis of the outputs twice; got {kernel.shape}."
        )
    matrices = train_matrices(kernel, OutputAxes(sizes, (), ()), len(kernel), "ntk_train_train")
    if y_train_size is None:
        channels = ntk_train_train.width if isinstance(ntk_train_train, Kernel) else 1
        y_train_size = len(kernel) * math.prod(sizes) * channels
    if isinstance(y_train_size, bool) or not isinstance(y_train_size, int) or y_train_size < matrices.shape[-1]:
        raise InputError(
            f"y_train_size must be the number of all targets, an integer of at least {matrices.shape[-1]}, the rows of "
            f"the kernel; got {y_train_size!r}."
        )
    mu = momentum_of(momentum)
    factor = 2.0 if mu is None else 2 * (1 + mu) / (1 + 2 * mu if nesterov else 1)
    return (factor * y_train_size / (_largest_eigenvalue(matrices.astype(default_dtype())) + eps)).astype(kernel.dtype)


@in_float64
def _largest_eigenvalue(matrices: Array) -> Array:
    return jnp.max(jnp.linalg.eigvalsh(matrices))
