"""Abstract interpretation: which functions are followed exactly, where their breakpoints are, what is given up."""

import math
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet.activations.chains import derivative
from infnet.activations.interpret import interpret
from infnet.numpy_rules import evaluate

POINTS = np.concatenate([np.arange(-7, 8), np.linspace(-7.1, 7.3, 48)])  # breakpoints included


def chain(function, dtype="float32"):
    with jax.enable_x64(dtype == "float64"):
        return jax.make_jaxpr(function)(jax.ShapeDtypeStruct((1, 3), dtype))


def derivative_of(traced):
    with jax.enable_x64(True):
        return derivative(traced)


def test_breakpoints_and_values():
    found = interpret(chain(lambda x: jnp.maximum(jnp.abs(x - 1), jnp.minimum(2.0, x))))
    np.testing.assert_allclose(found.points, [0.5, 2.0, 3.0])
    np.testing.assert_allclose([f.derivative().constant for f in found.forms], [-1, 1, 0, 1])
    np.testing.assert_allclose(found.values, [0.5, 2, 2])
    assert found.is_linear
    assert hash(found) == hash(interpret(chain(lambda x: jnp.maximum(jnp.abs(x - 1), jnp.minimum(2.0, x)))))
    slope = interpret(derivative(chain(jax.nn.hard_tanh)))
    np.testing.assert_allclose(slope.points, [-1, 1])
    assert interpret(chain(jnp.tanh)) is None
    assert interpret(chain(lambda x: jnp.where(x > 0, x, jnp.nan))) is None
    assert len(interpret(chain(lambda x: jnp.where(jnp.isnan(x), jnp.nan, x))).points) == 0


# Functions and the breakpoints they must be found to have; None: not followed.
FOLLOWED = {
    "roots of a parabola": (lambda x: jnp.maximum(x * x - 4, 0), (-2, 2)),
    "no roots": (lambda x: jnp.maximum(x * x + 1, 0), ()),
    "a double root": (lambda x: jnp.abs((x - 1) ** 2), ()),
    "a root of odd order": (lambda x: jnp.abs(x**3), (0,)),
    "a root of a product": (lambda x: jnp.abs(x * x * (x - 3) * (x + 2)), (-2, 3)),
    "of an exponential": (lambda x: jnp.maximum(jnp.exp(2 * x) - 3, 0), (math.log(3) / 2,)),
    "of two exponentials": (lambda x: jnp.maximum(jnp.exp(2 * x), jnp.exp(x)), (0,)),
    "of a Gaussian": (lambda x: jnp.maximum(jnp.exp(-(x**2)), math.exp(-1)), (-1, 1)),
    "sinh": (lambda x: jnp.abs(jnp.sinh(x)), (0,)),
    "x exp(-x^2)": (lambda x: jnp.abs(x * jnp.exp(-(x**2))), (0,)),
    "of one sign": (lambda x: jnp.abs(jnp.exp(x) + x * x), ()),
    "outweighed": (lambda x: jnp.abs(2 + jnp.sin(x) + 0.5 * jnp.cos(2 * x)), ()),
    "sin of either sign": (lambda x: jnp.abs(jnp.sin(x)), None),
    "touching": (lambda x: jnp.abs(1 + jnp.sin(x)), None),
    "root to be guessed": (lambda x: jnp.maximum(jnp.exp(x) - x - 2, 0), None),
    "cubic": (lambda x: jnp.abs(x**3 - x + 1), None),
    "quotient": (lambda x: jnp.where(x == 0, -0.5, (x**3 - x * jnp.exp(x)) / (2 * x)), ()),
    "0 / 0": (lambda x: x * x / x, None),
    "removable": (lambda x: jnp.where(x == 0, 1, jnp.sin(x) / x), None),
    "product of erfs": (lambda x: jax.lax.erf(x) * jax.lax.erf(2 * x), None),
    "unknown, not used": (lambda x: jnp.where(x * x + 1 > 0, x, jnp.tanh(x)), ()),
    "unknown beyond 2": (lambda x: jnp.clip(x, -2, 2) + jnp.where(x > 9, jnp.log(x), 0), None),
    "overflow": (lambda x: jnp.exp(1000 + x), None),
    "roots of squares": (lambda x: jnp.sqrt((x - 2) ** 2) + jnp.sqrt(jax.nn.relu(x) ** 2), (0, 2)),
    "constant to a power": (lambda x: jnp.maximum(3.0**x, 9), (2,)),
    "unknown power": (lambda x: jnp.power(x, jnp.tanh(x)), None),
    "high power": (lambda x: x**100, None),
    "many terms": (lambda x: (x + jnp.sin(x) + jnp.exp(x) + jnp.exp(-(x**2))) ** 12, None),
    "infinite constants": (lambda x: jnp.where((x > -jnp.inf) & (x < jnp.inf), jnp.minimum(x, jnp.inf), 0), ()),
    "sin^2 + cos^2": (lambda x: jnp.sin(x + 0.3) ** 2 + jnp.cos(x + 0.3) ** 2, ()),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed(name):
    function, points = FOLLOWED[name]
    traced = chain(function, "float64")
    found = interpret(traced)
    if points is None:
        assert found is None
        return
    np.testing.assert_allclose(found.points, points, rtol=1e-14)
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(evaluate(traced, POINTS)[0], POINTS.shape)
    np.testing.assert_allclose(found(POINTS), expected, rtol=1e-12, atol=1e-12)


def random_function(rng, depth):
    """A composition of operations that functions in the family are closed under, most of the time."""
    c = rng.choice([0.0, 1.0, -1.0, 0.5, 2.0, -0.3, 3.0, 0.1])
    if depth == 0:
        return rng.choice([lambda x: x, lambda x: c * x, lambda x: x + c])
    f = random_function(rng, depth - 1)
    g = random_function(rng, depth - 1 if rng.random() < 0.5 else 0)
    functions = [
        lambda x: f(x) + g(x),
        lambda x: f(x) * g(x),
        lambda x: jnp.maximum(f(x), g(x)),
        lambda x: jnp.where(g(x) > c, f(x), x),
        lambda x: f(x) * (g(x) >= c),
        lambda x: jnp.abs(f(x) - c),
        lambda x: jnp.sign(f(x)),
        lambda x: jnp.exp(-jnp.abs(f(x))),
        lambda x: jnp.expm1(c * f(x)),
        lambda x: jnp.sin(f(x)),
        lambda x: jax.lax.erf(f(x)),
        lambda x: f(x) ** 2,
        lambda x: jax.nn.relu6(f(x)),
        lambda x: jax.nn.elu(f(x) - c),
        lambda x: f(x) / (c + 0.7),
    ]
    return rng.choice(functions)


@pytest.mark.parametrize("seed", range(4))
def test_random_functions_are_followed_to_themselves(seed):
    rng = random.Random(seed)
    known = 0
    for _ in range(50):
        traced = chain(random_function(rng, rng.randint(1, 4)), "float64")
        for function in (traced, derivative_of(traced)):
            found = interpret(function)
            if found is None:
                continue
            known += 1
            with np.errstate(all="ignore"):
                expected = np.broadcast_to(evaluate(function, POINTS)[0], POINTS.shape)
            small = np.abs(expected) < 1e9
            np.testing.assert_allclose(found(POINTS)[small], expected[small], rtol=1e-9, atol=1e-9)
    assert known > 50


def test_following_a_relu_takes_about_a_millisecond():
    traced = chain(jax.nn.relu)
    start = time.perf_counter()
    for _ in range(20):
        interpret(traced)
    assert (time.perf_counter() - start) / 20 < 5e-3
