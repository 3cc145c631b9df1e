"""Each example by itself: what is proved from the traces at batch sizes 2 and 3, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function
from flax import linen as nn

import infnet_flax
from infnet.errors import BatchAxisError, UnsupportedError

RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(4, 6, 5), RNG.randn(3, 6, 5)
TIMES = jax.lax.fori_loop


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense(n):
    return nn.Dense(n, use_bias=False, kernel_init=nn.initializers.normal(1.0), param_dtype=jnp.float64)


def segment_sum(x):
    groups = (x[..., 0] > 0).astype(int)
    return jax.vmap(lambda z, g: jax.ops.segment_sum(z, g, 2))(x, groups)


# Functions of data, which keep examples apart: (n, 6, 5) -> (n, features). They are evaluated as they are.
PREPARED = {
    "matmul of each example": lambda x: x @ jnp.swapaxes(x, 1, 2),
    "sort and take_along_axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "segment sums": segment_sum,
    "in-place updates": lambda x: x.at[:, 2].set(x[:, 3]).at[:, :, 1].add(1.0),
    "arange over examples": lambda x: x[jnp.arange(len(x)), (x[:, 0, 0] > 0).astype(int)],
    "spectrum": lambda x: abs(jnp.fft.rfft(x, axis=-1)),
    "squeeze": lambda x: x[:, :1].sum(2, keepdims=True).squeeze()[:, None],
    "fori_loop with updates": lambda x: TIMES(1, 6, lambda t, z: z.at[:, t].set(jnp.tanh(z[:, t - 1])), x),
    "scan": lambda x: jax.lax.scan(lambda c, z: (c / 2 + z, c * z), x[:, 0], jnp.swapaxes(x, 0, 1))[1].swapaxes(0, 1),
    "while_loop": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1],
    "cond": lambda x: jax.lax.cond(jnp.arange(3).sum() > 2, jnp.sin, jnp.cos, x),
    "vmap": lambda x: jax.vmap(lambda z: jnp.linspace(0, 1, 6) @ jnp.tanh(z))(x),
    "merged rows": lambda x: (x.reshape(-1, 5) * 2).reshape(len(x), 30),
    "differs for one example": lambda x: x if x.shape[0] > 1 else jnp.zeros_like(x),
}


@pytest.mark.parametrize("name", PREPARED)
def test_functions_of_data(name):
    def flat(x):
        return PREPARED[name](jnp.asarray(x)).reshape(len(x), -1)

    k = infnet_flax.kernel_fn(Function(lambda x: dense(3)(flat(x))), X1)
    np.testing.assert_allclose(k(X1, X2, "nngp"), flat(X1) @ flat(X2).T, rtol=1e-12, atol=1e-13)


def test_squeeze_without_axes():
    k = infnet_flax.kernel_fn(Function(lambda x: dense(1)(x[:, 0]).squeeze()), X1)
    np.testing.assert_allclose(k(X1, X2, "ntk"), X1[:, 0] @ X2[:, 0].T, rtol=1e-12)


@jax.custom_jvp
def divided(x):
    return x / x.shape[0]


divided.defjvps(lambda tangent, result, x: tangent)

MIXED = {
    "centred over the batch": lambda x: x - x.mean(0),
    "first rows of merged examples": lambda x: x.reshape(-1, 5)[: x.shape[0]],
    "a power of the batch size": lambda x: x ** x.shape[0],
    "numbered examples": lambda x: x + jnp.arange(x.shape[0])[:, None, None],
    "the row of another example": lambda x: x[(jnp.arange(x.shape[0]) + 1) % x.shape[0], 0],
    "a loop over the examples": lambda x: jax.lax.scan(lambda c, z: (c + z, c), x[0], x)[1],
    "a mean inside a loop": lambda x: jax.lax.scan(lambda c, z: (c + z.mean(0), c), x[:, 0], x.swapaxes(0, 1))[0],
    "as many steps as the slowest example": lambda x: jax.lax.while_loop(lambda c: (c > 1).any(), lambda c: c / 2, x),
    "a branch on the batch size": lambda x: jax.lax.cond(x.shape[0] > jnp.asarray(2), jnp.sin, jnp.cos, x),
    "a constant inside a derivative rule": divided,
    "flipped examples": lambda x: x[::-1],
    "one segment sum of all": lambda x: jax.ops.segment_sum(x, jnp.zeros(x.shape[0], int), 2),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_examples_or_counts_them_is_refused(name):
    for function in (lambda x: dense(3)(MIXED[name](x)), lambda x: MIXED[name](nn.relu(dense(5)(x)))):
        with pytest.raises(BatchAxisError) as caught:
            infnet_flax.kernel_fn(Function(function), X1)
        assert "test_batch.py" in caught.value.where.line


def test_products_of_features_are_refused_as_such_not_for_the_batch_axis():
    def scores(x):
        return dense(4)(x) @ dense(4)(x).swapaxes(-1, -2)

    with pytest.raises(UnsupportedError) as caught:
        infnet_flax.kernel_fn(Function(lambda x: jnp.tanh(scores(x))), X1)(X1)
    assert not isinstance(caught.value, BatchAxisError)


def test_a_derivative_rule_of_what_is_not_elementwise_is_refused():
    @jax.custom_vjp
    def mean(x):
        return x.mean(1)

    mean.defvjp(lambda x: (x.mean(1), None), lambda _, g: (jnp.zeros((len(g), 6, 5)),))
    with pytest.raises(UnsupportedError, match="derivative of its own") as caught:
        infnet_flax.kernel_fn(Function(lambda x: mean(dense(5)(x))), X1)
    assert not isinstance(caught.value, BatchAxisError)
