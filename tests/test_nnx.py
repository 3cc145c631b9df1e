"""Modules of Flax NNX: the kernels of the same architectures in linen, and a refusal wherever laws cannot be known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import infnet
import infnet_flax
from infnet.errors import BatchAxisError, InputError, PriorError, UnsupportedError

normal = jax.nn.initializers.variance_scaling(1.5, "fan_in", "normal")
biases = jax.nn.initializers.normal(0.3)
settings = {"kernel_init": normal, "bias_init": biases, "param_dtype": "float64"}
X = np.random.RandomState(0).randn(3, 5)
IMAGES = np.random.RandomState(1).randn(2, 4, 4, 3)
TOKENS = np.random.RandomState(2).randint(0, 7, (3, 4))


def _sequential(*layers):
    """Layers are functions of `rngs`, made in order."""
    return lambda rngs: nnx.Sequential(*[layer(rngs=rngs) if isinstance(layer, partial) else layer for layer in layers])


def _dense(inputs, outputs):
    return partial(nnx.Linear, inputs, outputs, **settings)


mlp = _sequential(_dense(5, 8), nnx.relu, _dense(8, 2))
linen_mlp = nn.Sequential([nn.Dense(8, **settings), nn.relu, nn.Dense(2, **settings)])

cnn = _sequential(
    partial(nnx.Conv, 3, 8, (3, 3), **settings),
    nnx.relu,
    partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2)).__call__,
    lambda x: x.reshape(x.shape[0], -1),
    _dense(32, 2),
)
linen_cnn = nn.Sequential(
    [
        nn.Conv(8, (3, 3), **settings),
        nn.relu,
        partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2)),
        lambda x: x.reshape(x.shape[0], -1),
        nn.Dense(2, **settings),
    ]
)

normalised = _sequential(_dense(5, 8), partial(nnx.LayerNorm, 8, param_dtype="float64"), nnx.relu, _dense(8, 2))
linen_normalised = nn.Sequential(
    [nn.Dense(8, **settings), nn.LayerNorm(param_dtype="float64"), nn.relu, nn.Dense(2, **settings)]
)

running = _sequential(
    partial(nnx.Conv, 3, 8, (3, 3), padding="VALID", **settings),
    partial(nnx.BatchNorm, 8, use_running_average=True, param_dtype="float64"),
    nnx.relu,
    lambda x: x.mean((1, 2)),
    _dense(8, 2),
)
linen_running = nn.Sequential(
    [
        nn.Conv(8, (3, 3), padding="VALID", **settings),
        nn.BatchNorm(use_running_average=True, param_dtype="float64"),
        nn.relu,
        lambda x: x.mean((1, 2)),
        nn.Dense(2, **settings),
    ]
)

embedding = {"embedding_init": jax.nn.initializers.normal(0.7), "param_dtype": "float64"}
text = _sequential(partial(nnx.Embed, 7, 6, **embedding), lambda x: x.mean(1), _dense(6, 8), nnx.relu, _dense(8, 2))
linen_text = nn.Sequential(
    [nn.Embed(7, 6, **embedding), lambda x: x.mean(1), nn.Dense(8, **settings), nn.relu, nn.Dense(2, **settings)]
)


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.first = _dense(5, 8)(rngs=rngs)
        self.blocks = nnx.List([_dense(8, 8)(rngs=rngs) for _ in range(2)])
        self.last = _dense(8, 2)(rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + 0.5 * block(nnx.relu(x))
        return self.last(x)


class LinenResidual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, **settings)(x)
        for _ in range(2):
            x = x + 0.5 * nn.Dense(8, **settings)(nn.relu(x))
        return nn.Dense(2, **settings)(x)


class Tied(nnx.Module):
    """One layer in two places of the tree, and used as both."""

    def __init__(self, rngs):
        self.first = _dense(5, 8)(rngs=rngs)
        self.middle = _dense(8, 8)(rngs=rngs)
        self.again = self.middle
        self.last = _dense(8, 2)(rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.again(nnx.relu(self.middle(nnx.relu(self.first(x)))))))


class LinenTied(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, **settings)(x))
        middle = nn.Dense(8, **settings)
        return nn.Dense(2, **settings)(nn.relu(middle(nn.relu(middle(x)))))


class Siamese(nnx.Module):
    def __init__(self, rngs):
        self.tower = _dense(5, 8)(rngs=rngs)
        self.last = _dense(8, 2)(rngs=rngs)

    def __call__(self, a, b):
        return self.last(nnx.relu(self.tower(a)) - nnx.relu(self.tower(b)))

    def tower_only(self, a, scale=1.0):
        return self.tower(a) * scale


class LinenSiamese(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        tower = nn.Dense(8, **settings)
        return nn.Dense(2, **settings)(nn.relu(tower(a)) - nn.relu(tower(b)))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        options = {"recurrent_kernel_init": normal, "dtype": "float64", **settings}
        self.rnn = nnx.RNN(nnx.SimpleCell(3, 8, activation_fn=nnx.relu, rngs=rngs, **options))
        self.last = _dense(8, 2)(rngs=rngs)

    def __call__(self, x):
        return self.last(self.rnn(x)[:, -1])


class LinenRecurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        options = {"recurrent_kernel_init": normal, **settings}
        return nn.Dense(2, **settings)(nn.RNN(nn.SimpleCell(8, activation_fn=nn.relu, **options))(x)[:, -1])


class Stacked(nnx.Module):
    """Layers made by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return _dense(8, 8)(rngs=rngs)

        self.first = _dense(5, 8)(rngs=rngs)
        self.blocks = blocks(rngs)
        self.last = _dense(8, 2)(rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return nnx.relu(block(x))

        return self.last(run(nnx.relu(self.first(x)), self.blocks))


linen_stacked = nn.Sequential(
    [f for _ in range(4) for f in (nn.Dense(8, **settings), nn.relu)] + [nn.Dense(2, **settings)]
)

SAME = {
    "mlp": (mlp, linen_mlp, X),
    "cnn": (cnn, linen_cnn, IMAGES),
    "layer norm": (normalised, linen_normalised, X),
    "batch norm": (running, linen_running, IMAGES),
    "text": (text, linen_text, TOKENS),
    "residual": (Residual, LinenResidual(), X),
    "tied": (Tied, LinenTied(), X),
    "siamese": (Siamese, LinenSiamese(), (X, X[::-1] + 0.5)),
    "recurrent": (Recurrent, LinenRecurrent(), IMAGES[:, 0, :2]),
    "stacked": (Stacked, linen_stacked, X),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", SAME)
def test_a_function_that_makes_a_module_has_the_kernel_of_the_linen_module(name, float64):
    make, linen, x = SAME[name]
    found, expected = (infnet_flax.kernel_fn(m, x)(x, get=("nngp", "ntk")) for m in (make, linen))
    for one, two in zip(found, expected, strict=True):
        # linen keeps running statistics in float32, whatever the dtype of the parameters
        # linen keeps running statistics in float32, whatever the parameters are.
        np.testing.assert_allclose(one, two, rtol=1e-7 if name == "batch norm" else 1e-12)


class Plain(nnx.Module):
    """With the initialisers that layers have by default, and a few others that are common."""

    def __init__(self, rngs, depth=1):
        self.conv = nnx.Conv(3, 8, (3, 3), kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.heads = nnx.LinearGeneral((4, 8), (2, 4), axis=(-2, -1), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(depth)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        uniform = nnx.initializers.glorot_uniform()
        self.last = nnx.Linear(8, 2, kernel_init=uniform, bias_init=nnx.initializers.normal(), rngs=rngs)

    def __call__(self, x):
        x = self.heads(nnx.relu(self.norm(self.conv(x))).mean(1))
        x = x.reshape(x.shape[0], 8)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.last(self.drop(x))


def _evaluating(make):
    def made(rngs):
        module = make(rngs)
        module.eval()
        return module

    return made


def test_a_module_has_the_kernel_of_the_function_that_makes_it():
    x = jnp.asarray(IMAGES, jnp.float32)
    with pytest.raises(PriorError, match="'last/bias'"):  # two numbers are too few
        infnet_flax.kernel_fn(Plain(nnx.Rngs(0)), x)
    priors = {"last/bias": infnet.Prior(0.0, 0.01)}
    found = infnet_flax.kernel_fn(_evaluating(Plain)(nnx.Rngs(0)), x, priors=priors)
    expected = infnet_flax.kernel_fn(_evaluating(Plain), x, priors=priors)
    assert found.hyperparameters == expected.hyperparameters
    assert set(found.hyperparameters) == {"conv", "norm", "heads", "layers", "last"}
    assert found.explain().rows == expected.explain().rows


def test_paths_are_those_of_nnx(float64):
    x = jnp.asarray(X, jnp.float32)
    frozen = infnet_flax.kernel_fn(mlp, x, trainable={"layers/2/*": True, "layers/0/*": False})(x, get="ntk")
    last = infnet_flax.kernel_fn(linen_mlp, x, trainable=lambda path: "layers_2" in path)(x, get="ntk")
    np.testing.assert_array_equal(frozen, last)
    assert 0 < frozen[0, 0] < infnet_flax.kernel_fn(mlp, x)(x, get="ntk")[0, 0]


def test_masks_and_rates_that_are_states(float64):
    params = nnx.state(mlp(nnx.Rngs(0)), nnx.Param)
    of_first = jax.tree_util.tree_map_with_path(lambda path, _: path[1].key == 0, params)
    x = jnp.asarray(X, jnp.float32)
    found = infnet_flax.kernel_fn(mlp, x, trainable=of_first)(x, get="ntk")
    expected = infnet_flax.kernel_fn(mlp, x, lr_scale={"layers": {0: 0.5, 2: 0}})(x, get="ntk")
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-6)


def test_modules_are_not_changed():
    module = Plain(nnx.Rngs(0), depth=11)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    structure = nnx.graphdef(module)
    x = jnp.asarray(IMAGES, jnp.float32)
    with pytest.raises(BatchAxisError, match=r"(?s)test_nnx.py:.*BatchNorm in training mode"):
        infnet_flax.kernel_fn(module, x, priors={"last/bias": infnet.Prior(0.0, 0.01)})
    apply, params = infnet_flax.nnx.split(module)
    np.testing.assert_array_equal(apply(params, x), apply(params, x))  # neither statistics nor dropout have moved
    assert params["layers"][10]["kernel"].shape == (8, 8)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    assert structure == nnx.graphdef(module)


def test_split_is_the_module_as_a_function(float64):
    module = Plain(nnx.Rngs(0), depth=11)
    module.eval()
    x = jnp.asarray(IMAGES, jnp.float32)
    apply, params = infnet_flax.nnx.split(module)
    np.testing.assert_array_equal(apply(params, x), module(x))
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(jax.jit(apply)(zero, x), jnp.zeros((2, 2)))
    by_name, params = infnet_flax.nnx.split(Siamese(nnx.Rngs(0)), "tower_only", {"scale": 2.0})
    assert by_name(params, jnp.asarray(X, jnp.float32)).shape == (3, 8)


def test_methods_and_their_arguments(float64):
    x = jnp.asarray(X, jnp.float32)
    by_name = infnet_flax.kernel_fn(Siamese, x, method="tower_only", call_kwargs={"scale": 2.0})(x, get="nngp")
    by_function = infnet_flax.kernel_fn(Siamese, x, method=lambda module, x: module.tower(x))(x, get="nngp")
    np.testing.assert_allclose(by_name, 4 * by_function, rtol=1e-6)
    np.testing.assert_allclose(by_function, 1.5 / 5 * X @ X.T + 0.09, rtol=1e-5)


def test_dropout_in_training_mode():
    x = jnp.asarray(X, jnp.float32)

    def make(rngs):
        return nnx.Sequential(
            nnx.Linear(5, 8, rngs=rngs), nnx.relu, nnx.Dropout(0.25, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        )

    linen = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.25, deterministic=False), nn.Dense(2)])
    for module in (make, make(nnx.Rngs(0))):
        found = infnet_flax.kernel_fn(module, x)(x, get="ntk")
        rngs = {"rngs": {"dropout": jax.random.key(0)}}
        np.testing.assert_allclose(found, infnet_flax.kernel_fn(linen, x, call_kwargs=rngs)(x, get="ntk"), rtol=1e-5)


def test_running_statistics():
    x = jnp.asarray(X, jnp.float32)

    def make(rngs):
        norm = nnx.BatchNorm(8, use_running_average=True, epsilon=0.0, rngs=rngs)
        return nnx.Sequential(nnx.Linear(5, 8, rngs=rngs), norm, nnx.relu, nnx.Linear(8, 2, rngs=rngs))

    module = make(nnx.Rngs(0))
    standard = infnet_flax.kernel_fn(make, x)(x, get="nngp")
    module.layers[1].var[...] = jnp.full(8, 4.0)
    np.testing.assert_array_equal(infnet_flax.kernel_fn(module, x)(x, get="nngp"), standard)
    by_path = {"layers": {1: {"var": jnp.full(8, 4.0)}}}
    for source, variables in ((module, nnx.state(module)), (make, nnx.state(module, nnx.BatchStat)), (module, by_path)):
        found = infnet_flax.kernel_fn(source, x, variables=variables)(x, get="nngp")
        np.testing.assert_allclose(found, standard / 4, rtol=1e-6)
    with pytest.raises(InputError, match=r"'layers/2/var'.*those of the module are \['layers/1/mean'"):
        infnet_flax.kernel_fn(module, x, variables={"layers": {2: {"var": jnp.ones(8)}}})
    with pytest.raises(InputError, match=r"'layers/1/var' has shape \(8,\), not \(\)"):
        infnet_flax.kernel_fn(module, x, variables={"layers": {1: {"var": 4.0}}})


class Buffers(nnx.Module):
    """A projection that is drawn and never trained."""

    def __init__(self, rngs):
        self.shift = nnx.Variable(jnp.full(5, 0.5))
        self.projection = nnx.Variable(jax.random.normal(rngs.params(), (5, 64)))
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.cos((x + self.shift) @ self.projection))


def test_variables_that_are_not_parameters_are_constants():
    x = jnp.asarray(X, jnp.float32)
    module = Buffers(nnx.Rngs(0))
    features = np.cos((X + 0.5) @ np.asarray(module.projection))
    expected = features @ features.T / 64
    np.testing.assert_allclose(infnet_flax.kernel_fn(module, x)(x, get="nngp"), expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"'projection' is drawn at random and is no nnx.Param"):
        infnet_flax.kernel_fn(Buffers, x)
    given = {"projection": module.projection[...]}
    np.testing.assert_allclose(infnet_flax.kernel_fn(Buffers, x, variables=given)(x, get="nngp"), expected, rtol=1e-5)


def test_what_is_no_module_says_so(float64):
    x = jnp.asarray(X, jnp.float32)
    with pytest.raises(InputError, match="a function of rngs that makes one"):
        infnet_flax.kernel_fn(lambda rngs: 3, x)
    with pytest.raises(InputError, match="an NNX module has none"):
        infnet_flax.kernel_fn(mlp, x, init_kwargs={"train": False})
    with pytest.raises(InputError, match="has no method 'encode'"):
        infnet_flax.kernel_fn(mlp, x, method="encode")
    with pytest.raises(InputError, match="Module instance"):
        infnet_flax.kernel_fn(nn.Dense, x)


def test_refusals_name_the_line():
    class Attends(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 3, 8, decode=False, rngs=rngs)

        def __call__(self, x):
            return self.attention(x)

    with pytest.raises(UnsupportedError, match=r"(?s)not divided by their number.*test_nnx.py.*scores divided by sqrt"):
        infnet_flax.kernel_fn(Attends, jnp.asarray(IMAGES[:, 0], jnp.float32))


def test_monte_carlo_kernels_of_what_makes_a_module():
    """Of a linear layer: K = s^2 x x' + b^2 at any width."""
    make = _sequential(partial(nnx.Linear, 5, 40, kernel_init=normal, bias_init=biases))
    found = infnet_flax.nnx.monte_carlo_kernel(make, jax.random.key(0), X, n_samples=100)
    limit = infnet_flax.kernel_fn(make, X)(X)
    for name in ("nngp", "ntk"):
        estimate = getattr(found, name)
        assert np.abs((estimate.mean - getattr(limit, name)) / (estimate.standard_error + 1e-6)).max() < 4
    assert found.nngp.standard_error.max() < 0.1 * np.abs(limit.nngp).max()
    with pytest.raises(InputError, match="pass a function that makes it"):
        infnet_flax.nnx.monte_carlo_kernel(make(nnx.Rngs(0)), jax.random.key(0), X)
