"""The log marginal likelihood of targets under the Gaussian process of a network at infinite width.

With K the kernel of the n training points plus the noise, Rasmussen & Williams (2006, eq. 2.30; one column of targets)

    log p(y | x) = −½ yᵀ K⁻¹ y − ½ log det K − n/2 log 2π

is the total over all targets, in nats, not a mean per datum; columns of independent outputs add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.float64 import in_float64
from infnet.predict.checks import is_store, part, require_gaussian
from infnet.predict.cholesky import Factor, log_determinant, solve
from infnet.predict.gp_inference import gp_inference

Array = jax.Array


def log_marginal_likelihood(
    kernel_fn: Any,
    x_train: Any,
    y_train: Any,
    noise: Any = None,
    *,
    get: str = "nngp",
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    any_law: bool = False,
) -> Array:
    """log p(y_train | x_train), the total over all targets, in nats.

    Differentiable, also in the hyperparameters of the kernel function and in the noise:

    >>> def objective(stds, log_noise):
    ...     k = kernel_fn.with_hyperparameters(stds)
    ...     return log_marginal_likelihood(k, x, y, jnp.exp(log_noise))

    The formula, with independent columns of targets:

    >>> import numpy as np
    >>> k, y, noise = np.array([[2.0, 1.0], [1.0, 4.0]]), np.array([[1.0, 0.5], [-1.0, 3.0]]), 0.5
    >>> total = k + noise * np.eye(2)
    >>> by_hand = sum(
    ...     -(c @ np.linalg.solve(total, c) + np.linalg.slogdet(total)[1] + 2 * np.log(2 * np.pi)) / 2 for c in y.T
    ... )
    >>> bool(jnp.allclose(log_marginal_likelihood(k, None, y, noise), by_hand))
    True

    Args:
      kernel_fn: a `KernelFn`, or any function `k(x1, x2, get)`; or, with `x_train=None`, the kernel itself:
        an array (n, n, …), or anything with an attribute of the name `get`.
      x_train: what `kernel_fn` takes, n examples.
      y_train: (n, …) targets.
      noise: the variance of their noise: a scalar, or (n,), or one for each row of the kernel.
      get: "nngp", or "ntk" for the Gaussian process whose covariance is the NTK.
      diag_reg, diag_reg_absolute_scale, trace_axes, any_law: as for `gp_inference`.

    Returns:
      A scalar of the kernel's dtype. Where a kernel is singular, the jitter that `gp_inference` would report
      counts as noise.

    Raises:
      InputError: a shape, a dtype or an option is wrong, or the output is not Gaussian.
      NumericalError: (outside `jit`; under it the result is NaN) a number is not finite, or the kernel could
        not be factored.
    """
    if get not in ("nngp", "ntk"):
        raise InputError(f'get must be "nngp" or "ntk"; got {get!r}.')
    kernel = _kernel(kernel_fn, x_train, get, any_law)
    fitted = gp_inference(kernel, y_train, diag_reg, diag_reg_absolute_scale, trace_axes, noise=noise)
    (factor,) = fitted.factors.values()
    assert isinstance(factor, Factor)
    total = _total(factor, fitted.axes.columns(fitted.y_train)[0])
    return jnp.where(factor.ok, total, jnp.nan).astype(fitted.y_train.dtype)


def _kernel(kernel_fn: Any, x_train: Any, get: str, any_law: bool) -> Any:
    """The kernel called `get` of the training points, an array."""
    if not any_law:
        require_gaussian(kernel_fn, "the first argument")
    if x_train is not None:
        return kernel_fn(x_train, None, get)
    if callable(kernel_fn):
        raise InputError(
            "without x_train the first argument must be the kernel of the training points; got a function."
        )
    found = kernel_fn if is_store(kernel_fn) else part(kernel_fn, get, "the first argument", get)
    if is_store(found):
        raise InputError(
            "the marginal likelihood needs the determinant of the kernel, which is in memory for that: pass "
            "np.asarray(kernel), or compute it for part of the training points."
        )
    return found


@in_float64
def _total(factor: Factor, columns: Array) -> Array:
    n, count = columns.shape
    quadratic = jnp.sum(columns * solve(factor, columns))
    return -0.5 * quadratic - 0.5 * count * (log_determinant(factor) + n * jnp.log(2 * jnp.pi))
