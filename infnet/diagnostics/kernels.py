"""Kernels and labels as users have them, checked, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from infnet.errors import InputError
from infnet.predict.checks import is_traced, require_finite, require_symmetric


def symmetric(kernel: Any, label: str) -> np.ndarray:
    """The kernel `(n, n)` of a set of examples with itself, in its own floating dtype.

    Raises:
        InputError: it is something else.
        NumericalError: an entry is not finite.
    """
    if hasattr(kernel, "nngp") or hasattr(kernel, "ntk"):
        raise InputError(f"{label} holds several kernels: pass the array that is meant, .nngp or .ntk")
    array = _concrete(kernel, label)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise InputError(
            f"{label} must be the kernel of n examples, (n, n), not {array.shape}. Of outputs with axes "
            "of their own take the mean (`trace_axes=-1` of an empirical NTK), or make one matrix of examples and axes"
        )
    require_finite(array, label)
    require_symmetric(array, label)
    return array


def label_kernel(labels: Any) -> np.ndarray:
    """The kernel of labels with themselves, float64: what a kernel that knew them would be.

    >>> import numpy as np
    >>> label_kernel(np.array([0, 1, 1])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]

    Args:
        labels: classes `(n,)`, integers or bools; or real targets `(n,)` or `(n, t)`.

    Returns:
        `(n, n)`: 1 for the same class and 0 for others; of targets, their inner products y yᵀ.

    Raises:
        InputError: the labels have another shape or dtype.
        NumericalError: a target is not finite.
    """
    columns = label_columns(labels)
    return columns @ columns.T


def label_columns(labels: Any) -> np.ndarray:
    """Targets `(n, t)`, float64; of classes, one column for each, with 1 where it is."""
    array = _concrete(labels, "labels")
    classes = array.dtype.kind in "biu"
    if array.ndim not in ((1,) if classes else (1, 2)) or not array.size:
        raise InputError(
            "labels must be classes (n,), integers or bools, or real targets (n,) or (n, t) as floats, not "
            f"{array.dtype} of shape {array.shape}"
        )
    if classes:
        return (array[:, None] == np.unique(array)).astype(np.float64)
    require_finite(array, "labels", of_kernel=False)
    return array.reshape(len(array), -1).astype(np.float64)


def require_rows(labels: np.ndarray, n: int) -> None:
    """Raise `InputError` unless there is a label for each of n examples."""
    if len(labels) != n:
        raise InputError(f"there are {len(labels)} labels, but the kernel is that of {n} examples")


def _concrete(values: Any, label: str) -> np.ndarray:
    if is_traced(values):
        raise InputError(f"{label} is traced: diagnostics are of concrete arrays, outside of jit and grad")
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{label} must be an array, not {type(values).__name__}") from None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"{label} must be an array of real numbers, not of dtype {array.dtype}")
    return array
