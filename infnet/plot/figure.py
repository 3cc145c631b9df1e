"""Where figures come from and go to."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from infnet.errors import InputError

# Of Okabe & Ito, which people tell apart who do not see all colours.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#707070"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, without pyplot: no window, no state.

    Args:
        **options: its arguments.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'infnet[plot]'") from error
    return Figure(layout="constrained", **options)


def written(drawn: Any, path: str | PathLike[str] | None) -> Any:
    """The figure, which is also written if there is a path."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path)
    return drawn
