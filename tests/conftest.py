"""How tests are compiled, which files are left out where a package is missing, and what workers forget."""

import gc
from collections.abc import Iterator

import pytest
from needed import missing
from quick import unoptimised

collect_ignore = sorted({file for files in missing().values() for file in files})


def pytest_report_header() -> list[str]:
    """What is left out."""
    return [f"without {package}: {len(files)} test files are left out" for package, files in missing().items()]


def pytest_collection_finish() -> None:
    """The collector of garbage looks less often through the many objects that stay: modules, tests, cached jaxprs."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests and their fixtures are compiled quickly, unless they are marked as `optimised`."""
    if item.get_closest_marker("optimised"):
        return (yield)
    with unoptimised():
        return (yield)
