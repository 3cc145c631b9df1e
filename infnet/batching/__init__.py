"""Kernels of any size, in tiles."""
