"""Which initialiser made an array: of parameters without an `init` (a module of Flax NNX keeps no initialisers).

An initialiser turns random bits into floats, one element at a time and monotonically: uniform numbers on a grid of
2^-23 (in float32), through the quantile function of its law, times a standard deviation. Far from all floats are in
its image: around the value x = F^-1(u) there are 1 / u floats for each value that it can return. So the bits behind
an array can be found by bisection, with the initialiser itself, and if they reproduce every element to the last digit
then this law is where the array came from: an accident has a probability of 2^(-1.4 n) for n elements. Values that
were trained, loaded from elsewhere or drawn with another standard deviation do not pass, however near they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from infnet._jax import define_prng_impl
from infnet.priors import Prior, infer_priors

Initializer = Callable[..., jax.Array]

# What the layers of Flax are initialised with by default and what users replace it with. That one is missing here
# means that its arrays are not recognised, never that they are taken for others.
KNOWN: Sequence[Initializer] = (
    initializers.lecun_normal(),
    initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0),  # nnx.Embed
    initializers.he_normal(),
    initializers.glorot_normal(),
    initializers.lecun_uniform(),
    initializers.he_uniform(),
    initializers.glorot_uniform(),
    initializers.variance_scaling(1.0, "fan_in", "normal"),
    initializers.variance_scaling(2.0, "fan_in", "normal"),
    initializers.normal(1.0),
    initializers.normal(0.02),
    initializers.normal(0.01),
    initializers.truncated_normal(0.02),
    initializers.truncated_normal(0.01),
    initializers.uniform(1.0),
    initializers.uniform(0.01),
)
# An accident of probability 2^-BITS is not one that happens: arrays of fewer than some 10 elements are not recognised.
BITS = 12.0
# √n times the Kolmogorov-Smirnov distance exceeds this with probability 2 exp(-2 * 2.5²) = 7e-6.
KOLMOGOROV = 2.5


def recognise_prior(values: jax.Array, shape: tuple[int, ...] | None = None) -> Prior | None:
    """The law that the elements of an array were drawn from, or None if that is not known.

    It is that of an initialiser of `jax.nn.initializers`, with its usual arguments, which returns exactly these values
    for some random bits; or of a constant.

    Args:
        values: the array.
        shape: the shape that its initialiser was called with, if the array was reshaped.
    """
    shape = np.shape(values) if shape is None else shape
    array = np.asarray(values).reshape(shape)
    first = array.flat[0] if array.size else 0
    if (array == first).all() and (array.size > 1 or first in (0, 1)):
        return Prior(float(first), 0.0, shape=np.shape(values), dtype=array.dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating) or not np.isfinite(array).all():
        return None
    for initializer in KNOWN:
        law = _law(initializer, shape, array.dtype)
        if law is not None and _plausible(law, array) and _made(initializer, array):
            return replace(law, shape=np.shape(values), dtype=array.dtype)
    return None


@functools.lru_cache(maxsize=256)
def _law(initializer: Initializer, shape: tuple[int, ...], dtype: Any) -> Prior | None:
    try:
        return infer_priors(lambda key: initializer(key, shape, dtype))
    except ValueError:  # those that scale by the fan-in need two axes
        return None


def _plausible(law: Prior, array: np.ndarray) -> bool:
    """Spares the bisection where mean and standard deviation are some six standard errors off."""
    values = array.astype(np.float64)
    error = 6 * law.std / np.sqrt(array.size)
    return bool(abs(values.mean() - law.mean) < error and abs(values.std() - law.std) < error)


def _made(initializer: Initializer, array: np.ndarray) -> bool:
    """Whether some random bits make `initializer` return `array`, to the last digit."""
    values = array.astype(np.float64)
    from_bits = _function_of_bits(initializer, array.shape, array.dtype)
    low, high = (np.full(array.shape, bits, np.uint64) for bits in (0, np.iinfo(np.uint64).max))
    if (from_bits(low) > values).any() or (from_bits(high) < values).any():
        return False
    for _ in range(64 if array.dtype == np.float64 else 32):
        middle = low + (high - low) // np.uint64(2)
        above = from_bits(middle) > values
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    if (from_bits(low) != values).any():
        return False
    # as many floats are there for one value of the initialiser
    floats = (from_bits(high) - values) / np.abs(np.spacing(array)).astype(np.float64)
    return bool(np.log2(np.maximum(floats, 1.0)).sum() >= BITS) and _look_uniform(low.ravel() / 2.0**64)


@functools.lru_cache(maxsize=256)
def _function_of_bits(
    initializer: Initializer, shape: tuple[int, ...], dtype: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """The initialiser as an elementwise function of integers, whose leading bits are those that it asks for."""
    size = math.prod(shape)

    def random_bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
        upper, lower = key[:size].reshape(shape), key[size:].reshape(shape)
        if width == 64:
            return (upper.astype(jnp.uint64) << 32) | lower.astype(jnp.uint64)
        return (upper >> (32 - width)).astype(f"uint{width}")

    def refuse(*arguments: Any) -> Any:
        raise NotImplementedError("the initialisers listed in this file draw once, with the key that they are given")

    generator = define_prng_impl(
        key_shape=(2 * size,), seed=refuse, split=refuse, fold_in=refuse, random_bits=random_bits, name="given_bits"
    )

    @jax.jit
    def draw(words: jax.Array) -> jax.Array:
        return initializer(jax.random.wrap_key_data(words, impl=generator), shape, dtype)

    def from_bits(bits: np.ndarray) -> np.ndarray:
        flat = bits.ravel()
        words = np.concatenate([flat >> np.uint64(32), flat & np.uint64(0xFFFFFFFF)]).astype(np.uint32)
        return np.asarray(draw(words)).astype(np.float64)

    return from_bits


def _look_uniform(u: np.ndarray) -> bool:
    """The test of Kolmogorov and Smirnov that these are independent uniform numbers."""
    steps = np.arange(u.size + 1) / u.size
    u = np.sort(u)
    distance = max(np.abs(u - steps[1:]).max(), np.abs(u - steps[:-1]).max())
    return bool(distance * np.sqrt(u.size) < KOLMOGOROV)
