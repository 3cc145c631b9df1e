"""Deep networks: time to compile and to run the kernels of L relu layers, as a loop and layer by layer.

    python benchmarks/depth.py [depth ...]

For 500 examples with themselves, NNGP and NTK in float32; runs are the best of 3, and their unit is the time to copy
both matrices, per layer. "first call" is the time from the model to its first kernel: tracing, planning, compiling and
one run; it is also given relative to that of the first depth. "layer by layer" is the same without `infnet.schedule`'s
loops, and "recomputed" is layer by layer without `infnet.primitives.stored`: XLA on CPU then runs the layers again in
every loop that needs them. These two are left out above 20 layers, where they take minutes.
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


def measured(depth: int, x: jax.Array) -> tuple[float, float]:
    """Seconds from the model to the first kernel, and of the best run after it."""
    start = time.perf_counter()
    kernel = kernel_of(depth)
    built = time.perf_counter() - start
    first, run = seconds(partial(kernel, x, get=("nngp", "ntk")))
    return built + first, run


def main(depths: list[int]) -> None:
    """Print a line for each depth."""
    x = jax.random.normal(jax.random.key(0), (N, WIDTH))
    _, floor = seconds(partial(jax.jit(jnp.negative), jnp.ones((2, N, N))))
    measured(2, x)  # what JAX compiles once
    head = ("layers", "first call", "ratio", "run", "layer by layer: both", "recomputed: both")
    print("{:>6} {:>11} {:>6} {:>6}   {:>22} {:>22}".format(*head))
    shallow = None
    for depth in depths:
        first, run = measured(depth, x)
        shallow = shallow or first
        ratios = []
        if depth <= 20:
            with mock.patch("infnet.schedule.FEWEST", 10**9):
                ratios.append(measured(depth, x))
                with mock.patch("infnet.rules.nonlinear.stored", lambda x: x):
                    ratios.append(measured(depth, x))
        others = "  ".join(f"{a / first:10.1f}x {b / run:8.1f}x" for a, b in ratios)
        print(f"{depth:6} {first:9.2f} s {first / shallow:6.2f} {run / depth / floor:6.1f}   {others}")


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [5, 10, 20, 100])
