"""Diagnostics against brute force in NumPy: integrals by the trapezoidal rule, maps by iterating them."""

from __future__ import annotations

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import special

import infnet
from infnet import diagnostics, plot, stax
from infnet.diagnostics import alignment, depth_scale, drift, label_kernel, spectrum
from infnet.errors import InputError, NumericalError, UnsupportedError

Z = np.linspace(-10, 10, 401)
WEIGHTS = np.exp(-(Z**2) / 2) / np.exp(-(Z**2) / 2).sum()
NUMPY = {"tanh": np.tanh, "erf": special.erf, "relu": lambda x: np.maximum(x, 0)}
JAX = {"tanh": jnp.tanh, "erf": jax.scipy.special.erf, "relu": jax.nn.relu}


def variance_map(phi, w, b):
    return lambda q: w**2 * (WEIGHTS @ phi(np.sqrt(q) * Z) ** 2) + b**2


def correlation_map(phi, w, b, q):
    def at(c):
        u = np.sqrt(q) * Z
        v = np.sqrt(q) * (c * Z[:, None] + np.sqrt(1 - c**2) * Z)
        return (w**2 * (WEIGHTS * phi(u)) @ phi(v) @ WEIGHTS + b**2) / q

    return at


def iterated(step, x, count):
    for _ in range(count):
        x = step(x)
    return x


def slope(function, x, h=1e-4):
    return (function(x + h) - function(x - h)) / (2 * h)


# Phases and depth scales.


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_fixed_points_and_slopes_are_those_of_iterated_maps(name):
    nearly = 1.42 if name == "tanh" else 1.26
    cases = [(0.8, 0.3, "ordered"), (nearly, 0.3, "chaotic"), (1.7, 0.1, "chaotic"), (3.0, 0.5, "chaotic")]
    found = depth_scale(JAX[name], [w for w, _, _ in cases], [b for _, b, _ in cases])
    for k, (w, b, phase) in enumerate(cases):
        phi = NUMPY[name]
        q = iterated(variance_map(phi, w, b), 1.0, 200)
        np.testing.assert_allclose(found.q_star[k], q, rtol=1e-9)
        derivative = slope(phi, np.sqrt(q) * Z)
        np.testing.assert_allclose(found.chi_1[k], w**2 * WEIGHTS @ derivative**2, rtol=1e-6)
        np.testing.assert_allclose(found.xi_q[k], -1 / np.log(slope(variance_map(phi, w, b), q)), rtol=1e-5)
        correlations = correlation_map(phi, w, b, q)
        assert (w != nearly) or found.xi_c[k] > 50
        if phase == "chaotic":
            c = found.c_star[k]
            assert 0 <= c < 0.99  # of two fixed points, since the map is convex, the one that is not 1
            np.testing.assert_allclose(correlations(c), c, atol=1e-9)
            np.testing.assert_allclose(found.xi_c[k], -1 / np.log(slope(correlations, found.c_star[k])), rtol=1e-4)
        else:
            assert found.c_star[k] == 1
            assert found.xi_c[k] == -1 / np.log(found.chi_1[k])
        assert found.phase[k] == phase
    assert (found.state == "fixed point").all()


def test_tanh_is_critical_at_one_without_biases():
    found = depth_scale(jnp.tanh, [0.9, 1.0, 1.1], 0.0)
    assert found.phase.tolist() == ["ordered", "critical", "chaotic"]
    assert found.state.tolist() == ["vanishes", "vanishes", "fixed point"]
    np.testing.assert_allclose(found.chi_1[:2], [0.81, 1.0], rtol=1e-9)
    np.testing.assert_allclose(found.xi_q[0], -1 / np.log(0.81), rtol=1e-9)
    assert found.xi_q[1] == np.inf
    assert np.isnan(found.c_star[:2]).all()
    np.testing.assert_allclose(found.c_star[2], 0, atol=1e-6)  # an odd function: orthogonal inputs stay so


def test_relu_has_a_fixed_point_below_the_critical_weights_only():
    w, b = np.array([1.0, 2**0.5, 1.5]), np.array([[0.0], [0.5]])
    found = depth_scale(jax.nn.relu, w, b)
    assert found.state.tolist() == [["vanishes", "fixed point", "diverges"], ["fixed point", "diverges", "diverges"]]
    np.testing.assert_allclose(found.q_star, [[0, 1, np.inf], [0.25 / (1 - 1 / 2), np.inf, np.inf]])
    np.testing.assert_allclose(found.chi_1, [[0.5, 1, np.nan], [0.5, np.nan, np.nan]])
    np.testing.assert_allclose(found.xi_c[0, 1], np.inf)
    assert np.isnan(found.xi_q[:, 2]).all()
    assert found.phase.tolist() == [["ordered", "critical", ""], ["ordered", "", ""]]
    # Without biases every variance is a fixed point at the critical weights.
    assert depth_scale(jax.nn.relu, 2**0.5, 0.0, q0=3.0).q_star == 3


def test_the_first_variance_decides_between_fixed_points():
    # V(q) = q^2 at w^2 = 1/3, since E z^4 = 3: 0 attracts, and 1 repels.
    found = [depth_scale(jnp.square, 3**-0.5, 0.0, q0=q0) for q0 in (0.9, 1.0, 1.1)]
    assert [str(one.state) for one in found] == ["vanishes", "unstable", "diverges"]
    np.testing.assert_array_equal([one.q_star for one in found], [0, np.nan, np.inf])
    assert np.isnan(found[1].chi_1)
    assert found[0].xi_q < 0.1  # faster than any exponential


def test_variances_are_followed_as_far_as_integrals_are_exact():
    found = depth_scale(
        jnp.tanh, [5.0, 50.0], 0.0
    )  # of large variances the saturated square, 1, so that q* is about w^2
    assert found.state.tolist() == ["fixed point", "beyond q_max"]
    assert 25 < found.q_max < 2500
    np.testing.assert_allclose(found.q_star, [iterated(variance_map(np.tanh, 5.0, 0.0), 1.0, 100), np.nan], rtol=1e-9)
    # Near the critical line the series needs too many terms there; the slope at 1 is an integral.
    near = depth_scale(jnp.tanh, 2.8, 3.0)
    assert near.phase == "chaotic"
    assert np.isnan([near.c_star, near.xi_c]).all()
    assert np.isfinite(near.xi_q)


def test_what_is_not_an_activation_is_refused():
    with pytest.raises(InputError, match="derivative of sign"):
        depth_scale(jnp.sign, 1.0, 0.0)
    with pytest.raises(InputError, match="same shape"):
        depth_scale(jnp.sum, 1.0, 0.0)
    with pytest.raises(InputError, match="elementwise function"):
        depth_scale("relu", 1.0, 0.0)
    with pytest.raises(UnsupportedError):
        depth_scale(lambda x: x[::-1] * x, 1.0, 0.0)
    with pytest.raises(UnsupportedError):
        depth_scale(lambda x: jnp.abs(jnp.tanh(x)), 1.0, 0.0)


@pytest.mark.parametrize(
    ("message", "w_std", "b_std", "q0"),
    [
        ("w_std must be finite and positive", 0.0, 0.0, 1.0),
        ("b_std must be finite and 0 or more", 1.0, -1.0, 1.0),
        ("w_std must be finite", np.nan, 0.0, 1.0),
        ("w_std must be numbers", "one", 0.0, 1.0),
        ("w_std must be numbers, not of shape", [], 0.0, 1.0),
        ("do not broadcast", [1.0, 2.0], [1.0, 2.0, 3.0], 1.0),
        ("q0 must be a positive number", 1.0, 0.0, 0.0),
        ("q0 must be below", 1.0, 0.0, 1e11),
    ],
)
def test_bad_standard_deviations(message, w_std, b_std, q0):
    with pytest.raises(InputError, match=message):
        depth_scale(jax.nn.relu, w_std, b_std, q0=q0)


@pytest.fixture(scope="module")
def diagram():
    return diagnostics.phase_diagram(JAX["erf"], np.linspace(0.5, 3, 20), np.linspace(0.05, 1, 15))


def test_a_phase_diagram_is_depth_scales_on_a_grid(diagram):
    assert diagram.activation == "erf"
    assert diagram.scales.chi_1.shape == (15, 20)  # more points than are computed at once
    k, m = 14, 19
    one = depth_scale(JAX["erf"], diagram.w_std[m], diagram.b_std[k])
    np.testing.assert_allclose(diagram.scales.xi_c[k, m], one.xi_c)
    assert diagram.scales.w_std[k, m] == diagram.w_std[m]
    assert diagram.scales.b_std[k, m] == diagram.b_std[k]
    # The critical line of erf, in closed form: 4 w^2 / (pi sqrt(1 + 4 q)) = 1 at the fixed point.
    np.testing.assert_allclose(
        diagram.scales.chi_1, 4 / np.pi * diagram.w_std**2 / np.sqrt(1 + 4 * diagram.scales.q_star), rtol=1e-9
    )
    for grid in ([1.0], [2.0, 1.0], [[1.0, 2.0]]):
        with pytest.raises(InputError, match="w_std must be"):
            diagnostics.phase_diagram(JAX["erf"], grid, [0.0, 1.0])


# Correlations of a model.

X = np.array([[1.0, 2.0, -1.0], [0.5, 1.0, 2.0]], np.float32)


@pytest.fixture(scope="module")
def model():
    layers = [stax.Dense(8, b_std=1.0), stax.Relu()] * 3
    return stax.serial(*layers, stax.Dense(1)).kernel_fn.at(X)


@pytest.fixture(scope="module")
def correlations(model):
    return diagnostics.correlation_diagram(model, (X,), [0.5, 2.0, 4.0], [0.0, 1.0], weights="*W", biases="*b")


def relu_moment(q11, q12, q22):  # Cho & Saul 2009
    rho = q12 / np.sqrt(q11 * q22)
    return np.sqrt(q11 * q22) * (np.sqrt(1 - rho**2) + (np.pi - np.arccos(rho)) * rho) / (2 * np.pi)


def test_correlations_of_a_model_are_those_of_its_layers(correlations):
    for k, b in enumerate([0.0, 1.0]):
        for m, w in enumerate([0.5, 2.0, 4.0]):
            k11, k12, k22 = (w**2 * X[i] @ X[j] / 3 + b**2 for i, j in ((0, 0), (0, 1), (1, 1)))
            for last in (False, False, True):
                bias = 0 if last else b**2
                k11, k12, k22 = (w**2 * value + bias for value in (k11 / 2, relu_moment(k11, k12, k22), k22 / 2))
            np.testing.assert_allclose(correlations.correlation[k, m], k12 / np.sqrt(k11 * k22), rtol=1e-4)
            np.testing.assert_allclose(correlations.variance[k, m], k11, rtol=1e-4)
    np.testing.assert_allclose(
        correlations.input_correlation, X[0] @ X[1] / np.linalg.norm(X[0]) / np.linalg.norm(X[1])
    )


def test_correlations_that_are_not_known_are_missing():
    kernel_fn = stax.serial(stax.Dense(8, b_std=1.0), stax.Relu(), stax.Dense(1)).kernel_fn.at(X)
    found = diagnostics.correlation_diagram(kernel_fn, (np.stack([X[0], 0 * X[0]]),), [1.0, 2.0], [0.0, 1.0])
    assert np.isnan(found.correlation).tolist() == [[True, True], [False, False]]  # of nothing but biases
    assert np.isnan(found.input_correlation)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, [[True, True, False, False], [False] * 4]),  # terms for the variance of the examples, 0.015
        ({"q_max": 4.0, "tol": 1e-4}, [[True, True, True, False]] * 2),
    ],
)
def test_correlations_that_a_series_does_not_give_are_missing(options, known):
    """The variance of the argument of tanh is w_scale^2 / 200 + b_std^2."""
    shapes = {"w": (3**-0.5, (3, 8)), "b": (0.1, (8,)), "v": (8**-0.5, (8, 1))}
    priors = {name: infnet.Prior(0.0, std, shape=shape, dtype=jnp.float32) for name, (std, shape) in shapes.items()}
    kernel_fn = infnet.kernel_fn(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"], priors, X / 20, **options)
    found = diagnostics.correlation_diagram(kernel_fn, X / 20, [1.0, 10.0, 20.0, 60.0], [0.0, 1.0], weights="w")
    assert np.isfinite(found.correlation).tolist() == known
    assert np.isfinite(found.variance).all()


def test_bad_models_for_correlations(model):
    with pytest.raises(InputError, match="matches no parameter"):
        diagnostics.correlation_diagram(model, (X,), [1.0, 2.0], [0.0, 1.0], weights="*nothing")
    with pytest.raises(InputError, match="biases='none' matches no parameter"):
        diagnostics.correlation_diagram(model, (X,), [1.0, 2.0], [0.0, 1.0], biases="none")
    without = stax.serial(stax.Dense(8, b_std=0.0), stax.Relu(), stax.Dense(1)).kernel_fn.at(X)
    with pytest.raises(InputError, match="no effect"):
        diagnostics.correlation_diagram(without, (X,), [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(InputError, match="both a weight and a bias"):
        diagnostics.correlation_diagram(model, (X,), [1.0, 2.0], [0.0, 1.0], weights="*", biases="*b")
    with pytest.raises(InputError, match="two inputs"):
        diagnostics.correlation_diagram(model, (X[:1],), [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(InputError, match=r"infnet\.KernelFn"):
        diagnostics.correlation_diagram(lambda x: x, X, [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(InputError, match="w_scale must be"):
        diagnostics.correlation_diagram(model, (X,), [0.0, 2.0], [0.0, 1.0])


# Alignment, drift, spectrum.

LABELS = np.repeat(np.arange(3), 4)
FEATURES = np.random.default_rng(0).standard_normal((12, 2))
KERNEL = FEATURES @ FEATURES.T


def test_alignment_is_the_correlation_of_entries():
    same = (LABELS[:, None] == LABELS).astype(float)
    np.testing.assert_array_equal(label_kernel(LABELS), same)
    assert np.isclose(alignment(2 * same + 5, same), 1)  # neither scale nor offset count
    centre = np.eye(12) - 1 / 12
    one, two = (centre @ k @ centre for k in (KERNEL, same))
    assert np.isclose(alignment(KERNEL, same), np.corrcoef(one.ravel(), two.ravel())[0, 1])
    plain = (KERNEL * same).sum() / np.sqrt((KERNEL**2).sum() * (same**2).sum())
    assert np.isclose(alignment(KERNEL, same, centred=False), plain)
    targets = FEATURES[:, 0] - 3.0
    np.testing.assert_allclose(label_kernel(targets), np.outer(targets, targets))
    assert np.isclose(alignment(np.float32(KERNEL), KERNEL), 1)


def test_bad_kernels_and_labels():
    asymmetric = KERNEL + np.triu(np.ones((12, 12)), 1)
    infinite = KERNEL.copy()
    infinite[2, 2] = np.inf
    both = stax.serial(stax.Dense(1)).kernel_fn(jnp.ones((2, 1)))
    for error, message, kernel in [
        (InputError, "must be symmetric", asymmetric),
        (NumericalError, "not finite", infinite),
        (InputError, r"\(n, n\), not \(12, 2\)", FEATURES),
        (InputError, "several kernels", both),
        (InputError, "real numbers", KERNEL + 1j),
    ]:
        for function in (spectrum, lambda k: alignment(k, KERNEL), lambda k: drift([k])):
            with pytest.raises(error, match=message):
                function(kernel)
    with pytest.raises(InputError, match="is constant"):
        alignment(np.ones((12, 12)), KERNEL)
    with pytest.raises(InputError, match="same examples"):
        alignment(KERNEL[:4, :4], KERNEL)
    with pytest.raises(InputError, match="is traced"):
        jax.jit(lambda k: alignment(k, KERNEL))(KERNEL)
    with pytest.raises(InputError, match="labels must be"):
        label_kernel(LABELS[:, None])
    for function in (lambda labels: spectrum(KERNEL, labels), lambda labels: drift([KERNEL], labels)):
        with pytest.raises(InputError, match="3 labels"):
            function(LABELS[:3])
    with pytest.raises(InputError, match="alike"):
        spectrum(KERNEL, np.ones(12, int))
    with pytest.raises(NumericalError, match="positive semidefinite"):
        spectrum(-KERNEL)


def test_drift_from_the_first_kernel():
    kernels = [KERNEL, 2 * KERNEL, KERNEL + np.eye(12)]
    found = drift(iter(kernels), LABELS, steps=[0, 5, 10])
    size = np.linalg.norm(KERNEL)
    np.testing.assert_allclose(found.distance, [0, 1, 12**0.5 / size])
    cosine = (KERNEL * kernels[2]).sum() / size / np.linalg.norm(kernels[2])
    np.testing.assert_allclose(found.rotation, [0, 0, 1 - cosine], atol=1e-12)
    np.testing.assert_allclose(found.alignment, [alignment(k, label_kernel(LABELS)) for k in kernels])
    assert found.steps.tolist() == [0, 5, 10]
    assert drift(kernels).alignment is None
    for message, arguments in {
        "at least one": {"kernels": []},
        r"kernel 1 has shape \(4, 4\)": {"kernels": [KERNEL, KERNEL[:4, :4]]},
        "is zero": {"kernels": [0 * KERNEL]},
        "3 finite numbers": {"kernels": kernels, "steps": [0, 1]},
        "one after the other": {"kernels": 3},
    }.items():
        with pytest.raises(InputError, match=message):
            drift(**arguments)


def test_the_spectrum_and_the_labels_along_it():
    values, vectors = np.linalg.eigh(KERNEL + np.eye(12))
    found = spectrum(KERNEL + np.eye(12), FEATURES)
    np.testing.assert_allclose(found.eigenvalues, values[::-1], rtol=1e-12)
    np.testing.assert_allclose(found.cumulative[-1], 1)
    np.testing.assert_allclose(found.label_shares[:2].sum(), 1, rtol=1e-12)  # the range of the features
    along = (vectors[:, -1] @ FEATURES) ** 2
    np.testing.assert_allclose(found.label_shares[0], along.sum() / (FEATURES**2).sum())
    assert spectrum(KERNEL).cumulative is None
    constant = spectrum(np.ones((12, 12)) + 1e-3 * label_kernel(LABELS), LABELS)
    np.testing.assert_allclose(constant.label_shares[0], 0, atol=1e-12)  # the mean of classes does not count
    single = spectrum(np.float32(KERNEL))
    assert (single.eigenvalues[2:] <= single.cutoff).all()
    assert single.eigenvalues[1] > single.cutoff


# Pictures.


def test_pictures(tmp_path, monkeypatch, diagram, correlations):
    path = tmp_path / "new" / "picture.png"
    drawn = plot.phase_diagram(diagram, path)
    assert isinstance(drawn, Figure)
    assert path.stat().st_size > 10_000
    assert {text.get_text() for text in drawn.axes[0].texts} == {"ordered", "chaotic"}
    for text in drawn.axes[0].texts:
        w, b = text.get_position()
        place = np.argmin(abs(diagram.b_std - b)), np.argmin(abs(diagram.w_std - w))
        assert diagram.scales.phase[place] == text.get_text()
    (label,) = drawn.axes[0].get_legend().get_texts()
    assert label.get_text() == "chi_1 = 1"
    beyond = replace(diagram.scales, chi_1=diagram.scales.chi_1 * np.nan, state=np.full((15, 20), "diverges"))
    drawn = plot.phase_diagram(replace(diagram, scales=beyond))
    assert [text.get_text() for text in drawn.axes[0].texts] == ["variance diverges"]
    assert drawn.axes[0].get_legend() is None

    spectra = {"before": spectrum(KERNEL + np.eye(12), LABELS), "after": spectrum(KERNEL)}
    drawn = plot.spectrum(spectra, path)
    assert [len(axes.lines) for axes in drawn.axes] == [2, 1]
    assert len(drawn.axes[0].lines[1].get_xdata()) == 2  # without rounding errors
    assert len(plot.spectrum(spectra["after"]).axes) == 1
    assert len(plot.drift(drift([KERNEL, KERNEL + np.eye(12)], LABELS), path).axes) == 2
    assert len(plot.drift(drift([KERNEL])).axes) == 1
    drawn = plot.correlation_diagram(correlations, path)
    assert drawn.axes[0].get_xlabel() == "scale of the weights"
    for function in (plot.phase_diagram, plot.spectrum, plot.drift, plot.correlation_diagram):
        with pytest.raises(InputError, match="this draws what"):
            function(KERNEL)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"infnet\[plot\]"):
        infnet.plot.spectrum(spectra)
