"""A Haiku training pipeline, and beside it the linearized network and the infinitely wide one.

The pipeline is Haiku and optax as usual; `infnet_haiku.transform` in place of `hk.transform` is all that changes. The
same training loop runs on the network and on its linearization at initialisation, and the NTK says where both would
be, after the same steps, if they were infinitely wide. Run it: `python examples/haiku_pipeline.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import make_moons

import infnet_haiku
from infnet.predict import gradient_descent_mse, max_learning_rate

NETWORK, LINEARIZED, NTK = "trained network", "linearized network", "infinite width (NTK)"
COLORS = {NETWORK: "#0072B2", LINEARIZED: "#E69F00", NTK: "#009E73"}


def network(width: int) -> Callable[[jax.Array], jax.Array]:
    """The function that Haiku transforms."""

    def forward(x: jax.Array) -> jax.Array:
        normal = hk.initializers.VarianceScaling(2.0, "fan_in", "normal")
        mlp = hk.nets.MLP(
            [width, width, 1], w_init=normal, b_init=hk.initializers.RandomNormal(0.3), activation=jax.nn.gelu
        )
        return mlp(x)

    return forward


@dataclass
class Results:
    """What is printed and drawn: predictions on a grid and on the test points by method, and losses at every step."""

    grid: tuple[np.ndarray, np.ndarray]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, np.ndarray] = field(default_factory=dict)

    def accuracy(self, method: str) -> float:
        return float((np.sign(self.predictions[method]) == self.test[1]).mean())


def moons(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) of two half circles, and labels -1 or 1 (n,)."""
    x, y = make_moons(n, noise=0.15, random_state=seed)
    return np.float32(x - [0.5, 0.25]), np.float32(2 * y - 1)


def gradient_descent(
    f: Callable, params: hk.Params, x: jax.Array, y: jax.Array, learning_rate: float, steps: int
) -> tuple[hk.Params, np.ndarray]:
    """Full-batch gradient descent on half the mean squared error; the loss before every step."""
    optimizer = optax.sgd(learning_rate)

    def loss(params):
        return 0.5 * jnp.mean((f(params, x)[:, 0] - y) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))(
        (params, optimizer.init(params))
    )
    return params, np.asarray(losses)


def run(width: int, steps: int, console: Console) -> Results:
    train, test = moons(120, seed=0), moons(400, seed=1)
    sides = np.linspace(-1.8, 1.8, 61, dtype=np.float32), np.linspace(-1.3, 1.3, 45, dtype=np.float32)
    points = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    results = Results(sides, train, test)
    everywhere = jnp.asarray(np.concatenate([points, test[0]]))

    def keep(method: str, values: jax.Array) -> None:
        values = np.asarray(values)
        results.maps[method] = values[: len(points)].reshape(len(sides[1]), len(sides[0]))
        results.predictions[method] = values[len(points) :]

    columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("kernels", total=3)
        net = infnet_haiku.transform(network(width), apply_rng=False)  # in place of hk.transform
        x, y = map(jnp.asarray, train)
        ntk = net.kernel(x, get="ntk")
        # The kernel also says which learning rate is stable.
        learning_rate = float(max_learning_rate(ntk)) / 2
        predict = gradient_descent_mse(ntk, y, learning_rate)
        keep(NTK, predict(None, None, 0.0, net.kernel(everywhere, x, "ntk"), steps=steps))
        progress.advance(task)

        params = net.init(jax.random.key(0), x)
        for method, apply in ((NETWORK, net.apply), (LINEARIZED, net.linearize(params))):
            progress.update(task, description=method)

            def centred(p: hk.Params, x: jax.Array, apply: Callable = apply) -> jax.Array:
                # The NTK predicts the mean over initialisations: without the outputs at this one.
                return apply(p, x) - net.apply(params, x)

            trained, results.losses[method] = gradient_descent(centred, params, x, y, learning_rate, steps)
            keep(method, centred(trained, everywhere)[:, 0])
            progress.advance(task)
    return results


# Reporting.


def table(results: Results, width: int, steps: int) -> Table:
    table = Table(title=f"Two moons: width {width}, {steps} steps of gradient descent")
    table.add_column("method")
    for name in ("test accuracy, %", "last training loss", "rms distance from infinite width, test points"):
        table.add_column(name, justify="right")
    for method in COLORS:
        losses = results.losses.get(method)
        distance = np.sqrt(np.mean((results.predictions[method] - results.predictions[NTK]) ** 2))
        loss = "" if losses is None else f"{losses[-1]:.4f}"
        table.add_row(method, f"{100 * results.accuracy(method):.1f}", loss, f"{distance:.3f}")
    return table


def draw(results: Results, path: Path) -> None:
    figure = Figure(figsize=(19, 4.6), dpi=130, layout="constrained")
    figure.suptitle("One Haiku network: trained, linearized, and infinitely wide", fontsize=16)
    *maps, curves = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.05])
    for axes, method in zip(maps, COLORS, strict=True):
        filled = draw_map(axes, results, method)
    figure.colorbar(filled, ax=maps, shrink=0.85, label="prediction")
    draw_losses(curves, results.losses)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_map(axes: Axes, results: Results, method: str):
    x, y = results.train
    levels = np.linspace(-1.6, 1.6, 17)
    filled = axes.contourf(*results.grid, results.maps[method], levels, cmap="RdBu_r", extend="both", alpha=0.85)
    axes.contour(*results.grid, results.maps[method], [0.0], colors="black", linewidths=1.2)
    for label, color in ((-1, "#08306B"), (1, "#67000D")):
        axes.plot(*x[y == label].T, "o", color=color, markersize=4, markeredgecolor="white", markeredgewidth=0.5)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{method}: {100 * results.accuracy(method):.1f} % right", fontsize=13)
    return filled


def draw_losses(axes: Axes, losses: dict[str, np.ndarray]) -> None:
    for method, values in losses.items():
        style = "--" if method == LINEARIZED else "-"
        axes.loglog(np.arange(1, len(values) + 1), values, style, color=COLORS[method], label=method)
    axes.set(xlabel="step of gradient descent", ylabel="training loss")
    axes.set_title("The same loop, the same learning rate", fontsize=13)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512, help="of the hidden layers (default 512)")
    parser.add_argument("--steps", type=int, default=3000, help="of gradient descent (default 3000)")
    parser.add_argument("--fast", action="store_true", help="width 64, 200 steps: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    width, steps = (64, 200) if options.fast else (options.width, options.steps)
    console = Console()
    results = run(width, steps, console)
    console.print(table(results, width, steps))
    draw(results, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
