"""Annotation adds methods to linen models and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import infnet
import infnet_flax
from infnet.errors import InputError

X = jnp.asarray(np.random.RandomState(0).randn(3, 5), jnp.float32)


class Plain(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(2)(x)


class Outer(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.inner(x))


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))


def test_a_decorated_class_is_the_same_class_with_a_kernel():
    @infnet_flax.annotate
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))

    assert Model.__name__ == "Model"
    model = Model()
    assert isinstance(model.kernel(X), infnet.Kernel)
    assert model.kernel(X, X[:2], "ntk").shape == (3, 2)
    assert model.kernel(X, get=("ntk", "nngp"))._fields == ("ntk", "nngp")
    ntk_units = model.kernel(X, get="ntk", parameterization="ntk")
    np.testing.assert_array_equal(ntk_units, infnet_flax.kernel_fn(model, X, parameterization="ntk")(X, get="ntk"))
    assert isinstance(model.kernel_fn(X), infnet.KernelFn)


def test_an_annotated_instance_leaves_its_class_alone():
    model = infnet_flax.annotate(Plain(width=16))
    assert isinstance(model, Plain)
    assert isinstance(model, nn.Module)
    assert model.width == 16
    assert not hasattr(Plain, "kernel")
    expected = infnet_flax.kernel_fn(Plain(width=16), X)(X, get="ntk")
    np.testing.assert_array_equal(model.kernel(X, get="ntk"), expected)


def test_init_apply_and_tabulate_are_unchanged():
    plain, model = Plain(), infnet_flax.annotate(Plain())
    key = jax.random.key(0)
    expected, found = plain.init(key, X), model.init(key, X)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    np.testing.assert_array_equal(plain.apply(expected, X), model.apply(found, X))
    options = {"console_kwargs": {"width": 120}}
    assert plain.tabulate(key, X, **options) == model.tabulate(key, X, **options)
    assert repr(plain) == repr(model)


def test_annotating_twice_changes_nothing():
    model = infnet_flax.annotate(Plain())
    assert infnet_flax.annotate(model) is model
    assert type(infnet_flax.annotate(Plain())) is type(model)
    cls = infnet_flax.annotate(type("Fresh", (Plain,), {}))
    assert infnet_flax.annotate(cls) is cls


def test_annotated_models_are_submodules_like_any_other():
    key = jax.random.key(0)
    plain, annotated = Outer(Plain()), Outer(infnet_flax.annotate(Plain()))
    assert jax.tree.structure(plain.init(key, X)) == jax.tree.structure(annotated.init(key, X))
    ours, theirs = (infnet_flax.annotate(m).kernel(X, get="ntk") for m in (annotated, plain))
    np.testing.assert_array_equal(ours, theirs)


def test_clones_and_subclasses_keep_the_kernel():
    model = infnet_flax.annotate(Plain())
    assert model.clone(width=4).kernel(X, get="ntk").shape == (3, 3)

    class Wider(type(model)):
        width: int = 32

    assert Wider().kernel(X).width == 2


def test_call_arguments_and_running_statistics():
    model = infnet_flax.annotate(Drops())
    inference = {"call_kwargs": {"train": False}}
    standard = model.kernel(X, get="nngp", **inference)
    stats = {"mean": jnp.zeros(8), "var": jnp.full(8, 3.0)}
    variables = {"params": {}, "batch_stats": {"BatchNorm_0": stats}}
    scaled = model.kernel(X, get="nngp", variables=variables, **inference)
    epsilon = 1e-5
    np.testing.assert_allclose(scaled, standard * (1 + epsilon) / (3 + epsilon), rtol=1e-5)
    with pytest.raises(InputError, match="own collections"):
        model.kernel(X, variables={"cache": {}}, **inference)
    with pytest.raises(infnet.errors.BatchAxisError, match="BatchNorm"):
        model.kernel(X, call_kwargs={"train": True})


def test_unequal_running_statistics_before_a_nonlinearity_are_refused():
    model = infnet_flax.annotate(Drops())
    stats = {"mean": jnp.zeros(8), "var": jnp.arange(1.0, 9.0)}
    with pytest.raises(infnet.errors.UnsupportedError, match="channels are not alike"):
        model.kernel(X, variables={"batch_stats": {"BatchNorm_0": stats}}, call_kwargs={"train": False})


def test_what_cannot_be_annotated_says_so():
    with pytest.raises(InputError, match="Module class or instance"):
        infnet_flax.annotate(lambda x: x)
    with pytest.raises(InputError, match="Module instance"):
        infnet_flax.kernel_fn(Plain, X)

    class Own(nn.Module):
        def kernel(self):
            return 1

    with pytest.raises(InputError, match="of its own"):
        infnet_flax.annotate(Own)


def test_errors_name_the_line_of_the_user_not_of_flax():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))

    lines = [row.line for row in infnet_flax.kernel_fn(Model(), X).explain().rows]
    assert all("test_annotate.py" in line for line in lines)
