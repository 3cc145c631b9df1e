"""A store: arrays on disk, and for every tile of them a mark that says it is complete.

    manifest.json      what the store holds
    zarr.json          the folder is a Zarr group
    ntk/, nngp/, ...   Zarr arrays; a chunk is a tile, so that none is shared by two of them
    tiles/I-J          the mark of a tile: checksums of what was written, and by whom
    claims/I-J         who is computing a tile

A mark is written when the data are on the disk. So a process may end at any moment: what has no mark is computed again.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infnet.batching.grid import Tile
from infnet.errors import InputError, StorageError
from infnet.storage import files
from infnet.storage.arrays import created, discard_chunk, opened, tensorstore
from infnet.storage.claims import Owner
from infnet.storage.fingerprint import as_bytes
from infnet.storage.manifest import NAME, Manifest, check_same

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {"written by": "infnet.compute"}}


class Mark(NamedTuple):
    """That a tile is complete.

    Attributes:
        checksums: CRC-32 of what was written, place by place and array by array.
        notes: what the computation says about it, see `Blocks`.
        run: which run of `compute` wrote it.
        host, process: where.
        began: when the run began, seconds since 1970.
        finished: when the tile was.
    """

    checksums: list[int]
    notes: list[Any]
    run: str
    host: str
    process: int
    began: float
    finished: float


@dataclass(frozen=True)
class Store:
    """The store in a folder.

    Attributes:
        folder: an absolute path.
        manifest: what it holds.
    """

    folder: Path
    manifest: Manifest

    @staticmethod
    def at(path: Path) -> Store:
        """The one that exists there.

        Raises:
            InputError: there is none.
        """
        manifest = Manifest.of(path)
        if manifest is None:
            raise InputError(f"{path} is not a store: it has no {NAME}; infnet.compute(..., store=path) makes one")
        return Store(path, manifest)

    @staticmethod
    def opened_or_made(path: Path, asked: Manifest) -> Store:
        """The store of a kernel, made unless it exists; its tiles have the size with which it was made.

        Raises:
            InputError: there is something else.
            StorageError: the operating system refuses.
        """
        with files.failures_on(path):
            stored = Manifest.of(path) if path.is_dir() else None
            if stored is None:
                _make_folder(path)
                # Of several processes, the first one says what the tiles are.
                files.create(path / NAME, asked.text())
                stored = Manifest.of(path)
                assert stored is not None
            check_same(path, stored, asked)
            return Store(path, stored)

    def prepare(self) -> None:
        """Make what tiles are written to, unless it exists."""
        with files.failures_on(self.folder):
            files.create(self.folder / "zarr.json", json.dumps(GROUP))
            for folder in (self.marks, self.claims):
                folder.mkdir(exist_ok=True)
            manifest = self.manifest
            for array in manifest.arrays:
                n1, n2, *positions = array.shape
                chunk = (min(manifest.rows, n1), min(manifest.columns, n2), *positions)
                created(self.folder / array.name, array.shape, chunk, array.numpy_dtype)

    @property
    def marks(self) -> Path:
        """The folder of the marks."""
        return self.folder / "tiles"

    @property
    def claims(self) -> Path:
        """The folder of the claims."""
        return self.folder / "claims"

    @cached_property
    def tiles(self) -> dict[str, Tile]:
        """All tiles by name."""
        return {self.manifest.name_of(tile): tile for tile in self.manifest.grid}

    @cached_property
    def _arrays(self) -> list[Any]:
        return [opened(self.folder / array.name) for array in self.manifest.arrays]

    def marked(self) -> set[str]:
        """The names of the tiles that are said to be complete."""
        return _names_in(self.marks) & self.tiles.keys()

    def claimed(self) -> dict[str, Owner | None]:
        """The names of the tiles that somebody is computing, and who."""
        found = {name: files.read(self.claims / name) for name in _names_in(self.claims) & self.tiles.keys()}
        return {name: Owner.of(text) for name, text in found.items() if text is not None}

    def mark_of(self, name: str) -> Mark | None:
        """The mark of a tile; None if there is none that can be read."""
        text = files.read(self.marks / name)
        try:
            return None if text is None else Mark(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def remove_mark(self, name: str) -> None:
        """Say that a tile is not complete."""
        with files.failures_on(self.folder):
            (self.marks / name).unlink(missing_ok=True)

    def is_intact(self, name: str) -> bool:
        """Whether a tile is marked as complete and what is on the disk is what was written."""
        mark = self.mark_of(name)
        if mark is None:
            return False
        try:
            found = [_checksum(array[place].read().result()) for place, array in self._parts(name)]
        except (ValueError, OSError, StorageError):  # torn, changed, or gone
            return False
        return found == mark.checksums

    def write(
        self, name: str, matrices: Sequence[Sequence[np.ndarray]], notes: list[Any], owner: Owner, began: float
    ) -> None:
        """Write a tile, and then its mark.

        Args:
            name: of the tile.
            matrices: for every place of it, and there for every array.
            notes: plain numbers.
            owner, began: the run that has computed it.

        Raises:
            StorageError: the disk is full, or the operating system refuses.
        """
        data = [array for place in matrices for array in place]
        try:
            for array in self.manifest.arrays:
                for place in self.manifest.places(self.tiles[name]):
                    discard_chunk(self.folder / array.name, self.manifest.position_of(place), len(array.shape))
            writing = [a[place].write(x) for (place, a), x in zip(self._parts(name), data, strict=True)]
            checksums = [_checksum(x) for x in data]
            for written in writing:
                written.result()
            mark = Mark(checksums, notes, owner.run, owner.host, owner.process, began, time.time())
            files.replace(self.marks / name, json.dumps(mark._asdict()))
        except (ValueError, OSError) as error:
            raise StorageError(
                f"tile {name} could not be written to {self.folder}: {error}\n"
                f"  {self._space(sum(x.nbytes for x in data))}\n"
                "  nothing that was complete is lost: make room and call the same again, and it goes on"
            ) from error

    def check_space(self, missing: Iterable[str]) -> None:
        """Raise unless there is room for these tiles."""
        needed = sum(self.manifest.bytes_of(self.tiles[name]) for name in missing)
        if needed > shutil.disk_usage(self.folder).free:
            raise StorageError(
                f"the disk of {self.folder} is too full for what is still to be computed: {self._space(needed)}\n"
                "  make room, or pass another store=; what is complete stays there"
            )

    def _space(self, needed: int) -> str:
        return f"needed: {needed:,} bytes; free: {shutil.disk_usage(self.folder).free:,} bytes"

    def _parts(self, name: str) -> list[tuple[tuple[slice, slice], Any]]:
        """The places of a tile in all arrays."""
        return [
            ((place.rows, place.columns), a) for place in self.manifest.places(self.tiles[name]) for a in self._arrays
        ]


def folder_of(path: Any) -> Path:
    """The absolute path of a store.

    Raises:
        InputError: it is no path, or that of a file.
    """
    if not isinstance(path, str | Path) or "://" in str(path):
        raise InputError(f"store must be the path of a folder, not {path!r}")
    folder = Path(path).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"store must be a folder, but {folder} is a file")
    tensorstore()
    return folder


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    foreign = sorted(p.name for p in path.iterdir() if not p.name.startswith(files.TEMPORARY))
    if foreign and not (path / NAME).exists():  # a store begins with this file
        raise InputError(f"{path} exists and is not a store: it holds {', '.join(foreign[:5])}; pass an empty folder")


def _names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def _checksum(array: Any) -> int:
    return zlib.crc32(as_bytes(np.asarray(array)))
