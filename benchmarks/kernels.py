"""Time infnet's kernels, beside Neural Tangents where there is an interpreter that has it, and beside a memory copy.

    python benchmarks/kernels.py [--peer PYTHON] [case ...]

Every case is `depth x (Dense | 3x3 SAME Conv, w_std 1.4, b_std 0.1; activation)`, flatten or global average pooling if
it is convolutional, then Dense(1); `get="ntk"`, float32, so that both moments are computed. One process per case and
library, one after the other, so that noise of the machine hits both. Prints seconds (best of 3), the time to compile,
and ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

CASES = {  # name: (layer, activation, depth, head, input shape, symmetric)
    "fcn5": ("dense", "relu", 5, None, (2000, 784), False),
    "fcn5_symmetric": ("dense", "relu", 5, None, (2000, 784), True),
    "fcn20": ("dense", "relu", 20, None, (1000, 100), False),
    "cnn4_flatten": ("conv", "relu", 4, "flatten", (200, 32, 32, 3), False),
    "cnn4_pool_16": ("conv", "relu", 4, "pool", (16, 16, 16, 3), False),
    "cnn4_pool_32": ("conv", "relu", 4, "pool", (4, 32, 32, 3), False),
    "fcn5_erf": ("dense", "erf", 5, None, (2000, 784), False),
}


def infnet_kernel(layer, activation, depth, head):
    """The case as a Flax model, and its kernel function."""
    import flax.linen as nn
    import jax

    import infnet_flax

    weights = nn.initializers.variance_scaling(1.4**2, "fan_in", "normal")
    options = {"kernel_init": weights, "bias_init": nn.initializers.normal(0.1)}
    phi = {"relu": nn.relu, "erf": jax.scipy.special.erf}[activation]

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(depth):
                x = phi(nn.Dense(64, **options)(x) if layer == "dense" else nn.Conv(64, (3, 3), **options)(x))
            if head:
                x = x.reshape((x.shape[0], -1)) if head == "flatten" else x.mean(axis=(1, 2))
            return nn.Dense(1, **options)(x)

    return lambda x: infnet_flax.kernel_fn(Network(), x, parameterization="ntk")


def neural_tangents_kernel(layer, activation, depth, head):
    """The case in the peer's own layers."""
    from neural_tangents import stax

    linear = stax.Dense(1, W_std=1.4, b_std=0.1)
    if layer == "conv":
        linear = stax.Conv(1, (3, 3), padding="SAME", W_std=1.4, b_std=0.1)
    phi = {"relu": stax.Relu, "erf": stax.Erf}[activation]()
    heads = {"flatten": [stax.Flatten()], "pool": [stax.GlobalAvgPool()], None: []}[head]
    readout = stax.Dense(1, W_std=1.4, b_std=0.1)
    kernel_fn = stax.serial(*[linear, phi] * depth, *heads, readout)[2]
    return lambda x: kernel_fn


def measure(name: str, library: str) -> dict[str, float]:
    """Compile and run one case in this process."""
    import jax
    import numpy as np

    *network, shape, symmetric = CASES[name]
    build = infnet_kernel if library == "infnet" else neural_tangents_kernel
    x = jax.numpy.asarray(np.random.RandomState(0).randn(*shape).astype("float32"))
    k = build(*network)(x)
    f = jax.jit(lambda a, b: k(a, None if symmetric else b, "ntk"))
    start = time.perf_counter()
    value = jax.block_until_ready(f(x, x + 0.01))
    first = time.perf_counter() - start
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(f(x, x + 0.01))
        runs.append(time.perf_counter() - start)
    return {"compile": first - min(runs), "run": min(runs), "floor": _copy_seconds(value), "check": float(value[0, 1])}


def _copy_seconds(value) -> float:
    """The time to copy an array of the size of the result: no kernel of this size can be had faster."""
    import jax

    copy = jax.jit(lambda a: a + 1)
    jax.block_until_ready(copy(value))
    start = time.perf_counter()
    jax.block_until_ready(copy(value))
    return time.perf_counter() - start


def main() -> None:
    """Measure all cases, or one case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--peer", help="a Python interpreter with neural_tangents 0.6.5")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    libraries = {"infnet": sys.executable, **({"neural_tangents": arguments.peer} if arguments.peer else {})}
    print(f"{'case':16} {'library':16} {'run s':>9} {'compile s':>10} {'copy s':>9} {'ratio':>7}")
    for name in arguments.cases or CASES:
        found = {}
        for library, python in libraries.items():
            command = [python, __file__, "--measure", name, library]
            found[library] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for library, r in found.items():
            ratio = r["run"] / found["infnet"]["run"]
            print(
                f"{name:16} {library:16} {r['run']:9.4f} {r['compile']:10.2f} {r['floor']:9.5f} {ratio:7.2f}",
                flush=True,
            )
        checks = [r["check"] for r in found.values()]
        if max(checks) - min(checks) > 1e-4 * max(map(abs, checks)):
            raise SystemExit(f"{name}: the libraries disagree: {checks}")


if __name__ == "__main__":
    main()
