"""Progress bars, of tqdm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infnet.errors import InputError


class _Silent:
    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


@contextmanager
def bar(wanted: bool, label: str, total: int, unit: str) -> Iterator[Any]:
    """A progress bar where one is wanted; what it yields has `update(n)` and `set_postfix_str(text)`.

    Raises:
        InputError: one is wanted and tqdm is not installed.
    """
    if not wanted:
        yield _Silent()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise InputError("progress=True needs tqdm: pip install 'infnet[large]', or leave it out") from error
    with tqdm(desc=label, total=total, unit=unit) as shown:
        yield shown
