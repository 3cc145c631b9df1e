"""The table that `KernelFn.explain()` returns: as text, in a terminal that knows rich, and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

# Nothing has a colour of its own, so that it can be read on light and on dark backgrounds.
_CELL = "text-align:left;padding:0.1em 0.8em 0.1em 0;white-space:nowrap"


@dataclass(frozen=True)
class Row:
    """One step between two different examples.

    Attributes:
        module, line: the place in the user's model that it comes from.
        rule: what it does.
        primitives: the kernel primitives that compute it; none where it only adds, scales and moves.
        offsets: the layout of its result: all pairs of positions, equal ones ("diagonal"), or a range of offsets.
        gaussian: whether the result is Gaussian, which a nonlinearity needs.
        exact: "exact", or how it is approximated.
        memory: its share of the bytes of all results of a pair.
        time: its share of the time of all steps, each by itself, on a tile of pairs; None without examples.
        error: the largest error of its second moment, by the bound of the series, relative to its largest entry; 0
            where it is exact, None without examples.
    """

    module: str
    line: str
    rule: str
    primitives: tuple[str, ...]
    offsets: str
    gaussian: bool
    exact: str
    memory: float
    time: float | None = None
    error: float | None = None

    @property
    def accuracy(self) -> str:
        """How exact it is, in a few words."""
        return f"{self.exact}, {self.error:.0e}" if self.error else self.exact


@dataclass(frozen=True)
class OutputError:
    """A bound, to first order, on the error of a kernel of an output; see `KernelFn.error_bounds`.

    Attributes:
        output: the number of the output.
        kernel: "nngp" or "ntk".
        absolute: of every entry.
        relative: the same, over the largest entry.
    """

    output: int
    kernel: str
    absolute: float
    relative: float

    def __str__(self) -> str:
        of_output = f" of output {self.output}" if self.output else ""
        return f"{self.absolute:.1e} in the {self.kernel}{of_output} ({self.relative:.1e} of its largest entry)"


@dataclass(frozen=True)
class Explanation:
    """The steps of a kernel computation, remarks, and the errors of the outputs. Print it, or read `rows`.

    Where steps that follow each other differ in nothing but what they take, as the sums in a normalisation do, what is
    printed has one row for all of them, with their number behind the rule; `rows` has one for each.
    """

    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    errors: tuple[OutputError, ...] = ()

    @property
    def table(self) -> list[tuple[str, ...]]:
        """The cells of what is printed, the titles of the columns first."""
        timed = any(row.time is not None for row in self.rows)
        titles = ("module", "rule", "primitive", "positions", "Gaussian", "exact", "time", "memory", "line")
        rows = (
            (
                row.module,
                row.rule,
                ", ".join(row.primitives),
                row.offsets,
                "yes" if row.gaussian else "no",
                row.accuracy,
                _percent(row.time or 0.0),
                _percent(row.memory),
                row.line.rsplit("/", 1)[-1],
            )
            for row in _merged(self.rows)
        )
        time = titles.index("time")
        return [cells if timed else (*cells[:time], *cells[time + 1 :]) for cells in (titles, *rows)]

    def __str__(self) -> str:
        table = self.table
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join([lines[0], rule, *lines[1:], *self.remarks])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """For `rich.print`: only called where rich is."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        titles, *rows = self.table
        table = Table(*titles, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*map(Text, row))
        yield table
        yield from map(Text, self.remarks)

    def _repr_html_(self) -> str:
        titles, *rows = self.table
        head = "".join(f'<th style="{_CELL}">{html.escape(cell)}</th>' for cell in titles)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{html.escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
        )
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{remarks}"


def _merged(rows: Sequence[Row]) -> Iterator[Row]:
    """One row for those in sequence that differ in costs and errors alone: the sum of costs, and the largest error."""
    for alike, found in groupby(rows, lambda row: replace(row, memory=0.0, time=None, error=None)):
        some = tuple(found)
        times = [row.time for row in some if row.time is not None]
        yield replace(
            alike,
            rule=f"{alike.rule} ({len(some)})" if len(some) > 1 else alike.rule,
            memory=sum(row.memory for row in some),
            time=sum(times) if times else None,
            error=max((row.error for row in some if row.error is not None), default=None),
        )


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"
