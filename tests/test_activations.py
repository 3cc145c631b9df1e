"""What a recognised activation says of itself: means, parity, names, and kernels that are primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_ways import exact_gelu
from scipy import special

from infnet._jax import jaxpr_as_fun
from infnet.activations import recognise
from infnet.errors import UnsupportedError, Where

WHERE = Where("MLP/activation", "model.py:12 (f)")


def chain(function, dtype="float32", shape=(1, 3)):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))


def recognised(function, dtype="float32", shape=(1, 3)):
    return recognise(chain(function, dtype, shape), WHERE)


MEANS = {
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.25),
    "abs": jnp.abs,
    "linear": lambda x: 2 * x,
    "erf": jax.lax.erf,
    "gelu": exact_gelu,
    "scaled gelu": lambda x: 2 * exact_gelu(3 * x),
    "reflected gelu": lambda x: exact_gelu(-x),
    "sign": jnp.sign,
    "step": lambda x: jnp.where(x >= 0, 1.0, -2.0),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean(name):
    function = MEANS[name]
    found = recognised(function)
    z, w = special.roots_legendre(60)
    z = np.concatenate([6 * z - 6, 6 * z + 6])  # [-12, 12], no node at the kink
    w = np.tile(6 * w, 2) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    for q in (0.3, 2.0):
        values = jaxpr_as_fun(chain(function, shape=z.shape))(jnp.float32(np.sqrt(q) * z))[0]
        np.testing.assert_allclose(found.mean(jnp.float32(q)), w @ np.asarray(values, "float64"), atol=2e-6)
    assert found.mean(jnp.float32(0)) == function(jnp.zeros((1, 3)))[0, 0]
    assert jnp.isfinite(jax.grad(found.mean)(jnp.float32(0)))
    assert jnp.isnan(found.mean(jnp.float32(jnp.nan)))
    assert found.odd == (abs(found.mean(jnp.float32(1))) + abs(found.mean(jnp.float32(0))) == 0)


def test_kernels_are_primitives_and_traced_values_are_concrete():
    def kernel(q12, q11, q22):
        found = [recognised(f) for f in (jax.nn.relu, jax.lax.erf, exact_gelu)]
        assert all(isinstance(v, float) for v in (*found[0].values[1:], *found[0].slope, found[1].rate))
        return [f.kernel(q12, q11, q22, True) for f in found]

    jaxpr = jax.make_jaxpr(jax.jit(kernel))(0.5, 1.0, 1.0)
    assert all(name in str(jaxpr) for name in ("relu_kernel", "erf_kernel", "gelu_kernel"))
    assert jax.jit(kernel)(0.5, 1.0, 1.0)[0][1] == pytest.approx(1 / 3)


def test_traced_constants_are_refused():
    def kernel(slope):
        return recognised(lambda x: jnp.maximum(x, slope * x)).name

    with pytest.raises(UnsupportedError, match="not known while"):
        jax.jit(kernel)(0.25)
