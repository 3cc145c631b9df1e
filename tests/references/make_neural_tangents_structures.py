"""Freezes the kernels of `tests/structures_zoo.py` as Neural Tangents 0.6.5 computes them.

Run it as `make_neural_tangents.py`, in the same environment:

    python tests/references/make_neural_tangents_structures.py

It writes `structures_nt.npz` beside itself: arrays of shape (3, 2), named as those of `neural_tangents.npz`, for
the conventions "standard" and "ntk". The layers of the same name repeat those of `structures_zoo.py`.
"""

from __future__ import annotations

import warnings

import inputs
import numpy as np
from make_neural_tangents import B_STD, W_STD, Layers, write
from neural_tangents import stax

warnings.filterwarnings("ignore", message="Negative indices in `pattern`")

TOKENS, IMAGE = (5, 3), (5, 4, 2)
WIDTH = 16
LAST, FIRST = {"batch_axis": 0, "channel_axis": -1}, {"batch_axis": 1, "channel_axis": -1}

VECTOR = np.array([1.0, -0.5, 2.0, 0.3, -1.0])
MATRIX = np.linspace(-1.0, 1.5, 15).reshape(5, 3)
STACK = np.linspace(-1.0, 1.0, 5 * 4 * 3).reshape(5, 4, 3) + 0.1


def of_height(right):
    return (((1,), (0,)), ((), ())) if right else (((0,), (1,)), ((), ()))


def resized(height, width, method, antialias=True):
    return stax.ImageResize((-1, height, width, -1), method, antialias)


# name -> (layer, axes of its result)
OPERATIONS = {
    "avg_pool_same": (stax.AvgPool((3, 2), (2, 1), "SAME"), LAST),
    "avg_pool_normalize_edges": (stax.AvgPool((3, 2), (2, 1), "SAME", normalize_edges=True), LAST),
    "avg_pool_circular": (stax.AvgPool((3, 1), padding="CIRCULAR"), LAST),
    "sum_pool_valid": (stax.SumPool((2, 2), (1, 2)), LAST),
    "sum_pool_same": (stax.SumPool((3, 3), (2, 2), "SAME"), LAST),
    "sum_pool_circular": (stax.SumPool((1, 3), (1, 2), "CIRCULAR"), LAST),
    "global_sum_pool": (stax.GlobalSumPool(), LAST),
    "flatten_batch_last": (stax.Flatten(batch_axis_out=1), {"batch_axis": 1, "channel_axis": 0}),
    "index_slices": (stax.Index(stax.Slice[:, 1:4, :3:2]), LAST),
    "index_negative_steps": (stax.Index(stax.Slice[:, ::-1, 3:0:-2]), LAST),
    "index_integer": (stax.Index(stax.Slice[:, -2]), LAST),
    "index_ellipsis": (stax.Index(stax.Slice[:, 1, ..., 2:, :]), LAST),
    "dot_general_vector": (stax.DotGeneral(rhs=VECTOR, dimension_numbers=of_height(right=True)), LAST),
    "dot_general_matrix": (
        stax.DotGeneral(rhs=MATRIX, dimension_numbers=of_height(right=True)),
        {"batch_axis": 0, "channel_axis": 2},
    ),
    "dot_general_left": (stax.DotGeneral(lhs=MATRIX.T, dimension_numbers=(((1,), (1,)), ((), ()))), FIRST),
    "dot_general_batched": (
        stax.DotGeneral(rhs=STACK, dimension_numbers=(((2,), (1,)), ((1,), (0,)))),
        {"batch_axis": 1, "channel_axis": 2},
    ),
    "dot_general_scalar": (stax.DotGeneral(rhs=-1.5), LAST),
}
# After an odd number of convolutions ImageResize takes height for width in `kernel_fn`, not in `apply_fn`: these
# follow a Dense layer.
RESIZES = {
    "resize_bilinear_larger": resized(7, 6, "bilinear"),
    "resize_bilinear_smaller": resized(3, 2, "bilinear"),
    "resize_bilinear_aliased": resized(3, 2, "bilinear", antialias=False),
    "resize_nearest": resized(7, 3, "nearest"),
}


def applied(layers, first, operation, axes=LAST):
    """The hidden Dense layer keeps the place of the channel axis; the mean removes positions only."""
    batch = int(axes["batch_axis"] > axes["channel_axis"] % 4)
    return stax.serial(
        first,
        stax.Relu(),
        operation,
        layers.dense(WIDTH, **axes),
        stax.Relu(),
        stax.GlobalAvgPool(**axes),
        layers.dense(4, batch_axis=batch, channel_axis=1 - batch),
    )


def conv_circular(layers):
    return stax.serial(
        layers.conv(WIDTH, (3, 3), (2, 1), "CIRCULAR"),
        stax.Relu(),
        layers.conv(WIDTH, (2, 3), padding="CIRCULAR"),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def transposed_circular(layers):
    return stax.serial(
        layers.transposed(WIDTH, (3, 3), (2, 1), "CIRCULAR"),
        stax.Relu(),
        layers.conv(WIDTH, (3, 2)),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def over_time(layers):
    first, second = layers.conv(WIDTH, (3,), (2,)), layers.conv(WIDTH, (2,), (1,), "VALID")
    return stax.serial(first, stax.Relu(), second, stax.Relu(), stax.Flatten(), layers.readout())


def fan(join, *branches):
    return stax.serial(stax.FanOut(len(branches)), stax.parallel(*branches), join)


def product(layers, *activations, conv=False, finish=None):
    def layer():
        return layers.conv(WIDTH, (3, 2)) if conv else layers.dense(WIDTH)

    return stax.serial(
        layer(),
        stax.Relu(),
        fan(stax.FanInProd(), *[stax.serial(layer(), f) for f in activations]),
        layers.dense(WIDTH),
        stax.Relu(),
        stax.GlobalAvgPool() if finish is None else finish,
        layers.readout(),
    )


def concatenated(layers, axis, nonlinear_branches=False):
    f = stax.Relu() if nonlinear_branches else stax.Identity()
    branches = [stax.serial(layers.conv(WIDTH, window), f) for window in ((3, 2), (1, 3))]
    return stax.serial(
        layers.conv(WIDTH, (3, 2)),
        stax.Relu(),
        fan(stax.FanInConcat(axis), *branches),
        stax.Identity() if nonlinear_branches else stax.Relu(),
        layers.conv(WIDTH, (3, 2)),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def layer_norm(layers, axis=-1, conv=False):
    def layer():
        return layers.conv(WIDTH, (3, 2)) if conv else layers.dense(WIDTH)

    return stax.serial(
        layer(),
        stax.Relu(),
        layer(),
        stax.LayerNorm(axis, eps=0.05),
        stax.Relu(),
        layers.dense(WIDTH),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def attention(layers, mechanism="SOFTMAX", heads=1, b_std=B_STD, root=False, **positions):
    """With W_STD in the place of the deviations of keys times queries, and of values times outputs."""
    options = {"W_key_std": W_STD, "W_out_std": W_STD, "b_std": b_std, "attention_mechanism": mechanism}
    layer = stax.GlobalSelfAttention(WIDTH, WIDTH, WIDTH, heads, linear_scaling=not root, **options, **positions)
    return stax.serial(
        layers.dense(WIDTH),
        layer,
        stax.Relu(),
        layers.dense(WIDTH),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def with_positions(layers, kind, in_values, decaying=False, **options):
    decay = {"pos_emb_decay_fn": lambda d: np.exp(-d / 2), "pos_emb_p_norm": 1} if decaying else {}
    return attention(layers, pos_emb_type=kind, W_pos_emb_std=0.6, val_pos_emb=in_values, **decay, **options)


def dropped(layers, first, last_relu):
    """The rate of Neural Tangents' dropout is that of what is kept."""
    hidden = [first, stax.Relu(), layers.dense(WIDTH), stax.Relu() if last_relu else stax.Identity()]
    readout = [layers.dense(WIDTH), stax.Relu(), stax.GlobalAvgPool(), layers.readout()]
    return stax.serial(*hidden, stax.Dropout(0.7, mode="train"), *readout)


def aggregated(layers, axes, **options):
    def step():
        return stax.serial(stax.Aggregate(axes, **options), layers.dense(WIDTH), stax.Relu())

    return stax.serial(step(), step(), stax.GlobalAvgPool(), layers.readout())


def over_edges(layers):
    return stax.serial(
        layers.dense(WIDTH),
        stax.Relu(),
        stax.Aggregate(1, implementation="SPARSE"),
        layers.dense(WIDTH),
        stax.Relu(),
        stax.GlobalAvgPool(),
        layers.readout(),
    )


def masked_dense(layers):
    hidden = [layers.dense(WIDTH), stax.Relu(), layers.dense(WIDTH), stax.Relu()]
    return stax.serial(*hidden, stax.GlobalAvgPool(), layers.readout())


def masked_conv(layers):
    hidden = [layers.conv(WIDTH, (3, 2)), stax.Relu(), layers.conv(WIDTH, (3, 2)), stax.Relu()]
    return stax.serial(*hidden, stax.GlobalAvgPool(), layers.readout())


def masked_flatten(layers):
    return stax.serial(layers.conv(WIDTH, (3, 2)), stax.Relu(), stax.Flatten(), layers.readout())


def few(shape):
    return {"x1x2": (*inputs.few(shape), {})}


def masked(shape):
    return {"x1x2": (*inputs.masked(shape), {"mask_constant": inputs.MASKED})}


def graphs(pair, pattern="pattern"):
    one, two = pair
    return {"x1x2": (one["nodes"], two["nodes"], {"pattern": (one[pattern], two[pattern])})}


def branching(layers):
    return {
        "product": (product(layers, stax.Relu(), stax.Erf()), few((7,))),
        "product_of_three": (product(layers, stax.Relu(), stax.Erf(), stax.Identity()), few(TOKENS)),
        "product_after_conv": (product(layers, stax.Relu(), stax.Erf(), conv=True), few(IMAGE)),
        "product_after_conv_flatten": (
            product(layers, stax.Relu(), stax.Abs(), conv=True, finish=stax.Flatten()),
            few(IMAGE),
        ),
        "concatenated_along_height": (concatenated(layers, 1), few(IMAGE)),
        "concatenated_channels_after_conv": (concatenated(layers, 3, nonlinear_branches=True), few(IMAGE)),
    }


def attending(layers):
    root = {"mechanism": "IDENTITY", "heads": 3, "root": True}
    return {
        "attention_softmax": (attention(layers), few(TOKENS)),
        "attention_identity": (attention(layers, "IDENTITY"), few(TOKENS)),
        "attention_relu": (attention(layers, "RELU"), few(TOKENS)),
        "attention_abs": (attention(layers, "ABS"), few(TOKENS)),
        "attention_heads": (attention(layers, heads=3, b_std=None), few(TOKENS)),
        "attention_of_pixels": (attention(layers, heads=2), few(IMAGE)),
        "positions_in_values": (with_positions(layers, "SUM", True), few(TOKENS)),
        "positions_in_scores_only": (with_positions(layers, "SUM", False), few(TOKENS)),
        "positions_beside_in_values": (with_positions(layers, "CONCAT", True), few(TOKENS)),
        "positions_beside_in_scores_only": (with_positions(layers, "CONCAT", False), few(TOKENS)),
        "masked_attention": (attention(layers), masked(TOKENS)),
        "masked_root_attention": (attention(layers, **root), masked(TOKENS)),
        "positions_decaying": (with_positions(layers, "SUM", True, True), few(TOKENS)),
        "positions_decaying_beside": (with_positions(layers, "CONCAT", False, True), few(IMAGE)),
        "root_attention": (attention(layers, **root), few(TOKENS)),
        "root_attention_of_pixels": (attention(layers, "IDENTITY", 2, None, root=True), few(IMAGE)),
        "root_positions": (with_positions(layers, "SUM", True, **root), few(TOKENS)),
        "root_positions_in_scores_only": (with_positions(layers, "SUM", False, True, **root), few(TOKENS)),
        "root_positions_beside": (with_positions(layers, "CONCAT", True, True, **root), few(TOKENS)),
        "root_positions_beside_in_scores_only": (with_positions(layers, "CONCAT", False, **root), few(TOKENS)),
    }


def networks(parameterization):
    """`name -> (stax network, examples)`."""
    layers = Layers(parameterization, 1)
    return {
        **{
            name: (applied(layers, layers.conv(WIDTH, (3, 2)), *operation), few(IMAGE))
            for name, operation in OPERATIONS.items()
        },
        **{name: (applied(layers, layers.dense(WIDTH), operation), few(IMAGE)) for name, operation in RESIZES.items()},
        "conv_circular": (conv_circular(layers), few(IMAGE)),
        "conv_transpose_circular": (transposed_circular(layers), few(IMAGE)),
        "conv_over_time": (over_time(layers), few(TOKENS)),
        **branching(layers),
        "layer_norm_dense": (layer_norm(layers), few((7,))),
        "layer_norm_conv": (layer_norm(layers, conv=True), few(IMAGE)),
        "layer_norm_conv_all": (layer_norm(layers, (1, 2, 3), conv=True), few(IMAGE)),
        "layer_norm_conv_width": (layer_norm(layers, (2, 3), conv=True), few(IMAGE)),
        **attending(layers),
        "dropout_behind_relu": (dropped(layers, layers.dense(WIDTH), True), few(TOKENS)),
        "dropout_behind_conv": (dropped(layers, layers.conv(WIDTH, (3, 2)), True), few(IMAGE)),
        "dropout_behind_dense": (dropped(layers, layers.conv(WIDTH, (3, 2)), False), few(IMAGE)),
        "aggregate": (aggregated(layers, 1), graphs(inputs.graphs(TOKENS))),
        "aggregate_rows": (aggregated(layers, 1), graphs(inputs.graphs(IMAGE))),
        "aggregate_pixels": (aggregated(layers, (1, 2)), graphs(inputs.graphs(IMAGE, (1, 2)))),
        "aggregate_edges": (over_edges(layers), graphs(inputs.edges(TOKENS), "edges")),
        "masked_dense": (masked_dense(layers), masked(TOKENS)),
        "masked_conv": (masked_conv(layers), masked(IMAGE)),
        "masked_flatten": (masked_flatten(layers), masked(IMAGE)),
    }


if __name__ == "__main__":
    write("structures_nt.npz", networks, {"standard": ("standard",), "ntk": ("ntk",)})
