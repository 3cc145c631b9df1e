"""What the README says is what happens: its code runs, its output is the real one, its files exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys

import jax.numpy as jnp
import pytest
from documents import GP_LIBRARIES, README, REFUSALS, ROOT, blocks, run_document

from infnet.errors import UnsupportedError


@pytest.fixture(scope="module")
def executed():
    """The names that the python blocks define, and what each block prints."""
    names, printed = {"__name__": "mlp"}, []
    for block in blocks("python"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block, "model.py", "exec"), names)
        printed.append(output.getvalue().rstrip())
    return names, printed


@pytest.mark.optimised
def test_the_example_predicts(executed):
    names, _ = executed
    truth, mean = names["y"][200:, 0], names["posterior"].mean[:, 0]
    assert jnp.corrcoef(truth, mean)[0, 1] > 0.98


def test_the_example_is_short():
    assert sum(map(bool, blocks("python")[0].splitlines())) <= 15


@pytest.mark.optimised
def test_printed_output_is_the_real_one(executed):
    _, (_, *printed) = executed
    assert printed == [text.rstrip() for text in blocks("text")[:3]]


def test_the_refusal_is_the_real_one():
    model = """
import flax.linen as nn
class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape((x.shape[0], -1)))
"""
    import infnet_flax

    names = {"__name__": "cnn"}
    exec(compile(model, "model.py", "exec"), names)
    with pytest.raises(UnsupportedError) as refusal:
        infnet_flax.annotate(names["CNN"]()).kernel(jnp.ones((2, 8, 8, 1)))
    assert str(refusal.value).split() == blocks("text")[3].split()


def test_there_are_two_commands_and_each_makes_its_environment():
    example, tests = blocks("sh")
    for command, extra, last in (
        (example, "examples", "python examples/digits.py"),
        (tests, "dev", "python -m pytest -q -n 2"),
    ):
        assert len(command.splitlines()) == 1
        assert command.startswith(f"python3 -m venv .venv && .venv/bin/pip install -q -e '.[{extra}]' && ")
        assert command.rstrip().endswith(f".venv/bin/{last}")


def test_the_table_of_activations_is_the_list_that_is_tested():
    spec = importlib.util.spec_from_file_location("readme_activations", ROOT / "benchmarks/activations.py")
    table = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = table
    spec.loader.exec_module(table)
    rows = [[c.strip() for c in line.split(" | ")] for line in README.splitlines() if line.startswith("| ")]
    found = {row[0][2:]: row[1:] for row in rows if row[0][2:] in table.CASES}
    assert list(found) == list(table.CASES)
    for name, case in table.CASES.items():
        written, kernel, source, error, _, _ = found[name]
        assert (written, source) == (f"`{case.written}`", case.source)
        exact = table.activation_of(case).exact
        assert kernel == ("closed form" if exact == "exact" else exact)
        assert float(error) <= 3e-6


DOCUMENTS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in (GP_LIBRARIES, REFUSALS)])
def test_the_other_documents_run(name):
    run_document(name)


def test_the_files_of_the_map_exist_and_none_is_missing():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    named = [path for row in rows for path in re.findall(r"`([^`]*)`", row.split("|")[1])]
    assert all((ROOT / path).exists() for path in named)
    sources = [p for p in (ROOT / "infnet").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    missing = {f"infnet/{p.name}{'/' * p.is_dir()}" for p in sources} - set(named) - {"infnet/__init__.py"}
    assert not missing
