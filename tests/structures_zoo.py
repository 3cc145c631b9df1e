"""Ordinary Flax models with one structure each: pools, slices, products, normalisation, attention, graphs, masks.

They continue the zoo, with the same weights, and have their references in `references/structures_nt.npz`: the
same networks in stax, by `references/make_neural_tangents_structures.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from references import inputs
from zoo import B_STD, W_STD, erf, settings

TOKENS, IMAGE = (5, 3), (5, 4, 2)
WIDTH = 16


class Model(nn.Module):
    """`body(model, x)`, and a Dense layer to read it out."""

    body: Callable[[Model, Any], jax.Array]
    outputs: int = 4

    @nn.compact
    def __call__(self, x):
        return self.dense(self.body(self, x), self.outputs)

    def dense(self, x, width=WIDTH):
        return nn.Dense(width, **settings(jnp.float64))(x)

    def conv(self, x, window=(3, 2), **options):
        return nn.Conv(WIDTH, window, **settings(jnp.float64, **options))(x)

    def unit_normal(self, name, *shape):
        return self.param(name, nn.initializers.normal(1.0), shape, jnp.float64)

    def of_unit_weights(self, x, features, axes=(-1,)):
        """A linear map of weights N(0, 1), divided by the root of their number."""
        init = nn.initializers.normal(1.0)
        layer = nn.DenseGeneral(features, axes, use_bias=False, kernel_init=init, param_dtype=jnp.float64)
        return layer(x) / np.sqrt(np.prod([x.shape[axis] for axis in axes]))


@dataclass(frozen=True)
class Case:
    """A model and its examples; `both`: in both parameterizations, otherwise as the model is written."""

    body: Callable[[Model, Any], jax.Array]
    shape: tuple[int, ...] = IMAGE
    examples: Callable[[tuple[int, ...]], tuple[Any, Any]] = inputs.few
    both: bool = False


def over_positions(x):
    return x.mean(range(1, x.ndim - 1))


def applied(operation, layer="conv"):
    """`operation` on the ReLUs of a layer; then an MLP at every position, and their mean."""

    def body(net, x):
        return over_positions(nn.relu(net.dense(operation(nn.relu(getattr(net, layer)(x))))))

    return body


def wrapped(x, window, strides=(1, 1)):
    """Padded as on a torus, for as many windows as positions."""
    pads = lax.padtype_to_pads(x.shape[1:3], window, strides, "SAME")
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), "wrap")


def sum_pool(x, window, strides=(1, 1), padding="VALID"):
    return nn.pool(x, 0.0, lax.add, window, strides, padding)


def resized(x, height, width, method, **options):
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), method, **options)


VECTOR = np.array([1.0, -0.5, 2.0, 0.3, -1.0])  # along the height
MATRIX = np.linspace(-1.0, 1.5, 15).reshape(5, 3)
STACK = np.linspace(-1.0, 1.0, 5 * 4 * 3).reshape(5, 4, 3) + 0.1

OPERATIONS = {
    "avg_pool_same": lambda x: nn.avg_pool(x, (3, 2), (2, 1), "SAME"),
    "avg_pool_normalize_edges": lambda x: nn.avg_pool(x, (3, 2), (2, 1), "SAME", count_include_pad=False),
    "avg_pool_circular": lambda x: nn.avg_pool(wrapped(x, (3, 1)), (3, 1), (1, 1)),
    "sum_pool_valid": lambda x: sum_pool(x, (2, 2), (1, 2)),
    "sum_pool_same": lambda x: sum_pool(x, (3, 3), (2, 2), "SAME"),
    "sum_pool_circular": lambda x: sum_pool(wrapped(x, (1, 3), (1, 2)), (1, 3), (1, 2)),
    "global_sum_pool": lambda x: x.sum((1, 2)),
    "flatten_batch_last": lambda x: jnp.moveaxis(x, 0, -1).reshape(-1, len(x)).T,
    "index_slices": lambda x: x[:, 1:4, :3:2],
    "index_negative_steps": lambda x: x[:, ::-1, 3:0:-2],
    "index_integer": lambda x: x[:, -2],
    "index_ellipsis": lambda x: x[:, 1, ..., 2:, :],
    "dot_general_vector": lambda x: jnp.einsum("nhwc,h->nwc", x, VECTOR),
    "dot_general_matrix": lambda x: jnp.einsum("nhwc,hk->nwck", x, MATRIX).swapaxes(2, 3),
    "dot_general_left": lambda x: jnp.einsum("hk,nhwc->knwc", MATRIX, x).swapaxes(0, 1),
    "dot_general_batched": lambda x: jnp.einsum("nhwc,hwk->hnck", x, STACK).transpose(1, 0, 3, 2),
    "dot_general_scalar": lambda x: -1.5 * x,
}
# Neural Tangents' ImageResize takes height for width after an odd number of convolutions, so these follow a Dense.
RESIZES = {
    "resize_bilinear_larger": lambda x: resized(x, 7, 6, "bilinear"),
    "resize_bilinear_smaller": lambda x: resized(x, 3, 2, "bilinear"),
    "resize_bilinear_aliased": lambda x: resized(x, 3, 2, "bilinear", antialias=False),
    "resize_nearest": lambda x: resized(x, 7, 3, "nearest"),
}


def conv_circular(net, x):
    x = nn.relu(net.conv(x, (3, 3), strides=(2, 1), padding="CIRCULAR"))
    return over_positions(nn.relu(net.conv(x, (2, 3), padding="CIRCULAR")))


def transposed_circular(net, x):
    layer = nn.ConvTranspose(WIDTH, (3, 3), (2, 1), "CIRCULAR", **settings(jnp.float64))
    return over_positions(nn.relu(net.conv(nn.relu(layer(x)))))


def over_time(net, x):
    x = nn.relu(net.conv(x, (3,), strides=2))
    return nn.relu(net.conv(x, (2,), padding="VALID")).reshape(len(x), -1)


def product(*activations, layer="dense", finish=over_positions):
    """Branches of different weights, multiplied."""

    def body(net, x):
        x = nn.relu(getattr(net, layer)(x))
        x = functools.reduce(jnp.multiply, [f(getattr(net, layer)(x)) for f in activations])
        return finish(nn.relu(net.dense(x)))

    return body


def concatenated(axis, f=lambda x: x):
    """Branches of different weights, one after the other along `axis`."""

    def body(net, x):
        x = nn.relu(net.conv(x))
        x = jnp.concatenate([f(net.conv(x)), f(net.conv(x, (1, 3)))], axis)
        return over_positions(nn.relu(net.conv(x if f is nn.relu else nn.relu(x))))

    return body


def layer_norm(layer, axes=-1, epsilon=0.05):
    def body(net, x):
        norm = nn.LayerNorm(epsilon, use_bias=False, use_scale=False, reduction_axes=axes, param_dtype=jnp.float64)
        x = getattr(net, layer)(nn.relu(getattr(net, layer)(x)))
        return over_positions(nn.relu(net.dense(nn.relu(norm(x)))))

    return body


def attention(normalise, heads=1, bias=True, value_of=None, root=False):
    """Attention of scores divided by the number of channels, queries and keys of the same weights.

    With `root` they are divided by its square root, and the weights are different ones. Neural Tangents gives all
    weights deviation 1 and has factors W_STD beside them, in either parameterization.
    """

    def layer(net, x):
        shape, values = x.shape, x if value_of is None else value_of
        x, values = (z.reshape(len(z), -1, z.shape[-1]) for z in (x, values))
        keys = net.of_unit_weights(x, (heads, WIDTH))
        queries = net.of_unit_weights(x, (heads, WIDTH)) if root else keys
        scores = W_STD * jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / (np.sqrt(WIDTH) if root else WIDTH)
        y = jnp.einsum("nhqk,nkhd->nqhd", normalise(scores), net.of_unit_weights(values, (heads, WIDTH)))
        y = W_STD * net.of_unit_weights(y, WIDTH, (-2, -1))
        if bias:
            y = y + B_STD * net.unit_normal("attention_bias", WIDTH)
        return y.reshape(*shape[:-1], WIDTH)

    return layer


def same(scores):
    return scores


def attended(normalise, **options):
    def body(net, x):
        x = net.dense(x)
        x = attention(normalise, **options)(net, x)
        return over_positions(nn.relu(net.dense(nn.relu(x))))

    return body


def positions(net, x, std=0.6):
    return std * net.unit_normal("positions", 1, *x.shape[1:])


def decaying_positions(net, x):
    """Positions whose covariance is exp(-distance / 2): independent ones times a root of that matrix."""
    sizes = x.shape[1:-1]
    points = np.stack(np.indices(sizes), -1).reshape(-1, len(sizes))
    distances = np.abs(points[:, None] - points).sum(-1)
    root = np.linalg.cholesky(np.exp(-distances / 2))
    return (root @ positions(net, x).reshape(len(points), -1)).reshape(1, *x.shape[1:])


def with_positions(in_values, normalise=nn.softmax, embedding=positions, **options):
    """Learned positions are added for the scores, and to the values too or not."""

    def body(net, x):
        x = net.dense(x)
        moved = x + embedding(net, x)
        x = attention(normalise, value_of=moved if in_values else x, **options)(net, moved)
        return over_positions(nn.relu(net.dense(nn.relu(x))))

    return body


def with_positions_beside(in_values, normalise=nn.softmax, embedding=positions, **options):
    """Learned positions are further channels."""

    def body(net, x):
        x = net.dense(x)
        beside = jnp.concatenate([x, jnp.broadcast_to(embedding(net, x), x.shape)], -1)
        x = attention(normalise, value_of=beside if in_values else x, **options)(net, beside)
        return over_positions(nn.relu(net.dense(nn.relu(x))))

    return body


def aggregated(spec):
    """Sums over the neighbours of each node, by weights that are data."""

    def body(net, graph):
        x, pattern = graph["nodes"], graph["pattern"]
        for _ in range(2):
            x = nn.relu(net.dense(jnp.einsum(spec, x, pattern)))
        return over_positions(x)

    return body


def segment_sums(net, graph):
    def messages(x, edges):
        return jax.ops.segment_sum(x[edges[:, 0]], edges[:, 1], len(x))

    x = nn.relu(net.dense(graph["nodes"]))
    return over_positions(nn.relu(net.dense(jax.vmap(messages)(x, graph["edges"]))))


def there(x):
    return (x != inputs.MASKED).all(-1, keepdims=True)


def over_present(x, mask):
    axes = tuple(range(1, x.ndim - 1))
    return jnp.where(mask, x, 0).sum(axes) / mask.sum(axes)


def masked_dense(net, x):
    mask = there(x)
    x = nn.relu(net.dense(jnp.where(mask, x, 0)))
    return over_present(nn.relu(net.dense(x)), mask)


def masked_conv(net, x):
    """Positions that are not there are zero before every convolution."""
    mask = there(x)
    for _ in range(2):
        x = nn.relu(net.conv(jnp.where(mask, x, 0)))
    return over_present(x, mask)


def masked_attention(normalise, elsewhere, **options):
    def body(net, x):
        mask = there(x)
        x = net.dense(jnp.where(mask, x, 0))

        def masked(scores):
            return normalise(jnp.where(mask[:, None, None, :, 0], scores, elsewhere))

        x = attention(masked, **options)(net, x)
        return over_present(nn.relu(net.dense(nn.relu(x))), mask)

    return body


def dropped(layer, last_relu):
    """Dropout that keeps 0.7 of the numbers, behind a nonlinearity or behind a layer."""

    def body(net, x):
        x = net.dense(nn.relu(getattr(net, layer)(x)))
        x = nn.Dropout(0.3, deterministic=False)(nn.relu(x) if last_relu else x)
        return over_positions(nn.relu(net.dense(x)))

    return body


def masked_flatten(net, x):
    mask = there(x)
    x = jnp.where(mask, nn.relu(net.conv(jnp.where(mask, x, 0))), 0)
    return x.reshape(len(x), -1)


CASES = {
    **{name: Case(applied(operation)) for name, operation in OPERATIONS.items()},
    **{name: Case(applied(operation, "dense")) for name, operation in RESIZES.items()},
    "conv_circular": Case(conv_circular),
    "conv_transpose_circular": Case(transposed_circular),
    "conv_over_time": Case(over_time, TOKENS),
    "product": Case(product(nn.relu, erf), (7,)),
    "product_of_three": Case(product(nn.relu, erf, lambda x: x), TOKENS),
    "product_after_conv": Case(product(nn.relu, erf, layer="conv"), both=True),
    "product_after_conv_flatten": Case(product(nn.relu, jnp.abs, layer="conv", finish=lambda x: x.reshape(len(x), -1))),
    "concatenated_along_height": Case(concatenated(1)),
    "concatenated_channels_after_conv": Case(concatenated(3, nn.relu)),
    "layer_norm_dense": Case(layer_norm("dense"), (7,)),
    "layer_norm_conv": Case(layer_norm("conv")),
    "layer_norm_conv_all": Case(layer_norm("conv", (1, 2, 3))),
    "layer_norm_conv_width": Case(layer_norm("conv", (2, 3))),
    "attention_softmax": Case(attended(nn.softmax), TOKENS, both=True),
    "attention_identity": Case(attended(same), TOKENS),
    "attention_relu": Case(attended(nn.relu), TOKENS),
    "attention_abs": Case(attended(jnp.abs), TOKENS),
    "attention_heads": Case(attended(nn.softmax, heads=3, bias=False), TOKENS),
    "attention_of_pixels": Case(attended(nn.softmax, heads=2), IMAGE),
    "positions_in_values": Case(with_positions(True), TOKENS, both=True),
    "positions_in_scores_only": Case(with_positions(False), TOKENS, both=True),
    "positions_beside_in_values": Case(with_positions_beside(True), TOKENS),
    "positions_beside_in_scores_only": Case(with_positions_beside(False), TOKENS),
    "positions_decaying": Case(with_positions(True, embedding=decaying_positions), TOKENS),
    "positions_decaying_beside": Case(with_positions_beside(False, embedding=decaying_positions), IMAGE),
    "root_attention": Case(attended(same, heads=3, root=True), TOKENS, both=True),
    "root_attention_of_pixels": Case(attended(same, heads=2, bias=False, root=True), IMAGE),
    "root_positions": Case(with_positions(True, same, heads=3, root=True), TOKENS),
    "root_positions_in_scores_only": Case(with_positions(False, same, decaying_positions, heads=3, root=True), TOKENS),
    "root_positions_beside": Case(with_positions_beside(True, same, decaying_positions, heads=3, root=True), TOKENS),
    "root_positions_beside_in_scores_only": Case(with_positions_beside(False, same, heads=3, root=True), TOKENS),
    "dropout_behind_relu": Case(dropped("dense", last_relu=True), TOKENS, both=True),
    "dropout_behind_conv": Case(dropped("conv", last_relu=True)),
    "dropout_behind_dense": Case(dropped("conv", last_relu=False)),
    "aggregate": Case(aggregated("nic,nij->njc"), TOKENS, inputs.graphs),
    "aggregate_rows": Case(aggregated("nijc,nik->nkjc"), IMAGE, functools.partial(inputs.graphs, axes=(1,))),
    "aggregate_pixels": Case(aggregated("nijc,nijkl->nklc"), IMAGE, functools.partial(inputs.graphs, axes=(1, 2))),
    "aggregate_edges": Case(segment_sums, TOKENS, inputs.edges),
    "masked_dense": Case(masked_dense, TOKENS, inputs.masked),
    "masked_conv": Case(masked_conv, IMAGE, inputs.masked, both=True),
    "masked_attention": Case(masked_attention(nn.softmax, -1e20), TOKENS, inputs.masked),
    "masked_root_attention": Case(masked_attention(same, 0.0, heads=3, root=True), TOKENS, inputs.masked),
    "masked_flatten": Case(masked_flatten, IMAGE, inputs.masked),
}
