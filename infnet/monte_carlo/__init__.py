"""Kernels estimated from random networks of finite width, with the standard error of every entry."""

from infnet.monte_carlo.estimate import Estimate as Estimate
from infnet.monte_carlo.function import MonteCarloKernelFn as MonteCarloKernelFn
from infnet.monte_carlo.function import monte_carlo_kernel_fn as monte_carlo_kernel_fn
