"""Empirical kernels against their definition: products of the dense Jacobian, in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import finite_zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_zoo import NETWORKS, assert_definition, dense_kernels, reduced
from jax import lax

import infnet
from infnet.errors import BatchAxisError, InputError

WAYS = ["jacobian_contraction", "ntk_vector_products", "structured_derivatives"]
SMALL = 600  # bytes: less than the Jacobian of a parameter


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_definition(name):
    network = NETWORKS[name]()
    expected = dense_kernels(network, network.x2)
    for way in WAYS:
        assert_definition(network, expected, implementation=way)


@pytest.mark.parametrize("name", ["batch statistics", "complex parameters"])
def test_of_one_set_of_examples_and_in_blocks(name):
    network = NETWORKS[name]()
    expected = dense_kernels(network, network.x1)
    for way, limit in itertools.product(WAYS, [2**31, SMALL]):
        assert_definition(network._replace(x2=None), expected, implementation=way, memory_limit=limit)


@pytest.mark.parametrize("way", WAYS)
def test_shares_of_parameters(way):
    network = NETWORKS["several outputs"]()
    f, params, x1, x2 = network
    _, expected = dense_kernels(network, x2)
    found = infnet.empirical_kernel_fn(f, implementation=way)(x1, x2, "ntk_by_param", params)
    for name, parts in zip(["images", "scalars"], expected, strict=True):
        for kernel, part in zip((found[name][leaf] for leaf in ("scale", "v", "w")), parts, strict=True):
            np.testing.assert_allclose(kernel, reduced(part, (), ()), rtol=1e-10, atol=1e-10)


AXES = [
    (trace, diagonal)
    for kinds in itertools.product(["free", "trace", "diagonal"], repeat=3)
    if kinds[0] != "trace"
    for trace, diagonal in [[tuple(k for k in range(3) if kinds[k] == kind) for kind in ("trace", "diagonal")]]
]


@pytest.fixture(scope="module")
def positions_and_channels():
    """A network whose output has examples, positions and channels, and its kernels with all axes twice."""
    rng = np.random.RandomState(0)
    x1, x2 = rng.standard_normal((2, 2, 4, 3))
    network = finite_zoo.Network(lambda w, x: jnp.sin(x @ w), rng.standard_normal((3, 2)), x1, x2)
    with jax.enable_x64(True):
        return network, dense_kernels(network, x2)


@pytest.mark.parametrize(("trace", "diagonal"), AXES)
def test_axes(positions_and_channels, trace, diagonal):
    """All combinations; those of the trace counted from the end."""
    negative = tuple(k - 3 for k in trace)
    for way, limit in [*((way, 2**31) for way in WAYS), (WAYS[0], SMALL)]:
        options = {"trace": negative, "diagonal": diagonal, "implementation": way, "memory_limit": limit}
        assert_definition(*positions_and_channels, **options)


def test_the_limit_of_memory_holds():
    """Of the Jacobian, 64 MB here, a hundredth is in memory at a time."""
    params = {"a": np.ones((400, 500)), "b": np.ones((500, 2))}
    x = np.ones((20, 400))

    def f(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    for way in WAYS:
        ntk_fn = infnet.empirical_ntk_fn(f, implementation=way, memory_limit=2**22)
        used = jax.jit(lambda p, fn=ntk_fn: fn(x, None, p)).lower(params).compile().memory_analysis()
        assert used.temp_size_in_bytes < 5 * 2**22


def test_learning_rates():
    f, params, x1, x2 = NETWORKS["several outputs"]()
    shares = infnet.empirical_kernel_fn(f)(x1, x2, "ntk_by_param", params)
    scaled = {"trainable": lambda path: path != "scale", "lr_scale": {"v": 3.0}}
    for way in WAYS:
        found = infnet.empirical_ntk_fn(f, implementation=way, **scaled)(x1, x2, params)
        for name in ("images", "scalars"):
            np.testing.assert_allclose(found[name], 3 * shares[name]["v"] + shares[name]["w"], rtol=1e-10)
    frozen = infnet.empirical_kernel_fn(f, trainable={"*": False})
    assert not np.any(frozen(x1, x2, "ntk", params)["images"])
    assert not np.any(frozen(x1, x2, "ntk_by_param", params)["images"]["w"])


def test_integer_parameters_are_constants():
    def f(params, x):
        return x @ params["w"] * params["count"]

    params = {"w": np.ones((3, 2)), "count": np.array(2)}
    x = np.eye(3)
    shares = infnet.empirical_kernel_fn(f, -1)(x, None, "ntk_by_param", params)
    np.testing.assert_allclose(shares["w"], 4 * np.eye(3))
    assert not np.any(shares["count"])


def test_keyword_arguments_that_are_no_arrays():
    def f(params, x, scale, power=1, *, function=jnp.sin):
        return function(x @ params) ** power * scale

    kernel_fn = infnet.empirical_kernel_fn(f)
    x, w = np.ones((2, 3)), np.ones((3, 1))
    for function, derivative in ((jnp.sin, jnp.cos), (jnp.cos, jnp.sin)):
        found = kernel_fn(x, None, "ntk", w, scale=np.array(2.0), power=2, function=function)
        slope = 2 * 2 * function(3.0) * derivative(3.0)
        np.testing.assert_allclose(found, np.full((2, 2, 1, 1), 3 * slope**2), rtol=1e-10)


def test_under_transformations():
    f, params, x1, x2 = NETWORKS["dense"]()
    ntk_fn = infnet.empirical_ntk_fn(f, -1)
    expected = ntk_fn(x1, x2, params)
    np.testing.assert_allclose(jax.jit(ntk_fn)(x1, x2, params), expected, rtol=1e-12)
    twice = jax.vmap(lambda scale: ntk_fn(scale * x1, x2, params))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(twice[0], expected, rtol=1e-12)
    slope = jax.grad(lambda t: ntk_fn(t * x1, x2, params).sum())(1.0)
    h = 1e-5
    np.testing.assert_allclose(
        slope, (ntk_fn((1 + h) * x1, x2, params) - ntk_fn((1 - h) * x1, x2, params)).sum() / (2 * h), rtol=1e-6
    )


def test_half_precision_is_summed_in_float32():
    w, x = jnp.full((300, 1), 0.01, jnp.bfloat16), jnp.ones((2, 300), jnp.bfloat16)
    found = infnet.empirical_ntk_fn(lambda w, x: x @ w)(x, None, w)
    assert found.dtype == jnp.float32
    assert np.all(found == 300)  # in bfloat16, 256 + 1 is 256


# Which examples depend on each other


def mixing(params, x):
    return (x - x.mean(0)) @ params


def mixing_in_a_loop(params, x):
    return lax.fori_loop(0, 2, lambda _, h: jnp.cumsum(h, 0) @ params, x)


def drawing(params, x):
    return x @ params * jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 2))


def counting(params, x):
    return x @ params / len(x)


def without_examples(params, x):
    return (x @ params).sum(0)


SEPARATE = [mixing, mixing_in_a_loop, drawing, counting, without_examples]


@pytest.mark.parametrize("f", SEPARATE)
def test_dependent_examples(f):
    """They are found; the kernel is that of the batch as a whole."""
    rng = np.random.RandomState(0)
    params = rng.standard_normal((2, 2))
    x1, x2 = rng.standard_normal((4, 2)), rng.standard_normal((3, 2))
    network = finite_zoo.Network(f, params, x1, x2)
    expected = dense_kernels(network, x2)
    assert_definition(network, expected)
    assert_definition(network, expected, vmap_axes=None)
    with pytest.raises(BatchAxisError, match='use vmap_axes="auto"'):
        infnet.empirical_ntk_fn(f, vmap_axes=0)(x1, x2, params)


@jax.custom_vjp
def alike(x):
    return x


alike.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.linalg.norm(g + 1e-3),))


def scaled_backwards(params, x):
    """The gradient depends on the size of that of the whole batch."""
    return alike(x @ params)


def scaled_backwards_in_a_loop(params, x):
    return lax.scan(lambda h, _: (alike(h @ params), None), x, None, length=2)[0]


@pytest.mark.parametrize("f", [scaled_backwards, scaled_backwards_in_a_loop])
def test_backward_rules_may_see_the_batch(f):
    rng = np.random.RandomState(0)
    x1, x2, params = rng.standard_normal((4, 2)), rng.standard_normal((3, 2)), rng.standard_normal((2, 2))
    network = finite_zoo.Network(f, params, x1, x2)
    for way in ("auto", *WAYS[::2]):
        assert_definition(network, dense_kernels(network, x2), implementation=way)
    with pytest.raises(BatchAxisError, match="backward rule of its own"):
        infnet.empirical_ntk_fn(f, vmap_axes=0)(x1, x2, params)
    with pytest.raises(InputError, match="forward derivatives"):
        infnet.empirical_ntk_fn(f, implementation="ntk_vector_products")(x1, x2, params)


def another_for_one(params, x):
    return (jnp.sin if len(x) == 1 else jnp.cos)(x @ params)


def squeezing(params, x):
    return jnp.cos(x.squeeze() @ params)


def own_rows(params, x):
    h = x @ params
    return jnp.cos(h[jnp.arange(len(x)), jnp.argmax(x[:, :2], 1)])


def positions(params, x):
    return jnp.cos(x @ params)[..., None] + params[None, None, 0]


@pytest.mark.parametrize("f", [another_for_one, squeezing, own_rows, positions])
def test_independent_examples(f):
    """They are independent in batches of two and more; what a model does for a single one may be something else."""
    rng = np.random.RandomState(0)
    x1, x2, params = rng.standard_normal((4, 3)), rng.standard_normal((2, 3)), rng.standard_normal((3, 2))
    network = finite_zoo.Network(f, params, x1, x2)
    assert_definition(network, dense_kernels(network, x2), vmap_axes=0)


def test_inputs_without_examples():
    def f(params, x):
        return x["graph"] @ x["nodes"] @ params

    rng = np.random.RandomState(0)
    x1, x2 = ({"graph": rng.standard_normal((2, 3)), "nodes": rng.standard_normal((3, 2))} for _ in range(2))
    network = finite_zoo.Network(f, rng.standard_normal((2, 2)), x1, x2)
    assert_definition(network, dense_kernels(network, x2))
    with pytest.raises(InputError, match="leading axis of the same size"):
        infnet.empirical_ntk_fn(f, vmap_axes=0)(x1, x2, network.params)


# NTK-vector products


@pytest.mark.parametrize("name", ["dense", "batch statistics", "complex parameters"])
def test_products_with_vectors(name):
    network = NETWORKS[name]()
    f, params, x1, x2 = network
    _, [shares] = dense_kernels(network, x2)
    rng = np.random.RandomState(0)
    y = f(params, x2)
    vector = rng.standard_normal(y.shape) + (1j * rng.standard_normal(y.shape) if jnp.iscomplexobj(y) else 0)
    found = infnet.empirical_ntk_vp_fn(f, x1, x2, params)(vector)
    np.testing.assert_allclose(found, np.einsum("iajb,jb->ia", sum(shares), vector), rtol=1e-10)


def test_products_with_vectors_of_several_outputs():
    """With the covariances between outputs: as the kernel of all of them in one array."""
    f, params, x1, _ = NETWORKS["several outputs"]()

    def joined(params, x):
        y = f(params, x)
        return jnp.concatenate([y["images"].reshape(len(x["b"]), -1), y["scalars"][:, None]], 1)

    y = f(params, x1)
    vector = jax.tree.map(lambda a: np.random.RandomState(0).standard_normal(a.shape), y)
    found = infnet.empirical_ntk_vp_fn(f, x1, None, params)(vector)
    kernel = infnet.empirical_ntk_fn(joined)(x1, None, params)
    flat = np.concatenate([vector["images"].reshape(3, -1), vector["scalars"][:, None]], 1)
    expected = np.einsum("ijab,jb->ia", kernel, flat)
    np.testing.assert_allclose(found["images"].reshape(3, -1), expected[:, :4], rtol=1e-10)
    np.testing.assert_allclose(found["scalars"], expected[:, 4], rtol=1e-10)


# Neural Tangents


def test_shapes_and_normalisation_are_those_of_neural_tangents():
    path = Path(__file__).parent / "references/empirical_nt.npz"
    with np.load(path) as saved:
        data = dict(saved)
    params = {"a": data.pop("a"), "b": data.pop("b")}
    x1, x2 = data.pop("x1"), data.pop("x2")
    assert len(data) > 10
    for name, expected in data.items():
        trace, diagonal, get = name.split("/")
        axes = [tuple(map(int, text.split())) for text in (trace, diagonal)]
        found = infnet.empirical_kernel_fn(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], *axes)(x1, x2, get, params)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


# Refusals


def modulus(params, x):
    return jnp.abs(x @ params) + 0j


def in_a_loop(params, x):
    return lax.fori_loop(0, 2, lambda _, h: jnp.conj(h) @ params, x + 0j)


@pytest.mark.parametrize("f", [modulus, in_a_loop, lambda p, x: (x @ p).real])
def test_what_is_not_holomorphic(f):
    w = np.eye(2) + 1j
    for call in (infnet.empirical_ntk_fn(f), lambda x1, x2, w: infnet.empirical_ntk_vp_fn(f, x1, x2, w)):
        with pytest.raises(InputError, match="not proved to be holomorphic"):
            call(np.eye(2), None, w)


def holomorphic_in_a_loop(params, x):
    return lax.fori_loop(0, 2, lambda _, h: jnp.sin(h) @ params * jnp.abs(x).sum(1, keepdims=True), x + 0j)


def test_loops_may_be_holomorphic():
    rng = np.random.RandomState(0)
    params = rng.standard_normal((2, 2)) + 1j * rng.standard_normal((2, 2))
    network = finite_zoo.Network(holomorphic_in_a_loop, params, *rng.standard_normal((2, 2, 2)))
    assert_definition(network, dense_kernels(network, network.x2))


def linear(params, x):
    return x @ params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"implementation": "fast"},
            'must be "auto" or "structured_derivatives" or "jac',
        ),
        ({"vmap_axes": 1}, 'vmap_axes must be "auto", 0 or None'),
        ({"memory_limit": 0}, "memory_limit must be a positive number"),
        ({"trace_axes": 0}, "counts examples"),
        ({"trace_axes": -2}, "counts examples"),
        ({"trace_axes": 2}, "has 2 axes"),
        ({"trace_axes": "c"}, "must be an axis"),
        ({"trace_axes": 1.0}, "must be an axis"),
        ({"trace_axes": (1, -1)}, "twice"),
        ({"trace_axes": 1, "diagonal_axes": 1}, "choose one"),
        ({"diagonal_axes": 0}, "has size 3 for x1 and 2 for x2"),
        ({"trainable": {"kernel": False}}, "no parameter matches"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(InputError, match=message):
        infnet.empirical_kernel_fn(linear, **options)(np.ones((3, 2)), np.ones((2, 2)), "ntk", np.ones((2, 2)))


def test_other_arguments():
    x, w = np.ones((3, 2)), np.ones((2, 2))
    with pytest.raises(InputError, match="get must be"):
        infnet.empirical_kernel_fn(linear)(x, None, "nkt", w)
    with pytest.raises(InputError, match="has dtype int"):
        infnet.empirical_ntk_fn(lambda w, x: (x @ w).astype(int))(x, None, w)
    with pytest.raises(InputError, match="must have the same axes"):
        infnet.empirical_ntk_fn(linear)(x, x[None], w)
    with pytest.raises(InputError, match="the shapes of the outputs"):
        infnet.empirical_ntk_vp_fn(linear, x, None, w)(np.ones((2, 2)))
    with pytest.raises(InputError, match="the structure of the outputs"):
        infnet.empirical_ntk_vp_fn(linear, x, None, w)([np.ones((3, 2))])
