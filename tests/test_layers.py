"""infnet's own layers as functions: against those of linen and Haiku, recursions in numpy, and what they refuse."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_zoo import OPERATIONS, RESIZES, Flax
from structures_zoo import IMAGE
from structures_zoo import OPERATIONS as WRITTEN_OPERATIONS
from structures_zoo import RESIZES as WRITTEN_RESIZES

import infnet_flax
import infnet_haiku
from infnet import functional
from infnet.errors import InputError

RANDOM = np.random.RandomState(0)
X = RANDOM.standard_normal((2, *IMAGE))
TIMES = RANDOM.standard_normal((2, 6, 3))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def of_the_same_weights(ours, theirs, x):
    """Both modules with parameters drawn for ours."""
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    params = jax.tree.map(lambda s: RANDOM.standard_normal(s.shape), shapes)
    assert jax.tree.structure(shapes) == jax.tree.structure(jax.eval_shape(theirs.init, jax.random.key(0), x))
    return ours.apply(params, x), theirs.apply(params, x)


STANDARD = {"parameterization": "standard"}
LINEN = {
    "dense": (infnet_flax.Dense(4, **STANDARD), nn.Dense(4), X),
    "no_bias": (infnet_flax.Dense(4, False, **STANDARD), nn.Dense(4, use_bias=False), X),
    "conv": (infnet_flax.Conv(4, (3, 2), (2, 1), **STANDARD), nn.Conv(4, (3, 2), (2, 1)), X),
    "conv_dilated": (
        infnet_flax.Conv(4, (2, 2), 1, "VALID", (2, 1), **STANDARD),
        nn.Conv(4, (2, 2), 1, "VALID", kernel_dilation=(2, 1)),
        X,
    ),
    "conv_circular": (infnet_flax.Conv(4, 3, 1, "CIRCULAR", **STANDARD), nn.Conv(4, 3, 1, "CIRCULAR"), TIMES),
    "conv_pads": (infnet_flax.Conv(4, (3,), 2, [(2, 0)], **STANDARD), nn.Conv(4, (3,), 2, [(2, 0)]), TIMES),
    "local": (infnet_flax.ConvLocal(4, (3, 2), (2, 1), **STANDARD), nn.ConvLocal(4, (3, 2), (2, 1)), X),
    "transposed": (infnet_flax.ConvTranspose(4, (3, 2), (2, 1), **STANDARD), nn.ConvTranspose(4, (3, 2), (2, 1)), X),
    "transposed_circular": (
        infnet_flax.ConvTranspose(4, (5, 2), (2, 1), "CIRCULAR", **STANDARD),
        nn.ConvTranspose(4, (5, 2), (2, 1), "CIRCULAR"),
        X,
    ),
    "layer_norm": (
        infnet_flax.LayerNorm(0.1, use_bias=True, use_scale=True, reduction_axes=(1, -1)),
        nn.LayerNorm(0.1, reduction_axes=(1, -1), use_fast_variance=False),
        X,
    ),
}


@pytest.mark.parametrize("name", LINEN)
def test_as_linen(name):
    assert_close(*of_the_same_weights(*LINEN[name]))


def transforms(*makes):
    return (hk.without_apply_rng(hk.transform(lambda x, make=make: make()(x))) for make in makes)


HAIKU = {
    "linear": (lambda: infnet_haiku.Linear(4, **STANDARD), lambda: hk.Linear(4), X),
    "conv1_d": (lambda: infnet_haiku.Conv1D(4, 3, 2, **STANDARD), lambda: hk.Conv1D(4, 3, 2), TIMES),
    "conv2_d": (
        lambda: infnet_haiku.Conv2D(4, 2, 1, (2, 1), "VALID", **STANDARD),
        lambda: hk.Conv2D(4, 2, 1, (2, 1), "VALID"),
        X,
    ),
    "conv3_d": (lambda: infnet_haiku.Conv3D(4, 2, **STANDARD), lambda: hk.Conv3D(4, 2), X[..., None]),
    "conv2_d_transpose": (
        lambda: infnet_haiku.Conv2DTranspose(4, (3, 2), (2, 1), **STANDARD),
        lambda: hk.Conv2DTranspose(4, (3, 2), (2, 1)),
        X,
    ),
    "layer_norm": (
        lambda: infnet_haiku.LayerNorm(-1, True, True, 0.1),
        lambda: hk.LayerNorm(-1, True, True, 0.1),
        X,
    ),
}


@pytest.mark.parametrize("name", HAIKU)
def test_as_haiku(name):
    ours, theirs, x = HAIKU[name]
    assert_close(*of_the_same_weights(*transforms(ours, theirs), x))


@pytest.mark.parametrize("name", [*OPERATIONS, *RESIZES])
def test_operations_are_what_users_write(name):
    written = {**WRITTEN_OPERATIONS, **WRITTEN_RESIZES}[name]
    assert_close({**OPERATIONS, **RESIZES}[name](Flax("ntk"))(X), written(jnp.asarray(X)))


@pytest.mark.parametrize("mechanism", ["SOFTMAX", "IDENTITY", "RELU", "ABS"])
@pytest.mark.parametrize("linear_scaling", [True, False])
def test_attention_by_hand(mechanism, linear_scaling):
    layer = infnet_flax.GlobalSelfAttention(
        4, 5, 6, 2, linear_scaling, mechanism, param_dtype=float, key_std=2.0, query_std=0.5, out_std=3.0, b_std=0.7
    )
    shapes = jax.eval_shape(layer.init, jax.random.key(0), TIMES)["params"]
    params = jax.tree.map(lambda s: RANDOM.standard_normal(s.shape), shapes)
    mask = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]], bool)
    y = layer.apply({"params": params}, TIMES, mask)
    expected = 0.7 * params["bias"] + np.zeros((2, 6, 4))
    for n, h in np.ndindex(2, 2):
        x = np.where(mask[n][:, None], TIMES[n], 0)
        keys, values = (x @ params[name][:, h] / 3**0.5 for name in ("key", "value"))
        queries = keys if linear_scaling else x @ params["query"][:, h] / 3**0.5
        scores = queries @ keys.T / (5 if linear_scaling else 5**0.5)
        scores = np.where(mask[n], scores, -np.inf if mechanism == "SOFTMAX" else 0)
        weights = {"IDENTITY": scores, "RELU": np.maximum(scores, 0), "ABS": abs(scores)}.get(mechanism)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) if weights is None else weights
        expected[n] += 3 * weights @ values @ params["out"][h] / 12**0.5
    assert_close(y, expected)


@pytest.mark.parametrize("axes", [(1,), (2,), (2, 1)])
def test_edges_are_a_pattern(axes):
    """A list of edges, some of them twice and some left out, is the matrix that counts them."""
    sizes = [X.shape[axis] for axis in axes]
    edges = np.stack([RANDOM.randint(-1, size, (2, 9, 2)) for size in sizes], 2)
    edges[:, 1] = edges[:, 0]
    pattern = np.zeros((2, *sizes, *sizes))
    for n, e in np.ndindex(2, 9):
        if (edges[n, e] >= 0).all():
            pattern[(n, *edges[n, e, :, 0], *edges[n, e, :, 1])] += 1
    dense = functional.aggregate(X, pattern, aggregate_axis=axes)
    sparse = functional.aggregate(jnp.asarray(X), edges, aggregate_axis=axes, implementation="SPARSE")
    assert_close(sparse, dense)
    assert np.abs(dense).max() > 0.1
    if len(axes) == 1:
        flat = edges[:, :, 0]
        assert_close(functional.aggregate(X, flat, aggregate_axis=axes, implementation="SPARSE"), dense)
    else:
        assert_close(dense, np.einsum("nhwc,nwhkl->nlkc", X, pattern))


def test_masks():
    x = np.array([[[1.0, 2.0], [9.0, 9.0], [9.0, 3.0]]])
    zeroed, mask = functional.mask_constant(x, 9.0)
    np.testing.assert_array_equal(zeroed, [[[1, 2], [0, 0], [0, 3]]])
    np.testing.assert_array_equal(mask, [[True, False, True]])
    missing, at_nan = functional.mask_constant(np.where(x == 9, np.nan, x), np.nan)
    np.testing.assert_array_equal(missing, zeroed)
    np.testing.assert_array_equal(at_nan, mask)
    assert_close(functional.global_avg_pool(zeroed, mask=mask), [[0.5, 2.5]])
    assert_close(functional.global_avg_pool(jnp.asarray(x), mask=jnp.zeros_like(mask)), [[0, 0]])
    normed = functional.layer_norm(jnp.asarray(x), axes=(1, 2), epsilon=0.0, mask=np.array([[True, False, True]]))
    there = np.array([1, 2, 9, 3.0])
    assert_close(normed[0, [0, 2]].ravel(), (there - there.mean()) / there.std())
    with pytest.raises(InputError, match="the mask of inputs"):
        functional.where_present(jnp.asarray(x), mask[..., None])


def test_outputs_are_there_if_the_centres_of_their_windows_are():
    mask = np.arange(7)[None] % 3 > 0  # 0110110
    np.testing.assert_array_equal(functional.window_mask(mask, 3), mask)
    np.testing.assert_array_equal(functional.window_mask(mask, 3, 2), mask[:, ::2])
    np.testing.assert_array_equal(functional.window_mask(mask, 3, 1, "VALID"), mask[:, 1:-1])
    assert functional.window_mask(np.ones((1, 5, 4), bool), (3, 2), (2, 1), "SAME").shape == (1, 3, 4)


def test_circular_convolutions_wrap_around():
    w, x = RANDOM.standard_normal((3, 3, 2)), TIMES
    expected = np.stack(
        [sum(x[:, (2 * i + d) % 6] @ w[d] for d in range(3)) for i in range(3)], 1
    )  # with strides the windows begin where those of SAME do
    assert_close(functional.conv(jnp.asarray(x), w, strides=2, padding="CIRCULAR"), expected)


def test_dropout():
    x = jnp.ones((4, 500, 2))
    layer = infnet_flax.Dropout(0.3, broadcast_dims=(2,))
    y = layer.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y) != 0
    assert_close(np.asarray(y)[kept], 1 / 0.7)
    assert abs(kept.mean() - 0.7) < 0.05
    np.testing.assert_array_equal(kept[..., 0], kept[..., 1])
    np.testing.assert_array_equal(layer.apply({}, x, deterministic=True), x)
    haiku = hk.transform(lambda x, is_training: infnet_haiku.Dropout(0.3)(x, is_training))
    assert abs((np.asarray(haiku.apply({}, jax.random.key(1), x, True)) != 0).mean() - 0.7) < 0.05
    np.testing.assert_array_equal(haiku.apply({}, None, x, False), x)


def test_parameters_are_promoted():
    x = jnp.ones((2, 3), jnp.float32)
    layer = infnet_flax.Dense(4, b_std=0.5, dtype=jnp.bfloat16)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(layer.apply, variables, x).dtype == jnp.bfloat16
    net = hk.transform(lambda x: infnet_haiku.Linear(4, b_std=0.5)(x))
    params = jax.eval_shape(net.init, jax.random.key(0), x.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_weights_have_the_variance_that_is_asked_for(parameterization):
    layer = infnet_flax.Conv(4000, (3,), w_std=1.5, b_std=0.2, parameterization=parameterization)
    variables = layer.init(jax.random.key(0), TIMES)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    stds = (1.0, 1.0) if parameterization == "ntk" else (1.5 / 3, 0.2)
    np.testing.assert_allclose((kernel.std(), bias.std()), stds, rtol=0.05)
    y = layer.apply(variables, TIMES)
    centre = (TIMES[:, :3].reshape(2, -1) ** 2).mean(-1) * 1.5**2 + 0.2**2
    np.testing.assert_allclose(y[:, 1].var(-1), centre, rtol=0.1)


REFUSED = {
    "parameterization": (lambda: infnet_flax.Dense(4, parameterization="NTK"), "'ntk' or 'standard'"),
    "negative w_std": (lambda: infnet_flax.Dense(4, w_std=-1.0), "standard deviation"),
    "negative b_std": (lambda: infnet_flax.Dense(4, b_std=-1.0), "standard deviation"),
    "NaN": (lambda: infnet_flax.Dense(4, w_std=np.nan), "standard deviation"),
    "no channels": (lambda: infnet_flax.Dense(0), "integers > 0"),
    "no integer": (lambda: infnet_flax.Dense(2.5), "integers > 0"),
    "window of too many axes": (lambda: infnet_flax.Conv(4, (3, 3, 3)), "window of 3 axes"),
    "no window": (lambda: infnet_flax.Conv(4, None), "the window"),
    "empty window": (lambda: infnet_flax.Conv(4, (3, 0)), "integer > 0"),
    "window beyond": (lambda: infnet_flax.Conv(4, (6, 2), padding="VALID"), "does not fit"),
    "strides": (lambda: infnet_flax.Conv(4, (3, 3), (1, 1, 1)), "strides must be"),
    "padding": (lambda: infnet_flax.Conv(4, (3, 3), padding="REFLECT"), "padding must be"),
    "pads": (lambda: infnet_flax.Conv(4, (3, 3), padding=[(1, 2, 3), 1]), "padding must be"),
    "local": (lambda: infnet_flax.ConvLocal(4, (3, 3, 3)), "the window|window must be"),
    "pads of transposed": (lambda: infnet_flax.ConvTranspose(4, (3, 3), padding=1), "transposed convolution"),
    "padding of transposed": (lambda: infnet_flax.ConvTranspose(4, (3, 3), padding="FULL"), "padding must be"),
    "pool": (lambda: infnet_flax.AvgPool((7, 7)), "does not fit"),
    "mechanism": (lambda: infnet_flax.GlobalSelfAttention(4, 4, 4, mechanism="softmax"), "attention mechanism"),
    "positions": (lambda: infnet_flax.GlobalSelfAttention(4, 4, 4, position_embedding="ADD"), "position embedding"),
    "position features": (
        lambda: infnet_flax.GlobalSelfAttention(4, 4, 4, position_embedding="SUM", position_features=3),
        "position_features",
    ),
    "negative deviation of keys": (
        lambda: infnet_flax.GlobalSelfAttention(4, 4, 4, key_std=-1.0),
        "standard deviation",
    ),
    "decay": (
        lambda: infnet_flax.GlobalSelfAttention(4, 4, 4, position_embedding="SUM", position_decay=lambda d: d),
        "positive definite",
    ),
    "implementation": (lambda: infnet_flax.Aggregate(implementation="dense"), "implementation must be"),
    "aggregate_axis": (lambda: infnet_flax.Aggregate((1, -1)), "aggregate_axis"),
    "index of an example": (lambda: infnet_flax.Index((0, 1)), "picks one example"),
    "index by an array": (lambda: infnet_flax.Index((slice(None), np.arange(2))), "slices, integers"),
    "two constants": (lambda: infnet_flax.DotGeneral(lhs=1.0, rhs=2.0), "one constant"),
    "resized channels": (lambda: infnet_flax.ImageResize((-1, 4, 4, 5), "linear"), "only positions"),
    "resized rank": (lambda: infnet_flax.ImageResize((4, 4), "linear"), "for each axis"),
    "norm over examples": (lambda: infnet_flax.LayerNorm(reduction_axes=(0, 1)), "axes of one example"),
    "epsilon": (lambda: infnet_flax.LayerNorm(-1.0), "epsilon"),
    "rate": (lambda: infnet_flax.Dropout(1.0, deterministic=True), "in \\[0, 1\\)"),
    "degree": (lambda: infnet_flax.Monomial(-1), "degree"),
    "degree of Hermite": (lambda: infnet_flax.Hermite(1.5), "degree"),
    "no coefficients": (lambda: infnet_flax.Polynomial([]), "one coefficient"),
    "gamma": (lambda: infnet_flax.ExpNormalized(-1.0), "gamma"),
    "gamma of Rbf": (lambda: infnet_flax.Rbf(-1.0), "gamma"),
    "function": (lambda: infnet_flax.Elementwise(3), "fn must be a function"),
    "derivative alone": (lambda: infnet_flax.Elementwise(jnp.tanh, d_nngp_fn=jnp.add), "give that too"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda x: make().init_with_output(jax.random.key(0), x), X)


def test_shapes_that_do_not_fit():
    for wrong, message in (
        (lambda: functional.dense(X, np.ones((3, 4))), "the weights are for 3 channels"),
        (lambda: functional.aggregate(X, np.ones((2, 5, 5)), aggregate_axis=2), "must have shape"),
        (lambda: functional.aggregate(X, np.ones((2, 5, 3), int), implementation="SPARSE"), "edges of 2 graphs"),
        (lambda: functional.aggregate(X, np.ones((2, 7, 2, 2)), implementation="SPARSE"), "are integers"),
        (lambda: functional.with_positions(X, np.ones((4, 4, 2)), "SUM"), "do not fit"),
        (lambda: functional.with_positions(X, np.ones((5, 4, 2)), "NONE"), "'SUM' or 'CONCAT'"),
        (lambda: functional.sum_pool(X[:, 0, 0], 2), "a pool needs"),
        (lambda: functional.channels(1.0), "not a single number"),
        (lambda: functional.Attention(4, 4, 4).weights((2, 3)), "attention needs"),
        (lambda: functional.conv(X, np.ones((3, 3, 3, 4))), "the weights are for 3 channels"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
