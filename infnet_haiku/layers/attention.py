"""Attention. What it computes stands in `infnet.functional`."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_haiku.layers.parameters import parameters


class GlobalSelfAttention(hk.Module):
    """Self-attention over all positions: `(n, *positions, channels)` to `(n, *positions, features)`.

    Args:
        features: channels of the outputs.
        key_features, value_features: channels of queries and keys, and of values, of each head.
        num_heads: how many heads.
        linear_scaling: whether scores are divided by `key_features` and queries have the weights of the keys, rather
            than divided by its square root with weights of their own.
        mechanism: what is applied to the scores: "SOFTMAX", "IDENTITY", "RELU" or "ABS".
        position_embedding: whether learned positions are added ("SUM"), are further channels ("CONCAT"), or neither
            ("NONE").
        position_features: of learned positions beside the channels; None is as many.
        position_decay, position_p_norm: their covariance, see `infnet.functional.with_positions`; None: independent.
        values_with_positions: whether values see learned positions too, not only queries and keys.
        key_std, query_std, value_std, out_std: the standard deviations of weights times `sqrt(fan_in)`.
        position_std: that of learned positions.
        b_std: that of biases.
        with_bias, parameterization, name: as for `Linear`.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or shapes do not fit.
    """

    def __init__(
        self,
        features: int,
        key_features: int,
        value_features: int,
        num_heads: int = 1,
        linear_scaling: bool = True,
        mechanism: str = "SOFTMAX",
        position_embedding: str = "NONE",
        position_features: int | None = None,
        position_decay: functional.Decay | None = None,
        position_p_norm: float = 2.0,
        values_with_positions: bool = False,
        with_bias: bool = True,
        key_std: float = 1.0,
        query_std: float = 1.0,
        value_std: float = 1.0,
        out_std: float = 1.0,
        position_std: float = 1.0,
        b_std: float = 0.0,
        parameterization: str = "ntk",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.features = features
        self.key_features = key_features
        self.value_features = value_features
        self.num_heads = num_heads
        self.linear_scaling = linear_scaling
        self.mechanism = mechanism
        self.position_embedding = position_embedding
        self.position_features = position_features
        self.position_decay = position_decay
        self.position_p_norm = position_p_norm
        self.values_with_positions = values_with_positions
        self.with_bias = with_bias
        self.key_std = key_std
        self.query_std = query_std
        self.value_std = value_std
        self.out_std = out_std
        self.position_std = position_std
        self.b_std = b_std
        self.parameterization = parameterization

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.attention`."""
        design = functional.Attention(
            self.features,
            self.key_features,
            self.value_features,
            self.num_heads,
            self.linear_scaling,
            self.mechanism,
            self.position_embedding,
            self.position_features,
            self.position_decay,
            self.position_p_norm,
            self.values_with_positions,
        )
        laws = design.weights(
            jnp.shape(x),
            key_std=self.key_std,
            query_std=self.query_std,
            value_std=self.value_std,
            out_std=self.out_std,
            position_std=self.position_std,
            b_std=self.b_std,
            use_bias=self.with_bias,
            parameterization=self.parameterization,
        )
        x, own = parameters(x, **laws)
        return design(x, own, mask=mask)
