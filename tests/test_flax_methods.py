"""What annotated linen modules have besides the kernel of their limit: the tools of finite networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import infnet_flax
from infnet.errors import InputError

X, Y = (np.random.RandomState(seed).standard_normal((n, 5)) for seed, n in ((0, 3), (1, 2)))


class MLP(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(self.width)(x)))


class Product(nn.Module):
    """Of degree 2 in its parameters, with two inputs."""

    @nn.compact
    def __call__(self, x, y):
        return nn.Dense(2, use_bias=False)(nn.Dense(4)(x) + y)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))

    def features(self, x):
        return self(x) ** 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def made(model, *inputs, **kwargs):
    """An annotated model, and parameters of it."""
    model = infnet_flax.annotate(model)
    variables = model.init(jax.random.key(0), *inputs, **kwargs)
    return model, jax.tree.map(lambda x: x.astype(jnp.float64), variables)


def dense_ntk(f, params, x1, x2):
    """The definition: (n1, n2, outputs, outputs)."""
    one, two = (jax.tree.leaves(jax.jacobian(f)(params, x)) for x in (x1, x2))
    flat = [[j.reshape(*j.shape[:2], -1) for j in js] for js in (one, two)]
    return sum(jnp.einsum("iap,jbp->ijab", a, b) for a, b in zip(*flat, strict=True))


def test_empirical_kernels_are_their_definition():
    model, variables = made(MLP(), X)
    found = model.empirical_kernel(variables, X, Y)
    expected = dense_ntk(lambda p, x: model.apply({"params": p}, x), variables["params"], X, Y)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-10)
    outputs = [model.apply(variables, x) for x in (X, Y)]
    np.testing.assert_allclose(found.nngp, jnp.einsum("ia,jb->ijab", *outputs), rtol=1e-10)
    traced = model.empirical_kernel(variables, X, get="ntk", trace_axes=(-1,))
    own = dense_ntk(lambda p, x: model.apply({"params": p}, x), variables["params"], X, X)
    np.testing.assert_allclose(traced, jnp.einsum("ijaa->ij", own) / 2, rtol=1e-10)
    last = model.empirical_kernel(
        variables, X, get="ntk", trace_axes=(-1,), trainable={"*": False, "Dense_0/bias": True}
    )
    np.testing.assert_allclose(last, np.ones((3, 3)), rtol=1e-10)


def test_empirical_kernels_of_state_methods_and_keys():
    model, variables = made(Normed(), X)
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    variables = {**variables, "batch_stats": stats}

    def features(params, x):
        return model.apply({**variables, "params": params}, x) ** 2

    found = model.empirical_kernel(variables, X, Y, "ntk", call_kwargs={"method": "features"})
    np.testing.assert_allclose(found, dense_ntk(features, variables["params"], X, Y), rtol=1e-10)

    training = {"train": True, "rngs": {"dropout": jax.random.key(1)}}

    def in_training(params, x):
        return model.apply({**variables, "params": params}, x, **training, mutable=["batch_stats"])[0]

    found = model.empirical_kernel(variables, X, None, "ntk", call_kwargs=training)
    np.testing.assert_allclose(found, dense_ntk(in_training, variables["params"], X, X), rtol=1e-10)


def test_empirical_kernels_of_several_inputs():
    model, variables = made(Product(), X, X[:, :4])
    found = model.empirical_kernel(variables, (X, X[:, :4]), (Y, Y[:, :4]), "ntk")
    expected = dense_ntk(lambda p, x: model.apply({"params": p}, x, x[:, :4]), variables["params"], X, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def moved(variables, size=0.3):
    key = jax.random.key(7)
    params = jax.tree.map(lambda x: x + size * jax.random.normal(key, x.shape, x.dtype), variables["params"])
    return {**variables, "params": params}


def test_linearized_models_take_what_apply_takes():
    model, variables = made(Normed(), X)
    linearized, other = model.linearize(variables), moved(variables)
    np.testing.assert_allclose(linearized(variables, X), model.apply(variables, X), rtol=1e-12)

    def f(params):
        return model.apply({**variables, "params": params}, X)

    step = jax.tree.map(jnp.subtract, other["params"], variables["params"])
    value, slope = jax.jvp(f, (variables["params"],), (step,))
    np.testing.assert_allclose(linearized(other, X), value + slope, rtol=1e-12)
    outputs, updates = linearized(
        variables, X, train=True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
    )
    assert outputs.shape == (3, 2)
    assert jax.tree.structure(updates) == jax.tree.structure({"batch_stats": variables["batch_stats"]})
    gradient = jax.jit(jax.grad(lambda v: linearized(v, X).sum()))(other)["params"]
    expected = jax.grad(lambda p: f(p).sum())(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), gradient, expected)


def test_a_taylor_polynomial_of_a_polynomial_is_itself():
    model, variables = made(Product(), X, X[:, :4])
    other = moved(variables)
    expected = model.apply(other, X, X[:, :4])
    np.testing.assert_allclose(model.taylor_expand(variables, 2)(other, X, X[:, :4]), expected, rtol=1e-10)
    first = model.taylor_expand(variables, 1)(other, X, X[:, :4])
    assert not np.allclose(first, expected)
    np.testing.assert_allclose(first, model.linearize(variables)(other, X, X[:, :4]), rtol=1e-12)


def test_monte_carlo_kernels_are_those_of_the_limit():
    model = infnet_flax.annotate(nn.Sequential([nn.Dense(256, param_dtype=jnp.float64), nn.relu, nn.Dense(8)]))
    found = model.monte_carlo_kernel(jax.random.key(0), X, Y, n_samples=200)
    limit = model.kernel(X, Y)
    for name in ("nngp", "ntk"):
        estimate = getattr(found, name)
        assert estimate.n_samples == 200
        z = (estimate.mean - getattr(limit, name)) / estimate.standard_error
        assert np.abs(z).max() < 4.5, name
        assert (estimate.standard_error < 0.05 * np.abs(limit.ntk)).all()
    running = list(model.monte_carlo_kernel(jax.random.key(0), X, n_samples=[5, 10], get="nngp"))
    assert [estimate.n_samples for estimate in running] == [5, 10]


def test_monte_carlo_kernels_have_the_state_of_the_limit():
    """Running statistics are 0 and 1, or those given: then all is four times as small here."""
    model = infnet_flax.annotate(Normed(parent=None))
    variables = model.init(jax.random.key(0), X)
    four = jax.tree.map(lambda x: jnp.zeros_like(x) if not x.any() else 4 * x, variables["batch_stats"])
    key = jax.random.key(3)
    one, two = (
        model.monte_carlo_kernel(key, X, n_samples=10, get="nngp", variables=state).mean
        for state in (None, {"batch_stats": four})
    )
    np.testing.assert_allclose(one, 4 * two, rtol=1e-4)


def test_monte_carlo_kernels_are_compiled_once():
    """For all keys and numbers of networks; options are those of the functions that they go to."""
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(x)
            return nn.Dense(3)(x)

    model = infnet_flax.annotate(Counted())
    options = {"get": "nngp", "implementation": "jacobian_contraction"}
    whole = model.monte_carlo_kernel(jax.random.key(0), X, Y, **options)
    assert whole.n_samples == 100
    traced = len(calls)
    other = model.monte_carlo_kernel(jax.random.key(1), X, Y, 10, **options)
    assert len(calls) == traced
    assert not np.allclose(whole.mean, other.mean)
    tiled = model.monte_carlo_kernel(jax.random.key(1), X, Y, 10, batch_size=2, **options)
    np.testing.assert_allclose(tiled.mean, other.mean, rtol=1e-6)
    found = model.monte_carlo_kernel(jax.random.key(1), X, Y, target_error=0.2, **options)
    assert found.target_reached
    assert found.relative_error < 0.2


def test_variables_are_what_init_returns():
    model, variables = made(MLP(), X)
    for use in (
        lambda v: model.linearize(v),
        lambda v: model.taylor_expand(v, 2),
        lambda v: model.empirical_kernel(v, X),
        lambda v: model.linearize(variables)(v, X),
    ):
        with pytest.raises(InputError, match="what `init` returns"):
            use(variables["params"])
    with pytest.raises(InputError, match="degree"):
        model.taylor_expand(variables, -1)
