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
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from finite_networks import DEPENDENT, NETWORKS

IMPLEMENTATIONS = {
    "infnet": ["auto", "structured_derivatives", "jacobian_contraction", "ntk_vector_products"],
    "neural_tangents": ["3", "1", "2"],
}


def measure(name: str, library: str, implementation: str) -> dict[str, float]:
    """Compile and run one case in this process."""
    import jax

    f, params, x = NETWORKS[name]()
    if library == "infnet":
        import infnet

        ntk_fn = jax.jit(infnet.empirical_ntk_fn(f, implementation=implementation))
    else:
        import neural_tangents

        options = {
            "trace_axes": (),
            "vmap_axes": None if name in DEPENDENT else 0,
            "implementation": int(implementation),
        }
        ntk_fn = jax.jit(neural_tangents.empirical_ntk_fn(f, **options))
    start = time.perf_counter()
    compiled = ntk_fn.lower(x, None, params).compile()
    first, runs = time.perf_counter() - start, []
    memory = growth(lambda: jax.block_until_ready(compiled(x, None, params)))
    while sum(runs) < 0.5 or (len(runs) < 10 and sum(runs) < 5):
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
