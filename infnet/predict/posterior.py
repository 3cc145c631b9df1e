"""What a prediction comes back as: a Gaussian, and a report on the linear algebra behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from infnet.errors import InputError
from infnet.predict.axes import OutputAxes

Array = jax.Array


def pytree(*, meta: Sequence[str] = ()) -> Callable[[type], type]:
    """A frozen dataclass registered with JAX; fields in `meta` are static."""

    def decorate(cls: type) -> type:
        data = [name for name in cls.__annotations__ if name not in meta]
        return jax.tree_util.register_dataclass(cls, data, list(meta))

    return decorate


@pytree(meta=("dtype",))
@dataclass(frozen=True)
class Info:
    """How the linear algebra went. Under `jit`, look at `ok`; outside, `ok=False` is an error."""

    ok: Array
    """Whether every input was finite and the factorisation succeeded."""
    diag_reg: Array
    """The regularisation that was asked for, in absolute units."""
    jitter: Array
    """What had to be added to the diagonal beyond that, in absolute units; 0 when nothing was."""
    eigenvalue_min: Array
    """Estimate, from above, of the smallest eigenvalue of the factored matrix; NaN where a `solver` was given."""
    eigenvalue_max: Array
    """Estimate, from below, of its largest eigenvalue; NaN where a `solver` was given."""
    negative_variance: Array
    """The most negative predictive variance before it was raised to 0; 0 when none was negative."""
    dtype: str
    """The precision of the linear algebra."""
    residual: Array | None = None
    """The largest relative residual of the solutions for the targets, where a `solver` was given."""

    @property
    def condition(self) -> Array:
        """Estimate, from below, of the condition number of the factored matrix."""
        return self.eigenvalue_max / self.eigenvalue_min


@pytree(meta=("axes",))
@dataclass(frozen=True)
class Gaussian:
    """The predictive distribution at m test points; outputs along `trace_axes` are independent and alike."""

    mean: Array
    """(m, …), like the targets."""
    covariance: Array | None
    """(m, m, …), of the shape of the kernel; None unless `k_test_test` was a full kernel."""
    variance: Array | None
    """(m, …), its diagonal, without the traced axes, never negative; None unless `k_test_test` was given."""
    info: Info
    axes: OutputAxes | None = None
    """What the axes of the outputs are in the kernel; None where it has none of them."""

    def sample(self, key: Array, n: int = 1) -> Array:
        """`n` joint draws, (n, m, …); of each of several times of training, if it is of such, by itself."""
        if self.covariance is None:
            raise InputError(
                "sampling needs the covariance between test points: pass the full (m, m) matrix as "
                "k_test_test to the prediction function."
            )
        axes = self.axes or OutputAxes.read(self.mean.shape, range(1, self.mean.ndim))
        if self.mean.ndim > 1 + len(axes.sizes):

            def draw(key: Array, mean: Array, covariance: Array) -> Array:
                return Gaussian(mean, covariance, None, self.info, axes).sample(key, n)

            return jax.vmap(draw, out_axes=1)(jax.random.split(key, len(self.mean)), self.mean, self.covariance)
        matrix = axes.matrix(self.covariance, "the covariance")
        eigenvalues, vectors = jnp.linalg.eigh(matrix)
        root = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None, :]
        noise = jax.random.normal(key, (n, *axes.columns(self.mean).shape), self.mean.dtype)
        return self.mean + axes.outputs(root @ noise)
