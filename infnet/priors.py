"""Priors: the law of each parameter's elements at initialisation, read off the jaxpr of `init`.

A kernel depends on the initialiser through the mean and the standard deviation of each parameter's
elements only; the kurtosis tells how far a layer of finite fan-in is from Gaussian. `infer_priors`
traces `init` with abstract values and reads these off, in closed form for the initialisers in use
(`laws/`), without a table of their names. No parameter is drawn.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from infnet._jax import ClosedJaxpr, summarize
from infnet.errors import InputError, Where
from infnet.errors.laws import UNREADABLE_LAW
from infnet.laws.moments import Cumulants, Moments, NoLaw, Pointwise, compress, constant_cumulants
from infnet.laws.read_init import read
from infnet.laws.values import DATA, Constant, Factor, Key, Opaque, Value

PyTree = Any


@dataclass(frozen=True)
class Prior:
    """The law of each element of one parameter array at initialisation.

    Attributes:
      mean: a float, or an array broadcastable to the parameter where it varies over its elements.
      std: the standard deviation, likewise.
      kurtosis: the excess kurtosis (0 for a normal, −6/5 for a uniform law), likewise.
      shape, dtype: of the parameter array; `infer_priors` fills them in.
    """

    mean: float | np.ndarray
    std: float | np.ndarray
    kurtosis: float | np.ndarray = 0.0
    shape: tuple[int, ...] | None = field(default=None, compare=False)
    dtype: Any = field(default=None, compare=False)


jax.tree_util.register_dataclass(Prior, ["mean", "std", "kurtosis"], ["shape", "dtype"])


@dataclass(frozen=True)
class Unreadable:
    """In place of a `Prior` that could not be read: where, the parameter and the line of `init`, and why not."""

    where: Where
    why: str
    shape: tuple[int, ...]
    dtype: Any


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter, such as `params/Dense_0/kernel`, of its path in the pytree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# Inference.


def infer_priors(init_fn: Callable[..., PyTree], *example_args: Any) -> PyTree:
    """The priors of all parameters that `init_fn(key, *example_args)` returns.

    Nothing is drawn. Elements must be independent, or uncorrelated as those of an orthogonal matrix.
    A parameter whose law cannot be read comes out as `Unreadable`: replace it with
    `override_priors`, or it will raise where it is needed (`check_readable`). Arrays that are not
    random (batch statistics) come out with std 0. That floats, and half-precision ones more so, take
    values on a grid is ignored.

    Args:
      init_fn: any JAX function of a PRNG key (typed or raw) and example arguments, such as
        `module.init` of a flax or `transformed.init` of a haiku model.
      *example_args: pytrees of arrays or `jax.ShapeDtypeStruct`. Leaves that are neither (flags) are
        passed as they are.

    Returns:
      A pytree of `Prior` of the structure of `init_fn`'s result.
    """
    leaves, tree = jax.tree.flatten(example_args)
    traced = [hasattr(leaf, "shape") for leaf in leaves]

    def init(key: jax.Array, arrays: list[Any]) -> PyTree:
        rest = iter(arrays)
        filled = [next(rest) if t else leaf for t, leaf in zip(traced, leaves, strict=True)]
        return init_fn(key, *jax.tree.unflatten(tree, filled))

    arrays = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
    key, jaxpr, shapes = _trace(init, arrays)
    with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
        values = read(jaxpr, [Key(key), *[DATA] * len(arrays)], [True] * len(jaxpr.jaxpr.outvars))
    paths, out_tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = [path_name(path) for path, _ in paths]
    with np.errstate(all="ignore"):
        priors = [_prior(name, value, aval) for name, value, (_, aval) in zip(names, values, paths, strict=True)]
    return jax.tree.unflatten(out_tree, priors)


def _trace(init: Callable[..., PyTree], arrays: list[Any]) -> tuple[jax.Array, ClosedJaxpr, PyTree]:
    """Traces with a typed key; code that computes with keys as numbers needs a raw one."""
    errors: list[Exception] = []
    for make_key in (jax.random.key, jax.random.PRNGKey):
        with jax.ensure_compile_time_eval():
            key = make_key(0)
        try:
            jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)(key, arrays)
        except Exception as error:
            errors.append(error)
        else:
            return key, jaxpr, shapes
    raise errors[0]


def _prior(name: str, value: Value, aval: Any) -> Prior | Unreadable:
    try:
        mean, variance, _, fourth = _cumulants(value).orders
    except NoLaw as reason:
        return _unreadable(name, value, str(reason), aval)
    variance = np.maximum(variance, 0.0)
    kurtosis = compress(np.where(variance > 0, fourth / variance**2, 0.0))
    if not all(np.isfinite(x).all() for x in (mean, variance, kurtosis)):
        return _unreadable(name, value, "its mean or standard deviation is not finite", aval)
    return Prior(_scalar(mean), _scalar(variance**0.5), _scalar(kurtosis), aval.shape, aval.dtype)


def _scalar(x: np.ndarray) -> float | np.ndarray:
    return x if np.ndim(x) else float(x)


def _cumulants(value: Value) -> Cumulants:
    if isinstance(value, Constant):
        return constant_cumulants(value.value)
    if isinstance(value, Pointwise | Moments):
        return value.cumulants
    if isinstance(value, Opaque):
        raise NoLaw(value.why)
    if isinstance(value, Factor):
        raise NoLaw("it is computed from the R of a QR factorisation")
    raise NoLaw("it is computed from the PRNG key other than by jax.random's uniform floats")


def _unreadable(name: str, value: Value, why: str, aval: Any) -> Unreadable:
    where = Where(name)
    if isinstance(value, Opaque) and value.eqn is not None:
        lines = (summarize(eqn.source_info).strip(" :") for eqn in (value.eqn, *value.calls))
        where, why = Where(name, next(filter(None, lines), "")), f"`{value.eqn.primitive}`: {why}"
    return Unreadable(where, why, aval.shape, aval.dtype)


def check_readable(priors: PyTree) -> None:
    """Raises a `PriorError` for the first parameter whose law could not be read."""
    for leaf in jax.tree.leaves(priors, is_leaf=_is_prior):
        if isinstance(leaf, Unreadable):
            raise UNREADABLE_LAW.at(leaf.where, name=leaf.where.module, why=leaf.why)


# Overrides.


def override_priors(priors: PyTree, overrides: Mapping[str, Prior]) -> PyTree:
    """Priors with some replaced by hand.

    Args:
      priors: a pytree of `Prior`, as `infer_priors` returns.
      overrides: priors by parameter path (`"params/Dense_0/kernel"`; the leading `params/` may be
        left out) or glob (`"*/bias"`; `*` crosses `/`). Where several match, the last one counts.

    Returns:
      A new pytree.

    Raises:
      InputError: for a pattern that matches nothing, and for what is not a valid prior.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(priors, is_leaf=_is_prior)
    names = [path_name(path) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    for pattern, prior in overrides.items():
        _check(pattern, prior)
        matches = [i for i, name in enumerate(names) if _matches(name, pattern)]
        if not matches:
            raise InputError(_no_match(pattern, names))
        for i in matches:
            leaves[i] = dataclasses.replace(prior, shape=leaves[i].shape, dtype=leaves[i].dtype)
    return jax.tree.unflatten(tree, leaves)


def _is_prior(leaf: Any) -> bool:
    return isinstance(leaf, Prior | Unreadable)


def _matches(name: str, pattern: str) -> bool:
    short = name.removeprefix("params/")
    return pattern in (name, short) or any(fnmatch.fnmatchcase(n, pattern) for n in (name, short))


def _no_match(pattern: str, names: list[str]) -> str:
    short = {name.removeprefix("params/"): name for name in names}
    close = difflib.get_close_matches(pattern, [*names, *short], n=3, cutoff=0.4)
    hint = dict.fromkeys(short.get(name, name) for name in close) or names[:10]
    return f"no parameter matches {pattern!r}; did you mean one of: {', '.join(hint)}?"


def _check(pattern: str, prior: Any) -> None:
    if not isinstance(prior, Prior):
        raise InputError(f"the prior of {pattern!r} must be an infnet.Prior, not {prior!r}")
    for what in ("mean", "std", "kurtosis"):
        if not np.isfinite(getattr(prior, what)).all():
            raise InputError(f"the prior of {pattern!r} has a {what} that is not finite: {prior}")
    if (np.asarray(prior.std) < 0).any():
        raise InputError(f"the prior of {pattern!r} has a negative standard deviation: {prior}")
