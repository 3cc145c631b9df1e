"""Every activation of Neural Tangents 0.6.5, written out as a user would, in float64.

Its figures were frozen by references/activations_nt.py.
"""

from math import pi
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.activations.exponential import ExpNormalized

W_STD, B_STD = 1.4, 0.3
WIDTH = 32


@pytest.fixture(scope="module")
def references():
    with np.load(Path(__file__).parent / "references" / "activations_nt.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


ACTIVATIONS = {
    "abrelu": lambda x: -0.3 * jnp.minimum(x, 0) + 1.2 * jnp.maximum(x, 0),
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.1),
    "abs": jnp.abs,
    "sign": jnp.sign,
    "erf": lambda x: 1.3 * jax.lax.erf(0.7 * x) + 0.2,
    "sigmoid_like": lambda x: 0.5 * jax.scipy.special.erf(x / 2.4020563531719796) + 0.5,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sin": lambda x: 1.3 * jnp.sin(0.7 * x + 0.4),
    "cos": lambda x: 0.8 * jnp.cos(1.1 * x + 0.3),
    "rbf": lambda x: jnp.sqrt(2.0) * jnp.sin(jnp.sqrt(2 * 0.6) * x + pi / 4),
    "exp": lambda x: 1.1 * jnp.exp(0.4 * x),
    "gaussian": lambda x: 1.2 * jnp.exp(-0.6 * x**2),
    "gabor": lambda x: jnp.exp(-(x**2)) * jnp.sin(x),
    "hermite1": lambda x: x,
    "hermite2": lambda x: (x**2 - 1) / 2**0.5,
    "hermite3": lambda x: (x**3 - 3 * x) / 6**0.5,
    "hermite4": lambda x: (x**4 - 6 * x**2 + 3) / 24**0.5,
    "monomial0": jnp.ones_like,
    "monomial1": lambda x: x**1,
    "monomial2": lambda x: x**2,
    "monomial3": lambda x: x * x * x,
    "monomial4": lambda x: jnp.square(jnp.square(x)),
    "monomial5": lambda x: x**5,
    "rectified_monomial0": lambda x: (x >= 0).astype(x.dtype),
    "rectified_monomial1": lambda x: (x >= 0) * x,
    "rectified_monomial2": lambda x: jnp.square(jax.nn.relu(x)),
    "rectified_monomial3": lambda x: jnp.where(x >= 0, x**3, 0),
    "polynomial": lambda x: 0.3 - x + 0.5 * x**2 + 0.2 * x**3,
}
# Where Neural Tangents takes the square root of a rounding error at parallel inputs, it is right to half its digits.
KINKED = {"abrelu", "relu", "leaky_relu", "abs", "sign"}


def kernels(activation, x, w_std):
    """Dense, activation, Dense; only the second Dense has a bias."""

    def apply_fn(params, x):
        return activation(x @ params["first"]) @ params["second"] + params["bias"]

    shapes = {"first": (x.shape[1], WIDTH), "second": (WIDTH, 1), "bias": (1,)}
    deviations = {"first": w_std / x.shape[1] ** 0.5, "second": W_STD / WIDTH**0.5, "bias": B_STD}
    priors = {name: infnet.Prior(0.0, deviations[name], 0.0, shapes[name], x.dtype) for name in shapes}
    return infnet.kernel_fn(apply_fn, priors, x, parameterization="ntk")(x, x, ("nngp", "ntk"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_agrees_to_nine_digits(name, references):
    unit = name.startswith("hermite")
    x = references["x_unit" if unit else "x"]
    assert_agrees(kernels(ACTIVATIONS[name], x, 1.0 if unit else W_STD), name, references)


def assert_agrees(kernel, name, references):
    x = references["x_unit" if name.startswith("hermite") else "x"]
    correlation = np.corrcoef(np.concatenate([x, -x], 1))  # of means zero
    parallel = np.isclose(abs(correlation), 1, rtol=1e-12)
    for moment in ("nngp", "ntk"):
        reference = references[f"{name}/{moment}"]
        np.testing.assert_array_equal(np.isnan(reference), parallel & name.startswith("rectified"))
        expected = np.where(np.isnan(reference), at_parallel(name, moment, x), reference)
        size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        error = np.abs(getattr(kernel, moment) - expected) / size
        assert np.all(error < np.where(parallel & (name in KINKED), 1e-7, 1e-9)), name


def at_parallel(name, moment, x):
    """Of rectified monomials: `E u^2n / 2` at equal inputs, 0 at opposite ones."""
    if not name.startswith("rectified"):
        return np.zeros((len(x), len(x)))
    n = int(name[-1])

    def square(power):
        return np.prod(np.arange(2 * power - 1, 0, -2.0)) / 2 * q**power

    equal = (x[:, None] == x).all(-1)
    q = W_STD**2 * (x**2).mean(1)[:, None]
    nngp = W_STD**2 * square(n) * equal + B_STD**2
    if moment == "nngp":
        return nngp
    return nngp + (W_STD**2 * n**2 * square(n - 1) * q * equal if n else 0.0)


def test_exp_normalized_agrees(references):
    x = references["x"]
    q = W_STD**2 * x @ x.T / x.shape[1]
    k, kdot = ExpNormalized(0.8, -0.7).kernel(q, np.diag(q)[:, None], np.diag(q)[None], True)
    nngp = W_STD**2 * k + B_STD**2
    np.testing.assert_allclose(nngp, references["exp_normalized/nngp"], rtol=1e-12)
    np.testing.assert_allclose(nngp + W_STD**2 * kdot * q, references["exp_normalized/ntk"], rtol=1e-12)


def test_nothing_is_left_out(references):
    names = {key.split("/")[0] for key in references} - {"x", "x_unit"}
    assert names == ACTIVATIONS.keys() | {"exp_normalized"}
