"""A small convolutional network for 8x8 images, as one writes it in Flax. It knows nothing of infnet."""

import flax.linen as nn


class DigitsCNN(nn.Module):
    width: int = 32
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.he_normal())(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.he_normal())(x))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(self.classes)(x)
