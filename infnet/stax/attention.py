"""Attention. What it computes stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from infnet import functional
from infnet.stax.axes import usual_axes
from infnet.stax.layer import Laws, Layer, Shape, layer


class AttentionParameters(NamedTuple):
    """Weights, biases and learned positions, each None if there are none."""

    query: Any
    key: Any
    value: Any
    out: Any
    bias: Any
    positions: Any


def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: float = 1.0,
    W_value_std: float = 1.0,
    W_query_std: float = 1.0,
    W_out_std: float = 1.0,
    b_std: float | None = None,
    attention_mechanism: str = "SOFTMAX",
    pos_emb_type: str = "NONE",
    pos_emb_p_norm: float = 2.0,
    pos_emb_decay_fn: Callable[[Any], Any] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: float = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Self-attention over all positions, parameters N(0, 1) (Hron et al. 2020, arXiv:2006.10540).

    Args:
        n_chan_out, n_chan_key, n_chan_val: channels of outputs, of keys and queries, and of values, of each head.
        n_heads: how many heads.
        linear_scaling: whether scores are divided by `n_chan_key` and queries have the weights of the keys, rather than
            divided by its square root with weights of their own.
        W_key_std, W_value_std, W_query_std, W_out_std, b_std: as of `Dense`.
        attention_mechanism: "SOFTMAX", "IDENTITY", "RELU" or "ABS", applied to the scores.
        pos_emb_type: whether learned positions are added ("SUM"), are further channels ("CONCAT"), or neither ("NONE").
        pos_emb_p_norm, pos_emb_decay_fn: their covariance is the function of `sum |i - j|^p`; None: independent.
        n_chan_pos_emb: channels of learned positions beside those of the inputs.
        W_pos_emb_std: their standard deviation.
        val_pos_emb: whether values see learned positions too, not only queries and keys.
        batch_axis, channel_axis: 0 and -1 only.

    Raises:
        InputError: other axes; later, if another argument is malformed.
    """
    usual_axes("GlobalSelfAttention", batch_axis, channel_axis)
    design = functional.Attention(
        n_chan_out,
        n_chan_key,
        n_chan_val,
        n_heads,
        linear_scaling,
        attention_mechanism,
        pos_emb_type,
        n_chan_pos_emb,
        None if pos_emb_decay_fn is None else _constant(pos_emb_decay_fn),
        pos_emb_p_norm,
        val_pos_emb,
    )

    def laws(shape: Shape) -> Laws:
        return design.weights(
            shape,
            key_std=W_key_std,
            query_std=W_query_std,
            value_std=W_value_std,
            out_std=W_out_std,
            b_std=b_std or 0.0,
            position_std=W_pos_emb_std,
            use_bias=b_std is not None,
        )

    def forward(params: Any, x: jax.Array, mask: Any, **_: Any) -> jax.Array:
        return design(x, params._asdict(), mask=mask)

    return layer("GlobalSelfAttention", forward, laws, kind=AttentionParameters)


def _constant(decay: Callable[[Any], Any]) -> functional.Decay:
    """Computed when the layer is traced, also if it is written in jnp."""

    def values(distances: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval():
            return np.asarray(decay(distances))

    return values
