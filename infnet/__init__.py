"""infnet: the infinite-width kernels (NNGP and NTK) of the JAX models you already have."""

from infnet import errors as errors
from infnet import functional as functional
from infnet import predict as predict
from infnet import stax as stax
from infnet._jax import register_exclusion as exclude_from_source_lines
from infnet.api import KernelFn as KernelFn
from infnet.api import kernel_fn as kernel_fn
from infnet.arguments import example_args as example_args
from infnet.custom import custom_kernel as custom_kernel
from infnet.empirical import empirical_kernel_fn as empirical_kernel_fn
from infnet.empirical import empirical_nngp_fn as empirical_nngp_fn
from infnet.empirical import empirical_ntk_fn as empirical_ntk_fn
from infnet.empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
from infnet.empirical import empirical_pseudo_ntk_fn as empirical_pseudo_ntk_fn
from infnet.empirical import linearized_gradient_descent_mse as linearized_gradient_descent_mse
from infnet.kernel import Kernel as Kernel
from infnet.linearize import linearize as linearize
from infnet.linearize import taylor_expand as taylor_expand
from infnet.monte_carlo import Estimate as Estimate
from infnet.monte_carlo import monte_carlo_kernel_fn as monte_carlo_kernel_fn
from infnet.priors import Prior as Prior
from infnet.priors import infer_priors as infer_priors
from infnet.priors import override_priors as override_priors
from infnet.provenance import recognise_prior as recognise_prior
from infnet.remembered import remembered as remembered
from infnet.remembered import remembered_kernel_fn as remembered_kernel_fn
