"""Checks of kernels and targets. Those that depend on data raise on concrete arrays and become `ok` on traced ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError, NumericalError

Array = jax.Array


def is_array(x: Any) -> bool:
    """Whether `x` is an array rather than a container of kernels."""
    return isinstance(x, (jax.Array, np.ndarray, list))


def has(kernel: Any, name: str) -> bool:
    """Whether a container holds this kernel."""
    return getattr(kernel, name, None) is not None


def is_traced(*arrays: Array) -> bool:
    """Whether any of the arrays is abstract, so that its values cannot be checked."""
    return any(isinstance(a, jax.core.Tracer) for a in arrays)


def both_needed(get: str) -> str:
    """The explanation that "ntk" covariances need both kernels."""
    return (
        f'the covariance of get="{get}" is that of an ensemble of trained networks and needs the NNGP '
        "as well as the NTK: k_train_train and k_test_train must have both .nngp and .ntk."
    )


def lookup(table: dict[str, Any], name: str, get: str, need_both: bool = False) -> Any:
    """The training set's kernel or factor called `name`; a bare array stands for any, but for one."""
    if name in table:
        return table[name]
    if need_both:
        raise InputError(both_needed(get))
    if "bare" in table:
        return table["bare"]
    raise InputError(f'get="{get}" needs the kernel .{name}, which k_train_train lacks.')


def part(kernel: Any, name: str, label: str, get: str, need_both: bool = False) -> Any:
    """The array called `name` in a test kernel, or the kernel itself if it is an array."""
    if is_array(kernel):
        if need_both:
            raise InputError(both_needed(get))
        return kernel
    if not has(kernel, name):
        raise InputError(f'get="{get}" needs the kernel .{name}, which {label} lacks.')
    return getattr(kernel, name)


def real(x: Any, label: str) -> Array:
    """`x` as a real floating array."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{label} must be real; got dtype {array.dtype}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def require_finite(array: Array, label: str) -> None:
    """Raise `NumericalError` with the first indices that are not finite."""
    if is_traced(array):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = ", ".join(str(tuple(int(i) for i in index)) for index in bad[:3])
        raise NumericalError(
            f"{label} contains {len(bad)} number(s) that are not finite, the first at {where}. An "
            "input that is not finite, or that overflows in the network, makes its whole row and "
            "column of the kernel so."
        )


def square(kernel: Any, label: str) -> Array:
    """The (n, n) train-train kernel, checked."""
    array = real(kernel, label)
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
    require_finite(array, label)
    require_symmetric(array, label)
    return array


def require_symmetric(array: Array, label: str) -> None:
    """Raise `InputError` where a kernel, `(..., N, N)`, is not symmetric beyond rounding."""
    if is_traced(array):
        return
    asymmetry = jnp.abs(array - array.mT)
    if asymmetry.max() > float(jnp.finfo(array.dtype).eps) ** 0.5 * jnp.abs(array).max():
        *block, i, j = (int(k) for k in np.unravel_index(int(asymmetry.argmax()), array.shape))
        matrix = array[tuple(block)]
        raise InputError(
            f"{label} must be symmetric, the kernel of the training points with themselves; its "
            f"entries ({i}, {j}) and ({j}, {i}) are {matrix[i, j]} and {matrix[j, i]}."
        )


def targets(y: Any, n: int, dtype: Any, trace_axes: int | Sequence[int]) -> Array:
    """The targets (n, …), checked against the kernel and `trace_axes`."""
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
    if axes not in ((-1,), ()):
        raise InputError(f"trace_axes must be (-1,) or (); got {trace_axes!r}.")
    array = real(y, "y_train")
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
    require_finite(array, "y_train")
    return array.astype(dtype)


def strength(diag_reg: Any) -> Array:
    """The regularisation, a non-negative scalar."""
    strength = real(diag_reg, "diag_reg")
    valid = is_traced(strength) or (strength.ndim == 0 and 0 <= float(strength) < np.inf)
    if strength.ndim or not valid:
        raise InputError(f"diag_reg must be a finite, non-negative scalar; got {diag_reg!r}.")
    return strength


def noise_variances(noise: Any, n: int) -> Array:
    """The noise, a scalar or one variance for each training point: finite and not negative."""
    array = real(0.0 if noise is None else noise, "noise")
    if array.shape not in ((), (n,)):
        raise InputError(
            f"noise must be a variance, or one for each of the n = {n} training points, of shape ({n},); "
            f"got shape {array.shape}."
        )
    require_finite(array, "noise")
    if not is_traced(array) and bool((array < 0).any()):
        raise InputError(f"noise must be variances, not negative; got {array.min()} at index {array.argmin()}.")
    return array


def require_gaussian(kernel: Any, label: str) -> None:
    """Raise `InputError` where a `Kernel` says that its output is not a Gaussian process of mean zero."""
    law = getattr(kernel, "law", None)
    if law is None or (law.gaussian and law.zero_mean):
        return
    if law.gaussian:
        why = "its mean is not zero, as with a constant bias, and .nngp is the second moment around zero"
        remedy = "let its biases start at zero"
    else:
        why = "a network that ends in a nonlinearity, for example, has another law, and a random tangent kernel"
        remedy = "take the kernel of the model up to its last dense layer"
    raise InputError(
        f"{label} is the kernel of an output that is not a Gaussian process of mean zero, which predictions assume\n"
        f"  why:    {why}\n"
        f"  remedy: {remedy}; or pass any_law=True, to predict with the Gaussian process of the same kernel"
    )


def test_kernel(kernel: Any, name: str, get: str, m: int) -> Array:
    """The test-test kernel (m, m), or its diagonal (m,)."""
    k_tt = real(part(kernel, name, "k_test_test", get), "k_test_test")
    if k_tt.shape not in ((m, m), (m,)):
        raise InputError(
            f"k_test_test must have shape (m, m), or (m,) for its diagonal, where m = {m} is the "
            f"number of rows of k_test_train; got {k_tt.shape}."
        )
    return k_tt
