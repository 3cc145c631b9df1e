"""`random_features`: a kernel function as inner products of features of each example."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import NAMES, named_kernels, one_of
from infnet.computation import Computation
from infnet.errors import InputError, NumericalError
from infnet.random_features.evaluate import Evaluation, draws
from infnet.random_features.walk import Sizes, Structure, structure

PyTree = Any
Array = jax.Array
# In units of the number of random features of one activation: those of a product of kernels, which are noisier, and
# how many numbers of an input are kept as they are.
MIXED, KNOWN = 2, 4
# With fewer random features of one activation, maps are compressed instead.
FEWEST = 4


def random_features(
    kernel_fn: Any, key: Array, n_features: int = 4096, get: str = "ntk", *, normalise: bool = True
) -> RandomFeatures:
    """Features of examples whose inner products are the kernel of a dense network: for n examples, nothing of size n^2.

    `features(x)` is `(n, features.n_features)`, with `features(x1) @ features(x2).T` close to `kernel_fn(x1, x2, get)`:
    the error falls as 1/sqrt(n_features). It takes time and memory linear in n, and works under `jit` and `grad`.

    What is random are features of what a truncated expansion leaves of every activation, and of its derivative times
    the tangent kernel; see `random_features.walk` for the formulas and sources. For networks with one hidden layer, and
    `normalise=False`, the kernel is unbiased. Deeper ones evaluate nonlinear functions of estimated covariances, which
    gives a bias that falls as 1/n_features.

    Args:
        kernel_fn: a `KernelFn` of a network of dense layers, biases, sums (residual connections), scalings and
            elementwise functions, with one output without positions.
        key: of all that is random. The same key gives the same features.
        n_features: the largest number of features; see `RandomFeatures.n_features`.
        get: "ntk" or "nngp".
        normalise: whether the norms of features are made those of the exact kernel, so that an example with itself
            has the exact kernel. This lowers the error, at a bias that falls as 1/n_features.

    Raises:
        UnsupportedError: the network has layers without a rule here, such as convolutions with positions.
        InputError: an argument is wrong.
    """
    return RandomFeatures(kernel_fn, key, n_features, get, normalise)


@dataclass(frozen=True)
class _Task:
    """What is compiled for features."""

    names: tuple[str, ...]
    sizes: Sizes
    normalise: bool
    zeros: tuple[frozenset[int], frozenset[int]]

    def function(self, computation: Computation) -> Evaluation:
        """The function of the weights, the examples and the random numbers."""
        return Evaluation(computation, _structure(computation, self.names, self.zeros), self.sizes, self.normalise)


class RandomFeatures:
    """A function of examples, `features(x)`, and their inner products, `features.kernel(x1, x2)`.

    Attributes:
        get: the kernel that is approximated.
        n_features: the number of columns of `features(x)`.
    """

    def __init__(self, kernel_fn: Any, key: Array, n_features: int, get: str, normalise: bool):
        one_of("get", get, NAMES)
        if isinstance(n_features, bool) or not isinstance(n_features, int | np.integer) or n_features < 1:
            raise InputError(f"n_features must be a positive integer, not {n_features!r}")
        if not hasattr(kernel_fn, "of_examples"):
            raise InputError(
                f"random features are made of a kernel function of infnet, whose program they read, not {kernel_fn!r}"
            )
        if kernel_fn.computation.replicate is not None:
            raise InputError(
                'random features are not sampled: make the kernel function without on_unsupported="sample"'
            )
        self.get = get
        self._kernel_fn, self._normalise = kernel_fn, bool(normalise)
        rng = _generator(key)
        found = _structure(kernel_fn.computation, (get,), self._zeros)
        self._sizes = sizes(found, int(n_features))
        self._draws = draws(found, self._sizes)
        self._numbers = [draw(rng, p, m) for draw, p, m in self._draws]
        walk = found.walk(None, self._sizes)
        self.n_features = min(walk.columns(walk.output), self._sizes.limit)

    def redraw(self, key: Array) -> RandomFeatures:
        """Other features of the same kernel, of which nothing is compiled again."""
        other, rng = copy(self), _generator(key)
        other._numbers = [draw(rng, p, m) for draw, p, m in self._draws]
        return other

    def __call__(self, x: PyTree) -> Array:
        """The features of examples x, `(n, n_features)`, n being any number.

        Raises:
            InputError: x has another structure or shape than the example of the kernel function, or other dtypes than
                can be computed with.
            NumericalError: (outside `jit`) a number in x is not finite, or a series does not converge at its variances.
        """
        for leaf in jax.tree.leaves(x):
            if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.isfinite(jnp.asarray(leaf)).all()):
                first = tuple(int(k) for k in np.argwhere(~np.isfinite(np.asarray(leaf)))[0])
                raise NumericalError(
                    f"x contains a number that is not finite, the first at {first}, and such an example has no "
                    "features: leave it out"
                )
        return self._features(x)

    def kernel(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        """The approximate kernel, `(n1, n2)`, with the arguments of a kernel function.

        Args:
            x1: the input.
            x2: another; None for x1 itself.
            get: the name of the kernel that the features are of, or None, for an array; a tuple of the name alone, for
                a namedtuple.
        """
        self._check(get)
        phi1 = self(x1)
        phi2 = phi1 if x2 is None else self(x2)
        return self._picked(jnp.matmul(phi1, phi2.T, precision="highest"), get)

    def diag(self, x: PyTree, get: Any = None) -> Any:
        """The approximate kernel of each example with itself, `(n,)`."""
        self._check(get)
        return self._picked(jnp.square(self(x)).sum(1), get)

    @property
    def law(self) -> Any:
        """What is known of the law of the output, as `Kernel.law`."""
        return self._kernel_fn.law

    def __repr__(self) -> str:
        return f"RandomFeatures({self.n_features} features of the {self.get} of {self._kernel_fn!r})"

    def _features(self, x: PyTree) -> Array:
        task = _Task((self.get,), self._sizes, self._normalise, self._zeros)
        return self._kernel_fn.of_examples(task, x, self._numbers)["features"]

    @property
    def _zeros(self) -> tuple[frozenset[int], frozenset[int]]:
        """The parameters that are not trained, and those that are not random."""
        weights = self._kernel_fn.weights
        untrained = frozenset(leaf for leaf, rate in enumerate(weights.learning_rate) if rate == 0)
        return untrained, frozenset(leaf for leaf, std in enumerate(weights.std) if _is_zero(std))

    def _check(self, get: Any) -> None:
        if get not in (None, self.get, (self.get,), [self.get]):
            raise InputError(f"these are features of the {self.get} alone, not of {get!r}: make others of that kernel")

    def _picked(self, values: Array, get: Any) -> Any:
        return values if get is None or isinstance(get, str) else named_kernels((self.get,))(values)


def sizes(found: Structure, n_features: int) -> Sizes:
    """How many random features of each kind there may be, for `n_features` in all."""

    def of(unit: int, limit: int = n_features) -> Sizes:
        return Sizes(unit, MIXED * unit, KNOWN * unit, limit)

    def total(unit: int) -> int:
        # Without any compression, after which more random features would cost time and noise, but no columns.
        walk = found.walk(None, of(unit, sys.maxsize))
        return walk.columns(walk.output)

    if total(FEWEST) > n_features:
        return of(max(1, n_features // 8))  # and maps are compressed
    low, high = 1, n_features + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= n_features else (low, middle)
    return of(low)


def _generator(key: Any) -> np.random.Generator:
    if isinstance(key, jax.core.Tracer):
        raise InputError("the key of random features must be known, not traced: make them outside of `jit` and `vmap`")
    dtype = getattr(key, "dtype", np.dtype(object))
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != np.uint32:
        raise InputError(f"key must be a key of jax.random, not {key!r}")
    return np.random.default_rng(np.asarray(jax.random.key_data(key) if typed else key).ravel())


def _structure(
    computation: Computation, names: tuple[str, ...], zeros: tuple[frozenset[int], frozenset[int]]
) -> Structure:
    plan = computation.plan(names, (1, 2))
    with jax.ensure_compile_time_eval():  # of slopes, which say how many blocks there are
        return structure(computation.program, plan, "ntk" in names, *zeros)


def _is_zero(std: Any) -> bool:
    return not isinstance(std, jax.core.Tracer) and not np.any(np.asarray(std))
