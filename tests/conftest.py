"""Fixtures of several files."""

from collections.abc import Iterator

import pytest
from quick import unoptimised as _unoptimised


@pytest.fixture
def unoptimised() -> Iterator[None]:
    """See `quick.unoptimised`."""
    with _unoptimised():
        yield
