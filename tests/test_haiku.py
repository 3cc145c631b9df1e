"""An unmodified Haiku transform has the kernel of the same Flax model."""

import haiku as hk
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import infnet_flax
import infnet_haiku
from infnet.errors import InputError, UnsupportedError

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
