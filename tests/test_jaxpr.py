"""The jaxpr of a kernel function reads as a list of kernel primitives; variances are computed once per example."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import infnet_flax


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(2)(nn.relu(nn.Dense(16)(x)))


IN_ORDER = [
    "conv_kernel",
    "relu_kernel",
    "pool_kernel",
    "conv_kernel",
    "relu_kernel",
    "dense_kernel",
    "relu_kernel",
    "dense_kernel",
]
N1, N2 = 3, 5
X1, X2 = jnp.ones((N1, 8, 8, 2)), jnp.ones((N2, 8, 8, 2))


def equations(jaxpr):
    """All equations, calls entered, in order."""
    for eqn in jaxpr.eqns:
        inner = [
            p.jaxpr if hasattr(p, "jaxpr") else p
            for p in eqn.params.values()
            if hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ]
        if inner:
            for j in inner:
                yield from equations(j)
        else:
            yield eqn


def kernel_equations(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name.endswith("_kernel")]


def is_pair(eqn):
    return eqn.outvars[0].aval.shape[:2] == (N1, N2)


@pytest.fixture(scope="module")
def k():
    return infnet_flax.kernel_fn(CNN(), X1)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_one_primitive_per_layer_and_pair_in_the_order_of_the_model(k, wrap, get):
    found = kernel_equations(wrap(lambda a, b: k(a, b, get)), X1, X2)
    assert [e.primitive.name for e in found if is_pair(e)] == IN_ORDER
    assert all(len(e.outvars) == (2 if get == "ntk" else 1) for e in found if is_pair(e))


def test_primitives_stay_visible_under_vmap(k):
    several = jnp.stack([X2, X2 + 1])
    found = kernel_equations(jax.vmap(lambda b: k(X1, b, "ntk")), several)
    names = [e.primitive.name for e in found if e.outvars[0].aval.shape[:3] == (2, N1, N2)]
    assert names == IN_ORDER


def test_variances_are_computed_once_per_example(k):
    found = kernel_equations(lambda a, b: k(a, b, "ntk"), X1, X2)
    single = [e for e in found if not is_pair(e)]
    leading = Counter(e.outvars[0].aval.shape[0] for e in single)
    # Variances are needed below each relu: conv, (relu, pool) on the band the pooling needs, conv, dense.
    assert leading == {N1: 5, N2: 5}


def test_the_first_layer_is_a_matrix_product():
    k = infnet_flax.kernel_fn(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((2, 7)))
    jaxpr = jax.make_jaxpr(lambda a, b: k(a, b, "ntk"))(jnp.ones((N1, 7)), jnp.ones((N2, 7)))
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.shape for e in products].count((N1, N2)) == 1
    assert all(7 not in e.outvars[0].aval.shape for e in products)


def test_a_cached_call_does_not_trace_again(k):
    traces = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(x.shape)
            return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))

    kernel = infnet_flax.kernel_fn(Counted(), jnp.ones((2, 4)))
    kernel(jnp.ones((3, 4)), get="ntk")
    count = len(traces)
    kernel(2 * jnp.ones((3, 4)), get="ntk")
    kernel(jnp.ones((7, 4)), jnp.ones((2, 4)), get="nngp")
    assert len(traces) == count
