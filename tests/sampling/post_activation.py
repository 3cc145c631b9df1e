"""The block of a residual network as torchvision and He et al. 2016 have it: the sum is rectified."""

from functools import partial

import numpy as np
from flax import linen as nn

DRAWS, IMAGE = 20, (4, 4, 3)
Conv = partial(
    nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal")
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm()(Conv(x.shape[-1])(x)))
        y = norm()(Conv(x.shape[-1])(y))
        return nn.relu(x + y)


class Network(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(self.width)(x))
        x = Block()(x)
        readout = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return nn.Dense(1, use_bias=False, kernel_init=readout)(x.mean((1, 2)))


def images():
    """Pairs of images that resemble each other more or less, `(draws, 2, *image)`."""
    rng = np.random.RandomState(0)
    one, other = rng.randn(2, DRAWS, *IMAGE).astype(np.float32)
    share = rng.uniform(0, 1, (DRAWS, 1, 1, 1)).astype(np.float32)
    return np.stack([one, share * one + np.sqrt(1 - share**2) * other], axis=1)
