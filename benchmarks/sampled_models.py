"""Models with softmax attention, as people write them, whose kernels are sampled: their heads grow with the width."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class DecoderBlock(nn.Module):
    """Causal attention, its queries, keys and values out of one layer, and SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x (n, tokens, channels)`, and the result too."""
        n, t, c = x.shape
        projected = nn.Dense(3 * c, use_bias=False)(nn.RMSNorm()(x)).reshape(n, t, 3, self.heads, -1)
        query, key, value = projected.transpose(2, 0, 1, 3, 4)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / jnp.sqrt(query.shape[-1])
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
        y = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value).reshape(n, t, c)
        x = x + nn.Dense(c, use_bias=False)(y)
        h = nn.RMSNorm()(x)
        gated = nn.silu(nn.Dense(2 * c, use_bias=False)(h)) * nn.Dense(2 * c, use_bias=False)(h)
        return x + nn.Dense(c, use_bias=False)(gated)


class Decoder(nn.Module):
    """A language model of one block, with one output for the last token."""

    width: int
    heads: int = 8

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`tokens (n, tokens)`, numbers below 20, to `(n, 1)`."""
        x = nn.Embed(20, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
        x = DecoderBlock(self.width, self.heads)(x)
        return nn.Dense(1, use_bias=False)(nn.RMSNorm()(x)[:, -1])


class ViT(nn.Module):
    """A vision transformer of one block (Dosovitskiy et al. 2021, arXiv:2010.11929), patches of 4 x 4."""

    width: int
    heads: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x (n, height, width, channels)` to `(n, 1)`."""
        x = nn.Conv(self.width, (4, 4), (4, 4), kernel_init=NORMAL)(x).reshape(len(x), -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.2), (1, *x.shape[1:]))
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(1)(nn.LayerNorm()(x).mean(1))


def sentences() -> Any:
    """Two of four tokens, of which they share some."""
    return np.array([[3, 7, 1, 4], [7, 7, 2, 4]], np.int32)


def images() -> Any:
    """Two of 8 x 8 pixels."""
    return np.random.RandomState(0).randn(2, 8, 8, 3).astype(np.float32)


MODELS = {"Decoder": (Decoder, sentences), "ViT": (ViT, images)}
