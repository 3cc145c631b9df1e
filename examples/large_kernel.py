"""A kernel that is computed into a folder, by several processes: kill it, run it again, it goes on.

The NTK of a convolutional network between thousands of images: handwritten digits, each also shifted by a pixel. Its
tiles are written to a Zarr array on disk as they finish. Stop the program in any way, or start it several times at
once, also on other machines that see the folder: tiles that are complete are not computed again. The picture shows
which run has computed which tile, and what is then read from the disk. Run it: `python examples/large_kernel.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from scipy.linalg import solve
from sklearn.datasets import load_digits

import infnet
import infnet_flax

SHIFTS = [(down, right) for down in (0, -1, 1) for right in (0, -1, 1)]
ORIGINALS = 1797
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]


class CNN(nn.Module):
    """Two convolutions and a readout of every pixel."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(256, (3, 3))(x))
        return nn.Dense(1)(x.reshape(x.shape[0], -1))


@dataclass
class Results:
    """The kernel on disk, what is known of its computation, and the accuracies by number of training images."""

    ntk: infnet.StoredArray
    status: infnet.Status
    accuracies: dict[int, float]


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 8, 8, 1)` and their digits: all originals in random order, then all shifted in one direction, ..."""
    x, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = np.float32(x[order].reshape(-1, 8, 8) / 16), y[order]
    shifted = [np.roll(x, shift, axis=(1, 2)) for shift in SHIFTS]
    return np.concatenate(shifted)[:n, ..., None], np.tile(y, len(SHIFTS))[:n]


def kernel(x: np.ndarray, store: Path, batch_size: int, progress: bool) -> infnet.StoredArray:
    """The NTK of all images: computed, or only opened."""
    kernel_fn = infnet_flax.kernel_fn(CNN(), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return infnet.compute(kernel_fn, x, store=store, get="ntk", batch_size=batch_size, progress=progress)


def accuracies(ntk: infnet.StoredArray, y: np.ndarray) -> dict[int, float]:
    """Of ridge regression on ever more images, tested on a tenth of the originals; what it needs is read from disk."""
    test = np.arange(min(len(y), ORIGINALS) // 10)
    others = np.arange(len(y))
    others = others[others % ORIGINALS >= len(test)]  # no shifted copies of the images that it is tested on
    found = {}
    for n in np.unique(np.geomspace(20, min(len(others), 4000), 8).astype(int)):
        train = others[:n]  # first the originals
        block = np.float64(ntk[np.ix_(train, train)])
        targets = np.eye(10)[y[train]] - 0.1
        weights = solve(block + 1e-4 * np.trace(block) / n * np.eye(n), targets, assume_a="pos")
        found[int(n)] = float(np.mean((ntk[np.ix_(test, train)] @ weights).argmax(1) == y[test]))
    return found


# Reporting.


def draw(results: Results, y: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(16, 5.2), dpi=130, layout="constrained")
    n, size = len(y), results.status.bytes_total
    figure.suptitle(f"The NTK of {n:,} images, {size / 1e6:,.0f} MB on disk, computed in {results.status.total} tiles")
    tiles, matrix, curve = figure.subplots(1, 3, width_ratios=(1, 1.15, 1))
    draw_tiles(tiles, results.status)
    draw_classes(matrix, results.ntk, y)
    curve.semilogx(list(results.accuracies), [100 * a for a in results.accuracies.values()], "o-", color=COLORS[0])
    curve.set(xlabel="training images, read from the disk", ylabel="test accuracy, %")
    curve.set_title("Ridge regression with its blocks")
    curve.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_tiles(axes: Axes, status: infnet.Status) -> None:
    """Every tile in the colour of the run that computed it, darker the later it was complete."""
    n = status.manifest.examples[0]
    for color, (number, run) in zip(COLORS * len(status.runs), enumerate(status.runs.values(), 1), strict=False):
        for k, (tile, _) in enumerate(run):
            for place in status.manifest.places(tile):
                (left, right), (top, bottom) = ((s.start, s.stop) for s in (place.columns, place.rows))
                shade = 0.35 + 0.65 * (k + 1) / len(run)
                label = f"run {number}: {len(run)} tiles" if (k, place) == (len(run) - 1, tile) else None
                axes.fill([left, right, right, left], [top, top, bottom, bottom], color=color, alpha=shade, label=label)
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xlabel="image", ylabel="image")
    axes.set_title("Who computed which tile (darker: later)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8, frameon=False)


def draw_classes(axes: Axes, ntk: infnet.StoredArray, y: np.ndarray) -> None:
    """Correlations of some images, sorted by digit; no more than these is read."""
    some = np.random.RandomState(0).choice(len(y), min(len(y), 600), replace=False)
    some = some[np.lexsort((some // ORIGINALS, y[some]))]
    block = ntk[np.ix_(some, some)]
    scale = np.sqrt(np.diagonal(block))
    image = axes.imshow(block / scale / scale[:, None], cmap="magma", vmin=0.4, vmax=1, interpolation="nearest")
    edges = np.searchsorted(y[some], np.arange(11))
    axes.set_xticks((edges[1:] + edges[:-1]) / 2, range(10))
    axes.set_yticks((edges[1:] + edges[:-1]) / 2, range(10))
    axes.set_title(f"Correlation of {len(some)} images, by digit and shift")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def main(argv: Sequence[str] | None = None) -> Results:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6000, help="how many, up to 16173 (default 6000)")
    parser.add_argument("--batch-size", type=int, default=500, help="images on a side of a tile (default 500)")
    parser.add_argument("--processes", type=int, default=2, help="that compute (default 2); 0: no picture")
    parser.add_argument("--store", type=Path, default=Path(__file__).with_suffix(".zarr"), help="where the kernel goes")
    parser.add_argument("--fast", action="store_true", help="400 images in one process: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    if options.fast:
        options.images, options.batch_size, options.processes = 400, 100, 1
        options.store = options.out.with_suffix(".zarr")
    console = Console()
    x, y = images(options.images)
    others = [
        subprocess.Popen([sys.executable, __file__, "--processes", "0", *_passed(options)])
        for _ in range(options.processes - 1)
    ]
    ntk = kernel(x, options.store, options.batch_size, progress=options.processes > 0)
    for other in others:
        other.wait()
    status = infnet.status(options.store)
    if options.processes == 0:
        return Results(ntk, status, {})
    console.print(str(status), highlight=False, soft_wrap=True)
    results = Results(ntk, status, accuracies(ntk, y))
    draw(results, y, options.out)
    console.print(f"picture: {options.out}", highlight=False, soft_wrap=True)
    return results


def _passed(options: argparse.Namespace) -> list[str]:
    return ["--images", str(options.images), "--batch-size", str(options.batch_size), "--store", str(options.store)]


if __name__ == "__main__":
    main()
