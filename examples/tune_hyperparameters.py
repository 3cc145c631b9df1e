"""The priors of a network, tuned by gradient ascent on the evidence: w_std, b_std of every layer, and the noise.

The log marginal likelihood of the training targets, under the network at infinite width, is differentiable in the
standard deviations of its parameters; optax maximises it. No test data are used, and yet they become more
likely.
Run it: `python examples/tune_hyperparameters.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_diabetes

import infnet_flax
from infnet.predict import Gaussian, gp_inference, log_marginal_likelihood

N_TRAIN = 221
FIRST_NOISE = 0.1
COLORS = {"train": "#0072B2", "test": "#D55E00", "before": "#999999"}


class Network(nn.Module):
    """Two hidden layers; every weight and bias has its own standard deviation, 1 before tuning."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = jax.lax.erf(infnet_flax.Dense(512, w_std=1.0, b_std=1.0)(x))
        return infnet_flax.Dense(1, w_std=1.0, b_std=1.0)(x)


@dataclass
class Results:
    """Histories, one entry a step: log densities per patient, and hyperparameters by name; predictions of two steps."""

    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    stds: dict[str, list[float]] = field(default_factory=dict)
    predictions: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0))


def patients() -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Training and test sets of ten measurements and a year's progression of diabetes, standardised on the former."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    train, test = order[:N_TRAIN], order[N_TRAIN:]

    def standardised(values: np.ndarray) -> np.ndarray:
        return np.float32((values - values[train].mean(0)) / values[train].std(0))

    x, y = standardised(x), standardised(y)
    return (jnp.asarray(x[train]), jnp.asarray(y[train])), (jnp.asarray(x[test]), jnp.asarray(y[test]))


def run(steps: int, console: Console) -> Results:
    (x, y), (x_test, y_test) = patients()
    kernel_fn = infnet_flax.kernel_fn(Network(), x)

    # What is tuned: logarithms, so that everything stays positive.
    first = {"stds": kernel_fn.hyperparameters, "noise": jnp.asarray(FIRST_NOISE)}
    logs = jax.tree.map(lambda value: jnp.log(jnp.asarray(value, jnp.float32)), first)
    optimizer = optax.adam(0.1)

    def objective(logs: Any) -> jax.Array:
        tuned = jax.tree.map(jnp.exp, logs)
        kernel = kernel_fn.with_hyperparameters(tuned["stds"])
        return -log_marginal_likelihood(kernel, x, y, tuned["noise"]) / len(x)  # per patient

    @jax.jit
    def update(logs: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        loss, slopes = jax.value_and_grad(objective)(logs)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(logs, updates), state, -loss

    @jax.jit
    def predicted(logs: Any) -> tuple[Gaussian, jax.Array]:
        """Of a new patient: the network's Gaussian, and the variance of what is measured."""
        tuned = jax.tree.map(jnp.exp, logs)
        kernel = kernel_fn.with_hyperparameters(tuned["stds"])
        fitted = gp_inference(kernel(x, get="nngp"), y, noise=tuned["noise"])
        gaussian = fitted("nngp", kernel(x_test, x, "nngp"), kernel.diag(x_test, "nngp"))
        return gaussian, gaussian.variance + tuned["noise"]

    results, state = Results(truth=np.asarray(y_test)), optimizer.init(logs)
    for step in track(range(steps + 1), "tuning", console=console):
        gaussian, variance = predicted(logs)
        results.test.append(float(jax.scipy.stats.norm.logpdf(y_test, gaussian.mean, variance**0.5).mean()))
        record(results.stds, logs)
        if step in (0, steps):
            name = "after" if step else "before"
            results.predictions[name] = np.asarray(gaussian.mean), np.asarray(variance) ** 0.5
        logs, state, evidence = update(logs, state)
        results.train.append(float(evidence))
    return results


def record(history: dict[str, list[float]], logs: Any) -> None:
    """Append the hyperparameters, each by its name."""
    for path, value in jax.tree.leaves_with_path(logs["stds"]):
        layer, name = (entry.key for entry in path)
        label = {"kernel": "w_std", "bias": "b_std"}[name]
        history.setdefault(f"{label}, layer {int(layer[-1]) + 1}", []).append(float(jnp.exp(value)))
    history.setdefault("noise (std)", []).append(float(jnp.exp(logs["noise"] / 2)))


# Reporting.


def table(results: Results) -> Table:
    table = Table(title=f"Diabetes: {N_TRAIN} patients to tune on, {len(results.truth)} to test")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    errors = {when: np.sqrt(np.mean((mean - results.truth) ** 2)) for when, (mean, _) in results.predictions.items()}
    rows = {"log evidence per training patient": results.train, "log density per test patient": results.test}
    for name, history in (*rows.items(), *results.stds.items()):
        table.add_row(name, f"{history[0]:.3f}", f"{history[-1]:.3f}")
    table.add_row("rms error, test", f"{errors['before']:.3f}", f"{errors['after']:.3f}")
    return table


def draw(results: Results, path: Path) -> None:
    figure = Figure(figsize=(16, 4.8), dpi=130, layout="constrained")
    figure.suptitle("Priors of a network of infinite width, tuned by the evidence", fontsize=16)
    likelihoods, stds, predictions = figure.subplots(1, 3)
    likelihoods.plot(results.train, color=COLORS["train"], label="evidence, per training patient")
    likelihoods.plot(results.test, color=COLORS["test"], label="predictive density, per test patient")
    likelihoods.set(xlabel="step of Adam", ylabel="log density, nats")
    likelihoods.set_title("What is maximised, and what follows", fontsize=13)
    likelihoods.legend(frameon=False, loc="lower right")
    for number, (name, history) in enumerate(results.stds.items()):
        style = "-" if name.startswith("w") else "--" if name.startswith("b") else ":"
        stds.semilogy(history, style, color=f"C{number}", label=name)
    stds.set(xlabel="step of Adam", ylabel="standard deviation")
    stds.set_title("Hyperparameters", fontsize=13)
    stds.legend(frameon=False, fontsize=8, ncols=2, loc="center right", bbox_to_anchor=(1.0, 0.32))
    draw_predictions(predictions, results)
    for axes in (likelihoods, stds):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_predictions(axes: Axes, results: Results) -> None:
    """Standardised errors: what is well calibrated is N(0, 1)."""
    bins = np.linspace(-6, 6, 49)
    for when, color in (("before", COLORS["before"]), ("after", COLORS["test"])):
        mean, deviation = results.predictions[when]
        axes.hist(
            (results.truth - mean) / deviation, bins, density=True, color=color, alpha=0.6, label=f"{when} tuning"
        )
    axes.plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), color="black", label="what it claims: N(0, 1)")
    axes.set(xlabel="test error / predicted standard deviation", ylabel="density")
    axes.set_title("Are its uncertainties right?", fontsize=13)
    axes.legend(frameon=False, fontsize=9)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of Adam (default 100)")
    parser.add_argument("--fast", action="store_true", help="30 steps: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    console = Console()
    results = run(30 if options.fast else options.steps, console)
    console.print(table(results))
    draw(results, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
