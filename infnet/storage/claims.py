"""Which process computes which tile: a claim is a file that only one of them can create.

The owner of a claim touches it every few seconds. Others take it over if its process is known to be gone, or if they
have seen it untouched for a minute: by their own clock, so that those of several machines need not agree. If a process
was only asleep, a tile is computed twice; nothing worse.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from infnet.storage import files

# Seconds between two signs of life, and without one until a claim is void.
HEARTBEAT, STALE_AFTER = 5.0, 60.0


@dataclass(frozen=True)
class Owner:
    """A run of `compute` in some process.

    Attributes:
        machine: on which, as far as process numbers are the same.
        host: its name.
        process: the number.
        began: when the process began, in the machine's own units; numbers are used again.
        run: the name of this run.
    """

    machine: str
    host: str
    process: int
    began: str
    run: str

    @staticmethod
    def here() -> Owner:
        """A new run in this process."""
        number = os.getpid()
        return Owner(_machine(), socket.gethostname(), number, _beginning(number), uuid.uuid4().hex)

    @staticmethod
    def of(text: str) -> Owner | None:
        """Whose claim this is; None if it does not say."""
        try:
            return Owner(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended."""
        if self.machine != _machine() or os.name != "posix":
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _beginning(self.process) != self.began


class Claims:
    """The claims of one run; to be used as a context, which ends by giving up those it still has."""

    def __init__(self, folder: Path, owner: Owner):
        self._folder, self._text = folder, json.dumps(asdict(owner))
        self._held: set[str] = set()
        # Claims of others: what was seen, and when it was new.
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="infnet-heartbeat", daemon=True)

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    @property
    def held(self) -> frozenset[str]:
        """Those of this run."""
        return frozenset(self._held)

    def take(self, name: str) -> bool:
        """Claim a tile; False if another run has it."""
        if self._create(name):
            return True
        found = self._look(name)
        if found is None:  # it has just been given up
            return self._create(name)
        return self._is_stale(name, *found) and self._remove(name, found[0]) and self._create(name)

    def is_mine(self, name: str) -> bool:
        """Whether nobody has taken it over."""
        return files.read(self._folder / name) == self._text

    def release(self, name: str) -> None:
        """Give a claim up."""
        self._held.discard(name)
        if self.is_mine(name):
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()

    def _create(self, name: str) -> bool:
        if not files.create(self._folder / name, self._text, durable=False):
            return False
        self._held.add(name)
        self._seen.pop(name, None)
        return True

    def _look(self, name: str) -> tuple[str, int] | None:
        """What a claim says, and when it was touched."""
        try:
            return (self._folder / name).read_text(), (self._folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _is_stale(self, name: str, text: str, touched: int) -> bool:
        owner = Owner.of(text)
        if owner is not None and owner.is_gone:
            return True
        before, since = self._seen.get(name, (None, 0.0))
        if before != (text, touched):
            self._seen[name] = (text, touched), time.monotonic()
            return False
        return time.monotonic() - since > STALE_AFTER

    def _remove(self, name: str, text: str) -> bool:
        """Remove the claim that says this; not one that somebody has put in its place since."""
        aside = self._folder / f"{files.TEMPORARY}{uuid.uuid4().hex}"
        try:
            os.rename(self._folder / name, aside)
        except FileNotFoundError:
            return True
        same = aside.read_text() == text
        if not same:
            with suppress(FileExistsError):
                os.link(aside, self._folder / name)
        aside.unlink()
        return same

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            for name in list(self._held):
                with suppress(OSError):
                    os.utime(self._folder / name)


@cache
def _machine() -> str:
    """A name for where process numbers mean the same: the host since it was booted, and the container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _beginning(process: int) -> str:
    """When a process began, or that it has ended and only waits for its parent; empty where the system does not say."""
    with suppress(OSError, IndexError):
        # Fields from the third one on; the second one, in parentheses, may hold anything.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else fields[18]
    return ""
