"""What a layer of stax is: three functions. There is no kernel mathematics here.

The kernel function of every layer, composed or not, is the same: the kernel of its `apply_fn`, read off its jaxpr, with
the laws of the parameters read off its `init_fn`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infnet import functional
from infnet.api import KernelFn, kernel_fn
from infnet.arguments import example_args
from infnet.batching.blocks import Blocks
from infnet.errors import InputError
from infnet.flatten import AT
from infnet.kernel import Kernel
from infnet.priors import infer_priors
from infnet.remembered import remembered_kernel_fn

PyTree = Any
Shape = tuple[int, ...]
HERE = str(Path(__file__).parent)
Laws = Mapping[str, functional.Weight | None]


class Masked(NamedTuple):
    """What goes from layer to layer where something is not there.

    Attributes:
        x: `(n, *positions, channels)`.
        mask: `(n, *positions)`, True where there is something; None if it is there everywhere.
    """

    x: jax.Array
    mask: jax.Array | None


class Layer(NamedTuple):
    """A layer, or a network of layers, of any width.

    Attributes:
        init_fn: `(rng, input_shape) -> (output_shape, params)`, for a shape whose batch size may be -1, or a list of
            shapes.
        apply_fn: `(params, inputs, **kwargs) -> outputs`, with the keywords `rng` (for `Dropout`), `pattern` (for
            `Aggregate`), and `mask_constant`: the number that stands for inputs that are not there.
        kernel_fn: `(x1, x2=None, get=None, **kwargs)`; see `LayerKernel`.
    """

    init_fn: Callable[..., tuple[Any, PyTree]]
    apply_fn: Callable[..., PyTree]
    kernel_fn: LayerKernel


class LayerKernel:
    """The kernels of a layer's infinite-width limit; NTKs are those of its own parameters."""

    def __init__(self, init_fn: Callable[..., Any], apply_fn: Callable[..., Any]):
        self._functions = init_fn, apply_fn

    def __call__(
        self,
        x1: PyTree,
        x2: PyTree = None,
        get: Any = None,
        *,
        pattern: tuple[Any, Any] | None = None,
        mask_constant: float | None = None,
        **options: Any,
    ) -> Any:
        """The kernels between two sets of inputs, as `infnet.KernelFn` returns them.

        Args:
            x1: inputs `(n1, ...)`, a list of them, or the `Kernel` of another network without common parameters.
            x2: likewise `(n2, ...)`; None is x1.
            get: "nngp", "ntk", a tuple of these, or None for a `Kernel`.
            pattern: of `Aggregate`, the graphs of x1 and those of x2 (None if x2 is).
            mask_constant: the number that stands for inputs that are not there; see `apply_fn`.
            **options: of `infnet.kernel_fn`.

        Raises:
            InputError: shapes or names are wrong.
            UnsupportedError: the network has no closed-form limit, or infnet does not know it.
        """
        one, two = _arguments(x1, x2, pattern)
        return self._made(one, mask_constant, options)(one, two, get)

    def blocks(
        self,
        x1: PyTree,
        x2: PyTree = None,
        get: Any = None,
        *,
        pattern: tuple[Any, Any] | None = None,
        mask_constant: float | None = None,
        **options: Any,
    ) -> Blocks:
        """The kernels in blocks of examples; see `infnet.batch`. Arguments and errors are those of a call."""
        one, two = _arguments(x1, x2, pattern)
        return self._made(one, mask_constant, options).blocks(one, two, get)

    def anew(self) -> LayerKernel:
        """The same kernels, by kernel functions that nothing was computed with before; see `KernelFn.anew`."""
        init_fn, apply_fn = self._functions
        return LayerKernel(partial(init_fn), apply_fn)  # which is equal to no function that is remembered

    def at(self, x: PyTree, *, pattern: Any = None, mask_constant: float | None = None, **options: Any) -> KernelFn:
        """The `infnet.KernelFn` for inputs of the shape of x, which has `explain`, `diag` and `hyperparameters`.

        It takes the inputs as a tuple of one, or `(x, pattern)` with the graphs of `Aggregate`.
        """
        one, _ = _arguments(x, None, None if pattern is None else (pattern, None))
        return self._made(one, mask_constant, options)

    def _made(self, x: PyTree, mask_constant: float | None, options: Mapping[str, Any]) -> KernelFn:
        unknown = set(options) - OPTIONS
        if unknown:
            raise InputError(f"kernel_fn takes pattern, mask_constant and {sorted(OPTIONS)}, not {sorted(unknown)}")
        options = {**options, "mask_constant": mask_constant}
        made: KernelFn = remembered_kernel_fn(_read, self._functions, x, options)
        return made


OPTIONS = {"parameterization", "trainable", "lr_scale", "output", "cross", "precision", "tol", "q_max"}


def _read(functions: tuple[Any, Any], example: PyTree, mask_constant: float | None, **options: Any) -> KernelFn:
    """The kernel function of `init_fn` and `apply_fn`."""
    init_fn, apply_fn = functions

    def init(key: jax.Array, x: PyTree, *_: Any) -> PyTree:
        return init_fn(key, jax.tree.map(jnp.shape, x))[1]

    def apply(params: PyTree, x: PyTree, pattern: Any = None) -> PyTree:
        return apply_fn(params, x, rng=jax.random.key(0), pattern=pattern, mask_constant=mask_constant)

    return kernel_fn(apply, infer_priors(init, *example_args(example)), example, **options)


def _arguments(x1: PyTree, x2: PyTree, pattern: Any) -> tuple[PyTree, PyTree]:
    """The arguments of `apply` in `_read`, on either side."""
    for x in (x1, x2):
        if any(isinstance(leaf, Kernel) for leaf in jax.tree.leaves(x, is_leaf=lambda leaf: isinstance(leaf, Kernel))):
            if x is x1 and isinstance(x, Kernel) and x2 is None and pattern is None:
                return x, None
            raise InputError(
                "kernel_fn takes inputs, or one Kernel and nothing else: how several networks, or their inputs, depend "
                "on each other is not in their kernels; compose the networks by `serial` and `parallel`"
            )
    if pattern is None:
        return (x1,), None if x2 is None else (x2,)
    if not isinstance(pattern, tuple | list) or len(pattern) != 2 or (pattern[1] is None) != (x2 is None):
        raise InputError("pattern must be a pair: the graphs of x1, and those of x2 (None if x2 is None)")
    return (x1, pattern[0]), None if x2 is None else (x2, pattern[1])


# Making layers


def network(init_fn: Callable[..., Any], forward: Callable[..., PyTree]) -> Layer:
    """A layer of its initialiser and of what it computes.

    Args:
        init_fn: as of `Layer`.
        forward: `(params, inputs, **kwargs) -> outputs`, whose leaves are arrays or `Masked`: the outputs are `Masked`
            if the inputs are.
    """

    def apply_fn(params: PyTree, inputs: PyTree, *, mask_constant: float | None = None, **kwargs: Any) -> PyTree:
        if mask_constant is None:
            return forward(params, inputs, **kwargs)
        masked = jax.tree.map(lambda x: Masked(*functional.mask_constant(x, mask_constant)), inputs)
        outputs = forward(params, masked, **kwargs)
        return jax.tree.map(lambda y: functional.where_present(*y), outputs, is_leaf=is_masked)

    return Layer(init_fn, apply_fn, LayerKernel(init_fn, apply_fn))


def layer(
    name: str,
    forward: Callable[..., jax.Array],
    laws: Callable[[Shape], Laws] = lambda _: {},
    after: Callable[[jax.Array], jax.Array | None] = lambda mask: mask,
    kind: Callable[..., Any] = tuple,
) -> Layer:
    """A layer that takes one array.

    Args:
        name: as errors and `explain` call it.
        forward: `(params, x, mask, **kwargs) -> y`. `params` is of this `kind`, arrays multiplied by their factors.
        laws: of its parameters by their names, given the shape of the inputs.
        after: the mask of the outputs, given that of the inputs.
        kind: the NamedTuple of its parameters, if it has any.
    """

    scope = scope_of(name)

    def init_fn(rng: jax.Array, input_shape: Any) -> tuple[Any, PyTree]:
        params = drawn(kind, rng, laws(_shape(name, input_shape)))
        return output_shape(apply, params, rng, input_shape), params

    def apply(params: PyTree, inputs: PyTree, **kwargs: Any) -> PyTree:
        x, mask = split(inputs)
        if isinstance(x, list | tuple):
            raise InputError(f"{name} takes one input, not {len(x)}: join them with FanInSum, FanInProd or FanInConcat")
        x = jnp.asarray(x)
        with jax.named_scope(scope):
            y = forward(_scaled(kind, params, laws(x.shape)), x, mask, **kwargs)
        return y if not is_masked(inputs) else Masked(y, None if mask is None else after(mask))

    return network(init_fn, apply)


def scope_of(name: str) -> str:
    """The scope of a layer that is being made: errors name the line that makes it, since all are called here."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    return name if frame is None else f"{name}{AT}{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def is_masked(x: Any) -> bool:
    """Whether x is `Masked`."""
    return isinstance(x, Masked)


def split(x: Any) -> Masked:
    """x and its mask, which is None if it has none."""
    return x if is_masked(x) else Masked(x, None)


def is_shape(x: Any) -> bool:
    """Whether x is one shape, rather than a list of them."""
    return isinstance(x, tuple | list) and all(isinstance(size, int) for size in x)


def output_shape(apply: Callable[..., PyTree], params: PyTree, rng: Any, input_shape: Any) -> Any:
    """The shapes of `apply(params, inputs, rng=rng)`, with -1 for sizes that depend on those that are -1."""

    def at(n: int) -> Any:
        def inputs(shape: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct([n if size == -1 else size for size in shape], jnp.result_type(float))

        arrays = jax.tree.map(inputs, input_shape, is_leaf=is_shape)
        return jax.eval_shape(lambda x: apply(params, x, rng=rng), arrays)

    def both(one: Any, other: Any) -> Shape:
        return tuple(m if m == n else -1 for m, n in zip(one.shape, other.shape, strict=True))

    return jax.tree.map(both, at(2), at(3))


def drawn(kind: Callable[..., Any], rng: Any, laws: Laws) -> Any:
    """Parameters of these laws; an empty tuple if there are none."""
    if not laws:
        return ()
    keys = jax.random.split(rng, len(laws))
    arrays = [
        None if law is None else law.std * jax.random.normal(key, law.shape)
        for key, law in zip(keys, laws.values(), strict=True)
    ]
    return kind(*arrays)


def _scaled(kind: Callable[..., Any], params: PyTree, laws: Laws) -> Any:
    if not laws:
        return params
    if not isinstance(params, tuple | list) or len(params) != len(laws):
        raise InputError(f"params must be what init_fn returned, ({', '.join(laws)}), not {type(params).__name__!r}")
    values = [v if law is None else law.scaled(v) for v, law in zip(params, laws.values(), strict=True)]
    return kind(*values)


def _shape(name: str, shape: Any) -> Shape:
    if not is_shape(shape):
        raise InputError(f"{name} takes one input, of a shape such as (-1, 8), not {shape!r}")
    return tuple(shape)
