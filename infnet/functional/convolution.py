"""Layers with weights, apart from attention: dense layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.errors import InputError
from infnet.functional.masks import where_present
from infnet.functional.windows import Padding, Sizes, Windows, check_padding, each


def dense(
    x: jax.Array, w: jax.Array, b: jax.Array | None = None, *, mask: Any = None, precision: Any = None
) -> jax.Array:
    """`x @ w + b` at every position.

    Args:
        x: `(n, *positions, channels)`.
        w: `(channels, features)`.
        b: `(features,)`, or None.
        mask: where there are inputs, see `where_present`.
        precision: of the product, see `jax.lax.Precision`.

    Returns:
        `(n, *positions, features)`.
    """
    check_channels(x, w.shape[0])
    y = jnp.matmul(where_present(x, mask), w, precision=precision)
    return y if b is None else y + b


def conv(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Sizes | None = None,
    padding: Padding = "SAME",
    dilation: Sizes | None = None,
    mask: Any = None,
    precision: Any = None,
) -> jax.Array:
    """A convolution, `y_i = sum_d x_(s i + r d) w_d + b` with strides s and dilation r.

    Args:
        x: `(n, *positions, channels)`.
        w: `(*window, channels, features)`.
        b: `(features,)`, or None.
        strides: an integer, or one for each axis of positions; None is 1.
        padding: "SAME", "VALID", "CIRCULAR" (the positions are a torus, where "SAME" has zeros), an integer, or a pair
            `(before, after)` for each axis of positions.
        dilation: as strides.
        mask: where there are inputs, see `where_present`; `window_mask` is where there are outputs then.
        precision: of the products, see `jax.lax.Precision`.

    Returns:
        `(n, *positions of the outputs, features)`.

    Raises:
        InputError: shapes do not fit, or the padding is none of these.
    """
    check_positions(x, w.ndim - 2)
    check_channels(x, w.shape[-2])
    windows = Windows.of(x.shape[1:-1], w.shape[:-2], strides, padding, dilation)
    x, pads = windows.padded(where_present(x, mask))
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, _axes(x.ndim))
    y = lax.conv_general_dilated(
        x, w, windows.strides, pads, rhs_dilation=windows.dilation, dimension_numbers=numbers, precision=precision
    )
    return y if b is None else y + b


def conv_local(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "SAME",
    dilation: Sizes | None = None,
    mask: Any = None,
    precision: Any = None,
) -> jax.Array:
    """A convolution with weights of its own at every position of the outputs (a locally connected layer).

    Args:
        x: `(n, *positions, channels)`.
        w: `(*positions of the outputs, channels * window, features)`, the channel varying slowest; `local_shape` is its
            shape.
        b: `(*positions of the outputs, features)`, or None.
        window: one integer for each axis of positions.
        strides, padding, dilation, mask, precision: as for `conv`.

    Returns:
        `(n, *positions of the outputs, features)`.

    Raises:
        InputError: shapes do not fit, or the padding is none of those of `conv`.
    """
    windows = Windows.of(x.shape[1:-1], window, strides, padding, dilation)
    check_positions(x, len(windows.window))
    check_channels(x, w.shape[-2] // math.prod(windows.window))
    x, pads = windows.padded(where_present(x, mask))
    y = lax.conv_general_dilated_local(
        x,
        w,
        windows.strides,
        pads,
        windows.window,
        rhs_dilation=windows.dilation,
        dimension_numbers=lax.conv_dimension_numbers(x.shape, w.shape, _axes(x.ndim)),
        precision=precision,
    )
    return y if b is None else y + b


def conv_transpose(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Sizes | None = None,
    padding: str = "SAME",
    mask: Any = None,
    precision: Any = None,
) -> jax.Array:
    """A transposed convolution, `y_j = sum_(s i + d = j) x_i w_d + b` up to the place of the first output.

    Args:
        x: `(n, *positions, channels)`.
        w: `(*window, channels, features)`; the window is read backwards, as by `jax.lax.conv_transpose`.
        b: `(features,)`, or None.
        strides: an integer, or one for each axis of positions; None is 1.
        padding: "SAME", with as many outputs as inputs times strides; "VALID", with what the windows reach beyond; or
            "CIRCULAR", where that is added at the other end, as on a torus.
        mask, precision: as for `conv`.

    Returns:
        `(n, *positions of the outputs, features)`.

    Raises:
        InputError: shapes do not fit, or the padding is none of these.
    """
    check_positions(x, w.ndim - 2)
    check_channels(x, w.shape[-2])
    if not isinstance(padding, str):
        raise InputError(f"the padding of a transposed convolution must be SAME, VALID or CIRCULAR, not {padding!r}")
    check_padding(padding)
    k = w.ndim - 2
    strides = each(strides, k, "strides")
    x = where_present(x, mask)
    name = "SAME" if padding == "SAME" else "VALID"
    y = lax.conv_transpose(x, w, strides, name, dimension_numbers=_axes(x.ndim), precision=precision)
    if padding == "CIRCULAR":
        for axis, (size, stride) in enumerate(zip(x.shape[1:-1], strides, strict=True), 1):
            y = _folded(y, axis, size * stride)
    return y if b is None else y + b


def _folded(y: jax.Array, axis: int, period: int) -> jax.Array:
    """Sums of the positions that are the same on a torus, the first of which is in the middle of what is there."""
    before = -((y.shape[axis] - period) // 2) % period
    after = -(before + y.shape[axis]) % period
    y = jnp.pad(y, [(before, after) if d == axis else (0, 0) for d in range(y.ndim)])
    return y.reshape(*y.shape[:axis], -1, period, *y.shape[axis + 1 :]).sum(axis)


def _axes(ndim: int) -> Any:
    """Which axes of inputs, weights and outputs are batch, channels and positions: the usual order."""
    positions = "".join("DHW"[-(ndim - 2) :] if ndim < 6 else map(chr, range(ord("a"), ord("a") + ndim - 2)))
    return f"N{positions}C", f"{positions}IO", f"N{positions}C"


def check_positions(x: jax.Array, k: int) -> None:
    """Raises `InputError` unless x has k axes of positions."""
    if x.ndim != k + 2:
        raise InputError(f"inputs must have shape (n, {'size, ' * k}channels) for a window of {k} axes, not {x.shape}")


def check_channels(x: jax.Array, channels: int) -> None:
    """Raises `InputError` unless the last axis of x has this size."""
    if x.shape[-1] != channels:
        raise InputError(f"the weights are for {channels} channels, but the inputs have shape {x.shape}")


def local_shapes(
    shape: Sequence[int],
    window: Sequence[int],
    features: int,
    strides: Sizes | None,
    padding: Padding,
    dilation: Any = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the weights and biases of `conv_local` on inputs of this shape."""
    windows = Windows.of(shape[1:-1], window, strides, padding, dilation)
    return (*windows.outputs, shape[-1] * math.prod(windows.window), features), (*windows.outputs, features)
