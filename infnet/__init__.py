"""infnet: the infinite-width kernels (NNGP and NTK) of the JAX models you already have."""

from infnet import errors as errors
from infnet import functional as functional
from infnet import predict as predict
from infnet._jax import register_exclusion as exclude_from_source_lines
from infnet.api import KernelFn as KernelFn
from infnet.api import kernel_fn as kernel_fn
from infnet.custom import custom_kernel as custom_kernel
from infnet.kernel import Kernel as Kernel
from infnet.priors import Prior as Prior
from infnet.priors import infer_priors as infer_priors
from infnet.priors import override_priors as override_priors
