"""Layers with weights: dense layers and convolutions. What they compute stands in `infnet.functional`.

Weights have variance `W_std^2 / fan_in` and biases `b_std^2`; there are no biases if `b_std` is None. With the
`parameterization` "ntk" parameters are N(0, 1), with factors in front of them; "standard" has no factors. See
`infnet.functional.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from infnet import functional
from infnet.errors import InputError
from infnet.stax.axes import Axes, only
from infnet.stax.layer import Laws, Layer, Shape, layer

Sizes = functional.Sizes
WIDTHS = "widths are the numbers of channels"


class Parameters(NamedTuple):
    """Weights and biases, which are None if there are none."""

    W: Any
    b: Any


def Dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """`x W + b` at every position, with `out_dim` channels.

    Raises:
        InputError: `s` is not (1, 1); later, if another argument is malformed.
    """
    only("Dense", "s", tuple(s), (1, 1), WIDTHS)
    axes = Axes(batch_axis, channel_axis)

    def laws(shape: Shape) -> Laws:
        _, axis = axes.place(len(shape))
        return _laws((shape[axis], out_dim), shape[axis], (out_dim,), W_std, b_std, parameterization)

    def forward(params: Any, x: jax.Array, mask: Any, **_: Any) -> jax.Array:
        return axes.around(functional.dense, x, mask, w=params.W, b=params.b)

    return layer("Dense", forward, laws, kind=Parameters)


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sizes | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A convolution with `out_chan` channels; padding is "VALID", "SAME" or "CIRCULAR", or as `functional.conv` has it.

    Raises:
        InputError: `s` is not (1, 1), or `dimension_numbers` are not `(n, *positions, channels)`; later, if another
            argument is malformed.
    """
    _check("Conv", dimension_numbers, s)
    window = functional.window_of(filter_shape)

    def forward(params: Any, x: jax.Array, mask: Any, **_: Any) -> jax.Array:
        return functional.conv(x, params.W, params.b, strides=strides, padding=padding, mask=mask)

    def after(mask: jax.Array) -> jax.Array:
        return functional.window_mask(mask, window, strides, padding)

    return layer("Conv", forward, _of_window(window, out_chan, W_std, b_std, parameterization), after, Parameters)


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sizes | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A transposed convolution; arguments as of `Conv`. It takes no masks."""
    _check("ConvTranspose", dimension_numbers, s)
    window = functional.window_of(filter_shape)

    def forward(params: Any, x: jax.Array, mask: Any, **_: Any) -> jax.Array:
        without_mask("ConvTranspose", mask)
        return functional.conv_transpose(x, params.W, params.b, strides=strides, padding=padding)

    laws = _of_window(window, out_chan, W_std, b_std, parameterization)
    return layer("ConvTranspose", forward, laws, kind=Parameters)


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sizes | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A convolution with weights and biases of its own at every position; arguments as of `Conv`."""
    _check("ConvLocal", dimension_numbers, s)
    window = functional.window_of(filter_shape)

    def laws(shape: Shape) -> Laws:
        weights, biases = functional.local_shapes(shape, window, out_chan, strides, padding)
        return _laws(weights, weights[-2], biases, W_std, b_std, parameterization)

    def forward(params: Any, x: jax.Array, mask: Any, **_: Any) -> jax.Array:
        options: dict[str, Any] = {"window": window, "strides": strides, "padding": padding, "mask": mask}
        return functional.conv_local(x, params.W, params.b, **options)

    def after(mask: jax.Array) -> jax.Array:
        return functional.window_mask(mask, window, strides, padding)

    return layer("ConvLocal", forward, laws, after, Parameters)


def without_mask(name: str, mask: Any) -> None:
    """Raises `InputError` if there is a mask."""
    if mask is not None:
        raise InputError(f"{name} takes no masks: set inputs that are not there to zero instead")


def _of_window(
    window: Shape, out_chan: int, W_std: float, b_std: Any, parameterization: str
) -> Callable[[Shape], Laws]:
    def laws(shape: Shape) -> Laws:
        if len(shape) != len(window) + 2:
            sizes = "size, " * len(window)
            raise InputError(f"a window of {window} needs inputs of shape (n, {sizes}channels), not {shape}")
        fan_in = math.prod(window) * shape[-1]
        return _laws((*window, shape[-1], out_chan), fan_in, (out_chan,), W_std, b_std, parameterization)

    return laws


def _laws(weights: Shape, fan_in: int, biases: Shape, W_std: float, b_std: float | None, parameterization: str) -> Laws:
    b = functional.bias(biases, b_std or 0.0, parameterization, b_std is not None)
    return {"W": functional.weight(weights, fan_in, W_std, parameterization), "b": b}


def _check(name: str, dimension_numbers: Any, s: Any) -> None:
    only(name, "s", tuple(s), (1, 1), WIDTHS)
    letters = str(dimension_numbers[0])[1:-1] if dimension_numbers else ""
    if dimension_numbers and tuple(dimension_numbers) != (f"N{letters}C", f"{letters}IO", f"N{letters}C"):
        raise InputError(
            f"{name} has inputs (n, *positions, channels), as the dimension_numbers ('NHWC', 'HWIO', 'NHWC') say, not "
            f"{dimension_numbers!r}"
        )
