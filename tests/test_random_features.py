"""Random features: their inner products are the kernel, up to an error that falls as 1/sqrt(n_features)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function, conv, dense
from flax import linen as nn
from jax.scipy.special import erf

import infnet
import infnet_flax
from infnet.errors import InputError, NumericalError, UnsupportedError
from infnet.predict import Regressor, gp_inference
from infnet.random_features.projections import (
    gaussian_numbers,
    gaussian_projection,
    hadamard_transform,
    mixed,
    mixing_numbers,
)

N = 40
X = (np.random.RandomState(0).standard_normal((N, 10)) * np.linspace(0.5, 1.5, N)[:, None]).astype(np.float32)
X[1] = X[0] + 0.01 * X[2]


def gelu(x):
    return nn.gelu(x, approximate=False)


def relu2(x):
    return dense(1)(nn.relu(dense(16)(nn.relu(dense(16)(x)))))


def residual(x):
    h = dense(16)(x)
    for _ in range(2):
        h = h + 0.5 * dense(16)(gelu(dense(16)(h)))
    return dense(1)(h)


def odd(x):
    return dense(1)(jnp.tanh(dense(16, kernel_init=nn.initializers.normal(0.1))(erf(dense(16)(x)))))


def branches(x):
    """Nonzero means meet: of two independent branches, of a bias, and of inputs that are added."""
    h = nn.relu(dense(10)(x)) + jnp.cos(dense(10, bias_init=nn.initializers.constant(0.4))(x)) + 0.3 * x
    return dense(1)(gelu(dense(16)(jnp.concatenate([h, nn.relu(dense(12)(x))], -1))))


def linear_and_not(x):
    h = dense(16)(x)
    return dense(1)(h + nn.relu(h) / 3)


def half_scaled(x):
    """A scaling that depends on the example."""
    return dense(1)(nn.relu(dense(16)(x) * jnp.mean(jnp.abs(x), -1, keepdims=True)))


def straight_through(x):
    """Values and derivatives that do not belong together: d is not d'."""
    h = dense(16)(x)
    return dense(1)(jax.nn.leaky_relu(dense(8)(jax.lax.stop_gradient(nn.relu(h)) + h - jax.lax.stop_gradient(h))))


def kernel_function(body, x=X, **options):
    return infnet_flax.kernel_fn(Function(body), x, **options)


RELU2 = kernel_function(relu2)


@pytest.fixture(scope="module")
def ntk_features():
    return infnet.random_features(RELU2, jax.random.key(0), 300)


def error(features, exact):
    approximate = np.asarray(features.kernel(X))
    return float(np.linalg.norm(approximate - exact) / np.linalg.norm(exact))


# The relative error, in Frobenius norm, of N features is at most this over sqrt(N).
MULTIPLE = {"nngp": 0.8, "ntk": 2.0}


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_the_error_falls_as_one_over_the_root_of_the_number(get):
    exact = RELU2(X, get=get)
    counts = np.array([256, 1024, 4096])
    errors = []
    for n_features in counts:
        features = infnet.random_features(RELU2, jax.random.key(0), int(n_features), get)
        assert 0.97 * n_features <= features.n_features <= n_features
        errors.append(np.mean([error(features.redraw(jax.random.key(seed)), exact) for seed in range(5)]))
    assert (errors * np.sqrt(counts) < MULTIPLE[get]).all()
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_one_hidden_layer_is_unbiased(get):
    kernel_fn = kernel_function(lambda x: dense(1)(nn.relu(dense(16)(x))))
    x, draws = X[2:7], 400
    features = infnet.random_features(kernel_fn, jax.random.key(0), 64, get, normalise=False)
    found = np.stack([features.redraw(jax.random.key(seed)).kernel(x) for seed in range(draws)])
    z = (found.mean(0) - kernel_fn(x, get=get)) / (found.std(0) / np.sqrt(draws))
    assert np.abs(z).max() < 4
    assert 0.2 < np.mean(z**2) < 3


CASES = {
    "residual": (residual, {}),
    "residual, ntk": (residual, {"parameterization": "ntk"}),
    "odd": (odd, {}),
    "branches": (branches, {}),
    "branches, ntk": (branches, {"parameterization": "ntk"}),
    "linear and not": (linear_and_not, {}),
    "scaled by the example": (half_scaled, {}),
    "straight through": (straight_through, {}),
    "frozen": (relu2, {"trainable": {"*Dense_1*": False, "*Dense_0/bias": False}}),
}


@pytest.mark.parametrize("name", CASES)
def test_networks(name):
    """NNGP and NTK, with the exact kernel of each example with itself, and within the stated error elsewhere."""
    body, options = CASES[name]
    kernel_fn = kernel_function(body, **options)
    exact = kernel_fn(X, get=("nngp", "ntk"))
    for get in ("nngp", "ntk"):
        features = infnet.random_features(kernel_fn, jax.random.key(1), 1024, get)
        kernel = getattr(exact, get)
        assert error(features, kernel) < 1.5 * MULTIPLE[get] / np.sqrt(1024), get
        np.testing.assert_allclose(features.diag(X), jnp.diagonal(kernel), rtol=2e-4)


def test_more_features_end_at_the_kernel_in_deep_networks():
    """The bias of depth falls faster than the error: the mean over draws is much closer than one draw."""
    exact = RELU2(X, get="ntk")
    features = infnet.random_features(RELU2, jax.random.key(0), 512)
    drawn = [features.redraw(jax.random.key(seed)).kernel(X) for seed in range(60)]
    one = np.mean([np.linalg.norm(k - exact) for k in drawn])
    assert np.linalg.norm(np.mean(drawn, 0) - exact) < 0.25 * one


def test_linear_networks_are_exact():
    kernel_fn = kernel_function(lambda x: dense(3)(dense(16)(2 * dense(8)(x))))
    for get in ("nngp", "ntk"):
        features = infnet.random_features(kernel_fn, jax.random.key(0), 256, get)
        np.testing.assert_allclose(features.kernel(X), kernel_fn(X, get=get), rtol=1e-4, atol=1e-4)


def test_depth_and_width_of_the_input_beyond_the_number_of_features():
    """Maps that are too wide are compressed: less exact, but never more columns than asked for."""

    def deep(x):
        h = dense(16)(x)
        for _ in range(4):
            h = h + dense(16, kernel_init=nn.initializers.normal(0.1))(erf(dense(16)(h)))
        return dense(1)(h)

    wide = np.repeat(X, 30, axis=1) / np.sqrt(30).astype(np.float32)
    for body, x in ((deep, X), (relu2, wide)):
        kernel_fn = kernel_function(body, x)
        features = infnet.random_features(kernel_fn, jax.random.key(0), 200)
        exact = kernel_fn(x, get="ntk")
        assert features(x).shape == (N, features.n_features)
        assert features.n_features <= 200
        np.testing.assert_allclose(features.diag(x), jnp.diagonal(exact), rtol=2e-3)
        assert float(jnp.linalg.norm(features.kernel(x) - exact) / jnp.linalg.norm(exact)) < 0.35


def test_transformations(ntk_features):
    features = ntk_features
    whole = features(X)
    np.testing.assert_allclose(
        np.concatenate([features(X[: N // 2]), features(X[N // 2 :])]), whole, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(jax.jit(features)(X), whole, rtol=1e-4, atol=1e-5)
    assert features(X[:0]).shape == (0, features.n_features)
    again = infnet.random_features(RELU2, jax.random.key(0), 300)
    assert (again(X) == whole).all()
    assert not jnp.allclose(again.redraw(jax.random.key(1))(X), whole)
    smooth = infnet.random_features(kernel_function(lambda x: dense(1)(gelu(dense(16)(x)))), jax.random.key(0), 300)

    def total(x):
        return jnp.sin(smooth(x)).sum()

    direction, step = X[5:7] / np.linalg.norm(X[5:7]), 1e-2
    slope = jnp.vdot(jax.grad(total)(X[:2]), direction)
    difference = (total(X[:2] + step * direction) - total(X[:2] - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=2e-2)


def test_dtypes(ntk_features):
    features = ntk_features
    assert features(X).dtype == jnp.float32
    high = infnet.random_features(kernel_function(relu2, precision="highest"), jax.random.key(0), 300)
    np.testing.assert_allclose(high(X), features(X), rtol=1e-3, atol=1e-4)
    with jax.enable_x64(True):
        kernel_fn = kernel_function(relu2, X.astype(np.float64))
        double = infnet.random_features(kernel_fn, jax.random.key(0), 300)
        assert double(X.astype(np.float64)).dtype == jnp.float64
        diagonal = kernel_fn.diag(X.astype(np.float64), "ntk")
        np.testing.assert_allclose(double.diag(X.astype(np.float64)), diagonal, rtol=1e-9)


def test_the_interface_of_a_kernel_function():
    features = infnet.random_features(RELU2, jax.random.key(0), 512)
    assert features.kernel(X, X[:3]).shape == features.kernel(X, X[:3], "ntk").shape == (N, 3)
    assert features.kernel(X, None, ("ntk",)).ntk.shape == (N, N)
    y = X[:, :1]
    by_hand = gp_inference(features.kernel(X), y, noise=None)
    assert by_hand.y_train.shape == y.shape
    fitted = Regressor(features.kernel, get="ntkgp", noise=0.3).fit(X, y)
    np.testing.assert_allclose(fitted.predict(X), fitted.posterior(X).mean, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="features of the ntk alone"):
        features.kernel(X, get="nngp")


def shared_weight(x):
    layer = dense(10)
    return dense(1)(nn.relu(layer(x)) + nn.relu(layer(x / 2)))


@pytest.mark.parametrize(
    ("body", "shape", "what"),
    [
        (lambda x: dense(1)(nn.relu(conv(8)(x)).reshape(len(x), -1)), (2, 6, 6, 3), "positions|operation"),
        (lambda x: dense(1)(nn.relu(nn.LayerNorm()(dense(16)(x)))), (2, 5), "operation|norm"),
        (lambda x: dense(1)(dense(8)(x) * nn.relu(dense(8)(x))), (2, 5), "Product"),
        (shared_weight, (2, 5), "side by side"),
    ],
)
def test_refused_networks(body, shape, what):
    kernel_fn = kernel_function(body, np.ones(shape, np.float32))
    with pytest.raises(UnsupportedError, match=what) as caught:
        infnet.random_features(kernel_fn, jax.random.key(0), 256)
    assert all(word in str(caught.value) for word in ("where:", "why:", "remedy:"))


def test_refused_attention():
    def attention(x):
        scores = nn.softmax(jnp.einsum("nic,njc->nij", dense(8)(x), dense(8)(x)) / 8)
        return dense(1)((scores @ dense(8)(x)).mean(1))

    with pytest.raises(UnsupportedError, match="random features of"):
        infnet.random_features(kernel_function(attention, np.ones((2, 3, 4), np.float32)), jax.random.key(0))


def test_refused_arguments():
    key = jax.random.key(0)
    for bad in (0, -3, 2.5, True):
        with pytest.raises(InputError, match="n_features must be a positive integer"):
            infnet.random_features(RELU2, key, bad)
    with pytest.raises(InputError, match="get must be"):
        infnet.random_features(RELU2, key, 256, "ntk_by_param")
    with pytest.raises(InputError, match="kernel function of infnet"):
        infnet.random_features(lambda x: x, key)
    with pytest.raises(InputError, match="key must be"):
        infnet.random_features(RELU2, 7)
    with pytest.raises(InputError, match="not traced"):
        jax.jit(lambda key: infnet.random_features(RELU2, key, 256)(X))(key)
    two = kernel_function(lambda x: (dense(1)(x), dense(2)(x)))
    with pytest.raises(InputError, match="2: choose one with output="):
        infnet.random_features(two, key)
    bad = X.copy()
    bad[3, 2] = np.nan
    features = infnet.random_features(RELU2, key, 256)
    with pytest.raises(NumericalError, match=r"not finite, the first at \(3, 2\)"):
        features(bad)
    with pytest.raises(InputError, match="has shape"):
        features(X[:, :4])


def test_hadamard_transform():
    size = 32
    entries = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])
    x = np.random.RandomState(0).standard_normal((3, size)).astype(np.float32)
    np.testing.assert_allclose(hadamard_transform(jnp.asarray(x)), x @ entries, rtol=1e-4, atol=1e-4)


def test_projections():
    """Columns of the Gaussian projection are N(0, I); an orthogonal map that keeps all columns keeps inner products."""
    rng = np.random.default_rng(0)
    w = np.concatenate([gaussian_projection(gaussian_numbers(rng, 5, 300), jnp.eye(5), 300) for _ in range(100)], 1)
    np.testing.assert_allclose(w @ w.T / w.shape[1], np.eye(5), atol=0.05)
    np.testing.assert_allclose((w**4).mean(1), 3, atol=0.2)
    np.testing.assert_allclose((w[0] ** 2 * w[1] ** 2).mean(), 1, atol=0.1)
    x = rng.standard_normal((4, 50)).astype(np.float32)
    y = mixed(mixing_numbers(rng, 50, 64), jnp.asarray(x), 64)
    np.testing.assert_allclose(y @ y.T, x @ x.T, rtol=1e-3, atol=1e-3)
