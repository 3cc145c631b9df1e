"""Annotation adds methods to Haiku transforms and changes nothing else. Flax is not needed here."""

import copy

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
import infnet_haiku
from infnet.errors import InputError

X = jnp.asarray(np.random.RandomState(0).randn(4, 5), jnp.float32)
KEY = jax.random.key(0)
WIDTH, STD = 64, 0.3


def mlp(x):
    return hk.nets.MLP([WIDTH, 3], w_init=hk.initializers.RandomNormal(STD))(x)


def with_dropout(x, is_training):
    h = jax.nn.relu(hk.Linear(WIDTH, w_init=hk.initializers.RandomNormal(STD))(x))
    h = hk.dropout(hk.next_rng_key(), 0.5, h) if is_training else h
    return hk.Linear(3, w_init=hk.initializers.RandomNormal(STD))(h)


def with_state(x, is_training):
    h = hk.Linear(WIDTH, w_init=hk.initializers.RandomNormal(STD))(x)
    h = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(h, is_training)
    return hk.Linear(3, w_init=hk.initializers.RandomNormal(STD))(jax.nn.relu(h))


INFERENCE = {"init_kwargs": {"is_training": True}, "call_kwargs": {"is_training": False}}


def plain_mlp_kernel(x1, x2=None, get=None, bias_std=0.0):
    """The same network in plain JAX, its laws written down."""

    def apply(params, x):
        w1, b1, w2, b2 = params
        return jax.nn.relu(x @ w1 + b1) @ w2 + b2

    def law(std, *shape):
        return infnet.Prior(0.0, std, shape=shape, dtype=jnp.float32)

    priors = (law(STD, 5, WIDTH), law(bias_std, WIDTH), law(STD, WIDTH, 3), law(bias_std, 3))
    return infnet.kernel_fn(apply, priors, x1)(x1, x2, get)


@pytest.mark.parametrize(
    "net",
    [
        infnet_haiku.transform(mlp),
        infnet_haiku.transform(mlp, apply_rng=False),
        infnet_haiku.annotate(hk.transform(mlp)),
    ],
    ids=["transform", "without rng", "annotate"],
)
def test_a_transform_has_the_kernel_of_the_function(net):
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(net.kernel(X, X[:2], get), plain_mlp_kernel(X, X[:2], get), rtol=1e-6)
    kernel = net.kernel(X)
    assert isinstance(kernel, infnet.Kernel)
    assert isinstance(net.kernel_fn(X), infnet.KernelFn)
    shares = net.kernel(X, get="ntk_by_param")
    assert set(shares) == {"mlp/~/linear_0", "mlp/~/linear_1"}
    np.testing.assert_allclose(sum(jax.tree.leaves(shares)), kernel.ntk, rtol=1e-6)


def test_transforms_with_state():
    for net in (
        infnet_haiku.transform_with_state(with_state),
        infnet_haiku.annotate(hk.transform_with_state(with_state)),
    ):
        assert isinstance(net, hk.TransformedWithState)
        _, state = net.init(KEY, X, is_training=True)
        scaled = jax.tree.map(lambda x: 4 * jnp.ones_like(x) if x.ndim else x, state)
        standard = net.kernel(X, get="nngp", **INFERENCE)
        np.testing.assert_allclose(standard, plain_mlp_kernel(X, get="nngp"), rtol=1e-4)  # epsilon is 1e-5
        assert not np.allclose(net.kernel(X, get="nngp", state=scaled, **INFERENCE), standard, rtol=0.1)


def test_init_and_apply_are_unchanged():
    for make, ours, kwargs in (
        (hk.transform, infnet_haiku.transform, {}),
        (hk.transform_with_state, infnet_haiku.transform_with_state, {}),
    ):
        expected, found = make(mlp), ours(mlp)
        values, own = expected.init(KEY, X, **kwargs), found.init(KEY, X, **kwargs)
        assert jax.tree.structure(values) == jax.tree.structure(own)
        jax.tree.map(np.testing.assert_array_equal, values, own)
        arguments = own if make is hk.transform_with_state else (own,)
        jax.tree.map(
            np.testing.assert_array_equal, expected.apply(*arguments, None, X), found.apply(*arguments, None, X)
        )


def test_keys_are_threaded_through():
    net = infnet_haiku.transform(with_dropout)
    params = net.init(KEY, X, is_training=False)
    one, two = (net.apply(params, jax.random.key(seed), X, is_training=True) for seed in (1, 2))
    assert not np.allclose(one, two)
    training = net.kernel(X, get="nngp", rng=KEY, call_kwargs={"is_training": True})
    inference = net.kernel(X, get="nngp", call_kwargs={"is_training": False})
    off_diagonal = ~np.eye(len(X), dtype=bool)
    np.testing.assert_allclose(np.asarray(training)[off_diagonal], np.asarray(inference)[off_diagonal], rtol=1e-5)
    np.testing.assert_allclose(np.diag(training), 2 * np.diag(inference), rtol=1e-5)


def test_annotating_twice_changes_nothing():
    net = infnet_haiku.transform(mlp)
    assert infnet_haiku.annotate(net) is net
    assert infnet_haiku.annotate(hk.transform(mlp)) is not net
    assert isinstance(hk.without_apply_rng(net), hk.Transformed)
    without = infnet_haiku.annotate(hk.without_apply_rng(net))
    np.testing.assert_array_equal(without.kernel(X, get="ntk"), net.kernel(X, get="ntk"))


def test_copies():
    net = infnet_haiku.transform(mlp)
    expected = net.kernel(X, get="ntk")
    for other in (copy.copy(net), copy.deepcopy(net), net._replace(apply=net.apply), type(net)(*net)):
        assert type(other) is type(net)
        np.testing.assert_array_equal(other.kernel(X, get="ntk"), expected)
    init, apply = net
    assert (init, apply) == (net.init, net.apply)


def test_transformations():
    net = infnet_haiku.transform(mlp)
    expected = net.kernel(X, get="ntk")
    np.testing.assert_allclose(jax.jit(lambda x: net.kernel(x, get="ntk"))(X), expected, rtol=1e-6)
    stacked = jnp.stack([X, 2 * X])
    mapped = jax.vmap(lambda x: net.kernel(x, get="ntk"))(stacked)
    np.testing.assert_allclose(mapped[1], net.kernel(2 * X, get="ntk"), rtol=1e-5)

    def total(scale):
        return net.kernel(scale * X, get="nngp").sum()

    # All layers are homogeneous, and biases are zero at initialisation.
    np.testing.assert_allclose(jax.grad(total)(1.0), 2 * total(1.0), rtol=1e-4)


def test_models_compose():
    first = infnet_haiku.transform(lambda x: hk.Linear(WIDTH, w_init=hk.initializers.RandomNormal(STD))(x))
    second = infnet_haiku.transform(lambda x: hk.Linear(3, w_init=hk.initializers.RandomNormal(STD))(jax.nn.relu(x)))
    kernel = second.kernel(first.kernel(X))
    np.testing.assert_allclose(kernel.ntk, infnet_haiku.transform(mlp).kernel(X).ntk, rtol=1e-5)


def test_options_reach_the_kernel_function():
    net = infnet_haiku.transform(mlp)
    ntk = net.kernel(X, get="ntk", parameterization="ntk")
    np.testing.assert_allclose(ntk, infnet_haiku.kernel_fn(net, X, parameterization="ntk")(X, get="ntk"), rtol=1e-6)
    last = net.kernel(X, get="ntk", trainable=lambda path: "linear_1" in path)
    shares = net.kernel(X, get="ntk_by_param")["mlp/~/linear_1"]
    np.testing.assert_allclose(last, shares["w"] + shares["b"], rtol=1e-6)
    with pytest.raises(TypeError, match="unknown_option"):
        net.kernel(X, unknown_option=1)


def test_what_cannot_be_annotated_says_so():
    for wrong in (mlp, hk.Linear, (mlp, mlp)):
        with pytest.raises(InputError, match=r"hk\.transform"):
            infnet_haiku.annotate(wrong)


# The tools of finite networks.


def dense_ntk(f, params, x1, x2):
    """The definition: (n1, n2, outputs, outputs)."""
    one, two = (jax.tree.leaves(jax.jacobian(f)(params, x)) for x in (x1, x2))
    flat = [[j.reshape(*j.shape[:2], -1) for j in js] for js in (one, two)]
    return sum(jnp.einsum("iap,jbp->ijab", a, b) for a, b in zip(*flat, strict=True))


def test_empirical_kernels_are_their_definition():
    net = infnet_haiku.transform(with_dropout)
    params = net.init(KEY, X, is_training=False)
    training = {"rng": jax.random.key(1), "call_kwargs": {"is_training": True}}
    found = net.empirical_kernel(params, X, X[:2], "ntk", **training)
    expected = dense_ntk(lambda p, x: net.apply(p, jax.random.key(1), x, is_training=True), params, X, X)
    np.testing.assert_allclose(found, expected[:, :2], rtol=1e-4, atol=1e-5)
    net = infnet_haiku.transform_with_state(with_state)
    params, state = net.init(KEY, X, is_training=True)
    found = net.empirical_kernel(params, X, state=state, call_kwargs={"is_training": False})
    expected = dense_ntk(lambda p, x: net.apply(p, state, None, x, is_training=False)[0], params, X, X)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-4, atol=1e-5)


def test_linearized_transforms_take_what_apply_takes():
    for net, rest in (
        (infnet_haiku.transform(mlp), (None, X)),
        (infnet_haiku.transform(mlp, apply_rng=False), (X,)),
    ):
        params = net.init(KEY, X)
        other = jax.tree.map(lambda x: x + 0.1, params)
        linearized = net.linearize(params)
        np.testing.assert_allclose(linearized(params, *rest), net.apply(params, *rest), rtol=1e-6)
        step = jax.tree.map(jnp.subtract, other, params)
        value, slope = jax.jvp(lambda p, net=net, rest=rest: net.apply(p, *rest), (params,), (step,))
        np.testing.assert_allclose(linearized(other, *rest), value + slope, rtol=1e-5)
        np.testing.assert_allclose(net.taylor_expand(params, 1)(other, *rest), linearized(other, *rest), rtol=1e-5)
    net = infnet_haiku.transform_with_state(with_state)
    params, state = net.init(KEY, X, is_training=True)
    outputs, after = net.linearize(params)(params, state, None, X, is_training=True)
    expected, expected_after = net.apply(params, state, None, X, is_training=True)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, expected_after)


def test_monte_carlo_kernels_are_those_of_the_limit():
    net = infnet_haiku.transform(mlp)
    found, limit = net.monte_carlo_kernel(KEY, X, n_samples=400), net.kernel(X)
    for name in ("nngp", "ntk"):
        estimate = getattr(found, name)
        z = (estimate.mean - getattr(limit, name)) / estimate.standard_error
        assert np.abs(z).max() < 4.5, name
        assert (estimate.standard_error < 0.1 * np.abs(limit.ntk).max()).all()


def test_kernels_are_verified_at_growing_widths():
    def net(width):
        return infnet_haiku.transform(lambda x: hk.nets.MLP([width, 8])(x))

    x, key = np.float32(X[:2]), jax.random.key(1)
    report = net(16).verify(
        x, key, widen=lambda m: net(16 * m), multipliers=(1, 2), n_samples=200, gaussian_first_layer=True
    )
    assert report.multipliers == (1, 2)
    assert not report.deviates, str(report)
    assert net(16).verify(x, key, n_samples=200).multipliers == (1,)
