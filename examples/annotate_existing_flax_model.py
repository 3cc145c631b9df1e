"""A Flax model from elsewhere, annotated: it trains as before, and says what its infinite-width limit does.

`preactivation_resnet.py` knows nothing of infnet. Annotated, it goes into a `TrainState` like any module; its kernel
says how large a part of the NTK each of its layers has, how well the limit reads digits if only some parameters are
trained, and how wide the finite network must be to behave like it. Run it: `python
examples/annotate_existing_flax_model.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from preactivation_resnet import ResNet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import infnet_flax
from infnet.predict import gp_inference

CLASSES = 10
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#A0A0A0"
# Which parameters are trained: predicates on their paths, as `optax.masked` would have them.
TRAINED: dict[str, Callable[[str], bool]] = {
    "all": lambda path: True,
    "the head": lambda path: path.startswith("head/"),
    "the stem": lambda path: path.startswith("stem/"),
    "convolutions": lambda path: "conv" in path,
    "norms": lambda path: "norm" in path,
    "biases": lambda path: path.endswith("bias"),
}


@dataclass
class Results:
    """What is printed and drawn.

    Attributes:
        network: test accuracy of the trained finite network.
        accuracy: of the NTK posterior, by what is trained.
        shares: of each module in the mean diagonal of the NTK.
        deviations: by width, the relative distances of empirical NTKs from the limit.
    """

    network: float = 0.0
    accuracy: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    deviations: dict[int, list[float]] = field(default_factory=dict)


def digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n images (n, 8, 8, 1) of scikit-learn's digits with values around zero, and their labels (n,)."""
    data = load_digits()
    rows = np.random.default_rng(seed).permutation(len(data.target))[:n]
    return (data.images[rows, ..., None] / 8 - 1).astype(np.float32), data.target[rows]


def train(model: ResNet, x: np.ndarray, y: np.ndarray, steps: int) -> TrainState:
    """A few steps of Adam, as for any Flax model: annotation has changed nothing."""
    variables = model.init(jax.random.key(0), x[:1])
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optimizer)

    @jax.jit
    def step(state: TrainState, x: jax.Array, y: jax.Array) -> TrainState:
        def loss(params):
            logits = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    shuffle = np.random.default_rng(0)
    for _ in range(steps):
        batch = shuffle.integers(0, len(x), 64)
        state = step(state, jnp.asarray(x[batch]), jnp.asarray(y[batch]))
    return state


def shares_of_parameters(model: ResNet, x: np.ndarray) -> dict[str, np.ndarray]:
    """The share of each parameter in the NTK (n, n), by its path: they sum to the NTK."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.kernel(x, get="ntk_by_param"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(share) for path, share in leaves}


def accuracy_of_limit(shares: dict[str, np.ndarray], y: np.ndarray, n: int, trained: Callable[[str], bool]) -> float:
    """Test accuracy of the infinitely wide model of which these parameters are trained."""
    ntk = sum(share for path, share in shares.items() if trained(path))
    predict = gp_inference(ntk[:n, :n], np.eye(CLASSES, dtype=np.float32)[y[:n]] - 1 / CLASSES, diag_reg=1e-4)
    return float((np.asarray(predict("ntk", ntk[n:, :n]).mean).argmax(1) == y[n:]).mean())


def shares_of_modules(shares: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of each module in the mean diagonal of the NTK, in the order of the model."""
    modules: dict[str, float] = {}
    for path, share in shares.items():
        name = path.rsplit("/", 1)[0]
        modules[name] = modules.get(name, 0.0) + float(np.diagonal(share).mean())
    blocks = sorted(name for name in modules if "/" in name)
    order = ["stem", *blocks[:4], "down", *blocks[4:], "norm", "head"]
    return {name: modules[name] / sum(modules.values()) for name in order}


def deviation(model: ResNet, x: np.ndarray, seed: int) -> float:
    """The relative distance of one initialisation's NTK, averaged over the classes, from the limit."""
    variables = model.init(jax.random.key(seed), x[:1])
    finite = model.empirical_kernel(variables, x, get="ntk", trace_axes=(-1,))
    limit = model.kernel(x, get="ntk")
    return float(jnp.linalg.norm(finite - limit) / jnp.linalg.norm(limit))


def run(fast: bool, console: Console) -> Results:
    n_train, n_test, steps, widths, seeds = (60, 40, 60, (8, 16), 2) if fast else (100, 200, 200, (8, 16, 32, 64), 4)
    model = infnet_flax.annotate(ResNet())  # the only line that knows of infnet before kernels are asked for
    x, y = digits(n_train + n_test)
    results = Results()
    columns = (TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training the finite network", total=1)
        state = train(model, x[:n_train], y[:n_train], steps)
        logits = jax.jit(state.apply_fn)({"params": state.params}, x[n_train:])
        results.network = float((np.asarray(logits).argmax(1) == y[n_train:]).mean())
        progress.advance(task)
        task = progress.add_task("NTK, by parameter", total=1)
        shares = shares_of_parameters(model, x)
        results.shares = shares_of_modules(shares)
        results.accuracy = {name: accuracy_of_limit(shares, y, n_train, TRAINED[name]) for name in TRAINED}
        progress.advance(task)
        task = progress.add_task("empirical NTKs of finite networks", total=len(widths) * seeds)
        for width in widths:
            for seed in range(seeds):
                found = deviation(model.clone(width=width), x[:8], seed)
                results.deviations.setdefault(width, []).append(found)
                progress.advance(task)
    return results


# Reporting.


def table(results: Results) -> Table:
    table = Table(title="Test accuracy on handwritten digits, %")
    table.add_column("trained")
    table.add_column("infinite width", justify="right")
    table.add_column("finite, with Adam", justify="right")
    for name, accuracy in results.accuracy.items():
        table.add_row(name, f"{100 * accuracy:.1f}", f"{100 * results.network:.1f}" if name == "all" else "")
    return table


def draw(results: Results, path: Path) -> None:
    figure = Figure(figsize=(17, 5), dpi=130, layout="constrained")
    figure.suptitle("A pre-activation ResNet, annotated: its infinite-width limit on handwritten digits", fontsize=16)
    left, middle, right = figure.subplots(1, 3)
    draw_shares(left, results.shares)
    draw_accuracies(middle, results)
    draw_deviations(right, results.deviations)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_shares(axes: Axes, shares: dict[str, float]) -> None:
    names = list(shares)
    colors = [GREEN if "norm" in name else BLUE for name in names]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set(xlabel="share of the NTK's mean diagonal, %")
    axes.set_title("What each layer contributes (green: norms)", fontsize=13)


def draw_accuracies(axes: Axes, results: Results) -> None:
    names = list(results.accuracy)
    for k, name in enumerate(names):
        percent = 100 * results.accuracy[name]
        axes.plot(k, percent, "o", color=ORANGE if k else BLUE, markersize=11)
        axes.annotate(f"{percent:.1f}", (k, percent), (0, 9), textcoords="offset points", ha="center")
    axes.axhline(100 * results.network, color=GREY, linestyle="--", label="finite network, all trained with Adam")
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.margins(x=0.08)
    axes.set_ylim(100 * min(results.accuracy.values()) - 6, 100 * max(results.accuracy.values()) + 6)
    axes.grid(axis="y", alpha=0.3)
    axes.set(ylabel="test accuracy, %")
    axes.set_title("At infinite width, with only these parameters trained", fontsize=13)
    axes.legend(frameon=False, loc="upper right")


def draw_deviations(axes: Axes, deviations: dict[int, list[float]]) -> None:
    widths = np.array(list(deviations))
    for width, found in deviations.items():
        axes.plot([width] * len(found), found, "o", color=BLUE, markersize=6, markeredgecolor="white")
    means = np.array([np.mean(deviations[width]) for width in widths])
    axes.plot(widths, means, color=BLUE, label="mean of the initialisations")
    axes.plot(widths, means[0] * np.sqrt(widths[0] / widths), "--", color=GREY, label="1 / sqrt(width)")
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="|empirical NTK - limit| / |limit|")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    axes.minorticks_off()
    axes.set_title("Finite networks approach the limit", fontsize=13)
    axes.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="fewer digits, widths and steps: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    console = Console()
    results = run(options.fast, console)
    console.print(table(results))
    draw(results, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
