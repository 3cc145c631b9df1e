"""Checks of kernels and targets. Those that depend on data raise on concrete arrays and become `ok` on traced ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError, NumericalError
from infnet.kernel import Law
from infnet.predict.axes import OutputAxes
from infnet.solvers.operators import NOT_FINITE

Array = jax.Array


def is_array(x: Any) -> bool:
    """Whether `x` is an array rather than a container of kernels."""
    return isinstance(x, (jax.Array, np.ndarray, list))


def is_store(x: Any) -> bool:
    """Whether `x` is a matrix that is read by parts: an array on disk, or an operator of `infnet.solvers`."""
    return hasattr(x, "shape") and hasattr(x, "dtype") and not is_array(x)


def has(kernel: Any, name: str) -> bool:
    """Whether a container holds this kernel."""
    return getattr(kernel, name, None) is not None


def is_traced(*arrays: Any) -> bool:
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
    if hasattr(x, "standard_error"):
        raise InputError(f"{label} is an Estimate, whose kernel is its `.mean`: pass that, or a whole `Kernel`.")
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{label} must be real; got dtype {array.dtype}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def require_finite(array: Array | np.ndarray, label: str, of_kernel: bool = True) -> None:
    """Raise `NumericalError` with the first indices that are not finite; of a kernel, or of features, or not."""
    if is_traced(array):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = ", ".join(str(tuple(int(i) for i in index)) for index in bad[:3])
        remedy = NOT_FINITE if of_kernel else "No prediction follows from them: leave out what is missing."
        raise NumericalError(
            f"{label} contains {len(bad)} number(s) that are not finite, the first at {where}. {remedy}"
        )


def square(kernel: Any, label: str) -> Array:
    """The train-train kernel, (n, n, …), checked."""
    array = real(kernel, label)
    if array.ndim < 2 or array.shape[0] != array.shape[1] or not array.size:
        raise InputError(
            f"{label} must be square, (n, n) or (n, n, …), one row and one column for each of n >= 1 "
            f"training points; got shape {array.shape}."
        )
    require_finite(array, label)
    return array


def require_symmetric(array: Array | np.ndarray, label: str) -> None:
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


def targets(y: Any, n: int, dtype: Any) -> Array:
    """The targets (n, …), checked against the kernel."""
    array = real(y, "y_train")
    if array.ndim == 0 or len(array) != n:
        raise InputError(
            f"y_train must have shape (n, …) with n = {n}, the number of training points in "
            f"k_train_train; got {array.shape}."
        )
    require_finite(array, "y_train", of_kernel=False)
    return array.astype(dtype)


def strength(diag_reg: Any) -> Array:
    """The regularisation, a non-negative scalar."""
    strength = real(diag_reg, "diag_reg")
    valid = is_traced(strength) or (strength.ndim == 0 and 0 <= float(strength) < np.inf)
    if strength.ndim or not valid:
        raise InputError(f"diag_reg must be a finite, non-negative scalar; got {diag_reg!r}.")
    return strength


def noise_variances(noise: Any, axes: OutputAxes, n: int) -> Array:
    """The noise of each row of the kernel's matrix: variances that are finite and not negative."""
    array = real(0.0 if noise is None else noise, "noise")
    shape = axes.of_variances.shape(n)
    if array.shape not in ((), (n,), shape):
        each = f", or of each of their outputs that has a row of its own in the kernel, {shape}" * (len(shape) > 1)
        raise InputError(
            f"noise must be one variance, or that of each of the n = {n} training points, of shape ({n},){each}; "
            f"got shape {array.shape}."
        )
    require_finite(array, "noise", of_kernel=False)
    if not is_traced(array) and bool((array < 0).any()):
        raise InputError(f"noise must be variances, not negative; the smallest is {array.min()}.")
    padded = array.reshape(array.shape + (1,) * (len(shape) - array.ndim) if array.ndim else ())
    return axes.of_variances.columns(jnp.broadcast_to(padded, shape)).reshape(-1)


def require_gaussian(kernel: Any, label: str) -> None:
    """Raise `InputError` where a `Kernel` says that its output is not a Gaussian process of mean zero."""
    law = getattr(kernel, "law", None)
    if law is not None and not isinstance(law, Law):
        raise InputError(
            f"{label} is of a model with several outputs, {jax.tree.structure(law, is_leaf=_is_law)}: choose one with "
            'output=, for example `output=lambda y: y["logits"]`, when the kernel function is made'
        )
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


def _is_law(x: Any) -> bool:
    return isinstance(x, Law)


def diagonals(kernel_fn: Any, x: Any, get: Any, **kwargs: Any) -> Any:
    """The kernels of each example with itself, or all, where the kernel function has no `diag`."""
    diag = getattr(kernel_fn, "diag", None)
    return kernel_fn(x, None, get, **kwargs) if diag is None else diag(x, get, **kwargs)


def test_kernel(kernel: Any, name: str, get: str, axes: OutputAxes, m: int) -> Array:
    """The test-test kernel as matrices, (d, M, M), or their diagonals, (d, M)."""
    array = real(part(kernel, name, "k_test_test", get), "k_test_test")
    full, variances = axes.kernel_shape(m, m), axes.of_variances.shape(m)
    if array.shape == full[1:]:  # of each point with itself: what `KernelFn.diag` returns
        array = axes.own_variances(array)
    if array.shape not in (full, variances):
        raise InputError(
            f"k_test_test must have shape {full}, or {variances} for its diagonal, where m = {m} is the "
            f"number of rows of k_test_train; got {array.shape}."
        )
    if array.shape == full:
        return axes.matrix(array, "k_test_test")
    return axes.of_variances.columns(array)[..., 0]
