"""Finite networks for the empirical kernels, and the kernels by their definition: products of dense Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

import infnet


class Network(NamedTuple):
    f: Callable[..., Any]
    params: Any
    x1: Any
    x2: Any


class Images(nn.Module):
    """Convolutions, pooling (average and maximum), a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Conv(2, (2, 2), padding="CIRCULAR")(x)
        return nn.Dense(2)(nn.relu(nn.avg_pool(x, (2, 2))).reshape((x.shape[0], -1)))


class Statistics(nn.Module):
    running: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=self.running)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.tanh(x))


class Tokens(nn.Module):
    """An embedding, attention, and positions in the output."""

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(5, 4)(x) + self.param("positions", nn.initializers.normal(), (3, 4))
        query, key, value = (nn.Dense(4, use_bias=False)(x) for _ in range(3))
        x = nn.LayerNorm()(x + nn.softmax(query @ key.mT) @ value)
        return nn.Dense(2)(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.SimpleCell(3, param_dtype=float))(x)[:, -1])


def _shared(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.tanh(h @ p["w"]) @ p["w"].T


def _several(p, x):
    h = jnp.tanh(x["a"] @ p["w"] + x["b"][:, None])
    return {"scalars": h.sum(1), "images": (h @ p["v"]).reshape(-1, 2, 2) * p["scale"]}


def _complex_outputs(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.exp(1j * h) @ p["v"]


def _wavefunction(p, x):
    """Complex and real parameters; holomorphic in the complex ones."""
    return jnp.tanh(x @ p["w"] + p["b"] * jnp.sum(p["real"] ** 2)) @ p["v"]


def _scanned(p, x):
    return lax.scan(lambda h, w: (jnp.sin(h @ w), h.sum(-1)), x, p["w"])[0]


def _arrays(**shapes: tuple[Any, ...]) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)

    def array(kind: str, *shape: int) -> np.ndarray:
        x = rng.standard_normal(shape) / max(1, shape[0] if shape else 1) ** 0.5
        return x + 1j * rng.standard_normal(shape) / 2 if kind == "complex" else x

    return {name: array(*shape) for name, shape in shapes.items()}


def _inputs(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(1)
    return rng.standard_normal((3, *shape)), rng.standard_normal((2, *shape))


def _linen(module: nn.Module, x1: Any, x2: Any) -> Network:
    """The network with parameters and statistics that are drawn here: nothing is compiled for them."""
    shapes = dict(jax.eval_shape(module.init, jax.random.key(0), x1))
    rng = np.random.RandomState(2)
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape) / max(1, *p.shape) ** 0.5, shapes.pop("params"))
    state = jax.tree.map(lambda s: 0.5 + rng.uniform(size=s.shape), shapes)

    def f(params, x):
        return module.apply({"params": params, **state}, x, mutable=list(state))[0]

    return Network(f, params, x1, x2)


TOKENS = np.array([[0, 1, 2], [4, 4, 0], [3, 1, 1]]), np.array([[2, 2, 1], [0, 4, 3]])

NETWORKS: dict[str, Callable[[], Network]] = {
    "dense": lambda: _linen(nn.Sequential([nn.Dense(4), nn.gelu, nn.Dense(3)]), *_inputs(3)),
    "images": lambda: _linen(Images(), *_inputs(6, 6, 2)),
    "running statistics": lambda: _linen(Statistics(True), *_inputs(3)),
    "batch statistics": lambda: _linen(Statistics(False), *_inputs(3)),
    "tokens": lambda: _linen(Tokens(), *TOKENS),
    "recurrent": lambda: _linen(Recurrent(), *_inputs(4, 2)),
    "scanned": lambda: Network(_scanned, _arrays(w=("real", 3, 2, 2)), *_inputs(2)),
    "shared weights": lambda: Network(_shared, _arrays(w=("real", 3, 3)), *_inputs(3)),
    "several outputs": lambda: Network(
        _several,
        _arrays(w=("real", 3, 4), v=("real", 4, 4), scale=("real",)),
        *({"a": x, "b": x[:, 0]} for x in _inputs(3)),
    ),
    "complex outputs": lambda: Network(_complex_outputs, _arrays(w=("real", 3, 4), v=("real", 4, 2)), *_inputs(3)),
    "complex parameters": lambda: Network(
        _wavefunction,
        _arrays(w=("complex", 3, 4), v=("complex", 4, 2), b=("complex", 4), real=("real", 2)),
        *_inputs(3),
    ),
}


def dense_jacobians(f: Callable[..., Any], params: Any, x: Any) -> list[list[np.ndarray]]:
    """Of each output and parameter, in the order of their leaves, `(axes of the output, number of elements)`.

    A complex output has the derivatives of its real and its imaginary part in real parameters, put together, and the
    holomorphic derivatives in complex ones.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    x = jax.tree.map(jnp.asarray, x)
    is_complex = [jnp.iscomplexobj(leaf) for leaf in leaves]

    def outputs(kind: bool, some: Any) -> list[jax.Array]:
        mixed = [a if c == kind else b for a, b, c in zip(some, leaves, is_complex, strict=True)]
        return jax.tree.leaves(f(jax.tree.unflatten(tree, mixed), x))

    @jax.jit
    def jacobians() -> Any:
        real = [0.0 if c else leaf for leaf, c in zip(leaves, is_complex, strict=True)]
        y = outputs(False, real)
        if not any(map(jnp.iscomplexobj, y)):
            return jax.jacrev(lambda some: outputs(False, some))(real)
        parts = [jax.jacrev(lambda some, g=g: [g(y) for y in outputs(False, some)])(real) for g in (jnp.real, jnp.imag)]
        sums = jax.tree.map(lambda a, b: a + 1j * b, *parts)
        if not any(is_complex):
            return sums
        holomorphic = jax.jacfwd(lambda some: outputs(True, some), holomorphic=True)([p + 0j for p in leaves])
        return [
            [h if c else s for h, s, c in zip(*rows, is_complex, strict=True)]
            for rows in zip(holomorphic, sums, strict=True)
        ]

    shapes = [y.shape for y in jax.eval_shape(lambda: outputs(False, leaves))]
    return [[np.asarray(j).reshape(*s, -1) for j in row] for s, row in zip(shapes, jacobians(), strict=True)]


def full_product(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """`(*axes1, *axes2)` of factors `(*axes, k)`."""
    return np.tensordot(one, two.conj(), (-1, -1))


def reduced(full: np.ndarray, trace: tuple[int, ...], diagonal: tuple[int, ...]) -> np.ndarray:
    """Traces and diagonals of `(*axes1, *axes2)`, entry by entry; the result has each axis twice, in natural order."""
    rank = full.ndim // 2
    trace = tuple(k % rank for k in trace)
    order = [axis for k in range(rank) for axis in (k, rank + k)]
    result = full.transpose(order)
    for k in reversed(range(rank)):
        if k in trace:
            result = np.trace(result, axis1=2 * k, axis2=2 * k + 1) / full.shape[k]
        elif k in diagonal:
            result = np.moveaxis(np.diagonal(result, axis1=2 * k, axis2=2 * k + 1), -1, 2 * k)
    return result


def dense_kernels(network, x2):
    """The NNGP and the shares of the parameters in the NTK, `(*axes1, *axes2)`, of each output."""
    f, params, x1, _ = network
    ones, twos = dense_jacobians(f, params, x1), dense_jacobians(f, params, x2)
    pairs = zip(jax.tree.leaves(f(params, x1)), jax.tree.leaves(f(params, x2)), strict=True)
    nngps = [full_product(np.asarray(a)[..., None], np.asarray(b)[..., None]) for a, b in pairs]
    ntks = [[full_product(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(ones, twos, strict=True)]
    return nngps, ntks


def assert_definition(network, dense, *, trace=(), diagonal=(), **options):
    f, params, x1, x2 = network
    found = infnet.empirical_kernel_fn(f, trace, diagonal, **options)(x1, x2, ("ntk", "nngp"), params)
    kernels = jax.tree.leaves(found, is_leaf=lambda k: hasattr(k, "nngp"))
    for kernel, nngp, shares in zip(kernels, *dense, strict=True):
        np.testing.assert_allclose(kernel.nngp, reduced(nngp, trace, diagonal), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(kernel.ntk, reduced(sum(shares), trace, diagonal), rtol=1e-10, atol=1e-10)
