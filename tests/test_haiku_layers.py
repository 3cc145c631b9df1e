"""Layers, cores and initialisers of Haiku, against the oracles of their Flax counterparts."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, conv, dense, examples
from flax import linen as nn
from recurrence import X1, X2, D, N, check, deep, readout, recursion, relu_moments
from scipy import stats
from test_embeddings import IDS1, IDS2, VOCABULARY, WORDS
from test_priors import KURT2, VAR2, assert_prior, assert_sampled, scaled

import infnet_flax
import infnet_haiku
from infnet.errors import UnsupportedError
from infnet.priors import Prior, infer_priors

RNG = np.random.RandomState(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# Recurrent cores

TRUNCATED = stats.truncnorm(-2, 2).std()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("unroll", ["dynamic_unroll", "static_unroll"])
def test_vanilla_rnn(unroll):
    def model(x):
        core = hk.VanillaRNN(N)
        outputs, _ = getattr(hk, unroll)(core, x.swapaxes(0, 1), core.initial_state(len(x)))
        return hk.Linear(3, with_bias=False)(outputs[-1])

    k = infnet_haiku.kernel_fn(hk.without_apply_rng(hk.transform(model)), X1.astype(np.float32), precision="highest")
    found = k(X1.astype(np.float32), X2.astype(np.float32), ("nngp", "ntk"))
    x1, x2 = (x.astype(np.float32).astype(float) for x in (X1, X2))
    options = {"s_x": TRUNCATED / np.sqrt(D), "s_h": TRUNCATED / np.sqrt(N), "s_b": 0.0, "biases": 2}
    state, tangent = (a[:, :, -1, -1] for a in recursion(x1, x2, relu_moments, **options))
    check(found, (TRUNCATED**2 * state, N * state + TRUNCATED**2 * tangent), rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_layer_stack():
    x1, x2 = RNG.randn(2, N), RNG.randn(3, N)

    def model(x):
        init = hk.initializers.RandomNormal(1 / np.sqrt(N))
        layer = hk.experimental.layer_stack(3)(lambda z: jax.nn.relu(hk.Linear(N, with_bias=False, w_init=init)(z)))
        return hk.Linear(3, with_bias=False, w_init=init)(layer(x))

    k = infnet_haiku.kernel_fn(hk.without_apply_rng(hk.transform(model)), x1)
    check(k(x1, x2, ("nngp", "ntk")), readout(*deep(x1, x2, 3)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [hk.GRU, hk.LSTM], ids=lambda kind: kind.__name__)
def test_gated_cores_are_refused(kind):
    def model(x):
        core = kind(N)
        return hk.Linear(3)(hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(len(x)))[0][-1])

    x = X1.astype(np.float32)
    with pytest.raises(UnsupportedError) as caught:
        infnet_haiku.kernel_fn(hk.without_apply_rng(hk.transform(model)), x)(x)
    assert "test_haiku_layers.py" in caught.value.where.line


# Other layers


@pytest.mark.usefixtures("float64")
def test_dropout():
    keep = 0.75

    def f(x):
        h = jax.nn.relu(hk.Linear(8)(x))
        return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 1 - keep, h))

    x = np.float32(RNG.randn(4, 5))
    dropped = infnet_haiku.kernel_fn(hk.transform(f), x, rng=jax.random.PRNGKey(0))(x, get="nngp")

    def plain(x):
        return hk.Linear(2)(jax.nn.relu(hk.Linear(8)(x)))

    before = infnet_haiku.kernel_fn(hk.transform(plain), x)(x, get="nngp")
    np.testing.assert_allclose(dropped, np.where(np.eye(4, dtype=bool), before / keep, before), rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_lookups():
    net = hk.without_apply_rng(
        hk.transform(lambda t: hk.Embed(VOCABULARY, 16, w_init=hk.initializers.RandomNormal())(t))
    )
    nngp, ntk = infnet_haiku.kernel_fn(net, IDS1)(IDS1, IDS2, ("nngp", "ntk"))
    np.testing.assert_allclose(nngp, WORDS, rtol=1e-6)
    np.testing.assert_allclose(ntk, WORDS, rtol=1e-6)


def test_norms():
    x = examples(3, 4, 2)[0]

    def haiku_kernels(norm):
        def f(x):
            x = hk.Conv2D(8, (3, 3), w_init=hk.initializers.VarianceScaling(1.0, "fan_in", "normal"))(x)
            return hk.Linear(2, w_init=hk.initializers.VarianceScaling(1.0, "fan_in", "normal"))(
                jax.nn.relu(norm()(x)).mean((1, 2))
            )

        return infnet_haiku.kernel_fn(hk.transform(f), x)(x, None, ("nngp", "ntk"))

    def flax_kernels(norm):
        def body(module, width, x):
            return nn.relu(norm()(conv(8, bias_init=nn.initializers.zeros)(x))).mean((1, 2))

        class Zero(Model):
            @nn.compact
            def __call__(self, x):
                return dense(2, bias_init=nn.initializers.zeros)(self.body(self, self.width, x))

        return infnet_flax.kernel_fn(Zero(body, 8), x)(x, None, ("nngp", "ntk"))

    pairs = [
        (lambda: hk.LayerNorm(-1, True, True), lambda: nn.LayerNorm(epsilon=1e-5)),
        (lambda: hk.RMSNorm(-1), lambda: nn.RMSNorm(epsilon=1e-5)),
        (lambda: hk.GroupNorm(2), lambda: nn.GroupNorm(2, epsilon=1e-5)),
    ]
    for of_haiku, of_flax in pairs:
        for one, two in zip(haiku_kernels(of_haiku), flax_kernels(of_flax), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_a_decoder():
    def decode(x):
        x = hk.Linear(2 * 3 * 8)(x).reshape(-1, 2, 3, 8)
        return hk.Conv2DTranspose(4, 3, stride=2, with_bias=False)(x)

    x = RNG.randn(2, 36)
    kernel = infnet_haiku.kernel_fn(hk.without_apply_rng(hk.transform(decode)), x)(x, get="nngp")
    assert kernel.shape == (2, 2, 4, 4, 6, 6)


@pytest.mark.parametrize("x64", [False, True])
def test_initializers(x64):
    shape = (60, 80)
    cases = {
        "constant": (hk.initializers.Constant(0.3), 0.3, 0.0, 0.0),
        "normal": (hk.initializers.RandomNormal(0.2, 0.1), 0.1, 0.2, 0.0),
        "truncated": (hk.initializers.TruncatedNormal(0.2, 0.1), 0.1, 0.2 * VAR2**0.5, KURT2),
        "uniform": (hk.initializers.RandomUniform(-0.1, 0.5), 0.2, 0.6 / 12**0.5, -1.2),
        "scaling": (
            hk.initializers.VarianceScaling(2.0, "fan_avg", "uniform"),
            *scaled(2.0, "fan_avg", "uniform", shape),
        ),
        "orthogonal": (hk.initializers.Orthogonal(), 0.0, 1 / 80**0.5, -6 / 82),
        "identity": (hk.initializers.Identity(), np.eye(*shape), 0.0, 0.0),
    }
    with jax.enable_x64(x64):

        def forward():
            for name, (function, *_) in cases.items():
                dtype = jnp.float64 if x64 else jnp.float32
                hk.get_parameter(name, shape, dtype, init=function)

        init = hk.transform(forward).init
        priors, draws = infer_priors(init), jax.jit(init)(jax.random.PRNGKey(0))
    assert jax.tree.structure(priors, is_leaf=lambda x: isinstance(x, Prior)) == jax.tree.structure(draws)
    for name, (_, *expected) in cases.items():
        assert_prior(priors["~"][name], *expected)
        if name != "orthogonal" and not x64:
            assert_sampled(priors["~"][name], draws["~"][name])
