"""The pseudo-NTK: the NTK of the sum of the logits, one number per pair of examples in place of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from infnet.empirical.function import OfOneKind
from infnet.empirical.kernels import empirical_ntk_fn
from infnet.errors import InputError

PyTree = Any


def empirical_pseudo_ntk_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    **options: Any,
) -> OfOneKind:
    """The pseudo-NTK of a network: the NTK of `f.sum(-1) / sqrt(o)`, for its o logits on the last axis.

    It has o² times fewer entries than the NTK, which it approaches in the form pNTK ⊗ I for networks at initialisation
    with a wide last hidden layer (Mohamadi, Bae and Sutherland 2023, arXiv:2206.12543); it is another kernel than the
    average of the NTK over logits, `trace_axes=-1`.

    Args:
        f: `(params, x, **kwargs) -> outputs` as for `infnet.empirical_kernel_fn`; logits are the last axis of each.
        trace_axes, diagonal_axes: of the sums `(n, ...)`, which have one axis less than the outputs.
        **options: further arguments of `infnet.empirical_ntk_fn`.

    Returns:
        `pseudo_ntk_fn(x1, x2, params, **kwargs)`, which is `(n1, n2)` for outputs `(n, o)`.

    Raises:
        InputError: when it is called: an output has no axis of logits; see also `infnet.empirical_kernel_fn`.
    """

    def scaled_sum(logits: jax.Array) -> jax.Array:
        if logits.ndim < 2:
            raise InputError(f"an output of shape {logits.shape} has no axis of logits after that of the examples")
        return logits.sum(-1) / logits.shape[-1] ** 0.5

    def sums(params: PyTree, x: PyTree, **kwargs: Any) -> PyTree:
        return jax.tree.map(scaled_sum, f(params, x, **kwargs))

    return empirical_ntk_fn(sums, trace_axes, diagonal_axes, **options)
