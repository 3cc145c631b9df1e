"""Time the empirical NTK of infnet, beside Neural Tangents where there is an interpreter that has it.

    python benchmarks/empirical.py [--peer PYTHON] [--rounds N] [network ...]

The networks are plain JAX functions, with the same parameters for both; `trace_axes=()`, x2 = x1, float32. One process
per network, library and implementation, one after the other and round after round, so that noise of the machine hits
all. Prints milliseconds (best of all runs), seconds of compilation, how many MB the memory of the process grew by
during a run, beside what a whole process takes, and ratios: of "auto" to the best implementation of infnet, and of the
best one of the peer to each.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

IMPLEMENTATIONS = {
    "infnet": ["auto", "structured_derivatives", "jacobian_contraction", "ntk_vector_products"],
    "neural_tangents": ["3", "1", "2"],
}
NETWORKS = {  # name: (kind, widths, input shape)
    "fcn": ("dense", [784, 512, 512, 10], (64, 784)),
    "fcn_scalar": ("dense", [256, 2048, 2048, 1], (128, 256)),
    "cnn": ("conv", [3, 32, 32, 10], (16, 16, 16, 3)),
    "embedding": ("embed", [100, 64, 64, 10], (8, 16)),
    "large_embedding": ("embed", [1600, 64, 64, 10], (8, 16)),
    "many_outputs": ("bounded", [300, 300, 400], (1, 300)),
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
        if kind == "bounded":
            w = jax.numpy.tanh(w)
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
    start = time.perf_counter()
    compiled = ntk_fn.lower(x, None, params).compile()
    first, runs = time.perf_counter() - start, []
    memory = growth(lambda: jax.block_until_ready(compiled(x, None, params)))
    while len(runs) < 10 and sum(runs) < 2:
        start = time.perf_counter()
        value = jax.block_until_ready(compiled(x, None, params))
        runs.append(time.perf_counter() - start)
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"run": min(runs), "compile": first, "memory": memory, "whole": whole, "check": float(value[0, -1].sum())}


def growth(call: Callable[[], object]) -> float:
    """By how many MB the memory of this process grows at most during a call; Linux only."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A figure of this process's memory in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def combined(old: dict[str, float] | None, new: dict[str, float]) -> dict[str, float]:
    """The best of two rounds."""
    return new if old is None else {key: min(old[key], new[key]) for key in new}


def report(name: str, found: dict[tuple[str, str], dict[str, float]]) -> float | None:
    """Print the figures of a network; how much faster "auto" is than the peer."""
    best = {library: min(r["run"] for case, r in found.items() if case[0] == library) for library, _ in found}
    for (library, implementation), r in found.items():
        figures = f"{r['run'] * 1e3:9.1f} {r['compile']:10.2f} {r['memory']:9.1f} {r['whole']:9.0f}"
        ratios = " ".join(f"{best[other] / r['run']:9.2f}" for other in best)
        print(f"{name:16} {library:16} {implementation:24} {figures} {ratios}", flush=True)
    checks = [r["check"] for r in found.values()]
    if max(checks) - min(checks) > 1e-4 * max(map(abs, checks)):
        raise SystemExit(f"{name}: the implementations disagree: {checks}")
    peer = best.get("neural_tangents")
    return peer and peer / found["infnet", "auto"]["run"]


def main() -> None:
    """Measure all networks, or one case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--peer", help="a Python interpreter with neural_tangents 0.6.5")
    parser.add_argument("--rounds", type=int, default=2, help="how often all is measured")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    libraries = {"infnet": sys.executable, **({"neural_tangents": arguments.peer} if arguments.peer else {})}
    columns = f"{'run ms':>9} {'compile s':>10} {'memory MB':>9} {'whole MB':>9} " + " ".join(
        f"{'x ' + library[:7]:>9}" for library in libraries
    )
    print(f"{'network':16} {'library':16} {'implementation':24} {columns}")
    ratios = []
    for name in arguments.networks or NETWORKS:
        found: dict[tuple[str, str], dict[str, float]] = {}
        for _ in range(arguments.rounds):
            for library, python in libraries.items():
                for implementation in IMPLEMENTATIONS[library]:
                    command = [python, __file__, "--measure", name, library, implementation]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    case = library, implementation
                    found[case] = combined(found.get(case), json.loads(done.stdout))
        ratios.append(report(name, found))
    if all(ratios):
        print(f"geometric mean of peer / auto: {math.prod(ratios) ** (1 / len(ratios)):.2f}")


if __name__ == "__main__":
    main()
