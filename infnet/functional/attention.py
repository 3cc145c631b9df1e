"""Self-attention over all positions (Hron et al. 2020, arXiv:2006.10540), with learned positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.functional.convolution import check_channels
from infnet.functional.masks import checked, where_present
from infnet.functional.weights import Weight, bias, weight

MECHANISMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "SOFTMAX": jax.nn.softmax,
    "IDENTITY": lambda scores: scores,
    "RELU": jax.nn.relu,
    "ABS": jnp.abs,
}
POSITIONS = ("NONE", "SUM", "CONCAT")
Decay = Callable[[np.ndarray], Any]


def self_attention(
    x: jax.Array,
    query: jax.Array | None,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    b: jax.Array | None = None,
    *,
    values_of: jax.Array | None = None,
    mechanism: str = "SOFTMAX",
    linear_scaling: bool = True,
    mask: Any = None,
) -> jax.Array:
    """`sum_h zeta(Q_h K_h^T) V_h O_h + b`, with queries Q, keys K and values V of all positions.

    The scores `Q K^T` are divided by the number of channels of keys d (`linear_scaling`), or by its square root. Only
    scores of the same weights divided by d have a limit that is not random, as a softmax needs for a closed form;
    scores of independent queries and keys divided by the square root have one with "IDENTITY", the number of heads
    being infinite.

    Args:
        x: `(n, *positions, channels)`.
        query, key: `(channels, heads, d)`; queries of the weights of keys if None.
        value: `(channels of values_of, heads, channels of values)`.
        out: `(heads, channels of values, features)`.
        b: `(features,)`, or None.
        values_of: what the values are computed of, with the positions of x; None is x.
        mechanism: zeta: "SOFTMAX" over the keys, "IDENTITY", "RELU" or "ABS".
        linear_scaling: see above.
        mask: where there are inputs; the scores of other keys count as minus infinity for a softmax, else as zero.

    Returns:
        `(n, *positions, features)`.

    Raises:
        InputError: an argument is malformed, or shapes do not fit.
    """
    if mechanism not in MECHANISMS:
        raise InputError(f"the attention mechanism must be one of {', '.join(MECHANISMS)}, not {mechanism!r}")
    shape, values_of = x.shape, x if values_of is None else values_of
    check_channels(x, key.shape[0])
    check_channels(values_of, value.shape[0])
    flat, flat_values = (where_present(z, mask).reshape(len(z), -1, z.shape[-1]) for z in (x, values_of))
    keys = jnp.einsum("npc,chd->nphd", flat, key)
    queries = keys if query is None else jnp.einsum("npc,chd->nphd", flat, query)
    d = key.shape[-1]
    scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / (d if linear_scaling else math.sqrt(d))
    if mask is not None:
        there = jnp.broadcast_to(checked(mask, shape), shape[:-1]).reshape(shape[0], 1, 1, -1)
        absent = jnp.finfo(scores.dtype).min if mechanism == "SOFTMAX" else 0
        scores = jnp.where(there, scores, absent)
    values = jnp.einsum("npc,chv->nphv", flat_values, value)
    y = jnp.einsum("nhqk,nkhv->nqhv", MECHANISMS[mechanism](scores), values)
    y = jnp.einsum("nqhv,hvf->nqf", y, out)
    y = y if b is None else y + b
    return y.reshape(*shape[:-1], y.shape[-1])


def with_positions(
    x: jax.Array,
    positions: jax.Array,
    how: str,
    decay: Decay | None = None,
    p_norm: float = 2.0,
    *,
    mask: Any = None,
) -> jax.Array:
    """X with learned positions.

    Args:
        x: `(n, *positions, channels)`.
        positions: parameters, `(*positions, channels of positions)`, with independent elements.
        how: "SUM", added to x, or "CONCAT", beside its channels.
        decay: the covariance of the learned positions i and j as a function of `sum_axes |i - j|^p_norm` (of an array
            of them): they are multiplied by the Cholesky root of its matrix. None leaves them independent.
        p_norm: see decay.
        mask: where there are inputs; there are learned positions only there.

    Raises:
        InputError: `how` is something else, shapes do not fit, or the matrix of `decay` is not positive definite.
    """
    if how not in POSITIONS[1:]:
        raise InputError(f"learned positions are added by 'SUM' or 'CONCAT', not {how!r}")
    sizes = x.shape[1:-1]
    if positions.shape[:-1] != sizes or (how == "SUM" and positions.shape[-1] != x.shape[-1]):
        raise InputError(f"learned positions of shape {positions.shape} do not fit inputs {x.shape}")
    if decay is not None:
        flat = jnp.asarray(_root(sizes, decay, p_norm), positions.dtype) @ positions.reshape(math.prod(sizes), -1)
        positions = flat.reshape(positions.shape)
    there = jnp.broadcast_to(positions, (x.shape[0], *positions.shape)) if how == "CONCAT" else positions[None]
    there = where_present(there, None if mask is None else checked(mask, x.shape))
    return x + there if how == "SUM" else jnp.concatenate([x, there], -1)


def _root(sizes: Sequence[int], decay: Decay, p_norm: float) -> np.ndarray:
    points = np.indices(tuple(sizes)).reshape(len(sizes), -1).T
    distances = (np.abs(points[:, None] - points) ** float(p_norm)).sum(-1)
    covariance = np.asarray(decay(distances), float)
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise InputError("the covariances of positions that `decay` gives are not positive definite") from None


@dataclass(frozen=True)
class Attention:
    """The design of an attention layer with its learned positions; what comes before the values of its parameters.

    Attributes:
        features: channels of the outputs.
        key_features: channels of keys and queries, of each head.
        value_features: channels of values, of each head.
        num_heads: how many heads.
        linear_scaling, mechanism: see `self_attention`.
        position_embedding: "NONE", or how learned positions enter, see `with_positions`.
        position_features: channels of learned positions beside those of x; None is as many as x has.
        position_decay, position_p_norm: see `with_positions`.
        values_with_positions: whether the values see learned positions too, not only queries and keys.
    """

    features: int
    key_features: int
    value_features: int
    num_heads: int = 1
    linear_scaling: bool = True
    mechanism: str = "SOFTMAX"
    position_embedding: str = "NONE"
    position_features: int | None = None
    position_decay: Decay | None = None
    position_p_norm: float = 2.0
    values_with_positions: bool = False

    def weights(
        self,
        shape: Sequence[int],
        *,
        key_std: float = 1.0,
        query_std: float = 1.0,
        value_std: float = 1.0,
        out_std: float = 1.0,
        b_std: float = 0.0,
        position_std: float = 1.0,
        use_bias: bool = True,
        parameterization: str = "ntk",
    ) -> dict[str, Weight | None]:
        """The laws of "query", "key", "value", "out", "bias" and "positions", for inputs of this shape; None if absent.

        Queries and keys of the same weights have the deviation `sqrt(key_std query_std)`.

        Raises:
            InputError: an argument is malformed.
        """
        if len(shape) < 3:
            raise InputError(f"attention needs inputs of shape (n, *positions, channels), not {tuple(shape)}")
        how, channels, given = self.position_embedding, shape[-1], self.position_features
        if how not in POSITIONS:
            raise InputError(f"the position embedding must be one of {', '.join(POSITIONS)}, not {how!r}")
        if given is not None and how != "CONCAT":
            raise InputError("position_features is for learned positions beside the channels, by 'CONCAT'")
        beside = (channels if given is None else given) if how == "CONCAT" else 0

        def law(incoming: Sequence[int], outgoing: Sequence[int], std: float) -> Weight:
            return weight((*incoming, *outgoing), math.prod(incoming), std, parameterization)

        heads, inner = self.num_heads, channels + beside
        query, key = (law((inner,), (heads, self.key_features), std) for std in (query_std, key_std))
        both = law((inner,), (heads, self.key_features), math.sqrt(key_std * query_std))
        values = inner if self.values_with_positions else channels
        positions = (*shape[1:-1], beside or channels)
        return {
            "query": None if self.linear_scaling else query,
            "key": both if self.linear_scaling else key,
            "value": law((values,), (heads, self.value_features), value_std),
            "out": law((heads, self.value_features), (self.features,), out_std),
            "bias": bias((self.features,), b_std, parameterization, use_bias),
            "positions": None if how == "NONE" else weight(positions, 1, position_std, parameterization),
        }

    def __call__(self, x: jax.Array, weights: Mapping[str, Any], *, mask: Any = None) -> jax.Array:
        """The layer, given arrays of the laws of `weights`, multiplied by their factors: see `self_attention`."""
        x = values_of = where_present(x, mask)
        if weights["positions"] is not None:
            decay, p_norm = self.position_decay, self.position_p_norm
            x = with_positions(x, weights["positions"], self.position_embedding, decay, p_norm, mask=mask)
        return self_attention(
            x,
            weights["query"],
            weights["key"],
            weights["value"],
            weights["out"],
            weights["bias"],
            values_of=x if self.values_with_positions else values_of,
            mechanism=self.mechanism,
            linear_scaling=self.linear_scaling,
            mask=mask,
        )
