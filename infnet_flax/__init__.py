"""infnet for Flax: give an unmodified model, of linen or NNX, the kernel of its infinite-width limit."""

from infnet_flax.annotate import annotate as annotate
from infnet_flax.kernel import kernel_fn as kernel_fn
