"""`empirical_kernel_fn`: the NNGP and NTK of a network with given parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet.arguments import BY_PARAM, named_kernels, names_of, one_of, positive
from infnet.empirical.axes import Axes
from infnet.empirical.contraction import jacobian_contraction
from infnet.empirical.examples import VmapAxes
from infnet.empirical.function import EmpiricalKernelFn, OfOneKind
from infnet.empirical.model import Model
from infnet.empirical.side import Side
from infnet.empirical.structured import structured_derivatives
from infnet.empirical.vector_products import ntk_vector_products
from infnet.errors import InputError

PyTree = Any
# (side1, side2, axes, rates, dtype, memory_limit) -> the NTK of one output; see `jacobian_contraction`.
Implementation = Callable[..., jax.Array]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "structured_derivatives": structured_derivatives,
    "jacobian_contraction": jacobian_contraction,
    "ntk_vector_products": ntk_vector_products,
}
# Bytes that Jacobians may take at a time, unless users say otherwise.
MEMORY_LIMIT = 2**31


def empirical_kernel_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: VmapAxes = "auto",
    implementation: str = "auto",
    *,
    trainable: Any = None,
    lr_scale: Any = None,
    memory_limit: float = MEMORY_LIMIT,
) -> EmpiricalKernelFn:
    """The kernels of a network with given parameters.

    For outputs y of shape `(n, h, c)`, say, the NNGP is y(x1) y(x2)ᴴ and the NTK is J(x1) J(x2)ᴴ with the Jacobian J of
    y in the parameters. Both have every axis of the output twice, in natural order: `(n1, n2, h, h', c, c')`. This is
    the exact kernel, which describes the training of the linearised network.

    Args:
        f: `(params, x, **kwargs) -> outputs`, any JAX function. x and the outputs are pytrees; every output has the
            examples on axis 0.
        trace_axes: axes of the outputs over which the kernel is averaged, as if they were independent and alike: the
            trace divided by their size. Neural Tangents' default is -1. Axes are counted from the examples, axis 0, or
            from the end.
        diagonal_axes: axes at which both outputs are at the same place: they appear once.
        vmap_axes: "auto" takes Jacobians example by example, on axis 0 of all inputs and outputs, if the jaxpr of `f`
            proves that the examples do not depend on each other, and otherwise for the batch as a whole. 0 insists on
            the former, None on the latter.
        implementation: of the NTK. "structured_derivatives" forms no Jacobian of the weights of dense layers,
            convolutions and embeddings unless that is cheaper, parameter by parameter; where examples depend on each
            other, or numbers are complex, it is "jacobian_contraction". "ntk_vector_products" takes a forward pass for
            every row of the kernel in place of the contraction. "auto" takes the one which by XLA's analysis has the
            fewest operations and accesses to memory, among those that stay within `memory_limit`; see `explain`.
        trainable: which parameters are trained: a predicate on paths such as `Dense_0/kernel`, a mapping from globs to
            booleans, or a pytree of the structure of the parameters. Others leave the NTK, as integers do.
        lr_scale: relative learning rates: the same, with numbers. The share of a parameter in the NTK is scaled.
        memory_limit: bytes that Jacobians may take at a time; the rest is computed in blocks. "auto" avoids what takes
            more than that altogether.

    Returns:
        `kernel_fn(x1, x2, get, params, **kwargs)`, with the method `explain`, see `EmpiricalKernelFn`. x2=None is x1
        itself. `get` is "nngp", "ntk" or "ntk_by_param" (a pytree of the structure of the parameters, whose arrays are
        their shares in the NTK and sum to it), or a tuple of these, for a namedtuple; None is ("nngp", "ntk"). Kernels
        are of the structure of the outputs; there are none between different outputs. Keyword arguments are passed to
        `f` with x1 and with x2, so data of the examples belongs into the inputs. Kernels of half-precision outputs are
        float32.

    Raises:
        InputError: an argument is of the wrong kind; or, when the kernel function is called, the outputs have no such
            axes, or are not floating-point; `f` is not holomorphic in complex parameters.
        BatchAxisError: when it is called: `vmap_axes` is 0, but the examples are not proved to be separate.
    """
    one_of("implementation", implementation, ("auto", *IMPLEMENTATIONS))
    if not (vmap_axes is None or vmap_axes == "auto" or (vmap_axes == 0 and not isinstance(vmap_axes, bool))):
        raise InputError(f'vmap_axes must be "auto", 0 or None, not {vmap_axes!r}')
    limit = int(positive("memory_limit", memory_limit))

    def compute(name: str, get: Any, kwargs: Mapping[str, Any], x1: PyTree, x2: PyTree, params: PyTree) -> PyTree:
        pair = _Pair(Model(f, params, kwargs, trainable, lr_scale), x1, x2, trace_axes, diagonal_axes)
        names = names_of(get)
        kernels = pair.kernels(names, vmap_axes, partial(IMPLEMENTATIONS[name], memory_limit=limit))
        if isinstance(get, str):
            return pair.tree_of(kernels[get])
        return pair.tree_of([named_kernels(names)(*row) for row in zip(*kernels.values(), strict=True)])

    def mirror_of(kwargs: Mapping[str, Any], x: PyTree, params: PyTree) -> Callable[[PyTree], PyTree]:
        model = Model(f, params, kwargs, trainable, lr_scale)
        model.require_separate(x)
        return _Pair(model, x, None, trace_axes, diagonal_axes).mirrored

    names = list(IMPLEMENTATIONS) if implementation == "auto" else [implementation]
    return EmpiricalKernelFn(compute, mirror_of, names, limit)


def empirical_nngp_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
) -> OfOneKind:
    """The NNGP of a network with given parameters: `nngp_fn(x1, x2, params, **kwargs)`; see `empirical_kernel_fn`."""
    # How the NTK would be computed makes no difference.
    return OfOneKind(empirical_kernel_fn(f, trace_axes, diagonal_axes, implementation="jacobian_contraction"), "nngp")


def empirical_ntk_fn(
    f: Callable[..., PyTree],
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: VmapAxes = "auto",
    implementation: str = "auto",
    **options: Any,
) -> OfOneKind:
    """The NTK of a network with given parameters: `ntk_fn(x1, x2, params, **kwargs)`; see `empirical_kernel_fn`."""
    return OfOneKind(empirical_kernel_fn(f, trace_axes, diagonal_axes, vmap_axes, implementation, **options), "ntk")


class _Pair:
    """The outputs of a model for two sets of examples."""

    def __init__(self, model: Model, x1: PyTree, x2: PyTree, trace_axes: Any, diagonal_axes: Any):
        self._model, self._x1, self._x2 = model, x1, x2
        self._structs1, self._tree = model.structs(x1)
        self._structs2 = self._structs1 if x2 is None else model.structs(x2)[0]
        names = [f"output {k}" if len(self._structs1) > 1 else "the output" for k in range(len(self._structs1))]
        self._axes = [
            Axes.read(one.shape, two.shape, trace_axes, diagonal_axes, name)
            for one, two, name in zip(self._structs1, self._structs2, names, strict=True)
        ]
        self._dtypes = [jnp.promote_types(struct.dtype, jnp.float32) for struct in self._structs1]

    def tree_of(self, kernels: list[Any]) -> PyTree:
        """In the structure of the outputs."""
        return jax.tree.unflatten(self._tree, kernels)

    def mirrored(self, kernels: PyTree) -> PyTree:
        """Kernels `tree_of` of two sets of examples, with the sets exchanged."""
        of_outputs = zip(self._axes, self._tree.flatten_up_to(kernels), strict=True)
        return self.tree_of([jax.tree.map(axes.mirrored, of_one) for axes, of_one in of_outputs])

    def kernels(
        self, names: Sequence[str], vmap_axes: VmapAxes, implementation: Implementation
    ) -> dict[str, list[PyTree]]:
        """Of every output, by name."""
        model, found = self._model, dict[str, list[PyTree]]()
        if set(names) & {"ntk", BY_PARAM}:
            sides1 = model.sides(self._x1, self._structs1, vmap_axes)
            sides2 = [None] * len(sides1) if self._x2 is None else model.sides(self._x2, self._structs2, vmap_axes)
            rows = list(zip(sides1, sides2, self._axes, self._dtypes, strict=True))
            share = partial(self._share, implementation)
            found["ntk"] = [share(*row, range(len(model.leaves))) for row in rows if "ntk" in names]
            shares = [[share(*row, place) for place in model.places] for row in rows if BY_PARAM in names]
            found[BY_PARAM] = [jax.tree.unflatten(model.tree, of_output) for of_output in shares]
        if "nngp" in names:
            found["nngp"] = self._nngp()
        return {name: found[name] for name in names}

    def _nngp(self) -> list[jax.Array]:
        ones = self._model.outputs(self._model.leaves, self._x1)
        twos = ones if self._x2 is None else self._model.outputs(self._model.leaves, self._x2)
        rows = zip(ones, twos, self._axes, self._dtypes, strict=True)
        return [axes.gram(one, two, dtype) for one, two, axes, dtype in rows]

    def _share(
        self,
        implementation: Implementation,
        side1: Side,
        side2: Side | None,
        axes: Axes,
        dtype: Any,
        numbers: Sequence[int],
    ) -> jax.Array:
        """The share of some of the trained parameters in the NTK of one output."""
        if not numbers:
            return jnp.zeros(axes.shape, dtype)
        leaves = [self._model.leaves[k] for k in numbers]
        one, two = side1.only(numbers, leaves), side2 and side2.only(numbers, leaves)
        return implementation(one, two, axes, [self._model.rates[k] for k in numbers], dtype)
