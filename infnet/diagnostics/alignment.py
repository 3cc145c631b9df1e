"""How close kernels are to each other and to labels, and how far they go while a network is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet.diagnostics.kernels import label_kernel, require_rows, symmetric
from infnet.errors import InputError


def alignment(kernel: Any, other: Any, *, centred: bool = True) -> float:
    """The cosine between two kernels, as vectors of their entries: 1 where one is a positive multiple of the other.

        A(K, L) = <K, L> / (|K| |L|),       <K, L> = sum_ij K_ij L_ij

    Cristianini et al. 2001, "On kernel-target alignment", definition 1; with `centred`, both have the means of rows and
    columns taken out, so that constants do not count: Cortes, Mohri & Rostamizadeh 2012, "Algorithms for learning
    kernels based on centered alignment", JMLR 13, definition 4. With labels it is
    `alignment(kernel, label_kernel(labels))`.

    >>> import numpy as np
    >>> same_class = label_kernel(np.array([0, 0, 1, 1]))
    >>> round(alignment(3 * same_class + 5, same_class), 6)
    1.0

    Args:
        kernel, other: `(n, n)`, of the same examples.
        centred: whether both are centred first.

    Raises:
        InputError: shapes are wrong, a kernel is not symmetric, or nothing of it is left, since it is constant.
        NumericalError: an entry is not finite.
    """
    one, two = (_entries(k, label, centred) for k, label in ((kernel, "kernel"), (other, "other")))
    if one.shape != two.shape:
        raise InputError(f"both kernels must be of the same examples, but have shapes {one.shape} and {two.shape}")
    return float(np.sum(one * two))


@dataclass(frozen=True)
class Drift:
    """How a kernel moved in training; arrays `(t,)`, float64, one entry for each kernel.

    Attributes:
        steps: when the kernels were computed.
        distance: from the first one, relative: |K_t - K_0| / |K_0|, Frobenius norms.
        rotation: 1 - A(K_t, K_0), the alignment without centring, so that a mere change of scale is no rotation: the
            kernel distance of Fort et al. 2020, arXiv:2010.15110.
        alignment: with the labels, centred; None without labels.
    """

    steps: np.ndarray
    distance: np.ndarray
    rotation: np.ndarray
    alignment: np.ndarray | None


def drift(kernels: Iterable[Any], labels: Any = None, *, steps: Sequence[float] | None = None) -> Drift:
    """How far the kernel of a network moves from where it was before training, and towards the labels.

    In the limit of infinite width, in the NTK parameterization, it does not move at all (Jacot et al. 2018,
    arXiv:1806.07572, theorem 2).

    Args:
        kernels: `(n, n)` each, of the same examples, the first one that of the beginning. They are taken one by one, so
            that a generator need not keep them: `drift(ntk_fn(x, None, params) for params in history)`.
        labels: of the examples, as `label_kernel` takes them.
        steps: when the kernels were computed, in any units; None for 0, 1, 2, ...

    Raises:
        InputError: there is no kernel, shapes are wrong, a kernel is not symmetric or is zero.
        NumericalError: an entry is not finite.
    """
    if hasattr(kernels, "nngp") or hasattr(kernels, "ntk") or not isinstance(kernels, Iterable):
        raise InputError("kernels must be arrays (n, n), one after the other")
    target = None if labels is None else label_kernel(labels)
    first, rows = None, []
    for number, given in enumerate(kernels):
        label = f"kernel {number}"
        kernel = symmetric(given, label).astype(np.float64)
        if first is None:
            first, start = kernel, _entries(kernel, label, False)
            if target is not None:
                require_rows(target, len(kernel))
                towards = _entries(target, "the kernel of the labels", True)
        if kernel.shape != first.shape:
            raise InputError(f"{label} has shape {kernel.shape}, and the first one {first.shape}")
        distance = np.linalg.norm(kernel - first) / np.linalg.norm(first)
        aligned = np.nan if target is None else np.sum(_entries(kernel, label, True) * towards)
        rows.append((distance, 1 - np.sum(_entries(kernel, label, False) * start), aligned))
    if not rows:
        raise InputError("drift needs at least one kernel")
    distance, rotation, aligned = np.array(rows).T
    return Drift(_steps(steps, len(rows)), distance, np.maximum(rotation, 0.0), None if target is None else aligned)


def _entries(kernel: Any, label: str, centred: bool) -> np.ndarray:
    """The kernel divided by its norm, after centring."""
    matrix = symmetric(kernel, label).astype(np.float64)
    size = np.linalg.norm(matrix)
    if centred:
        matrix = matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()
    norm = np.linalg.norm(matrix)
    if norm <= 1e-12 * size:
        raise InputError(f"{label} is {'constant' if centred else 'zero'}: it has no direction to compare")
    return matrix / norm


def _steps(steps: Any, count: int) -> np.ndarray:
    array = np.arange(count, dtype=np.float64) if steps is None else np.asarray(steps, np.float64)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(f"steps must be {count} finite numbers, one for each kernel, not {steps!r}")
    return array
