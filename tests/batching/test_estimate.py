"""What is estimated before a run, beside what the run takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.errors import InputError

HERE = Path(__file__).parent


# Other systems have no file that says how much memory a process had at most since some moment.
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_the_peak_of_memory_is_as_estimated():
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_ENABLE_X64": "0"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system, and counts when used again
    script = [sys.executable, str(HERE / "peaks.py")]
    result = subprocess.run(script, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(result.stdout)
    assert found.keys() == {"dense", "flatten", "pool"}
    for name, one in found.items():
        assert one["measured"] == pytest.approx(one["estimated"], rel=0.25), name
    assert found["dense"]["output"] == pytest.approx(2 * 4 * 3000**2, rel=1e-3)


def network(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


@pytest.fixture(scope="module")
def kernel_fn():
    priors = [infnet.Prior(0.0, 1.0, shape=shape, dtype=jnp.float32) for shape in ((3, 8), (8, 1))]
    return infnet.kernel_fn(network, priors, jnp.ones((2, 3)))


def test_shapes_will_do(kernel_fn):
    x = np.random.RandomState(0).randn(50, 3).astype("f")
    of_shapes = kernel_fn.estimate(jax.ShapeDtypeStruct((50, 3), "f"), jax.ShapeDtypeStruct((20, 3), "f"))
    assert of_shapes == kernel_fn.estimate(x, x[:20])
    assert of_shapes.output_bytes >= 2 * 4 * 50 * 20
    # Per pair and kernel: at least the product of the inputs, and not more than a hundred operations besides.
    assert 50 * 20 * 2 * 3 < of_shapes.flops < 50 * 20 * 200


def test_what_does_not_fit_is_estimated_in_tiles(kernel_fn):
    n = 10**6
    found = kernel_fn.estimate(jax.ShapeDtypeStruct((n, 3), "f"), None, "ntk")
    assert found.output_bytes == 4 * n**2
    assert found.on_host
    assert found.tiles > 1000
    assert found.peak_bytes < 2**30
    assert "on the host" in str(found)
    assert f"{found.tile[0]} x {found.tile[1]}" in str(found)


def test_operations_of_all_tiles_count(kernel_fn):
    x = jax.ShapeDtypeStruct((64, 3), "f")
    at_once, in_tiles = kernel_fn.estimate(x, x, "ntk"), kernel_fn.estimate(x, x, "ntk", batch_size=16, device_count=1)
    assert in_tiles.tiles == 16
    assert in_tiles.tile == (16, 16)
    assert in_tiles.flops == pytest.approx(at_once.flops, rel=0.2)
    assert in_tiles.peak_bytes > in_tiles.output_bytes


def test_wrong_shapes_are_named(kernel_fn):
    with pytest.raises(InputError, match=r"shape \(50, 4\)"):
        kernel_fn.estimate(jax.ShapeDtypeStruct((50, 4), "f"))
