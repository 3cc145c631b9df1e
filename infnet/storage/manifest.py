"""What a store holds, in words that every process compares with what it would compute."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from infnet.batching.grid import Grid, Tile
from infnet.errors import InputError
from infnet.storage import files

FORMAT = 1
NAME = "manifest.json"
PACKAGES = ("infnet", "jax", "jaxlib", "numpy")


class ArrayKind(NamedTuple):
    """One of the arrays.

    Attributes:
        name: its folder in the store.
        shape: `(n1, n2, ...)`.
        dtype: by name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype; JAX knows more names than NumPy."""
        return jnp.dtype(self.dtype)

    def bytes_of(self, tile: Tile) -> int:
        """How many a tile takes."""
        rows, columns = (part.stop - part.start for part in tile)
        return rows * columns * int(np.prod(self.shape[2:], dtype=np.int64)) * self.numpy_dtype.itemsize


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
        function: the hash of the program that computes the kernel.
        get: what is asked of the kernel function; empty where it is not asked.
        examples: the numbers n1 and n2.
        x1, x2: hashes of the data; x2 is None if it is x1.
        arguments: the hash of all other arrays, such as parameters.
        arrays: which arrays there are.
        rows, columns: the size of a tile.
        mirrored: tiles below the diagonal are the mirrored ones above it.
        versions: of packages, with which the store was begun.
        format: of the store.
    """

    function: str
    get: str
    examples: tuple[int, int]
    x1: str
    x2: str | None
    arguments: str
    arrays: tuple[ArrayKind, ...]
    rows: int
    columns: int
    mirrored: bool
    versions: Mapping[str, str]
    format: int = FORMAT

    @property
    def grid(self) -> Grid:
        """The tiles."""
        return Grid(*self.examples, self.rows, self.columns, self.mirrored)

    def position_of(self, tile: Tile) -> tuple[int, int]:
        """The number of a tile from above and from the left."""
        return tile.rows.start // self.rows, tile.columns.start // self.columns

    def name_of(self, tile: Tile) -> str:
        """The name of a tile."""
        row, column = self.position_of(tile)
        return f"{row}-{column}"

    def places(self, tile: Tile) -> list[Tile]:
        """Where a tile is written: also across the diagonal, if it follows there."""
        return [tile, tile.mirrored] if self.mirrored and not tile.own else [tile]

    def bytes_of(self, tile: Tile) -> int:
        """How many a tile takes, in all places and arrays."""
        return sum(array.bytes_of(place) for place in self.places(tile) for array in self.arrays)

    def pairs_of(self, tile: Tile) -> int:
        """How many pairs of examples a tile covers, in all places."""
        rows, columns = (part.stop - part.start for part in tile)
        return rows * columns * len(self.places(tile))

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def of(folder: Path) -> Manifest | None:
        """That of the store in a folder; None where there is no store.

        Raises:
            InputError: it cannot be read.
        """
        text = files.read(folder / NAME)
        if text is None:
            return None
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise InputError(f"{folder} is a store of format {found['format']}; this version reads {FORMAT}")
            arrays = tuple(ArrayKind(name, tuple(shape), dtype) for name, shape, dtype in found["arrays"])
            return Manifest(**{**found, "arrays": arrays, "examples": tuple(found["examples"])})
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder / NAME} is not the manifest of a store: {error}") from error


def versions() -> dict[str, str]:
    """Of the packages that matter."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def check_same(folder: Path, stored: Manifest, asked: Manifest) -> None:
    """Raise unless a store holds what is asked for; the sizes of the tiles are those that it has."""
    found = _differences(stored, asked)
    if not found:
        return
    lines = [f"{folder} holds another kernel", *(f"  {line}" for line in found)]
    if stored.versions != asked.versions:
        pairs = [
            f"{name} {stored.versions.get(name)} (here {asked.versions[name]})"
            for name in PACKAGES
            if stored.versions.get(name) != asked.versions[name]
        ]
        lines.append(f"  it was begun with {', '.join(pairs)}; programs are the same in the same version only")
    lines.append("  remedy: pass another store=, or delete the folder to compute it anew")
    raise InputError("\n".join(lines))


def _differences(stored: Manifest, asked: Manifest) -> Sequence[str]:
    """In words; what follows from another difference is left out."""
    found = []
    if stored.get != asked.get:
        found.append(f"get: there {stored.get}, here {asked.get}")
    if (stored.x2 is None) != (asked.x2 is None):
        words = ["x1 itself" if manifest.x2 is None else "given" for manifest in (stored, asked)]
        found.append(f"x2: there {words[0]}, here {words[1]}")
    for number, there, here in ((1, stored.x1, asked.x1), (2, stored.x2, asked.x2)):
        if None not in (there, here) and there != here:
            sizes = [manifest.examples[number - 1] for manifest in (stored, asked)]
            found.append(f"x{number}: other data; there {sizes[0]} examples, here {sizes[1]}")
    if not found and stored.arrays != asked.arrays:
        found.append(f"arrays: there {_listed(stored.arrays)}; here {_listed(asked.arrays)}")
    if stored.arguments != asked.arguments:
        found.append("other arguments, such as parameters")
    if stored.function != asked.function and not found:
        found.append("another kernel function: another model, other hyperparameters or other options")
    return found


def _listed(arrays: Sequence[ArrayKind]) -> str:
    return ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in arrays)
