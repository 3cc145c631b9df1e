"""Layers of every family of activations in a model, with a bias that has a mean, against two-dimensional quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from test_every_activation import quadrature

import infnet
from infnet.errors import InputError, NumericalError, UnsupportedError

WIDTH, MEAN = 32, 0.5
STD, BIAS_STD, READOUT_STD = 0.6, 0.3, 0.1

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "erf": erf,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "hard_tanh": jax.nn.hard_tanh,
    "elu": jax.nn.elu,
    "squared relu": lambda h: jax.nn.relu(h) ** 2,
    "sin": jnp.sin,
    "x^3": lambda h: h**3,
    "tanh": jnp.tanh,
    # Two functions of one field, whose joint moments are needed.
    "residual": lambda h: h + jax.nn.relu(h),
}
BRANCHES = {
    "two homogeneous": (jax.nn.relu, jnp.abs),
    "two piecewise": (jax.nn.relu, jax.nn.hard_tanh),
    "polynomial and piecewise": (lambda h: h**2, jax.nn.relu6),
    "smoothed and piecewise": (erf, jax.nn.hard_sigmoid),
    "two exponential": (jnp.sin, lambda h: h**2),
    "two series": (jnp.tanh, jax.nn.silu),
    "with its argument": (lambda h: h, jnp.tanh),
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def prior(std, *shape, mean=0.0):
    return infnet.Prior(mean, std, shape=shape, dtype=jnp.float64)


def inputs(size=1.0):
    return size * np.random.default_rng(0).normal(size=(3, 4))


def kernel_of(apply, mean=MEAN, **options):
    priors = [prior(STD, 4, WIDTH), prior(BIAS_STD, WIDTH, mean=mean), prior(READOUT_STD, WIDTH, 1)]
    return infnet.kernel_fn(apply, priors, inputs(), **options)


def assert_is_quadrature(kernel_fn, function, mean=MEAN):
    x = inputs()
    gram = STD**2 * x @ x.T + BIAS_STD**2
    found = kernel_fn(x)

    def at(f):
        return lambda h: np.asarray(f(jnp.asarray(h)), float)

    slope = jax.vmap(jax.grad(function))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        q = gram[i, j], gram[i, i], gram[j, j]
        k, kdot = (quadrature(at(f), *q, mean=mean) for f in (function, slope))
        np.testing.assert_allclose(found.nngp[i, j], READOUT_STD**2 * WIDTH * k, rtol=1e-7)
        ntk = WIDTH * k + READOUT_STD**2 * WIDTH * kdot * (x[i] @ x[j] + 1)
        np.testing.assert_allclose(found.ntk[i, j], ntk, rtol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_argument_with_a_mean(name):
    function = ACTIVATIONS[name]
    assert_is_quadrature(kernel_of(lambda p, x: function(x @ p[0] + p[1]) @ p[2]), function)


@pytest.mark.parametrize("name", BRANCHES)
def test_two_functions_of_one_field(name):
    """Written with shared weights, so that the two stay two nodes of the program."""
    one, two = BRANCHES[name]

    def apply(p, x):
        left, right = one(x @ p[0] + p[1]), two(x @ p[0] + p[1])
        return (left + right) @ p[2]

    assert_is_quadrature(kernel_of(apply), lambda h: one(h) + two(h))


def test_errors_of_series_are_reported():
    kernel_fn = kernel_of(lambda p, x: jnp.tanh(x @ p[0] + p[1]) @ p[2])
    assert "in the last call" not in str(kernel_fn.explain())
    error = kernel_fn(inputs()).error
    assert 0 < error <= 1e-6
    assert f"the relative error of each of these kernels was at most {error:.2g}" in str(kernel_fn.explain())
    assert 0 < jax.jit(kernel_fn)(inputs()).error <= 1e-6
    row = next(row for row in kernel_fn.explain().rows if row.rule == "tanh")
    assert row.exact.startswith("series of")
    exact = kernel_of(lambda p, x: jnp.sin(x @ p[0] + p[1]) @ p[2])
    assert exact(inputs()).error == 0


def test_series_grow_with_the_data_or_refuse():
    kernel_fn = kernel_of(lambda p, x: jax.nn.silu(x @ p[0]) @ p[2])
    terms = str(kernel_fn.explain())
    assert kernel_fn(inputs(2.0)).error <= 1e-6
    assert str(kernel_fn.explain()) != terms
    with pytest.raises(UnsupportedError, match=r"converges too slowly(.|\n)*smaller weights") as caught:
        kernel_fn(inputs(30.0))
    assert "test_activation_layers.py" in caught.value.where.line
    # Nothing is lost: the kernel function is as it was, and under jit the bound is there to be looked at.
    assert kernel_fn(inputs()).error <= 1e-6
    assert jax.jit(kernel_fn)(inputs(30.0)).error > 1e-3


def test_tolerance_and_largest_variance_can_be_given():
    loose = kernel_of(lambda p, x: jnp.tanh(x @ p[0]) @ p[2], tol=1e-2)
    assert 1e-6 < loose(inputs(3.0)).error <= 1e-2
    fixed = kernel_of(lambda p, x: jnp.tanh(x @ p[0]) @ p[2], q_max=0.5)
    with pytest.raises(NumericalError, match="a larger q_max="):
        fixed(inputs(3.0))
    allowed = kernel_of(lambda p, x: jnp.tanh(x @ p[0]) @ p[2], q_max=0.5, tol=1.0)
    assert max(row.error or 0.0 for row in allowed.explain(inputs(3.0)).rows) > 1e-5  # as that error's remedy says
    for options in ({"tol": 0.0}, {"tol": "small"}, {"q_max": -1.0}, {"q_max": 0.0}, {"precision": "high"}):
        with pytest.raises(InputError, match=next(iter(options))):
            kernel_of(lambda p, x: jnp.tanh(x @ p[0]) @ p[2], **options)


def test_a_kernel_that_overflows_names_the_layer():
    def apply(p, x):
        return jnp.exp(x @ p[0]) @ p[2]  # here

    kernel_fn = kernel_of(apply)
    with pytest.raises(NumericalError, match=r"not finite from this layer on(.|\n)*test_activation_layers.py"):
        kernel_fn(inputs(100.0))
    with pytest.raises(NumericalError, match="exp"):
        kernel_fn(inputs(100.0), inputs())
    with pytest.raises(NumericalError, match="exp"):
        kernel_fn.diag(inputs(100.0))
    assert not jnp.isfinite(jax.jit(kernel_fn)(inputs(100.0)).nngp).all()
