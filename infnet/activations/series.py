"""Any smooth activation, by its Hermite series: how a jaxpr becomes one, and with how many terms.

The derivatives of the kernel consist of derivatives of the values. These follow the user's own `custom_jvp` where it
is the derivative of the values (and then often the better form, as for softplus), and else ignore it: the kernel of a
tanh with straight-through slope has the derivatives of the kernel of tanh. Which is the case is decided by Stein's
lemma: the coefficients of the derivative are `sqrt((n + 1) / q) a_{n+1}`.

The order is the smallest of `ORDERS` whose relative bound (see `primitives.series`) is small enough for phi and phi'
at the variances in question, computed in float64 numpy. A function with a kink would need thousands
of terms and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from infnet._jax import ClosedJaxpr
from infnet.activations.chains import operations
from infnet.activations.pointwise import callable_of, structure
from infnet.activations.protocol import Means
from infnet.errors import Where
from infnet.errors.functions import NO_CLOSED_FORM, SERIES_DIVERGES, SERIES_TOO_SLOW
from infnet.numpy_rules import NoNumpyRule, evaluate
from infnet.primitives.series import RANGE, SmoothFunction, arguments, basis, expand, expectation, halves, series

ORDERS = (16, 32, 64, 128)
_WORST = 1e-3  # a larger bound at N = 128 and variance 1 says that the function is not smooth

JointKernel = Callable[
    [jax.Array, jax.Array, jax.Array, bool, Means], tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
]


@dataclasses.dataclass(frozen=True)
class SeriesActivation:
    """A smooth function by its Hermite series; see `activations.protocol`.

    Attributes:
        name: the operations it consists of.
        values: phi, with the derivatives of its values.
        slope: phi' by `jax.grad`; often but not always `values.derivative`.
        odd: whether phi(-x) = -phi(x).
        order: the number of terms.
        nodes: number of nodes of the integrals.
        chains: phi and phi' as they were traced, for `bounds`.
        where: what a refusal points to.
    """

    name: str
    values: SmoothFunction
    slope: SmoothFunction
    odd: bool
    order: int
    nodes: int
    chains: tuple[ClosedJaxpr, ClosedJaxpr] = dataclasses.field(compare=False, repr=False)
    where: Where = dataclasses.field(compare=False, repr=False)

    @property
    def exact(self) -> str:
        """The number of terms."""
        return f"series of {self.order} terms"

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return self.kernel_and_bound(q12, q11, q22, derivative, means)[0]

    def kernel_and_bound(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """The kernels, and for each a bound of its error relative to `sqrt(E phi(u)^2 E phi(v)^2)` (or of phi')."""
        return joint(self, self)(q12, q11, q22, derivative, means)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: one-dimensional integrals, not the series."""
        k, kdot = expectation(q, mean, functions=(self.values.square, self.slope.square), nodes=self.nodes)
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """See `Activation`."""
        if self.odd and mean is None:
            return 0 * q
        return expectation(q, mean, functions=(self.values,), nodes=self.nodes)[0]

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`."""
        functions = (self.values.derivative, self.slope)
        of_values, slope = expectation(q, mean, functions=functions, nodes=self.nodes)
        return of_values, slope

    def bounds(self, q: Any, order: int | None = None, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The relative bounds of the kernels of phi and phi' at |rho| = 1, for each q the worst with any of them."""
        order = order or self.order
        q = np.atleast_1d(np.asarray(q, np.float64))
        phi, slope = (_tail(chain, q, order, self.nodes_for(order, float(q.max())), mean) for chain in self.chains)
        return phi, slope

    def nodes_for(self, order: int, q_max: float) -> int:
        """How many nodes the coefficients need at variances up to q_max: until twice as many change nothing."""
        nodes = 16 * order
        while nodes < 32 * order and not all(_resolved(chain, q_max, order, nodes) for chain in self.chains):
            nodes *= 2
        return nodes

    def with_order(self, tol: float, q_max: float) -> SeriesActivation:
        """The same function with as many terms as errors of `tol` need, relative, at all variances up to `q_max`.

        Raises:
            UnsupportedError: the largest order does not suffice.
        """
        q = q_max * 4.0 ** -np.arange(8)
        worst: list[float] = []
        for order in ORDERS:
            worst = [float(np.max(bound)) for bound in self.bounds(q, order)]
            if max(worst) <= tol:
                return dataclasses.replace(self, order=order, nodes=self.nodes_for(order, q_max))
        raise SERIES_TOO_SLOW.at(
            self.where, name=self.name, terms=ORDERS[-1], q_max=q_max, phi=worst[0], slope=worst[1], tol=tol
        )


def joint(one: SeriesActivation, two: SeriesActivation) -> JointKernel:
    """The kernels `E phi(u) psi(v)` and `E phi'(u) psi'(v)`, with relative bounds; see `SeriesActivation`."""
    order, nodes = max(one.order, two.order), max(one.nodes, two.nodes)

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        left, right = ((f.values, f.slope) if derivative else (f.values,) for f in (one, two))
        return series(q12, q11, q22, left=left, right=right, order=order, nodes=nodes, means=means)

    return kernel


def series_activation(chain: ClosedJaxpr, slope: ClosedJaxpr, where: Where) -> SeriesActivation:
    """The series of an elementwise function; `with_order` says how many terms it needs.

    Args:
        chain: jaxpr of the function, elementwise with concrete constants (`chains.obstacle` is None).
        slope: jaxpr of its derivative by `jax.grad` (`chains.derivative`).
        where: what a refusal points to.

    Raises:
        UnsupportedError: the series does not converge well enough to be of use.
    """
    key = (structure(chain), structure(slope))
    parity, odd = _parity(chain)
    function = SmoothFunction(key, callable_of(chain, custom_rules=False), parity)
    unchecked = SeriesActivation(operations(chain), function, function, odd, ORDERS[-1], 16, (chain, slope), where)
    try:
        tails = unchecked.bounds(np.array([0.01, 1.0]))
    except NoNumpyRule as error:
        raise NO_CLOSED_FORM.at(
            where, name=unchecked.name, why=f"its derivative contains `{error.primitive}`, which is not known here"
        ) from error
    worst = [float(tail.max()) for tail in tails]
    if not max(worst) <= _WORST:
        raise SERIES_DIVERGES.at(where, name=unchecked.name, terms=ORDERS[-1], phi=worst[0], slope=worst[1])
    if _is_derivative(slope, chain):
        function = SmoothFunction((*key, "own rules"), callable_of(chain, custom_rules=True), parity)
        of_slope = function.derivative
    else:
        of_slope = SmoothFunction((*key, "slope"), callable_of(slope, custom_rules=False), _parity(slope)[0])
    nodes = unchecked.nodes_for(ORDERS[1], 1.0)
    return dataclasses.replace(unchecked, values=function, slope=of_slope, order=ORDERS[1], nodes=nodes)


# Functions in float64 numpy.


def _at(chain: ClosedJaxpr, x: np.ndarray) -> np.ndarray:
    y = evaluate(chain, x.ravel())[0]
    return np.broadcast_to(np.asarray(y, np.float64), x.size).reshape(x.shape)


def _expansion(
    chain: ClosedJaxpr, q: Any, order: int, nodes: int, mean: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values times roots of weights, coefficients, and the square of what these leave; first axis even and odd."""
    b = basis(order, nodes)
    x = arguments(np.sqrt(np.asarray(q, np.float64))[..., None] * b.z)
    f = halves(_at(chain, mean + x), b.root)
    return f, *expand(f, b, np.einsum)


def _tail(chain: ClosedJaxpr, q: np.ndarray, order: int, nodes: int, mean: float) -> np.ndarray:
    """For each of the variances the largest bound with any other, at |rho| = 1; NaN where the function is.

    It is enlarged by the second moment at the end of the nodes' range: nothing is known of what lies outside.
    """
    with np.errstate(all="ignore"):
        f, a, others = _expansion(chain, q, order, nodes, mean)
        size = (f**2).sum((0, -1))
        size = np.where(size == 0, 1, size)
        last = basis(order, nodes).z > RANGE - 1
        first, others = a[..., -1] / np.sqrt(size), np.sqrt(others / size)
        rest = np.hypot(first, others)
        pairs = sum(sign * np.einsum("pi,pj->ij", x, x) for sign, x in ((1, rest), (-1, first), (1, others)))
        return np.max(pairs, 1) + (f[..., last] ** 2).sum((0, -1)) / size


def _resolved(chain: ClosedJaxpr, q: float, order: int, nodes: int) -> bool:
    with np.errstate(all="ignore"):
        (f, once, _), (_, twice, _) = (_expansion(chain, q, order, n) for n in (nodes, 2 * nodes))
    return bool(((once - twice) ** 2).sum() <= 1e-26 * (f**2).sum())


def _parity(chain: ClosedJaxpr) -> tuple[int, bool]:
    """1 or -1 if the function is even or odd up to a linear one, else 0; and whether it is odd itself."""
    x = np.random.default_rng(0).exponential(3.0, 200)
    with np.errstate(all="ignore"):
        right, left = _at(chain, x), _at(chain, -x)
        scale = 1e-14 * (np.abs(right) + np.abs(left) + 1e-300)
        even, odd = (right + left) / 2, (right - left) / 2
        if (np.abs(odd - odd[0] / x[0] * x) <= scale).all():
            return 1, bool((even == 0).all())
        if (np.abs(even - even[0]) <= scale).all():
            return -1, bool((np.abs(even) <= scale).all())
    return 0, False


def _is_derivative(slope: ClosedJaxpr, chain: ClosedJaxpr) -> bool:
    """Whether `slope` is the derivative of the values of `chain`, by Stein's lemma at q = 1, to float32 accuracy."""
    order, nodes = ORDERS[1], 32 * ORDERS[1]
    (_, a, _), (_, b, _) = (_expansion(c, 1.0, order, nodes) for c in (chain, slope))
    a, b = a.T.ravel(), b.T.ravel()  # in the order of n
    of_values = np.sqrt(np.arange(1, len(a))) * a[1:]
    return bool(np.linalg.norm(of_values - b[:-1]) <= 1e-6 * np.linalg.norm(b) + 1e-12 * np.linalg.norm(a))
