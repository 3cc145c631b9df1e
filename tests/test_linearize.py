"""Taylor expansions against polynomials, which they reproduce, and against derivatives written out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.errors import InputError


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def polynomial(params, x, *, shift=0.0):
    """Of degree 3 in the parameters."""
    h = (x @ params["w"] + shift) ** 2
    return {"cubic": h @ params["v"], "linear": x @ params["w"], "count": params["n"] * jnp.ones(len(x), int)}


def parameters(seed):
    rng = np.random.RandomState(seed)
    return {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal((4, 2)), "n": np.array(seed)}


X = np.random.RandomState(5).standard_normal((6, 3))


@pytest.mark.parametrize("degree", [3, 4])
def test_a_polynomial_is_its_expansion(degree):
    start, end = parameters(0), parameters(1)
    found = infnet.taylor_expand(polynomial, start, degree)(end, X, shift=0.7)
    expected = polynomial(end, X, shift=0.7)
    np.testing.assert_allclose(found["cubic"], expected["cubic"], rtol=1e-10)
    np.testing.assert_allclose(found["linear"], expected["linear"], rtol=1e-12)
    assert found["count"].dtype == expected["count"].dtype
    assert not found["count"].any()  # a constant of the expansion


@pytest.mark.parametrize("degree", [0, 3])
def test_terms_of_a_function_of_one_number(degree):
    found = infnet.taylor_expand(lambda p, x: jnp.exp(2 * p * x), 0.5, degree)(0.9, 1.5)
    expected = np.exp(1.5) * sum((2 * 1.5 * 0.4) ** k / [1, 1, 2, 6][k] for k in range(degree + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_linearize_is_the_first_order():
    start, end = parameters(0), parameters(1)

    def f(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    h = jnp.tanh(X @ start["w"])
    moved = X @ (end["w"] - start["w"])
    expected = h @ start["v"] + ((1 - h**2) * moved) @ start["v"] + h @ (end["v"] - start["v"])
    np.testing.assert_allclose(infnet.linearize(f, start)(end, X), expected, rtol=1e-12)
    # its tangent kernel is the same everywhere, and that of the network at the start
    of_line = infnet.empirical_ntk_fn(infnet.linearize(f, start))
    kernel = infnet.empirical_ntk_fn(f)(X, None, start)
    np.testing.assert_allclose(of_line(X, None, end), kernel, rtol=1e-10)


def test_under_jit_and_grad():
    start, end = parameters(0), parameters(1)
    expansion = infnet.taylor_expand(polynomial, start, 2)

    def loss(w):
        return expansion({**end, "w": w}, X)["cubic"].sum()

    step = 1e-5 * np.random.RandomState(0).standard_normal((3, 4))
    slope = (loss(end["w"] + step) - loss(end["w"] - step)) / 2
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(end["w"]), step), slope, rtol=1e-7)


def test_dtypes_are_those_of_the_function():
    start = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), {"w": np.ones((3, 2))})
    found = infnet.taylor_expand(lambda p, x: jnp.sin(x @ p["w"]), start, 2)(start, jnp.ones((2, 3), jnp.float32))
    assert found.dtype == jnp.float32


def test_complex_parameters():
    def f(p, x):
        return (x @ p) ** 2

    rng = np.random.RandomState(0)
    start, end = (rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2)) for _ in range(2))
    np.testing.assert_allclose(infnet.taylor_expand(f, start, 2)(end, X), f(end, X), rtol=1e-10)
    with pytest.raises(InputError, match="complex, but real"):
        infnet.linearize(f, start.real)(end, X)


def test_refusals():
    start = parameters(0)
    with pytest.raises(InputError, match="structure"):
        infnet.linearize(polynomial, start)({"w": start["w"]}, X)
    with pytest.raises(InputError, match=r"'w' has shape \(1, 4\), but \(3, 4\)"):
        infnet.linearize(polynomial, start)({**start, "w": np.ones((1, 4))}, X)
    for degree in (-1, 1.0, True, "2"):
        with pytest.raises(InputError, match="must be 0, 1, 2"):
            infnet.taylor_expand(polynomial, start, degree)
