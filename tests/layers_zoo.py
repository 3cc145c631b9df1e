"""Networks of infnet's own layers, written once for Flax and Haiku.

They are those of `zoo.py` and `structures_zoo.py`, under the same names, with the references of these. Several stand in
one model, with an output for each: its kernel holds those of all, and layers that they share are compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from finite import Function
from references import inputs
from structures_zoo import IMAGE, MATRIX, STACK, TOKENS, VECTOR

import infnet_flax
import infnet_haiku
from infnet import functional

W_STD, B_STD, WIDTH = 1.4, 0.3, 16


@dataclass(frozen=True)
class Flax:
    """The layers of `infnet_flax`, by names that are the same for both."""

    parameterization: str
    use_bias: bool = True
    b_std: float = B_STD
    module: Any = infnet_flax

    @property
    def options(self) -> dict[str, Any]:
        laws = {"w_std": W_STD, "b_std": self.b_std, "parameterization": self.parameterization}
        return {**laws, "use_bias": self.use_bias, "param_dtype": jnp.result_type(float)}

    def dense(self, x, width=WIDTH, **call):
        return self.module.Dense(width, **self.options)(x, **call)

    def conv(self, x, width=WIDTH, window=(3, 2), strides=1, padding="SAME", **call):
        return self.module.Conv(width, window, strides, padding, **self.options)(x, **call)

    def local(self, x, width, window, strides):
        return self.module.ConvLocal(width, window, strides, **self.options)(x)

    def transposed(self, x, width, window, strides, padding="SAME"):
        return self.module.ConvTranspose(width, window, strides, padding, **self.options)(x)

    def attention(self, x, use_bias=True, mask=None, **options):
        """In "ntk" parameterization always, as that of Neural Tangents."""
        laws = {"key_std": W_STD, "out_std": W_STD, "b_std": B_STD}
        layer = self.module.GlobalSelfAttention(
            WIDTH, WIDTH, WIDTH, use_bias=use_bias, param_dtype=jnp.result_type(float), **laws, **options
        )
        return layer(x, mask)

    def layer_norm(self, x, axes, epsilon, **call):
        return self.module.LayerNorm(epsilon, reduction_axes=axes)(x, **call)

    def dropout(self, x, rate):
        return self.module.Dropout(rate, deterministic=False)(x)

    def __getattr__(self, name):
        return getattr(self.module, name)

    def model(self, body):
        return Function(functools.partial(body, self))

    def kernels(self, case, x1, x2):
        options = {"call_kwargs": {"rngs": {"dropout": jax.random.key(0)}}} if case.dropout else {}
        return infnet_flax.kernel_fn(self.model(case.body), x1, **options)(x1, x2, ("nngp", "ntk"))


class Haiku(Flax):
    """The same of `infnet_haiku`."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, module=infnet_haiku)

    @property
    def options(self) -> dict[str, Any]:
        laws = {"w_std": W_STD, "b_std": self.b_std, "parameterization": self.parameterization}
        return {**laws, "with_bias": self.use_bias}

    def dense(self, x, width=WIDTH, **call):
        return self.module.Linear(width, **self.options)(x, **call)

    def conv(self, x, width=WIDTH, window=(3, 2), strides=1, padding="SAME", **call):
        layer = getattr(self.module, f"Conv{len(window)}D")
        return layer(width, window, strides, padding=padding, **self.options)(x, **call)

    def local(self, x, width, window, strides):
        return self.module.Conv2DLocal(width, window, strides, **self.options)(x)

    def transposed(self, x, width, window, strides, padding="SAME"):
        return self.module.Conv2DTranspose(width, window, strides, padding, **self.options)(x)

    def attention(self, x, use_bias=True, mask=None, **options):
        laws = {"key_std": W_STD, "out_std": W_STD, "b_std": B_STD}
        return self.module.GlobalSelfAttention(WIDTH, WIDTH, WIDTH, with_bias=use_bias, **laws, **options)(x, mask)

    def layer_norm(self, x, axes, epsilon, **call):
        return self.module.LayerNorm(axes, eps=epsilon)(x, **call)

    def dropout(self, x, rate):
        return self.module.Dropout(rate)(x, is_training=True)

    def model(self, body):
        return hk.transform(functools.partial(body, self))

    def kernels(self, case, x1, x2):
        rng = jax.random.key(0) if case.dropout else None
        return infnet_haiku.kernel_fn(self.model(case.body), x1, rng=rng)(x1, x2, ("nngp", "ntk"))


MODULES = {"Dense": "linear", "ConvLocal": "conv2_d_local", "ConvTranspose": "conv2_d_transpose"}


def for_haiku(params):
    """The parameters of a Flax model of one of the cases, by the names of Haiku."""

    def module(name):
        kind, number = name.rsplit("_", 1)
        window = len(params[name]["kernel"].shape) - 2 if kind == "Conv" else 0
        own = f"conv{window}_d" if kind == "Conv" else MODULES.get(kind, "global_self_attention")
        return own if number == "0" else f"{own}_{number}"

    def array(kind, name, value):
        if kind.startswith("GlobalSelfAttention"):
            return name, value
        transposed = kind.startswith("ConvTranspose") and name == "kernel"
        return {"kernel": "w", "bias": "b"}[name], value.swapaxes(-1, -2) if transposed else value

    return {module(kind): dict(array(kind, *item) for item in own.items()) for kind, own in params.items()}


def mlp(activation, depth=3, **layers):
    def body(net, x):
        net = type(net)(net.parameterization, **layers)
        for _ in range(depth):
            x = getattr(net, activation[0])(*activation[1:])(net.dense(x, 32))
        return net.dense(x, 4)

    return body


def read_out(net, x, mask=None):
    """The MLP of `structures_zoo.py` at every position, and the mean."""
    x = net.Relu()(net.dense(net.Relu()(x)))
    return net.dense(net.GlobalAvgPool()(x, mask), 4)


VECTORS = {
    "mlp_relu": mlp(("Relu",)),
    "mlp_leaky_relu": mlp(("LeakyRelu", 0.2)),
    "mlp_zero_biases": mlp(("Relu",), 2, b_std=0.0),
    "mlp_no_bias": mlp(("Relu",), 2, use_bias=False),
}


def upsampled(net, x):
    x = net.Relu()(net.transposed(x, 16, (3, 2), (2, 2)))
    x = net.Relu()(net.transposed(x, 16, (2, 3), (1, 2), "VALID"))
    return net.dense(net.GlobalAvgPool()(x), 4)


def local(net, x):
    for strides in ((1, 1), (2, 1)):
        x = net.Relu()(net.local(x, 16, (3, 2), strides))
    return net.dense(net.Flatten()(x), 4)


OPERATIONS = {
    "avg_pool_same": lambda net: net.AvgPool((3, 2), (2, 1), "SAME"),
    "avg_pool_normalize_edges": lambda net: net.AvgPool((3, 2), (2, 1), "SAME", normalize_edges=True),
    "avg_pool_circular": lambda net: net.AvgPool((3, 1), padding="CIRCULAR"),
    "sum_pool_valid": lambda net: net.SumPool((2, 2), (1, 2)),
    "sum_pool_same": lambda net: net.SumPool((3, 3), (2, 2), "SAME"),
    "sum_pool_circular": lambda net: net.SumPool((1, 3), (1, 2), "CIRCULAR"),
    "global_sum_pool": lambda net: net.GlobalSumPool(),
    "index_slices": lambda net: net.Index(np.s_[:, 1:4, :3:2]),
    "index_negative_steps": lambda net: net.Index(np.s_[:, ::-1, 3:0:-2]),
    "index_integer": lambda net: net.Index(np.s_[:, -2]),
    "index_ellipsis": lambda net: net.Index(np.s_[:, 1, ..., 2:, :]),
    "dot_general_vector": lambda net: net.DotGeneral(rhs=VECTOR, dimension_numbers=(((1,), (0,)), ((), ()))),
    "dot_general_matrix": lambda net: transposed(
        net.DotGeneral(rhs=MATRIX, dimension_numbers=(((1,), (0,)), ((), ()))), (0, 1, 3, 2)
    ),
    "dot_general_left": lambda net: transposed(
        net.DotGeneral(lhs=MATRIX, dimension_numbers=(((0,), (1,)), ((), ()))), (1, 0, 2, 3)
    ),
    "dot_general_batched": lambda net: transposed(
        net.DotGeneral(rhs=STACK, dimension_numbers=(((2,), (1,)), ((1,), (0,)))), (1, 0, 3, 2)
    ),
    "dot_general_scalar": lambda net: net.DotGeneral(lhs=-1.5),
}
RESIZES = {
    "resize_bilinear_larger": lambda net: net.ImageResize((-1, 7, 6, -1), "bilinear"),
    "resize_bilinear_smaller": lambda net: net.ImageResize((-1, 3, 2, -1), "bilinear"),
    "resize_bilinear_aliased": lambda net: net.ImageResize((-1, 3, 2, -1), "bilinear", antialias=False),
    "resize_nearest": lambda net: net.ImageResize((-1, 7, 3, -1), "nearest"),
}
KERNELS_OF = (
    "avg_pool_normalize_edges",
    "avg_pool_circular",
    "global_sum_pool",
    "dot_general_batched",
)
"""The others are compared with the operations of `structures_zoo.py` as functions."""


def transposed(layer, axes):
    """Examples first and channels last, as `jax.lax.dot_general` does not leave them."""
    return lambda x: layer(x).transpose(axes)


def operations(net, x):
    """Some of these after the same layer."""
    x = net.Relu()(net.conv(x))
    return {name: read_out_plain(net, OPERATIONS[name](net)(x)) for name in KERNELS_OF}


def read_out_plain(net, x):
    return net.dense(net.GlobalAvgPool()(net.Relu()(net.dense(x))), 4)


def conv_circular(net, x):
    x = net.Relu()(net.conv(x, WIDTH, (3, 3), (2, 1), "CIRCULAR"))
    x = net.Relu()(net.conv(x, WIDTH, (2, 3), padding="CIRCULAR"))
    return net.dense(net.GlobalAvgPool()(x), 4)


def transposed_circular(net, x):
    x = net.Relu()(net.transposed(x, WIDTH, (3, 3), (2, 1), "CIRCULAR"))
    return net.dense(net.GlobalAvgPool()(net.Relu()(net.conv(x))), 4)


def over_time(net, x):
    x = net.Relu()(net.conv(x, WIDTH, (3,), 2))
    return net.dense(net.Flatten()(net.Relu()(net.conv(x, WIDTH, (2,), padding="VALID"))), 4)


def layer_norm(layer, axes=-1):
    def body(net, x):
        x = getattr(net, layer)(net.Relu()(getattr(net, layer)(x)))
        return read_out(net, net.layer_norm(x, axes, 0.05))

    return body


ROOT = {"mechanism": "IDENTITY", "num_heads": 3, "linear_scaling": False}
POSITIONS = {"position_embedding": "SUM", "position_std": 0.6}
BESIDE = {**POSITIONS, "position_embedding": "CONCAT"}
IN_VALUES = {"values_with_positions": True}
DECAYING = {"position_decay": lambda d: np.exp(-d / 2), "position_p_norm": 1}
ATTENTION = {
    "attention_softmax": {},
    "attention_heads": {"num_heads": 3, "use_bias": False},
    "positions_beside_in_values": {**BESIDE, **IN_VALUES},
    "root_positions_beside": {**ROOT, **BESIDE, **IN_VALUES, **DECAYING},
}
ATTENTION_OF_PIXELS = {
    "positions_decaying_beside": {**BESIDE, **DECAYING},
}


def attentions(table):
    def body(net, x):
        x = net.dense(x)
        return {name: read_out(net, net.attention(x, **options)) for name, options in table.items()}

    return body


def dropped(layer, last_relu):
    def body(net, x):
        x = net.dense(net.Relu()(getattr(net, layer)(x)))
        return read_out_plain(net, net.dropout(net.Relu()(x) if last_relu else x, 0.3))

    return body


def aggregated(implementation="DENSE", first=True, **options):
    def body(net, graph):
        x, (pattern,) = graph["nodes"], [graph[name] for name in graph if name != "nodes"]
        layer = net.Aggregate(implementation=implementation, **options)
        for i in range(2):
            x = net.Relu()(net.dense(layer(x, pattern) if i or first else x))
        return net.dense(net.GlobalAvgPool()(x), 4)

    return body


def masked_dense(net, x):
    x, mask = functional.mask_constant(x, inputs.MASKED)
    x = net.Relu()(net.dense(x, mask=mask))
    return net.dense(net.GlobalAvgPool()(net.Relu()(net.dense(x, mask=mask)), mask), 4)


def masked_conv(net, x):
    x, mask = functional.mask_constant(x, inputs.MASKED)
    for _ in range(2):
        x = net.Relu()(net.conv(x, mask=mask))
    return net.dense(net.GlobalAvgPool()(x, mask), 4)


def masked_flatten(net, x):
    x, mask = functional.mask_constant(x, inputs.MASKED)
    return net.dense(net.Flatten()(net.Relu()(net.conv(x, mask=mask)), mask), 4)


def masked_attention(net, x):
    x, mask = functional.mask_constant(x, inputs.MASKED)
    return read_out(net, net.attention(net.dense(x, mask=mask), mask=mask), mask)


def each(bodies: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """One model of several networks."""
    return lambda net, x: {name: body(net, x) for name, body in bodies.items()}


@dataclass(frozen=True)
class Case:
    """A model whose outputs are named after references; `both`: which of them exist in both parameterizations."""

    body: Callable[[Any, Any], Any]
    shape: tuple[int, ...] = IMAGE
    examples: Callable[[tuple[int, ...]], tuple[Any, Any]] = inputs.few
    file: str = "structures_nt"
    both: bool = False
    dropout: bool = False


ZOO = {"examples": inputs.make, "file": "neural_tangents", "both": True}
CASES = {
    "vectors": Case(each(VECTORS), (7,), **ZOO),
    "transposed": Case(each({"conv_transpose_global_pool": upsampled}), (4, 3, 3), **{**ZOO, "both": False}),
    "local": Case(each({"conv_local": local}), (5, 4, 3), **ZOO),
    "operations": Case(operations),
    "circular": Case(each({"conv_circular": conv_circular})),
    "transposed_circular": Case(each({"conv_transpose_circular": transposed_circular})),
    "over_time": Case(each({"conv_over_time": over_time}), TOKENS),
    "layer_norm": Case(each({"layer_norm_conv_width": layer_norm("conv", (2, 3))})),
    "layer_norm_dense": Case(each({"layer_norm_dense": layer_norm("dense")}), (7,)),
    "attention": Case(attentions(ATTENTION), TOKENS),
    "attention_of_pixels": Case(attentions(ATTENTION_OF_PIXELS)),
    "dropout": Case(each({"dropout_behind_relu": dropped("dense", True)}), TOKENS, both=True, dropout=True),
    "aggregate": Case(each({"aggregate": aggregated()}), TOKENS, inputs.graphs),
    "aggregate_rows": Case(
        each({"aggregate_rows": aggregated(aggregate_axis=1)}), IMAGE, functools.partial(inputs.graphs, axes=(1,))
    ),
    "aggregate_pixels": Case(
        each({"aggregate_pixels": aggregated()}), IMAGE, functools.partial(inputs.graphs, axes=(1, 2))
    ),
    "aggregate_edges": Case(each({"aggregate_edges": aggregated("SPARSE", first=False)}), TOKENS, inputs.edges),
    "masked": Case(
        each({"masked_dense": masked_dense, "masked_attention": masked_attention}),
        TOKENS,
        inputs.masked,
    ),
    "masked_conv": Case(each({"masked_conv": masked_conv}), IMAGE, inputs.masked, both=True),
    "masked_flatten": Case(each({"masked_flatten": masked_flatten}), IMAGE, inputs.masked),
}
