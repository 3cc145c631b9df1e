"""Pictures of the eigenvalues of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet.errors import InputError
from infnet.plot.figure import COLORS, new_figure, written

if TYPE_CHECKING:
    from infnet.diagnostics import KernelSpectrum


def spectrum(spectra: KernelSpectrum | Mapping[str, KernelSpectrum], path: str | PathLike[str] | None = None) -> Any:
    """Draw the eigenvalues of a kernel, or of several, and how much of the labels lies along the first eigenvectors.

    Args:
        spectra: what `infnet.diagnostics.spectrum` returned; or several of these, by name.
        path: where to write the picture.

    Returns:
        A `matplotlib.figure.Figure`: eigenvalues that are not rounding errors, both axes logarithmic, and, if there
        were labels, their cumulative share.

    Raises:
        InputError: matplotlib is not installed, or `spectra` is something else.
    """
    named = dict(spectra) if isinstance(spectra, Mapping) else {"": spectra}
    if not named or not all(hasattr(one, "eigenvalues") for one in named.values()):
        raise InputError("this draws what infnet.diagnostics.spectrum returns, or several of these by name")
    labelled = {name: one for name, one in named.items() if one.cumulative is not None}
    count = 2 if labelled else 1
    drawn = new_figure(figsize=(6.5 * count, 4.8), dpi=130)
    panels = np.atleast_1d(drawn.subplots(1, count))
    for number, (name, one) in enumerate(named.items()):
        color, index = COLORS[number % len(COLORS)], np.arange(1, len(one.eigenvalues) + 1)
        shown = one.eigenvalues > one.cutoff
        options = {"color": color, "label": name or None, "lw": 2}
        panels[0].plot(index[shown], one.eigenvalues[shown], **options)
        if name in labelled:
            panels[1].plot(index, one.cumulative, **options)
    panels[0].set(xscale="log", yscale="log", xlabel="index of the eigenvalue, by size", ylabel="eigenvalue")
    panels[0].set_title("Eigenvalues", fontsize=12)
    if labelled:
        panels[1].set(xscale="log", xlabel="number of eigenvectors, largest eigenvalues first", ylim=(0, 1.03))
        panels[1].set_ylabel("share of the labels")
        panels[1].set_title("Labels along the first eigenvectors", fontsize=12)
    for axes in panels:
        axes.grid(alpha=0.3)
        if any(named):
            axes.legend(frameon=False)
    return written(drawn, path)
