"""Laws found from values alone: of modules of NNX that were made, and of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import infnet
import infnet_flax
from infnet.errors import PriorError

X = np.random.RandomState(0).randn(3, 5)


def _own(values):
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.Param(values(rngs.params()))

        def __call__(self, x):
            return x @ self.weight

    return Own


def _of(initializer, *shape):
    return _own(lambda key: initializer(key, shape or (5, 64), jnp.float32))


init = nnx.initializers
UNKNOWN = {
    "another scale": _of(init.variance_scaling(1.01, "fan_in", "truncated_normal")),
    "a scale that differs in the sixth digit": _of(init.variance_scaling(1.00001, "fan_in", "truncated_normal")),
    "orthogonal": _of(init.orthogonal()),
    "few": _own(lambda key: init.glorot_normal()(key, (2, 1))),
    "twice": _own(lambda key: 2 * init.lecun_normal()(key, (5, 64))),
    "a step of training": _own(lambda key: init.lecun_normal()(key, (5, 64)) + 1e-6),
    "one element": _own(lambda key: init.lecun_normal()(key, (5, 64)).at[3, 3].set(0.1)),
    "sparse": _own(lambda key: init.lecun_normal()(key, (5, 64)).at[:, 1:].set(0.0)),
    "half": _own(lambda key: jnp.tile(init.lecun_normal()(key, (5, 64))[:, :4], 16)),
    "identity": _own(lambda key: jnp.eye(5)),
    "half of the range": _own(lambda key: jax.random.uniform(key, (5, 64), maxval=0.5)),
    "a layer stacked": _own(lambda key: init.lecun_normal(batch_axis=0)(key, (3, 5, 64))[:, :, :]),
    "nan": _own(lambda key: jnp.full((5, 64), jnp.nan)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_that_no_known_initialiser_returns_are_refused(name):
    with pytest.raises(PriorError, match=r"(?s)'weight' .* pass a function that makes the module.*priors=") as error:
        infnet_flax.kernel_fn(UNKNOWN[name](nnx.Rngs(0)), jnp.asarray(X, jnp.float32))
    assert "does not keep its initialisers" in str(error.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("initializer", "shape", "std"),
    [
        (init.lecun_normal(), (5, 8), 5**-0.5),
        (init.lecun_normal(), (3, 3, 4, 8), 36**-0.5),
        (init.he_uniform(), (16, 1), 8**-0.5),
        (init.glorot_normal(), (5, 7), 6**-0.5),
        (init.variance_scaling(1.0, "fan_in", "normal", out_axis=0), (30, 4), 4**-0.5),
        (init.normal(1.0), (40,), 1.0),
        (init.uniform(1.0), (40,), 12**-0.5),
        (init.zeros, (3,), 0.0),
    ],
)
def test_laws_are_recognised_by_values(initializer, shape, std, seed):
    for dtype in ("float32", "bfloat16"):
        prior = infnet.recognise_prior(initializer(jax.random.key(seed), shape, dtype))
        assert prior is None if prior is None else abs(prior.std - std) < 0.01 * std + 1e-9
        assert prior is not None or (dtype == "bfloat16" and std > 0)
        assert prior is None or (prior.shape, prior.dtype) == (shape, dtype)


def test_laws_are_recognised_in_float64():
    with jax.enable_x64(True):
        values = init.lecun_normal()(jax.random.key(0), (5, 8), "float64")
        assert abs(infnet.recognise_prior(values).std - 5**-0.5) < 1e-7
        assert infnet.recognise_prior(values * (1 + 1e-15)) is None


def test_a_module_made_under_jit_is_recognised():
    x = jnp.asarray(X, jnp.float32)
    made = nnx.jit(lambda: nnx.Linear(5, 8, kernel_init=init.he_normal(), rngs=nnx.Rngs(3)))()
    np.testing.assert_allclose(infnet_flax.kernel_fn(made, x)(x, get="nngp"), 2 / 5 * X @ X.T, rtol=1e-5, atol=1e-6)


def test_trained_modules_with_priors():
    x = jnp.asarray(X, jnp.float32)
    module = nnx.Linear(5, 64, rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda m: (m(x) ** 2).sum())(module)
    nnx.update(module, jax.tree.map(lambda p, g: p - 1e-4 * g, nnx.state(module, nnx.Param), gradients))
    with pytest.raises(PriorError, match="trained or loaded"):
        infnet_flax.kernel_fn(module, x)
    priors = {"kernel": infnet.Prior(0.0, 1.0), "bias": infnet.Prior(0.0, 0.5)}
    np.testing.assert_allclose(infnet_flax.kernel_fn(module, x, priors=priors)(x, get="nngp"), X @ X.T + 0.25, 1e-5)
