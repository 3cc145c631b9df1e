"""Well-known architectures that have no closed form: refused, at the line marked, with the reason that is theirs."""

import inspect
import re

import numpy as np
import pytest
from architectures import IMAGE, SEQUENCE, Architecture, BatchNorm, Conv, Dense, flatten, gelu, he
from flax import linen as nn

import infnet_flax
from infnet.errors import BatchAxisError, NonGaussianError, UnsupportedError


class Mixer(Architecture):
    """Tolstikhin et al. 2021, arXiv:2105.01601: weights that mix tokens, then channels."""

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width)(x)
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        y = gelu(Dense(2 * self.width)(y))  # refused
        x = x + Dense(x.shape[1])(y).swapaxes(1, 2)
        x = x + Dense(self.width)(gelu(Dense(self.width)(nn.LayerNorm()(x))))
        return Dense(self.outputs)(x.mean(1))


class MobileNet(Architecture):
    """Howard et al. 2017, arXiv:1704.04861: a nonlinearity after depthwise filters."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm()(Conv(self.width, (3, 3))(x)))
        x = Conv(self.width, (3, 3), feature_group_count=self.width)(x)
        x = nn.relu(BatchNorm()(x))  # refused
        x = nn.relu(BatchNorm()(Conv(2 * self.width, (1, 1))(x)))
        return Dense(self.outputs)(x.mean((1, 2)))


class GRU(Architecture):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.GRUCell(self.width, kernel_init=he))(x)  # refused
        return Dense(self.outputs)(x[:, -1])


class LSTM(Architecture):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(self.width, kernel_init=he))(x)  # refused
        return Dense(self.outputs)(x[:, -1])


class PostActivationResNet(Architecture):
    """He et al. 2016: the sum of a rectified feature and a convolution is rectified again."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm()(Conv(self.width, (3, 3))(x)))
        y = nn.relu(BatchNorm()(Conv(self.width, (3, 3))(x)))
        y = BatchNorm()(Conv(self.width, (3, 3))(y))
        x = nn.relu(x + y)  # refused
        return Dense(self.outputs)(x.mean((1, 2)))


class LinenTransformer(Architecture):
    """Linen divides scores by the root of a head's size."""

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width)(x)
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, kernel_init=he)(y)  # refused
        return Dense(self.outputs)(nn.LayerNorm()(x).mean(1))


class MaxPoolCNN(Architecture):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(self.width, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))  # refused
        return Dense(self.outputs)(flatten(x))


class TrainingBatchNorm(Architecture):
    @nn.compact
    def __call__(self, x):
        x = Conv(self.width, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=False)(x)  # refused
        return Dense(self.outputs)(nn.relu(x).mean((1, 2)))


# module, inputs, error, what happened, the submodule, and the reason
REFUSED = [
    (Mixer, SEQUENCE, UnsupportedError, "token mixing", "Dense_1", "scale mixture"),
    (MobileNet, IMAGE, NonGaussianError, "relu", "", "contains a depthwise or grouped convolution"),
    (GRU, SEQUENCE, NonGaussianError, "product of features", "RNN_0/GRUCell_0", "not independent of each other"),
    (LSTM, SEQUENCE, NonGaussianError, "tanh", "RNN_0/LSTMCell_0", "contains a product of features, as in a gate"),
    (PostActivationResNet, IMAGE, NonGaussianError, "relu", "", "contains relu"),
    (
        LinenTransformer,
        SEQUENCE,
        UnsupportedError,
        "not divided by their number",
        "MultiHeadDotProductAttention_0",
        "scores divided by sqrt(d)",
    ),
    (MaxPoolCNN, IMAGE, UnsupportedError, "max-pooling", "", "maximum of several random values"),
    (TrainingBatchNorm, IMAGE, BatchAxisError, "mixes the examples", "BatchNorm_0", "BatchNorm in training mode"),
]


def line_marked(module):
    lines, first = inspect.getsourcelines(module)
    return first + next(i for i, line in enumerate(lines) if "# refused" in line)


@pytest.mark.parametrize(
    ("module", "inputs", "kind", "what", "submodule", "why"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_refused_with_the_reason(module, inputs, kind, what, submodule, why):
    with pytest.raises(UnsupportedError) as caught:
        infnet_flax.kernel_fn(module(16), inputs(np.random.RandomState(0)))
    error = caught.value
    assert type(error) is kind
    assert what in error.what
    assert why in error.why
    assert error.where.module.startswith("/".join(filter(None, (module.__name__, submodule))))
    assert re.search(rf"test_refused_architectures\.py:{line_marked(module)}\b", error.where.line), error.where


def test_the_rectified_summand_of_a_post_activation_block_is_named():
    """It is the shortcut, the first relu, and not the relu of the branch, which a convolution follows."""
    with pytest.raises(NonGaussianError) as caught:
        infnet_flax.kernel_fn(PostActivationResNet(16), IMAGE(np.random.RandomState(0)))
    lines, first = inspect.getsourcelines(PostActivationResNet)
    shortcut = first + next(i for i, line in enumerate(lines) if "nn.relu" in line)
    assert f"test_refused_architectures.py:{shortcut}:" in caught.value.why
