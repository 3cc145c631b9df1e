"""Priors read off `init`, against formulas written here and against the moments of real draws."""

import math
import time
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.linen import initializers as flax_init
from jax import numpy as jnp

from infnet.errors import PriorError
from infnet.priors import (
    Prior,
    Unreadable,
    check_readable,
    infer_priors,
    override_priors,
)

# Standard normal truncated at ±2: 1 - 2·2φ(2)/(2Φ(2)-1), and E z⁴ = 3 E z² - 2·8φ(2)/(2Φ(2)-1).
PHI2, MASS2 = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
VAR2 = 1 - 4 * PHI2 / MASS2
KURT2 = (3 * VAR2 - 16 * PHI2 / MASS2) / VAR2**2 - 3


def assert_prior(prior, mean, std, kurtosis, rtol=1e-6):
    assert isinstance(prior, Prior), prior
    np.testing.assert_allclose(prior.mean, mean, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(prior.std, std, rtol=rtol)
    np.testing.assert_allclose(prior.kurtosis, kurtosis, rtol=rtol, atol=1e-6)


def assert_sampled(prior, draw):
    """Mean and variance of the standardised elements, within 5 standard errors."""
    draw = np.asarray(draw, np.float64)
    mean, std, kurtosis = (np.broadcast_to(x, draw.shape) for x in jax.tree.leaves(prior))
    np.testing.assert_allclose(draw[std == 0], mean[std == 0], rtol=1e-6)
    random = std > 0
    if random.any():
        z = ((draw - mean)[random]) / std[random]
        assert abs(z.mean()) < 5 / math.sqrt(z.size)
        error = math.sqrt((2 + kurtosis[random].mean()) / z.size)
        assert abs((z**2).mean() - 1) < 5 * error + 1e-6


def fans(shape):
    receptive = math.prod(shape[:-2])
    return receptive * shape[-2], receptive * shape[-1]


def scaled(scale, mode, distribution, shape):
    fan_in, fan_out = fans(shape)
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    n["fan_geo_avg"] = math.sqrt(fan_in * fan_out)
    kurtosis = {"normal": 0.0, "truncated_normal": KURT2, "uniform": -1.2}[distribution]
    return 0.0, math.sqrt(scale / n[mode]), kurtosis


SHAPE = (3, 3, 40, 60)
NAMED = {
    "glorot": (1.0, "fan_avg"), "xavier": (1.0, "fan_avg"), "lecun": (1.0, "fan_in"),
    "he": (2.0, "fan_in"), "kaiming": (2.0, "fan_in"),
}  # fmt: skip

# name: (initializer, expected mean, std, kurtosis)
CASES = {
    "constant": (flax_init.constant(0.3), 0.3, 0.0, 0.0),
    "ones": (flax_init.ones, 1.0, 0.0, 0.0),
    "zeros": (flax_init.zeros, 0.0, 0.0, 0.0),
    "normal": (flax_init.normal(0.2), 0.0, 0.2, 0.0),
    "truncated": (flax_init.truncated_normal(0.2), 0.0, 0.2 * math.sqrt(VAR2), KURT2),
    "uniform": (flax_init.uniform(0.2), 0.1, 0.2 / math.sqrt(12), -1.2),
}
for name, (scale, mode) in NAMED.items():
    for kind, law in {"normal": "truncated_normal", "uniform": "uniform"}.items():
        function = getattr(flax_init, f"{name}_{kind}")()
        CASES[f"{name}_{kind}"] = (function, *scaled(scale, mode, law, SHAPE))
for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"):
    for law in ("normal", "truncated_normal", "uniform"):
        function = flax_init.variance_scaling(0.7, mode, law)
        CASES[f"{mode}-{law}"] = (function, *scaled(0.7, mode, law, SHAPE))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_flax_initializers(name, x64):
    function, *expected = CASES[name]
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        prior = infer_priors(lambda key: function(key, SHAPE, dtype))
        assert_prior(prior, *expected, rtol=1e-9 if x64 else 1e-6)
        if not x64 or "-" not in name:
            assert_sampled(prior, function(jax.random.key(1), SHAPE, dtype))


@pytest.mark.parametrize(
    ("shape", "x64"),
    [((300, 40), True), ((40, 300), False), ((100, 100), False), ((2, 10, 30), False)],
)
def test_orthogonal(shape, x64):
    function = flax_init.orthogonal(1.5)
    with jax.enable_x64(x64):
        prior = infer_priors(lambda key: function(key, shape))
        draw = jax.jit(lambda key: function(key, shape))(jax.random.key(1))
        draw = np.asarray(draw, np.float64)
    n = max(shape[-1], math.prod(shape[:-1]))
    assert_prior(prior, 0.0, 1.5 / math.sqrt(n), -6 / (n + 2))
    # the rows (or columns) have unit length, so the second moment is exact in every draw
    np.testing.assert_allclose((draw**2).mean(), prior.std**2, rtol=1e-5)
    assert abs(draw.mean()) < 5 * prior.std / math.sqrt(draw.size)


def test_haar_fourth_moment():
    keys = jax.random.split(jax.random.key(0), 2000)
    q = np.asarray(jax.vmap(lambda key: jax.random.orthogonal(key, 4))(keys), np.float64)
    assert_prior(infer_priors(lambda key: jax.random.orthogonal(key, 4)), 0, 0.5, -1.0)
    np.testing.assert_allclose((q**4).mean(), (3 - 1.0) / 16, rtol=0.02)


def test_delta_orthogonal():
    function = flax_init.delta_orthogonal()
    prior = infer_priors(lambda key: function(key, (3, 3, 20, 32)))
    expected = np.zeros((3, 3, 1, 1))
    expected[1, 1] = 1 / math.sqrt(32)
    assert np.shape(prior.std) == (3, 3, 1, 1)
    assert_prior(prior, 0.0, expected, np.where(expected > 0, -6 / 34, 0))
    assert_sampled(prior, function(jax.random.key(0), (3, 3, 20, 32)))


def split(key):
    return tuple(jax.random.split(key, 3))


def normal(key, shape=(200, 100)):
    return jax.random.normal(key, shape)


def box_mask(key):
    k1, k2, _ = split(key)
    return jnp.where(jax.random.bernoulli(k1, 0.1, (200, 100)), normal(k2), 0.0)


# name: (function of a key, expected mean, std, kurtosis)
E = math.e
LAWS = {
    "cube": (lambda k: normal(k) ** 3, 0.0, 15**0.5, 10395 / 225 - 3),
    "square": (lambda k: normal(k) * normal(k), 1.0, 2**0.5, 12.0),
    "shifted square": (lambda k: (3 * normal(k) - 1) ** 2, 10.0, 198**0.5, None),
    "lognormal": (
        lambda k: jnp.exp(normal(k)), E**0.5, ((E - 1) * E) ** 0.5,
        E**4 + 2 * E**3 + 3 * E**2 - 6,
    ),
    "where": (lambda k: jnp.where(normal(k) > 0, 3.0, -1.0), 1.0, 2.0, -2.0),
    "half normal": (lambda k: jnp.abs(normal(k)), (2 / math.pi) ** 0.5, (1 - 2 / math.pi) ** 0.5,
                    8 * (math.pi - 3) / (math.pi - 2) ** 2),
    "clipped": (lambda k: jnp.clip(normal(k), 0, None), (2 * math.pi) ** -0.5,
                (0.5 - 1 / (2 * math.pi)) ** 0.5, None),
    "uniform": (lambda k: jax.random.uniform(k, (200, 100), minval=-1, maxval=3), 1.0,
                4 / 12**0.5, -1.2),
    "truncated one side": (
        lambda k: jax.random.truncated_normal(k, 0.0, jnp.inf, (200, 100)),
        (2 / math.pi) ** 0.5, (1 - 2 / math.pi) ** 0.5, 8 * (math.pi - 3) / (math.pi - 2) ** 2,
    ),
    "truncated narrowly": (
        lambda k: jax.random.truncated_normal(k, 0.2, 0.21, (200, 100)),
        None, 0.01 / 12**0.5, -1.2,
    ),
    "bernoulli": (lambda k: 2.0 * jax.random.bernoulli(k, 0.25, (200, 100)), 0.5, 0.75**0.5,
                  (1 - 6 * 3 / 16) / (3 / 16)),
    "rademacher": (lambda k: jax.random.rademacher(k, (200, 100), jnp.float32), 0, 1, -2.0),
    "exponential": (lambda k: jax.random.exponential(k, (200, 100)), 1.0, 1.0, 6.0),
    "gumbel": (lambda k: jax.random.gumbel(k, (200, 100)), 0.5772156649, math.pi / 6**0.5, 2.4),
    "logistic": (lambda k: jax.random.logistic(k, (200, 100)), 0.0, math.pi / 3**0.5, 1.2),
    "sum": (lambda k: 3 * normal(split(k)[0]) - jax.random.uniform(split(k)[1], (200, 100)),
            -0.5, (9 + 1 / 12) ** 0.5, -1.2 / 144 / (9 + 1 / 12) ** 2),
    "same draw twice": (lambda k: normal(k) + normal(k), 0.0, 2.0, 0.0),
    "two functions of a draw": (lambda k: normal(k) ** 2 - 2 * normal(k), 1.0, 6**0.5, 20 / 3),
    "product": (lambda k: normal(split(k)[0]) * normal(split(k)[1]), 0.0, 1.0, 6.0),
    "sparse": (box_mask, 0.0, 0.1**0.5, 27.0),
    "rare": (lambda k: jax.random.bernoulli(k, 1e-5, (200, 100)) * 1.0, 1e-5,
             (1e-5 * (1 - 1e-5)) ** 0.5, 1 / (1e-5 * (1 - 1e-5)) - 6),
    "qr alone": (lambda k: jnp.linalg.qr(normal(k))[0], 0.0, 1 / 200**0.5, -6 / 202),
    "fixed key": (lambda k: normal(jax.random.key(3)), 0.0, 1.0, 0.0),
    "vmap": (lambda k: jax.vmap(lambda k: normal(k, (10, 9)))(jax.random.split(k, 20)), 0, 1, 0),
    "flipped": (lambda k: (normal(k).T[::-1, 3:] ** 3).reshape(-1), 0, 15**0.5, None),
}  # fmt: skip


# the others' moments are known in full
SAMPLED = {
    "shifted square", "clipped", "truncated narrowly", "sum", "product", "sparse", "qr alone",
    "two functions of a draw", "flipped",
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_user_laws(name):
    function, mean, std, kurtosis = LAWS[name]
    prior = infer_priors(function)
    assert isinstance(prior, Prior), prior
    assert_prior(
        prior,
        prior.mean if mean is None else mean,
        std,
        prior.kurtosis if kurtosis is None else kurtosis,
        rtol=1e-5,
    )
    if name in SAMPLED:
        assert_sampled(prior, function(jax.random.key(7)))


def test_numeric_accuracy():
    with jax.enable_x64(True):
        prior = infer_priors(lambda key: jnp.where(normal(key) > 0.1, normal(key) ** 3, 0.5))
        draw_free = infer_priors(lambda key: jnp.exp(jax.random.normal(key, (3,))))
    np.testing.assert_allclose(draw_free.mean, math.exp(0.5), rtol=1e-12)
    np.testing.assert_allclose(draw_free.std, math.sqrt((E - 1) * E), rtol=1e-11)
    # E z³ 1(z > a) = (a² + 2) φ(a)
    density = math.exp(-0.005) / math.sqrt(2 * math.pi)
    mean = (0.01 + 2) * density + 0.5 * (1 + math.erf(0.1 / math.sqrt(2))) / 2
    np.testing.assert_allclose(prior.mean, mean, rtol=1e-11)


# Laws that vary over the array: name: (function, expected mean, std)
ROWS = np.array([[1.0], [2.0], [3.0]])
VARYING = {
    "bias set": (lambda k: jnp.zeros(4).at[:2].set(1.0), [1, 1, 0, 0], 0),
    "per row": (lambda k: normal(k, (3, 50)) * ROWS, 0.0, ROWS),
    "per row, nonlinear": (lambda k: (normal(k, (3, 50)) * ROWS) ** 3, 0, ROWS**3 * 15**0.5),
    "per row, moved": (lambda k: (normal(k, (3, 50)) * ROWS).T[None], 0, ROWS.T[None]),
    "multiplied": (lambda k: normal(k, (3, 50)).at[0].multiply(5.0), 0, [[5], [1], [1]]),
    "added": (lambda k: normal(k, (3, 50)).at[0].add(5.0), [[5], [0], [0]], 1.0),
    "concatenated": (
        lambda k: jnp.concatenate([normal(split(k)[0], (1, 50)), jnp.ones((2, 50))]) * 2,
        [[0], [2], [2]], [[2], [0], [0]],
    ),
    "padded": (lambda k: jnp.pad(normal(k, (1, 50)), ((0, 2), (0, 0))), 0, [[1], [0], [0]]),
    "updated": (
        lambda k: jax.lax.dynamic_update_slice(jnp.zeros((3, 50)), normal(k, (1, 50)), (1, 0)),
        0, [[0], [1], [0]],
    ),
    "gathered": (lambda k: (normal(k, (3, 50)) * ROWS)[jnp.array([2, 0])], 0, [[3], [1]]),
    "masked": (lambda k: jnp.tril(normal(k, (3, 3))), 0, np.tril(np.ones((3, 3)))),
    "chosen": (
        lambda k: jnp.where(np.array([[True], [False]]), normal(split(k)[0], (2, 50)),
                            3 * jax.random.uniform(split(k)[1], (2, 50))),
        [[0], [1.5]], [[1], [3 / 12**0.5]],
    ),
    "scanned": (
        lambda k: jax.lax.scan(lambda c, k: (c + 1, c * normal(k, (50,))), 1.0,
                               jax.random.split(k, 3))[1],
        0, ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARYING)
def test_laws_that_vary(name):
    function, mean, std = VARYING[name]
    prior = infer_priors(function)
    assert isinstance(prior, Prior), prior
    assert np.shape(prior.mean) == np.shape(mean)
    assert np.shape(prior.std) == np.shape(std)
    np.testing.assert_allclose(prior.mean, mean, atol=1e-6)
    np.testing.assert_allclose(prior.std, std, rtol=1e-6, atol=1e-12)
    assert_sampled(prior, function(jax.random.key(5)))


def test_raw_keys():
    def init(key):
        assert key.dtype == jnp.uint32
        k1, k2 = jax.random.split(key)
        return {"a": jax.random.normal(k1, (4, 3)), "b": jax.random.uniform(k2 + 1, (3,))}

    priors = infer_priors(init)
    assert_prior(priors["a"], 0.0, 1.0, 0.0)
    assert_prior(priors["b"], 0.5, 12**-0.5, -1.2)


UNREADABLE = {
    "sort": (lambda k, x: jnp.sort(normal(k)), "sort"),
    "transpose": (lambda k, x: normal(k, (5, 5)) + normal(k, (5, 5)).T, "not independent"),
    "broadcast": (lambda k, x: jnp.ones((3, 4)) * normal(k, ()), "not independent"),
    "broadcast axis": (lambda k, x: jnp.broadcast_to(normal(k, (3, 1)), (3, 4)), "repeats"),
    "shared key": (
        lambda k, x: jax.vmap(lambda _: normal(k, (3,)))(jnp.arange(2)), "not independent"
    ),
    "equal keys": (
        lambda k, x: jax.vmap(lambda k: normal(k, (3,)))(jnp.stack([k, k])), "same key"
    ),
    "tiled": (lambda k, x: jnp.concatenate([normal(k), normal(k)]), "same random numbers"),
    "gathered twice": (lambda k, x: normal(k)[jnp.array([0, 0])], "repeats"),
    "normalised": (lambda k, x: normal(k) / jnp.linalg.norm(normal(k)), "not independent"),
    "data": (lambda k, x: normal(k) * x.mean(), "example inputs"),
    "data only": (lambda k, x: x, "example inputs"),
    "infinite": (lambda k, x: normal(k) / 0.0, "finite"),
    "heavy tails": (lambda k, x: jax.random.cauchy(k, (3,)), "converge"),
    "sampler": (lambda k, x: jax.random.gamma(k, 2.0, (3,)), "uniform floats"),
    "integers": (lambda k, x: jax.random.randint(k, (3,), 0, 9), "random bits"),
    "R": (lambda k, x: jnp.linalg.qr(normal(k))[1], "QR"),
    "Q R": (lambda k, x: jnp.multiply(*jnp.linalg.qr(normal(k, (5, 5)))), "QR"),
    "qr of uniform": (
        lambda k, x: jnp.linalg.qr(jax.random.uniform(k, (5, 5)))[0], "iid normals"
    ),
    "the key": (lambda k, x: jax.random.key_data(k), "PRNG key"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name):
    function, why = UNREADABLE[name]

    def init(key, x):
        return {"params": {"layer": {"w": function(key, x)}, "other": jnp.ones(3)}}

    priors = infer_priors(init, jnp.ones((200, 100)))
    assert isinstance(priors["params"]["layer"]["w"], Unreadable)
    assert priors["params"]["other"] == Prior(1.0, 0.0, 0.0)
    with pytest.raises(PriorError, match=why) as info:
        check_readable(priors)
    assert "'params/layer/w'" in str(info.value)
    assert 'override_priors(priors, {"params/layer/w": infnet.Prior(mean, std)})' in str(info.value)
    if name not in ("heavy tails", "infinite", "R", "the key", "data only"):
        assert "test_priors.py" in str(info.value)
    check_readable(override_priors(priors, {"layer/w": Prior(0.0, 1.0)}))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), bias_init=flax_init.normal(0.1))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.MultiHeadDotProductAttention(num_heads=4)(x[:, None])


def test_flax_module():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    priors = infer_priors(CNN().init, x)
    variables = jax.eval_shape(CNN().init, jax.random.key(0), x)
    structure = jax.tree.structure(priors, is_leaf=lambda leaf: isinstance(leaf, Prior))
    assert structure == jax.tree.structure(variables)
    assert_prior(priors["params"]["Conv_0"]["kernel"], 0, 27**-0.5, KURT2)
    assert_prior(priors["params"]["Conv_0"]["bias"], 0, 0.1, 0)
    assert priors["params"]["BatchNorm_0"]["scale"] == Prior(1.0, 0.0, 0.0)
    assert priors["batch_stats"]["BatchNorm_0"]["var"] == Prior(1.0, 0.0, 0.0)
    assert_prior(priors["params"]["Dense_0"]["kernel"], 0, 1 / 32, KURT2)
    check_readable(priors)


def test_stacked_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(32)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
            return scan()(x, None)[0]

    priors = infer_priors(Stack().init, jnp.ones((1, 32)))
    leaves = jax.tree.leaves(priors, is_leaf=lambda p: isinstance(p, Prior))
    (kernel,) = (prior for prior in leaves if prior.std)
    assert_prior(kernel, 0.0, 32**-0.5, KURT2)


def test_static_arguments_and_jit():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))

    priors = infer_priors(Model().init, jnp.ones((1, 4)), False)
    assert_prior(priors["params"]["Dense_0"]["kernel"], 0.0, 0.5, KURT2)
    jitted = jax.jit(lambda key, x: Model().init(key, x, False))
    assert_prior(infer_priors(jitted, jnp.ones((1, 4)))["params"]["Dense_0"]["kernel"], 0, 0.5, KURT2)


def test_deep_model_is_fast():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(100):
                x = x + nn.relu(nn.Dense(64)(x))
            return x

    start = time.perf_counter()
    priors = infer_priors(Deep().init, jnp.ones((1, 64)))
    assert time.perf_counter() - start < 5
    assert_prior(priors["params"]["Dense_99"]["kernel"], 0.0, 1 / 8, KURT2)


@pytest.mark.parametrize("function", [flax_init.lecun_normal(), flax_init.ones])
def test_large_arrays_are_not_drawn(function):
    tracemalloc.start()
    before = len(jax.live_arrays())
    prior = infer_priors(lambda key: (3 * function(key, (8192, 8192)).T + 1).reshape(-1) ** 3)
    assert isinstance(prior, Prior)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # one such array has 268e6 bytes
    assert sum(a.nbytes for a in jax.live_arrays()[before:]) < 1e6
    tracemalloc.stop()


def test_inside_jit():
    def function(x):
        prior = infer_priors(CNN().init, jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))
        return x * prior["params"]["Conv_0"]["kernel"].std

    np.testing.assert_allclose(jax.jit(function)(1.0), 27**-0.5, rtol=1e-5)


def test_errors_of_init_pass():
    def init(key):
        raise RuntimeError("user's own")

    with pytest.raises(RuntimeError, match="user's own"):
        infer_priors(init)
