"""stax: agreement with Neural Tangents 0.6.5, whose networks are built again by the scripts that froze its figures."""

import importlib
import inspect
import pickle
import re
import sys
import types
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax as example_stax
from test_neural_tangents import REFERENCES

import infnet
from infnet import stax
from infnet.errors import InputError, UnsupportedError

SCRIPTS = {"make_neural_tangents": "neural_tangents.npz", "make_neural_tangents_structures": "structures_nt.npz"}
RUNS = {
    "ntk": {
        "make_neural_tangents": ["conv_local", "residual_mlp"],
        "make_neural_tangents_structures": [
            "aggregate_edges",
            "conv_over_time",
            "dot_general_batched",
            "dropout_behind_relu",
            "layer_norm_dense",
            "masked_attention",
            "masked_conv",
            "product",
            "resize_nearest",
            "root_positions_beside",
        ],
    },
    "standard": {
        "make_neural_tangents": ["concatenated", "mlp_no_bias"],
        "make_neural_tangents_structures": ["flatten_batch_last", "positions_in_scores_only"],
    },
}
CASES = [(p, script, name) for p, scripts in RUNS.items() for script, names in scripts.items() for name in names]
TABLE = """
Dense Conv ConvLocal ConvTranspose GlobalSelfAttention Aggregate AvgPool SumPool GlobalAvgPool GlobalSumPool Flatten
Identity Index DotGeneral ImageResize Dropout LayerNorm ABRelu Abs Cos Elementwise ElementwiseNumerical Erf Exp
ExpNormalized Gabor Gaussian Gelu Hermite LeakyRelu Monomial Polynomial Rbf RectifiedMonomial Relu Sigmoid_like Sign
Sin FanOut FanInSum FanInProd FanInConcat serial parallel repeat
"""
X = np.random.RandomState(0).standard_normal((5, 4))
KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def scripts():
    """The scripts, with infnet's stax in the place of Neural Tangents'."""
    stand_in, before = types.ModuleType("neural_tangents"), jax.config.read("jax_enable_x64")
    stand_in.stax = stax
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REFERENCES)
        patch.setitem(sys.modules, "neural_tangents", stand_in)
        modules = {name: importlib.import_module(name) for name in SCRIPTS}
        for name in (*SCRIPTS, "inputs"):
            patch.delitem(sys.modules, name)
    jax.config.update("jax_enable_x64", before)
    return modules


@cache
def references(script):
    with np.load(REFERENCES / SCRIPTS[script]) as file:
        return dict(file)


@pytest.mark.parametrize(("parameterization", "script", "name"), CASES)
def test_agrees_with_neural_tangents_to_nine_digits(parameterization, script, name, scripts):
    first, module = scripts["make_neural_tangents"], scripts[script]
    if module is first:
        network, examples = first.with_examples(*first.networks(parameterization, 1)[name])
    else:
        network, examples = module.networks(parameterization)[name]
    x1, x2, options = examples["x1x2"]
    kernel = network.kernel_fn(x1, x2, ("nngp", "ntk"), **options)
    for moment in ("nngp", "ntk"):
        reference = references(script)[f"{name}/{parameterization}/{moment}/x1x2"]
        np.testing.assert_allclose(getattr(kernel, moment), reference, rtol=1e-9)


def test_every_layer_of_the_table_is_there():
    assert all(callable(getattr(stax, name)) for name in TABLE.split())


# Networks of finite width


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (stax.Dense(3, b_std=0.1), (-1, 4), (-1, 3)),
        (stax.Dense(3, batch_axis=1, channel_axis=0), (4, -1), (3, -1)),
        (stax.Conv(3, (3, 2), (2, 1)), (-1, 8, 5, 2), (-1, 3, 4, 3)),
        (stax.ConvLocal(3, (3,), b_std=1.0), (-1, 8, 2), (-1, 6, 3)),
        (stax.ConvTranspose(3, (3,), (2,), "SAME"), (2, 8, 2), (2, 16, 3)),
        (stax.serial(stax.Relu(), stax.AvgPool((2,)), stax.Flatten()), (-1, 4, 2), (-1, 6)),
        (stax.serial(stax.Index(stax.Slice[:, 1:3]), stax.GlobalAvgPool()), (-1, 4, 2), (-1, 2)),
        (stax.GlobalSelfAttention(6, 2, 3, 2, pos_emb_type="CONCAT", b_std=0.1), (-1, 4, 2), (-1, 4, 6)),
        (stax.serial(stax.FanOut(2), stax.parallel(stax.Dense(3), stax.Identity())), (-1, 2), [(-1, 3), (-1, 2)]),
        (stax.serial(stax.FanOut(3), stax.FanInConcat(1)), (-1, 2, 5), (-1, 6, 5)),
        (stax.serial(stax.repeat(stax.Dense(3), 2), stax.Dropout(0.5), stax.Aggregate()), (-1, 4, 2), (-1, 4, 3)),
        (stax.serial(), (-1, 2), (-1, 2)),
    ],
)
def test_init_knows_the_shape_of_the_outputs(network, shape, expected):
    found, params = network.init_fn(KEY, shape)
    assert found == expected
    x = jnp.ones([5 if size == -1 else size for size in shape])
    y = jax.jit(network.apply_fn)(params, x, rng=KEY)
    shapes = jax.tree.map(lambda s: tuple(5 if n == -1 else n for n in s), expected, is_leaf=stax.layer.is_shape)
    assert jax.tree.map(jnp.shape, y) == shapes


@pytest.mark.parametrize(("parameterization", "of_weights"), [("ntk", 1.5**2 / 4), ("standard", 1.0)])
def test_one_layer_has_the_same_ntk_at_any_width(parameterization, of_weights):
    """NTK `of_weights x.x' + db` with db = b_std^2 or 1, by the Jacobian of what init_fn returns."""
    network = stax.Dense(3, 1.5, 0.5, parameterization=parameterization)
    _, params = network.init_fn(KEY, X.shape)
    jacobian = jax.jacobian(network.apply_fn)(params, X)
    leaves = [j[:, 0].reshape(5, -1) for j in jax.tree.leaves(jacobian)]
    finite = sum(j @ j.T for j in leaves)
    np.testing.assert_allclose(network.kernel_fn(X, get="ntk"), finite, rtol=1e-12)
    of_bias = 0.25 if parameterization == "ntk" else 1.0
    np.testing.assert_allclose(finite, of_weights * X @ X.T + of_bias, rtol=1e-12)


def test_parameters_have_the_laws_of_their_parameterization():
    stds = {"ntk": (1.0, 1.0), "standard": (1.5 / 2, 0.5)}
    for parameterization, expected in stds.items():
        _, (params,) = stax.serial(stax.Dense(4000, 1.5, 0.5, parameterization=parameterization)).init_fn(KEY, X.shape)
        assert (params.W.shape, params.b.shape) == ((4, 4000), (4000,))
        np.testing.assert_allclose([params.W.std(), params.b.std()], expected, rtol=0.05)
    params = stax.Dense(3).init_fn(KEY, X.shape)[1]
    assert params.b is None
    assert (pickle.loads(pickle.dumps(params)).W == params.W).all()


def test_dropout_keeps_its_rate():
    x = jnp.ones((100, 200))
    y = stax.Dropout(0.8).apply_fn((), x, rng=KEY)
    np.testing.assert_allclose([(y > 0).mean(), y.max()], [0.8, 1.25], rtol=0.02)
    assert (stax.Dropout(0.8, mode="test").apply_fn((), x) == x).all()


@pytest.mark.parametrize("pool", [stax.GlobalAvgPool(), stax.serial(stax.LayerNorm((1, 2)), stax.GlobalSumPool())])
def test_what_is_masked_is_not_there(pool):
    branches = stax.parallel(stax.Dense(8, b_std=1.0), stax.Conv(8, (3,), padding="SAME", b_std=1.0))
    network = stax.serial(stax.FanOut(2), branches, stax.FanInSum(), stax.Relu(), pool, stax.Dense(2))
    x = np.random.RandomState(1).standard_normal((2, 4, 3))
    _, params = network.init_fn(KEY, x.shape)
    padded = np.concatenate([x, np.full((2, 2, 3), 7.0)], 1)
    y = network.apply_fn(params, padded, mask_constant=7.0)
    np.testing.assert_allclose(y, network.apply_fn(params, x), rtol=1e-12)
    assert not np.allclose(y, network.apply_fn(params, padded))


def test_masks_of_branches_are_joined():
    x = jnp.array([[[1.0, 2.0], [7.0, 7.0]], [[7.0, 7.0], [3.0, 4.0]]])
    for join, axis in ((stax.FanInConcat(1), 1), (stax.FanInConcat(-1), 2)):
        y = stax.serial(stax.FanOut(2), join, stax.Cos()).apply_fn([(), (), ()], x, mask_constant=7.0)
        expected = jnp.where(x == 7, 0, jnp.cos(x))
        np.testing.assert_allclose(y, jnp.concatenate([expected, expected], axis), rtol=1e-12)
    product = stax.serial(stax.FanOut(2), stax.FanInProd())
    np.testing.assert_allclose(product.apply_fn([(), ()], x, mask_constant=7.0), jnp.where(x == 7, 0, x**2), rtol=1e-12)


# Kernels


def test_twice_the_same_branch_has_four_times_the_kernel():
    """x + x is 2 x. (Neural Tangents takes the branches to be independent: 2 times the kernel.)"""
    one = stax.serial(stax.Dense(16), stax.Relu(), stax.Dense(16, b_std=0.1)).kernel_fn(X)
    twice = stax.serial(
        stax.Dense(16), stax.Relu(), stax.Dense(16, b_std=0.1), stax.FanOut(2), stax.FanInSum()
    ).kernel_fn(X)
    np.testing.assert_allclose(twice.nngp, 4 * one.nngp, rtol=1e-12)
    np.testing.assert_allclose(twice.ntk, 4 * one.ntk, rtol=1e-12)


def test_branches_of_different_weights_are_independent():
    branch = stax.serial(stax.Dense(16), stax.Erf(), stax.Dense(16))
    both = stax.serial(stax.FanOut(2), stax.parallel(branch, branch), stax.FanInSum()).kernel_fn(X)
    one = branch.kernel_fn(X)
    np.testing.assert_allclose(both.nngp, 2 * one.nngp, rtol=1e-12)
    np.testing.assert_allclose(both.ntk, 2 * one.ntk, rtol=1e-12)


def test_kernels_go_from_network_to_network():
    first, second = stax.Dense(32, b_std=0.2), stax.serial(stax.Relu(), stax.Dense(32, b_std=0.3))
    whole = stax.serial(first, second).kernel_fn(X, X[:2])
    composed = second.kernel_fn(first.kernel_fn(X, X[:2]))
    for name in ("nngp", "ntk", "cov1"):
        np.testing.assert_allclose(getattr(composed, name), getattr(whole, name), rtol=1e-12)


def test_every_way_to_ask_for_a_kernel():
    network = stax.serial(stax.repeat(stax.serial(stax.Dense(32), stax.Relu()), 2), stax.Dense(1))
    kernel = network.kernel_fn(X, X[:2])
    assert isinstance(kernel, infnet.Kernel)
    _, _, kernel_fn = network
    jitted = jax.jit(kernel_fn, static_argnames="get")(X, X[:2], get="ntk")
    np.testing.assert_allclose(jitted, kernel.ntk, rtol=1e-12)
    np.testing.assert_allclose(kernel_fn(X, X[:2], ("ntk", "nngp")).nngp, kernel.nngp, rtol=1e-12)
    made = kernel_fn.at(X)
    assert made is kernel_fn.at(X[:3])
    assert re.search(r"0/1/0/Dense +dense .*test_stax.py:\d+ ", str(made.explain()))


def test_layers_of_jax_itself_take_part():
    network = stax.serial(example_stax.Dense(16), example_stax.Relu, stax.Dense(1))
    kernel = network.kernel_fn(X, get="nngp")
    np.testing.assert_allclose(kernel, stax.serial(network, stax.Identity()).kernel_fn(X, get="nngp"), rtol=1e-12)
    assert kernel.shape == (5, 5)
    with pytest.raises(InputError, match=r"needs layers of infnet\.stax"):
        network.kernel_fn(X, mask_constant=0.0)


def test_several_inputs():
    network = stax.serial(stax.parallel(stax.Dense(8), stax.Dense(8)), stax.FanInSum())
    kernel = network.kernel_fn([X, X[:, :2]], get="nngp")
    np.testing.assert_allclose(kernel, X @ X.T / 4 + X[:, :2] @ X[:, :2].T / 2, rtol=1e-12)


PARTS = stax.parallel(stax.Dense(3), stax.Dense(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stax.Dense(3, s=(2, 1)), r"Dense has s=\(1, 1\) only, not \(2, 1\)"),
        (lambda: stax.Conv(3, (3, 3), dimension_numbers=("NCHW", "OIHW", "NCHW")), "as the dimension_numbers"),
        (lambda: stax.LayerNorm(1, channel_axis=1), "LayerNorm has channel_axis=-1 only"),
        (lambda: stax.Dropout(0.0), "what Dropout keeps must be in"),
        (lambda: stax.Dropout(0.5).apply_fn((), X), "needs a random key"),
        (lambda: stax.Elementwise(nngp_fn=lambda *k: k[0]), "needs the function itself"),
        (lambda: stax.ElementwiseNumerical(jnp.sin, 5, df=jnp.cos), "the derivative that jax.grad gives"),
        (lambda: stax.serial(stax.Dense(3), stax.Relu), "was it called"),
        (lambda: stax.repeat(stax.Relu(), -1), "n >= 0"),
        (lambda: stax.Dense(3).init_fn(KEY, [(-1, 3), (-1, 3)]), "Dense takes one input"),
        (lambda: stax.Dense(3, channel_axis=4).kernel_fn(X), "no axes 0 .batch. and 4"),
        (lambda: stax.Dense(3).apply_fn((X,), X), r"what init_fn returned, \(W, b\)"),
        (lambda: stax.Conv(3, (3, 3)).kernel_fn(X), "needs inputs of shape"),
        (lambda: stax.ConvTranspose(3, (3,)).kernel_fn(X[..., None], mask_constant=0.0), "takes no masks"),
        (lambda: stax.serial(stax.FanOut(2), PARTS, stax.FanInSum()).kernel_fn(X), "different shapes"),
        (lambda: stax.serial(stax.FanOut(2), stax.FanInConcat(0)).kernel_fn(X), "not the first"),
        (lambda: stax.FanInProd().apply_fn((), X), "takes a list of inputs, not one"),
        (lambda: PARTS.init_fn(KEY, [(-1, 3)]), "a list of 2 inputs, not 1"),
        (lambda: stax.FanInSum().kernel_fn([stax.Dense(3).kernel_fn(X)] * 2), "compose the networks"),
        (lambda: stax.Dense(3).kernel_fn(X, diagonal_batch=True), r"not \['diagonal_batch'\]"),
        (lambda: stax.Aggregate().kernel_fn(X, pattern=X), "pattern must be a pair"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_refusal_names_the_layer_and_the_line():
    layer = stax.Elementwise(lambda x: jax.nn.softmax(x, -1))
    line = inspect.currentframe().f_lineno - 1
    with pytest.raises(UnsupportedError, match=rf"1/Elementwise at .*test_stax.py:{line} "):
        stax.serial(stax.Dense(8), layer, stax.Relu()).kernel_fn(X)
