"""Contraction of a random feature with an iid weight: Dense and convolution.

For u = sum_{k,c} W_{k,c} h_{.,c} with iid W of effective variance s2 and gradient factor g2, over C channels,

    S'[i, j] = s2 C sum_k S[(i,k), (j,k)],      T'[i, j] = C sum_k (s2 T + g2 S)[(i,k), (j,k)]

(Lee et al. 2018, arXiv:1711.00165, eq. 5, and Jacot et al. 2018, arXiv:1806.07572, theorem 1, for Dense; Novak et al.
2019, arXiv:1810.05148, section 2.2.2, and Arora et al. 2019, arXiv:1904.11955, section 4, for convolutions; with the
channel sum kept rather than normalised, so that any parameterization follows from s2 and g2). The windows read zeros
outside. Linear in (S, T), so nothing special happens at |rho| = 1.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp

from infnet.layout import Layout, masked
from infnet.primitives.define import define
from infnet.primitives.windows import Window, conv_sum, conv_tap

# What a contraction does to each pair of index axes: a Window, or None where it sums over all positions.
Geometry = tuple[Window | None, ...]


def _impl(
    s2: jax.Array,
    g2: jax.Array,
    *moments: jax.Array,
    layout: Layout,
    geometry: Geometry,
    channels: int,
    uniform: tuple[bool, bool],
) -> tuple[jax.Array, ...]:
    """`s2`, `g2`: one axis per index axis, of the size of the window (of size 1 where they do not vary)."""

    def contract(moment: jax.Array, factor: jax.Array, is_uniform: bool) -> jax.Array:
        if is_uniform:
            summed = _sum_taps(moment, layout, geometry)
            scale = factor.reshape(factor.shape[: factor.ndim - len(geometry)])
            return jnp.expand_dims(scale, range(scale.ndim, summed.ndim)) * summed
        return _weighted_sum(moment, factor, layout, geometry)

    s, *t = (masked(layout, m) for m in moments)
    new_s = channels * contract(s, s2, uniform[0])
    if not t:
        return (new_s,)
    return new_s, channels * (contract(t[0], s2, uniform[0]) + contract(s, g2, uniform[1]))


def _sum_taps(moment: jax.Array, layout: Layout, geometry: Geometry) -> jax.Array:
    start = moment.ndim - 2 * len(geometry)
    for axis, (window, offsets) in reversed(list(enumerate(zip(geometry, layout.offsets, strict=True)))):
        r = start + 2 * axis
        moment = moment.sum((r, r + 1)) if window is None else conv_sum(moment, r, offsets, window)
    return moment


def _weighted_sum(moment: jax.Array, factor: jax.Array, layout: Layout, geometry: Geometry) -> jax.Array:
    """The sum over taps with a variance for each tap, as `delta_orthogonal` initialisation has it."""
    k = len(geometry)
    lead = factor.ndim - k
    total = jnp.zeros((), moment.dtype)
    for taps in itertools.product(*(range(n) for n in factor.shape[lead:])):
        term, r = moment, lead
        weight = factor[(..., *taps)]
        for tap, n, window, offsets in zip(taps, factor.shape[lead:], geometry, layout.offsets, strict=True):
            if window is None:
                term = term.sum((r, r + 1)) if n == 1 else term[(slice(None),) * r + (0, tap)]
                continue
            term = conv_sum(term, r, offsets, window) if n == 1 else conv_tap(term, r, offsets, window, tap)
            r += 2
        total = total + jnp.expand_dims(weight, range(weight.ndim, term.ndim)) * term
    return total


dense_p = define("dense_kernel", _impl)
conv_p = define("conv_kernel", _impl)


def contraction(
    s: jax.Array,
    t: jax.Array | None,
    s2: jax.Array,
    g2: jax.Array,
    *,
    layout: Layout,
    geometry: Geometry,
    channels: int,
) -> tuple[jax.Array, ...]:
    """Moments of a weight contraction.

    Args:
        s, t: second moment and tangent kernel of the operands, blocks in `layout`; `t=None` if not wanted.
        s2, g2: effective variance and gradient factor of the weight, one axis per index axis: of the size of the
            window (or of the flattened axis) where they vary along it, else of size 1.
        layout: of the operands' blocks. A window needs the offsets `conv_offsets` gives, a sum only the diagonal.
        geometry: what happens to each index axis.
        channels: number of channels contracted.

    Returns:
        (S',) or (S', T'); index axes that are summed over disappear.
    """
    windows = [w for w in geometry if w is not None]
    primitive = dense_p if all(w.is_identity for w in windows) else conv_p
    uniform = (math.prod(s2.shape) == 1, math.prod(g2.shape) == 1)
    moments = (s,) if t is None else (s, t)
    return tuple(primitive.bind(s2, g2, *moments, layout=layout, geometry=geometry, channels=channels, uniform=uniform))
