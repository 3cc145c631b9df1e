"""Small files that are there as a whole or not at all, also after a crash."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infnet.errors import StorageError

TEMPORARY = ".new-"


def create(path: Path, text: str, *, durable: bool = True) -> bool:
    """Write a file; False if there is one already. Of several processes that do this at once, one writes it.

    `durable`: it is on the disk when this returns.
    """
    with _written(path, text, durable) as temporary:
        try:
            os.link(temporary, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            return False
    if durable:
        _sync(path.parent)
    return True


def replace(path: Path, text: str) -> None:
    """Write a file in place of the one that is there."""
    with _written(path, text) as temporary:
        os.replace(temporary, path)
    _sync(path.parent)


def read(path: Path) -> str | None:
    """The text of a file; None if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


@contextmanager
def failures_on(folder: Path) -> Iterator[None]:
    """What the operating system refuses becomes an error that names the folder."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be used as a store: {error}") from error


@contextmanager
def _written(path: Path, text: str, durable: bool = True) -> Iterator[Path]:
    """A new file beside `path`, which is gone when this ends."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("x") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk too, where the operating system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
