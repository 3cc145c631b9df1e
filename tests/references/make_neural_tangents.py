"""Freezes the kernels of the zoo as Neural Tangents 0.6.5 computes them.

Run it in an environment of its own (neural-tangents 0.6.5, jax 0.4.25, numpy < 2):

    python tests/references/make_neural_tangents.py

It writes `neural_tangents.npz` beside itself: float64 arrays, `case/parameterization/moment/which`:

    case              a name in `tests/zoo.py`; here the same network is written again, in stax
    parameterization  "standard" (infnet's "as_model": gradients of the model's parameters, at the
                      real widths), "standard_x4" (the same, hidden widths four times larger), "ntk"
    moment            "nngp" or "ntk"
    which             "x1x2", shape (4, 3), or "x1x1", shape (4, 4); inputs from `inputs.py`

The NTK in "standard" parameterization depends on the widths: they repeat those of the zoo. A bias
that starts at zero but trains is `b_std=0.`; no bias is `b_std=None`. On the diagonal of x1x1 Neural
Tangents takes the square root of a rounding error: expect agreement to 1e-7 there, 1e-12 elsewhere.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import inputs
import jax
import numpy as np
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")

W_STD, B_STD = 1.4, 0.3
VECTOR, SEQUENCE, IMAGE = (7,), (6, 5), (6, 6, 3)
OUTPUTS = 4


class Layers:
    """stax's layers with the parameterization, the deviations and the width multiplier filled in."""

    def __init__(self, parameterization: str, multiplier: int, b_std: float | None = B_STD):
        options = {"parameterization": parameterization, "W_std": W_STD, "b_std": b_std}
        self._dense = partial(stax.Dense, **options)
        self._conv = partial(stax.Conv, **options)
        self._transposed = partial(stax.ConvTranspose, **options)
        self._local = partial(stax.ConvLocal, **options)
        self._multiplier = multiplier

    def dense(self, width, **axes):
        return self._dense(width * self._multiplier, **axes)

    def conv(self, width, window, strides=(1, 1), padding="SAME"):
        return self._conv(width * self._multiplier, window, strides, padding)

    def transposed(self, width, window, strides, padding="SAME"):
        return self._transposed(width * self._multiplier, window, strides, padding)

    def local(self, width, window, strides):
        return self._local(width * self._multiplier, window, strides, "SAME")

    def readout(self):
        return self._dense(OUTPUTS)


def mlp(layers, activation, depth=3, width=32):
    hidden = [layer for _ in range(depth) for layer in (layers.dense(width), activation)]
    return stax.serial(*hidden, layers.readout())


def conv_flatten(layers, padding="SAME", strides=(1, 1)):
    return stax.serial(
        layers.conv(16, (3, 3), strides, padding),
        stax.Relu(),
        layers.conv(16, (2, 2), padding=padding),
        stax.Relu(),
        stax.Flatten(),
        layers.readout(),
    )


def lenet(layers):
    return stax.serial(
        layers.conv(16, (3, 3)),
        stax.Relu(),
        stax.AvgPool((2, 2), strides=(2, 2)),
        layers.conv(32, (2, 2), padding="VALID"),
        stax.Relu(),
        stax.AvgPool((2, 2), strides=(1, 1)),
        stax.Flatten(),
        layers.dense(32),
        stax.Relu(),
        layers.readout(),
    )


def conv_global_pool(layers, strides=(1, 1)):
    return stax.serial(
        layers.conv(16, (3, 3), strides),
        stax.Relu(),
        layers.conv(16, (3, 3), strides),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def conv_transpose(layers):
    return stax.serial(
        layers.transposed(16, (3, 2), (2, 2)),
        stax.Relu(),
        layers.transposed(16, (2, 3), (1, 2), "VALID"),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def conv_local(layers):
    return stax.serial(
        layers.local(16, (3, 2), (1, 1)),
        stax.Relu(),
        layers.local(16, (3, 2), (2, 1)),
        stax.Relu(),
        stax.Flatten(),
        layers.readout(),
    )


def add(*branches):
    return stax.serial(stax.FanOut(len(branches)), stax.parallel(*branches), stax.FanInSum())


def residual_mlp(layers):
    def block():
        branch = stax.serial(stax.Relu(), layers.dense(32), stax.Relu(), layers.dense(32))
        return add(stax.Identity(), branch)

    return stax.serial(layers.dense(32), block(), block(), stax.Relu(), layers.readout())


def residual_conv_global_pool(layers):
    first = add(stax.Identity(), stax.serial(stax.Relu(), layers.conv(16, (3, 3))))
    shortcut = layers.conv(16, (1, 1), (2, 2))
    second = add(shortcut, stax.serial(stax.Relu(), layers.conv(16, (3, 3), (2, 2))))
    return stax.serial(layers.conv(16, (3, 3)), first, second, stax.Relu(), stax.GlobalAvgPool(), layers.readout())


def sequential(layers):
    return stax.serial(layers.dense(32), stax.Relu(), layers.dense(32), stax.Erf(), layers.readout())


def dense_general(layers):
    return stax.serial(stax.Flatten(), layers.dense(4 * 16), stax.Relu(), layers.readout())


def per_token_mean(layers):
    hidden = [layers.dense(32), stax.Relu(), layers.dense(32), stax.Relu()]
    return stax.serial(*hidden, stax.GlobalAvgPool(), layers.readout())


def concatenated(layers):
    narrow = stax.serial(layers.dense(32), stax.Relu())
    wide = stax.serial(layers.dense(64), stax.Erf())
    return stax.serial(
        stax.FanOut(2),
        stax.parallel(narrow, wide),
        stax.FanInConcat(-1),
        layers.dense(32),
        stax.Relu(),
        layers.readout(),
    )


def sum_of_branches(layers):
    def branch():
        return stax.serial(layers.dense(32), stax.Relu(), layers.dense(32))

    return stax.serial(add(branch(), branch()), stax.Relu(), layers.readout())


def networks(*convention):
    """`name -> (stax network, shape of one example)`."""
    layers = Layers(*convention)
    zero_biases, without_bias = Layers(*convention, b_std=0.0), Layers(*convention, b_std=None)
    return {
        "mlp_relu": (mlp(layers, stax.Relu()), VECTOR),
        "mlp_erf": (mlp(layers, stax.Erf()), VECTOR),
        "mlp_gelu": (mlp(layers, stax.Gelu()), VECTOR),
        "mlp_leaky_relu": (mlp(layers, stax.LeakyRelu(0.2)), VECTOR),
        "mlp_abs": (mlp(layers, stax.Abs(), depth=2), VECTOR),
        "mlp_zero_biases": (
            mlp(zero_biases, stax.Relu(), depth=2),
            VECTOR,
        ),
        "mlp_no_bias": (mlp(without_bias, stax.Relu(), depth=2), VECTOR),
        "conv_same_flatten": (conv_flatten(layers), IMAGE),
        "conv_valid_strided_flatten": (conv_flatten(layers, "VALID", (2, 2)), (8, 7, 3)),
        "lenet": (lenet(layers), (8, 8, 3)),
        "conv_global_pool": (conv_global_pool(layers), IMAGE),
        "conv_same_strided_global_pool": (conv_global_pool(layers, (2, 2)), (8, 7, 3)),
        "conv_no_bias_global_pool": (conv_global_pool(without_bias), IMAGE),
        "conv_transpose_global_pool": (conv_transpose(layers), (4, 3, 3)),
        "conv_local": (conv_local(layers), (5, 4, 3)),
        "residual_mlp": (residual_mlp(layers), VECTOR),
        "residual_conv_global_pool": (residual_conv_global_pool(layers), IMAGE),
        "sequential": (sequential(layers), VECTOR),
        "dense_general": (dense_general(layers), SEQUENCE),
        "per_token_mean": (per_token_mean(layers), SEQUENCE),
        "concatenated": (concatenated(layers), VECTOR),
        "sum_of_branches": (sum_of_branches(layers), VECTOR),
        "transposed_flatten": (conv_flatten(layers), IMAGE),
    }


def freeze(network, examples):
    """`{"nngp/x1x2": array, ...}` of one network; `examples` are `which -> (x1, x2, options)`."""
    (_, _, kernel_fn), frozen = network, {}
    for which, (x1, x2, options) in examples.items():
        kernel = kernel_fn(x1, x2, ("nngp", "ntk"), **options)
        for moment in ("nngp", "ntk"):
            value = np.asarray(getattr(kernel, moment))
            assert value.dtype == np.float64
            assert np.all(np.isfinite(value))
            frozen[f"{moment}/{which}"] = value
    return frozen


def write(name, networks, conventions):
    """Writes the kernels of `networks(*convention) -> {name: (network, examples)}` beside this file."""
    arrays = {}
    for convention, arguments in conventions.items():
        for network_name, (network, examples) in networks(*arguments).items():
            for key, value in freeze(network, examples).items():
                arrays[f"{network_name}/{convention}/{key}"] = value
    path = Path(__file__).with_name(name)
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB")


def with_examples(network, shape):
    x1, x2 = inputs.make(shape)
    return network, {"x1x2": (x1, x2, {}), "x1x1": (x1, None, {})}


def main():
    def with_inputs(*convention):
        return {name: with_examples(*network) for name, network in networks(*convention).items()}

    conventions = {"standard": ("standard", 1), "standard_x4": ("standard", 4), "ntk": ("ntk", 1)}
    write("neural_tangents.npz", with_inputs, conventions)


if __name__ == "__main__":
    main()
