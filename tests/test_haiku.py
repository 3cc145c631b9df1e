"""An unmodified Haiku transform has the kernel of the same Flax model."""

import cloudpickle
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import infnet_flax
import infnet_haiku
from infnet.errors import BatchAxisError, InputError, UnsupportedError

X = jnp.asarray(np.random.RandomState(0).randn(3, 5), jnp.float32)
NORMAL = hk.initializers.RandomNormal(0.5)


def mlp(x):
    return hk.nets.MLP([16, 2], w_init=NORMAL)(x)


@pytest.mark.parametrize("transformed", [hk.transform(mlp), hk.without_apply_rng(hk.transform(mlp))])
def test_a_transform_and_a_linen_module_agree(transformed):
    normal = nn.initializers.normal(0.5)
    model = nn.Sequential([nn.Dense(16, kernel_init=normal), nn.relu, nn.Dense(2, kernel_init=normal)])
    ours = infnet_haiku.kernel_fn(transformed, X)(X)
    theirs = infnet_flax.kernel_fn(model, X)(X)
    np.testing.assert_allclose(ours.nngp, theirs.nngp, rtol=1e-6)
    np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-6)


def test_refusals_name_the_line_of_the_user():
    def model(x):
        return hk.Linear(2)(jnp.abs(jnp.tanh(hk.Linear(8)(x))))

    with pytest.raises(UnsupportedError, match=r"tanh(.|\n)*test_haiku\.py"):
        infnet_haiku.kernel_fn(hk.transform(model), X)
    with pytest.raises(InputError, match=r"hk\.transform"):
        infnet_haiku.kernel_fn(model, X)


def normalised(x, is_training):
    h = hk.Linear(64, w_init=hk.initializers.RandomNormal(0.4))(x)
    h = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(h, is_training)
    return hk.Linear(2, w_init=hk.initializers.RandomNormal(0.1))(jax.nn.relu(h))


INFERENCE = {"init_kwargs": {"is_training": True}, "call_kwargs": {"is_training": False}}


def statistics(mean, variance):
    """The state of `normalised` with these running statistics."""
    init = hk.transform_with_state(normalised).init
    state = init(jax.random.key(0), X, is_training=True)[1]
    values = {"mean_ema": mean, "var_ema": variance}
    return {
        module: {
            name: jnp.full_like(x, values[module.rsplit("/", 1)[-1]]) if name != "counter" else x
            for name, x in arrays.items()
        }
        for module, arrays in state.items()
    }


@pytest.mark.parametrize("with_rng", [True, False])
@pytest.mark.parametrize("given", [None, (0.0, 1.0), (0.3, 2.5)])
def test_batch_norm_with_running_statistics(given, with_rng):
    """As the linen module with the same statistics; 0 and 1 unless they are given."""
    transformed = hk.transform_with_state(normalised)
    transformed = transformed if with_rng else hk.without_apply_rng(transformed)
    mean, variance = given or (0.0, 1.0)
    state = None if given is None else statistics(mean, variance)
    ours = infnet_haiku.kernel_fn(transformed, X, state=state, **INFERENCE)(X)
    model = nn.Sequential(
        [
            nn.Dense(64, kernel_init=nn.initializers.normal(0.4)),
            nn.BatchNorm(use_running_average=True),
            nn.relu,
            nn.Dense(2, kernel_init=nn.initializers.normal(0.1)),
        ]
    )
    stats = {"layers_1": {"mean": jnp.full(64, mean), "var": jnp.full(64, variance)}}
    theirs = infnet_flax.kernel_fn(model, X, variables={"batch_stats": stats})(X)
    np.testing.assert_allclose(ours.nngp, theirs.nngp, rtol=1e-5)
    np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-5)


def test_states_that_do_not_fit_are_refused():
    transformed = hk.transform_with_state(normalised)
    with pytest.raises(BatchAxisError, match="mixes the examples"):
        infnet_haiku.kernel_fn(transformed, X, call_kwargs={"is_training": True})
    with pytest.raises(InputError, match="state has arrays of shapes"):
        infnet_haiku.kernel_fn(transformed, X, state={"other": {"mean": 0.0}}, **INFERENCE)


def test_annotated_transforms_are_pickled():
    """By value, since those of Haiku are closures."""
    net = infnet_haiku.transform(mlp)
    copied = cloudpickle.loads(cloudpickle.dumps(net))
    assert type(copied) is type(net)
    np.testing.assert_array_equal(copied.kernel(X, get="ntk"), net.kernel(X, get="ntk"))
