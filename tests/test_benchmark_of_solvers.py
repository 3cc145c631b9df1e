"""benchmarks/solvers.py runs with small arguments, and what it prints is measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib  # noqa: F401 - the benchmark needs it
import pytest
import sklearn  # noqa: F401 - and this

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_solvers", ROOT / "benchmarks/solvers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_times(benchmark, capsys, tmp_path):
    path = tmp_path / "iterations.png"
    benchmark.main(["time", "--n", "120", "--classes", "2", "--ranks", "0", "60", "--plot", str(path)])
    shown = capsys.readouterr().out
    residuals = [float(found) for found in re.findall(r"residual (\S+)", shown)]
    assert len(residuals) == 5  # LAPACK twice, two ranks, Cholesky
    assert max(residuals[1:]) <= 1.1e-6
    few, many = (int(found) for found in re.findall(r"(\d+) iterations, residual", shown)[1::-1])
    assert 0 < few < many
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("method", ["cholesky", "cg"])
def test_memory(benchmark, capsys, method):
    benchmark.main(["memory", method, "--n", "120", "--classes", "2"])
    residual = re.search(r"residual (\S+)", capsys.readouterr().out)
    assert residual
    assert float(residual.group(1)) <= 1e-6
