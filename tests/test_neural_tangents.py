"""Agreement with Neural Tangents 0.6.5 in float64, in both parameterizations.

Its figures were frozen by references/make_neural_tangents.py.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
import zoo
from references import inputs

import infnet_flax

REFERENCES = Path(__file__).parent / "references"
CASES = [c for c in zoo.CASES if c.in_neural_tangents]
UNITS = {"as_model": "standard", "ntk": "ntk"}  # ours: theirs


@pytest.fixture(scope="module")
def references():
    with np.load(REFERENCES / "neural_tangents.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("parameterization", UNITS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_agrees_to_nine_digits(case, parameterization, references):
    x1, x2 = inputs.make(case.shape)
    kernel = infnet_flax.kernel_fn(case.make(), x1, parameterization=parameterization)(x1, x2, ("nngp", "ntk"))
    for moment in ("nngp", "ntk"):
        reference = references[f"{case.name}/{UNITS[parameterization]}/{moment}/x1x2"]
        np.testing.assert_allclose(getattr(kernel, moment), reference, rtol=1e-9)


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_gelu", "lenet", "conv_global_pool", "concatenated"])
def test_a_set_with_itself_agrees(name, references):
    case = zoo.BY_NAME[name]
    x1, _ = inputs.make(case.shape)
    kernel = infnet_flax.kernel_fn(case.make(), x1)(x1, get=("nngp", "ntk"))
    for moment in ("nngp", "ntk"):
        reference = references[f"{name}/standard/{moment}/x1x1"]
        # The reference's own diagonal has lost half its digits: arccos near 1.
        rtol = np.where(np.eye(len(x1), dtype=bool), 1e-7, 1e-9)
        value = np.asarray(getattr(kernel, moment))
        assert (abs(value / reference - 1) < rtol).all()


def test_there_are_at_least_twelve_networks():
    assert len(CASES) >= 12
