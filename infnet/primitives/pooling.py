"""Sums over windows of positions, of each feature by itself (average and sum pooling).

For u_i = sum_k h_{s i + k}: `M'[i, j] = sum_{k, l} M[s i + k, s j + l]`, for second moments and tangent kernels alike
(both are bilinear; Novak et al. 2019, arXiv:1810.05148, section 3.2). Reads zeros outside.
"""

from __future__ import annotations

import jax

from infnet.layout import Layout, Offsets, masked
from infnet.primitives.define import define
from infnet.primitives.windows import Window, pool_sum


def _impl(
    *moments: jax.Array, layout: Layout, wanted: tuple[Offsets, ...], windows: tuple[Window, ...]
) -> tuple[jax.Array, ...]:
    def pool(moment: jax.Array) -> jax.Array:
        start = moment.ndim - 2 * len(windows)
        moment = masked(layout, moment)
        for axis, (window, have, want) in enumerate(zip(windows, layout.offsets, wanted, strict=True)):
            if not window.is_identity:
                moment = pool_sum(moment, start + 2 * axis, have, want, window)
        return moment

    return tuple(pool(m) for m in moments)


pool_p = define("pool_kernel", _impl)


def pooling(
    moments: tuple[jax.Array, ...], *, layout: Layout, wanted: tuple[Offsets, ...], windows: tuple[Window, ...]
) -> tuple[jax.Array, ...]:
    """Moments of sums over windows.

    Args:
        moments: blocks of the operands in `layout`, whose offsets are those `pool_offsets` gives.
        layout: of the operands' blocks.
        wanted: the offsets of the result, for each pair of index axes.
        windows: the window on each index axis (the identity where nothing is pooled).
    """
    return tuple(pool_p.bind(*moments, layout=layout, wanted=wanted, windows=windows))
