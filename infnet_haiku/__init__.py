"""infnet for Haiku: the infinite-width kernel of an unmodified `hk.transform`."""

from infnet_haiku.kernel import kernel_fn as kernel_fn
