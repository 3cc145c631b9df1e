"""The weights of linearised networks while they are trained, against steps of gradient descent and an ODE solver."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import infnet
from infnet.errors import InputError


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def network(params, x):
    h = jnp.tanh(x["a"] @ params["w"])
    return {"many": h @ params["v"], "one": h.sum(1)}


RNG = np.random.RandomState(0)
PARAMS = {"w": RNG.standard_normal((3, 7)), "v": RNG.standard_normal((7, 2)), "n": np.array(2)}
X = {"a": RNG.standard_normal((4, 3))}
Y = {"many": RNG.standard_normal((4, 2)), "one": RNG.standard_normal(4)}
RATE = 0.7


def gradient():
    """Of the loss of the linearised network in its weights, as a vector; and the vector at the beginning."""
    start = {"w": jnp.asarray(PARAMS["w"]), "v": jnp.asarray(PARAMS["v"])}
    flat, restore = ravel_pytree(start)
    f_lin = infnet.linearize(network, PARAMS)

    def loss(vector):
        outputs = f_lin({**restore(vector), "n": PARAMS["n"]}, X)
        errors = jnp.concatenate([(outputs[k] - Y[k]).ravel() for k in Y])
        return 0.5 * jnp.mean(errors**2)

    return jax.jit(jax.grad(loss)), np.asarray(flat), restore


def test_gradient_flow():
    grad, flat, restore = gradient()
    params_at = infnet.linearized_gradient_descent_mse(network, PARAMS, X, Y, RATE)
    times = np.array([0.0, 0.5, 30.0])
    options = {"t_eval": times, "rtol": 1e-10, "atol": 1e-12}
    expected = solve_ivp(lambda _, p: -RATE * np.asarray(grad(p)), (0, 30), flat, **options).y.T
    found = params_at(times)
    assert np.all(found["n"] == PARAMS["n"])
    for k in range(len(times)):
        for name in ("w", "v"):
            np.testing.assert_allclose(found[name][k], restore(expected[k])[name], atol=1e-8)
            np.testing.assert_allclose(jax.jit(params_at)(times[k])[name], found[name][k], rtol=1e-12)


def test_small_steps():
    """Time counts steps of gradient descent, if they are small."""
    grad, flat, restore = gradient()
    params_at = infnet.linearized_gradient_descent_mse(network, PARAMS, X, Y, 1e-4)
    end = jax.lax.fori_loop(0, 5000, lambda _, p: p - 1e-4 * grad(p), flat)
    np.testing.assert_allclose(params_at(5000)["w"], restore(end)["w"], atol=1e-4)
    assert np.abs(params_at(5000)["w"] - PARAMS["w"]).max() > 0.05


def test_the_end_of_training():
    """All targets are met, at the smallest distance: the change of weights is a combination of gradients."""
    params_at = infnet.linearized_gradient_descent_mse(network, PARAMS, X, Y)
    end = params_at()
    outputs = infnet.linearize(network, PARAMS)(end, X)
    for name, target in Y.items():
        np.testing.assert_allclose(outputs[name], target, atol=1e-8)
    np.testing.assert_allclose(end["w"], params_at(1e9)["w"], atol=1e-6)
    jacobian = jax.jacobian(lambda w: jnp.concatenate([y.ravel() for y in network({**PARAMS, **w}, X).values()]))
    rows = np.concatenate(
        [np.asarray(j).reshape(12, -1) for j in jacobian({k: PARAMS[k] for k in ("v", "w")}).values()], 1
    )
    change = np.concatenate([(end[k] - PARAMS[k]).ravel() for k in ("v", "w")])
    left = change - rows.T @ np.linalg.lstsq(rows.T, change, rcond=None)[0]
    assert np.abs(left).max() < 1e-10


def test_examples_twice():
    """The NTK is singular: training reaches the mean of what the copies should be."""
    x, y = np.ones((2, 3)), np.array([[1.0], [3.0]])
    params_at = infnet.linearized_gradient_descent_mse(lambda w, x: jnp.sin(x @ w), np.ones((3, 1)) / 9, x, y)
    for end in (params_at(), params_at(1e6)):
        found = infnet.linearize(lambda w, x: jnp.sin(x @ w), np.ones((3, 1)) / 9)(end, x)
        np.testing.assert_allclose(found, 2, rtol=1e-8)


def test_learning_rates_of_parameters():
    options = {"lr_scale": {"v": 3.0}, "trainable": {"w": False}}
    found = infnet.linearized_gradient_descent_mse(network, PARAMS, X, Y, RATE, **options)(2.0)
    np.testing.assert_array_equal(found["w"], PARAMS["w"])
    h = np.tanh(X["a"] @ PARAMS["w"])  # a linear model of v, in features h

    def flow(_, v):
        return -3 * RATE / 12 * (h.T @ (h @ v.reshape(7, 2) - Y["many"])).ravel()

    expected = solve_ivp(flow, (0, 2), PARAMS["v"].ravel(), rtol=1e-10, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(found["v"].ravel(), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": {"many": Y["many"]}}, "y_train must have the structure"),
        ({"y_train": {**Y, "one": Y["one"][:3]}}, "y_train must have the shapes"),
        ({"y_train": {**Y, "one": Y["one"] * 1j}}, "not complex"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"f": lambda p, x: p["w"].sum(), "y_train": np.array(1.0)}, "examples on axis 0"),
    ],
)
def test_refusals(changes, message):
    arguments = {"f": network, "params": PARAMS, "x_train": X, "y_train": Y, **changes}
    with pytest.raises(InputError, match=message):
        infnet.linearized_gradient_descent_mse(**arguments)
