"""The models of Flax's and Haiku's examples, as users have them: a kernel, or the refusal that theory demands."""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import relu_kernels
from flax import linen as nn
from flax import nnx

import infnet_flax
import infnet_haiku
from infnet.errors import InputError, NonGaussianError, UnsupportedError

X = jnp.asarray(np.random.RandomState(0).randn(3, 5), jnp.float32)


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct((2, *sizes), dtype)


# Kernels


class Digits(nn.Module):
    """Two convolutions and pools, flattened: Flax's example for MNIST, with images of any size."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=32, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=64, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(features=256)(x.reshape((x.shape[0], -1))))
        return nn.Dense(features=10)(x)


class DigitsOfNNX(nnx.Module):
    """The same as NNX's tutorial has it, with a dropout before the readout and average pools."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(256, 256, rngs=rngs)
        self.dropout = nnx.Dropout(rate=0.025, deterministic=True, rngs=rngs)
        self.linear2 = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv1(x)))
        x = self.pool(nnx.relu(self.conv2(x)))
        x = self.dropout(nnx.relu(self.linear1(x.reshape(x.shape[0], -1))))
        return self.linear2(x)


def _relu(q12, q11, q22):
    with jax.enable_x64(True):
        root = np.sqrt(q11 * q22)
        return tuple(map(np.asarray, relu_kernels(np.clip(q12 / root, -1, 1) * root, q11, q22)))


def _by_hand(images):
    """NNGP and NTK of `Digits`, by the recursions of Jacot et al. 2018 and of Arora et al. 2019, pixel by pixel."""

    def windows(values, scale):
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (1, 1)))
        side = values.shape[2]
        shifted = [
            padded[:, :, i : i + side, i : i + side, j : j + side, j : j + side] for i in range(3) for j in range(3)
        ]
        return scale * sum(shifted)

    def pool(values):
        n, m, h, _, w, _ = values.shape
        return values.reshape(n, m, h // 2, 2, h // 2, 2, w // 2, 2, w // 2, 2).mean((3, 5, 7, 9))

    def relu(nngp, ntk):
        size = np.einsum("aahhww->ahw", nngp) if nngp.ndim == 6 else np.einsum("aa->a", nngp)
        if nngp.ndim == 6:
            q11, q22 = size[:, None, :, None, :, None], size[None, :, None, :, None, :]
        else:
            q11, q22 = size[:, None], size[None]
        values, derivatives = _relu(nngp, q11, q22)
        return values, ntk * derivatives

    pixels = np.einsum("ahwc,bijc->abhiwj", images, images)
    nngp, ntk = windows(pixels, 1 / 9), windows(pixels, 1) + 1
    nngp, ntk = map(pool, relu(nngp, ntk))
    ntk = windows(ntk, 1 / 9) + windows(nngp, 32) + 1
    nngp, ntk = map(pool, relu(windows(nngp, 1 / 9), ntk))
    sites = nngp.shape[2] * nngp.shape[4]

    def diagonal(values):
        return np.einsum("abhhww->ab", values)

    nngp, ntk = diagonal(nngp) / sites, diagonal(ntk) / sites + 64 * diagonal(nngp) + 1
    nngp, ntk = relu(nngp, ntk)
    return nngp, ntk + 256 * nngp + 1


def test_cnn_for_mnist():
    images = np.random.RandomState(0).rand(2, 8, 8, 1)
    expected = _by_hand(images)
    for model in (Digits(), DigitsOfNNX(nnx.Rngs(0))):
        found = infnet_flax.kernel_fn(model, jnp.float32(images))(jnp.float32(images), get=("nngp", "ntk"))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5)


class TextClassifier(nn.Module):
    """A bag of words: embedded, averaged over the words that are there, and two layers."""

    @nn.compact
    def __call__(self, tokens, lengths):
        words = nn.Embed(num_embeddings=20, features=16)(tokens)
        there = (jnp.arange(tokens.shape[1]) < lengths[:, None])[:, :, None]
        x = jnp.sum(words * there, axis=1) / lengths[:, None]
        return nn.Dense(2)(nn.relu(nn.Dense(32)(x)))


def test_text_classifier():
    tokens, lengths = np.random.RandomState(0).randint(0, 20, (3, 6)), np.array([3, 6, 1])
    bags = np.stack([np.bincount(t[:n], minlength=20) / n for t, n in zip(tokens, lengths, strict=True)])
    overlap = bags @ bags.T
    size = np.diag(overlap)
    # entries of the table have variance 1 / 16, and so have the first weights: 16 of both
    values, derivatives = _relu(overlap / 16, size[:, None] / 16, size / 16)
    expected = values, derivatives * (overlap + overlap + 1) + 32 * values + 1
    x = (jnp.asarray(tokens), jnp.asarray(lengths))
    found = infnet_flax.kernel_fn(TextClassifier(), x)(x, get=("nngp", "ntk"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_mlp_of_haiku():
    found = infnet_haiku.kernel_fn(hk.transform(lambda x: hk.nets.MLP([16, 16, 2])(x)), X)(X, get="ntk")
    # Haiku truncates its normal law at two standard deviations and does not make up for it
    variance = float(jax.scipy.stats.truncnorm.pdf(2.0, -2, 2)) * -4 + 1
    overlap = np.float64(X @ X.T)
    nngp, ntk = variance * overlap / 5, overlap + 1
    for width in (16, 16):
        size = np.diag(nngp)
        values, derivatives = _relu(nngp, size[:, None], size)
        nngp, ntk = variance * values, variance * ntk * derivatives + width * values + 1
    np.testing.assert_allclose(found, ntk, rtol=2e-5)


# Refusals


class ResidualBlock(nn.Module):
    features: int
    strides: tuple[int, int]
    conv: object
    norm: object

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.features, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(self.features, (1, 1), self.strides, name="conv_proj")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Flax's example for ImageNet: bottom, max-pool, blocks that rectify their sums, in two stages."""

    max_pool: bool = True

    @nn.compact
    def __call__(self, x, train=True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = conv(8, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        if self.max_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, strides in enumerate([(1, 1), (1, 1), (2, 2), (1, 1)]):
            x = ResidualBlock(8 * 2 ** (i // 2), strides, conv=conv, norm=norm)(x)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class Sentiment(nn.Module):
    """Words, an LSTM in each direction, and a classifier of where they end."""

    @nn.compact
    def __call__(self, tokens, lengths):
        words = nn.Embed(20, 8)(tokens)
        both = nn.Bidirectional(nn.RNN(nn.LSTMCell(8)), nn.RNN(nn.LSTMCell(8)))(words, seq_lengths=lengths)
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(both.mean(1))))


class FusedSentiment(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(1)(nn.RNN(nn.OptimizedLSTMCell(8))(nn.Embed(20, 8)(tokens))[:, -1])


class SequenceToSequence(nn.Module):
    """The carry of an encoder starts a decoder."""

    @nn.compact
    def __call__(self, source, target):
        carry, _ = nn.RNN(nn.LSTMCell(8), return_carry=True, name="encoder")(source)
        return nn.Dense(5)(nn.RNN(nn.LSTMCell(8), name="decoder")(target, initial_carry=carry))


class LanguageModel(nn.Module):
    """A decoder of two layers: causal attention of linen, logits by the table of the words."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(20, 16, embedding_init=nn.initializers.normal(1.0))
        x = table(tokens) + self.param("positions", nn.initializers.normal(0.02), (1, tokens.shape[1], 16))
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            attend = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False, deterministic=True)
            x = x + attend(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(nn.LayerNorm()(x))))
        return table.attend(nn.LayerNorm()(x))


class TransformerOfNNX(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x)


class RecurrentOfNNX(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(8, 8, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x)


def resnet(x, is_training, v2=False):
    return hk.nets.ResNet18(10, resnet_v2=v2)(x, is_training)


def mobilenet(x, is_training):
    return hk.nets.MobileNetV1(num_classes=10)(x, is_training)


def autoencoder(x):
    return hk.Linear(5)(hk.nets.VectorQuantizer(8, 16, 0.25)(hk.Linear(8)(x), is_training=False)["quantize"])


def haiku(function, x, **options):
    statistics = {"init_kwargs": {"is_training": True}, "call_kwargs": {"is_training": False}}
    options = options if function is autoencoder else {**statistics, **options}
    return infnet_haiku.kernel_fn(hk.transform_with_state(function), x, **options)


flax = infnet_flax.kernel_fn
INFERENCE = {"call_kwargs": {"train": False}}
IMAGE, TOKENS = shape(16, 16, 3), shape(5, dtype="int32")
SEQUENCE, LENGTHS = shape(3, 8), shape(dtype="int32")
LSTM = (NonGaussianError, "a nonlinearity .tanh.", "contains a product of features, as in a gate")
SHORTCUT = (NonGaussianError, "a nonlinearity .relu.", "contains relu")
MAX_POOL = (NonGaussianError, "a nonlinearity .relu.", "contains a maximum over windows of positions")
ATTENTION = (UnsupportedError, "not divided by their number", "attention with scores divided by sqrt")
# the call, the error, what happened, the reason, and where: a module, and a line of this file
REFUSED = {
    "ResNet": (partial(flax, ResNet(), IMAGE, **INFERENCE), *SHORTCUT, "ResNet/ResidualBlock_", "nn.relu(x + y)"),
    "ResNet without its max-pool": (
        partial(flax, ResNet(max_pool=False), IMAGE, **INFERENCE),
        *SHORTCUT,
        "ResNet/ResidualBlock_",
        "nn.relu(x + y)",
    ),
    "sentiment": (partial(flax, Sentiment(), (TOKENS, LENGTHS)), *LSTM, "LSTMCell", "nn.Bidirectional("),
    "fused sentiment": (
        partial(flax, FusedSentiment(), TOKENS),
        UnsupportedError,
        "parameters are concatenated",
        "not one parameter",
        "OptimizedLSTMCell_0",
        "nn.OptimizedLSTMCell",
    ),
    "sequence to sequence": (
        partial(flax, SequenceToSequence(), (SEQUENCE, SEQUENCE)),
        *LSTM,
        "SequenceToSequence/decoder",
        'name="decoder"',
    ),
    "language model": (
        partial(flax, LanguageModel(), TOKENS),
        *ATTENTION,
        "MultiHeadDotProductAttention_0",
        "attend(nn.LayerNorm()(x)",
    ),
    "attention of NNX": (partial(flax, TransformerOfNNX, SEQUENCE), *ATTENTION, "", "self.attention(x)"),
    "LSTM of NNX": (partial(flax, RecurrentOfNNX, SEQUENCE), *LSTM, "", "self.rnn(x)"),
    "hk.nets.ResNet18": (partial(haiku, resnet, IMAGE), *SHORTCUT, "res_net18", "hk.nets.ResNet18("),
    "hk.nets.ResNet18, version 2": (
        partial(haiku, partial(resnet, v2=True), IMAGE),
        *MAX_POOL,
        "res_net18",
        "hk.nets.ResNet18(",
    ),
    "hk.nets.MobileNetV1": (
        partial(haiku, mobilenet, IMAGE),
        NonGaussianError,
        "a nonlinearity .relu.",
        "contains a depthwise or grouped convolution",
        "mobile_net_v1/",
        "hk.nets.MobileNetV1(",
    ),
    "hk.nets.VectorQuantizer": (
        partial(haiku, autoencoder, shape(5)),
        UnsupportedError,
        "a sum over channels that is not divided by their number",
        "fluctuates from one initialisation to the next",
        "vector_quantizer",
        "hk.nets.VectorQuantizer(",
    ),
}


NOT_SAMPLED = {
    "fused sentiment": "parameters are concatenated",
    "language model": "a parameter is used a second time in another way",
    "hk.nets.VectorQuantizer": "not divided by their number",
}


@pytest.mark.parametrize("name", REFUSED)
def test_sampled_on_request(name):
    """What the refusals are about can be sampled, but for what is refused for another reason."""
    call = partial(REFUSED[name][0], on_unsupported="sample")
    if name in NOT_SAMPLED:
        with pytest.raises(UnsupportedError, match=NOT_SAMPLED[name]):
            call()
    else:
        assert any(step.sampled for step in call().computation.plan(("ntk",), (1, 2)).steps)


def _line(number):
    with open(__file__) as file:
        return file.read().splitlines()[number - 1]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, kind, what, why, module, line = REFUSED[name]
    with pytest.raises(kind, match=what) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert why in error.why
    assert module in error.where.module
    path, number, *_ = error.where.line.split(":")
    assert path.endswith("test_example_models.py")
    assert line in _line(int(number))
    assert "model.monte_carlo_kernel(" in error.remedy or name == "fused sentiment"


def test_codes_that_are_state_are_asked_for():
    def quantized(x, is_training):
        return hk.nets.VectorQuantizerEMA(8, 16, 0.25, 0.99)(hk.Linear(8)(x), is_training=is_training)["quantize"]

    with pytest.raises(InputError, match=r"the state 'vector_quantizer_ema/embeddings' .* at random: give the state"):
        haiku(quantized, shape(5))


class Observed(nn.Module):
    """A loss of the batch is computed on the way, and not returned."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        self.sow("losses", "activity", jnp.square(h - h.mean(0)).max())
        jax.debug.callback(lambda value: None, h.mean())
        return nn.Dense(2)(nn.relu(h))


def test_what_is_not_returned_is_not_read():
    plain = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    np.testing.assert_array_equal(flax(Observed(), X)(X, get="ntk"), flax(plain, X)(X, get="ntk"))
