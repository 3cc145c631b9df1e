"""The folder list tells the story: imports point backwards along the flow of data, and nothing heavy comes along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ["trace", "flatten", "separation", "independence", "program", "reader", "plan", "execute", "tiling", "api"]
ADAPTERS = "infnet_flax", "infnet_haiku"
LATER = {name: set(STAGES[i + 1 :]) for i, name in enumerate(STAGES)}


def imports(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_later_stage(stage):
    found = {module.split(".")[1] for module in imports(ROOT / f"infnet/{stage}.py") if module.startswith("infnet.")}
    assert not found & LATER[stage]


def test_nobody_imports_the_api_but_the_package_and_its_front_end():
    front = ROOT / "infnet/stax"
    for path in (ROOT / "infnet").rglob("*.py"):
        if path.name != "__init__.py" and front not in path.parents:
            assert not [m for m in imports(path) if m == "infnet.api" or m.startswith("infnet.stax")], path


def test_primitives_know_nothing_of_programs():
    allowed = {"_jax", "layout", "primitives"}
    for path in (ROOT / "infnet/primitives").glob("*.py"):
        assert {m.split(".")[1] for m in imports(path) if m.startswith("infnet.")} <= allowed, path


def test_rules_do_not_import_execution():
    for path in (ROOT / "infnet/rules").glob("*.py"):
        assert not {"infnet.execute", "infnet.tiling", "infnet.api"} & set(imports(path)), path


def test_jax_internals_come_through_one_door():
    for path in ROOT.glob("infnet*/**/*.py"):
        for module in imports(path):
            assert not module.startswith("jax._src"), path
            if path.name != "_jax.py":
                assert not module.startswith(("jax.extend", "jax.interpreters")), path


def test_adapters_import_only_public_names():
    for path in [p for name in ADAPTERS for p in (ROOT / name).rglob("*.py")]:
        assert {m for m in imports(path) if m.startswith("infnet.")} <= {"infnet.errors"}, path


def test_both_adapters_have_the_same_files_of_layers():
    flax, haiku = ({p.name for p in (ROOT / name / "layers").iterdir() if p.suffix == ".py"} for name in ADAPTERS)
    assert flax == haiku


def test_import_infnet_is_light():
    heavy = ("flax", "haiku", "optax", "matplotlib", "tensorstore", "tqdm")
    code = f"import sys, infnet; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_test_files_need_packages_by_importing_them():
    """As `tests/needed.py` reads them: what a test skips by itself is not noticed by whoever has no such package."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if getattr(n, "attr", "") == "importorskip"], path


def test_no_file_is_a_burden():
    long = {p: n for p in ROOT.glob("infnet*/**/*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long
