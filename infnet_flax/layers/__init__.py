"""The layers of Neural Tangents as linen modules, with linen's arguments; each has a `kernel`."""

from pathlib import Path

import infnet
from infnet_flax.layers.activations import ABRelu as ABRelu
from infnet_flax.layers.activations import Abs as Abs
from infnet_flax.layers.activations import Cos as Cos
from infnet_flax.layers.activations import Elementwise as Elementwise
from infnet_flax.layers.activations import ElementwiseNumerical as ElementwiseNumerical
from infnet_flax.layers.activations import Erf as Erf
from infnet_flax.layers.activations import Exp as Exp
from infnet_flax.layers.activations import ExpNormalized as ExpNormalized
from infnet_flax.layers.activations import Gabor as Gabor
from infnet_flax.layers.activations import Gaussian as Gaussian
from infnet_flax.layers.activations import Gelu as Gelu
from infnet_flax.layers.activations import Hermite as Hermite
from infnet_flax.layers.activations import LeakyRelu as LeakyRelu
from infnet_flax.layers.activations import Monomial as Monomial
from infnet_flax.layers.activations import Polynomial as Polynomial
from infnet_flax.layers.activations import Rbf as Rbf
from infnet_flax.layers.activations import RectifiedMonomial as RectifiedMonomial
from infnet_flax.layers.activations import Relu as Relu
from infnet_flax.layers.activations import Sigmoid_like as Sigmoid_like
from infnet_flax.layers.activations import Sign as Sign
from infnet_flax.layers.activations import Sin as Sin
from infnet_flax.layers.aggregation import Aggregate as Aggregate
from infnet_flax.layers.attention import GlobalSelfAttention as GlobalSelfAttention
from infnet_flax.layers.linear import Conv as Conv
from infnet_flax.layers.linear import ConvLocal as ConvLocal
from infnet_flax.layers.linear import ConvTranspose as ConvTranspose
from infnet_flax.layers.linear import Dense as Dense
from infnet_flax.layers.normalisation import Dropout as Dropout
from infnet_flax.layers.normalisation import LayerNorm as LayerNorm
from infnet_flax.layers.pooling import AvgPool as AvgPool
from infnet_flax.layers.pooling import GlobalAvgPool as GlobalAvgPool
from infnet_flax.layers.pooling import GlobalSumPool as GlobalSumPool
from infnet_flax.layers.pooling import SumPool as SumPool
from infnet_flax.layers.positions import DotGeneral as DotGeneral
from infnet_flax.layers.positions import Flatten as Flatten
from infnet_flax.layers.positions import Identity as Identity
from infnet_flax.layers.positions import ImageResize as ImageResize
from infnet_flax.layers.positions import Index as Index

# Errors then name the line of the model that uses a layer, not the layer's own.
infnet.exclude_from_source_lines(str(Path(__file__).parent))
