"""Which activations have a Hermite series, how long it is, and which function it is of."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_series import WHERE, activation, chain, gelu, of_order, shifted

from infnet.activations.chains import derivative
from infnet.activations.pointwise import callable_of, structure
from infnet.activations.series import ORDERS, series_activation
from infnet.errors import UnsupportedError
from infnet.primitives.series import SmoothFunction, expectation, series


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def test_orders():
    a = activation(jnp.tanh)
    assert a.exact == "series of 32 terms"
    assert (a.odd, activation(shifted).odd, activation(jax.nn.sigmoid).odd) == (True, False, False)
    orders = [a.with_order(tol, q).order for tol, q in ((1e-2, 1.0), (1e-4, 1.0), (1e-6, 1.0), (1e-5, 4.0))]
    assert orders == [16, 32, 64, 128]
    with pytest.raises(UnsupportedError, match=r"128 terms(.|\n)*16(.|\n)*tol"):
        a.with_order(1e-6, 16.0)
    assert a.with_order(1e-2, 16.0).order == 128
    phi, slope = a.bounds([0.0, 0.25, 1.0])
    assert (np.diff(phi) >= 0).all()
    assert (np.diff(slope) > 0).all()
    for smooth in (
        jax.nn.mish,
        jax.nn.log_sigmoid,
        jax.nn.squareplus,
        jnp.arctan,
        lambda x: x - jnp.tanh(x),
        lambda x: jnp.logaddexp(x, -x),
        lambda x: x / jnp.sqrt(1 + x * x),
        jnp.sin,
        lambda x: 0 * x + 2,
    ):
        assert activation(smooth).with_order(1e-5, 1.0).order in ORDERS
    assert activation(lambda x: jnp.tanh(3 * x + 1)).bounds(1.0, 64)[1] > 1e-3


KINKED = {
    "relu": jax.nn.relu,
    "hard_tanh": lambda x: jnp.clip(x, -1, 1),
    "tan": jnp.tan,
    "pole": lambda x: 1 / x,
    "nan": jnp.log,
    "floor": jnp.floor,
    "round": lambda x: x - jnp.round(x),
    "not integrable": lambda x: jnp.exp(x * x),
    "too steep": lambda x: jnp.exp(5 * x),
}


@pytest.mark.parametrize("name", KINKED)
def test_functions_without_a_series_are_refused(name):
    with pytest.raises(UnsupportedError, match=r"(?s)model.py:12.*relative error.*below.*tol=.*sampling"):
        activation(KINKED[name])


def test_a_straight_through_slope_is_not_the_derivative_of_the_values():
    straight = jax.custom_jvp(jnp.tanh)
    straight.defjvp(lambda x, t: (jnp.tanh(*x), t[0]))
    stopped = lambda x: x + jax.lax.stop_gradient(jnp.tanh(x) - x)  # noqa: E731
    q12, q11, q22 = 0.01, 0.05, 0.03

    @functools.partial(jax.jit, static_argnums=0)
    def everything(a, q12):
        kernels, slopes = jax.jvp(lambda q12: a.kernel(q12, q11, q22, True), (q12,), (1.0,))
        return *kernels, *slopes, *a.mean_slopes(jnp.asarray(q11))

    k, kdot, by_q12, _, mean_slope, _ = everything(of_order(jnp.tanh, 4), q12)
    assert float(by_q12) == pytest.approx(float(kdot), rel=1e-13)
    for function in (straight, stopped):
        found = everything(of_order(function, 4), q12)
        np.testing.assert_allclose(found, [k, 1, kdot, 0, mean_slope, 1], rtol=1e-10, atol=1e-12)


def test_own_derivatives_of_the_values_are_used():
    """`logaddexp` has a kink at 0 in the form in which it is written, but not in its own derivative."""
    for function in (jax.nn.softplus, jax.custom_vjp(jax.nn.softplus)):
        if isinstance(function, jax.custom_vjp):
            function.defvjp(lambda x: (jax.nn.softplus(x), x), lambda x, t: (t * jax.nn.sigmoid(x),))
        f = activation(function).values
        at_zero = [g(jnp.zeros(())) for g in (f, f.derivative, f.derivative.derivative)]
        np.testing.assert_allclose(at_zero, [math.log(2), 0.5, 0.25])


def test_the_function_runs_in_the_dtype_of_the_kernel_on_any_shape():
    nested = jax.jit(lambda x: jax.checkpoint(jnp.tanh)(x.reshape(3)[:, None].T * 0.5) + 1)
    f = callable_of(chain(nested), custom_rules=True)
    for dtype in ("float32", "float64"):
        x = jnp.linspace(-2, 2, 12, dtype=dtype).reshape(2, 6)
        assert f(x).dtype == x.dtype
        np.testing.assert_allclose(f(x), np.tanh(x * 0.5) + 1, rtol=1e-6 if dtype == "float32" else 1e-15)


def test_the_same_function_traced_twice_is_one():
    assert structure(chain(gelu)) == structure(chain(lambda x: gelu(x), shape=(5,)))
    assert structure(chain(gelu)) != structure(chain(lambda x: gelu(1.0001 * x)))
    one, two = (series_activation(chain(jax.nn.silu), derivative(chain(jax.nn.silu)), WHERE) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != activation(jnp.tanh)


def test_functions_of_parity_zero_agree_with_those_of_known_parity():
    """Parity only leaves out terms that vanish."""
    args = jnp.array([0.3, 1.0, 0.7])
    for parity, f in ((-1, jnp.tanh), (1, jax.nn.silu)):
        functions = [SmoothFunction((f, p), f, p) for p in (0, parity)]
        found = [series(*args, left=(g, g.derivative), right=(g, g.derivative), order=4, nodes=64) for g in functions]
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-13)
    (mean,) = expectation(args[0], functions=(SmoothFunction("cos", jnp.cos),), nodes=256)
    assert float(mean) == pytest.approx(math.exp(-0.15), rel=1e-14)
