"""Products and maxima of features: gated linear units, gating, bilinear layers, maxout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, dense, examples
from flax import linen as nn

import infnet_flax
from infnet.errors import NonGaussianError, UnsupportedError


def two(width, x):
    return dense(width)(x), dense(width)(x)


def glu(module, width, x):
    u, w = two(32 * width, nn.relu(dense(32 * width)(x)))
    return nn.sigmoid(u) * w


def swiglu_then_relu(module, width, x):
    u, w = two(32 * width, dense(32 * width)(x))
    return nn.relu(dense(32 * width)(nn.silu(u) * w))


def correlated(module, width, x):
    """All factors and the summand depend on u: Isserlis, with means."""
    u, w = two(32 * width, x)
    return (u + w + 0.5) * (u - 2 * w) + u


def bilinear(module, width, x):
    u, w = two(32 * width, nn.relu(dense(32 * width)(x)))
    return u * w + dense(32 * width)(x)


def maxout(module, width, x):
    u, w = two(32 * width, dense(32 * width)(x))
    return jnp.maximum(u, u + 2 * w) - jnp.minimum(u, w)


def squeeze_and_excite(module, width, x):
    x = nn.relu(dense(32 * width)(x))
    gate = nn.sigmoid(dense(32 * width)(nn.relu(dense(32 * width)(x.mean(1)))))
    return (x * gate[:, None]).mean(1)


@pytest.mark.parametrize("body", [glu, swiglu_then_relu, correlated, bilinear, maxout], ids=lambda f: f.__name__)
def test_vectors(body):
    assert_limit_of_finite_networks(lambda w: Model(body, w), *examples(4), largest_error=0.1)


def test_positions():
    assert_limit_of_finite_networks(lambda w: Model(squeeze_and_excite, w), *examples(3, 4), largest_error=0.1)


@pytest.mark.parametrize("on_the_left", [True, False])
def test_a_product_of_gaussians_is_isserlis(on_the_left):
    """Of (u, w) = (h1 + h2 + 1, h1) at every pair, by moments of independent normals."""
    with jax.enable_x64(True):
        x = np.random.RandomState(0).standard_normal((4, 3))

        def body(module, width, x):
            a, b = two(width, x)
            return (a + b + 1) * a if on_the_left else a * (a + b + 1)

        nngp = infnet_flax.kernel_fn(Model(body, 8), x)(x, get="nngp") - 0.3**2
        s = x @ x.T / 3 + 0.3**2
        d = np.diag(s)
        # E (a + b + 1) a (a' + b' + 1) a' = E a^2 a'^2 + E a a' E b b' + E a a'
        np.testing.assert_allclose(nngp, np.outer(d, d) + 2 * s**2 + s * s + s, rtol=1e-10)


def test_the_order_of_factors_does_not_matter():
    x1, x2 = examples(4)
    one = infnet_flax.kernel_fn(Model(lambda m, w, x: (lambda u, v: nn.silu(u) * v)(*two(w, x)), 8), x1)
    other = infnet_flax.kernel_fn(Model(lambda m, w, x: (lambda u, v: v * nn.silu(u))(*two(w, x)), 8), x1)
    np.testing.assert_allclose(one(x1, x2, "ntk"), other(x1, x2, "ntk"), rtol=1e-6)


def gate_of_itself(module, width, x):
    u, w = two(width, x)
    return nn.sigmoid(u + w) * u


def gru(module, width, x):
    return nn.GRUCell(width)(jnp.zeros((x.shape[0], width)), x)[0]


def relu_of_gate(module, width, x):
    u, w = two(width, x)
    return nn.relu(nn.sigmoid(u) * w)


@pytest.mark.parametrize("body", [gate_of_itself, gru, relu_of_gate], ids=lambda f: f.__name__)
def test_products_without_a_closed_form_are_refused(body):
    with pytest.raises(NonGaussianError) as caught:
        infnet_flax.kernel_fn(Model(body, 8), examples(4)[0])
    assert "test_products.py" in caught.value.where.line


def quotient(module, width, x):
    u, w = two(width, x)
    return u / (1 + w)


def narrow_gate(module, width, x):
    return dense(width)(x) * nn.sigmoid(dense(1)(x))


@pytest.mark.parametrize(
    ("body", "message"), [(quotient, "sums, products and maxima"), (narrow_gate, "one channel is spread")]
)
def test_other_functions_of_two_features_are_refused(body, message):
    with pytest.raises(UnsupportedError, match=message):
        infnet_flax.kernel_fn(Model(body, 8), examples(4)[0])
