"""Fixtures of several files; and which files are left out where a package is missing."""

from collections.abc import Iterator

import pytest
from needed import missing
from quick import unoptimised as _unoptimised

collect_ignore = sorted({file for files in missing().values() for file in files})


def pytest_report_header() -> list[str]:
    """What is left out."""
    return [f"without {package}: {len(files)} test files are left out" for package, files in missing().items()]


@pytest.fixture
def unoptimised() -> Iterator[None]:
    """See `quick.unoptimised`."""
    with _unoptimised():
        yield
