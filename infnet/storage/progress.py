"""A progress bar for tiles that several processes compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infnet.errors import InputError
from infnet.storage.store import Store


class Progress:
    """A bar in pairs of examples, with the tiles and bytes that are complete; nothing where it is not shown."""

    def __init__(self, store: Store, done: Iterable[str], progress: bool | str):
        """A bar that begins with what is done.

        Args:
            store: of which the tiles are.
            done: their names.
            progress: True to show it where the standard error is a terminal, False for never, or "always".

        Raises:
            InputError: it is something else.
            ImportError: tqdm is missing.
        """
        if not isinstance(progress, bool) and progress != "always":
            raise InputError(f'progress must be True, False or "always", not {progress!r}')
        self._store = store
        self._tiles, self._bytes, pairs = self._sums(done)
        self._bar: Any = None
        if progress:
            total = self._sums(store.tiles)
            self._totals = f"{total[0]} tiles, {{}}B of {_short(total[1])}B"
            # Without a terminal (disable=None) there is no bar.
            self._bar = _tqdm()(
                total=total[2],
                initial=pairs,
                desc=store.folder.name,
                unit=" pairs",
                unit_scale=True,
                dynamic_ncols=True,
                disable=False if progress == "always" else None,
            )
            self.add(())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, names: Iterable[str]) -> None:
        """These are done too, by whomever."""
        if self._bar is None:
            return
        tiles, size, pairs = self._sums(names)
        self._tiles, self._bytes = self._tiles + tiles, self._bytes + size
        self._bar.set_postfix_str(f"{self._tiles} of {self._totals.format(_short(self._bytes))}", refresh=False)
        self._bar.update(pairs)

    def _sums(self, names: Iterable[str]) -> tuple[int, int, int]:
        """The number of tiles, their bytes, and their pairs of examples."""
        manifest, tiles = self._store.manifest, [self._store.tiles[name] for name in names]
        return len(tiles), sum(map(manifest.bytes_of, tiles)), sum(map(manifest.pairs_of, tiles))


def _short(number: int) -> str:
    return str(_tqdm().format_sizeof(number))


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            'the progress bar needs the package tqdm: pip install "infnet[large]", or pass progress=False'
        ) from error
    return tqdm
