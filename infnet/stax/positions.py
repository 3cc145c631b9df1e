"""Layers without weights that move, sum and drop: what they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet import functional
from infnet.errors import InputError
from infnet.stax.axes import Axes, only, usual_axes
from infnet.stax.layer import Layer, layer
from infnet.stax.linear import without_mask

Sizes = functional.Sizes
Slice = np.s_


def AvgPool(
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: str = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Means over windows; with `normalize_edges` over what is no padding. See `infnet.functional.avg_pool`."""
    options = {"window": window_shape, "strides": strides, "padding": padding, "normalize_edges": normalize_edges}
    return _pool("AvgPool", functional.avg_pool, Axes(batch_axis, channel_axis), options)


def SumPool(
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: str = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Sums over windows. See `infnet.functional.sum_pool`."""
    options = {"window": window_shape, "strides": strides, "padding": padding}
    return _pool("SumPool", functional.sum_pool, Axes(batch_axis, channel_axis), options)


def _pool(name: str, fn: Callable[..., jax.Array], axes: Axes, options: dict[str, Any]) -> Layer:
    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        return axes.around(fn, x, mask, **options)

    def after(mask: jax.Array) -> jax.Array:
        return functional.window_mask(mask, options["window"], options["strides"], options["padding"])

    return layer(name, forward, after=after)


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """The mean over all positions there are; zeros for an example without any."""
    return _global("GlobalAvgPool", functional.global_avg_pool, Axes(batch_axis, channel_axis))


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """The sum over all positions there are."""
    return _global("GlobalSumPool", functional.global_sum_pool, Axes(batch_axis, channel_axis))


def _global(name: str, fn: Callable[..., jax.Array], axes: Axes) -> Layer:
    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        return axes.around(fn, x, mask)

    return layer(name, forward, after=lambda mask: None)


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Layer:
    """All positions and channels as one axis, zeros where nothing is; the other axis is `batch_axis_out`."""
    if batch_axis_out not in (0, 1, -1, -2):
        raise InputError(f"flattened inputs have two axes, so batch_axis_out cannot be {batch_axis_out!r}")

    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        if mask is not None:
            only("Flatten", "batch_axis", batch_axis, 0, "it has a mask")
        y = functional.flatten(jnp.moveaxis(x, batch_axis, 0) if batch_axis else x, mask=mask)
        return y.T if batch_axis_out % 2 else y

    return layer("Flatten", forward, after=lambda mask: None)


def Identity() -> Layer:
    """The inputs themselves."""
    return layer("Identity", lambda params, x, mask, **_: x)


def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """`x[idx]`, for a tuple of slices, integers and `...`; `Slice[:, 1:3]` makes one. It takes no masks.

    Raises:
        InputError: other axes than 0 and -1; later, if `idx` is something else or picks one example.
    """
    usual_axes("Index", batch_axis, channel_axis)

    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        without_mask("Index", mask)
        return functional.index(x, idx)

    return layer("Index", forward)


def DotGeneral(
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: functional.Contractions = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """`jax.lax.dot_general` with a constant, `lhs` or `rhs`, wherever the axes are. It takes no masks."""
    axes = Axes(batch_axis, channel_axis)

    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        without_mask("DotGeneral", mask)
        axes.place(x.ndim)
        return functional.dot_general(x, lhs=lhs, rhs=rhs, dimension_numbers=dimension_numbers, precision=precision)

    return layer("DotGeneral", forward)


def ImageResize(
    shape: Sequence[int],
    method: str | jax.image.ResizeMethod,
    antialias: bool = True,
    precision: Any = jax.lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """`jax.image.resize` of the positions; `shape` has -1 for axes that stay as they are. It takes no masks.

    Raises:
        InputError: other axes than 0 and -1; later, if the shape does not fit.
    """
    usual_axes("ImageResize", batch_axis, channel_axis)

    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        without_mask("ImageResize", mask)
        return functional.image_resize(x, shape, method, antialias, precision)

    return layer("ImageResize", forward)


def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Any], Any] | None = lambda pattern: pattern,
    implementation: str = "DENSE",
) -> Layer:
    """Each node becomes the sum of those that have an edge to it, by the `pattern` that `apply_fn` is given.

    Args:
        aggregate_axis: the axes of nodes; None is all positions.
        batch_axis, channel_axis: 0 and -1 only.
        to_dense: makes matrices of the patterns if the implementation is "DENSE".
        implementation: "DENSE" or "SPARSE", see `infnet.functional.aggregate`.

    Raises:
        InputError: other axes; later, if another argument is malformed.
    """
    usual_axes("Aggregate", batch_axis, channel_axis)

    def forward(_: Any, x: jax.Array, mask: Any, pattern: Any = None, **__: Any) -> jax.Array:
        if pattern is not None and implementation == "DENSE" and to_dense is not None:
            pattern = to_dense(pattern)
        options: dict[str, Any] = {"aggregate_axis": aggregate_axis, "implementation": implementation}
        return functional.aggregate(x, pattern, mask=mask, **options)

    return layer("Aggregate", forward)


def LayerNorm(axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Mean 0 and variance 1 over `axis`, without scale and bias; `eps` is added to the variance.

    Raises:
        InputError: other axes than 0 and -1; later, if `axis` or `eps` is out of its range.
    """
    usual_axes("LayerNorm", batch_axis, channel_axis)
    axes = axis if isinstance(axis, int) else tuple(axis)

    def forward(_: Any, x: jax.Array, mask: Any, **__: Any) -> jax.Array:
        return functional.layer_norm(x, axes=axes, epsilon=eps, mask=mask)

    return layer("LayerNorm", forward)


def Dropout(rate: float, mode: str = "train") -> Layer:
    """Each number is kept, divided by `rate`, with probability `rate`, and is zero otherwise; all are kept in "test".

    The `rate` is Neural Tangents', that of what is kept; those of Flax and Haiku are of what is dropped.

    Raises:
        InputError: the rate is not in (0, 1], or the mode none of these; when called for training without `rng`.
    """
    if not isinstance(rate, Real) or not 0 < rate <= 1:
        raise InputError(f"the rate of what Dropout keeps must be in (0, 1], not {rate!r}")
    if mode not in ("train", "test"):
        raise InputError(f"the mode of Dropout must be 'train' or 'test', not {mode!r}")

    def forward(_: Any, x: jax.Array, mask: Any, rng: Any = None, **__: Any) -> jax.Array:
        if mode == "test" or rate == 1:
            return x
        if rng is None:
            raise InputError("Dropout in training needs a random key: apply_fn(params, inputs, rng=key)")
        return functional.dropout(x, rng, 1 - rate)

    return layer("Dropout", forward)
