"""The layers of Neural Tangents as Haiku modules, with Haiku's arguments."""

from pathlib import Path

import infnet
from infnet_haiku.layers.activations import ABRelu as ABRelu
from infnet_haiku.layers.activations import Abs as Abs
from infnet_haiku.layers.activations import Cos as Cos
from infnet_haiku.layers.activations import Elementwise as Elementwise
from infnet_haiku.layers.activations import ElementwiseNumerical as ElementwiseNumerical
from infnet_haiku.layers.activations import Erf as Erf
from infnet_haiku.layers.activations import Exp as Exp
from infnet_haiku.layers.activations import ExpNormalized as ExpNormalized
from infnet_haiku.layers.activations import Gabor as Gabor
from infnet_haiku.layers.activations import Gaussian as Gaussian
from infnet_haiku.layers.activations import Gelu as Gelu
from infnet_haiku.layers.activations import Hermite as Hermite
from infnet_haiku.layers.activations import LeakyRelu as LeakyRelu
from infnet_haiku.layers.activations import Monomial as Monomial
from infnet_haiku.layers.activations import Polynomial as Polynomial
from infnet_haiku.layers.activations import Rbf as Rbf
from infnet_haiku.layers.activations import RectifiedMonomial as RectifiedMonomial
from infnet_haiku.layers.activations import Relu as Relu
from infnet_haiku.layers.activations import Sigmoid_like as Sigmoid_like
from infnet_haiku.layers.activations import Sign as Sign
from infnet_haiku.layers.activations import Sin as Sin
from infnet_haiku.layers.aggregation import Aggregate as Aggregate
from infnet_haiku.layers.attention import GlobalSelfAttention as GlobalSelfAttention
from infnet_haiku.layers.linear import Conv1D as Conv1D
from infnet_haiku.layers.linear import Conv1DLocal as Conv1DLocal
from infnet_haiku.layers.linear import Conv1DTranspose as Conv1DTranspose
from infnet_haiku.layers.linear import Conv2D as Conv2D
from infnet_haiku.layers.linear import Conv2DLocal as Conv2DLocal
from infnet_haiku.layers.linear import Conv2DTranspose as Conv2DTranspose
from infnet_haiku.layers.linear import Conv3D as Conv3D
from infnet_haiku.layers.linear import Conv3DLocal as Conv3DLocal
from infnet_haiku.layers.linear import Conv3DTranspose as Conv3DTranspose
from infnet_haiku.layers.linear import Linear as Linear
from infnet_haiku.layers.normalisation import Dropout as Dropout
from infnet_haiku.layers.normalisation import LayerNorm as LayerNorm
from infnet_haiku.layers.pooling import AvgPool as AvgPool
from infnet_haiku.layers.pooling import GlobalAvgPool as GlobalAvgPool
from infnet_haiku.layers.pooling import GlobalSumPool as GlobalSumPool
from infnet_haiku.layers.pooling import SumPool as SumPool
from infnet_haiku.layers.positions import DotGeneral as DotGeneral
from infnet_haiku.layers.positions import Flatten as Flatten
from infnet_haiku.layers.positions import Identity as Identity
from infnet_haiku.layers.positions import ImageResize as ImageResize
from infnet_haiku.layers.positions import Index as Index

# Errors then name the line of the model that uses a layer, not the layer's own.
infnet.exclude_from_source_lines(str(Path(__file__).parent))
