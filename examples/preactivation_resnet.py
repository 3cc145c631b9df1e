"""A small pre-activation ResNet for images, as one writes it in Flax. It knows nothing of infnet."""

import flax.linen as nn


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), name="conv1")(nn.relu(nn.LayerNorm(name="norm1")(x)))
        y = nn.Conv(self.width, (3, 3), name="conv2")(nn.relu(nn.LayerNorm(name="norm2")(y)))
        return x + y


class ResNet(nn.Module):
    width: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), strides=(2, 2), name="stem")(x)
        x = Block(self.width, name="block1")(x)
        x = nn.Conv(2 * self.width, (3, 3), strides=(2, 2), name="down")(x)
        x = Block(2 * self.width, name="block2")(x)
        x = nn.relu(nn.LayerNorm(name="norm")(x)).mean((1, 2))
        return nn.Dense(self.classes, name="head")(x)
