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
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import infnet_flax
from infnet.predict import gp_inference

CLASSES = 10
TILE = 64  # 64 x 64 pairs of examples at a time stay in the cache of a CPU

# Learning rate, epochs and regularisation were chosen by cross-validation within the training part of a split
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


def infinite_width_kernels(model: DigitsCNN, x: np.ndarray, progress: Progress) -> Kernels:
    """NNGP and NTK (n, n) of the model, a tile at a time, each unordered pair of tiles once."""
    model = infnet_flax.annotate(model)
    n = len(x)
    kernels = Kernels(*np.zeros((2, n, n), np.float32))
    starts = [min(start, n - TILE) for start in range(0, n, TILE)]  # the last tile overlaps the one before
    pairs = [(row, column) for i, row in enumerate(starts) for column in starts[: i + 1]]
    for row, column in progress.track(pairs, description="NNGP and NTK, tiles"):
        x1, x2 = x[row : row + TILE], x[column : column + TILE]
        tile = model.kernel(x1, None if row == column else x2, get=("nngp", "ntk"))
        for whole, part in zip(kernels, tile, strict=True):
            whole[row : row + TILE, column : column + TILE] = part
            whole[column : column + TILE, row : row + TILE] = part.T
    return kernels


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
        with timed("kernels"):
            kernels = infinite_width_kernels(model, x, progress)
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
    figure = Figure(figsize=(17, 6.6), dpi=130, layout="constrained")
    figure.suptitle("An ordinary Flax CNN on handwritten digits, trained and at infinite width", fontsize=16)
    panels = figure.add_gridspec(1, 3, width_ratios=[0.95, 1.15, 1.6], wspace=0.04)
    draw_accuracies(figure.add_subplot(panels[0]), results)
    draw_kernel(figure.add_subplot(panels[1]), kernels.ntk, y)
    draw_hardest(figure, panels[2], results.splits[0], x)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_accuracies(axes: Axes, results: Results) -> None:
    """One point for each seed and method; a line at each method's mean."""
    for k, (method, accuracy) in enumerate(results.accuracy.items()):
        percent = 100 * np.array(accuracy)
        axes.scatter(
            np.arange(len(percent)) + 0.22 * (k - 1), percent, 70, COLORS[method], MARKERS[method], edgecolor="white"
        )
        label = f"{method}, mean {percent.mean():.2f}"
        axes.axhline(percent.mean(), color=COLORS[method], linestyle=("-", "--", ":")[k], linewidth=1.4, label=label)
        axes.lines[-1].set_marker(MARKERS[method])
        axes.lines[-1].set_markevery([-2])
    axes.set_xticks(range(len(results.splits)))
    axes.set(xlabel="seed of the split and of the initialisation", ylabel="test accuracy, %")
    axes.set_title("All three read the digits about equally well")
    axes.grid(axis="y", alpha=0.3)
    axes.margins(y=0.15)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


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
    axes.set_title("The NTK, before any training, knows the classes")
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", shrink=0.75, pad=0.02, extend="min")
    bar.set_label("NTK between two images, normalised to 1 on the diagonal")


def hardest(split: Split, count: int) -> np.ndarray:
    """The test digits that most methods get wrong; among equals, those with the least margin of the NTK."""
    wrong = sum(~split.correct(method) for method in COLORS)
    rows = np.arange(len(split.labels))
    others = split.scores[NTK].copy()
    others[rows, split.labels] = -np.inf
    margin = split.scores[NTK][rows, split.labels] - others.max(1)
    return np.lexsort((margin, -wrong))[:count]


def draw_hardest(figure: Figure, panel: SubplotSpec, split: Split, x: np.ndarray) -> None:
    """Images, with what each method says and the NNGP's posterior for every class."""
    grid = GridSpecFromSubplotSpec(3, 4, panel, width_ratios=[1, 1.5, 1, 1.5], hspace=0.1)
    title = figure.add_subplot(panel, frameon=False, xticks=[], yticks=[])
    title.set_title("The hardest test digits of seed 0, and the NNGP's posterior (mean ± 2 std)", pad=12)
    for k, index in enumerate(hardest(split, 6)):
        row, column = divmod(k, 2)
        truth = split.labels[index]
        picture = figure.add_subplot(grid[row, 2 * column])
        picture.imshow(x[split.test[index], ..., 0], cmap="gray_r", interpolation="nearest")
        picture.set(xticks=[], yticks=[])
        picture.set_title(f"a {truth}", fontsize=11)
        chart = figure.add_subplot(grid[row, 2 * column + 1])
        mean = split.scores[NNGP][index] + 1 / CLASSES
        colors = ["#009E73" if c == truth else "#999999" for c in range(CLASSES)]
        chart.bar(range(CLASSES), mean, yerr=2 * split.deviations[index], color=colors, error_kw={"linewidth": 1})
        chart.axhline(0, color="black", linewidth=0.6)
        chart.set_xticks(range(CLASSES))
        chart.tick_params(labelsize=8)
        said = {method: split.scores[method][index].argmax() for method in COLORS}
        for j, (method, digit) in enumerate(said.items()):
            chart.text(
                (0.02, 0.44, 0.75)[j], 1.04, f"{method.split()[-1 if method == NETWORK else 0]} {digit}",
                transform=chart.transAxes, fontsize=9.5, color="black" if digit == truth else WRONG,
                fontweight="normal" if digit == truth else "bold",
            )  # fmt: skip


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
