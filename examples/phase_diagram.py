"""Order and chaos: how deep networks with an activation can be, and random networks that agree.

A deep network whose weights and biases are drawn with the wrong standard deviations forgets its inputs: in the ordered
phase all of them end up alike, in the chaotic phase similar ones end up as different as any. `infnet.diagnostics` finds
the phases of any activation that infnet knows, and the number of layers that signals get through; random networks of
finite width show that it is so. Run it: `python examples/phase_diagram.py --activation gelu`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from infnet import diagnostics, plot
from infnet.diagnostics import DepthScale, PhaseDiagram

ACTIVATIONS = {"tanh": jnp.tanh, "erf": jax.scipy.special.erf, "relu": jax.nn.relu, "gelu": jax.nn.gelu}
# Of the random networks: standard deviations of weights by activation, and of biases; the correlation of their inputs.
W_STD = {"tanh": (0.8, 1.2, 2.0), "erf": (0.7, 1.0, 1.8), "relu": (0.8, 1.1, 1.35), "gelu": (0.8, 1.1, 1.35)}
B_STD = 0.3
FIRST = 0.5
COLORS = "#0072B2", "#E69F00", "#009E73"


@dataclass
class Results:
    """What is printed and drawn.

    Attributes:
        diagram: the phases over a grid.
        scales: at the standard deviations of the random networks, arrays (3,).
        measured: the correlation of two hidden vectors of random networks, after each layer (3, layers + 1).
    """

    diagram: PhaseDiagram
    scales: DepthScale
    measured: np.ndarray

    @property
    def distances(self) -> np.ndarray:
        return np.abs(self.measured - self.scales.c_star[:, None])


def measure(activation: Callable, scales: DepthScale, width: int, layers: int, networks: int) -> np.ndarray:
    """The correlation of two arguments of variance q* after each layer of random networks; means over these."""
    turn = jnp.array([[1.0, 0.0], [FIRST, (1 - FIRST**2) ** 0.5]])

    def network(key: jax.Array, w_std: jax.Array, b_std: jax.Array, q: jax.Array) -> jax.Array:
        def layer(h: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_weights, of_biases = jax.random.split(key)
            weights = jax.random.normal(of_weights, (width, width)) * w_std / width**0.5
            h = activation(h) @ weights + b_std * jax.random.normal(of_biases, (width,))
            return h, correlation(h)

        first, rest = jax.random.split(key)
        h = q**0.5 * turn @ jax.random.normal(first, (2, width))
        after = jax.lax.scan(layer, h, jax.random.split(rest, layers))[1]
        return jnp.concatenate([correlation(h)[None], after])

    # Programs with bits of this kind run in a fraction of the time.
    keys = jax.random.split(jax.random.key(0, impl="rbg"), networks)
    mean = jax.jit(lambda *stds: jax.lax.map(lambda key: network(key, *stds), keys).mean(0))
    points = zip(scales.w_std, scales.b_std, scales.q_star, strict=True)
    return np.stack([mean(*map(np.float32, point)) for point in points])


def correlation(h: jax.Array) -> jax.Array:
    gram = h @ h.T
    return gram[0, 1] / jnp.sqrt(gram[0, 0] * gram[1, 1])


def run(name: str, fast: bool) -> Results:
    activation = ACTIVATIONS[name]
    width, layers, networks, points = (200, 20, 16, 26) if fast else (800, 40, 20, 76)
    diagram = diagnostics.phase_diagram(activation, np.linspace(0.5, 3, points), np.linspace(0, 1, points))
    scales = diagnostics.depth_scale(activation, W_STD[name], B_STD)
    return Results(diagram, scales, measure(activation, scales, width, layers, networks))


# Reporting.


def table(results: Results) -> Table:
    scales = results.scales
    table = Table(title=f"Deep networks with {results.diagram.activation}, b_std = {B_STD}")
    for column in ("w_std", "phase", "q*", "chi_1", "c*", "xi_c, layers", f"c after {results.measured.shape[1] - 1}"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for k, w in enumerate(scales.w_std):
        numbers = scales.q_star[k], scales.chi_1[k], scales.c_star[k]
        rest = f"{scales.xi_c[k]:.1f}", f"{results.measured[k, -1]:.3f}"
        table.add_row(f"{w:g}", str(scales.phase[k]), *(f"{x:.3f}" for x in numbers), *rest)
    return table


def draw(results: Results, path: Path) -> None:
    """How two inputs become more or less alike in random networks, and the exponentials of the depth scales."""
    figure = Figure(figsize=(13, 5.2), dpi=130, layout="constrained")
    figure.suptitle(f"Random networks with {results.diagram.activation}, b_std = {B_STD}", fontsize=15)
    left, right = figure.subplots(1, 2)
    layers, scales = np.arange(results.measured.shape[1]), results.scales
    for k, color in enumerate(COLORS):
        label = f"w_std = {scales.w_std[k]:g}, {scales.phase[k]}"
        left.plot(layers, results.measured[k], "o", ms=4, color=color, label=label)
        left.axhline(scales.c_star[k], color=color, lw=1, ls="--")
        right.semilogy(layers, results.distances[k], "o", ms=4, color=color, label=label)
        start = results.distances[k, 2]  # beyond the first layers, which are not yet close
        line = start * np.exp(-(layers - 2) / scales.xi_c[k])
        right.semilogy(layers, line, color=color, lw=1, ls="--")
    left.set(xlabel="layer", ylabel="correlation of two inputs", ylim=(-0.05, 1.05))
    left.set_title("Correlation; dashed: c* in the limit", fontsize=12)
    right.set(xlabel="layer", ylabel="distance from c*", ylim=(1e-4, 1.5))
    right.set_title("Distance from c*; dashed: exp(-layer / xi_c)", fontsize=12)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activation", choices=ACTIVATIONS, default="tanh", help="default: tanh")
    parser.add_argument("--fast", action="store_true", help="a coarser grid, smaller networks: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    console = Console()
    results = run(options.activation, options.fast)
    console.print(table(results))
    networks = options.out.with_stem(f"{options.out.stem}_networks")
    plot.phase_diagram(results.diagram, options.out)
    draw(results, networks)
    console.print(f"pictures: {options.out}, {networks}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
