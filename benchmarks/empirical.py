"""Time the empirical NTK of infnet, beside Neural Tangents where there is an interpreter that has it.

    python benchmarks/empirical.py [--peer PYTHON] [network ...]

The networks are plain JAX functions, with the same parameters for both; `trace_axes=()`, x2 = x1, float32. One process
per network, library and implementation, one after the other, so that noise of the machine hits all. Prints milliseconds
(best of up to 10 runs), how much the peak of the memory of the process grew by, and ratios to the fastest of the peer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time

IMPLEMENTATIONS = {
    "infnet": ["structured_derivatives", "jacobian_contraction", "ntk_vector_products"],
    "neural_tangents": [3, 1, 2],
}
NETWORKS = {  # name: (kind, widths, input shape)
    "fcn": ("dense", [784, 512, 512, 10], (64, 784)),
    "fcn_scalar": ("dense", [256, 2048, 2048, 1], (128, 256)),
    "cnn": ("conv", [3, 32, 32, 10], (16, 16, 16, 3)),
    "embedding": ("embed", [100, 64, 64, 10], (8, 16)),
}


def network(kind, widths, shape):
    """`f(params, x)`, its parameters and its input."""
    import jax
    import numpy as np

    rng = np.random.RandomState(0)
    window = (3, 3) if kind == "conv" else ()
    arrays = []
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        taps = window if k < len(widths) - 2 else ()
        scale = (2 / (fan_in * max(1, len(taps) and 9))) ** 0.5
        arrays.append((rng.randn(*taps, fan_in, fan_out) * scale, rng.randn(fan_out) * 0.1))
    params = jax.tree_util.tree_map(lambda a: jax.numpy.asarray(a, "float32"), arrays)
    x = rng.randint(0, widths[0], shape) if kind == "embed" else rng.randn(*shape).astype("float32")

    def layer(x, w, b):
        if w.ndim == 2:
            return x @ w + b
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b

    def f(params, x):
        (table, _), *rest = params
        if kind == "embed":
            x, params = table[x], rest
        for w, b in params[:-1]:
            x = jax.nn.relu(layer(x, w, b))
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        return layer(x, *params[-1])

    return f, params, jax.numpy.asarray(x)


def measure(name: str, library: str, implementation: str) -> dict[str, float]:
    """Compile and run one case in this process."""
    import jax

    f, params, x = network(*NETWORKS[name])
    if library == "infnet":
        import infnet

        ntk_fn = jax.jit(infnet.empirical_ntk_fn(f, implementation=implementation))
    else:
        import neural_tangents

        options = {"trace_axes": (), "vmap_axes": 0, "implementation": int(implementation)}
        ntk_fn = jax.jit(neural_tangents.empirical_ntk_fn(f, **options))
    jax.block_until_ready(f(params, x))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    value = jax.block_until_ready(ntk_fn(x, None, params))
    first, runs = time.perf_counter() - start, []
    while len(runs) < 10 and sum(runs) < 2:
        start = time.perf_counter()
        jax.block_until_ready(ntk_fn(x, None, params))
        runs.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"run": min(runs), "compile": first - min(runs), "peak": peak, "check": float(value[0, 1].sum())}


def main() -> None:
    """Measure all networks, or one case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--peer", help="a Python interpreter with neural_tangents 0.6.5")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    libraries = {"infnet": sys.executable, **({"neural_tangents": arguments.peer} if arguments.peer else {})}
    columns = f"{'run ms':>9} {'compile s':>10} {'peak MB':>9} {'ratio':>7}"
    print(f"{'network':12} {'library':16} {'implementation':24} {columns}")
    for name in arguments.networks or NETWORKS:
        found = {}
        for library, python in libraries.items():
            for implementation in map(str, IMPLEMENTATIONS[library]):
                command = [python, __file__, "--measure", name, library, implementation]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[library, implementation] = json.loads(done.stdout)
        best = min(r["run"] for (library, _), r in found.items() if library == list(libraries)[-1])
        for (library, implementation), r in found.items():
            figures = f"{r['run'] * 1e3:9.1f} {r['compile']:10.2f} {r['peak']:9.0f} {best / r['run']:7.2f}"
            print(f"{name:12} {library:16} {implementation:24} {figures}", flush=True)
        checks = [r["check"] for r in found.values()]
        if max(checks) - min(checks) > 1e-4 * max(map(abs, checks)):
            raise SystemExit(f"{name}: the implementations disagree: {checks}")


if __name__ == "__main__":
    main()
