"""Examples on eight devices give a kernel on eight devices, and no device is sent another one's part of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).parent.parent
N = 64  # examples, as in sharded_kernels.py
CASES = ["dense 262144 x2", "dense 512 x2", "dense 512 x1", "deep 512 x1", "convolutional 8192 x1"]
INPUT_SIZE = {"dense": 4, "deep": 4, "convolutional": 32}


@pytest.fixture(scope="module")
def reports():
    script = [sys.executable, str(ROOT / "tests/sharded_kernels.py"), *CASES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"}
    result = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return json.loads(result.stdout)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_sharded_and_not_gathered(reports, case):
    report = reports[case]
    assert report["shards"] == [8, 8, 8, 8]  # nngp and ntk, under jit and eagerly
    # At most the inputs are exchanged, as x2 = x1 needs them; an entry of the kernel never is.
    assert report["moved"] <= INPUT_SIZE[case.split()[0]] * N < N * N
    assert report["error"] < 2e-6


def test_kernels_of_every_activation_are_sharded(reports):
    activations = {name: found for name, found in reports.items() if name not in CASES}
    assert len(activations) >= 40
    for name, found in activations.items():
        assert found == {"shards": [8, 8], "moved": 0}, name
