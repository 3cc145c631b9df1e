"""Which optional packages a test file needs, read off its imports; those that need a missing one are left out.

So a test imports what it needs, also what only infnet uses, and never asks pytest whether it is there.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
ADAPTERS = {"infnet_flax": "flax", "infnet_haiku": "haiku"}
# What infnet itself depends on is always there, and so is pytest.
OPTIONAL = frozenset(
    [
        "cloudpickle",
        "diffrax",
        "flax",
        "gpjax",
        "haiku",
        "hypothesis",
        "matplotlib",
        "optax",
        "orbax",
        "rich",
        "sklearn",
        "tensorstore",
        "tinygp",
        "tqdm",
    ]
)


@cache
def packages(path: Path) -> frozenset[str]:
    """The optional packages that a file imports, by itself or through other files of the tests."""
    found: set[str] = set()
    for name in _imports(path):
        own = TESTS / f"{name}.py"
        found |= packages(own) if own.exists() and own != path else {ADAPTERS.get(name, name)}
    return frozenset(found & OPTIONAL)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def missing() -> dict[str, list[str]]:
    """The test files that cannot run here, by the package that is missing."""
    absent = sorted(name for name in OPTIONAL if importlib.util.find_spec(name) is None)
    files = sorted(TESTS.rglob("test_*.py"))
    found = {name: [str(f.relative_to(TESTS)) for f in files if name in packages(f)] for name in absent}
    return {name: own for name, own in found.items() if own}
