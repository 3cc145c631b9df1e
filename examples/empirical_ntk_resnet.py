"""The exact NTK of a trained Flax ResNet, by three methods, and what training has made of it.

`resnet.py` is an ordinary post-activation ResNet with batch normalisation, which has no infinite-width limit; its NTK
at given parameters exists all the same. The script trains it on scikit-learn's handwritten digits of 8x8 pixels,
follows the NTK between images that it is not trained on, and then computes the NTK between all logits of some of them
by every implementation of `infnet.empirical_ntk_fn`: what they take, and which one "auto" picks. At the end, a ResNet18
at 32x32 pixels. Run it: `python examples/empirical_ntk_resnet.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax.training.train_state import TrainState
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from resnet import ResNet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import infnet
from infnet.diagnostics import alignment, label_kernel, spectrum
from infnet.empirical import Cost

CLASSES = 10
BATCH, LEARNING_RATE = 64, 3e-3
# Steps before training, in which only the statistics of the normalisation are estimated.
STATISTICS = 30

BEFORE, AFTER = "before training", "after training"
STRUCTURED, CONTRACTION, PRODUCTS = "structured_derivatives", "jacobian_contraction", "ntk_vector_products"
COLORS = {STRUCTURED: "#0072B2", CONTRACTION: "#E69F00", PRODUCTS: "#009E73"}
GREY = "#A0A0A0"


@dataclass
class Measured:
    """What one NTK takes: seconds to compile and to run (the best run), and XLA's analysis of the program."""

    implementation: str
    compilation: float
    seconds: float
    cost: Cost
    ntk: np.ndarray

    @property
    def megabytes(self) -> float:
        return float("nan") if self.cost.memory is None else self.cost.memory / 1e6


@dataclass
class Results:
    """What is printed and drawn.

    Attributes:
        labels: of the images that kernels are of (n,), sorted.
        steps: of training at which kernels were computed.
        ntks: of these images, averaged over the logits (n, n), one for each of the steps.
        accuracies: of the network on images that it was not trained on, one for each of the steps.
        methods: the NTK of some of these images and all of their logits, by implementation and by "auto".
        resnet18: the NTK of a larger network, by "auto".
    """

    labels: np.ndarray
    steps: list[int] = field(default_factory=list)
    ntks: list[np.ndarray] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    methods: dict[str, Measured] = field(default_factory=dict)
    resnet18: Measured | None = None

    @property
    def alignments(self) -> list[float]:
        target = label_kernel(self.labels)
        return [alignment(ntk, target) for ntk in self.ntks]

    @property
    def difference(self) -> float:
        """The largest one between two methods, relative to the largest entry of the NTK."""
        ntks = np.stack([measured.ntk for measured in self.methods.values()])
        return float(np.ptp(ntks, 0).max() / np.abs(ntks).max())


# The network: flax and optax as usual.


class State(TrainState):
    batch_stats: Any


def digits(per_class: int, n_train: int) -> tuple[Any, Any, Any]:
    """Images (n, 8, 8, 1) around zero, and labels (n,): for training, for tests, and some of these, sorted."""
    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images[rows, ..., None] / 8 - 1).astype(np.float32), data.target[rows]
    train, test = (x[:n_train], y[:n_train]), (x[n_train:], y[n_train:])
    shown = np.concatenate([np.flatnonzero(test[1] == digit)[:per_class] for digit in range(CLASSES)])
    return train, test, (test[0][shown], test[1][shown])


def init(model: ResNet, x: np.ndarray) -> Any:
    """Random parameters, and the statistics of batch normalisation."""
    # Programs with bits of this kind compile in a fraction of the time.
    return jax.jit(model.init)(jax.random.key(0, impl="rbg"), x)


def train(model: ResNet, x: np.ndarray, y: np.ndarray, steps: Sequence[int]) -> Iterator[State]:
    """Cross-entropy, Adam, cosine decay; yields the states after these numbers of steps, the first of which is 0."""
    variables = init(model, x[:1])
    # An NTK before training is that of a network which normalises: its statistics are estimated at learning rate zero.
    decay = optax.cosine_decay_schedule(LEARNING_RATE, steps[-1])
    optimizer = optax.adam(optax.join_schedules([optax.constant_schedule(0.0), decay], [STATISTICS]))
    state = State.create(
        apply_fn=model.apply, params=variables["params"], tx=optimizer, batch_stats=variables["batch_stats"]
    )

    @jax.jit
    def step(state: State, x: jax.Array, y: jax.Array) -> State:
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = state.apply_fn(variables, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates["batch_stats"]

        grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=batch_stats)

    shuffle = np.random.default_rng(0)
    for stop in steps:
        while state.step < STATISTICS + stop:
            batch = shuffle.integers(0, len(x), BATCH)
            state = step(state, x[batch], y[batch])
        yield state


# Its NTK: infnet's part.


def apply_of(model: ResNet) -> Callable[..., jax.Array]:
    """The network in inference mode, as a function of what is trained and of images."""

    def apply(params: Any, x: jax.Array, batch_stats: Any) -> jax.Array:
        return model.apply({"params": params, "batch_stats": batch_stats}, x)

    return apply


def measure(
    model: ResNet, params: Any, batch_stats: Any, x: np.ndarray, implementation: str, repeats: int = 1
) -> Measured:
    """The exact NTK `(n, n, logits, logits)`, and what it takes."""
    ntk_fn = infnet.empirical_ntk_fn(apply_of(model), trace_axes=(), implementation=implementation)
    start = time.perf_counter()
    choice = ntk_fn.explain(x, None, params, batch_stats=batch_stats)  # compiles, and does not run
    compilation = time.perf_counter() - start
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ntk = jax.block_until_ready(ntk_fn(x, None, params, batch_stats=batch_stats))
        seconds.append(time.perf_counter() - start)
    cost = choice.costs[choice.implementation]
    return Measured(choice.implementation, compilation, min(seconds), cost, np.asarray(ntk))


def run(fast: bool, console: Console) -> Results:
    if fast:
        model, per_class, n_train, steps, n_exact, repeats = ResNet((1,), 16), 6, 600, [0, 150], 4, 2
    else:
        model, per_class, n_train, n_exact, repeats = ResNet((1, 1, 1), 16), 10, 1000, 20, 3
        steps = [0, 5, 10, 20, 40, 80, 160, 300]
    fit, test, (x, y) = digits(per_class, n_train)
    results = Results(y, steps)
    columns = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        apply = jax.jit(apply_of(model))
        ntk_fn = infnet.empirical_ntk_fn(apply_of(model), trace_axes=-1, implementation=STRUCTURED)
        states = train(model, *fit, steps)
        for state in progress.track(states, len(steps), description="training, and the NTK along it"):
            results.ntks.append(np.asarray(ntk_fn(x, None, state.params, batch_stats=state.batch_stats)))
            predicted = np.asarray(apply(state.params, test[0], state.batch_stats)).argmax(1)
            results.accuracies.append(float((predicted == test[1]).mean()))
        some = x[:: len(x) // n_exact]
        for name in progress.track([*COLORS, "auto"], description="the exact NTK, by every method"):
            results.methods[name] = measure(model, state.params, state.batch_stats, some, name, repeats)
        # Sums of thousands of terms in float32, in different orders.
        assert results.difference < 1e-4, f"the methods differ by {results.difference:.1e}"
        if not fast:
            task = progress.add_task("the exact NTK of a ResNet18", total=1)
            images = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32)
            variables = init(ResNet(), images[:1])
            results.resnet18 = measure(ResNet(), variables["params"], variables["batch_stats"], images, "auto")
            progress.advance(task)
    return results


# Reporting.


def table(results: Results) -> Table:
    n, logits = results.methods["auto"].ntk.shape[1:3]
    table = Table(title=f"The NTK of {n} images with {logits} logits each, all pairs")
    table.add_column("implementation")
    for name in ("ms", "s to compile", "MB in memory", "GFLOP"):
        table.add_column(name, justify="right")

    def row(name: str, measured: Measured) -> None:
        name = f"{name}: {measured.implementation}" if "auto" in name else name
        times = f"{1000 * measured.seconds:.0f}", f"{measured.compilation:.1f}"
        table.add_row(name, *times, f"{measured.megabytes:.1f}", f"{measured.cost.flops / 1e9:.2f}")

    for name, measured in results.methods.items():
        row(name, measured)
    if results.resnet18:
        table.add_section()
        row("ResNet18, 8 images of 32x32, auto", results.resnet18)
    return table


def draw(results: Results, path: Path) -> None:
    n, logits = results.methods["auto"].ntk.shape[1:3]
    figure = Figure(figsize=(18, 10.5), dpi=110, layout="constrained")
    title = f"The NTK of a Flax ResNet between {len(results.labels)} handwritten digits that it is not trained on"
    figure.suptitle(title, fontsize=17)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.35, 1], hspace=0.03)
    *kernels, right = top.subplots(1, 3)
    draw_kernels(kernels, results)
    draw_training(right, results)
    left, middle, right = bottom.subplots(1, 3)
    draw_bars(left, results, {name: 1000 * results.methods[name].seconds for name in COLORS}, "ms")
    left.set_title(f"Time for the exact NTK, {n} images x {logits} logits", fontsize=13)
    draw_bars(middle, results, {name: results.methods[name].megabytes for name in COLORS}, "MB")
    middle.set_title("Memory for it", fontsize=13)
    draw_spectra(right, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_kernels(panels: Sequence[Axes], results: Results) -> None:
    """The NTKs before and after as correlations on one scale, examples sorted by class."""
    ntks = {BEFORE: results.ntks[0], AFTER: results.ntks[-1]}
    correlations = [ntk / np.sqrt(np.outer(np.diagonal(ntk), np.diagonal(ntk))) for ntk in ntks.values()]
    low, high = np.percentile(correlations, [1, 98])
    edges = np.searchsorted(results.labels, np.arange(CLASSES + 1)) - 0.5
    centres = (edges[1:] + edges[:-1]) / 2
    for axes, correlation, (when, ntk) in zip(panels, correlations, ntks.items(), strict=True):
        image = axes.imshow(correlation, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        for edge in edges[1:-1]:
            axes.axhline(edge, color="white", linewidth=0.8)
            axes.axvline(edge, color="white", linewidth=0.8)
        axes.set_xticks(centres, range(CLASSES))
        axes.set_yticks(centres, range(CLASSES))
        axes.tick_params(length=0)
        axes.set(xlabel="true digit", ylabel="true digit")
        axes.set_title(f"{when.capitalize()} (mean of the diagonal: {np.diagonal(ntk).mean():.0f})", fontsize=13)
    bar = panels[0].figure.colorbar(image, ax=list(panels), shrink=0.85, aspect=30, extend="both")
    bar.set_label("NTK, averaged over logits, normalised to 1 on the diagonal")


def draw_training(axes: Axes, results: Results) -> None:
    style = {"markersize": 8, "markeredgecolor": "white"}
    label = "alignment of the NTK with the classes"
    axes.plot(results.steps, results.alignments, "o-", color=COLORS[STRUCTURED], label=label, **style)
    axes.plot(results.steps, results.accuracies, "s-", color=GREY, label="accuracy on test images", **style)
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks(results.steps, [str(step) for step in results.steps])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.set(xlabel="steps of training")
    axes.set_title("Along training", fontsize=13)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")


def draw_bars(axes: Axes, results: Results, values: dict[str, float], unit: str) -> None:
    auto = results.methods["auto"].implementation
    names = ["\n".join(name.rsplit("_", 1)) for name in values]
    bars = axes.barh(names, list(values.values()), color=[COLORS[name] for name in values])
    labels = [
        f"{value:,.1f} {unit}" + (', what "auto" picks' if name == auto else "") for name, value in values.items()
    ]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set(xlabel=unit)


def draw_spectra(axes: Axes, results: Results) -> None:
    for ntk, when, color in ((results.ntks[0], BEFORE, GREY), (results.ntks[-1], AFTER, COLORS[STRUCTURED])):
        values = spectrum(ntk).eigenvalues
        axes.plot(np.arange(1, len(values) + 1), values / values.sum(), color=color, label=when, linewidth=2)
    axes.set(xscale="log", yscale="log", xlabel="eigenvalue, by size", ylabel="share of the trace")
    axes.grid(alpha=0.3)
    axes.set_title("Spectrum of the NTK above", fontsize=13)
    axes.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a smaller network, fewer images: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    console = Console()
    results = run(options.fast, console)
    console.print(table(results))
    console.print(f"largest difference between the methods: {results.difference:.1e} of the largest entry")
    console.print(
        f"alignment with the classes: {results.alignments[0]:.3f} {BEFORE}, {results.alignments[-1]:.3f} {AFTER}"
    )
    draw(results, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
