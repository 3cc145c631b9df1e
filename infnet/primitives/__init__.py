"""Kernel transforms as JAX primitives: one family a file, each made by `define`."""
