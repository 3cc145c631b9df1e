"""`verify` on the models of the tests: well-known architectures, and the zoo of single features; and on sampled ones.

The models are widened through their fields. Run it: `python benchmarks/verify_zoo.py`; names of models as arguments
restrict it to these. The exit status is 1 unless all have passed. The columns in % are the largest deviations at
infinite width, of an entry of the NNGP, of the NTK and of the share of that parameter whose z-score is the largest; and
the deviation that would have been found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import infnet
import infnet_flax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import architectures
import sampled_models
import zoo

HEAD = (
    "model",
    "width",
    "networks",
    "nngp, %",
    "ntk, %",
    "a share, %",
    "largest z",
    "limit",
    "found, %",
    "seconds",
    "verdict",
)


def of_architecture(case: architectures.Case, wider: int) -> tuple[Any, Any, int]:
    """A module, examples, and its width."""
    return case.module(case.width * wider), case.examples()[0], case.width * wider


def of_zoo(case: zoo.Case, wider: int) -> tuple[Any, Any, int]:
    """Likewise; examples are correlated, so that kernels are not near zero."""
    module = case.make(wider, dtype=jnp.float32)
    return module, architectures.normal(*case.shape)(np.random.RandomState(1)), case.width * wider


def of_sampled(name: str, wider: int) -> tuple[Any, Any, int]:
    """Likewise; the width is 8 heads of 8 channels."""
    model, examples = sampled_models.MODELS[name]
    return model(64 * wider), examples(), 64 * wider


def models() -> dict[str, Callable[[int], tuple[Any, Any, int]]]:
    """How each model is made, by its name, of so many times the width that the tests have."""
    found = {name: partial(of_architecture, case) for name, case in architectures.CASES.items()}
    found |= {case.name: partial(of_zoo, case) for case in zoo.CASES}
    return found | {name: partial(of_sampled, name) for name in sampled_models.MODELS}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each model; returns 1 unless all have passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of the models; all by default")
    parser.add_argument("--resolution", type=float, default=0.05, help="the deviation that is to be found")
    parser.add_argument("--n-samples", type=int, default=10_000, help="networks of the smallest width, at most")
    parser.add_argument("--multipliers", type=int, nargs="+", default=(1, 2, 4), help="of the width")
    parser.add_argument("--wider", type=int, default=1, help="how many times as wide as in the tests models are")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each")
    options = parser.parse_args(argv)
    known, failed = models(), 0
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"unknown models {sorted(unknown)}; known are {sorted(known)}")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for name in options.names or known:
        module, x, width = known[name](options.wider)
        start = time.perf_counter()
        report = infnet_flax.verify(
            module,
            x,
            jax.random.key(0),
            multipliers=tuple(options.multipliers),
            resolution=options.resolution,
            n_samples=options.n_samples,
            on_unsupported=infnet.Sampling(points=256) if name in sampled_models.MODELS else "raise",
        )
        deviations = [f"{100 * np.abs(one.trend.intercept).max():.1f}" for one in report.shown]
        largest = max(np.abs(z).max() for z in report.z_scores.values())
        networks = " + ".join(map(str, report.n_samples))
        cells = [name, str(width), networks, *deviations, f"{largest:.1f}", f"{report.threshold:.1f}"]
        cells += [f"{100 * report.resolution:.1f}", f"{time.perf_counter() - start:.0f}", report.verdict.split(":")[0]]
        print("| " + " | ".join(cells) + " |", flush=True)
        failed += not report.passed
        if options.pictures:
            report.plot(options.pictures / f"{name}.png")
    print(f"{failed} of {len(options.names or known)} have not passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
