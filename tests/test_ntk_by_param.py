"""The share of every parameter in the NTK: with one parameter trained alone, and all of them together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function, conv, dense
from flax import linen as nn

import infnet_flax
from infnet.errors import InputError

X1, X2 = (np.random.RandomState(seed).standard_normal((n, 4, 3, 2)) + 0.3 for seed, n in ((0, 3), (1, 2)))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def plain(x):
    return dense(4)(nn.relu(dense(16)(nn.relu(conv(16)(x)).mean((1, 2)))))


def with_norm(x):
    return dense(4)(nn.relu(nn.LayerNorm(param_dtype=jnp.float64)(conv(16)(x)))).mean((1, 2))


def residual_stack(x):
    """Alike layers, which run as a loop."""
    x = dense(16)(x.reshape(len(x), -1))
    for _ in range(8):
        x = x + dense(16)(nn.relu(x))
    return dense(4)(nn.relu(x))


def two_outputs(x):
    x = nn.relu(dense(16)(x[:, 0, 0]))
    return {"mean": dense(1)(x), "rest": dense(3)(x)}


MODELS = [plain, with_norm, residual_stack, two_outputs]


@pytest.mark.parametrize("parameterization", ["as_model", "ntk"])
@pytest.mark.parametrize("model", MODELS, ids=lambda f: f.__name__)
def test_shares_sum_to_the_ntk(model, parameterization):
    kernel_fn = infnet_flax.kernel_fn(Function(model), X1, parameterization=parameterization)
    found = kernel_fn(X1, X2, ("ntk_by_param", "nngp", "ntk"))
    expected = kernel_fn(X1, X2, ("nngp", "ntk"))

    def check(kernels, ntk):
        assert jax.tree.structure(kernels.ntk_by_param) == jax.tree.structure(kernel_fn.hyperparameters)
        np.testing.assert_allclose(sum(jax.tree.leaves(kernels.ntk_by_param)), ntk.ntk, rtol=1e-12)
        np.testing.assert_allclose(kernels.ntk, ntk.ntk, rtol=1e-12)
        np.testing.assert_allclose(kernels.nngp, ntk.nngp, rtol=1e-12)

    jax.tree.map(check, found, expected, is_leaf=lambda kernels: hasattr(kernels, "_fields"))


@pytest.mark.parametrize("model", [plain, with_norm, residual_stack], ids=lambda f: f.__name__)
def test_a_share_is_the_ntk_of_that_parameter_alone(model):
    shares = infnet_flax.kernel_fn(Function(model), X1)(X1, get="ntk_by_param")
    for path, share in jax.tree_util.tree_flatten_with_path(shares)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in ("Dense_1/kernel", "LayerNorm_0/scale", "Conv_0/bias"):
            alone = infnet_flax.kernel_fn(Function(model), X1, trainable=lambda p, name=name: p == name)
            np.testing.assert_allclose(share, alone(X1, get="ntk"), rtol=1e-7)


def test_learning_rates_scale_shares_and_freeze_them():
    options = {"lr_scale": {"Dense_0/*": 3.0}, "trainable": {"Dense_1/bias": False}}
    shares = infnet_flax.kernel_fn(Function(plain), X1)(X1, X2, "ntk_by_param")
    found = infnet_flax.kernel_fn(Function(plain), X1, **options)(X1, X2, "ntk_by_param")
    np.testing.assert_allclose(found["Dense_0"]["kernel"], 3 * shares["Dense_0"]["kernel"], rtol=1e-12)
    np.testing.assert_allclose(found["Dense_1"]["kernel"], shares["Dense_1"]["kernel"], rtol=1e-12)
    assert not found["Dense_1"]["bias"].any()


def test_shares_of_the_diagonal_under_transformations_and_in_float32():
    x = np.float32(X1)
    with jax.enable_x64(False):
        for precision in ("default", "highest"):
            kernel_fn = infnet_flax.kernel_fn(Function(plain), x, precision=precision)
            shares = kernel_fn.diag(x, "ntk_by_param")
            np.testing.assert_allclose(sum(jax.tree.leaves(shares)), kernel_fn.diag(x, "ntk"), rtol=1e-5)
            assert shares["Dense_0"]["kernel"].dtype == jnp.float32
    kernel_fn = infnet_flax.kernel_fn(Function(plain), X1)

    def last(x):
        return kernel_fn(x, X2, "ntk_by_param")["Dense_1"]["kernel"]

    # The share of the last layer's weights is the NNGP of what is below, in this parameterization times the width.
    np.testing.assert_allclose(jax.jit(last)(X1), last(X1), rtol=1e-12)
    for own, x in zip(jax.vmap(last)(np.stack([X1, 2 * X1])), (X1, 2 * X1), strict=True):
        np.testing.assert_allclose(own, last(x), rtol=1e-12)
    direction = np.ones_like(X1)
    _, slope = jax.jvp(last, (X1,), (direction,))
    step = 1e-6
    np.testing.assert_allclose(
        slope, (last(X1 + step * direction) - last(X1 - step * direction)) / (2 * step), rtol=1e-6
    )


def test_wrong_names_are_refused():
    kernel_fn = infnet_flax.kernel_fn(Function(plain), X1)
    for get in ("ntk_by_layer", ("ntk_by_param", "ntk_by_param"), ()):
        with pytest.raises(InputError, match="ntk_by_param"):
            kernel_fn(X1, get=get)
