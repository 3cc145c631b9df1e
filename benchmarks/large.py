"""Time and memory of a large kernel in tiles, beside a small one that is computed at once; Linux only.

    python benchmarks/large.py [--n 20000] [--small 2000] [--store DIRECTORY]

The kernel is the NTK, float32, of a network with three hidden ReLU layers on 64 inputs, of n examples with themselves.
Rows: at once, for the small number of examples (the best of 5 counts); in tiles, put together in the memory of the
device and of the host; and in a Zarr array on disk. Figures: seconds, nanoseconds for an entry of the matrix, the ratio
to those of the first row, and by how much the memory of the process grows at most, in MB and in units of the kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import infnet
import infnet_flax


class Network(nn.Module):
    """Three hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of inputs `(n, 64)`."""
        for _ in range(3):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--store", type=Path, default=None)
    given = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((given.n, 64), dtype=np.float32)
    kernel_fn = infnet_flax.kernel_fn(Network(), x[:2])
    ways = {"in tiles": infnet.batch(kernel_fn), "in tiles, host": infnet.batch(kernel_fn, store_on_device=False)}
    print(f"{'n':>6} {'':18} {'s':>8} {'ns/entry':>9} {'ratio':>6} {'MB more':>8} {'kernels':>8}")
    best = min(report("at once", kernel_fn, x[: given.small]) for _ in range(5))
    for name, function in ways.items():
        function(x, None, "ntk")  # compiles
        for _ in range(3):
            report(name, function, x, best)
    with tempfile.TemporaryDirectory(dir=given.store) as folder:
        report("on disk", lambda x, _, get: infnet.compute(kernel_fn, x, get=get, store=f"{folder}/ntk"), x, best)


def report(name: str, function: Callable[..., Any], x: np.ndarray, best: float | None = None) -> float:
    """Print the figures of one call; the nanoseconds for an entry."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = resident("VmRSS"), time.perf_counter()
    jax.block_until_ready(function(x, None, "ntk"))
    seconds = time.perf_counter() - start
    growth = resident("VmHWM") - before
    each = seconds * 1e9 / len(x) ** 2
    ratio, kernels = "" if best is None else f"{each / best:6.2f}", growth * 1e6 / (4 * len(x) ** 2)
    print(f"{len(x):6} {name:18} {seconds:8.3f} {each:9.2f} {ratio:6} {growth:8.0f} {kernels:8.2f}", flush=True)
    return each


def resident(name: str) -> float:
    """A figure of this process's memory in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
