"""Elementwise functions. What they compute stands in `infnet.functional`.

`do_stabilize` and `do_clip` are accepted, and change nothing: kernels are stable as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from infnet import functional
from infnet.errors import InputError
from infnet.stax.layer import Layer, layer


def _of(name: str, fn: Callable[[jax.Array], jax.Array]) -> Layer:
    return layer(name, lambda params, x, mask, **_: fn(x))


def ABRelu(a: float, b: float, do_stabilize: bool = False) -> Layer:
    """`a x` below zero, `b x` above."""
    return _of("ABRelu", partial(functional.ab_relu, a=a, b=b))


def Abs(do_stabilize: bool = False) -> Layer:
    """`|x|`."""
    return _of("Abs", functional.absolute)


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a cos(b x + c)`."""
    return _of("Cos", partial(functional.cos, a=a, b=b, c=c))


def Elementwise(
    fn: Callable[[jax.Array], jax.Array] | None = None,
    nngp_fn: functional.Dual | None = None,
    d_nngp_fn: functional.Dual | None = None,
) -> Layer:
    """`fn(x)`, with the kernel that infnet finds, or with `nngp_fn` and its derivative `d_nngp_fn`.

    Raises:
        InputError: there is no `fn`: networks of finite width need it.
    """
    if not callable(fn):
        raise InputError(f"Elementwise needs the function itself as fn, also where nngp_fn is given, not {fn!r}")
    return _of("Elementwise", partial(functional.elementwise, fn=fn, nngp_fn=nngp_fn, d_nngp_fn=d_nngp_fn))


def ElementwiseNumerical(fn: Callable[[jax.Array], jax.Array], deg: int | None = None, df: Any = None) -> Layer:
    """`fn(x)`, as `Elementwise(fn)`.

    Neural Tangents takes quadrature of `deg` points here. infnet finds a closed form, or a series with as many terms as
    the option `tol` of `kernel_fn` needs, whatever `deg` is.

    Raises:
        InputError: `df` is given: the derivative is that of `jax.grad`.
    """
    if df is not None:
        raise InputError("ElementwiseNumerical takes the derivative that jax.grad gives; fn may be a jax.custom_jvp")
    return Elementwise(fn)


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a erf(b x) + c`."""
    return _of("Erf", partial(functional.erf, a=a, b=b, c=c))


def Exp(a: float = 1.0, b: float = 1.0) -> Layer:
    """`a exp(b x)`."""
    return _of("Exp", partial(functional.exp, a=a, b=b))


def ExpNormalized(gamma: float = 1.0, shift: float = -1.0, do_clip: bool = False) -> Layer:
    """The function of the kernel `sqrt(q11 q22) exp(gamma (rho + shift))`; see `infnet.functional.exp_normalized`."""
    return _of("ExpNormalized", partial(functional.exp_normalized, gamma=gamma, shift=shift))


def Gabor() -> Layer:
    """`exp(-x^2) sin(x)`."""
    return _of("Gabor", functional.gabor)


def Gaussian(a: float = 1.0, b: float = -1.0) -> Layer:
    """`a exp(b x^2)`."""
    return _of("Gaussian", partial(functional.gaussian, a=a, b=b))


def Gelu(approximate: bool = False) -> Layer:
    """`x Phi(x)`, or its approximation by a tanh; the kernel is that of the one chosen."""
    return _of("Gelu", partial(functional.gelu, approximate=approximate))


def Hermite(degree: int) -> Layer:
    """The Hermite polynomial of this degree, of mean square 1 at standard normal x, at any variance of x."""
    return _of("Hermite", partial(functional.hermite, degree=degree))


def LeakyRelu(alpha: float, do_stabilize: bool = False) -> Layer:
    """`alpha x` below zero, x above."""
    return _of("LeakyRelu", partial(functional.leaky_relu, alpha=alpha))


def Monomial(degree: int) -> Layer:
    """`x^degree`."""
    return _of("Monomial", partial(functional.monomial, degree=degree))


def Polynomial(coef: Sequence[float]) -> Layer:
    """`sum_k coef[k] x^k`."""
    return _of("Polynomial", partial(functional.polynomial, coef=coef))


def Rbf(gamma: float = 1.0) -> Layer:
    """`sqrt(2) sin(sqrt(2 gamma) x + pi/4)`, of kernel `exp(-gamma E(u - v)^2)`."""
    return _of("Rbf", partial(functional.rbf, gamma=gamma))


def RectifiedMonomial(degree: int) -> Layer:
    """`x^degree` where x >= 0, else 0."""
    return _of("RectifiedMonomial", partial(functional.rectified_monomial, degree=degree))


def Relu(do_stabilize: bool = False) -> Layer:
    """`max(x, 0)`."""
    return _of("Relu", functional.relu)


def Sigmoid_like() -> Layer:
    """`(1 + erf(x / 2.402...)) / 2`, which is close to the sigmoid."""
    return _of("Sigmoid_like", functional.sigmoid_like)


def Sign() -> Layer:
    """-1, 0 or 1."""
    return _of("Sign", functional.sign)


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a sin(b x + c)`."""
    return _of("Sin", partial(functional.sin, a=a, b=b, c=c))
