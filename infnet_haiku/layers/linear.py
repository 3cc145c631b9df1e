"""Layers with weights: dense layers and convolutions. What they compute stands in `infnet.functional`.

In all of them weights have variance `w_std^2 / fan_in` and biases `b_std^2`, in either parameterization: "ntk", with
parameters N(0, 1) and factors in front of them, or "standard", without factors. See `infnet.functional.weight`.
"""

from __future__ import annotations

import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_haiku.layers.parameters import parameters

Sizes = functional.Sizes


class Linear(hk.Module):
    """A dense layer, as `hk.Linear`: `(n, *positions, channels)` to `(n, *positions, output_size)`.

    Args:
        output_size: channels of the outputs.
        with_bias: whether there are biases; with `b_std=0` they start at zero.
        w_std: the standard deviation of weights times `sqrt(fan_in)`.
        b_std: that of biases.
        parameterization: "ntk" or "standard".
        name: of the module.

    Raises:
        infnet.errors.InputError: when called, if an argument is out of its range or the mask does not fit.
    """

    def __init__(
        self,
        output_size: int,
        with_bias: bool = True,
        *,
        w_std: float = 1.0,
        b_std: float = 0.0,
        parameterization: str = "ntk",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.output_size = output_size
        self.with_bias = with_bias
        self.w_std = w_std
        self.b_std = b_std
        self.parameterization = parameterization

    def __call__(self, x: Any, mask: Any = None, *, precision: Any = None) -> jax.Array:
        """See `infnet.functional.dense`."""
        channels = functional.channels(x)
        w = functional.weight((channels, self.output_size), channels, self.w_std, self.parameterization)
        b = functional.bias((self.output_size,), self.b_std, self.parameterization, self.with_bias)
        x, own = parameters(x, w=w, b=b)
        return functional.dense(x, own["w"], own["b"], mask=mask, precision=precision)


class ConvND(hk.Module):
    """A convolution, as `hk.ConvND`: `(n, *positions, channels)` to `(n, *positions, output_channels)`.

    Args:
        output_channels: channels of the outputs.
        kernel_shape: the window, an integer, or one for each axis of positions.
        stride, rate: an integer, or one for each axis; `rate` is the distance of positions within a window.
        padding: "SAME", "VALID", "CIRCULAR", an integer or pairs.
        with_bias, w_std, b_std, parameterization, name: as for `Linear`.

    Raises:
        infnet.errors.InputError: if an argument is malformed; when called, if shapes do not fit.
    """

    axes: int

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes = 1,
        rate: Sizes = 1,
        padding: functional.Padding = "SAME",
        with_bias: bool = True,
        *,
        w_std: float = 1.0,
        b_std: float = 0.0,
        parameterization: str = "ntk",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.output_channels = output_channels
        self.window = functional.each(kernel_shape, self.axes, "kernel_shape")
        self.stride = stride
        self.rate = rate
        self.padding = padding
        self.with_bias = with_bias
        self.w_std = w_std
        self.b_std = b_std
        self.parameterization = parameterization

    def __call__(self, x: Any, mask: Any = None, *, precision: Any = None) -> jax.Array:
        """See `infnet.functional.conv`."""
        channels = functional.channels(x)
        fan_in = math.prod(self.window) * channels
        w = functional.weight((*self.window, channels, self.output_channels), fan_in, self.w_std, self.parameterization)
        b = functional.bias((self.output_channels,), self.b_std, self.parameterization, self.with_bias)
        x, own = parameters(x, w=w, b=b)
        return functional.conv(
            x,
            own["w"],
            own["b"],
            strides=self.stride,
            padding=self.padding,
            dilation=self.rate,
            mask=mask,
            precision=precision,
        )


class ConvNDLocal(ConvND):
    """A locally connected layer: weights and biases of its own at every position of the outputs.

    Arguments and errors are those of `ConvND`.
    """

    def __call__(self, x: Any, mask: Any = None, *, precision: Any = None) -> jax.Array:
        """See `infnet.functional.conv_local`."""
        shapes = functional.local_shapes(
            jnp.shape(x), self.window, self.output_channels, self.stride, self.padding, self.rate
        )
        w = functional.weight(shapes[0], shapes[0][-2], self.w_std, self.parameterization)
        b = functional.bias(shapes[1], self.b_std, self.parameterization, self.with_bias)
        x, own = parameters(x, w=w, b=b)
        return functional.conv_local(
            x,
            own["w"],
            own["b"],
            window=self.window,
            strides=self.stride,
            padding=self.padding,
            dilation=self.rate,
            mask=mask,
            precision=precision,
        )


class ConvNDTranspose(hk.Module):
    """A transposed convolution, as `hk.ConvNDTranspose`: to as many positions as there are, times strides.

    Args:
        output_channels, kernel_shape, stride: as for `ConvND`.
        padding: "SAME", "VALID" or "CIRCULAR".
        with_bias, w_std, b_std, parameterization, name: as for `Linear`.

    Raises:
        infnet.errors.InputError: if an argument is malformed; when called, if shapes do not fit.
    """

    axes: int

    def __init__(
        self,
        output_channels: int,
        kernel_shape: Sizes,
        stride: Sizes = 1,
        padding: str = "SAME",
        with_bias: bool = True,
        *,
        w_std: float = 1.0,
        b_std: float = 0.0,
        parameterization: str = "ntk",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.output_channels = output_channels
        self.window = functional.each(kernel_shape, self.axes, "kernel_shape")
        self.stride = stride
        self.padding = padding
        self.with_bias = with_bias
        self.w_std = w_std
        self.b_std = b_std
        self.parameterization = parameterization

    def __call__(self, x: Any, mask: Any = None, *, precision: Any = None) -> jax.Array:
        """See `infnet.functional.conv_transpose`; "w" has the outputs' channels before the inputs', as in Haiku."""
        channels = functional.channels(x)
        fan_in = math.prod(self.window) * channels
        w = functional.weight((*self.window, self.output_channels, channels), fan_in, self.w_std, self.parameterization)
        b = functional.bias((self.output_channels,), self.b_std, self.parameterization, self.with_bias)
        x, own = parameters(x, w=w, b=b)
        return functional.conv_transpose(
            x,
            jnp.swapaxes(own["w"], -1, -2),
            own["b"],
            strides=self.stride,
            padding=self.padding,
            mask=mask,
            precision=precision,
        )


class Conv1D(ConvND):
    """A convolution, `(n, length, channels)`; see `ConvND`."""

    axes = 1


class Conv2D(ConvND):
    """A convolution, `(n, height, width, channels)`; see `ConvND`."""

    axes = 2


class Conv3D(ConvND):
    """A convolution, `(n, depth, height, width, channels)`; see `ConvND`."""

    axes = 3


class Conv1DLocal(ConvNDLocal):
    """A locally connected layer, `(n, length, channels)`; see `ConvNDLocal`."""

    axes = 1


class Conv2DLocal(ConvNDLocal):
    """A locally connected layer, `(n, height, width, channels)`; see `ConvNDLocal`."""

    axes = 2


class Conv3DLocal(ConvNDLocal):
    """A locally connected layer, `(n, depth, height, width, channels)`; see `ConvNDLocal`."""

    axes = 3


class Conv1DTranspose(ConvNDTranspose):
    """A transposed convolution, `(n, length, channels)`; see `ConvNDTranspose`."""

    axes = 1


class Conv2DTranspose(ConvNDTranspose):
    """A transposed convolution, `(n, height, width, channels)`; see `ConvNDTranspose`."""

    axes = 2


class Conv3DTranspose(ConvNDTranspose):
    """A transposed convolution, `(n, depth, height, width, channels)`; see `ConvNDTranspose`."""

    axes = 3
