"""`monte_carlo_kernel_fn` against samples averaged in numpy, and against the kernels of the infinite width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import examples
from quick import quick_keys

import infnet
from infnet.errors import InputError

WIDTH = 32
X1, X2 = examples(4, n=3)
KEYS = quick_keys(jax.random.key(0), 2)


def init(key, x):
    keys = jax.random.split(key, 2)
    shapes = {"w": (x.shape[-1], WIDTH), "v": (WIDTH, 16)}
    return {n: jax.random.normal(k, s) * s[0] ** -0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def apply(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def test_is_the_mean_of_samples():
    """The k-th network has the k-th key; the error is that of the mean of independent numbers."""
    key = KEYS[0]
    estimates = infnet.monte_carlo_kernel_fn(init, apply, key, [1, 2, 7])(X1, X2)
    finite = infnet.empirical_kernel_fn(apply, trace_axes=-1)
    samples = [finite(X1, X2, None, init(jax.random.fold_in(key, k), X1)) for k in range(7)]
    for n, estimate in zip([1, 2, 7], estimates, strict=True):
        for name in ("nngp", "ntk"):
            values = np.array([getattr(s, name) for s in samples[:n]], np.float64)
            found = getattr(estimate, name)
            assert found.n_samples == n
            np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-4, atol=1e-6)
            error = np.std(values, 0, ddof=1) / n**0.5 if n > 1 else np.inf
            np.testing.assert_allclose(found.standard_error, np.broadcast_to(error, (3, 3)), rtol=1e-3)


def test_of_the_infinite_width():
    """The mean NNGP of this network is that of its limit at every width, and so is its NTK."""
    found = infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 1000)(X1, X2)
    kernel = infnet.kernel_fn(apply, infnet.infer_priors(init, X1), X1)(X1, X2)
    for name in ("nngp", "ntk"):
        estimate, limit = getattr(found, name), getattr(kernel, name)
        assert estimate.mean.shape == limit.shape
        assert np.max(estimate.standard_error / np.abs(limit)) < 0.1
        assert np.max(np.abs(estimate.mean - limit) / estimate.standard_error) < 4


def test_a_fixed_key_gives_a_fixed_result():
    def nngp(key):
        return infnet.monte_carlo_kernel_fn(lambda key, x: jax.random.normal(key, (4, 1)), lambda w, x: x @ w, key, 3)(
            X1, get="nngp"
        ).mean

    first, again, other = (nngp(KEYS[k]) for k in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_options_several_inputs_and_outputs():
    def init(key, a, b):
        return {"w": jax.random.normal(key, (a.shape[1], 5)), "fixed": jnp.ones(5)}

    def apply(params, a, b):
        return {"one": (a + b) @ params["w"] + params["fixed"], "two": a @ params["w"]}

    kernel_fn = infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 4, trainable=lambda path: path == "w")
    found = kernel_fn((X1, X2), get="ntk_by_param")
    np.testing.assert_allclose(found["one"]["w"].mean, (X1 + X2) @ (X1 + X2).T, rtol=1e-5)
    np.testing.assert_allclose(found["two"]["w"].mean, X1 @ X1.T, rtol=1e-5)
    assert not np.any(found["one"]["fixed"].mean)
    assert np.all(found["one"]["w"].standard_error == 0)  # it does not depend on the parameters


def test_refusals():
    for n_samples in (0, 1.5, [], [2, 1], [1, 1], True, "many"):
        with pytest.raises(InputError, match="n_samples must be"):
            infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], n_samples)
    with pytest.raises(InputError, match="get must be"):
        infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 1)(X1, get="kernel")
