"""Empirical kernels against their definition: products of the dense Jacobian, in float64."""

from __future__ import annotations

import itertools

import finite_zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_zoo import NETWORKS, dense_jacobians, full_product, reduced

import infnet

WAYS = list(itertools.product(["jacobian_contraction", "ntk_vector_products"], [2**31, 600]))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense_kernels(network, x2, trace=(), diagonal=()):
    """The NNGP and the shares of the parameters in the NTK, of each output."""
    f, params, x1, _ = network
    ones, twos = dense_jacobians(f, params, x1), dense_jacobians(f, params, x2)
    pairs = zip(jax.tree.leaves(f(params, x1)), jax.tree.leaves(f(params, x2)), strict=True)
    nngps = [full_product(np.asarray(a)[..., None], np.asarray(b)[..., None]) for a, b in pairs]
    ntks = [[full_product(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(ones, twos, strict=True)]
    return (
        [reduced(k, trace, diagonal) for k in nngps],
        [[reduced(k, trace, diagonal) for k in of_output] for of_output in ntks],
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_definition(name, symmetric):
    network = NETWORKS[name]()
    f, params, x1, x2 = network
    x2 = None if symmetric else x2
    nngp, shares = dense_kernels(network, x1 if symmetric else x2)
    for way, limit in WAYS[: 2 if symmetric else 4]:
        kernel_fn = infnet.empirical_kernel_fn(f, implementation=way, memory_limit=limit)
        found = kernel_fn(x1, x2, ("ntk", "nngp"), params)
        kernels = jax.tree.leaves(found, is_leaf=lambda k: hasattr(k, "nngp"))
        for kernel, expected, parts in zip(kernels, nngp, shares, strict=True):
            np.testing.assert_allclose(kernel.nngp, expected, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(kernel.ntk, sum(parts), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["jacobian_contraction", "ntk_vector_products"])
def test_shares_of_parameters(way):
    network = NETWORKS["tokens"]()
    f, params, x1, x2 = network
    _, [parts] = dense_kernels(network, x2, trace=(2,))
    found = infnet.empirical_kernel_fn(f, -1, implementation=way)(x1, x2, "ntk_by_param", params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for kernel, part in zip(jax.tree.leaves(found), parts, strict=True):
        np.testing.assert_allclose(kernel, part, rtol=1e-10, atol=1e-10)


AXES = [
    (trace, diagonal)
    for kinds in itertools.product(["free", "trace", "diagonal"], repeat=3)
    if kinds[0] != "trace"
    for trace, diagonal in [[tuple(k for k in range(3) if kinds[k] == kind) for kind in ("trace", "diagonal")]]
]


@pytest.mark.parametrize(("trace", "diagonal"), AXES)
def test_axes(trace, diagonal):
    """All combinations, for an output with examples, positions and channels."""
    rng = np.random.RandomState(0)
    params = {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}
    x1, x2 = rng.standard_normal((2, 2, 4, 3))

    def f(params, x):
        return jnp.sin(x @ params["w"] + params["b"])

    nngp, [parts] = dense_kernels(finite_zoo.Network(f, params, x1, x2), x2, trace, diagonal)
    for (way, limit), vmap_axes in itertools.product([*WAYS, ("jacobian_contraction", 60)], ["auto", None]):
        negative = tuple(k - 3 for k in trace)
        kernel_fn = infnet.empirical_kernel_fn(f, negative, diagonal, vmap_axes, way, memory_limit=limit)
        found = kernel_fn(x1, x2, None, params)
        np.testing.assert_allclose(found.nngp, nngp[0], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.ntk, sum(parts), rtol=1e-10, atol=1e-10)
