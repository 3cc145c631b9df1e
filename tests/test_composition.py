"""Kernel functions of kernels: two models, one after the other, have the kernel of both as one model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function, biases, conv, dense
from flax import linen as nn

import infnet
import infnet_flax
from infnet.errors import InputError, NonGaussianError, NumericalError, UnsupportedError

X1, X2 = (np.random.RandomState(seed).standard_normal((n, 5, 4, 3)) + 0.3 for seed, n in ((0, 3), (1, 2)))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def convolved(x):
    return conv(16)(x)


def read_out(x):
    return dense(8)(x)


def norm(**options):
    return nn.LayerNorm(param_dtype=jnp.float64, bias_init=biases, **options)


def gelu(x):
    return nn.gelu(x, approximate=False)


def over_positions(x):
    return x.mean((1, 2))


def attention(x):
    x = x.reshape(len(x), -1, x.shape[-1])
    scores = nn.softmax(jnp.einsum("nic,njc->nij", dense(16)(x), dense(16)(x)) / 16)
    return dense(4)(nn.relu(dense(16)(scores @ x)).mean(1))


def gated(x):
    return dense(8)(nn.relu(dense(16)(dense(16)(x) * jax.scipy.special.erf(dense(16)(x)))))


def residual(x):
    return x + dense(16)(nn.relu(x))


def beside_positions(x):
    """Means of the input enter: known numbers are added to it."""
    return dense(8)(nn.relu(dense(16)(x + np.linspace(0, 1, 4)[:, None])))


# First model, second model; `Kernel.law` and its mean must say what the second one needs to know.
PAIRS = {
    "gaussian, then a nonlinearity": (convolved, lambda x: dense(8)(nn.relu(x))),
    "relu, then a layer": (lambda x: nn.relu(conv(16)(x)), read_out),
    "relu, then windows": (lambda x: nn.relu(conv(16)(x)), lambda x: conv(8, (3, 2), strides=(2, 1))(x)),
    "relu, then a norm": (lambda x: nn.relu(conv(16)(x)), lambda x: dense(8)(nn.relu(dense(16)(norm()(x))))),
    "norm": (convolved, lambda x: dense(8)(gelu(norm()(x)))),
    "norm over positions": (lambda x: gelu(conv(16)(x)), lambda x: dense(8)(norm(reduction_axes=(1, 2, 3))(x))),
    "pooled": (lambda x: gelu(conv(16)(x)), lambda x: dense(8)(nn.relu(dense(16)(over_positions(x))))),
    "flattened": (lambda x: nn.relu(conv(16)(x)).reshape(len(x), -1), read_out),
    "flattened later": (lambda x: nn.relu(conv(16)(x)), lambda x: dense(8)(x.reshape(len(x), -1))),
    "concatenated": (lambda x: jnp.concatenate([conv(8)(x), nn.relu(conv(8)(x))], -1), read_out),
    "attention": (lambda x: nn.relu(conv(16)(x)), attention),
    "gate": (lambda x: nn.relu(conv(16)(x)), gated),
    "residual": (convolved, residual),
    "residual, pooled": (lambda x: dense(16)(over_positions(x)), lambda x: dense(4)(nn.relu(residual(x)))),
    "known numbers beside it": (lambda x: gelu(conv(16)(x)), beside_positions),
    "a series": (convolved, lambda x: dense(8)(nn.silu(x))),
    "nothing": (convolved, lambda x: x),
    "only a nonlinearity": (convolved, gelu),
    "a trained scale": (convolved, lambda x: norm()(x)),
}


def both(pair):
    first, second = PAIRS[pair]
    return Function(first), Function(second), Function(lambda x: second(first(x)))


def assert_same(found, expected, rtol=1e-10):
    for name in ("nngp", "ntk", "cov1", "cov2", "mean1", "mean2"):
        one, two = getattr(found, name), getattr(expected, name)
        assert (one is None) == (two is None), name
        if one is not None:
            np.testing.assert_allclose(one, two, rtol=rtol, atol=1e-12, err_msg=name)
    assert (found.law, found.width, found.positions) == (expected.law, expected.width, expected.positions)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_models_are_one(pair):
    first, second, whole = both(pair)
    kernel = infnet_flax.kernel_fn(first, X1)(X1, X2)
    found = infnet_flax.kernel_fn(second, kernel)(kernel)
    expected = infnet_flax.kernel_fn(whole, X1)(X1, X2)
    assert_same(found, expected)
    assert found.error == expected.error


def test_methods_take_kernels_and_remember_them():
    first, second, whole = map(infnet_flax.annotate, both("norm"))
    for options in ({}, {"parameterization": "ntk"}):
        found = second.kernel(first.kernel(X1, **options), **options)
        assert_same(found, whole.kernel(X1, **options))
        assert second.kernel(first.kernel(X1, X2, **options), get="nngp", **options).shape == (3, 2, 5, 5, 4, 4)


def test_a_model_of_data_takes_kernels_too():
    """Only shapes count when it is made: the same kernel function for inputs and for the kernels of inputs."""
    model = Function(lambda x: dense(16)(nn.relu(dense(16)(x))))
    kernel_fn = infnet_flax.kernel_fn(model, jax.ShapeDtypeStruct((1, 16), jnp.float64))
    x = X1.reshape(3, -1)[:, :16]
    twice = kernel_fn(kernel_fn(x))
    expected = infnet_flax.kernel_fn(Function(lambda x: model.function(model.function(x))), x)(x)
    assert_same(twice, expected)
    assert "kernel" in {row.rule for row in infnet_flax.kernel_fn(model, twice).explain().rows}


def test_transformations():
    first, second, whole = both("pooled")
    outer = infnet_flax.kernel_fn(first, X1)
    inner = infnet_flax.kernel_fn(second, outer(X1))

    def ntk(x):
        return inner(outer(x), get="ntk").sum()

    def expected(x):
        return whole_fn(x, get="ntk").sum()

    whole_fn = infnet_flax.kernel_fn(whole, X1)
    np.testing.assert_allclose(jax.jit(ntk)(X1), expected(X1), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(ntk)(X1), jax.grad(expected)(X1), rtol=1e-8, atol=1e-10)
    stacked = np.stack([X1, 0.5 * X1])
    np.testing.assert_allclose(jax.vmap(ntk)(stacked), [ntk(x) for x in stacked], rtol=1e-10)


def test_float32_and_highest_precision():
    first, second, whole = both("gaussian, then a nonlinearity")
    x1, x2 = np.float32(X1), np.float32(X2)
    with jax.enable_x64(False):
        for precision in ("default", "highest"):
            kernel = infnet_flax.kernel_fn(first, x1, precision=precision)(x1, x2)
            found = infnet_flax.kernel_fn(second, kernel, precision=precision)(kernel)
            assert found.ntk.dtype == jnp.float32
            assert_same(found, infnet_flax.kernel_fn(whole, x1, precision=precision)(x1, x2), rtol=1e-5)


def test_many_examples_in_tiles():
    first, second, whole = both("pooled")
    x = np.random.RandomState(2).standard_normal((60, 5, 4, 3))
    outer = infnet_flax.kernel_fn(first, x[:1])
    kernel = outer(x)
    found = infnet_flax.kernel_fn(second, kernel)(kernel, get="ntk")
    np.testing.assert_allclose(found, infnet_flax.kernel_fn(whole, x[:1])(x, get="ntk"), rtol=1e-10)


@pytest.mark.parametrize("n", [0, 1])
def test_few_examples(n):
    first, second, _ = both("gaussian, then a nonlinearity")
    kernel = infnet_flax.kernel_fn(first, X1[:1])(X1[:n], X2)
    assert infnet_flax.kernel_fn(second, kernel)(kernel).ntk.shape == (n, 2, 5, 5, 4, 4)


def test_a_nan_stays_in_its_row():
    first, second, whole = both("gaussian, then a nonlinearity")
    x = X1.copy()
    x[1] = np.nan
    kernel = infnet_flax.kernel_fn(first, X1)(x)
    found = infnet_flax.kernel_fn(second, kernel)(kernel, get="ntk")
    # Without optimisations XLA rounds sqrt(q * q), and so the angle of an example with itself.
    np.testing.assert_allclose(found, infnet_flax.kernel_fn(whole, X1)(x, get="ntk"), rtol=1e-7)
    assert np.isnan(found[1]).all()
    assert not np.isnan(found[0, 2]).any()


@pytest.mark.parametrize(
    "pair", ["relu, then a layer", "concatenated", "flattened", "a trained scale"], ids=lambda p: p.replace(",", "")
)
def test_a_nonlinearity_needs_a_gaussian_input(pair):
    """Of a trained scale the derivative is the feature itself: random, until a layer averages over channels."""
    first, _, whole = both(pair)
    kernel = infnet_flax.kernel_fn(whole if pair == "a trained scale" else first, X1)(X1, X2)
    assert not kernel.law.gaussian
    with pytest.raises(NonGaussianError, match="not Gaussian"):
        infnet_flax.kernel_fn(Function(nn.relu), kernel)(kernel)


def test_kernels_that_do_not_fit_are_refused():
    kernel = infnet_flax.kernel_fn(both("relu, then a layer")[0], X1)(X1, X2)
    kernel_fn = infnet_flax.kernel_fn(Function(read_out), kernel)
    with pytest.raises(InputError, match=r"positions \(5, 4\) and 16 channels"):
        infnet_flax.kernel_fn(Function(read_out), jax.ShapeDtypeStruct((1, 5, 4, 8), jnp.float64))(kernel)
    with pytest.raises(InputError, match="parameterization"):
        infnet_flax.kernel_fn(Function(read_out), kernel, parameterization="ntk")(kernel)
    with pytest.raises(InputError, match="is a Kernel"):
        kernel_fn(kernel, X2)
    with pytest.raises(InputError, match="is a Kernel"):
        kernel_fn(np.zeros((3, 5, 4, 16)), kernel)
    with pytest.raises(InputError, match="is a Kernel"):
        kernel_fn.diag(kernel)
    with pytest.raises(InputError, match="ntk_by_param"):
        kernel_fn(kernel, get="ntk_by_param")
    for use in (kernel_fn, lambda k: infnet_flax.kernel_fn(Function(read_out), k)):
        with pytest.raises(InputError, match="law"):
            use(dataclasses.replace(kernel, law=None))


def test_covariances_of_two_outputs_are_no_input():
    model = Function(lambda x: (dense(8)(x), dense(8)(x)))
    kernels = infnet_flax.kernel_fn(model, X1[:, 0, 0], cross=True)(X1[:, 0, 0])
    assert kernels[0][1].law is None
    assert infnet_flax.kernel_fn(Function(nn.relu), kernels[0][0])(kernels[0][0]).law is not None
    with pytest.raises(InputError, match="law"):
        infnet_flax.kernel_fn(Function(nn.relu), kernels[0][1])


def test_a_mean_that_is_not_known_is_asked_for():
    """The kernel rule of an operation says nothing of its mean, which a norm needs."""

    @infnet.custom_kernel
    def cubed(x):
        return x**3 + 1

    @cubed.def_kernel
    def _(k):
        return dataclasses.replace(k, nngp=k.nngp**3 + 1, ntk=k.ntk)

    kernel = infnet_flax.kernel_fn(Function(lambda x: cubed(dense(16)(x))), X1)(X1)
    assert kernel.mean1 is None
    assert not kernel.law.zero_mean
    infnet_flax.kernel_fn(Function(read_out), kernel)(kernel)
    with pytest.raises(UnsupportedError, match="mean of an input"):
        infnet_flax.kernel_fn(Function(lambda x: dense(8)(norm()(x))), kernel)(kernel)


WIDE = {"b_std": 0.3, "param_dtype": jnp.float64}
LAYERS = {
    "dense": lambda: [
        infnet_flax.Dense(16, **WIDE),
        infnet_flax.Erf(),
        infnet_flax.Dense(16, **WIDE),
        infnet_flax.LayerNorm(),
        infnet_flax.Gelu(),
        infnet_flax.Dense(8, **WIDE),
    ],
    "images": lambda: [
        infnet_flax.Conv(16, (3, 3), **WIDE),
        infnet_flax.Relu(),
        infnet_flax.AvgPool((2, 2), (2, 1)),
        infnet_flax.ConvTranspose(8, (2, 2), (2, 2), **WIDE),
        infnet_flax.Sin(),
        infnet_flax.Flatten(),
        infnet_flax.Dense(8, **WIDE),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_map_kernels_one_after_the_other(name):
    x1, x2 = (X1, X2) if name == "images" else (X1[:, 0, 0], X2[:, 0, 0])
    first, *rest = LAYERS[name]()
    kernel = first.kernel(x1, x2)
    for layer in rest:
        kernel = layer.kernel(kernel)
    assert_same(kernel, infnet_flax.kernel_fn(nn.Sequential(LAYERS[name]()), x1)(x1, x2))


def test_what_overflows_is_found_behind_a_kernel_too():
    x1, x2 = np.float32(X1), np.float32(X2)
    huge = Function(lambda x: nn.Dense(8, kernel_init=nn.initializers.normal(1e18))(nn.Dense(64)(x)))
    with jax.enable_x64(False):
        kernel = infnet_flax.kernel_fn(Function(convolved), x1)(x1, x2)
        kernel_fn = infnet_flax.kernel_fn(huge, kernel)
        with pytest.raises(NumericalError, match=r"test_composition\.py(.|\n)*does not fit into float32"):
            kernel_fn(kernel)
