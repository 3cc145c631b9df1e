"""docs/refusals.md: the catalogue of refusals, each entry with a model that meets it and the text that it raises.

The page is the only place of the models. `python tests/refusal_page.py` writes what they raise into it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from infnet.errors import CATALOGUE, RefusalError

PAGE = Path(__file__).parents[1] / "docs/refusals.md"
SECTION = re.compile(r"^### `(\w+)`\n\n```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


class Section(NamedTuple):
    """An entry of the catalogue on the page."""

    name: str
    code: str
    text: str


def sections(page: str) -> list[Section]:
    """The entries, in order."""
    return [Section(*found.groups(default="")) for found in SECTION.finditer(page)]


def names(page: str) -> dict[str, Any]:
    """What the first block of the page defines for all others."""
    found: dict[str, Any] = {"__name__": "refusals"}
    (first,) = re.findall(r"^```python\n(.*?)^```$", page.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    exec(compile(first, "refusals.md", "exec", dont_inherit=True), found)
    return found


def raised(section: Section, defined: dict[str, Any]) -> RefusalError | None:
    """What the model raises, as the only model of a file `model.py`."""
    try:
        exec(compile(section.code, "model.py", "exec", dont_inherit=True), dict(defined))
    except RefusalError as error:
        return error
    return None


def write() -> None:
    """Put into the page what its models raise."""
    page = PAGE.read_text()
    defined = names(page)

    def with_text(found: re.Match[str]) -> str:
        section = Section(*found.groups(default=""))
        error = raised(section, defined)
        if error is None or error.refusal is not CATALOGUE.get(section.name):
            raise SystemExit(f"{section.name} is not met by its model, which raises: {error}")
        return f"### `{section.name}`\n\n```python\n{section.code}```\n\n```text\n{error}\n```\n"

    PAGE.write_text(SECTION.sub(with_text, page))


if __name__ == "__main__":
    write()
