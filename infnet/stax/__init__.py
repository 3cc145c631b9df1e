"""Neural Tangents' library of layers `(init_fn, apply_fn, kernel_fn)`, by its names and with its arguments.

Settings that it has and infnet has not raise an `InputError`.
"""

from infnet.stax.activations import ABRelu as ABRelu
from infnet.stax.activations import Abs as Abs
from infnet.stax.activations import Cos as Cos
from infnet.stax.activations import Elementwise as Elementwise
from infnet.stax.activations import ElementwiseNumerical as ElementwiseNumerical
from infnet.stax.activations import Erf as Erf
from infnet.stax.activations import Exp as Exp
from infnet.stax.activations import ExpNormalized as ExpNormalized
from infnet.stax.activations import Gabor as Gabor
from infnet.stax.activations import Gaussian as Gaussian
from infnet.stax.activations import Gelu as Gelu
from infnet.stax.activations import Hermite as Hermite
from infnet.stax.activations import LeakyRelu as LeakyRelu
from infnet.stax.activations import Monomial as Monomial
from infnet.stax.activations import Polynomial as Polynomial
from infnet.stax.activations import Rbf as Rbf
from infnet.stax.activations import RectifiedMonomial as RectifiedMonomial
from infnet.stax.activations import Relu as Relu
from infnet.stax.activations import Sigmoid_like as Sigmoid_like
from infnet.stax.activations import Sign as Sign
from infnet.stax.activations import Sin as Sin
from infnet.stax.attention import GlobalSelfAttention as GlobalSelfAttention
from infnet.stax.combinators import FanInConcat as FanInConcat
from infnet.stax.combinators import FanInProd as FanInProd
from infnet.stax.combinators import FanInSum as FanInSum
from infnet.stax.combinators import FanOut as FanOut
from infnet.stax.combinators import parallel as parallel
from infnet.stax.combinators import repeat as repeat
from infnet.stax.combinators import serial as serial
from infnet.stax.layer import Layer as Layer
from infnet.stax.linear import Conv as Conv
from infnet.stax.linear import ConvLocal as ConvLocal
from infnet.stax.linear import ConvTranspose as ConvTranspose
from infnet.stax.linear import Dense as Dense
from infnet.stax.positions import Aggregate as Aggregate
from infnet.stax.positions import AvgPool as AvgPool
from infnet.stax.positions import DotGeneral as DotGeneral
from infnet.stax.positions import Dropout as Dropout
from infnet.stax.positions import Flatten as Flatten
from infnet.stax.positions import GlobalAvgPool as GlobalAvgPool
from infnet.stax.positions import GlobalSumPool as GlobalSumPool
from infnet.stax.positions import Identity as Identity
from infnet.stax.positions import ImageResize as ImageResize
from infnet.stax.positions import Index as Index
from infnet.stax.positions import LayerNorm as LayerNorm
from infnet.stax.positions import Slice as Slice
from infnet.stax.positions import SumPool as SumPool
