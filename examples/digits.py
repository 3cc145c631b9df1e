"""One network, three predictions: trained by gradient descent, and infinitely wide by its NNGP and its NTK.

The data are scikit-learn's 1797 handwritten digits of 8x8 pixels. The model in `digits_model.py` is ordinary Flax;
its kernels are read off the model object that is also trained. Run it: `python examples/digits.py`.
"""

from __future__ import annotations

import argparse
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_model import DigitsCNN
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import infnet_flax
from infnet.predict import gp_inference

CLASSES = 10

# Learning rate, epochs and regularisation were chosen by validation within the training part of a split
# (random_state=100) that is not among those below.
BATCH, LEARNING_RATE = 64, 3e-3
DIAG_REG = 1e-3  # relative to the mean of the kernel's diagonal

NETWORK, NNGP, NTK = "trained network", "NNGP posterior", "NTK posterior"
COLORS = {NETWORK: "#0072B2", NNGP: "#E69F00", NTK: "#009E73"}  # Okabe and Ito's, for every kind of colour vision
MARKERS = {NETWORK: "o", NNGP: "s", NTK: "D"}
WRONG = "#D55E00"

Kernels = namedtuple("Kernels", ["nngp", "ntk"])


@dataclass
class Split:
    """What the three methods predict for one test set: scores (tests, classes), and the NNGP's standard deviations."""

    test: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]
    deviations: np.ndarray

    def correct(self, method: str) -> np.ndarray:
        return self.scores[method].argmax(1) == self.labels


@dataclass
class Results:
    """Accuracies by method, one for each seed, and seconds."""

    accuracy: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)


def digits(fast: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8, 1) between 0 and 1, and labels (n,)."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    return (images[:320], data.target[:320]) if fast else (images, data.target)


def train(model: DigitsCNN, x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> Iterator[dict]:
    """Cross-entropy, Adam, cosine decay; yields the parameters after every epoch."""
    steps = len(x) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps))
    params = model.init(jax.random.key(seed), x[:1])
    state = optimizer.init(params)

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    shuffle = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in shuffle.permutation(len(x))[: steps * BATCH].reshape(steps, BATCH):
            params, state = step(params, state, x[batch], y[batch])
        yield jax.block_until_ready(params)


def infinite_width_kernels(model: DigitsCNN, x: np.ndarray) -> Kernels:
    """NNGP and NTK (n, n) between all images: infnet's whole part in this script."""
    kernels = infnet_flax.annotate(model).kernel(x, get=("nngp", "ntk"))
    return Kernels(*map(np.asarray, kernels))


def predict(kernels: Kernels, method: str, train: np.ndarray, test: np.ndarray, y: np.ndarray):
    """The posterior, a Gaussian with `.mean` (tests, classes) and `.variance` (tests,)."""
    targets = np.eye(CLASSES, dtype=np.float32)[y[train]] - 1 / CLASSES
    kernel = kernels.nngp if method == NNGP else kernels.ntk
    predictor = gp_inference(kernel[np.ix_(train, train)], targets, diag_reg=DIAG_REG)
    return predictor(k_test_train=kernel[np.ix_(test, train)], k_test_test=np.diagonal(kernel)[test])


def run(seeds: int, epochs: int, fast: bool, console: Console) -> tuple[Results, np.ndarray, np.ndarray, Kernels]:
    model = DigitsCNN()
    x, y = digits(fast)
    results = Results({m: [] for m in COLORS}, dict.fromkeys([*COLORS, "kernels"], 0.0))

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        results.seconds[name] += time.perf_counter() - start

    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        waiting = progress.add_task("NNGP and NTK, one call", total=None)
        with timed("kernels"):
            kernels = infinite_width_kernels(model, x)
        progress.update(waiting, total=1, completed=1)
        for seed in range(seeds):
            rows = np.arange(len(x))
            fit, test = train_test_split(rows, test_size=0.2, random_state=seed, shuffle=True, stratify=y)
            scores = {}
            with timed(NETWORK):
                training = train(model, x[fit], y[fit], seed, epochs)
                *_, params = progress.track(training, epochs, description=f"seed {seed}: training, epochs")
                scores[NETWORK] = np.asarray(jax.jit(model.apply)(params, jnp.asarray(x[test])))
            for method in (NNGP, NTK):
                with timed(method):
                    posterior = predict(kernels, method, fit, test, y)
                    scores[method] = np.asarray(posterior.mean)
                if method == NNGP:
                    deviations = np.sqrt(posterior.variance)
            split = Split(test, y[test], scores, deviations)
            results.splits.append(split)
            for method in scores:
                results.accuracy[method].append(float(split.correct(method).mean()))
    return results, x, y, kernels


# Reporting.


def summary(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values):.2f}"


def table(results: Results, n: int) -> Table:
    seeds = len(results.splits)
    tests = len(results.splits[0].test)
    title = f"{n - tests} training and {tests} test digits, {seeds} shuffled split{'s' * (seeds > 1)}"
    table = Table(title=title)
    table.add_column("method")
    for name in ("test accuracy, %", "seconds a split", "seconds, once"):
        table.add_column(name, justify="right")
    kernels = f"{results.seconds['kernels']:.1f}"
    once = {NETWORK: "", NNGP: kernels, NTK: "(the same)"}
    for method, accuracy in results.accuracy.items():
        table.add_row(method, summary(accuracy), f"{results.seconds[method] / seeds:.2f}", once[method])
    return table


def draw(results: Results, x: np.ndarray, y: np.ndarray, kernels: Kernels, path: Path) -> None:
    figure = Figure(figsize=(18, 6.4), dpi=130, layout="constrained")
    figure.suptitle("One Flax CNN on handwritten digits: trained, and at infinite width", fontsize=17)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[0.95, 1.1, 1.6], wspace=0.03)
    draw_accuracies(left.add_subplot(), results)
    draw_kernel(middle.add_subplot(), kernels.ntk, y)
    draw_hardest(right, results.splits[0], x)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_accuracies(axes: Axes, results: Results) -> None:
    """One point for each seed and method; a line at each method's mean."""
    tests = len(results.splits[0].test)
    for k, (method, accuracy) in enumerate(results.accuracy.items()):
        percent = 100 * np.array(accuracy)
        style = {"color": COLORS[method], "marker": MARKERS[method], "markersize": 9, "markeredgecolor": "white"}
        axes.plot(np.arange(len(percent)) + 0.2 * (k - 1), percent, linestyle="", **style)
        axes.axhline(percent.mean(), color=COLORS[method], linestyle=(5 * k, (5, 5)), linewidth=1.2)
        wrong = tests * (1 - np.mean(accuracy))
        axes.plot([], [], **style, label=f"{method}: {percent.mean():.2f} %, {wrong:.1f} of {tests} wrong")
    axes.set_xticks(range(len(results.splits)))
    axes.set(xlabel="seed of the split and of the initialisation", ylabel="test accuracy, %")
    axes.set_title("Accuracy on the same test digits; dashed: mean", fontsize=13)
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.08, y=0.12)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), frameon=False, fontsize=11)


def draw_kernel(axes: Axes, ntk: np.ndarray, y: np.ndarray) -> None:
    """The NTK as a correlation, examples sorted by class."""
    order = np.argsort(y, kind="stable")
    scale = np.sqrt(np.diagonal(ntk))
    correlation = (ntk / scale / scale[:, None])[np.ix_(order, order)]
    low = np.percentile(correlation, 1)
    image = axes.imshow(correlation, cmap="cividis", vmin=low, vmax=1, interpolation="antialiased")
    edges = np.searchsorted(y[order], np.arange(CLASSES + 1)) - 0.5
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", linewidth=0.6)
        axes.axvline(edge, color="white", linewidth=0.6)
    centres = (edges[1:] + edges[:-1]) / 2
    axes.set_xticks(centres, range(CLASSES))
    axes.set_yticks(centres, range(CLASSES))
    axes.tick_params(length=0)
    axes.set(xlabel="true digit", ylabel="true digit")
    axes.set_title(f"The NTK of all {len(y)} images, sorted by digit", fontsize=13)
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, extend="min")
    bar.set_label("NTK, normalised to 1 on the diagonal")


def hardest(split: Split, count: int) -> np.ndarray:
    """The test digits that most methods get wrong; among equals, those with the least margin of the NTK."""
    wrong = sum(~split.correct(method) for method in COLORS)
    rows = np.arange(len(split.labels))
    others = split.scores[NTK].copy()
    others[rows, split.labels] = -np.inf
    margin = split.scores[NTK][rows, split.labels] - others.max(1)
    return np.lexsort((margin, -wrong))[:count]


def draw_hardest(figure: SubFigure, split: Split, x: np.ndarray) -> None:
    """Images, with what each method says and the NNGP's posterior for every class."""
    figure.suptitle(
        "The hardest digits of the first test set: NNGP posterior, mean ± 2 std\n"
        "green bar: the true digit; bold orange: a wrong prediction",
        fontsize=13,
    )
    axes = figure.subplots(3, 4, width_ratios=[1, 1.7, 1, 1.7])
    for index, picture, chart in zip(hardest(split, 6), axes[:, ::2].flat, axes[:, 1::2].flat, strict=True):
        truth = split.labels[index]
        picture.imshow(x[split.test[index], ..., 0], cmap="gray_r", interpolation="nearest")
        picture.set(xticks=[], yticks=[], title=f"true digit {truth}")
        mean = split.scores[NNGP][index] + 1 / CLASSES
        colors = [COLORS[NTK] if digit == truth else "#A0A0A0" for digit in range(CLASSES)]
        chart.bar(range(CLASSES), mean, yerr=2 * split.deviations[index], color=colors, error_kw={"linewidth": 1})
        chart.axhline(0, color="black", linewidth=0.6)
        chart.set_xticks(range(CLASSES))
        chart.tick_params(labelsize=9)
        chart.set_title(" ")  # room for the line of predictions
        for place, name, method in ((0, "net", NETWORK), (0.29, "NNGP", NNGP), (0.7, "NTK", NTK)):
            said = split.scores[method][index].argmax()
            style = {} if said == truth else {"color": WRONG, "fontweight": "bold"}
            chart.text(place, 1.05, f"{name} {said}", transform=chart.transAxes, fontsize=10.5, **style)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of shuffled splits (default 5)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of training (default 20)")
    parser.add_argument("--fast", action="store_true", help="320 digits, 1 seed, 5 epochs: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    seeds, epochs = (1, 5) if options.fast else (options.seeds, options.epochs)

    console = Console()
    start = time.perf_counter()
    results, x, y, kernels = run(seeds, epochs, options.fast, console)
    console.print(table(results, len(x)))
    draw(results, x, y, kernels, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    accuracies = ", ".join(f"{method} {summary(values)} %" for method, values in results.accuracy.items())
    seconds = time.perf_counter() - start
    console.print(f"digits: {accuracies}; {seconds:.0f} s in all", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
