"""Random features next to the exact kernel: their error, and what an example costs.

    python benchmarks/random_features.py [n]

For dense networks of three hidden layers on 100 numbers: the error of K_ij over sqrt(K_ii K_jj) (root mean square over
n examples, 1000, and mean over 3 draws); this times the root of the number of features, which should not change from
row to row; the time to compute the features of an example; that of a row of the exact kernel with a million examples
(n^2 entries are timed), both in this run; and their ratio. Solving with m features takes n m^2 operations more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import infnet
import infnet_flax

MILLION = 1_000_000
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "erf": jax.scipy.special.erf,
}


def network(activation: Callable[[jax.Array], jax.Array]) -> nn.Module:
    """A dense network."""
    initialiser = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    layers: list[Any] = []
    for _ in range(3):
        layers += [nn.Dense(512, kernel_init=initialiser, bias_init=nn.initializers.normal(0.1)), activation]
    return nn.Sequential([*layers, nn.Dense(1)])


def seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The best of 3 runs, after one that compiles."""
    runs = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        runs.append(time.perf_counter() - start)
    return min(runs[1:])


def main() -> None:
    """Print a row for each network, kernel and number of features."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.standard_normal((n, 100)) * rng.uniform(0.5, 1.5, (n, 1)), jnp.float32)
    print("network  get    columns  error  x root  us/example   us/row  ratio")
    for name, activation in ACTIVATIONS.items():
        kernel_fn = infnet_flax.kernel_fn(network(activation), x)
        for get in ("nngp", "ntk"):
            exact = kernel_fn(x, get=get)
            scale = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
            row = seconds(partial(kernel_fn, x, get=get), x) / n**2 * MILLION
            for count in (512, 2048, 8192):
                features = infnet.random_features(kernel_fn, jax.random.key(0), count, get)
                own = seconds(features, x) / n
                drawn = [features.redraw(jax.random.key(seed)).kernel(x) for seed in range(3)]
                error = np.mean([np.sqrt(np.mean(np.square((k - exact) / scale))) for k in drawn])
                print(
                    f"{name:8} {get:5} {features.n_features:8} {error:6.4f} {error * features.n_features**0.5:7.2f} "
                    f"{own * 1e6:11.1f} {row * 1e6:8.0f} {row / own:6.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
