"""The activation layers: their kernels against Neural Tangents 0.6.5, and what they are as functions."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function
from scipy import special
from test_activations_nt import ACTIVATIONS, B_STD, W_STD, WIDTH, assert_agrees, references  # noqa: F401

import infnet_flax
import infnet_haiku
from infnet_flax import Dense

ARGUMENTS = {
    "abrelu": ("ABRelu", -0.3, 1.2),
    "relu": ("Relu",),
    "leaky_relu": ("LeakyRelu", 0.1),
    "abs": ("Abs",),
    "sign": ("Sign",),
    "erf": ("Erf", 1.3, 0.7, 0.2),
    "sigmoid_like": ("Sigmoid_like",),
    "gelu": ("Gelu",),
    "sin": ("Sin", 1.3, 0.7, 0.4),
    "cos": ("Cos", 0.8, 1.1, 0.3),
    "rbf": ("Rbf", 0.6),
    "exp": ("Exp", 1.1, 0.4),
    "exp_normalized": ("ExpNormalized", 0.8, -0.7),
    "gaussian": ("Gaussian", 1.2, -0.6),
    "gabor": ("Gabor",),
    **{f"hermite{n}": ("Hermite", n) for n in (1, 2, 3, 4)},
    **{f"monomial{n}": ("Monomial", n) for n in range(6)},
    **{f"rectified_monomial{n}": ("RectifiedMonomial", n) for n in range(4)},
    "polynomial": ("Polynomial", (0.3, -1.0, 0.5, 0.2)),
}


def layers(module):
    return {name: getattr(module, cls)(*arguments) for name, (cls, *arguments) in ARGUMENTS.items()}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kernels(layers, x, w_std=W_STD, get=("nngp", "ntk")):
    """Dense, activation, Dense for each of them, with one first layer; only the last ones have a bias."""

    def body(x):
        h = Dense(WIDTH, use_bias=False, w_std=w_std, param_dtype=x.dtype)(x)
        return {name: Dense(1, w_std=W_STD, b_std=B_STD, param_dtype=x.dtype)(f(h)) for name, f in layers.items()}

    return infnet_flax.kernel_fn(Function(body), x)(x, x, get)


@pytest.mark.parametrize("unit", [False, True])
def test_agrees_to_nine_digits(unit, references):  # noqa: F811
    chosen = {name: layer for name, layer in layers(infnet_flax).items() if name.startswith("hermite") == unit}
    found = kernels(chosen, references["x_unit" if unit else "x"], 1.0 if unit else W_STD)
    for name in chosen:
        assert_agrees(found[name], name, references)


def test_none_is_left_out():
    classes = {cls for cls, *_ in ARGUMENTS.values()} | {"Elementwise", "ElementwiseNumerical"}
    for module in (infnet_flax, infnet_haiku):
        found = {name for name, cls in vars(module).items() if getattr(cls, "__module__", "").endswith("activations")}
        assert found == classes


def test_functions_are_those_that_users_write():
    """In both frameworks, kinks included; `exp_normalized` is tested below."""
    x = np.concatenate([np.linspace(-3, 3, 61), [0.0]])

    def haiku(x):
        return {name: layer(x) for name, layer in layers(infnet_haiku).items()}

    flax = {name: layer.apply({}, x) for name, layer in layers(infnet_flax).items()}
    transformed = hk.without_apply_rng(hk.transform(haiku)).apply({}, x)
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(flax[name], function(x), rtol=1e-13, atol=1e-15, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, flax, transformed)


def test_exp_normalized_networks_have_its_kernel():
    """The mean over the channels of one wide network; the squares of the coefficients of its series sum up to K(1)."""
    gamma, shift, n = 0.8, -0.7, 40_000
    u, v = np.random.RandomState(0).standard_normal((2, n))
    x = np.stack([1.5 * u, 0.7 * (0.6 * u + 0.8 * v)])
    layer = infnet_flax.ExpNormalized(gamma, shift)
    y = np.asarray(layer.apply({}, x))
    expected = np.outer([1.5, 0.7], [1.5, 0.7]) * np.exp(gamma * (np.array([[1, 0.6], [0.6, 1]]) + shift))
    np.testing.assert_allclose(y @ y.T / n, expected, rtol=0.05)
    np.testing.assert_array_equal(layer.apply({}, np.zeros((1, 3))), 0)
    assert np.isfinite(jax.grad(lambda x: layer.apply({}, x).sum())(jnp.zeros((1, 3)))).all()


def dual(q12, q11, q22):
    """Of erf: Williams 1996."""
    return 2 / jnp.pi * jnp.arcsin(2 * q12 / jnp.sqrt((1 + 2 * q11) * (1 + 2 * q22)))


def test_elementwise_with_a_kernel_of_its_own():
    x = np.random.RandomState(0).standard_normal((3, 4))
    slope = jax.grad(dual)
    found = kernels(
        {
            "found": infnet_flax.Elementwise(special_erf),
            "numerical": infnet_flax.ElementwiseNumerical(special_erf, 25),
            "given": infnet_flax.Elementwise(special_erf, dual),
            "both given": infnet_flax.Elementwise(special_erf, dual, slope),
            "believed": infnet_flax.Elementwise(jnp.sin, dual, slope),
        },
        x,
    )
    for name in ("numerical", "given", "both given", "believed"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found[name], found["found"])
    y = infnet_flax.Elementwise(special_erf, dual).apply({}, x)
    np.testing.assert_allclose(y, special.erf(x), rtol=1e-12)


def special_erf(x):
    return jax.scipy.special.erf(x)


def test_layers_with_equal_functions_are_one_operation():
    """So that those of a deep network are seen to be alike."""

    def twice(x):
        for _ in range(2):
            x = infnet_flax.Elementwise(special_erf, dual).apply({}, infnet_flax.ExpNormalized(1, -1.0).apply({}, x))
        return x

    operations = [e.params["operation"] for e in jax.make_jaxpr(twice)(jnp.ones((2, 3))).eqns]
    assert operations[:2] == operations[2:]
    assert len({*operations}) == 2
