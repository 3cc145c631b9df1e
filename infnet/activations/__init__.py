"""Recognition of elementwise functions by what they compute, and their kernels in closed form."""

from infnet.activations.closed_forms import Activation as Activation
from infnet.activations.closed_forms import joint_kernel as joint_kernel
from infnet.activations.recognise import recognise as recognise
