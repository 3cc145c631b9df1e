"""Unusual but legal inputs: empty, single, duplicated, zero and NaN examples; dtypes; zero patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import linen as nn

import infnet
import infnet_flax
from infnet import tiling

pytestmark = pytest.mark.optimised

CASES = {c.name: c for c in zoo.CASES}
every_network = pytest.mark.parametrize(
    "name", ["mlp_relu", "mlp_erf", "mlp_gelu", "conv_same_flatten", "conv_global_pool"]
)


@functools.cache
def kernel_of(name, dtype=jnp.float32):
    case = CASES[name]
    x = jnp.asarray(np.random.RandomState(1).randn(5, *case.shape), dtype)
    return infnet_flax.kernel_fn(case.make(dtype=dtype), x), x


@every_network
def test_empty_batches(name):
    k, x = kernel_of(name)
    assert k(x[:0], x, "ntk").shape == (0, 5)
    assert k(x, x[:0], "nngp").shape == (5, 0)
    assert k(x[:0]).nngp.shape == (0, 0)
    assert k.diag(x[:0], "ntk").shape == (0,)


@every_network
def test_one_example_duplicates_and_diagonal_agree(name):
    k, x = kernel_of(name)
    both = k(x)
    np.testing.assert_allclose(k(x[:1]).ntk, both.ntk[:1, :1], rtol=1e-5)
    repeated = k(jnp.concatenate([x, x[:1]]))
    # Two equal rows: q12 and q11 are rounded alike up to the order of summation.
    np.testing.assert_allclose(repeated.nngp[5, 0], repeated.nngp[0, 0], rtol=2e-5)
    np.testing.assert_allclose(repeated.ntk[5, 0], repeated.ntk[0, 0], rtol=5e-3)
    np.testing.assert_allclose(both.nngp, both.nngp.T, rtol=1e-6, atol=1e-7)  # sums are ordered differently
    np.testing.assert_allclose(jnp.diagonal(both.ntk), k.diag(x, "ntk"), rtol=3e-7)  # another program: the last bit
    np.testing.assert_array_equal(both.cov1, jnp.diagonal(both.nngp))
    np.testing.assert_allclose(k(x, x[:2], "ntk"), both.ntk[:, :2], rtol=5e-3)


@every_network
def test_rows_of_zeros_are_finite(name):
    k, x = kernel_of(name)
    kernel = k(x.at[1].set(0))
    for part in (kernel.nngp, kernel.ntk):
        assert np.isfinite(part).all()


def test_zero_row_without_biases_has_zero_kernel():
    x = jnp.asarray([[1.0, 2.0], [0.0, 0.0]])
    model = nn.Sequential([nn.Dense(8, use_bias=False), nn.relu, nn.Dense(2, use_bias=False)])
    kernel = infnet_flax.kernel_fn(model, x)(x)
    assert kernel.nngp[1].tolist() == kernel.ntk[1].tolist() == [0.0, 0.0]


@every_network
def test_nan_in_one_example_stays_in_its_row_and_column(name):
    k, x = kernel_of(name)
    poisoned = x.at[(2, *(0,) * (x.ndim - 1))].set(jnp.nan)
    clean, kernel = k(x), k(poisoned)
    rest = np.array([0, 1, 3, 4])
    for part in ("nngp", "ntk"):
        value = np.asarray(getattr(kernel, part))
        assert np.isnan(value[2]).all()
        assert np.isnan(value[:, 2]).all()
        np.testing.assert_array_equal(value[np.ix_(rest, rest)], np.asarray(getattr(clean, part))[np.ix_(rest, rest)])
    rows = np.asarray(k(poisoned, x, "ntk"))
    assert np.isnan(rows[2]).all()
    assert np.isfinite(rows[rest]).all()


@every_network
def test_float32_agrees_with_float64(name):
    k32, x = kernel_of(name)
    with jax.enable_x64(True):
        k64, _ = kernel_of(name, jnp.float64)
        exact = k64(np.asarray(x, np.float64))
    kernel = k32(x)
    assert kernel.nngp.dtype == jnp.float32
    np.testing.assert_allclose(kernel.nngp, exact.nngp, rtol=1e-5)
    np.testing.assert_allclose(kernel.ntk, exact.ntk, rtol=1e-4)


def test_half_precision_inputs_give_a_float32_kernel():
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    x = jnp.asarray(np.random.RandomState(0).randn(3, 4), jnp.bfloat16)
    kernel = infnet_flax.kernel_fn(model, x)(x)
    assert kernel.ntk.dtype == jnp.float32
    assert np.isfinite(kernel.ntk).all()


@pytest.mark.parametrize("derivative_at_zero", [0.0, 0.5], ids=["nn.relu", "jnp.maximum"])
def test_exactly_zero_patches_use_the_derivative_at_zero(derivative_at_zero):
    """At zero variance E[phi'(u) phi'(v)] = phi'(0) E phi'(v), and nn.relu and jnp.maximum differ there.

    The oracle is autodiff of the finite model, with respect to the zero-initialised biases of the first layer: most of
    their NTK comes from patches that are exactly zero.
    """
    relu = nn.relu if derivative_at_zero == 0.0 else (lambda x: jnp.maximum(x, 0.0))
    width = 4096

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            x = relu(nn.Conv(width, (3, 3), kernel_init=normal)(x))
            return nn.Dense(1, kernel_init=normal)(x.mean(axis=(1, 2)))

    image = np.zeros((2, 8, 8, 1), np.float32)
    image[:, :3, :3] = np.random.RandomState(0).randn(2, 3, 3, 1)  # most 3x3 patches are exactly zero
    model = Model()
    biases = infnet_flax.kernel_fn(model, image, trainable=lambda path: path.endswith("Conv_0/bias"))
    analytic = biases(image, get="ntk")

    def output(bias, params):
        layers = params["params"] | {"Conv_0": params["params"]["Conv_0"] | {"bias": bias}}
        return model.apply({"params": layers}, image)[:, 0]

    def ntk(key):
        params = model.init(key, image)
        jacobian = jax.jacobian(output)(params["params"]["Conv_0"]["bias"], params)
        return jacobian @ jacobian.T

    samples = jnp.stack([ntk(jax.random.key(i)) for i in range(8)])
    error = samples.std(0, ddof=1) / np.sqrt(8)
    # The two activations differ by a factor of 15 here.
    assert (error < 0.02 * samples.mean(0)).all()
    assert (abs(samples.mean(0) - analytic) < 4 * error).all()


def test_tiles_change_nothing(monkeypatch):
    k, _ = kernel_of("conv_global_pool")
    x = jnp.asarray(np.random.RandomState(2).randn(7, 6, 6, 3), jnp.float32)
    whole, cross = k(x), k(x, x[:5])
    # Tiles of 2 x 2 for x with itself and of 1 x 3 for the rest: 7 and 5 leave ragged ones.
    monkeypatch.setattr(tiling, "TILE_ENTRIES", 4 * 6**4)
    k, _ = kernel_of("conv_global_pool")
    own = k(x)
    np.testing.assert_allclose(own.ntk, whole.ntk, rtol=1e-6)
    np.testing.assert_allclose(own.nngp, whole.nngp, rtol=1e-6)
    # An example with itself: the NTK amplifies how q12 is rounded.
    np.testing.assert_allclose(k(x, x[:5]).ntk, cross.ntk, rtol=1e-5)


def test_symmetric_tiles_transpose_positions_too(monkeypatch):
    model = nn.Sequential([nn.Conv(8, (3,)), nn.relu, nn.Conv(2, (3,))])
    x = jnp.asarray(np.random.RandomState(3).randn(5, 6, 2), jnp.float32)
    whole = infnet_flax.kernel_fn(model, x)(x).ntk
    monkeypatch.setattr(tiling, "TILE_ENTRIES", 36 * 4)
    tiled = infnet_flax.kernel_fn(model, x)(x).ntk
    assert whole.shape == (5, 5, 6, 6)
    np.testing.assert_allclose(tiled, whole, rtol=1e-6)
    np.testing.assert_allclose(whole, jnp.transpose(whole, (1, 0, 3, 2)), rtol=1e-5)


def test_a_hundred_layers():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(100):
                x = nn.relu(nn.Dense(16, use_bias=False, kernel_init=nn.initializers.he_normal())(x))
            return nn.Dense(1)(x)

    x = jnp.asarray(np.random.RandomState(0).randn(2, 5), jnp.float32)
    nngp = infnet_flax.kernel_fn(Deep(), x)(x, x, get="nngp")
    # he_normal keeps q, and drives every correlation to 1.
    q = jnp.square(x).mean(1) * 2 / 2
    np.testing.assert_allclose(jnp.diagonal(nngp), q, rtol=1e-4)
    # 1 - rho -> 9 pi^2 / (2 L^2): 0.0044 at L = 100.
    rho = nngp[0, 1] / jnp.sqrt(q[0] * q[1])
    assert 0.003 < 1 - rho < 0.0045


def test_kernels_are_differentiable_in_their_inputs():
    k, x = kernel_of("conv_same_flatten")

    def loss(a):
        return k(a, x[:2], "ntk").sum()

    gradient = jax.grad(loss)(x)
    direction = jnp.asarray(np.random.RandomState(0).randn(*x.shape), x.dtype)
    step = 1e-2
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), numeric, rtol=1e-2)
    assert np.isfinite(jax.grad(lambda a: k(a).ntk.sum())(x)).all()


def test_several_inputs_and_pytrees():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, extra):
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x) + nn.Dense(8)(extra["e"])))

    x, e = jnp.ones((3, 4)), {"e": jnp.ones((3, 2))}
    k = infnet_flax.kernel_fn(Two(), (x, e))
    assert k((x, e), get="ntk").shape == (3, 3)
    with pytest.raises(infnet.errors.InputError, match="different numbers"):
        k((x, {"e": jnp.ones((2, 2))}))
    with pytest.raises(infnet.errors.InputError, match="structure"):
        k(x)


def test_frozen_layers_and_learning_rates():
    x = jnp.asarray(np.random.RandomState(0).randn(3, 4), jnp.float32)
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    full = infnet_flax.kernel_fn(model, x)(x).ntk
    first = infnet_flax.kernel_fn(model, x, trainable=lambda path: "layers_0" in path)(x).ntk
    last = infnet_flax.kernel_fn(model, x, trainable={"layers_0/*": False})(x).ntk
    double = infnet_flax.kernel_fn(model, x, lr_scale={"layers_0/*": 2.0})(x).ntk
    np.testing.assert_allclose(first + last, full, rtol=1e-5)
    np.testing.assert_allclose(2 * first + last, double, rtol=1e-5)


def test_any_axis_may_count_examples():
    class TimeMajor(nn.Module):
        @nn.compact
        def __call__(self, x):  # (time, batch, channel)
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x)).mean(0))

    class BatchMajor(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x)).mean(1))

    x = jnp.asarray(np.random.RandomState(0).randn(4, 6, 3), jnp.float32)
    expected = infnet_flax.kernel_fn(BatchMajor(), x)(x, get="ntk")
    k = infnet_flax.kernel_fn(TimeMajor(), jnp.swapaxes(x, 0, 1), batch_axis=1)
    np.testing.assert_allclose(k(jnp.swapaxes(x, 0, 1), get="ntk"), expected, rtol=1e-6)


def test_flattened_positions_count_as_channels():
    """The kernel of a flattened output is that of its (H W C) channels, averaged."""
    x = jnp.asarray(np.random.RandomState(0).randn(3, 4, 4, 2), jnp.float32)
    conv = nn.Conv(8, (3, 3))
    kept = infnet_flax.kernel_fn(conv, x)(x)
    flat = infnet_flax.kernel_fn(nn.Sequential([conv, lambda y: y.reshape(y.shape[0], -1)]), x)(x)
    assert (kept.width, flat.width) == (8, 4 * 4 * 8)
    np.testing.assert_allclose(flat.ntk, jnp.einsum("abiijj->ab", kept.ntk) / 16, rtol=1e-5)


def test_means_of_independent_branches_count():
    """E[relu(u) relu(v)] = E[relu u] E[relu v] for independent u, v: a sum of relus has kernel K + K + 2 m m'."""

    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(8)(x)) + nn.relu(nn.Dense(8)(x))

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(8)(x))

    x = jnp.asarray(np.random.RandomState(0).randn(3, 4), jnp.float32)
    both, one = (infnet_flax.kernel_fn(m, x)(x) for m in (Sum(), One()))
    q = infnet_flax.kernel_fn(nn.Dense(8), x)(x).cov1
    mean = jnp.sqrt(q / (2 * jnp.pi))
    np.testing.assert_allclose(both.nngp, 2 * one.nngp + 2 * jnp.outer(mean, mean), rtol=1e-5)
    np.testing.assert_allclose(both.ntk, 2 * one.ntk, rtol=1e-5)


def test_a_feature_and_a_function_of_it_are_correlated():
    """Stein: E[g relu(g')] = E[g g'] / 2, also after a map of positions that keeps the two apart."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            g = nn.Conv(8, (3,))(x)
            return jnp.flip(nn.relu(g), 1) + g

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(8, (3,))(x)

    class Relu(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(8, (3,))(x))

    x = jnp.asarray(np.random.RandomState(0).randn(3, 5, 2), jnp.float32)
    whole, linear, relu = (infnet_flax.kernel_fn(m, x)(x) for m in (Model(), Linear(), Relu()))
    for name in ("nngp", "ntk"):
        g, r = getattr(linear, name), getattr(relu, name)
        expected = g + r[..., ::-1, ::-1] + (g[..., ::-1, :] + g[..., ::-1]) / 2
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-4, atol=1e-6)
