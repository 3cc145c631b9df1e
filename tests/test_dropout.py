"""Dropout in training mode: the variance on the diagonal is divided by the share that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, dense, examples
from flax import linen as nn
from oracles import draws
from recurrence import relu_moments

import infnet_flax
from infnet.errors import NonGaussianError, UnsupportedError

KEEP = 0.75
TRAINING = {"rngs": {"dropout": jax.random.key(0)}}


def dropout(x, **options):
    return nn.Dropout(1 - KEEP, deterministic=False, **options)(x)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kernel_of(body, x, width=8, **options):
    return infnet_flax.kernel_fn(Model(body, width), x, call_kwargs=TRAINING, **options)


def after_relu(drop):
    return lambda module, width, x: drop(nn.relu(dense(width)(x)))


X = np.random.RandomState(0).standard_normal((4, 5))


def test_one_layer():
    """Off the diagonal nothing changes; on it, NNGP and NTK of the layer are divided by the share that is kept."""
    plain = infnet_flax.kernel_fn(Model(after_relu(lambda x: x), 8), X)(X)
    dropped = kernel_of(after_relu(dropout), X)(X)
    own = np.eye(4, dtype=bool)
    for name, bias in (("nngp", 0.3**2), ("ntk", 1.0)):
        before, after = np.asarray(getattr(plain, name)), np.asarray(getattr(dropped, name))
        np.testing.assert_allclose(after[~own], before[~own], rtol=1e-12)
        np.testing.assert_allclose(after[own] - bias, (before[own] - bias) / KEEP, rtol=1e-9)
    np.testing.assert_allclose(dropped.cov1, np.diag(dropped.nngp), rtol=1e-12)
    np.testing.assert_allclose(kernel_of(after_relu(dropout), X)(X, X + 0, "nngp")[own], plain.nngp[own], rtol=1e-9)


def test_two_layers_by_hand():
    """The next layer sees a larger variance of each example, with covariances that are unchanged."""

    def body(module, width, x):
        return dropout(nn.relu(dense(width)(dropout(nn.relu(dense(width)(x))))))

    s = X @ X.T / 5 + 0.3**2
    for _ in range(2):
        q = np.diag(s)
        s = relu_moments(s, q[:, None], q[None])[0]
        s = np.where(np.eye(4, dtype=bool), np.diag(s) / KEEP, s) + 0.3**2
    np.testing.assert_allclose(kernel_of(body, X)(X, get="nngp"), s, rtol=1e-7)


def test_finite_networks():
    """The network as it is, with other weights and other dropout for every sample."""
    x1, _ = examples(4)

    def body(module, width, x):
        return dropout(nn.relu(dense(width)(dropout(nn.relu(dense(width)(x))))))

    model = Model(body, 256, outputs=64)

    def sample(key):
        keys = jax.random.split(key)
        params = model.init({"params": keys[0], "dropout": keys[0]}, x1)
        y = model.apply(params, x1, rngs={"dropout": keys[1]})
        return y @ y.T / y.shape[1]

    with jax.enable_x64(False):
        samples = np.asarray(draws(sample, jax.random.key(1), 300))
        expected = kernel_of(body, x1)(x1, get="nngp")
    error = samples.std(0) / np.sqrt(len(samples))
    assert (error < 0.02 * samples.mean(0)).all()
    assert (abs(samples.mean(0) - expected) < 4 * error + 0.01 * expected).all()


def test_positions_share_numbers_or_not():
    x = np.random.RandomState(0).standard_normal((3, 4, 5))

    def pooled(drop):
        return lambda module, width, x: drop(nn.relu(dense(width)(x))).mean(1)

    def per_token(module, width, x):
        return nn.relu(dense(width)(x))

    class Positions(nn.Module):
        @nn.compact
        def __call__(self, x):
            return per_token(self, 8, x)

    own = np.einsum("aaij->aij", infnet_flax.kernel_fn(Positions(), x)(x, get="nngp"))
    separate = np.diag(kernel_of(pooled(dropout), x)(x, get="nngp")) - 0.3**2
    factors = np.where(np.eye(4, dtype=bool), 1 / KEEP, 1.0)
    np.testing.assert_allclose(separate, (factors * own).mean((1, 2)), rtol=1e-9)
    shared = kernel_of(pooled(lambda x: dropout(x, broadcast_dims=(1,))), x)(x, get="nngp")
    np.testing.assert_allclose(np.diag(shared) - 0.3**2, own.mean((1, 2)) / KEEP, rtol=1e-9)


def test_deterministic_dropout_does_nothing():
    def body(module, width, x):
        return nn.Dropout(0.5, deterministic=True)(nn.relu(dense(width)(x)))

    plain = infnet_flax.kernel_fn(Model(after_relu(lambda x: x), 8), X)
    np.testing.assert_array_equal(infnet_flax.kernel_fn(Model(body, 8), X)(X, get="ntk"), plain(X, get="ntk"))


def test_the_kernel_does_not_depend_on_the_key():
    other = {"rngs": {"dropout": jax.random.PRNGKey(5)}}
    kernels = [infnet_flax.kernel_fn(Model(after_relu(dropout), 8), X, call_kwargs=k)(X) for k in (TRAINING, other)]
    np.testing.assert_array_equal(kernels[0].ntk, kernels[1].ntk)


def before_relu(module, width, x):
    return nn.relu(dropout(dense(width)(x)))


def of_inputs(module, width, x):
    return nn.relu(dense(width)(dropout(x)))


def of_whole_channels(module, width, x):
    return dropout(nn.relu(dense(width)(x)), broadcast_dims=(1,))


def noise(module, width, x):
    h = nn.relu(dense(width)(x))
    return h + jax.random.normal(module.make_rng("dropout"), h.shape)


def same_key(module, width, x):
    key, h = module.make_rng("dropout"), nn.relu(dense(width)(x))
    first = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0)
    return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), first, 0)


REFUSED = {
    before_relu: (NonGaussianError, "Dense or Conv"),
    of_inputs: (UnsupportedError, "before any weight"),
    of_whole_channels: (UnsupportedError, "all channels share"),
    noise: (UnsupportedError, "other than as in dropout"),
    same_key: (UnsupportedError, "same key"),
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda f: f.__name__)
def test_refused(body):
    kind, message = REFUSED[body]
    with pytest.raises(kind, match=message) as caught:
        kernel_of(body, X)
    assert "test_dropout.py" in caught.value.where.line
