"""The kernels of a network as it is, at finite width and with given parameters."""

from infnet.cost import Cost as Cost
from infnet.empirical.choice import Choice as Choice
from infnet.empirical.kernels import empirical_kernel_fn as empirical_kernel_fn
from infnet.empirical.kernels import empirical_nngp_fn as empirical_nngp_fn
from infnet.empirical.kernels import empirical_ntk_fn as empirical_ntk_fn
from infnet.empirical.pseudo import empirical_pseudo_ntk_fn as empirical_pseudo_ntk_fn
from infnet.empirical.trajectory import linearized_gradient_descent_mse as linearized_gradient_descent_mse
from infnet.empirical.vector_products import empirical_ntk_vp_fn as empirical_ntk_vp_fn
