from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import infnet
from infnet import Prior, predict
from infnet.errors import InputError, NumericalError

X = np.random.RandomState(0).standard_normal((6, 3))
Y = np.random.RandomState(1).standard_normal((6, 2))
NOISE = np.linspace(0.1, 0.6, 6)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def network(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]


@functools.cache
def kernel_fn(dtype=np.float64):
    def prior(std, *shape):
        return Prior(0.0, std, shape=shape, dtype=dtype)

    priors = {"w": prior(0.8, 3, 32), "b": prior(0.3, 32), "v": prior(0.2, 32, 2)}
    return infnet.kernel_fn(network, priors, X.astype(dtype))


@pytest.mark.parametrize("noise", [0.3, NOISE])
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_it_is_the_density_of_scipy(double, get, noise):
    kernel = kernel_fn()(X)
    law = multivariate_normal(cov=np.asarray(getattr(kernel, get)) + noise * np.eye(6))
    expected = sum(law.logpdf(column) for column in Y.T)
    for first, x in ((kernel_fn(), X), (kernel, None), (getattr(kernel, get), None)):
        found = predict.log_marginal_likelihood(first, x, Y, noise, get=get)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_joint_outputs_are_one_gaussian(double):
    f = np.random.RandomState(2).standard_normal((12, 20))
    matrix = f @ f.T
    expected = multivariate_normal(cov=matrix + np.kron(np.diag(NOISE), np.eye(2))).logpdf(Y.ravel())
    kernel = matrix.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3)
    found = predict.log_marginal_likelihood(kernel, None, Y, NOISE, trace_axes=())
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradients_in_hyperparameters_and_noise(double):
    def value(stds, noise):
        return predict.log_marginal_likelihood(kernel_fn().with_hyperparameters(stds), X, Y, noise)

    point = (kernel_fn().hyperparameters, jnp.asarray(NOISE))
    flat, unflatten = ravel_pytree(point)
    objective = jax.jit(lambda v: value(*unflatten(v)))
    slope = jax.jit(jax.grad(objective))
    gradient = slope(flat)
    assert gradient.shape == (9,)
    for found, direction in zip(gradient, np.eye(9) * 1e-5, strict=True):
        difference = (objective(flat + direction) - objective(flat - direction)) / 2e-5
        np.testing.assert_allclose(found, difference, rtol=1e-6)
    direction = np.linspace(-1, 1, 9)
    _, curved = jax.jvp(slope, (flat,), (direction,))
    difference = (slope(flat + 1e-5 * direction) - slope(flat - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(curved, difference, rtol=1e-6)


def test_float32_is_as_accurate_as_its_kernel():
    with jax.enable_x64(True):
        expected = predict.log_marginal_likelihood(kernel_fn(), X, Y, 1e-3)
    with jax.enable_x64(False):
        k, x = kernel_fn(np.float32), jnp.asarray(X, jnp.float32)
        found, slope = jax.value_and_grad(lambda noise: predict.log_marginal_likelihood(k, x, Y, noise))(1e-3)
        assert found.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_what_has_no_likelihood():
    singular, y = np.ones((3, 3)), np.ones(3)
    assert np.isfinite(predict.log_marginal_likelihood(singular, None, y, 0.1))
    indefinite = np.array([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(NumericalError, match="not positive definite"):
        predict.log_marginal_likelihood(indefinite, None, y[:2])
    assert np.isnan(jax.jit(lambda k: predict.log_marginal_likelihood(k, None, y[:2]))(indefinite))
    with pytest.raises(InputError, match='must be "nngp" or "ntk"'):
        predict.log_marginal_likelihood(singular, None, y, get="ntkgp")
    with pytest.raises(InputError, match="got a function"):
        predict.log_marginal_likelihood(lambda x1, x2, get: x1, None, y)
    activations = infnet.kernel_fn(
        lambda w, x: jax.nn.relu(x @ w), Prior(0.0, 1.0, shape=(3, 8), dtype=np.float32), np.float32(X)
    )
    with pytest.raises(InputError, match="not a Gaussian process"):
        predict.log_marginal_likelihood(activations, np.float32(X), Y[:, 0])
    found = predict.log_marginal_likelihood(activations, np.float32(X), Y[:, 0], 0.1, any_law=True)
    assert np.isfinite(found)
