"""infnet for Haiku: the infinite-width kernel of an unmodified `hk.transform`."""

from infnet_haiku.annotate import annotate as annotate
from infnet_haiku.annotate import transform as transform
from infnet_haiku.annotate import transform_with_state as transform_with_state
from infnet_haiku.kernel import kernel_fn as kernel_fn
