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
- `lowerings` gives other implementations for single platforms, of equal results and better speed. `LOWERINGS` lists
  all of them, for the tests that compare each with its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import ClosedJaxpr, Primitive, ad, batching, jaxpr_as_fun, jit_is_disabled, mlir

Implementation = Callable[..., tuple[jax.Array, ...]]
# (primitive, platform) -> (reference implementation, implementation on that platform)
LOWERINGS: dict[tuple[Primitive, str], tuple[Implementation, Implementation]] = {}


def define(
    name: str,
    impl: Implementation,
    *,
    jvp: Callable[..., Any] | None = None,
    lowerings: Mapping[str, Implementation] = MappingProxyType({}),
) -> Primitive:
    """Make the primitive `name` out of its reference implementation.

    Args:
        name: how the primitive prints in a jaxpr; a kernel's ends in `_kernel`.
        impl: `(*operands, **params) -> tuple of arrays`, broadcasting over equally many leading axes.
        jvp: `(primals, tangents, **params) -> (primals_out, tangents_out)`, all tuples of arrays.
        lowerings: implementations to use instead on some platforms: "cpu", "cuda" or "tpu".
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    @cache
    def compiled(params):
        return jax.jit(partial(primitive.bind, **dict(params)))

    @primitive.def_impl
    def _eager(*operands, **params):
        if jit_is_disabled():  # else binding would come back here
            return impl(*operands, **params)
        return compiled(tuple(sorted(params.items())))(*operands)

    @primitive.def_abstract_eval
    def _shapes(*operands, **params):
        return _traced(impl, operands, params).out_avals

    def _batch(operands, axes, **params):
        lifted = [
            jnp.expand_dims(x, 0) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
        outputs = primitive.bind(*lifted, **params)
        # What depends on operands alone that are not mapped, is not mapped either.
        mapped = [x.shape[0] == size for x in outputs]
        outputs = [x if is_mapped else jnp.squeeze(x, 0) for x, is_mapped in zip(outputs, mapped, strict=True)]
        return outputs, [0 if is_mapped else None for is_mapped in mapped]

    def _jvp(primals, tangents, **params):
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        rule = jvp or (lambda p, t, **kw: jax.jvp(partial(impl, **kw), tuple(p), tuple(t)))
        return rule(primals, tangents, **params)

    batching.primitive_batchers[primitive] = _batch
    ad.primitive_jvps[primitive] = _jvp
    mlir.register_lowering(primitive, _lowering(impl))
    for platform, special in lowerings.items():
        LOWERINGS[primitive, platform] = impl, special
        mlir.register_lowering(primitive, _lowering(special), platform=platform)
    return primitive


def _traced(impl: Implementation, operands: Sequence[Any], params: Mapping[str, Any]) -> ClosedJaxpr:
    """The jaxpr of an implementation, traced once: transformations ask for it several times."""
    shapes = tuple((x.shape, jnp.dtype(x.dtype)) for x in operands)
    # What is traced inside of `jax.shard_map` belongs to its mesh.
    context = jnp.result_type(float), jax.sharding.get_abstract_mesh()
    return _trace(impl, shapes, tuple(sorted(params.items())), context)


@cache
def _trace(impl: Implementation, shapes: Any, params: Any, _context: Any) -> ClosedJaxpr:
    return jax.make_jaxpr(partial(impl, **dict(params)))(*(jax.ShapeDtypeStruct(*s) for s in shapes))


def _lowering(impl: Implementation) -> Any:
    def run(*operands: jax.Array, **params: Any) -> list[jax.Array]:
        return jaxpr_as_fun(_traced(impl, operands, params))(*operands)

    return mlir.lower_fun(run, multiple_results=True)
