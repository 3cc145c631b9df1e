"""A network trained with optax, and the same training of the infinitely wide network, predicted in closed form.

An ordinary Flax network of width 2048 reads handwritten digits and is trained with `optax.sgd`, without momentum, with
it and with Nesterov's. From its kernel before training, `infnet.predict` says what it will be after every step: its
loss on the training images, its loss on test images, and its outputs for single ones.

Run it: `python examples/train_with_optax.py`. It takes a minute on 2 cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import infnet_flax
from infnet.predict import gradient_descent_mse, max_learning_rate

# The arguments of optax.sgd, by the name in the picture.
RULES = {"SGD": {}, "momentum 0.9": {"momentum": 0.9}, "Nesterov 0.9": {"momentum": 0.9, "nesterov": True}}
COLORS = dict(zip(RULES, ("#0072B2", "#D55E00", "#009E73"), strict=True))
SHADES = ("#0072B2", "#E69F00", "#CC79A7", "#009E73")
N_TEST = 500


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


@dataclass
class Outputs:
    """Of a network at every step of `Results.steps`, (steps, images, 10)."""

    train: np.ndarray
    test: np.ndarray


@dataclass
class Results:
    """Images and targets of both sets, the steps that were looked at, and what came out of both, by training rule."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    steps: np.ndarray
    trained: dict[str, Outputs] = field(default_factory=dict)
    predicted: dict[str, Outputs] = field(default_factory=dict)

    def losses(self, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """On the training and on the test set, at every step."""
        pairs = ((outputs.train, self.train[1]), (outputs.test, self.test[1]))
        train, test = (0.5 * np.mean((fx - y) ** 2, (1, 2)) for fx, y in pairs)
        return train, test

    def accuracy(self, outputs: Outputs) -> float:
        """Of the last outputs on the test set."""
        return float(np.mean(outputs.test[-1].argmax(1) == self.test[1].argmax(1)))


def digits(n: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images (n, 64) and targets (n, 10), 0.9 at the digit and -0.1 elsewhere, for training; and those of the test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))[: n + N_TEST]
    x, y = np.float32(images[order] / 8 - 1), np.float32(np.eye(10)[labels[order]] - 0.1)
    return (x[:n], y[:n]), (x[n:], y[n:])


def train(
    model: nn.Module, variables: dict, results: Results, optimizer: optax.GradientTransformation, tick
) -> Outputs:
    """Full-batch training on half the mean squared error, as anyone writes it."""
    (x, y), (x_test, _) = results.train, results.test

    def loss(variables):
        return 0.5 * jnp.mean((model.apply(variables, x) - y) ** 2)

    def step(_, carry):
        variables, state = carry
        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    several = jax.jit(lambda count, carry: jax.lax.fori_loop(0, count, step, carry))
    carry, rows = (variables, optimizer.init(variables)), []
    for count in np.diff(results.steps, prepend=0):
        carry = several(count, carry)
        rows.append([np.asarray(model.apply(carry[0], images)) for images in (x, x_test)])
        tick(int(count))
    return Outputs(*(np.stack(outputs) for outputs in zip(*rows, strict=True)))


def run(width: int, n: int, n_steps: int, console: Console) -> Results:
    steps = np.unique(np.round(np.geomspace(1, n_steps + 1, 70)).astype(int)) - 1
    results = Results(*digits(n), steps)
    (x, y), (x_test, _) = results.train, results.test
    model = infnet_flax.annotate(MLP(width))
    variables = model.init(jax.random.key(0), x)

    ntk, ntk_test = model.kernel(x, get="ntk"), model.kernel(x_test, x, get="ntk")
    start = (model.apply(variables, x), model.apply(variables, x_test))
    learning_rate = float(max_learning_rate(ntk, y.size)) / 6
    columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name, rule in RULES.items():
            task = progress.add_task(name, total=n_steps)
            predict = gradient_descent_mse(ntk, y, learning_rate, **rule)
            predicted = predict(None, *start, ntk_test, steps=steps)
            results.predicted[name] = Outputs(*map(np.asarray, predicted))
            optimizer = optax.sgd(learning_rate, **rule)
            results.trained[name] = train(
                model, variables, results, optimizer, lambda k, t=task: progress.advance(t, k)
            )
    return results


# Reporting.


def table(results: Results, width: int) -> Table:
    table = Table(title=f"Ten digits, {len(results.train[0])} training images: width {width}, and its limit")
    table.add_column("after the last step")
    for name in ("train loss", "test loss", "test accuracy, %", "rms distance of test outputs"):
        table.add_column(name, justify="right")
    for name in RULES:
        trained, predicted = results.trained[name], results.predicted[name]
        distance = np.sqrt(np.mean((trained.test[-1] - predicted.test[-1]) ** 2))
        for label, outputs, last in ((name, trained, f"{distance:.3f}"), ("  predicted", predicted, "")):
            losses = [f"{values[-1]:.5f}" for values in results.losses(outputs)]
            table.add_row(label, *losses, f"{100 * results.accuracy(outputs):.1f}", last)
    return table


def draw(results: Results, width: int, path: Path) -> None:
    figure = Figure(figsize=(19, 9.4), dpi=110, layout="constrained")
    figure.suptitle(f"Training with optax at width {width} (dots), and its prediction (lines)", fontsize=17)
    top, bottom = figure.subfigures(2, 1)
    for axes, which in zip(top.subplots(1, 2), (0, 1), strict=True):
        draw_losses(axes, results, which)
    for axes, name in zip(bottom.subplots(1, len(RULES), sharey=True), RULES, strict=True):
        draw_outputs(axes, results, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_losses(axes: Axes, results: Results, which: int) -> None:
    for name, color in COLORS.items():
        axes.plot(
            results.steps + 1, results.losses(results.predicted[name])[which], color=color, alpha=0.5, linewidth=4
        )
        losses = results.losses(results.trained[name])[which]
        axes.plot(results.steps + 1, losses, "o", color=color, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="step + 1", title=("training loss", "test loss")[which])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def draw_outputs(axes: Axes, results: Results, name: str) -> None:
    """Outputs for some test images, each at the digit that it is."""
    targets = results.test[1].argmax(1)
    images = [int(np.argmax(targets == digit)) for digit in (0, 3, 5, 8)]
    for image, color in zip(images, SHADES, strict=True):
        place = (slice(None), image, targets[image])
        axes.plot(results.steps + 1, results.predicted[name].test[place], color=color, alpha=0.5, linewidth=4)
        label = f"a test image of {targets[image]}"
        axes.plot(results.steps + 1, results.trained[name].test[place], "o", color=color, markersize=4, label=label)
    axes.axhline(0.9, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="step + 1", title=f"outputs, {name}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048, help="of both hidden layers (default 2048)")
    parser.add_argument("--images", type=int, default=60, help="for training (default 60)")
    parser.add_argument("--steps", type=int, default=150, help="of each training (default 150)")
    parser.add_argument("--fast", action="store_true", help="width 256, 20 images, 30 steps: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    width, images, steps = (256, 20, 30) if options.fast else (options.width, options.images, options.steps)
    console = Console()
    results = run(width, images, steps, console)
    console.print(table(results, width))
    draw(results, width, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
