"""Compute the tiles of a store that are missing, beside any number of other processes that do the same."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from infnet.batching.tiles import Tiles
from infnet.storage.claims import Claims, Owner
from infnet.storage.progress import Progress
from infnet.storage.store import Store

PyTree = Any
# Seconds between two looks at what other processes have done.
LOOK_EVERY = 1.0
# Tiles that are computed while an earlier one is fetched from the device.
AHEAD = 1


class Work:
    """One run of `compute` at a store that is not complete."""

    def __init__(self, store: Store, tiles: Tiles, done: set[str], claims: Claims, owner: Owner, progress: Progress):
        """The run of an owner, with its claims.

        Args:
            store: the tiles are written to.
            tiles: computes them.
            done: what is complete; tiles that are marked as such but are not in it are looked at again.
            claims: those of the owner.
            owner: this run.
            progress: is told what is done.
        """
        self._store, self._tiles, self._done = store, tiles, done
        self._suspect = store.marked() - done
        self._claims, self._owner, self._progress = claims, owner, progress
        self._began, self._looked = time.time(), time.monotonic()
        self._writing: Future[None] | None = None

    def run(self) -> None:
        """Return when all tiles are complete, whoever has computed them."""
        computed: deque[tuple[str, PyTree, PyTree]] = deque()
        with ThreadPoolExecutor(1, "infnet-writer") as writer:
            for name in self._claimed():
                if name is not None:
                    computed.append((name, *self._tiles(self._store.tiles[name])))
                if computed and (name is None or len(computed) > AHEAD):
                    self._collect(writer, *computed.popleft())
                elif name is None:
                    self._written()

    def _collect(self, writer: ThreadPoolExecutor, name: str, matrices: PyTree, notes: PyTree) -> None:
        """Check a tile that was computed, and have it written while the next one is."""
        blocks, tile = self._tiles.blocks, self._store.tiles[name]
        found = jax.tree.map(np.asarray, notes)
        blocks.check(found, tile.rows, tile.columns)
        places = [jax.tree.map(np.asarray, matrices)]
        if len(self._store.manifest.places(tile)) > 1:
            assert blocks.mirror is not None
            places.append(jax.tree.map(np.asarray, blocks.mirror(matrices)))
        data = [jax.tree.leaves(place) for place in places]
        self._written()
        self._writing = writer.submit(self._write, name, data, [x.tolist() for x in jax.tree.leaves(found)])

    def _write(self, name: str, data: list[list[np.ndarray]], notes: list[Any]) -> None:
        # A run that was asleep for long may have lost its claim: the tile is somebody else's then.
        if self._claims.is_mine(name):
            self._store.write(name, data, notes, self._owner, self._began)
        self._claims.release(name)

    def _written(self) -> None:
        """Wait until the last tile is written, and raise what went wrong there."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
            self._look()

    def _claimed(self) -> Iterator[str | None]:
        """Tiles that this run has claimed, until all are complete; None while there is nothing to claim."""
        names = list(self._store.tiles)
        start = random.SystemRandom().randrange(len(names))  # another place than that of other processes
        names = names[start:] + names[:start]
        while missing := [name for name in names if name not in self._done]:
            idle = True
            for name in missing:
                if name not in self._done and name not in self._claims.held and self._take(name):
                    idle = False
                    yield name
                    self._look()
            if idle:
                yield None
                if not self._claims.held:
                    time.sleep(LOOK_EVERY / 10)
                self._look()

    def _take(self, name: str) -> bool:
        """Claim a tile that is to be computed."""
        if not self._claims.take(name):
            return False
        if name in self._suspect:
            self._suspect.discard(name)
            if not self._store.is_intact(name):
                self._store.remove_mark(name)
                return True
        elif not (self._store.marks / name).exists():
            return True
        self._claims.release(name)  # another process has just completed it
        self._add({name})
        return False

    def _look(self) -> None:
        """See what is done, from time to time."""
        if time.monotonic() - self._looked > LOOK_EVERY or not self._claims.held:
            self._looked = time.monotonic()
            self._add(self._store.marked() - self._suspect - self._done)

    def _add(self, names: set[str]) -> None:
        self._done |= names
        self._progress.add(names)
