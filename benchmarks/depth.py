"""Deep networks: time to compile and to run the kernels of L relu layers, per layer, and what `stored` saves.

    python benchmarks/depth.py [depth ...]

For 500 examples with themselves, NNGP and NTK in float32; runs are the best of 3. "recomputed" is the same without
`infnet.primitives.stored`: XLA on CPU then runs the layers again in every loop that needs them. The copy is that of
both matrices.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp

import infnet

WIDTH, N, REPEATS = 16, 500, 3


def kernel_of(depth: int) -> infnet.KernelFn:
    """The kernel function of a dense network."""

    def apply(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ params[-1]

    def prior(*shape: int) -> infnet.Prior:
        return infnet.Prior(0.0, (2 / WIDTH) ** 0.5, shape=shape, dtype=jnp.float32)

    priors = [*[prior(WIDTH, WIDTH)] * depth, prior(WIDTH, 1)]
    return infnet.kernel_fn(apply, priors, jax.ShapeDtypeStruct((1, WIDTH), jnp.float32))


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Of the first call, and the best of the next ones."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times[0], min(times[1:])


def main(depths: list[int]) -> None:
    """Print a line for each depth."""
    x = jax.random.normal(jax.random.key(0), (N, WIDTH))
    _, floor = seconds(partial(jax.jit(jnp.negative), jnp.ones((2, N, N))))
    print(f"{'layers':>6} {'first call, s/layer':>20} {'run, ms/layer':>14} {'in copies':>10} {'recomputed: both':>20}")
    for depth in depths:
        first, run = seconds(partial(kernel_of(depth), x, get=("nngp", "ntk")))
        with mock.patch("infnet.rules.nonlinear.stored", lambda x: x):
            without = seconds(partial(kernel_of(depth), x, get=("nngp", "ntk")))
        ratios = f"{without[0] / first:.1f}x {without[1] / run:.1f}x"
        print(f"{depth:6} {first / depth:20.3f} {run / depth * 1e3:14.2f} {run / depth / floor:10.1f} {ratios:>20}")


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [2, 5, 10, 20])
