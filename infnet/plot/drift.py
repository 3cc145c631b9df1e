"""Pictures of how a kernel moves in training."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from infnet.errors import InputError
from infnet.plot.figure import BLUE, GREEN, ORANGE, new_figure, written

if TYPE_CHECKING:
    from infnet.diagnostics import Drift


def drift(moved: Drift, path: str | PathLike[str] | None = None) -> Any:
    """Draw how far a kernel moved in training, how much it turned, and how well it is aligned with the labels.

    Args:
        moved: what `infnet.diagnostics.drift` returned.
        path: where to write the picture.

    Returns:
        A `matplotlib.figure.Figure`, with a second panel if there were labels.

    Raises:
        InputError: matplotlib is not installed, or `moved` is something else.
    """
    if not hasattr(moved, "rotation"):
        raise InputError(f"this draws what infnet.diagnostics.drift returns, not {moved!r}")
    count = 1 if moved.alignment is None else 2
    drawn = new_figure(figsize=(6.5 * count, 4.8), dpi=130)
    panels = drawn.subplots(1, count, squeeze=False)[0]
    distance = r"distance $|K_t - K_0| / |K_0|$"
    panels[0].plot(moved.steps, moved.distance, "o-", ms=4, color=BLUE, label=distance)
    panels[0].plot(moved.steps, moved.rotation, "s-", ms=4, color=ORANGE, label=r"rotation $1 - \cos(K_t, K_0)$")
    panels[0].set_ylim(bottom=0)
    panels[0].set_title("From the kernel before training", fontsize=12)
    panels[0].set_ylabel("relative to the first kernel")
    panels[0].legend(frameon=False)
    if moved.alignment is not None:
        panels[1].plot(moved.steps, moved.alignment, "o-", ms=4, color=GREEN)
        panels[1].set_ylabel("centred alignment")
        panels[1].set_title("Towards the labels", fontsize=12)
    for axes in panels:
        axes.set_xlabel("step of training")
        axes.grid(alpha=0.3)
    return written(drawn, path)
