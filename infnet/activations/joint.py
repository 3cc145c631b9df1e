"""Joint kernels of two functions, the same or different ones, on dependent Gaussian arguments."""

from __future__ import annotations

from collections.abc import Callable

import jax

from infnet.activations import exponential, piecewise, series
from infnet.activations.closed_forms import Erf, Gelu, Homogeneous
from infnet.activations.exponential import ExponentialActivation
from infnet.activations.piecewise import PiecewiseActivation
from infnet.activations.protocol import Activation, Means
from infnet.activations.series import SeriesActivation
from infnet.primitives.exponential import Function
from infnet.primitives.piecewise import Atom, Shape

JointKernel = Callable[[jax.Array, jax.Array, jax.Array, bool, Means], tuple[jax.Array, ...]]
Report = Callable[[jax.Array], None]


def joint_kernel(one: Activation, two: Activation, report: Report = lambda bound: None) -> JointKernel | None:
    """The kernels E phi(u) psi(v) and E phi'(u) psi'(v), with the signature of `Activation.kernel`.

    Args:
        one, two: phi and psi.
        report: is given a bound on the relative error of a series, and of rounding where it is not negligible.

    Returns:
        the function that computes them, or None if no form is known.
    """
    if isinstance(one, SeriesActivation) and isinstance(two, SeriesActivation):
        return _of_series(one, two, report)
    if one == two and not isinstance(one, PiecewiseActivation):
        return one.kernel
    if isinstance(one, Homogeneous) and isinstance(two, Homogeneous) and one.values[0] == two.values[0]:
        return _polarised(one, two, report)
    if isinstance(one, ExponentialActivation) and isinstance(two, ExponentialActivation):
        return exponential.joint(one, two)
    left, right = _as_piecewise(one), _as_piecewise(two)
    return None if left is None or right is None else _of_pieces(left, right, report)


def _as_piecewise(activation: Activation) -> PiecewiseActivation | None:
    """The same function as a member of the family of piecewise exponential polynomials, if it is one."""
    if isinstance(activation, Homogeneous | Erf | Gelu):
        return activation.general
    if isinstance(activation, ExponentialActivation):
        values, slope = (_shape(f) for f in (activation.values, activation.slope))
        return None if values is None or slope is None else PiecewiseActivation(values, slope, activation.name)
    return activation if isinstance(activation, PiecewiseActivation) else None


def _shape(function: Function) -> Shape | None:
    if any(t.quadratic or complex(t.linear).imag or complex(t.coefficient).imag for t in function):
        return None
    real = [(t.power, complex(t.linear).real, complex(t.coefficient).real) for t in function]
    return Shape(tuple(Atom(0, 0.0, power, rate, c) for power, rate, c in real), ())


def _of_pieces(one: PiecewiseActivation, two: PiecewiseActivation, report: Report) -> JointKernel:
    exact, rounding = piecewise.joint(one, two), piecewise.rounding(one, two)

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        report(rounding(q11, q22, derivative, means))
        return exact(q12, q11, q22, derivative, means)

    return kernel


def _of_series(one: SeriesActivation, two: SeriesActivation, report: Report) -> JointKernel:
    with_bounds = series.joint(one, two)

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        kernels, bounds = with_bounds(q12, q11, q22, derivative, means)
        for bound in bounds:
            report(bound)
        return kernels

    return kernel


def _polarised(one: Homogeneous, two: Homogeneous, report: Report) -> JointKernel:
    """Sums and differences of homogeneous functions of one degree are homogeneous too, and kernels are bilinear.

    So 4 K(phi, psi) = K(phi + psi, phi + psi) - K(phi - psi, phi - psi).
    """
    total, difference = _combined(one, two, 1.0), _combined(one, two, -1.0)
    with_means = _of_pieces(one.general, two.general, report)

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        if means is not None:
            return with_means(q12, q11, q22, derivative, means)
        both = (f.kernel(q12, q11, q22, derivative) for f in (total, difference))
        return tuple((a - b) / 4 for a, b in zip(*both, strict=True))

    return kernel


def _combined(one: Homogeneous, two: Homogeneous, sign: float) -> Homogeneous:
    degree, a, b, at_zero = one.values
    _, c, d, two_at_zero = two.values
    slope = tuple(s + sign * t for s, t in zip(one.slope, two.slope, strict=True))
    alpha, beta, slope_at_zero = slope
    return Homogeneous((degree, a + sign * c, b + sign * d, at_zero + sign * two_at_zero), (alpha, beta, slope_at_zero))
