"""What makes the tests quick: nearly all of their time goes into compiling what then runs once."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl
from xla_flags import code_generation

# XLA reads these flags before every compilation.
_FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_flags_reset=true"
_AS_USERS, _QUICKLY = (_FLAGS + code_generation(quick=quick) for quick in (False, True))
os.environ["XLA_FLAGS"] = _AS_USERS
# Where an instruction of a compiled program comes from, which takes time to write down, no test reads.
jax.config.update("jax_traceback_in_locations_limit", 0)


@contextlib.contextmanager
def unoptimised() -> Iterator[None]:
    """XLA compiles without its optimisations, in a third of the time; for tests of formulas, not of rounding.

    Most of the rest would go into fusion emitters, which set up an MLIR context for every program.
    """
    before = jax.config.read("jax_disable_most_optimizations"), os.environ["XLA_FLAGS"]
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["XLA_FLAGS"] = _QUICKLY
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before[0])
        os.environ["XLA_FLAGS"] = before[1]


# Random numbers for Monte Carlo: hashes of counters. Of a small finite network, twenty rounds of Threefry for every
# weight are half of what is compiled. The hash of 32 bits is "lowbias32" (Wellons, Hash Prospector, 2018); two in a
# row, each with one half of the key, turn a counter into a random number.


def _hash(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _numbers(key: jax.Array, counters: jax.Array) -> jax.Array:
    return _hash(_hash(counters ^ key[0]) + key[1])


def _two(key: jax.Array, counters: jax.Array) -> jax.Array:
    """A key for each counter, on a last axis of size 2."""
    return jnp.stack([_numbers(key, counters), _numbers(key[::-1], ~counters)], axis=-1)


def _counters(shape: tuple[int, ...]) -> jax.Array:
    return lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width < 64:
        return _numbers(key, _counters(shape)).astype(f"uint{bit_width}")
    return lax.bitcast_convert_type(_two(key, _counters(shape)), jnp.uint64)


QUICK = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: _two(jnp.zeros(2, jnp.uint32), seed.astype(jnp.uint32)),
    split=lambda key, shape: _two(key, _counters(shape)),
    random_bits=_random_bits,
    fold_in=lambda key, data: _two(key, ~data.astype(jnp.uint32)),
    name="quick",
)


def quick_keys(key: jax.Array, n: int) -> jax.Array:
    """`n` keys of the quick kind, drawn with an ordinary one."""
    return jax.random.wrap_key_data(jax.random.bits(key, (n, 2), jnp.uint32), impl=QUICK)
