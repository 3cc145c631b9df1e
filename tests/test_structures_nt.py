"""Agreement with Neural Tangents 0.6.5 in float64, one structure at a time.

Its figures were frozen by references/make_neural_tangents_structures.py. XLA's optimisations are off: compiling is
most of the work here.
"""

import jax
import numpy as np
import pytest
from structures_zoo import CASES, Model
from test_neural_tangents import REFERENCES, UNITS

import infnet_flax


@pytest.fixture(scope="module")
def references():
    with np.load(REFERENCES / "structures_nt.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


RUNS = [(name, p) for name, case in CASES.items() for p in UNITS if case.both or p == "as_model"]


@pytest.mark.parametrize(("name", "parameterization"), RUNS)
def test_agrees_to_nine_digits(name, parameterization, references):
    case = CASES[name]
    x1, x2 = case.examples(case.shape)
    training = {"rngs": {"dropout": jax.random.key(0)}}
    options = {"parameterization": parameterization, "call_kwargs": training}
    kernel = infnet_flax.kernel_fn(Model(case.body), x1, **options)(x1, x2, ("nngp", "ntk"))
    for moment in ("nngp", "ntk"):
        reference = references[f"{name}/{UNITS[parameterization]}/{moment}/x1x2"]
        np.testing.assert_allclose(getattr(kernel, moment), reference, rtol=1e-9)


def test_every_reference_has_a_model(references):
    assert {key.split("/")[0] for key in references} == set(CASES)
