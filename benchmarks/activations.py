"""Every kind of activation: how its kernels are computed, their float32 error, and their time beside a memory copy.

    python benchmarks/activations.py [--markdown] [--lowerings] [name ...]

The time is that of both kernels (of phi and of phi') for 1000 x 1000 pairs in float32, best of 5, per pair; beside it
the same in multiples of the time to copy one array of this size. The error is the largest difference to float64,
relative to sqrt(K11 K22), over random variances up to 2 and correlations in (-0.99, 0.99).

`--lowerings` times the special lowerings for this platform instead, beside the reference implementation and a copy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jax.scipy.stats import norm

from infnet.activations import Activation, recognise
from infnet.errors import Where
from infnet.primitives.define import LOWERINGS


class Case(NamedTuple):
    """One activation: how it may be written, and where its formula comes from."""

    written: str
    source: str

    @property
    def function(self) -> Callable[[jax.Array], jax.Array]:
        """The function itself."""
        names = {"jnp": jnp, "jax": jax, "nn": jax.nn, "erf": erf, "Phi": norm.cdf, "n": norm.pdf}
        return eval(f"lambda x: {self.written}", names)


ARC_COSINE = "Cho & Saul 2009"
TRUNCATED = "truncated moments, Rosenbaum 1961"
WILLIAMS = "Williams 1996"
GAUSSIAN_INTEGRAL = "Gaussian integral"
ISSERLIS = "Isserlis 1918"
GELU = "Tsuchida et al. 2021"
MEHLER = "Mehler 1866"

CASES = {
    "relu": Case("nn.relu(x)", ARC_COSINE),
    "leaky_relu": Case("nn.leaky_relu(x, 0.1)", ARC_COSINE),
    "ab_relu": Case("jnp.where(x > 0, 2 * x, -3 * x)", ARC_COSINE),
    "abs": Case("jnp.abs(x)", ARC_COSINE),
    "sign": Case("jnp.sign(x)", ARC_COSINE),
    "step": Case("jnp.heaviside(x, 0.5)", ARC_COSINE),
    "squared_relu": Case("nn.relu(x) ** 2", ARC_COSINE),
    "cubed_relu": Case("nn.relu(x) ** 3", ARC_COSINE),
    "shifted_relu": Case("nn.relu(x - 0.5)", TRUNCATED),
    "relu6": Case("nn.relu6(x)", TRUNCATED),
    "hard_tanh": Case("nn.hard_tanh(x)", TRUNCATED),
    "hard_sigmoid": Case("nn.hard_sigmoid(x)", TRUNCATED),
    "hard_swish": Case("nn.hard_swish(x)", TRUNCATED),
    "elu": Case("nn.elu(x)", "tilted truncated moments; Tsuchida et al. 2021"),
    "celu": Case("nn.celu(x, 0.5)", "as elu"),
    "selu": Case("nn.selu(x)", "as elu"),
    "monomial": Case("x**3", ISSERLIS),
    "polynomial": Case("1 + x - 0.5 * x**2 + 0.1 * x**5", ISSERLIS),
    "hermite": Case("(x**4 - 6 * x**2 + 3) / 24**0.5", ISSERLIS),
    "sin": Case("jnp.sin(2 * x + 0.3)", GAUSSIAN_INTEGRAL),
    "cos": Case("jnp.cos(x)", GAUSSIAN_INTEGRAL),
    "rbf": Case("jnp.sqrt(2) * jnp.sin(jnp.sqrt(2 * 0.7) * x + jnp.pi / 4)", "Rahimi & Recht 2007"),
    "exp": Case("jnp.exp(0.5 * x)", GAUSSIAN_INTEGRAL),
    "gaussian": Case("jnp.exp(-(x**2))", GAUSSIAN_INTEGRAL),
    "gabor": Case("jnp.exp(-(x**2)) * jnp.sin(x)", GAUSSIAN_INTEGRAL),
    "snake": Case("x + jnp.sin(x) ** 2", GAUSSIAN_INTEGRAL),
    "erf": Case("erf(x)", WILLIAMS),
    "sigmoid_like": Case("0.5 + 0.5 * erf(x / 2.4020563531719796)", WILLIAMS),
    "probit": Case("Phi(2 * x - 1)", TRUNCATED + ", smoothed"),
    "gelu": Case("nn.gelu(x, approximate=False)", GELU),
    "scaled_gelu": Case("x * Phi(1.702 * x)", GELU),
    "smooth_relu": Case("x * Phi(2 * x) + n(2 * x) / 2", TRUNCATED + ", smoothed"),
    "tanh": Case("jnp.tanh(x)", MEHLER),
    "sigmoid": Case("nn.sigmoid(x)", MEHLER),
    "silu": Case("nn.silu(x)", MEHLER),
    "gelu_tanh": Case("nn.gelu(x)", MEHLER),
    "softplus": Case("nn.softplus(x)", MEHLER),
    "mish": Case("nn.mish(x)", MEHLER),
    "squareplus": Case("nn.squareplus(x)", MEHLER),
    "arctan": Case("jnp.arctan(x)", MEHLER),
}
Q_MAX = 2.0  # up to which series converge to their tolerance
N = 1000


def activation_of(case: Case) -> Activation:
    """What the function of default floats is recognised as; a series with the terms it needs up to `Q_MAX`."""
    found = recognise(jax.make_jaxpr(case.function)(jax.ShapeDtypeStruct((4,), jnp.result_type(float))), Where())
    return found.with_order(1e-6, Q_MAX) if hasattr(found, "with_order") else found


def gram(n: int, m: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariances `(n, m)` and variances `(n, 1)`, `(1, m)`, at most `Q_MAX`."""
    rng = np.random.default_rng(0)
    q11, q22 = (np.minimum(np.exp(rng.normal(size=size)), Q_MAX) for size in ((n, 1), (1, m)))
    q12 = rng.uniform(-0.99, 0.99, (n, m)) * np.sqrt(q11 * q22)
    return q12.astype(dtype), q11.astype(dtype), q22.astype(dtype)


def error(case: Case) -> float:
    """The largest error of float32, relative to sqrt(K11 K22)."""

    def kernels(*arrays: Any) -> Any:
        activation = activation_of(case)
        own = [activation.squares(q) for q in arrays[1:]]
        return jax.jit(lambda *q: activation.kernel(*q, True))(*arrays), own

    arrays = gram(200, 200, np.float32)
    found, _ = kernels(*arrays)
    with jax.enable_x64(True):
        exact, own = kernels(*(a.astype(np.float64) for a in arrays))
        sizes = [jnp.sqrt(a * b) for a, b in zip(*own, strict=True)]
        return max(
            float(jnp.max(jnp.abs(f - e) / jnp.where(s > 0, s, 1))) for f, e, s in zip(found, exact, sizes, strict=True)
        )


def nanoseconds(function: Callable[..., Any], *arrays: Any) -> float:
    """Best time of 5 per pair."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arrays))
    runs = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        runs.append(time.perf_counter() - start)
    return min(runs) / (N * N) * 1e9


def measure(names: list[str], markdown: bool) -> None:
    """Print one row for each activation."""
    arrays = [jnp.asarray(a) for a in gram(N, N, np.float32)]
    head = ("activation", "as written, for example", "kernel", "source", "float32 error", "ns", "copies")
    rows, spent, copies = [head], {}, []
    for name in names or CASES:
        case = CASES[name]
        activation = activation_of(case)
        copies.append(nanoseconds(lambda q, *_: q + 1, *arrays))
        spent[name] = nanoseconds(lambda *q, f=activation: f.kernel(*q, True), *arrays)
        form = "closed form" if activation.exact == "exact" else activation.exact
        rows.append((name, f"`{case.written}`", form, case.source, f"{error(case):.0e}", f"{spent[name]:.1f}"))
    # A copy is over so soon that only the best of all is not noise.
    rows[1:] = [(*row, f"{spent[row[0]] / min(copies):.0f}") for row in rows[1:]]
    if markdown:
        rows.insert(1, ("---",) * len(head))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
        return
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    print("\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows))


def lowerings() -> None:
    """Print one row for each primitive with a lowering of its own on this platform."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (N, N)), jnp.float32)
    copy = nanoseconds(lambda x: x + 1, x)
    print(f"{'primitive':12} {'platform':8} {'reference ns':>12} {'special ns':>10} {'copy ns':>8} {'ratio':>6}")
    for (primitive, where), implementations in LOWERINGS.items():
        if where == platform:
            reference, special = (nanoseconds(f, x) for f in implementations)
            times = f"{reference:12.2f} {special:10.2f} {copy:8.2f} {reference / special:6.1f}"
            print(f"{primitive.name:12} {where:8} {times}")


def main() -> None:
    """Measure activations, or special lowerings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    parser.add_argument("--lowerings", action="store_true", help="time special lowerings instead")
    arguments = parser.parse_args()
    if arguments.lowerings:
        lowerings()
    else:
        measure(arguments.names, arguments.markdown)


if __name__ == "__main__":
    main()
