"""The code in the README and in docs/."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Needs packages that other documents do not.
GP_LIBRARIES = "gp_libraries.md"
# What its models raise is compared by tests/test_catalogue.py.
REFUSALS = "refusals.md"


def blocks(language: str, text: str = README) -> list[str]:
    """What stands in the blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_document(name: str) -> None:
    """Run the Python of a document, which must print what its blocks of text say."""
    text, names, output = (ROOT / "docs" / name).read_text(), {"__name__": name}, io.StringIO()
    with contextlib.redirect_stdout(output):
        for block in blocks("python", text):
            exec(compile(block, name, "exec", dont_inherit=True), names)
    assert output.getvalue() == "".join(blocks("text", text))
