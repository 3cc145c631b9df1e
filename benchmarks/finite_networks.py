"""Networks of finite width as plain JAX functions, for `empirical.py`: each with its parameters and inputs, float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Network = tuple[Callable[..., Any], Any, Any]


def fcn(widths: Sequence[int], n: int) -> Network:
    """Dense layers and relus."""
    params = [weights(*pair) for pair in itertools.pairwise(widths)]

    def f(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    return f, params, normal(n, widths[0])


def cnn(n: int, size: int, channels: Sequence[int], outputs: int, pool: str = "mean") -> Network:
    """Convolutions of 3x3 pixels, relus, perhaps pooling by the maximum, the mean over pixels, a dense layer."""
    convolutions = [weights(a, b, 3, 3) for a, b in itertools.pairwise(channels)]

    def f(params, x):
        convolutions, (v, c) = params
        for w, b in convolutions:
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
            x = jax.nn.relu(x)
            if pool == "max":
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.mean((1, 2)) @ v + c

    return f, (convolutions, weights(channels[-1], outputs)), normal(n, size, size, channels[0])


def embedding(vocabulary: int) -> Network:
    """Rows of a table, their mean, two dense layers."""

    def f(params, x):
        table, (w, b), (v, c) = params
        return jax.nn.relu(table[x].mean(1) @ w + b) @ v + c

    x = np.random.RandomState(0).randint(0, vocabulary, (8, 16))
    return f, (normal(vocabulary, 64), weights(64, 64), weights(64, 10)), jnp.asarray(x)


def attention(n: int, length: int, width: int) -> Network:
    """One softmax head, layer normalisation, the mean over positions, a dense layer."""

    def f(params, x):
        query, key, value = (x @ w for w, _ in params[:3])
        x = jax.nn.softmax(query @ key.swapaxes(1, 2) / width**0.5) @ value
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * params[3][0][0] + params[3][1]
        return x.mean(1) @ params[4][0] + params[4][1]

    params = [*(weights(width, width) for _ in range(3)), weights(1, width), weights(width, 10)]
    return f, params, normal(n, length, width)


def recurrent(n: int, length: int, width: int) -> Network:
    """A tanh network over 32 channels in time."""

    def f(params, x):
        (w, b), (u, _), (v, c) = params
        h, _ = lax.scan(
            lambda h, row: (jnp.tanh(h @ w + row @ u + b), None), jnp.zeros((len(x), width)), x.swapaxes(0, 1)
        )
        return h @ v + c

    return f, (weights(width, width), weights(32, width), weights(width, 2)), normal(n, length, 32)


def bounded(n: int, width: int, outputs: int) -> Network:
    """One example with many outputs, and a weight to which something is done: its gradient has no structure."""

    def f(params, x):
        (w, b), (v, c) = params
        return jnp.tanh(x @ jnp.tanh(w) + b) @ v + c

    return f, (weights(width, width), weights(width, outputs)), normal(n, width)


def batch_statistics(n: int, width: int) -> Network:
    """The examples depend on each other."""

    def f(params, x):
        (w, b), (v, c) = params
        x = x @ w + b
        return jax.nn.relu((x - x.mean(0)) / x.std(0)) @ v + c

    return f, (weights(width, width), weights(width, 3)), normal(n, width)


def weights(fan_in: int, fan_out: int, *window: int) -> tuple[jax.Array, jax.Array]:
    """A weight, `(*window, fan_in, fan_out)`, and a bias."""
    scale = (2 / (fan_in * np.prod(window))) ** 0.5
    return normal(*window, fan_in, fan_out) * jnp.float32(scale), normal(fan_out) * jnp.float32(0.1)


def normal(*shape: int) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.RandomState(sum(shape)).standard_normal(shape), "float32")


NETWORKS: dict[str, Callable[[], Network]] = {
    "fcn": lambda: fcn([784, 512, 512, 10], 64),
    "fcn_scalar": lambda: fcn([256, 2048, 2048, 1], 128),
    "cnn": lambda: cnn(16, 16, [3, 32, 32], 10),
    "max_pool": lambda: cnn(8, 16, [3, 32, 64], 4, "max"),
    "embedding": lambda: embedding(100),
    "large_embedding": lambda: embedding(1600),
    "attention": lambda: attention(8, 16, 64),
    "recurrent": lambda: recurrent(16, 16, 256),
    "many_outputs": lambda: bounded(1, 300, 400),
    "batch_statistics": lambda: batch_statistics(24, 64),
}
# Where Neural Tangents has to treat a batch as a whole.
DEPENDENT = {"batch_statistics"}
