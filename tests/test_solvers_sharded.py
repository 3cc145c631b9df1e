"""Kernels on eight devices are factored and solved with, and no device holds more than its part and a few panels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
N, BLOCK = 240, 16  # as in sharded_solvers.py


@pytest.fixture(scope="module")
def reports():
    script = [sys.executable, str(ROOT / "tests/sharded_solvers.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"}
    result = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return json.loads(result.stdout)


@pytest.mark.parametrize("layout", ["4x2", "rows", "columns"])
def test_the_factor_and_the_solution_are_right(reports, layout):
    report = reports[layout]
    assert report["factor"] < 1e-4  # float32, at a condition number of 1000
    assert report["above"] == 0
    assert report["residual"] <= 1e-6
    assert report["iterations"] <= 4


def test_no_device_holds_the_matrix(reports):
    memory, part, panel = reports["memory"], N * N // 8, N * BLOCK
    assert memory["shards"] == [[60, 120]]
    assert memory["given_up"]
    for program in ("factor", "solve"):
        assert memory[program]["largest"] <= max(part, panel) < N * N
        assert memory[program]["temporary"] <= part + 8 * panel


def test_predictions_are_those_of_the_dense_matrix(reports):
    assert reports["predictions"] < 1e-5


def test_refusals(reports):
    assert "not positive definite" in reports["refusals"]["indefinite"]
    assert "jax.sharding.Mesh" in reports["refusals"]["no mesh"]
