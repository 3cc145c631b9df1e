"""The picture of `infnet.verify`: deviations by width, and z-scores."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from infnet.plot.figure import COLORS, GREY, new_figure, written
from infnet.verification.report import SHARE

if TYPE_CHECKING:
    from infnet.verification import Comparison, Verification

# Entries whose trend is drawn, at most, of each kernel.
DRAWN = 6


def verification(
    report: Verification, path: str | PathLike[str] | None = None, *, figure: Any = None, title: str | None = None
) -> Any:
    """Draw how sampled kernels deviate from the computed ones, by width, and the z-scores at infinite width.

    Args:
        report: what `infnet.verify` returned.
        path: where to write the picture.
        figure: a figure or subfigure of matplotlib to draw in, instead of a new one.
        title: above it; by default the verdict.

    Returns:
        The `matplotlib.figure.Figure`: for each kernel the relative deviations of some entries (those that deviate most
        and least at infinite width, and others between them) with two standard errors and their fits; and the z-scores
        of all entries in order, against those of as many normal numbers.

    Raises:
        InputError: matplotlib is not installed.
    """
    count = len(report.shown)
    drawn = new_figure(figsize=(5.5 * (count + 1), 4.8), dpi=130) if figure is None else figure
    axes = np.atleast_1d(drawn.subplots(1, count + 1))
    for k, one in enumerate(report.shown):
        _trends(axes[k], report, one, COLORS[k % len(COLORS)])
    _quantiles(axes[-1], report)
    drawn.suptitle(report.verdict if title is None else title, fontsize=12)
    return written(drawn, path)


def _trends(axes: Any, report: Verification, one: Comparison, color: str) -> None:
    x = 1 / np.asarray(report.multipliers)
    deviations, errors = (_distinct(a, 1).reshape(len(x), -1) for a in (one.deviations, one.standard_errors))
    intercept, spread, slope, allowance = (np.ravel(_distinct(part)) for part in one.trend)
    order = np.argsort(intercept)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, DRAWN).astype(int))]
    several = len(x) > 1
    for place, entry in enumerate(chosen):
        shift = 0.012 * (place - (len(chosen) - 1) / 2)
        axes.errorbar(
            x + shift, 100 * deviations[:, entry], 200 * errors[:, entry], fmt="o", ms=4, color=color, alpha=0.75
        )
        if several:
            line = np.array([0, 1.05 * x.max()])
            axes.plot(line + shift, 100 * (intercept[entry] + slope[entry] * line), color=color, lw=0.8, alpha=0.6)
            axes.errorbar(shift, 100 * intercept[entry], 200 * spread[entry], fmt="s", ms=5, color=color, mfc="white")
    widest = 100 * allowance.max()
    axes.axhspan(-widest, widest, color=GREY, alpha=0.15, lw=0, label="allowed for")
    axes.axhline(0, color=GREY, lw=1)
    axes.set_xlim(-0.08 if several else 0, 1.12 * x.max())
    ticks = [(0.0, "infinite")] if several else []
    ticks += [(value, f"{m:g}") for value, m in zip(x, report.multipliers, strict=True)]
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.set(xlabel="width, in widths of the model", ylabel="deviation, ± 2 standard errors, %")
    axes.set_title(one.name, fontsize=11)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _quantiles(axes: Any, report: Verification) -> None:
    largest = report.threshold
    shares = [scores for name, scores in report.z_scores.items() if name.startswith(SHARE)]
    groups = {name: _distinct(scores) for name, scores in report.z_scores.items() if not name.startswith(SHARE)}
    if shares:
        groups["ntk shares of all parameters"] = np.concatenate([np.ravel(_distinct(scores)) for scores in shares])
    for k, (name, scores) in enumerate(groups.items()):
        ordered = np.sort(np.ravel(scores))
        normal = ndtri((np.arange(len(ordered)) + 0.5) / len(ordered))
        axes.plot(normal, ordered, "o", ms=5, color=COLORS[k % len(COLORS)], alpha=0.8, label=name)
        largest = max(largest, float(np.abs(ordered).max(initial=0)))
    ends = np.array([-3.0, 3.0])
    axes.plot(ends, ends, color=GREY, lw=1, label="independent normal numbers")
    for sign in (-1, 1):
        axes.axhline(sign * report.threshold, color="black", ls="--", lw=1, label="limit" if sign > 0 else None)
    axes.set_ylim(-1.15 * largest, 2.1 * largest)  # with room for the legend
    axes.set(xlabel="quantile of as many normal numbers", ylabel="z-score")
    axes.set_title("Entries at infinite width" if len(report.multipliers) > 1 else "Entries", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _distinct(kernel: np.ndarray, axis: int = 0) -> np.ndarray:
    """The entries of pairs of examples on and above the diagonal, which the others follow from."""
    rows, columns = np.triu_indices(kernel.shape[axis])
    return kernel[(slice(None),) * axis + (rows, columns)]
