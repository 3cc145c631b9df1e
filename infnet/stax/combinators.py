"""Networks of layers: one after the other, beside each other, and what joins branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.functional import where_present
from infnet.stax.layer import Layer, Masked, is_masked, is_shape, network, output_shape, scope_of, split

PyTree = Any


def serial(*layers: Any) -> Layer:
    """Layers one after the other.

    Args:
        *layers: each a `Layer`, or a pair `(init_fn, apply_fn)` as of `jax.example_libraries.stax`.
    """
    pairs = [_functions(layer) for layer in layers]

    def init_fn(rng: Any, input_shape: Any) -> tuple[Any, PyTree]:
        params = []
        for (init, _), key in zip(pairs, _keys(rng, len(pairs)), strict=True):
            input_shape, own = init(key, input_shape)
            params.append(own)
        return input_shape, params

    def forward(params: PyTree, inputs: PyTree, rng: Any = None, **kwargs: Any) -> PyTree:
        every = zip(pairs, _each(params, len(pairs)), _keys(rng, len(pairs)), strict=True)
        for i, ((_, apply), own, key) in enumerate(every):
            with jax.named_scope(str(i)):  # the path of its parameters
                inputs = apply(own, inputs, rng=key, **kwargs)
        return inputs

    return network(init_fn, forward)


def parallel(*layers: Any) -> Layer:
    """Layers beside each other: a list of inputs to the list of what each makes of its own.

    Args:
        *layers: as of `serial`.
    """
    pairs = [_functions(layer) for layer in layers]

    def init_fn(rng: Any, input_shape: Any) -> tuple[Any, PyTree]:
        shapes, keys = _branches("parallel", input_shape, len(pairs)), _keys(rng, len(pairs))
        made = [init(key, shape) for (init, _), key, shape in zip(pairs, keys, shapes, strict=True)]
        return [shape for shape, _ in made], [own for _, own in made]

    def forward(params: PyTree, inputs: PyTree, rng: Any = None, **kwargs: Any) -> PyTree:
        branches, keys = _branches("parallel", inputs, len(pairs)), _keys(rng, len(pairs))
        every = zip(pairs, _each(params, len(pairs)), branches, keys, strict=True)
        outputs = []
        for i, ((_, apply), own, x, key) in enumerate(every):
            with jax.named_scope(str(i)):
                outputs.append(apply(own, x, rng=key, **kwargs))
        return outputs

    return network(init_fn, forward)


def repeat(layer: Any, n: int) -> Layer:
    """The same layer n times in a row, each time with parameters of its own.

    Raises:
        InputError: n is not an integer >= 0.
    """
    if not isinstance(n, int) or n < 0:
        raise InputError(f"a layer is repeated n >= 0 times, not {n!r}")
    return serial(*[layer] * n)


def FanOut(num: int) -> Layer:
    """The inputs, `num` times."""
    if not isinstance(num, int) or num < 1:
        raise InputError(f"FanOut needs a number of branches >= 1, not {num!r}")
    return _without_params("FanOut", lambda inputs: [inputs] * num)


def FanInSum() -> Layer:
    """The sum of a list of inputs. It is there where one of them is."""
    return _without_params("FanInSum", lambda inputs: _joined("FanInSum", inputs, jnp.add))


def FanInProd() -> Layer:
    """The product of a list of inputs. It is there where one of them is; what is not there is zero."""
    return _without_params("FanInProd", lambda inputs: _joined("FanInProd", inputs, jnp.multiply))


def FanInConcat(axis: int = -1) -> Layer:
    """A list of inputs, one after the other along an axis.

    Raises:
        InputError: later, if their shapes differ elsewhere, or if this is the axis of the examples.
    """

    def join(inputs: PyTree) -> PyTree:
        branches = [split(x) for x in _branches("FanInConcat", inputs)]
        values = [where_present(*branch) for branch in branches]
        ndim = values[0].ndim
        if not isinstance(axis, int) or not -ndim <= axis < ndim or axis % ndim == 0:
            raise InputError(f"FanInConcat joins inputs of {ndim} axes along one that is not the first, not {axis!r}")
        _check_shapes("FanInConcat", [x.shape[: axis % ndim] + x.shape[axis % ndim + 1 :] for x in values])
        y = jnp.concatenate(values, axis)
        if not is_masked(inputs[0]):
            return y
        masks = [_mask(branch) for branch in branches]
        return Masked(y, _any(masks) if axis % ndim == ndim - 1 else jnp.concatenate(masks, axis % ndim))

    return _without_params("FanInConcat", join)


def _joined(name: str, inputs: PyTree, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> PyTree:
    branches = [split(x) for x in _branches(name, inputs)]
    values = [where_present(*branch) for branch in branches]
    _check_shapes(name, [x.shape for x in values])
    y = reduce(combine, values)
    masks = [branch.mask for branch in branches if branch.mask is not None]
    return Masked(y, _any(masks) if len(masks) == len(branches) else None) if is_masked(inputs[0]) else y


def _without_params(name: str, combine: Callable[[PyTree], PyTree]) -> Layer:
    scope = scope_of(name)

    def forward(_: PyTree, inputs: PyTree, **__: Any) -> PyTree:
        with jax.named_scope(scope):
            return combine(inputs)

    def init_fn(rng: Any, input_shape: Any) -> tuple[Any, PyTree]:
        return output_shape(forward, (), rng, input_shape), ()

    return network(init_fn, forward)


def _functions(layer: Any) -> tuple[Any, Any]:
    if isinstance(layer, tuple) and len(layer) >= 2 and callable(layer[0]) and callable(layer[1]):
        return layer[0], layer[1] if isinstance(layer, Layer) else _of_arrays(layer[1])
    raise InputError(f"a layer is a tuple (init_fn, apply_fn, kernel_fn), not {layer!r}; was it called, as in Relu()?")


def _of_arrays(apply: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function of a layer that is not infnet's, and knows nothing of masks."""

    def apply_fn(params: PyTree, inputs: PyTree, **kwargs: Any) -> PyTree:
        if any(map(is_masked, jax.tree.leaves(inputs, is_leaf=is_masked))):
            raise InputError(f"mask_constant needs layers of infnet.stax: {apply} takes no masks")
        return apply(params, inputs, **kwargs)

    return apply_fn


def _keys(rng: Any, n: int) -> Sequence[Any]:
    return [None] * n if rng is None or not n else list(jax.random.split(rng, n))


def _each(params: PyTree, n: int) -> Sequence[PyTree]:
    if not isinstance(params, list | tuple) or len(params) != n:
        raise InputError(f"params must be what init_fn returned: a list for {n} layers")
    return params


def _branches(name: str, inputs: PyTree, n: int | None = None) -> Sequence[PyTree]:
    """A list of inputs or shapes, n of them."""
    is_one = is_masked(inputs) or is_shape(inputs) or not isinstance(inputs, list | tuple) or not inputs
    if is_one or n not in (None, len(inputs)):
        expected = "a list of inputs" if n is None else f"a list of {n} inputs"
        found = f"{len(inputs)}" if not is_one else "one"
        raise InputError(f"{name} takes {expected}, not {found}: FanOut makes a list of one input")
    return inputs


def _check_shapes(name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(shapes)) > 1:
        raise InputError(f"the inputs of {name} have different shapes: {', '.join(map(str, shapes))}")


def _mask(branch: Masked) -> jax.Array:
    shape = branch.x.shape[:-1]
    return jnp.ones(shape, bool) if branch.mask is None else jnp.broadcast_to(branch.mask, shape)


def _any(masks: Sequence[jax.Array]) -> jax.Array:
    return reduce(jnp.logical_or, masks)
