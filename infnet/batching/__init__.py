"""Kernels of any size, in tiles."""

from infnet.batching.batched import BatchedKernelFn as BatchedKernelFn
from infnet.batching.batched import batch as batch
from infnet.batching.memory import Footprint as Footprint
