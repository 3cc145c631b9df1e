"""`infnet.custom_kernel`: an activation and a layer that infnet does not know, against sampling of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.errors import InputError, NonGaussianError, UnsupportedError

FREQUENCIES = np.arange(1.0, 60.0, 2.0)
AMPLITUDES = 4 / np.pi * (-1) ** (FREQUENCIES // 2) / FREQUENCIES**2


@infnet.custom_kernel
def triangle(x):
    """The triangle wave arcsin(sin(x)), a Fourier series of sines."""
    return jnp.pi * (jnp.abs((x / jnp.pi + 1.5) % 2 - 1) - 0.5)


@triangle.def_kernel
def triangle_kernel(kernel):
    q12, q11, q22 = (jnp.asarray(q)[..., None, None] for q in (kernel.nngp, kernel.cov1, kernel.cov2))
    j, k = FREQUENCIES[:, None], FREQUENCIES
    near, far = (jnp.exp(sign * j * k * q12 - (j**2 * q11 + k**2 * q22) / 2) / 2 for sign in (1, -1))
    weights = AMPLITUDES[:, None] * AMPLITUDES
    nngp = (weights * (near - far)).sum((-2, -1))
    slopes = (weights * j * k * (near + far)).sum((-2, -1))
    return dataclasses.replace(kernel, nngp=nngp, ntk=slopes * kernel.ntk)


@infnet.custom_kernel
def halved_dense(x, w):
    """A Dense layer that only the sign of its weights reaches, and half the gradient of x."""
    return (x + jax.lax.stop_gradient(x)) / 2 @ jnp.sign(w)


@halved_dense.def_kernel
def halved_dense_kernel(kernel, w):
    return dataclasses.replace(kernel, nngp=kernel.width * kernel.nngp, ntk=kernel.width * kernel.ntk / 4)


@infnet.custom_kernel
def scaled_dense(x, w):
    return 3 * x @ w


@scaled_dense.def_kernel
def scaled_dense_kernel(kernel, w):
    nngp = 9 * kernel.width * w.variance * kernel.nngp
    return dataclasses.replace(
        kernel, nngp=nngp, ntk=9 * kernel.width * (w.variance * kernel.ntk + w.gradient * kernel.nngp)
    )


WIDTH = 128
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def prior(std, *shape):
    return infnet.Prior(0.0, std, shape=shape, dtype=jnp.float32)


def model(params, x):
    hidden = triangle(x @ params[0])
    hidden = jax.nn.relu(halved_dense(hidden, params[1]) / WIDTH**0.5)
    return hidden @ params[2]


PRIORS = [prior(0.7, 4, WIDTH), prior(1.0, WIDTH, WIDTH), prior(WIDTH**-0.5, WIDTH, 1)]


@pytest.fixture(scope="module")
def kernel_fn():
    return infnet.kernel_fn(model, PRIORS, X)


def test_against_finite_networks(kernel_fn):
    def sample(key):
        keys = jax.random.split(key, 3)
        params = [p.std * jax.random.normal(k, p.shape) for k, p in zip(keys, PRIORS, strict=True)]
        outputs = model(params, X)[:, 0]
        jacobian = jax.jacobian(lambda p: model(p, X)[:, 0])(params)
        flat = jnp.concatenate([j.reshape(3, -1) for j in jacobian], 1)
        return jnp.outer(outputs, outputs), flat @ flat.T

    draws = jax.jit(lambda keys: jax.lax.map(sample, keys))(jax.random.split(jax.random.key(0), 800))
    for found, name in zip(draws, ("nngp", "ntk"), strict=True):
        error = found.std(0) / len(found) ** 0.5
        assert (jnp.abs(found.mean(0) - kernel_fn(X, get=name)) < 4 * error + 0.02 * jnp.abs(found).mean()).all()


def test_a_layer_by_rule_is_the_layer_as_written():
    def by_rule(params, x):
        return jax.nn.relu(scaled_dense(jax.nn.relu(scaled_dense(x, params[0])), params[1])) @ params[2]

    def as_written(params, x):
        return jax.nn.relu(3 * jax.nn.relu(3 * x @ params[0]) @ params[1]) @ params[2]

    for parameterization in ("as_model", "ntk"):
        options = {"parameterization": parameterization, "lr_scale": {"1": 0.5}}
        one, two = (infnet.kernel_fn(f, PRIORS, X, **options)(X) for f in (by_rule, as_written))
        np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-6)
        np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-6)


def test_positions_are_kept():
    def sequence(params, x):
        return triangle(x @ params[0]).mean(1) @ params[2]

    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32")
    pooled = infnet.kernel_fn(sequence, PRIORS, x)(x, get="nngp")
    pairs = infnet.kernel_fn(lambda p, x: triangle(x @ p[0]) @ p[2], PRIORS, X)
    flat = pairs(x.reshape(10, 4), get="nngp").reshape(2, 5, 2, 5).mean((1, 3))
    np.testing.assert_allclose(pooled, flat, rtol=1e-5)


def test_transforms_see_the_function():
    x = jnp.linspace(-5, 5, 7)
    np.testing.assert_allclose(jax.jit(triangle)(x), np.arcsin(np.sin(x)), atol=2e-6)
    np.testing.assert_array_equal(jax.vmap(triangle)(x), triangle(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(triangle))(x), np.sign(np.cos(x)))


def test_derivatives_go_through_the_rule(kernel_fn):
    def total(scale):
        return kernel_fn(scale * X, get="nngp").sum()

    step = 1e-2
    difference = (total(1.0 + step) - total(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(1.0), difference, rtol=1e-2)


def test_explained_with_the_line_of_the_model(kernel_fn):
    row = next(r for r in kernel_fn.explain().rows if r.rule == "triangle")
    assert row.exact == "as its author says"
    assert "test_custom_kernel.py" in row.line


def backwards(w, x):
    return x @ w


def test_refusals():
    @infnet.custom_kernel
    def unfinished(x):
        return x

    with pytest.raises(UnsupportedError, match="no kernel rule yet"):
        infnet.kernel_fn(lambda p, x: unfinished(x @ p[0]) @ p[2], PRIORS, X)
    with pytest.raises(NonGaussianError, match="triangle"):
        infnet.kernel_fn(lambda p, x: triangle(jax.nn.relu(x @ p[0])) @ p[2], PRIORS, X)
    operation = infnet.custom_kernel(backwards)
    operation.def_kernel(lambda kernel, w: kernel)
    with pytest.raises(UnsupportedError, match="feature first"):
        infnet.kernel_fn(lambda p, x: operation(p[1], x @ p[0]), PRIORS, X)

    unfinished.def_kernel(lambda kernel: kernel.nngp)
    with pytest.raises(InputError, match="must return a Kernel"):
        infnet.kernel_fn(lambda p, x: unfinished(x @ p[0]) @ p[2], PRIORS, X)(X)
