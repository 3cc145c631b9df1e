"""Random features of the kernels of dense networks: `features(x1) @ features(x2).T` is close to the kernel."""

from infnet.random_features.function import RandomFeatures as RandomFeatures
from infnet.random_features.function import random_features as random_features
