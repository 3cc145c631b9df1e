"""Layers with weights: dense layers and convolutions. What they compute stands in `infnet.functional`.

In all of them weights have variance `w_std^2 / fan_in` and biases `b_std^2`, in either parameterization: "ntk", with
parameters N(0, 1) and factors in front of them, or "standard", without factors. See `infnet.functional.weight`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_flax.annotate import annotate
from infnet_flax.layers.parameters import parameters

Sizes = functional.Sizes


@annotate
class Dense(nn.Module):
    """A dense layer, as `nn.Dense`: `(n, *positions, channels)` to `(n, *positions, features)`.

    Attributes:
        features: channels of the outputs.
        use_bias: whether there are biases; with `b_std=0` they start at zero.
        dtype: of the computation; None is that of inputs and parameters.
        param_dtype: of the parameters.
        precision: of products, see `jax.lax.Precision`.
        w_std: the standard deviation of weights times `sqrt(fan_in)`.
        b_std: that of biases.
        parameterization: "ntk" or "standard".

    Raises:
        infnet.errors.InputError: when called, if an argument is out of its range or the mask does not fit.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    w_std: float = 1.0
    b_std: float = 0.0
    parameterization: str = "ntk"

    @nn.compact
    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.dense`."""
        channels = functional.channels(x)
        w = functional.weight((channels, self.features), channels, self.w_std, self.parameterization)
        b = functional.bias((self.features,), self.b_std, self.parameterization, self.use_bias)
        x, own = parameters(self, x, kernel=w, bias=b)
        return functional.dense(x, own["kernel"], own["bias"], mask=mask, precision=self.precision)


@annotate
class Conv(nn.Module):
    """A convolution, as `nn.Conv`: `(n, *positions, channels)` to `(n, *positions, features)`.

    Attributes:
        features: channels of the outputs.
        kernel_size: the window, an integer for each axis of positions.
        strides, kernel_dilation: an integer, or one for each axis.
        padding: "SAME", "VALID", "CIRCULAR", an integer or pairs. With strides, "CIRCULAR" pads as many positions as
            "SAME"; `nn.Conv` always pads the window less 1.
        use_bias, dtype, param_dtype, precision, w_std, b_std, parameterization: as for `Dense`.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or shapes do not fit.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes | None = 1
    padding: functional.Padding = "SAME"
    kernel_dilation: Sizes | None = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    w_std: float = 1.0
    b_std: float = 0.0
    parameterization: str = "ntk"

    @nn.compact
    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.conv`."""
        window, channels = functional.window_of(self.kernel_size), functional.channels(x)
        fan_in = math.prod(window) * channels
        w = functional.weight((*window, channels, self.features), fan_in, self.w_std, self.parameterization)
        b = functional.bias((self.features,), self.b_std, self.parameterization, self.use_bias)
        x, own = parameters(self, x, kernel=w, bias=b)
        return functional.conv(
            x,
            own["kernel"],
            own["bias"],
            strides=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            mask=mask,
            precision=self.precision,
        )


@annotate
class ConvLocal(nn.Module):
    """A locally connected layer, as `nn.ConvLocal`: weights and biases of its own at every position of the outputs.

    Attributes:
        features, kernel_size, strides, padding, kernel_dilation: as for `Conv`.
        use_bias, dtype, param_dtype, precision, w_std, b_std, parameterization: as for `Dense`.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or shapes do not fit.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes | None = 1
    padding: functional.Padding = "SAME"
    kernel_dilation: Sizes | None = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    w_std: float = 1.0
    b_std: float = 0.0
    parameterization: str = "ntk"

    @nn.compact
    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.conv_local`."""
        window, shape = functional.window_of(self.kernel_size), jnp.shape(x)
        shapes = functional.local_shapes(shape, window, self.features, self.strides, self.padding, self.kernel_dilation)
        w = functional.weight(shapes[0], shapes[0][-2], self.w_std, self.parameterization)
        b = functional.bias(shapes[1], self.b_std, self.parameterization, self.use_bias)
        x, own = parameters(self, x, kernel=w, bias=b)
        return functional.conv_local(
            x,
            own["kernel"],
            own["bias"],
            window=window,
            strides=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            mask=mask,
            precision=self.precision,
        )


@annotate
class ConvTranspose(nn.Module):
    """A transposed convolution, as `nn.ConvTranspose`: to as many positions as there are, times strides.

    Attributes:
        features, kernel_size, strides: as for `Conv`.
        padding: "SAME", "VALID" or "CIRCULAR".
        use_bias, dtype, param_dtype, precision, w_std, b_std, parameterization: as for `Dense`.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or shapes do not fit.
    """

    features: int
    kernel_size: Sizes
    strides: Sizes | None = None
    padding: str = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    w_std: float = 1.0
    b_std: float = 0.0
    parameterization: str = "ntk"

    @nn.compact
    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.conv_transpose`."""
        window, channels = functional.window_of(self.kernel_size), functional.channels(x)
        fan_in = math.prod(window) * channels
        w = functional.weight((*window, channels, self.features), fan_in, self.w_std, self.parameterization)
        b = functional.bias((self.features,), self.b_std, self.parameterization, self.use_bias)
        x, own = parameters(self, x, kernel=w, bias=b)
        return functional.conv_transpose(
            x,
            own["kernel"],
            own["bias"],
            strides=self.strides,
            padding=self.padding,
            mask=mask,
            precision=self.precision,
        )
