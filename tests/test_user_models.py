"""Where users keep linen models: train states, masks of optax, lifted transformations, collections, checkpoints.

Each is compared with a second way to the same kernel: that of the plain model, or a sum of the kernels of its parts.
"""

import copy
import pickle

import cloudpickle
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import infnet
import infnet_flax
from infnet.errors import InputError

X = jnp.asarray(np.random.RandomState(0).randn(3, 5), jnp.float32)


class MLP(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(x)))


@infnet_flax.annotate
class Decorated(nn.Module):
    """With fields of its own, and a submodule."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        return MLP(self.width)(x)


def kernel(module, x=X, get="ntk", **options):
    return np.asarray(infnet_flax.kernel_fn(module, x, **options)(x, get=get))


@pytest.fixture(scope="module")
def plain():
    return kernel(MLP())


@pytest.fixture(scope="module")
def params():
    return MLP().init(jax.random.key(0), X)["params"]


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Training


def _trained(model):
    state = TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), X)["params"], tx=optax.sgd(0.1)
    )
    gradients = jax.grad(lambda p: (state.apply_fn({"params": p}, X) ** 2).sum())(state.params)
    return state.apply_gradients(grads=gradients)


def test_a_train_state_of_an_annotated_model_trains_as_before(plain):
    model = infnet_flax.annotate(MLP())
    state, expected = _trained(model), _trained(MLP())
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert jax.tree.structure(state.params) == jax.tree.structure(expected.params)
    assert_same(model.kernel(X, get="ntk"), plain)
    assert_same(state.apply_fn.__self__.kernel(X, get="ntk"), plain)


@pytest.fixture(scope="module")
def of_layers(plain):
    """The NTK of each layer."""
    parts = {name: kernel(MLP(), trainable=lambda path, name=name: path.startswith(name)) for name in LAYERS}
    assert_same(sum(parts.values()), plain)
    return parts


LAYERS = ("Dense_0", "Dense_1")


def _mask(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "Dense_1", params)


MASKS = {
    "mask": _mask,
    "with all variables": lambda params: {"params": _mask(params)},
    "frozen dictionary": lambda params: flax.core.freeze(_mask(params)),
    "frozen, with all variables": lambda params: flax.core.freeze({"params": _mask(params)}),
    "prefix": lambda params: {"Dense_0": False, "Dense_1": True},
    "of numpy": lambda params: jax.tree.map(np.bool_, _mask(params)),
    "predicate": lambda params: lambda path: path.startswith("Dense_1/"),
    "glob": lambda params: {"*": False, "Dense_1/*": True},
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_optax_say_what_is_trained(name, params, of_layers):
    mask = MASKS[name](params)
    assert_same(kernel(MLP(), trainable=mask), of_layers["Dense_1"])
    if name == "mask":  # which optax takes for what it says too
        update = optax.masked(optax.set_to_zero(), mask)
        updates, _ = update.update(jax.tree.map(jnp.ones_like, params), update.init(params))
        assert float(updates["Dense_1"]["bias"][0]) == 0.0
        assert float(updates["Dense_0"]["bias"][0]) == 1.0


def test_learning_rates_of_a_multi_transform(params, of_layers):
    rates = {"slow": 0.5, "fast": 3.0, "frozen": 0.0}
    labels = {"Dense_0": "slow", "Dense_1": "fast"}
    whole = jax.tree_util.tree_map_with_path(lambda path, _: labels[path[0].key], params)
    optax.multi_transform({name: optax.sgd(rate) for name, rate in rates.items()}, whole).init(params)
    expected = 0.5 * of_layers["Dense_0"] + 3.0 * of_layers["Dense_1"]
    for tree in (whole, labels, {"params": labels}):
        scales = jax.tree.map(lambda label: rates[label], tree)
        assert_same(kernel(MLP(), lr_scale=scales), expected)
    assert_same(kernel(MLP(), lr_scale={"Dense_0": 0.0}), of_layers["Dense_1"])


def test_labels_are_neither_masks_nor_rates(params):
    labels = jax.tree.map(lambda _: "frozen", params)
    with pytest.raises(InputError, match=r"trainable must be True or False .* 'Dense_0/bias' it is 'frozen'"):
        kernel(MLP(), trainable=labels)
    with pytest.raises(InputError, match=r"lr_scale must be a number .* 'Dense_0/bias' it is 'frozen'"):
        kernel(MLP(), lr_scale=labels)
    with pytest.raises(InputError, match="0 or above; for 'Dense_1/kernel' it is -1"):
        kernel(MLP(), lr_scale={"Dense_1/kernel": -1})
    with pytest.raises(InputError, match="no parameter matches 'Dense_7/kernel'"):
        kernel(MLP(), trainable={"Dense_7": {"kernel": False}})


# Lifted transformations and other ways to write modules


class SharesScope(nn.Module):
    def setup(self):
        self.inner = MLP()
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


class Setup(nn.Module):
    def setup(self):
        self.layers = [nn.Dense(8), nn.Dense(2)]

    def __call__(self, x):
        return self.layers[1](nn.relu(self.layers[0](x)))


SAME = {
    "share_scope": SharesScope(),
    "setup": Setup(),
    "remat": nn.remat(MLP)(),
    "remat with a policy": nn.remat(MLP, policy=jax.checkpoint_policies.dots_saveable)(),
    "jit": nn.jit(MLP)(),
    "a lazy sequence": nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]),
    "a decorated class": Decorated(),
    "cloned": infnet_flax.annotate(MLP(4)).clone(width=8),
}


@pytest.mark.parametrize("name", SAME)
def test_the_kernel_is_that_of_the_plain_model(name, plain):
    assert_same(kernel(SAME[name]), plain)


def test_share_scope_leaves_the_paths_out():
    assert set(infnet_flax.kernel_fn(SharesScope(), X).hyperparameters) == {"Dense_0", "Dense_1"}


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(5)(x)), None


class Scanned(nn.Module):
    tied: bool = False

    @nn.compact
    def __call__(self, x):
        own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        shared = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        x, _ = nn.scan(Step, length=3, **(shared if self.tied else own))()(x, None)
        return nn.Dense(2)(x)


class Unrolled(nn.Module):
    tied: bool = False

    @nn.compact
    def __call__(self, x):
        layers = [nn.Dense(5) for _ in range(1 if self.tied else 3)]
        for i in range(3):
            x = nn.relu(layers[0 if self.tied else i](x))
        return nn.Dense(2)(x)


@pytest.mark.parametrize("tied", [False, True])
def test_scans_are_their_unrolled_layers(tied):
    assert_same(kernel(Scanned(tied)), kernel(Unrolled(tied)))


class Ensemble(nn.Module):
    size: int = 4

    def setup(self):
        options = {"in_axes": None, "out_axes": 1, "axis_size": self.size}
        self.members = nn.vmap(MLP, variable_axes={"params": 0}, split_rngs={"params": True}, **options)()

    def __call__(self, x):
        return self.members(x).mean(1)

    def separately(self, x):
        return self.members(x)


def test_ensembles(plain):
    assert_same(kernel(Ensemble()), plain / 4)
    members = kernel(Ensemble(), method="separately")
    expected = plain[:, :, None, None] * np.eye(4)
    np.testing.assert_allclose(members, expected, rtol=1e-6)


class OverTokens(nn.Module):
    lifted: bool

    @nn.compact
    def __call__(self, x):
        x = x[:, :, None]
        shared = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
        model = nn.vmap(MLP, in_axes=1, out_axes=1, **shared) if self.lifted else MLP
        return model(name="mlp")(x).mean(1)


def test_a_model_mapped_over_tokens_is_the_model_on_all_of_them():
    assert_same(kernel(OverTokens(True)), kernel(OverTokens(False)))


class Autoencoder(nn.Module):
    def setup(self):
        self.encoder, self.decoder = MLP(), nn.Dense(5)

    def encode(self, x, scale=1.0):
        return scale * self.encoder(x)

    def __call__(self, x):
        return self.decoder(nn.relu(self.encode(x)))


def test_methods(plain):
    assert_same(kernel(Autoencoder(), method="encode"), plain)
    assert_same(kernel(Autoencoder(), method=Autoencoder.encode), plain)
    assert_same(kernel(Autoencoder(), method="encode", call_kwargs={"scale": 2.0}), 4 * plain)
    assert_same(infnet_flax.annotate(Autoencoder()).kernel(X, get="ntk", method="encode"), plain)
    with pytest.raises(InputError, match="Autoencoder has no method 'encod'"):
        kernel(Autoencoder(), method="encod")


# Collections


class Observed(nn.Module):
    """It counts its calls, keeps a constant, and notes features and what they are on average over the batch."""

    @nn.compact
    def __call__(self, x):
        count = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        count.value += 1
        scale = self.variable("constants", "scale", lambda: jnp.full((5,), 1.0))
        x = nn.Dense(8)(x * scale.value)
        self.sow("intermediates", "features", x)
        self.sow("metrics", "mean", x.mean())
        return nn.Dense(2)(nn.relu(x))


def test_mutable_collections_are_constants(plain):
    assert_same(kernel(Observed()), plain)
    variables = {"constants": {"scale": jnp.full(5, 2.0)}}
    doubled = kernel(MLP(), 2 * X)
    assert_same(kernel(Observed(), variables=variables), doubled)


def test_kernels_of_intermediates():
    def pick(outputs):
        _, collections = outputs
        return collections["intermediates"]["features"][0]

    mutable = {"mutable": ["intermediates", "counters", "metrics"]}
    assert_same(kernel(Observed(), get="nngp", call_kwargs=mutable, output=pick), X @ X.T / 5)
    captured = {"capture_intermediates": True, "mutable": ["intermediates"]}
    found = kernel(
        MLP(), get="nngp", call_kwargs=captured, output=lambda o: o[1]["intermediates"]["Dense_1"]["__call__"][0]
    )
    assert_same(found, X @ X.T / 5)


class RandomBuffer(nn.Module):
    @nn.compact
    def __call__(self, x):
        buffer = self.variable("buffers", "projection", lambda: jax.random.normal(self.make_rng("params"), (5, 64)))
        return nn.Dense(2)(jnp.cos(x @ buffer.value))


class Cache(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = self.variable("cache", "first", lambda: x[0])
        return nn.Dense(2)(x - first.value)


def test_collections_that_init_draws_or_computes_are_asked_for():
    projection = np.random.RandomState(1).randn(5, 64).astype(np.float32)
    with pytest.raises(InputError, match=r"'buffers/projection' at random .*variables={'buffers': ...}"):
        kernel(RandomBuffer())
    features = np.cos(X @ projection)
    found = kernel(RandomBuffer(), get="nngp", variables={"buffers": {"projection": projection}})
    np.testing.assert_allclose(found, features @ features.T / 64, rtol=1e-5)
    with pytest.raises(InputError, match=r"'cache/first' .*computes it from the inputs"):
        kernel(Cache())


class HalfPrecision(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, dtype=self.dtype)(nn.relu(nn.Dense(8, dtype=self.dtype)(x)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_that_compute_in_half_precision(dtype):
    """The model rounds its inputs; the kernel is that of the rounded inputs, in float32."""
    found = infnet_flax.kernel_fn(HalfPrecision(dtype), X)(X, get="ntk")
    assert found.dtype == jnp.float32
    assert_same(found, kernel(MLP(), X.astype(dtype).astype(jnp.float32)))


# Checkpoints and copies


def test_checkpoints_of_orbax_and_flax_do_not_see_annotation(tmp_path):
    plain, annotated = MLP(), infnet_flax.annotate(MLP())
    with ocp.StandardCheckpointer() as checkpointer:
        for name, one, two in (("there", annotated, plain), ("back", plain, annotated)):
            variables = one.init(jax.random.key(1), X)
            target = two.init(jax.random.key(2), X)
            checkpointer.save(tmp_path / name, variables)
            checkpointer.wait_until_finished()
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
            restored = checkpointer.restore(tmp_path / name, abstract)
            read = flax.serialization.from_bytes(target, flax.serialization.to_bytes(variables))
            for found in (restored, read):
                np.testing.assert_array_equal(two.apply(found, X), one.apply(variables, X))


COPIES = {
    "deepcopy": lambda model: copy.deepcopy(model),
    "copy": lambda model: copy.copy(model),
    "clone": lambda model: model.clone(),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "cloudpickle": lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_annotated_models_keep_the_kernel(name, plain):
    for model in (infnet_flax.annotate(MLP()), Decorated()):
        copied = COPIES[name](model)
        assert copied.width == 8
        assert_same(copied.kernel(X, get="ntk"), plain)


def test_bound_models_have_the_kernel_of_the_model(plain):
    model = infnet_flax.annotate(MLP())
    assert_same(model.bind(model.init(jax.random.key(0), X)).kernel(X, get="ntk"), plain)


def test_decorated_classes_are_pickled(plain):
    assert_same(cloudpickle.loads(cloudpickle.dumps(Decorated))().kernel(X, get="ntk"), plain)


class Deeper(Decorated):
    """A subclass with a field and a call of its own."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.relu(super().__call__(x)))


class PlainDeeper(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(MLP()(x)))


def test_subclasses_of_decorated_classes():
    assert_same(Deeper().kernel(X, get="ntk"), kernel(PlainDeeper()))
    assert Deeper(outputs=4).kernel(X).width == 4
    assert infnet_flax.annotate(Deeper(outputs=4)).outputs == 4
    assert infnet_flax.annotate(infnet_flax.annotate(Deeper)) is Deeper


# Transformations of `model.kernel`


def test_kernels_under_jit_vmap_and_grad(plain):
    model = infnet_flax.annotate(MLP())
    assert_same(jax.jit(lambda x: model.kernel(x, get="ntk"))(X), plain)
    assert_same(jax.vmap(lambda x: model.kernel(x[None], get="ntk")[0, 0])(X), np.diag(plain))
    assert isinstance(jax.jit(model.kernel)(X), infnet.Kernel)

    def one(x):
        return model.kernel(x[None], X[1:2], "nngp")[0, 0]

    step = 1e-2 * jnp.eye(5)
    differences = [(one(X[0] + h) - one(X[0] - h)) / 2e-2 for h in step]
    np.testing.assert_allclose(jax.grad(one)(X[0]), differences, rtol=1e-2, atol=1e-3)
