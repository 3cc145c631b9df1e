"""Elementwise functions whose kernel is given beside them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from numbers import Real

import jax
import jax.numpy as jnp

from infnet.custom import custom_kernel
from infnet.errors import InputError
from infnet.kernel import Kernel
from infnet.primitives.exp_normalized import exp_normalized as exp_normalized_kernel

Dual = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def elementwise(
    x: jax.Array,
    fn: Callable[[jax.Array], jax.Array],
    nngp_fn: Dual | None = None,
    d_nngp_fn: Dual | None = None,
) -> jax.Array:
    """`fn(x)`.

    Args:
        x: of any shape.
        fn: an elementwise function.
        nngp_fn: `E fn(u) fn(v)` as a function of numbers (covariance, variance of u, variance of v), for Gaussians u, v
            of mean zero. None: what infnet finds for `fn`. A function that is given is believed.
        d_nngp_fn: its derivative by the covariance, `E fn'(u) fn'(v)` (Price 1958); None: by `jax.grad`.

    Raises:
        InputError: `d_nngp_fn` is given without `nngp_fn`, or something is not callable.
    """
    for name, value in (("fn", fn), ("nngp_fn", nngp_fn), ("d_nngp_fn", d_nngp_fn)):
        if not (callable(value) or (value is None and name != "fn")):
            raise InputError(f"{name} must be a function, not {value!r}")
    if nngp_fn is None:
        if d_nngp_fn is not None:
            raise InputError("d_nngp_fn is the derivative of nngp_fn: give that too")
        return fn(x)
    return _operation(fn, nngp_fn, d_nngp_fn)(x)


@functools.lru_cache(maxsize=256)
def _operation(fn: Callable[[jax.Array], jax.Array], nngp_fn: Dual, d_nngp_fn: Dual | None) -> custom_kernel:
    """One operation for each function, so that layers with the same one are seen to be alike."""
    kernel, slope = (jnp.vectorize(f) for f in (nngp_fn, d_nngp_fn or jax.grad(nngp_fn)))
    operation = custom_kernel(fn)

    @operation.def_kernel
    def rule(k: Kernel) -> Kernel:
        moments = jnp.broadcast_arrays(k.nngp, k.cov1, k.cov2)
        return dataclasses.replace(k, nngp=kernel(*moments), ntk=slope(*moments) * k.ntk)

    return operation


def exp_normalized(x: jax.Array, gamma: float = 1.0, shift: float = -1.0) -> jax.Array:
    """The function of the kernel `sqrt(q11 q22) exp(gamma (rho + shift))` (Shankar et al. 2020, arXiv:2003.02237).

    It depends on the variance of x, for which the mean of x^2 over the last axis stands in a finite network; with
    normalised Hermite polynomials h_n and q this mean, it is

        phi(x) = sqrt(q) sum_n sqrt(exp(gamma shift) gamma^n / n!) h_n(x / sqrt(q))

    up to the n beyond which the squares of the coefficients sum up to less than 1e-12 of all of them.

    Args:
        x: `(n, *positions, channels)`.
        gamma: not negative.
        shift: any number.

    Raises:
        InputError: `gamma` or `shift` is out of its range.
    """
    if not isinstance(gamma, Real) or not 0 <= gamma <= 100 or not isinstance(shift, Real):
        raise InputError(f"gamma must be in [0, 100] and shift a number, not {gamma!r} and {shift!r}")
    return _normalized(float(gamma), float(shift))(x)


@functools.lru_cache(maxsize=256)
def _normalized(gamma: float, shift: float) -> custom_kernel:
    squares = _poisson(gamma)
    factor = math.exp(gamma * (1 + shift) / 2)

    def phi(x: jax.Array) -> jax.Array:
        q = (x**2).mean(-1, keepdims=True)
        root = jnp.sqrt(jnp.where(q > 0, q, 1))
        u = x / root
        before, h = jnp.zeros_like(u), jnp.ones_like(u)
        total = math.sqrt(squares[0]) * h
        for n, square in enumerate(squares[1:], 1):
            before, h = h, (u * h - math.sqrt(n - 1) * before) / math.sqrt(n)
            total = total + math.sqrt(square) * h
        return jnp.where(q > 0, factor * root * total, 0)

    phi.__name__ = f"exp_normalized({gamma:.6g}, {shift:.6g})"
    operation = custom_kernel(phi)

    @operation.def_kernel
    def rule(k: Kernel) -> Kernel:
        moments = exp_normalized_kernel(k.nngp, k.cov1, k.cov2, gamma=gamma, shift=shift, derivative=True)
        return dataclasses.replace(k, nngp=moments[0], ntk=moments[1] * k.ntk)

    return operation


def _poisson(gamma: float) -> list[float]:
    """`exp(-gamma) gamma^n / n!` until 1e-12 is left."""
    terms = [math.exp(-gamma)]
    while math.fsum(terms) < 1 - 1e-12:
        terms.append(terms[-1] * gamma / len(terms))
    return terms
