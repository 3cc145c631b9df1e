"""Ordinary Flax models, written as anyone would write them.

Nothing here knows of infinite width. Each `Case` has a frozen reference in
`references/neural_tangents.npz` (the same network, written a second time in another library by
`references/make_neural_tangents.py`) unless `in_neural_tangents` is false: the Monte Carlo of
`oracles.py` is the only reference then.

Every weight is N(0, W_STD² / fan_in) and every bias N(0, B_STD²) or zero, so that kernels are
exactly those of Gaussian priors. `make(width_multiplier)` scales all hidden widths, never the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

W_STD, B_STD = 1.4, 0.3
VECTOR, SEQUENCE, IMAGE = (7,), (6, 5), (6, 6, 3)

weights = nn.initializers.variance_scaling(W_STD**2, "fan_in", "normal")
biases = nn.initializers.normal(B_STD)


def erf(x: jax.Array) -> jax.Array:
    return jax.scipy.special.erf(x)


def exact_gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


def leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, negative_slope=0.2)


def settings(dtype: Any, **changes: Any) -> dict[str, Any]:
    """Keyword arguments shared by all layers."""
    defaults = {"kernel_init": weights, "bias_init": biases, "dtype": dtype, "param_dtype": dtype}
    return defaults | changes


class MLP(nn.Module):
    """Dense, activation, …, Dense."""

    width: int
    outputs: int
    dtype: Any
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    depth: int = 3
    use_bias: bool = True
    bias_init: Callable[..., jax.Array] = biases

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype, use_bias=self.use_bias, bias_init=self.bias_init)
        for _ in range(self.depth):
            x = self.activation(nn.Dense(self.width, **options)(x))
        return nn.Dense(self.outputs, **options)(x)


class ConvFlatten(nn.Module):
    """Two convolutions, read out at every pixel, after a transposition to `axes`."""

    width: int
    outputs: int
    dtype: Any
    padding: str = "SAME"
    strides: tuple[int, int] = (1, 1)
    axes: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.relu(nn.Conv(self.width, (3, 3), self.strides, self.padding, **options)(x))
        x = nn.relu(nn.Conv(self.width, (2, 2), padding=self.padding, **options)(x))
        if self.axes is not None:
            x = jnp.transpose(x, self.axes)
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(self.outputs, **options)(x)


class LeNet(nn.Module):
    """Convolution and average pooling, twice, then a small MLP."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.relu(nn.Conv(self.width, (3, 3), **options)(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(2 * self.width, (2, 2), padding="VALID", **options)(x))
        x = nn.avg_pool(x, (2, 2), strides=(1, 1))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(2 * self.width, **options)(x))
        return nn.Dense(self.outputs, **options)(x)


class ConvGlobalPool(nn.Module):
    """Two convolutions, averaged over all pixels."""

    width: int
    outputs: int
    dtype: Any
    strides: tuple[int, int] = (1, 1)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype, use_bias=self.use_bias)
        x = nn.relu(nn.Conv(self.width, (3, 3), self.strides, **options)(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), self.strides, **options)(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.outputs, **options)(x)


class Upsampled(nn.Module):
    """Two transposed convolutions, averaged over the larger image."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.relu(nn.ConvTranspose(self.width, (3, 2), (2, 2), **options)(x))
        x = nn.relu(nn.ConvTranspose(self.width, (2, 3), (1, 2), "VALID", **options)(x))
        return nn.Dense(self.outputs, **options)(jnp.mean(x, axis=(1, 2)))


class Local(nn.Module):
    """Two locally connected layers, read out at every pixel."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for strides in ((1, 1), (2, 1)):
            # The initialiser takes the pixels of a local filter for inputs of a neuron.
            init = nn.initializers.normal(W_STD / math.sqrt(3 * 2 * x.shape[-1]))
            x = nn.relu(nn.ConvLocal(self.width, (3, 2), strides, **settings(self.dtype, kernel_init=init))(x))
        return nn.Dense(self.outputs, **settings(self.dtype))(x.reshape((x.shape[0], -1)))


class ResidualMLP(nn.Module):
    """Pre-activation residual blocks: x + Dense(relu(Dense(relu(x))))."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.Dense(self.width, **options)(x)
        for _ in range(2):
            branch = nn.Dense(self.width, **options)(nn.relu(x))
            branch = nn.Dense(self.width, **options)(nn.relu(branch))
            x = x + branch
        return nn.Dense(self.outputs, **options)(nn.relu(x))


class ResidualConv(nn.Module):
    """A small pre-activation ResNet; the second block has strides and a projected shortcut."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.Conv(self.width, (3, 3), **options)(x)
        x = x + nn.Conv(self.width, (3, 3), **options)(nn.relu(x))
        shortcut = nn.Conv(self.width, (1, 1), (2, 2), **options)(x)
        branch = nn.Conv(self.width, (3, 3), (2, 2), **options)(nn.relu(x))
        x = jnp.mean(nn.relu(shortcut + branch), axis=(1, 2))
        return nn.Dense(self.outputs, **options)(x)


class DenseGeneralMLP(nn.Module):
    """DenseGeneral over several axes, to several axes."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.relu(nn.DenseGeneral((4, self.width), axis=(-2, -1), **options)(x))
        return nn.DenseGeneral(self.outputs, axis=(-2, -1), **options)(x)


class PerToken(nn.Module):
    """The same MLP at every token of (batch, time, channel), then the mean over time."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        x = nn.relu(nn.Dense(self.width, **options)(x))
        x = nn.relu(nn.Dense(self.width, **options)(x))
        return nn.Dense(self.outputs, **options)(x.mean(axis=1))


class Concatenated(nn.Module):
    """Two branches of different widths, concatenated on channels."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        narrow = nn.relu(nn.Dense(self.width, **options)(x))
        wide = erf(nn.Dense(2 * self.width, **options)(x))
        x = jnp.concatenate([narrow, wide], axis=-1)
        x = nn.relu(nn.Dense(self.width, **options)(x))
        return nn.Dense(self.outputs, **options)(x)


class SumOfBranches(nn.Module):
    """The sum of two independent branches; without `projection` those are ReLUs, of mean above zero.

    Σ_c relu(u_c) relu(v_c) / C tends to E relu(u) E relu(v), not to 0: a kernel that only adds the
    branches' kernels, as stax.FanInSum does, is wrong then.
    """

    width: int
    outputs: int
    dtype: Any
    projection: bool = True

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        branches = []
        for _ in range(2):
            branch = nn.relu(nn.Dense(self.width, **options)(x))
            branches.append(nn.Dense(self.width, **options)(branch) if self.projection else branch)
        x = branches[0] + branches[1]
        return nn.Dense(self.outputs, **options)(nn.relu(x) if self.projection else x)


class SharedBranch(nn.Module):
    """`h + f(h) + h`: a branch used twice is perfectly correlated with itself (4K, not 2K)."""

    width: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        options = settings(self.dtype)
        h = nn.Dense(self.width, **options)(x)
        h = h + nn.Dense(self.width, **options)(nn.relu(h)) + h
        return nn.Dense(self.outputs, **options)(nn.relu(h))


def sequential(width: int, outputs: int, dtype: Any) -> nn.Module:
    options = settings(dtype)
    layers = [nn.Dense(width, **options), nn.relu, nn.Dense(width, **options), erf]
    return nn.Sequential([*layers, nn.Dense(outputs, **options)])


@dataclass(frozen=True)
class Case:
    """One model of the zoo, the shape of one example, and what is worth knowing about it."""

    name: str
    build: Callable[..., nn.Module]
    shape: tuple[int, ...]
    width: int = 32
    in_neural_tangents: bool = True
    notes: str = ""

    def make(self, width_multiplier: int = 1, dtype: Any = jnp.float64, outputs: int = 4) -> nn.Module:
        """The model with every hidden width multiplied; the kernels do not depend on `outputs`."""
        return self.build(width=self.width * width_multiplier, outputs=outputs, dtype=dtype)


def with_options(build: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    return lambda **arguments: build(**arguments, **options)


ZEROS = nn.initializers.zeros_init()

CASES = [
    Case("mlp_relu", MLP, VECTOR),
    Case("mlp_erf", with_options(MLP, activation=erf), VECTOR),
    Case("mlp_gelu", with_options(MLP, activation=exact_gelu), VECTOR),
    Case("mlp_leaky_relu", with_options(MLP, activation=leaky_relu), VECTOR),
    Case("mlp_abs", with_options(MLP, activation=jnp.abs, depth=2), VECTOR),
    Case(
        "mlp_zero_biases",
        with_options(MLP, bias_init=ZEROS, depth=2),
        VECTOR,
        notes="biases start at 0 but train: 1 each in the as_model NTK, 0 in the ntk one",
    ),
    Case("mlp_no_bias", with_options(MLP, use_bias=False, depth=2), VECTOR),
    Case("conv_same_flatten", ConvFlatten, IMAGE, width=16),
    Case(
        "conv_valid_strided_flatten",
        with_options(ConvFlatten, padding="VALID", strides=(2, 2)),
        (8, 7, 3),
        width=16,
        notes="height and width differ, and VALID drops the last row",
    ),
    Case("lenet", LeNet, (8, 8, 3), width=16, notes="overlapping and non-overlapping avg_pool"),
    Case("conv_global_pool", ConvGlobalPool, IMAGE, width=16),
    Case(
        "conv_same_strided_global_pool",
        with_options(ConvGlobalPool, strides=(2, 2)),
        (8, 7, 3),
        width=16,
        notes="SAME with strides pads an even extent on one side only",
    ),
    Case("conv_no_bias_global_pool", with_options(ConvGlobalPool, use_bias=False), IMAGE, width=16),
    Case("conv_transpose_global_pool", Upsampled, (4, 3, 3), width=16),
    Case("conv_local", Local, (5, 4, 3), width=16),
    Case("residual_mlp", ResidualMLP, VECTOR),
    Case("residual_conv_global_pool", ResidualConv, IMAGE, width=16),
    Case("sequential", sequential, VECTOR),
    Case(
        "dense_general",
        DenseGeneralMLP,
        SEQUENCE,
        width=16,
        notes="equals flatten, Dense(4 * width), relu, Dense",
    ),
    Case("per_token_mean", PerToken, SEQUENCE),
    Case("concatenated", Concatenated, VECTOR, notes="widths 1 : 2, different activations"),
    Case("sum_of_branches", SumOfBranches, VECTOR),
    Case(
        "transposed_flatten",
        with_options(ConvFlatten, axes=(0, 3, 2, 1)),
        IMAGE,
        width=16,
        notes="the kernel of conv_same_flatten",
    ),
    Case(
        "sum_of_relus",
        with_options(SumOfBranches, projection=False),
        VECTOR,
        in_neural_tangents=False,
        notes="FanInSum ignores the means of the summands",
    ),
    Case(
        "shared_branch",
        SharedBranch,
        VECTOR,
        in_neural_tangents=False,
        notes="FanInSum takes h and h for independent",
    ),
]

BY_NAME = {case.name: case for case in CASES}
