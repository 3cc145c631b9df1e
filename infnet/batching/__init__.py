"""Kernels of any size, in tiles."""

from infnet.batching.batch import BatchedKernelFn as BatchedKernelFn
from infnet.batching.batch import batch as batch
from infnet.batching.memory import Footprint as Footprint
