"""float32 against float64: through many layers, for near-duplicates, at large weight scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.errors import NumericalError, UnsupportedError

pytestmark = pytest.mark.optimised

WIDTH, N = 64, 8


def network(depth, phi=jax.nn.relu):
    def apply(params, x):
        *hidden, last = params
        for w, b in hidden:
            x = phi(x @ w + b)
        return x @ last

    assert depth > 0
    return apply


def priors(depth, dtype, w_std, b_std=0.1):
    def prior(std, *shape):
        return infnet.Prior(0.0, std, shape=shape, dtype=dtype)

    layer = (prior(w_std / WIDTH**0.5, WIDTH, WIDTH), prior(b_std, WIDTH))
    return [*[layer] * depth, prior(WIDTH**-0.5, WIDTH, 1)]


@functools.cache
def kernel_of(depth, precision):
    dtype = jnp.float64 if precision == "float64" else jnp.float32
    options = {"precision": "highest"} if precision == "highest" else {}
    example = jax.ShapeDtypeStruct((N, WIDTH), dtype)
    laws = priors(depth, dtype, 2**0.5)
    return infnet.kernel_fn(network(depth), laws, example, parameterization="ntk", **options)


def pairs(distance):
    """Two sets of examples in float32, each example at this distance from its partner, relative to its size."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, N, WIDTH))
    noise *= np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return x.astype("float32"), (x + distance * noise).astype("float32")


def errors(depth, precision, distance):
    x1, x2 = pairs(distance)
    with jax.enable_x64(True):
        exact = kernel_of(depth, "float64")(x1.astype("float64"), x2.astype("float64"))
    found = kernel_of(depth, precision)(x1, x2)
    assert found.nngp.dtype == found.ntk.dtype == jnp.float32
    pairs_of = ((np.asarray(getattr(k, name), float) for k in (found, exact)) for name in ("nngp", "ntk"))
    return [float(np.abs(one / two - 1).max()) for one, two in pairs_of]


@pytest.mark.parametrize(("depth", "bound"), [(1, 2e-6), (20, 2e-5)])
def test_many_layers(depth, bound):
    for distance in (1.0, 0.3):
        assert max(errors(depth, "default", distance)) < bound
    for distance in (1e-3, 1e-5):
        nngp, ntk = errors(depth, "default", distance)
        assert nngp < bound
        assert ntk > bound  # or "highest" would not be needed
        assert max(errors(depth, "highest", distance)) < bound


def test_highest_under_transformations():
    """float64 inside of jit, vmap, forward and reverse mode: derivatives of near-duplicates keep their digits too."""
    x1, x2 = pairs(1e-3)
    highest, exact = kernel_of(1, "highest"), kernel_of(1, "float64")
    with jax.enable_x64(True):
        wanted = jax.grad(lambda x: exact(x, x2.astype("float64"), get="ntk").sum())(x1.astype("float64"))
    total = lambda x: highest(x, x2, get="ntk").sum()  # noqa: E731
    for found in (jax.grad(total)(x1), jax.jit(jax.grad(total))(x1), jax.vmap(jax.grad(total))(x1[None])[0]):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    tangent = jax.jvp(total, (x1,), (x1,))[1]
    np.testing.assert_allclose(tangent, np.vdot(wanted, x1), rtol=1e-5)
    assert jnp.isfinite(jax.jvp(jax.grad(total), (x1,), (x1,))[1]).all()
    assert jax.jit(highest)(x1).ntk.dtype == jnp.float32


@pytest.mark.parametrize("last", [1e15, 1e-15])
def test_large_and_small_weights_through_16_layers(last):
    """Wherever the result can be represented, no step before it overflows."""
    depth, x = 16, pairs(1.0)[0][:3] * last**-0.5
    w_std = (2 * (1e30 * last) ** (1 / depth)) ** 0.5  # a relu layer multiplies variances by w_std^2 / 2
    kernels = []
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            kernel_fn = infnet.kernel_fn(network(depth), priors(depth, dtype, w_std, 0.0), x.astype(dtype))
            kernels.append(np.asarray(kernel_fn(x.astype(dtype), get="nngp"), float))
    assert 1e25 < np.abs(kernels[1]).max() < 3e38
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-4)


@pytest.mark.parametrize("phi", [jax.lax.erf, jnp.sin, jax.nn.elu], ids=lambda phi: phi.__name__)
def test_huge_variances(phi):
    x, _ = pairs(1.0)
    options = {"parameterization": "ntk", "tol": 1e9}  # only overflow is looked at
    kernel_fn = infnet.kernel_fn(network(1, phi), priors(1, jnp.float32, 1e16), x[:3], **options)
    assert jnp.isfinite(kernel_fn(x[:3], get="nngp")).all()


def test_rounding_of_bounded_activations_is_not_hidden():
    """hard tanh at large variances is a small difference of large numbers: refused in float32, right in float64."""
    x, _ = pairs(1.0)
    apply = network(1, jax.nn.hard_tanh)
    laws = priors(1, jnp.float32, 1000.0)
    with pytest.raises(NumericalError, match='precision="highest"'):
        infnet.kernel_fn(apply, laws, x)(x)
    found = infnet.kernel_fn(apply, laws, x, precision="highest")(x, get="nngp")
    sign = infnet.kernel_fn(network(1, jnp.sign), laws, x, precision="highest")(x, get="nngp")
    np.testing.assert_allclose(found, sign, atol=5e-3)


def test_exponentials_that_cancel_keep_their_digits():
    """exp(x) - 1 at small and at large variances: right, and known to be."""
    x, _ = pairs(1.0)
    laws = priors(1, jnp.float32, 1.0)
    both = [infnet.kernel_fn(network(1, jax.nn.elu), laws, x, precision=p) for p in ("highest", "default")]
    for w_std in (1e-2, 0.3, 100.0):
        stds = jax.tree.map(lambda std, w_std=w_std: w_std * std, both[0].hyperparameters)
        exact, found = (kernel_fn.with_hyperparameters(stds)(x) for kernel_fn in both)
        assert found.error == exact.error == 0
        sizes = np.sqrt(np.outer(exact.cov1, exact.cov1))
        assert (np.abs(found.nngp - exact.nngp) / sizes).max() < 5e-6


def test_overflow_names_the_layer():
    x, _ = pairs(1.0)
    laws = priors(3, jnp.float32, 1e10)
    with pytest.raises(NumericalError, match="float32") as caught:
        infnet.kernel_fn(network(3), laws, x)(x)
    assert "test_precision.py" in str(caught.value)


def in_a_loop(key, shape, *dtype):
    return jax.lax.fori_loop(0, 1, lambda i, total: total + jax.random.normal(key, shape, *dtype), jnp.zeros(shape))


@pytest.mark.parametrize("draw", [jax.random.normal, in_a_loop])
def test_random_numbers_of_the_model_are_the_same_or_refused(draw):
    """The same key gives other numbers in float64."""
    laws = infnet.Prior(0.0, 1.0, shape=(5, 1), dtype=jnp.float32)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)

    def features(x, *dtype):
        return jnp.sin(x @ draw(jax.random.key(0), (3, 5), *dtype).astype(x.dtype))

    def nngp(precision, *dtype):
        return infnet.kernel_fn(lambda w, x: features(x, *dtype) @ w, laws, x, precision=precision)(x, get="nngp")

    known = np.asarray(features(x))
    np.testing.assert_allclose(nngp("default"), known @ known.T, rtol=1e-5)
    np.testing.assert_allclose(nngp("highest", jnp.float32), known @ known.T, rtol=1e-5)
    with pytest.raises(UnsupportedError, match="default dtype") as caught:
        nngp("highest")
    assert "test_precision.py" in caught.value.where.line
