"""infnet's own layers against Neural Tangents 0.6.5 in float64, and those of Haiku against those of Flax.

The references are those of `test_neural_tangents.py` and `test_structures_nt.py`.
"""

import functools

import jax
import numpy as np
import pytest
from layers_zoo import CASES, Flax, Haiku, for_haiku
from test_neural_tangents import REFERENCES

import infnet


@functools.cache
def references(name):
    with np.load(REFERENCES / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


RUNS = [(name, p) for name, case in CASES.items() for p in ("standard", "ntk") if case.both or p == "standard"]


@pytest.mark.parametrize(("name", "parameterization"), RUNS)
def test_agrees_to_nine_digits(name, parameterization):
    case = CASES[name]
    kernels = Flax(parameterization).kernels(case, *case.examples(case.shape))
    for network, kernel in kernels.items():
        for moment in ("nngp", "ntk"):
            reference = references(case.file)[f"{network}/{parameterization}/{moment}/x1x2"]
            np.testing.assert_allclose(getattr(kernel, moment), reference, rtol=1e-9, err_msg=f"{network}, {moment}")


def deviations(priors):
    """Arrays of the shapes of parameters, filled with their standard deviations."""
    return jax.tree.map(
        lambda p: np.full(p.shape, p.std, p.dtype), priors, is_leaf=lambda p: isinstance(p, infnet.Prior)
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.dropout])
def test_haiku_does_the_same_as_flax(name):
    """The same operations on parameters of the same laws, from which all else follows."""
    case = CASES[name]
    x, _ = case.examples(case.shape)
    flax, haiku = Flax("ntk").model(case.body), Haiku("ntk").model(case.body)
    params = deviations(infnet.infer_priors(flax.init, x)["params"])
    jax.tree.map(np.testing.assert_array_equal, for_haiku(params), deviations(infnet.infer_priors(haiku.init, x)))

    def ours(params, x):
        return flax.apply({"params": params}, x)

    def theirs(params, x):
        return haiku.apply(for_haiku(params), None, x)

    if name in ("transposed", "transposed_circular"):  # of which Haiku has the weights transposed
        params = jax.tree.map(lambda p: np.random.RandomState(0).standard_normal(p.shape), params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), ours(params, x), theirs(params, x))
    else:
        assert str(jax.make_jaxpr(ours)(params, x)) == str(jax.make_jaxpr(theirs)(params, x))


def test_dropout_of_haiku_is_that_of_flax():
    case = CASES["dropout"]
    kernels = [layers("standard").kernels(case, *case.examples(case.shape)) for layers in (Flax, Haiku)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), *kernels)
