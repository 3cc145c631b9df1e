"""Kernels of models, differentiated in the inputs and in the hyperparameters, against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet.errors import InputError

WIDTH, D = 16, 3
PHI = {"relu": jax.nn.relu, "erf": jax.lax.erf, "silu": jax.nn.silu}
STEP = 1e-6
every_phi = pytest.mark.parametrize("name", PHI)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def prior(std, *shape):
    return infnet.Prior(0.0, std, shape=shape, dtype=jnp.float64)


@functools.cache
def kernel_of(name):
    phi = PHI[name]

    def apply(p, x):
        x = phi(x @ p["first"]["w"] + p["first"]["b"])
        return phi(x @ p["second"]) @ p["last"]

    priors = {
        "first": {"w": prior(0.6, D, WIDTH), "b": prior(0.2, WIDTH)},
        "second": prior(0.3, WIDTH, WIDTH),
        "last": prior(0.3, WIDTH, 1),
    }
    return infnet.kernel_fn(apply, priors, points()[0])


def points():
    return np.random.default_rng(0).normal(size=(2, 2, D))


@functools.cache
def both(name):
    """(NNGP, NTK) of two sets, summed with weights that tell the entries apart, and its derivatives; compiled once."""
    kernel_fn = kernel_of(name)
    weights = np.random.default_rng(1).normal(size=(2, 2))

    def value(x1, x2, stds):
        kernels = kernel_fn.with_hyperparameters(stds)(x1, x2, get=("nngp", "ntk"))
        return jnp.stack([(weights * k).sum() for k in kernels])

    def derivatives(x1, x2, stds, direction):
        moved = lambda t: value(x1 + t * direction, x2, stds)  # noqa: E731
        return {
            "value": value(x1, x2, stds),
            "forward": jax.jvp(moved, (0.0,), (1.0,))[1],
            "reverse": jax.jacrev(value)(x1, x2, stds),
            "stds": jax.jacrev(value, 2)(x1, x2, stds),
            "second": jax.jvp(lambda t: jax.jvp(moved, (t,), (1.0,))[1], (0.0,), (1.0,))[1],
        }

    return jax.jit(derivatives)


def differences(name, x1, x2, direction, what="value", step=STEP):
    """Central, so symmetric, differences along a direction of x1."""
    stds = kernel_of(name).hyperparameters
    up, down = (both(name)(x1 + sign * step * direction, x2, stds, direction)[what] for sign in (1, -1))
    return (up - down) / (2 * step)


@every_phi
def test_in_the_inputs(name):
    x1, x2 = points()
    direction = np.random.default_rng(2).normal(size=(2, D))
    found = both(name)(x1, x2, kernel_of(name).hyperparameters, direction)
    np.testing.assert_allclose(found["forward"], differences(name, x1, x2, direction), rtol=1e-7)
    np.testing.assert_allclose(jnp.vdot(found["reverse"][0], direction), found["forward"][0], rtol=1e-10)
    np.testing.assert_allclose(found["second"], differences(name, x1, x2, direction, "forward"), rtol=1e-6)


@every_phi
def test_in_the_hyperparameters(name):
    x1, x2 = points()
    stds = kernel_of(name).hyperparameters
    found = both(name)(x1, x2, stds, np.zeros((2, D)))["stds"]
    leaves, tree = jax.tree.flatten(stds)
    for k, slope in enumerate(jax.tree.leaves(found)):
        up, down = (
            both(name)(x1, x2, jax.tree.unflatten(tree, [s + sign * STEP * (i == k) for i, s in enumerate(leaves)]), x1)
            for sign in (1, -1)
        )
        np.testing.assert_allclose(slope, (up["value"] - down["value"]) / (2 * STEP), rtol=1e-7)


@pytest.mark.parametrize("where", ["coincident", "antiparallel", "zero"])
def test_symmetric_at_special_points(where):
    """The NTK of a kinked function has one-sided slopes there: the derivative is their mean."""
    x1, _ = points()
    x2 = {"coincident": x1, "antiparallel": -x1, "zero": 0 * x1}[where]
    start = 0 * x1 if where == "zero" else x1
    direction = np.random.default_rng(3).normal(size=(2, D))
    kernel = both("relu")
    found = kernel(start, x2, kernel_of("relu").hyperparameters, direction)
    # Of smaller steps, the angle between the examples would be half rounding. Terms t |t| of the NTK have central
    # differences proportional to the step, which is extrapolated to 0.
    step = 1e-4
    one, two = (differences("relu", start, x2, direction, step=h) for h in (step, 2 * step))
    central = 2 * one - two
    np.testing.assert_allclose(found["forward"], central, rtol=1e-6, atol=1e-6)
    assert jnp.isfinite(found["reverse"]).all()
    assert jnp.isfinite(found["second"]).all()
    if where == "coincident":  # the NNGP is twice differentiable there
        np.testing.assert_allclose(
            found["second"][0], differences("relu", start, x2, direction, "forward", step)[0], rtol=1e-4, atol=1e-4
        )


def test_hyperparameters_are_checked_and_nothing_is_traced_again():
    kernel_fn = kernel_of("relu")
    x, _ = points()
    stds = kernel_fn.hyperparameters
    assert stds["first"] == {"w": 0.6, "b": 0.2}
    doubled = kernel_fn.with_hyperparameters({**stds, "last": 2 * stds["last"]})
    np.testing.assert_allclose(doubled(x, get="nngp"), 4 * kernel_fn(x, get="nngp"), rtol=1e-12)
    assert kernel_fn.hyperparameters == stds
    compiled = list(kernel_fn._runner._compiled.values())
    kernel_fn.with_hyperparameters(jax.tree.map(lambda s: 3 * s, stds))(x, get="nngp")
    assert list(kernel_fn._runner._compiled.values()) == compiled
    assert all(function._cache_size() == 1 for function in compiled if function is compiled[-1])
    with pytest.raises(InputError, match="structure of the parameters"):
        kernel_fn.with_hyperparameters({"first": 1.0})
    with pytest.raises(InputError, match="std of 'last' has shape"):
        kernel_fn.with_hyperparameters({**stds, "last": np.ones(3)})
