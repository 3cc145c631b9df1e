"""`status`: how far the computation of a stored kernel is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike
from pathlib import Path

from infnet.batching.grid import Tile
from infnet.storage.manifest import Manifest
from infnet.storage.store import Mark, Store, folder_of


@dataclass(frozen=True)
class Status:
    """How far a stored kernel is; print it, or read its fields.

    Attributes:
        folder: the store.
        manifest: what it holds.
        done: tiles that are complete.
        total: tiles that there are.
        in_flight: tiles that are being computed, and by whom; those of processes that are known to be gone are not in
            it.
        damaged: tiles that are marked as complete, but whose data on the disk are not what was written; None if that
            was not looked at.
        bytes_done, bytes_total: of all arrays.
        rate: pairs of examples in a second, of the runs in flight together; of the last one if there are none; None if
            none has completed a tile.
        seconds_left: at this rate; None if nothing is in flight.
        runs: by the name of every run that has completed tiles, these tiles and when they were complete (seconds since
            1970), in this order.
    """

    folder: Path
    manifest: Manifest
    done: int
    total: int
    in_flight: dict[str, str]
    damaged: list[str] | None
    bytes_done: int
    bytes_total: int
    rate: float | None
    seconds_left: float | None
    runs: dict[str, list[tuple[Tile, float]]]

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.done == self.total

    def __str__(self) -> str:
        m = self.manifest
        waiting = self.total - self.done - len(self.in_flight)
        lines = {
            "store": str(self.folder),
            "arrays": ", ".join(f"{a.name} {a.shape} {a.dtype}" for a in m.arrays),
            "tiles": f"{self.done} of {self.total} complete, {len(self.in_flight)} in flight, {waiting} waiting; "
            f"{m.rows} x {m.columns} examples",
            "bytes": f"{self.bytes_done:,} of {self.bytes_total:,}",
            "rate": "unknown" if self.rate is None else f"{self.rate:.3g} pairs of examples a second",
        }
        if self.seconds_left is not None:
            lines["rate"] += f", {_duration(self.seconds_left)} left"
        if self.in_flight:
            lines["in flight"] = ", ".join(f"{name} ({owner})" for name, owner in sorted(self.in_flight.items()))
        if self.damaged is not None:
            lines["damaged"] = ", ".join(self.damaged) or "none"
        lines["x1"] = f"{m.examples[0]} examples, {m.x1[:12]}"
        lines["x2"] = "x1" if m.x2 is None else f"{m.examples[1]} examples, {m.x2[:12]}"
        lines["program"] = f"{m.function[:12]}" + (f", get={m.get}" if m.get else "")
        lines["versions"] = ", ".join(f"{name} {version}" for name, version in m.versions.items())
        return "\n".join(f"{name:10} {line}" for name, line in lines.items())


def status(path: str | PathLike[str], *, verify: bool = False) -> Status:
    """How far the kernel is that `infnet.compute` puts in a store; other processes may be at work there.

    Args:
        path: the store.
        verify: read all that is complete and compare it with its checksums. What is found to be damaged is computed
            again by the next call of `compute`.

    Raises:
        InputError: there is no store.
        ImportError: TensorStore is missing.
    """
    store = Store.at(folder_of(path))
    manifest, done = store.manifest, store.marked()
    damaged = sorted(name for name in done if not store.is_intact(name)) if verify else None
    done -= set(damaged or ())
    owners = {name: owner for name, owner in store.claimed().items() if name not in done}
    owners = {name: owner for name, owner in owners.items() if owner is None or not owner.is_gone}
    marks = {name: mark for name in done if (mark := store.mark_of(name)) is not None}
    rate = _rate(store, marks, {owner.run for owner in owners.values() if owner is not None})
    left = sum(manifest.pairs_of(store.tiles[name]) for name in store.tiles.keys() - done)
    return Status(
        folder=store.folder,
        manifest=manifest,
        done=len(done),
        total=len(store.tiles),
        in_flight={name: "unknown" if o is None else f"{o.host}:{o.process}" for name, o in owners.items()},
        damaged=damaged,
        bytes_done=sum(manifest.bytes_of(store.tiles[name]) for name in done),
        bytes_total=sum(map(manifest.bytes_of, store.tiles.values())),
        rate=rate,
        seconds_left=left / rate if rate and owners else None,
        runs=_runs(store, marks),
    )


def _runs(store: Store, marks: Mapping[str, Mark]) -> dict[str, list[tuple[Tile, float]]]:
    """The tiles of every run, in the order in which they were complete."""
    runs: dict[str, list[tuple[Tile, float]]] = {}
    for name, mark in sorted(marks.items(), key=lambda item: item[1].finished):
        runs.setdefault(mark.run, []).append((store.tiles[name], mark.finished))
    return runs


def _rate(store: Store, marks: Mapping[str, Mark], running: set[str]) -> float | None:
    """Pairs of examples in a second, of these runs together, or else of the last one."""
    runs, began = _runs(store, marks), {mark.run: mark.began for mark in marks.values()}
    last = {run: tiles[-1][1] for run, tiles in runs.items()}
    counted = running & runs.keys() or set(sorted(runs, key=last.__getitem__)[-1:])
    pairs = {run: sum(store.manifest.pairs_of(tile) for tile, _ in runs[run]) for run in counted}
    return sum(pairs[run] / (last[run] - began[run]) for run in counted) or None


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
