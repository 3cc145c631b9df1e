"""The tiles of a matrix of pairs of examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Tile(NamedTuple):
    """A block of the matrix.

    Attributes:
        rows, columns: which examples of x1 and of x2.
    """

    rows: slice
    columns: slice

    @property
    def own(self) -> bool:
        """Whether it stands on the diagonal, if x2 is x1."""
        return self.rows == self.columns

    @property
    def mirrored(self) -> Tile:
        """The tile across the diagonal."""
        return Tile(self.columns, self.rows)


@dataclass(frozen=True)
class Grid:
    """All tiles of an n1 x n2 matrix; those at the lower and right edges may be smaller.

    Attributes:
        n1, n2: the numbers of examples.
        rows, columns: of a tile.
        mirrored: tiles below the diagonal are left out, as they follow from those above it.
    """

    n1: int
    n2: int
    rows: int
    columns: int
    mirrored: bool = False

    def __iter__(self) -> Iterator[Tile]:
        """The tiles, one row of them after the other."""
        for i in range(0, self.n1, self.rows):
            for j in range(i if self.mirrored else 0, self.n2, self.columns):
                rows, columns = min(i + self.rows, self.n1), min(j + self.columns, self.n2)
                yield Tile(slice(i, rows), slice(j, columns))

    def __len__(self) -> int:
        """The number of tiles."""
        p, q = -(-self.n1 // self.rows), -(-self.n2 // self.columns)
        return p * (p + 1) // 2 if self.mirrored else p * q
