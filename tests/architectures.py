"""Well-known architectures as ordinary linen modules, small, and what infnet makes of them.

`python tests/architectures.py` writes `references/architectures.txt`: the steps of every kernel, for review. The test
beside this file compares it with the steps of today.

The modules know nothing of infinite width. Weights are normal, not linen's truncated normal: a first layer that meets
inputs of few channels would not be Gaussian otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import infnet_flax

STEPS = Path(__file__).parent / "references" / "architectures.txt"

he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
options = {"kernel_init": he, "bias_init": nn.initializers.normal(0.2)}
Dense = functools.partial(nn.Dense, **options)
DenseGeneral = functools.partial(nn.DenseGeneral, **options)
Conv = functools.partial(nn.Conv, **options)
ConvTranspose = functools.partial(nn.ConvTranspose, **options)
BatchNorm = functools.partial(nn.BatchNorm, use_running_average=True)


def gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


def pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (2, 2), (2, 2))


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


class Architecture(nn.Module):
    width: int
    outputs: int = 10


# Images


class LeNet(Architecture):
    """LeCun et al. 1998, with ReLU and two fully connected layers."""

    @nn.compact
    def __call__(self, x):
        x = pool(nn.relu(Conv(self.width, (3, 3))(x)))
        x = pool(nn.relu(Conv(2 * self.width, (3, 3))(x)))
        x = nn.relu(Dense(2 * self.width)(flatten(x)))
        return Dense(self.outputs)(x)


class VGG(Architecture):
    """Simonyan & Zisserman 2015, with average pooling."""

    @nn.compact
    def __call__(self, x):
        for channels in (self.width, 2 * self.width):
            for _ in range(2):
                x = nn.relu(Conv(channels, (3, 3))(x))
            x = pool(x)
        for _ in range(2):
            x = nn.relu(Dense(2 * self.width)(flatten(x)))
        return Dense(self.outputs)(x)


class Myrtle5(Architecture):
    """Shankar et al. 2020, arXiv:2003.02237."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(self.width, (3, 3))(x))
        x = pool(nn.relu(Conv(self.width, (3, 3))(x)))
        x = pool(nn.relu(Conv(self.width, (3, 3))(x)))
        return Dense(self.outputs)(flatten(nn.relu(Conv(self.width, (3, 3))(x))))


class WideResNet(Architecture):
    """Zagoruyko & Komodakis 2016: pre-activation blocks, two groups of one block, GroupNorm for BatchNorm."""

    def block(self, x, channels, strides):
        y = nn.relu(nn.GroupNorm(2)(x))
        shortcut = Conv(channels, (1, 1), strides, use_bias=False)(y)
        y = Conv(channels, (3, 3), strides, use_bias=False)(y)
        y = Conv(channels, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(2)(y)))
        return shortcut + y

    @nn.compact
    def __call__(self, x):
        x = Conv(self.width, (3, 3), use_bias=False)(x)
        x = self.block(x, self.width, (1, 1))
        x = self.block(x, 2 * self.width, (2, 2))
        return Dense(self.outputs)(nn.relu(nn.GroupNorm(2)(x)).mean((1, 2)))


class DenseNet(Architecture):
    """Huang et al. 2017: every layer sees all earlier ones."""

    @nn.compact
    def __call__(self, x):
        x = Conv(2 * self.width, (3, 3))(x)
        for _ in range(2):
            y = Conv(self.width, (3, 3))(nn.relu(BatchNorm()(x)))
            x = jnp.concatenate([x, y], axis=-1)
        x = pool(Conv(self.width, (1, 1))(nn.relu(BatchNorm()(x))))
        return Dense(self.outputs)(nn.relu(BatchNorm()(x)).mean((1, 2)))


class ConvNeXt(Architecture):
    """Liu et al. 2022, arXiv:2201.03545: the stem, one block, the head."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(Conv(self.width, (2, 2), (2, 2))(x))
        y = Conv(self.width, (7, 7), feature_group_count=self.width)(x)
        y = gelu(Dense(4 * self.width)(nn.LayerNorm()(y)))
        y = Dense(self.width)(y)
        x = x + self.param("layer_scale", nn.initializers.constant(0.5), (self.width,)) * y
        return Dense(self.outputs)(nn.LayerNorm()(x.mean((1, 2))))


class UNet(Architecture):
    """Ronneberger et al. 2015: down, up, and what was there before, concatenated; an output for every pixel."""

    @nn.compact
    def __call__(self, x):
        skip = nn.relu(Conv(self.width, (3, 3))(x))
        x = nn.relu(Conv(2 * self.width, (3, 3))(pool(skip)))
        x = ConvTranspose(self.width, (2, 2), (2, 2))(x)
        x = nn.relu(Conv(self.width, (3, 3))(jnp.concatenate([skip, x], axis=-1)))
        return Conv(self.outputs, (1, 1))(x)


class Autoencoder(Architecture):
    """Convolutions to a code and back, by image resize."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(self.width, (3, 3), (2, 2))(x))
        n, h, w, _ = x.shape
        code = Dense(self.width)(flatten(x))
        x = nn.relu(Dense(h * w * self.width)(code)).reshape(n, h, w, self.width)
        x = jax.image.resize(x, (n, 2 * h, 2 * w, self.width), "bilinear")
        x = nn.relu(Conv(self.width, (3, 3))(x))
        return Conv(self.outputs, (1, 1))(x)


class VAEDecoder(Architecture):
    """Kingma & Welling 2014, with transposed convolutions: from a latent vector to the logits of every pixel."""

    @nn.compact
    def __call__(self, z):
        x = nn.relu(Dense(2 * 2 * self.width)(z)).reshape(z.shape[0], 2, 2, self.width)
        x = nn.relu(ConvTranspose(self.width, (3, 3), (2, 2))(x))
        return ConvTranspose(self.outputs, (3, 3), (1, 1))(x)


# Vectors


class DeepLinear(Architecture):
    """Saxe et al. 2014: no nonlinearity at all."""

    @nn.compact
    def __call__(self, x):
        linear = functools.partial(Dense, kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "normal"))
        for _ in range(3):
            x = linear(self.width, use_bias=False)(x)
        return linear(self.outputs)(x)


class SwiGLU(Architecture):
    """Shazeer 2020, arXiv:2002.05202: gated blocks with residual connections."""

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width)(x)
        for _ in range(2):
            y = nn.RMSNorm()(x)
            gate, value = Dense(2 * self.width, use_bias=False)(y), Dense(2 * self.width, use_bias=False)(y)
            x = x + Dense(self.width, use_bias=False)(nn.silu(gate) * value)
        return Dense(self.outputs)(nn.RMSNorm()(x))


class SIREN(Architecture):
    """Sitzmann et al. 2020, arXiv:2006.09661; a normal first layer, of the variance of theirs."""

    omega: float = 30.0

    def layer(self, fan_in):
        bound = (6 / fan_in) ** 0.5 / self.omega
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)

    @nn.compact
    def __call__(self, x):
        first = nn.initializers.normal(1 / (3**0.5 * x.shape[-1]))
        x = jnp.sin(self.omega * nn.Dense(self.width, kernel_init=first)(x))
        for _ in range(2):
            x = jnp.sin(self.omega * nn.Dense(self.width, kernel_init=self.layer(self.width))(x))
        return nn.Dense(self.outputs, kernel_init=self.layer(self.width))(x)


class FourierFeatures(Architecture):
    """Tancik et al. 2020, arXiv:2006.10739: fixed random frequencies of coordinates."""

    @nn.compact
    def __call__(self, x):
        frequencies = 0.3 * jax.random.normal(jax.random.key(0), (x.shape[-1], 8), jnp.float32)
        phases = 2 * jnp.pi * x @ frequencies
        x = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
        for _ in range(2):
            x = nn.relu(Dense(self.width)(x))
        return Dense(self.outputs)(x)


class Siamese(Architecture):
    """Two inputs, one encoder, and the comparison of Conneau et al. 2017 (u, v, |u - v|, u * v), arXiv:1705.02364."""

    def setup(self):
        self.encoder = nn.Sequential([Dense(self.width), nn.relu, Dense(self.width)])
        self.classifier = nn.Sequential([Dense(self.width), nn.relu, Dense(self.outputs)])

    def __call__(self, x):
        u, v = self.encoder(x["left"]), self.encoder(x["right"])
        return self.classifier(jnp.concatenate([u, v, jnp.abs(u - v), u * v], axis=-1))


# Sequences and graphs


class GraphConvolution(Architecture):
    """Kipf & Welling 2017, arXiv:1609.02907, pooled over the nodes; every example is a graph."""

    @nn.compact
    def __call__(self, graph):
        adjacency = graph["adjacency"] + jnp.eye(graph["adjacency"].shape[-1])
        root = jax.lax.rsqrt(adjacency.sum(-1))
        adjacency = root[:, :, None] * adjacency * root[:, None, :]
        x = graph["nodes"]
        for _ in range(2):
            x = nn.relu(adjacency @ Dense(self.width)(x))
        return Dense(self.outputs)(x.mean(1))


class Attention(nn.Module):
    """Vaswani et al. 2017, with the scores divided by the size of a head (Yang 2019, arXiv:1910.12478)."""

    width: int
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        size = self.width // self.heads
        query, key, value = (DenseGeneral((self.heads, size), name=n)(x) for n in ("query", "key", "value"))
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / size)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return DenseGeneral(self.width, axis=(-2, -1), name="out")(y)


class Transformer(Architecture):
    """A pre-norm encoder of one layer, with learned positions, averaged over the tokens."""

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width)(x)
        x = x + self.param("positions", nn.initializers.normal(0.5), (x.shape[1], self.width))
        x = x + Attention(self.width)(nn.LayerNorm()(x))
        y = gelu(Dense(2 * self.width)(nn.LayerNorm()(x)))
        x = x + Dense(self.width)(y)
        return Dense(self.outputs)(nn.LayerNorm()(x).mean(1))


class TiedRNN(Architecture):
    """Elman 1990: the same weights at every step; the recurrent ones are orthogonal."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.SimpleCell(self.width, kernel_init=nn.initializers.normal(0.3), param_dtype=x.dtype))(x)
        return Dense(self.outputs)(x[:, -1])


class TextClassifier(Architecture):
    """Embeddings, a convolution over words, the mean over those that are not padding; ReLU MLP."""

    @nn.compact
    def __call__(self, tokens):
        words = (tokens != 0)[..., None]
        x = nn.Embed(6, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
        x = nn.relu(Conv(self.width, (3,))(jnp.where(words, x, 0)))
        x = jnp.sum(x, axis=1, where=words) / jnp.maximum(words.sum(1), 1)
        return Dense(self.outputs)(nn.relu(Dense(self.width)(x)))


# What goes in


def normal(*shape: int) -> Callable[[np.random.RandomState], np.ndarray]:
    """Correlated examples: their kernels are not near zero."""

    def make(rng: np.random.RandomState) -> np.ndarray:
        common = np.random.RandomState(0).standard_normal(shape)
        return np.float32(common + 0.7 * rng.standard_normal((2, *shape)))

    return make


def coordinates(rng: np.random.RandomState) -> np.ndarray:
    """Points of the plane as close to each other as the waves of a SIREN are long."""
    return np.float32(rng.uniform(0.04, 0.1, (2, 2)))


def tokens(rng: np.random.RandomState) -> np.ndarray:
    """Two sentences, the second one shorter."""
    return np.where([[True] * 4, [True] * 3 + [False]], rng.randint(1, 6, (2, 4)), 0)


def graphs(rng: np.random.RandomState) -> dict[str, np.ndarray]:
    adjacency = np.triu(rng.uniform(size=(2, 4, 4)) < 0.5, 1)
    return {"nodes": normal(4, 3)(rng), "adjacency": np.float32(adjacency | adjacency.swapaxes(1, 2))}


def pairs(rng: np.random.RandomState) -> dict[str, np.ndarray]:
    return {"left": normal(4)(rng), "right": normal(4)(rng)}


class Case(NamedTuple):
    """An architecture, its inputs, and the width of the narrower finite networks that it is compared with."""

    module: type[Architecture]
    inputs: Callable[[np.random.RandomState], Any]
    width: int = 16

    def examples(self) -> tuple[Any, Any]:
        return tuple(self.inputs(np.random.RandomState(seed)) for seed in (1, 2))


IMAGE, SEQUENCE = normal(4, 4, 2), normal(4, 3)
CASES = {
    case.module.__name__: case
    for case in (
        Case(LeNet, IMAGE),
        Case(VGG, IMAGE),
        Case(Myrtle5, IMAGE),
        Case(WideResNet, IMAGE),
        Case(DenseNet, IMAGE),
        Case(ConvNeXt, IMAGE, 32),
        Case(UNet, IMAGE),
        Case(Autoencoder, IMAGE),
        Case(VAEDecoder, normal(4)),
        Case(DeepLinear, normal(4), 24),
        Case(SwiGLU, normal(4), 24),
        Case(SIREN, coordinates, 24),
        Case(FourierFeatures, normal(2), 24),
        Case(Siamese, pairs, 24),
        Case(GraphConvolution, graphs, 24),
        Case(Transformer, SEQUENCE, 32),
        Case(TiedRNN, SEQUENCE, 24),
        Case(TextClassifier, tokens, 24),
    )
}


def steps(case: Case) -> str:
    """The steps of the kernel, one a line: module, rule, positions, and whether the result is Gaussian."""
    kernel_fn = infnet_flax.kernel_fn(case.module(case.width), case.examples()[0])
    cells = [
        (row.module, row.rule, row.offsets, "Gaussian" if row.gaussian else "") for row in kernel_fn.explain().rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def main() -> None:
    STEPS.write_text("\n\n".join(f"{name}\n\n{steps(case)}" for name, case in CASES.items()) + "\n")


if __name__ == "__main__":
    main()
