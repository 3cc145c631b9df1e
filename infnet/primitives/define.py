"""How a kernel transform becomes a JAX primitive: one pure function, every transformation rule derived from it.

The reference implementation `impl(*operands, **params)` returns a tuple of arrays. It is written for ONE pair of
examples and must broadcast over any number of leading axes, the same number for every operand, where any of
these axes may have size 1. That is all `define` needs:

- batching re-binds the primitive with one more leading axis, of size 1 for operands that do not depend on the
  mapped example. Quantities of one example are therefore computed once per example, never once per pair, and the
  primitive stays visible in the jaxpr under `vmap`.
- abstract evaluation and the default lowering come from `impl`; the lowering inlines it, so that XLA's sharding
  propagation sees ordinary operations.
- `jvp` is given where autodiff of `impl` would be wrong (at |rho| = 1 and at zero variance), else derived.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import Primitive, ad, batching, mlir

Implementation = Callable[..., tuple[jax.Array, ...]]


def define(name: str, impl: Implementation, *, jvp: Callable[..., Any] | None = None) -> Primitive:
    """Make the primitive `name` out of its reference implementation.

    Args:
        name: how the primitive prints in a jaxpr, ending in `_kernel`.
        impl: `(*operands, **params) -> tuple of arrays`, broadcasting over equally many leading axes.
        jvp: `(primals, tangents, **params) -> (primals_out, tangents_out)`, all tuples of arrays.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    @cache
    def compiled(params):
        return jax.jit(partial(impl, **dict(params)))

    @primitive.def_impl
    def _eager(*operands, **params):
        return compiled(tuple(sorted(params.items())))(*operands)

    @primitive.def_abstract_eval
    def _shapes(*operands, **params):
        shapes = jax.eval_shape(partial(impl, **params), *operands)
        return [jax.core.ShapedArray(s.shape, s.dtype) for s in shapes]

    def _batch(operands, axes, **params):
        lifted = [
            jnp.expand_dims(x, 0) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        outputs = primitive.bind(*lifted, **params)
        return outputs, [0] * len(outputs)

    def _jvp(primals, tangents, **params):
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        rule = jvp or (lambda p, t, **kw: jax.jvp(partial(impl, **kw), tuple(p), tuple(t)))
        return rule(primals, tangents, **params)

    batching.primitive_batchers[primitive] = _batch
    ad.primitive_jvps[primitive] = _jvp
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=True))
    return primitive


def register_platform(primitive: Primitive, platform: str, impl: Implementation) -> None:
    """Lower `primitive` by another implementation on one platform (`"cpu"`, `"cuda"`, `"tpu"`)."""
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=True), platform=platform)
