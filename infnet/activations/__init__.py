"""Recognition of elementwise functions by what they compute, and what layers need to know of them."""

from infnet.activations.joint import joint_kernel as joint_kernel
from infnet.activations.protocol import Activation as Activation
from infnet.activations.recognise import recognise as recognise
