"""The layers as pure functions of arrays with given weights; `infnet_flax` and `infnet_haiku` make modules of them.

Inputs have shape `(n, *positions, channels)`. There is no kernel mathematics here: the kernel of a model that is made
of these functions is read off its jaxpr, as that of any other.
"""

from pathlib import Path

from infnet._jax import register_exclusion
from infnet.functional.activations import ab_relu as ab_relu
from infnet.functional.activations import absolute as absolute
from infnet.functional.activations import cos as cos
from infnet.functional.activations import erf as erf
from infnet.functional.activations import exp as exp
from infnet.functional.activations import gabor as gabor
from infnet.functional.activations import gaussian as gaussian
from infnet.functional.activations import gelu as gelu
from infnet.functional.activations import hermite as hermite
from infnet.functional.activations import leaky_relu as leaky_relu
from infnet.functional.activations import monomial as monomial
from infnet.functional.activations import polynomial as polynomial
from infnet.functional.activations import rbf as rbf
from infnet.functional.activations import rectified_monomial as rectified_monomial
from infnet.functional.activations import relu as relu
from infnet.functional.activations import sigmoid_like as sigmoid_like
from infnet.functional.activations import sign as sign
from infnet.functional.activations import sin as sin
from infnet.functional.attention import Attention as Attention
from infnet.functional.attention import Decay as Decay
from infnet.functional.attention import self_attention as self_attention
from infnet.functional.attention import with_positions as with_positions
from infnet.functional.convolution import conv as conv
from infnet.functional.convolution import conv_local as conv_local
from infnet.functional.convolution import conv_transpose as conv_transpose
from infnet.functional.convolution import dense as dense
from infnet.functional.convolution import local_shapes as local_shapes
from infnet.functional.dual import Dual as Dual
from infnet.functional.dual import elementwise as elementwise
from infnet.functional.dual import exp_normalized as exp_normalized
from infnet.functional.graphs import aggregate as aggregate
from infnet.functional.masks import mask_constant as mask_constant
from infnet.functional.masks import where_present as where_present
from infnet.functional.masks import window_mask as window_mask
from infnet.functional.normalisation import check_rate as check_rate
from infnet.functional.normalisation import dropout as dropout
from infnet.functional.normalisation import layer_norm as layer_norm
from infnet.functional.pooling import avg_pool as avg_pool
from infnet.functional.pooling import global_avg_pool as global_avg_pool
from infnet.functional.pooling import global_sum_pool as global_sum_pool
from infnet.functional.pooling import sum_pool as sum_pool
from infnet.functional.positions import Contractions as Contractions
from infnet.functional.positions import dot_general as dot_general
from infnet.functional.positions import flatten as flatten
from infnet.functional.positions import identity as identity
from infnet.functional.positions import image_resize as image_resize
from infnet.functional.positions import index as index
from infnet.functional.weights import Weight as Weight
from infnet.functional.weights import bias as bias
from infnet.functional.weights import channels as channels
from infnet.functional.weights import weight as weight
from infnet.functional.windows import Padding as Padding
from infnet.functional.windows import Sizes as Sizes
from infnet.functional.windows import each as each
from infnet.functional.windows import window_of as window_of

register_exclusion(str(Path(__file__).parent))  # errors name the line of the model that uses a layer
