"""Cholesky factorisation of a matrix whose rows and columns are on a mesh of devices, and substitution with it.

The right-looking algorithm by panels (Golub & Van Loan, Matrix Computations, 4th ed., section 4.2.9). A panel of
columns is sent to every device, n × block numbers, and factored there; each device then updates its own part of the
matrix. So a device holds its part and O(n block) more, never the whole. L takes the place of the lower triangle and of
the diagonal; above the diagonal the kernel stays.

What this buys is memory, not time: parts stay where they are, so devices whose rows are done wait, and the last one
works from the first panel to the last, 2 n³ / devices operations, where n³ / (3 devices) would do if all were busy.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infnet.errors import InputError
from infnet.solvers.host_cholesky import not_positive_definite
from infnet.solvers.operators import square

Array = jax.Array


class Layout:
    """Where the parts of an (n, n) matrix are: over the axes `rows` and `columns` of a mesh, or over neither (None)."""

    def __init__(self, mesh: Mesh, rows: Any, columns: Any, n: int, block: int):
        self.mesh, self.rows, self.columns, self.n = mesh, rows, columns, n
        self.height, self.width = n // self._devices(rows), n // self._devices(columns)
        self.block = min(block, self.width)
        self.spec = PartitionSpec(rows, columns)
        self.panels_a_part = -(-self.width // self.block)
        self.panels = self._devices(columns) * self.panels_a_part

    @classmethod
    def of(cls, array: Array, block: int) -> Layout:
        """The layout of an array with a `NamedSharding`.

        Raises:
          InputError: it has another kind of sharding.
        """
        sharding = array.sharding
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            raise InputError(
                "a matrix on several devices is factored if it lies on a jax.sharding.Mesh: jax.device_put(kernel, "
                f"NamedSharding(mesh, PartitionSpec('rows', 'columns'))); got {sharding}"
            )
        (n, _), _ = square(array)
        spec = (*sharding.spec, None, None)
        return cls(sharding.mesh, spec[0], spec[1], n, block)

    def _devices(self, axes: Any) -> int:
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        size = 1
        for name in names:
            size *= self.mesh.shape[name]
        return size

    def place(self, axes: Any, size: int) -> Array:
        """Inside of `shard_map`: the first of this device's rows or columns."""
        return lax.axis_index(axes) * size if axes else jnp.array(0)

    def panel(self, k: Any) -> tuple[Array, Array]:
        """The first column of panel k, and which of its `block` columns are its own.

        The last panel of a part begins early enough to be whole: its first columns are those of the panel before.
        """
        part, within = k // self.panels_a_part, k % self.panels_a_part
        first = jnp.minimum(within * self.block, self.width - self.block)
        return part * self.width + first, jnp.arange(self.block) >= within * self.block - first

    def gather(self, local: Array, start: Array) -> Array:
        """Inside of `shard_map`: the columns from `start` of the matrix, (n, block), on every device."""
        here = start - self.place(self.columns, self.width)
        mine = (here >= 0) & (here < self.width)
        columns = lax.dynamic_slice_in_dim(local, jnp.clip(here, 0, self.width - self.block), self.block, 1)
        columns = jnp.where(mine, columns, 0)
        if self.columns:
            columns = lax.psum(columns, self.columns)
        return lax.all_gather(columns, self.rows, tiled=True) if self.rows else columns

    def map(self, function: Any, *specs: Any, out: Any) -> Any:
        """`function(layout, *local parts)` as a function of whole arrays."""
        return jax.shard_map(partial(function, self), mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)


def factor(a: Array, shift: np.ndarray, block: int, overwrite: bool) -> Array:
    """L of `a + diag(shift)` in the lower triangle, and `a` above it; `overwrite` gives up `a`, whose memory is used.

    Raises:
      NumericalError: the matrix is not positive definite.
    """
    layout = Layout.of(a, block)
    compiled = _compiled_factor(layout.mesh, layout.rows, layout.columns, layout.n, layout.block, overwrite)
    with jax.enable_x64(a.dtype == jnp.float64):
        found = compiled(a, shift.astype(a.dtype))
        failed = np.flatnonzero(~np.isfinite(np.asarray(jnp.diagonal(found))))
    if len(failed):
        raise not_positive_definite(int(failed[0]))
    return found


def substitute(a: Array, v: np.ndarray, block: int) -> np.ndarray:
    """L⁻ᵀ L⁻¹ v for v of shape (n, m), in the precision of `a`."""
    layout = Layout.of(a, block)
    compiled = _compiled_substitution(layout.mesh, layout.rows, layout.columns, layout.n, layout.block)
    with jax.enable_x64(a.dtype == jnp.float64):
        return np.asarray(compiled(a, v.astype(a.dtype)), np.float64)


@lru_cache
def _compiled_factor(mesh: Mesh, rows: Any, columns: Any, n: int, block: int, overwrite: bool) -> Any:
    layout = Layout(mesh, rows, columns, n, block)
    mapped = layout.map(_factor, layout.spec, PartitionSpec(), out=layout.spec)
    return jax.jit(mapped, donate_argnums=0 if overwrite else ())


@lru_cache
def _compiled_substitution(mesh: Mesh, rows: Any, columns: Any, n: int, block: int) -> Any:
    layout = Layout(mesh, rows, columns, n, block)
    return jax.jit(layout.map(_substitute, layout.spec, PartitionSpec(), out=PartitionSpec()))


def _factor(layout: Layout, local: Array, shift: Array) -> Array:
    first_row, first_column = layout.place(layout.rows, layout.height), layout.place(layout.columns, layout.width)
    strip = min(layout.block, layout.height)
    strips = -(-layout.height // strip)

    def step(k: Array, local: Array) -> Array:
        start, own = layout.panel(k)
        panel = _factored_panel(layout.gather(local, start), shift, start, own)
        factors = lax.dynamic_slice_in_dim(panel, first_column, layout.width)

        def update(s: Array, local: Array) -> Array:
            top = jnp.minimum(s * strip, layout.height - strip)
            rows = first_row + top + jnp.arange(strip)[:, None]
            columns = first_column + jnp.arange(layout.width)
            old = lax.dynamic_slice_in_dim(local, top, strip)
            mine = lax.dynamic_slice_in_dim(panel, first_row + top, strip)
            new = old - jnp.matmul(mine, factors.T, precision=lax.Precision.HIGHEST)
            fresh = rows >= first_row + s * strip  # not yet updated as a part of the strip before
            below = (columns <= rows) & (columns >= start + layout.block) & fresh
            position = columns - start
            finished = jnp.take(mine, jnp.clip(position, 0, layout.block - 1), axis=1)
            in_panel = (position >= 0) & (position < layout.block) & jnp.take(own, position, mode="clip")
            chosen = jnp.where(below, new, jnp.where(in_panel & (columns <= rows), finished, old))
            return lax.dynamic_update_slice_in_dim(local, chosen, top, 0)

        reached = jnp.clip((start - first_row) // strip, 0, strips)  # the strips before are done
        return lax.fori_loop(reached, strips, update, local)

    return lax.fori_loop(0, layout.panels, step, local)


def _factored_panel(panel: Array, shift: Array, start: Array, own: Array) -> Array:
    """The columns of L from `start`, (n, block): zero above the diagonal, and where a column is not the panel's own."""
    block = len(own)
    corner = lax.dynamic_slice_in_dim(panel, start, block)
    corner += jnp.diag(lax.dynamic_slice_in_dim(shift, start, block))
    corner = jnp.where(own[:, None] & own, jnp.tril(corner), jnp.eye(block, dtype=panel.dtype))
    lower = jnp.linalg.cholesky(corner, symmetrize_input=False)
    columns = solve_triangular(lower, jnp.where(own, panel, 0).T, lower=True).T
    below = jnp.arange(len(panel))[:, None] >= start + block
    columns = jnp.where(below, columns, 0)
    return lax.dynamic_update_slice_in_dim(columns, jnp.where(own[:, None] & own, lower, 0), start, 0)


def _substitute(layout: Layout, local: Array, v: Array) -> Array:
    def corner_of(columns: Array, start: Array, own: Array) -> Array:
        corner = jnp.tril(lax.dynamic_slice_in_dim(columns, start, layout.block))
        return jnp.where(own[:, None] & own, corner, jnp.eye(layout.block, dtype=local.dtype))

    def below(columns: Array, start: Array, own: Array) -> Array:
        return jnp.where((jnp.arange(layout.n)[:, None] >= start + layout.block) & own, columns, 0)

    def forward(k: Array, v: Array) -> Array:
        start, own = layout.panel(k)
        columns, old = layout.gather(local, start), lax.dynamic_slice_in_dim(v, start, layout.block)
        new = solve_triangular(corner_of(columns, start, own), jnp.where(own[:, None], old, 0), lower=True)
        v = lax.dynamic_update_slice_in_dim(v, jnp.where(own[:, None], new, old), start, 0)
        return v - _product(below(columns, start, own), new)

    def backward(k: Array, v: Array) -> Array:
        start, own = layout.panel(layout.panels - 1 - k)
        columns, old = layout.gather(local, start), lax.dynamic_slice_in_dim(v, start, layout.block)
        left = jnp.where(own[:, None], old, 0) - _product(below(columns, start, own).T, v)
        new = solve_triangular(corner_of(columns, start, own), left, lower=True, trans="T")
        return lax.dynamic_update_slice_in_dim(v, jnp.where(own[:, None], new, old), start, 0)

    return lax.fori_loop(0, layout.panels, backward, lax.fori_loop(0, layout.panels, forward, v))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
