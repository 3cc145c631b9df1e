"""Pictures of order and chaos."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from infnet.errors import InputError
from infnet.plot.figure import GREY, new_figure, written

if TYPE_CHECKING:
    from infnet.diagnostics import CorrelationDiagram, PhaseDiagram

# A region is labelled if it is at least this share of the grid; depth scales are coloured up to this many layers.
LABELLED, DEEP = 0.02, 1000.0


def phase_diagram(diagram: PhaseDiagram, path: str | PathLike[str] | None = None) -> Any:
    """Draw where networks are ordered and where chaotic, and how deep signals get.

    Args:
        diagram: what `infnet.diagnostics.phase_diagram` returned.
        path: where to write the picture.

    Returns:
        A `matplotlib.figure.Figure`: chi_1 and the depth scale of correlations over the standard deviations of weights
        and biases. The black line is chi_1 = 1; regions have their names in them, grey ones have no fixed point.

    Raises:
        InputError: matplotlib is not installed, or `diagram` is not a phase diagram.
    """
    scales = getattr(diagram, "scales", None)
    if scales is None:
        raise InputError(f"this draws what infnet.diagnostics.phase_diagram returns, not {diagram!r}")
    drawn = new_figure(figsize=(14, 5.4), dpi=130)
    left, right = drawn.subplots(1, 2, sharex=True, sharey=True)
    drawn.suptitle(f"Order and chaos in deep networks with {diagram.activation}", fontsize=15)
    axes_of = (diagram.w_std, diagram.b_std)
    with np.errstate(invalid="ignore", divide="ignore"):
        growth = np.log2(scales.chi_1)
        layers = np.log10(np.clip(scales.xi_c, 1, DEEP))
    largest = max(0.5, float(np.nanmax(abs(growth[np.isfinite(growth)]), initial=0.5)))
    exponents = np.arange(-np.ceil(largest), np.ceil(largest) + 1)
    colors = _mesh(left, *axes_of, growth, cmap="RdBu_r", vmin=-largest, vmax=largest)
    shown = exponents[abs(exponents) <= largest]
    bar = drawn.colorbar(colors, ax=left, ticks=shown)
    bar.ax.set_yticklabels([f"{2.0**e:g}" for e in shown])
    bar.set_label("chi_1: growth of small differences in a layer")
    left.set_title("The slope of correlations at 1", fontsize=12)
    colors = _mesh(right, *axes_of, layers, cmap="viridis", vmin=0, vmax=np.log10(DEEP))
    bar = drawn.colorbar(colors, ax=right, ticks=range(4))
    bar.ax.set_yticklabels(["1 or less", "10", "100", "1000 or more"])
    bar.set_label("xi_c, layers")
    right.set_title("The depth scale of correlations", fontsize=12)
    for axes in (left, right):
        _critical(axes, diagram)
        axes.set_xlabel("w_std, weights")
    left.set_ylabel("b_std, biases")
    for phase in ("ordered", "chaotic"):
        _name(left, diagram, scales.phase == phase, phase)
    beyond = f"variance above {scales.q_max:g},\nnot known"
    for state, text in {
        "diverges": "variance diverges",
        "beyond q_max": beyond,
        "unstable": "no stable variance",
    }.items():
        for axes in (left, right):
            _name(axes, diagram, scales.state == state, text)
    return written(drawn, path)


def correlation_diagram(diagram: CorrelationDiagram, path: str | PathLike[str] | None = None) -> Any:
    """Draw how alike the outputs of a model are for two inputs, over the scale of its weights and biases.

    Args:
        diagram: what `infnet.diagnostics.correlation_diagram` returned.
        path: where to write the picture.

    Returns:
        A `matplotlib.figure.Figure`. The black line is where the outputs are as alike as the inputs; grey is not known.

    Raises:
        InputError: matplotlib is not installed, or `diagram` is something else.
    """
    values = getattr(diagram, "correlation", None)
    if values is None:
        raise InputError(f"this draws what infnet.diagnostics.correlation_diagram returns, not {diagram!r}")
    drawn = new_figure(figsize=(7.6, 5.4), dpi=130)
    axes = drawn.subplots()
    colors = _mesh(axes, diagram.w_scale, diagram.b_std, values, cmap="RdBu_r", vmin=-1, vmax=1)
    drawn.colorbar(colors, ax=axes).set_label("correlation of the outputs")
    known = values[np.isfinite(values)]
    if len(known) and known.min() < diagram.input_correlation < known.max():
        axes.contour(diagram.w_scale, diagram.b_std, values, [diagram.input_correlation], colors="black")
    axes.set(xlabel="scale of the weights", ylabel="b_std, biases")
    title = f"Outputs for two inputs whose correlation is {diagram.input_correlation:.2f}"
    axes.set_title(title, fontsize=12)
    return written(drawn, path)


def _mesh(axes: Any, w: np.ndarray, b: np.ndarray, values: np.ndarray, **options: Any) -> Any:
    axes.set_facecolor("#D8D8D8")
    colors = axes.pcolormesh(w, b, np.ma.masked_invalid(values), shading="nearest", rasterized=True, **options)
    axes.set(xlim=(w[0], w[-1]), ylim=(b[0], b[-1]))
    return colors


def _critical(axes: Any, diagram: PhaseDiagram) -> None:
    chi_1 = diagram.scales.chi_1
    known = chi_1[np.isfinite(chi_1)]
    if len(known) and known.min() < 1 < known.max():
        axes.contour(diagram.w_std, diagram.b_std, np.ma.masked_invalid(chi_1), [1.0], colors="black", linewidths=2)
        axes.plot([], [], color="black", lw=2, label="chi_1 = 1")
        axes.legend(loc="upper right", framealpha=0.9)


def _name(axes: Any, diagram: PhaseDiagram, region: np.ndarray, text: str) -> None:
    """The name of a region, in its middle."""
    if region.mean() < LABELLED:
        return
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    row, column = deepest[np.argmin(((deepest - deepest.mean(0)) ** 2).sum(1))]
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": GREY, "boxstyle": "round"}
    place = diagram.w_std[column], diagram.b_std[row]
    axes.text(*place, text, ha="center", va="center", fontsize=12, bbox=box)
