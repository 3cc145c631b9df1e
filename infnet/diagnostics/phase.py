"""Order and chaos: phases and depth scales of deep networks with an activation of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from infnet.arguments import positive
from infnet.diagnostics.mean_field import MARGINAL, Q_MAX, Q_MIN, activation_of, fixed_points
from infnet.errors import InputError

FIXED, VANISHES, UNSTABLE = "fixed point", "vanishes", "unstable"
DIVERGES, TOO_LARGE = "diverges", "beyond q_max"

# The grid of a phase diagram, unless another one is given.
W_STD, B_STD = np.linspace(0.5, 3.0, 51), np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True)
class DepthScale:
    """Where variances and correlations end up in deep networks, and in how many layers; arrays of one shape, float64.

    Formulas are in `infnet/diagnostics/mean_field.py` (Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017,
    arXiv:1611.01232). All numbers but `q_star` are NaN where the state is neither "fixed point" nor "vanishes".

    Attributes:
        w_std, b_std: standard deviations of weights, times the square root of the fan-in, and of biases.
        q_star: the variance of arguments that layers converge to; 0 where it vanishes, infinite where it diverges, NaN
            where it is not known.
        chi_1: the slope of the map of correlations at 1, which is also the factor by which mean squared gradients grow
            from layer to layer; below 1 the phase is ordered, above it chaotic. Where the variance vanishes it is the
            limit, of covariances.
        c_star: the correlation that layers converge to. NaN where the variance vanishes, and, next to the critical line
            at large variances, where an activation without a closed form has no series that is accurate to 1e-3.
        xi_q, xi_c: depth scales, in layers, on which variances and correlations converge as exp(-layers / xi): infinite
            where a slope is 1. `xi_c` is NaN where `c_star` is.
        state: "fixed point"; "vanishes": the variance goes to 0 (at most 1e-12); "diverges": it grows beyond 1e10;
            "beyond q_max": it grows beyond `q_max`, and where to is not known; "unstable": q0 is a fixed point that
            all others go away from, or none was found.
        q_max: up to which variance layers are followed: 1e10, or where the integrals of an activation without a closed
            form are no longer exact.
    """

    w_std: np.ndarray
    b_std: np.ndarray
    q_star: np.ndarray
    chi_1: np.ndarray
    c_star: np.ndarray
    xi_q: np.ndarray
    xi_c: np.ndarray
    state: np.ndarray
    q_max: float

    @property
    def phase(self) -> np.ndarray:
        """ "ordered", "critical" or "chaotic"; "" where there is no fixed point."""
        known = np.isfinite(self.chi_1)
        sides = [known & (abs(self.chi_1 - 1) <= MARGINAL), known & (self.chi_1 < 1), known]
        return np.select(sides, ["critical", "ordered", "chaotic"], "")


@dataclass(frozen=True)
class PhaseDiagram:
    """Depth scales on a grid.

    Attributes:
        activation: the name of the function, or what infnet calls it if it has none.
        w_std: of weights `(m,)`, ascending.
        b_std: of biases `(k,)`, ascending.
        scales: arrays `(k, m)`.
    """

    activation: str
    w_std: np.ndarray
    b_std: np.ndarray
    scales: DepthScale


def depth_scale(activation: Callable[[jax.Array], jax.Array], w_std: Any, b_std: Any, *, q0: float = 1.0) -> DepthScale:
    """The phase of deep fully connected networks, and the depth to which signals get through them.

    >>> import jax
    >>> scale = depth_scale(jax.nn.relu, 2**0.5, 0.0)
    >>> print(scale.phase, scale.xi_c)
    critical inf

    Args:
        activation: an elementwise JAX function, such as `jax.nn.relu`, or your own. Its expectations are those that
            kernels have.
        w_std: standard deviations of weights times the square root of the fan-in; positive numbers.
        b_std: standard deviations of biases, 0 or more; broadcasts with `w_std`.
        q0: the variance of the first layer. Where there are several fixed points, the one counts that Newton's method
            finds from here.

    Returns:
        Arrays of the common shape of `w_std` and `b_std`.

    Raises:
        InputError: standard deviations are of the wrong kind or sign, or `activation` is no function of arrays, or has
            jumps or a derivative that is not that of its values.
        UnsupportedError: infnet does not know the expectations of `activation`.
    """
    stds = _stds("w_std", w_std, 0, strict=True), _stds("b_std", b_std, 0)
    try:
        w, b = np.broadcast_arrays(*stds)
    except ValueError:
        raise InputError(f"w_std {stds[0].shape} and b_std {stds[1].shape} do not broadcast") from None
    return _scales(activation, w, b, q0)[1]


def phase_diagram(
    activation: Callable[[jax.Array], jax.Array], w_std: Any = W_STD, b_std: Any = B_STD, *, q0: float = 1.0
) -> PhaseDiagram:
    """Where deep fully connected networks with this activation are ordered, and where chaotic.

    Args:
        activation, q0: as of `depth_scale`.
        w_std: the grid's standard deviations of weights, times the square root of the fan-in: `(m,)`, ascending.
        b_std: of biases `(k,)`, likewise.

    Returns:
        What `depth_scale` returns on the grid, which `infnet.plot.phase_diagram` draws.

    Raises:
        InputError, UnsupportedError: as of `depth_scale`; or the grid is not one.
    """
    w, b = grid(w_std, b_std, "w_std")
    columns, rows = np.meshgrid(w, b)
    name, scales = _scales(activation, columns, rows, q0)
    return PhaseDiagram(name, w, b, scales)


def grid(w: Any, b_std: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The axes of a grid, checked; `name` is that of the first one."""
    axes = {name: _stds(name, w, 1, strict=True), "b_std": _stds("b_std", b_std, 1)}
    for label, axis in axes.items():
        if len(axis) < 2 or (np.diff(axis) <= 0).any():
            raise InputError(f"{label} must be two or more numbers in ascending order, not {axis}")
    return axes[name], axes["b_std"]


def _stds(name: str, values: Any, rank: int, strict: bool = False) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers, not {values!r}") from None
    if (rank and array.ndim != rank) or not array.size:
        raise InputError(f"{name} must be {'a list of numbers' if rank else 'numbers'}, not of shape {array.shape}")
    if not np.isfinite(array).all() or (array <= 0 if strict else array < 0).any():
        raise InputError(f"{name} must be finite and {'positive' if strict else '0 or more'}, not {values}")
    return array


def _scales(activation: Any, w: np.ndarray, b: np.ndarray, q0: float) -> tuple[str, DepthScale]:
    q0 = positive("q0", q0)
    with jax.enable_x64(True):
        known, q_max = activation_of(activation)
        if q0 >= q_max:
            raise InputError(f"q0 must be below {q_max:.3g}, up to which variances can be followed, not {q0}")
        found = fixed_points(known, w.ravel(), b.ravel(), q0, q_max)
    q, converged, chi_1, slope, c, slope_c = (np.reshape(array, w.shape) for array in found)
    unstable = converged & (abs(slope) > 1 + MARGINAL)
    state = np.select(
        [unstable, converged & (q <= Q_MIN), converged, q >= q_max],
        [UNSTABLE, VANISHES, FIXED, DIVERGES if q_max == Q_MAX else TOO_LARGE],
        UNSTABLE,
    )
    valid = (state == FIXED) | (state == VANISHES)
    q_star = np.select([state == VANISHES, state == DIVERGES, valid], [0.0, np.inf, q], np.nan)
    numbers = (chi_1, c, _layers(slope), _layers(slope_c))
    chi_1, c, xi_q, xi_c = (np.where(valid, x, np.nan) for x in numbers)
    name = getattr(activation, "__name__", "<lambda>")
    name = known.name if name == "<lambda>" else name
    return name, DepthScale(w.copy(), b.copy(), q_star, chi_1, c, xi_q, xi_c, state, q_max)


def _layers(slope: np.ndarray) -> np.ndarray:
    """-1 / log |slope|, infinite where the slope is 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(abs(abs(slope) - 1) <= MARGINAL, np.inf, -1 / np.log(abs(slope)))
