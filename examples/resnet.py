"""A residual network with batch normalisation, for small images, as one writes it in Flax.

It knows nothing of infnet.
"""

import flax.linen as nn


class Block(nn.Module):
    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)

        strides = (self.stride, self.stride)
        y = nn.relu(norm(nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)))
        y = norm(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(nn.Conv(self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet18 for images of 32x32 pixels, unless it is given other sizes."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = Block(self.width * 2**stage, stride, train)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))
