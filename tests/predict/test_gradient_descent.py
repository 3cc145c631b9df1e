"""Training on any loss in the space of functions, against training the linearised network in weight space."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
from jax.flatten_util import ravel_pytree

import infnet
from infnet import predict
from infnet.errors import InputError, NumericalError

FROZEN = np.load(Path(__file__).parents[1] / "references/neural_tangents_dynamics.npz")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def mse(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def soft_cross_entropy(fx, y):
    return -jnp.mean(jax.nn.log_softmax(fx) * y)


def cross_entropy(fx, labels):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(fx, labels))


class Problem:
    """A small network with three outputs, linearised, and its exact tangent kernel."""

    def __init__(self):
        random = np.random.RandomState(0)
        shapes = {"a": (2, 5), "b": (5,), "c": (5, 3)}
        self.params = {name: jnp.asarray(random.standard_normal(shape)) for name, shape in shapes.items()}
        self.x, self.x_test = random.standard_normal((4, 2)), random.standard_normal((2, 2))
        self.y, self.labels = random.standard_normal((4, 3)), np.array([0, 2, 1, 2])

        def f(params, x):
            return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]

        self.f = infnet.linearize(f, self.params)
        ntk_fn = infnet.empirical_ntk_fn(f)
        self.dd, self.td = ntk_fn(self.x, None, self.params), ntk_fn(self.x_test, self.x, self.params)
        self.start = (f(self.params, self.x), f(self.params, self.x_test), self.td)

    def trained(self, loss, y, optimizer, count, displaced=False):
        """Outputs on both sets after 0, 1, ... count steps; `displaced`: the optimizer sees θ - θ₀ for θ."""
        origin = self.params if displaced else jax.tree.map(jnp.zeros_like, self.params)
        params = jax.tree.map(jnp.subtract, self.params, origin)

        def f(params, x):
            return self.f(jax.tree.map(jnp.add, origin, params), x)

        def step(carry, _):
            params, state = carry
            gradients = jax.grad(lambda p: loss(f(p, self.x), y))(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), (f(params, self.x), f(params, self.x_test))

        return jax.lax.scan(step, (params, optimizer.init(params)), None, count + 1)[1]

    def flowed(self, loss, y, rate, times):
        """Outputs on both sets at times of the gradient flow of the parameters."""
        vector, unravel = ravel_pytree(self.params)
        gradient = jax.jit(jax.grad(lambda v: loss(self.f(unravel(v), self.x), y)))
        solved = scipy.integrate.solve_ivp(
            lambda _, v: -rate * np.asarray(gradient(v)),
            (0, max(times)),
            vector,
            "DOP853",
            times,
            rtol=1e-9,
            atol=1e-10,
        )
        params = jax.vmap(unravel)(jnp.asarray(solved.y.T))
        return tuple(jax.vmap(self.f, (0, None))(params, x) for x in (self.x, self.x_test))


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        return Problem()


close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)

OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, 0.9),
    "Nesterov": optax.sgd(0.1, 0.9, nesterov=True),
    "schedule": optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 20), 0.5),
    "average": optax.chain(optax.ema(0.8), optax.scale(-0.2)),
    "accumulated": optax.MultiSteps(optax.sgd(0.3, 0.5), 3).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.7),
}


# Steps.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linear_optimizers_train_functions_as_weights(problem, name):
    optimizer, steps = OPTIMIZERS[name], np.arange(26)
    fn = predict.gradient_descent(cross_entropy, problem.dd, problem.labels, trace_axes=(), optimizer=optimizer)
    expected = problem.trained(cross_entropy, problem.labels, optimizer, 25)
    digits = 1e-6 if name == "accumulated" else 1e-9  # optax accumulates in float32
    for found, wanted in zip(fn(None, *problem.start, steps=steps), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=digits, atol=digits)


@pytest.mark.parametrize(
    ("rate", "rule"), [(0.3, {}), (0.1, {"momentum": 0.9}), (0.1, {"momentum": 0.9, "nesterov": True})]
)
def test_closed_forms_are_training_in_weight_space(problem, rate, rule):
    steps = np.array([[0, 1, 2], [10, 199, 200]])
    closed = predict.gradient_descent_mse(problem.dd, problem.y, rate, trace_axes=(), **rule)
    expected = problem.trained(mse, problem.y, optax.sgd(rate, **rule), 200)
    for found, wanted in zip(closed(None, *problem.start, steps=steps), expected, strict=True):
        close(found, wanted[steps])
    if "nesterov" not in rule:
        fn = predict.gradient_descent(mse, problem.dd, problem.y, rate, **rule, trace_axes=())
        for found, wanted in zip(fn(None, *problem.start, steps=steps), expected, strict=True):
            close(found, wanted[steps])


def test_weight_decay_towards_the_beginning(problem):
    optimizer = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, 0.9))
    fn = predict.gradient_descent(mse, problem.dd, problem.y, trace_axes=(), optimizer=optimizer, decay_to_init=True)
    expected = problem.trained(mse, problem.y, optimizer, 25, displaced=True)
    jax.tree.map(close, fn(None, *problem.start, steps=np.arange(26)), expected)
    with pytest.raises(InputError, match=r"values of the parameters, as weight decay.*decay_to_init"):
        predict.gradient_descent(mse, problem.dd, problem.y, trace_axes=(), optimizer=optimizer)


def scaled_by(factor):
    """An optimizer whose updates are those of `factor` times the gradient."""
    return optax.stateless(lambda updates, _: jax.tree.map(factor, updates))


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.adam(0.1), "of gradients is not linear"),
        (optax.rmsprop(0.1), "of gradients is not linear"),
        (optax.sign_sgd(0.1), "`sign` of gradients"),
        (optax.chain(optax.clip(1.0), optax.sgd(0.1)), "of gradients is not linear"),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "of gradients is not linear"),
        (optax.chain(optax.centralize(), optax.sgd(0.1)), "mixes their elements"),
        (optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16), "not linear"),
        (optax.apply_if_finite(optax.sgd(0.1), 3), "not linear"),
        (optax.masked(optax.sgd(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), "parameters of different"),
        (optax.masked(optax.set_to_zero(), {"Dense_0": True}), "does not run on parameters"),
        (optax.lbfgs(), "does not run on parameters"),
        (scaled_by(lambda g: g + 1.0), "`add` of gradients"),
        (scaled_by(lambda g: g * jnp.linspace(0, 1, g.size).reshape(g.shape)), "`mul` of gradients"),
        (scaled_by(lambda g: jnp.where(g > 0, g, 0)), "`gt` of gradients"),
        (scaled_by(lambda g: jnp.flip(g)), "`rev` of gradients"),
        (scaled_by(lambda g: jnp.ones_like(g)), "not zero where all gradients are"),
        (optax.contrib.schedule_free_sgd(0.1), "values of the parameters"),
    ],
)
def test_others_are_refused(optimizer, reason):
    with pytest.raises(InputError, match=rf"(?s){reason}.*infnet\.linearize"):
        predict.gradient_descent(mse, np.eye(2), np.ones(2), optimizer=optimizer)


# Flow.


@pytest.mark.parametrize(
    ("net", "loss", "momentum"),
    [("wide", mse, 0.9), ("wide", soft_cross_entropy, None), ("narrow", soft_cross_entropy, 0.9)],
)
def test_neural_tangents(net, loss, momentum):
    kernel, y, *start = (FROZEN[f"{net}/{name}"] for name in ("dd/ntk", "y", "f_train", "f_test", "td/ntk"))
    fn = predict.gradient_descent(loss, kernel, y, FROZEN["rate"], momentum, (-1,) if net == "wide" else ())
    name = f"{net}/ode/{'mse' if loss is mse else 'cross_entropy'}/{momentum}"
    for which, outputs in zip(("train", "test"), fn(FROZEN["times"], *start), strict=True):
        wanted = FROZEN[f"{name}/{which}"]
        np.testing.assert_allclose(outputs.reshape(wanted.shape), wanted, atol=2e-6)


def test_flow_of_the_cross_entropy_in_weight_space(problem):
    times = np.array([0.5, 3.0, 20.0])
    shuffled = np.array([[2, 0], [0, 1]])
    fn = predict.gradient_descent(cross_entropy, problem.dd, problem.labels, 0.7, trace_axes=())
    expected = problem.flowed(cross_entropy, problem.labels, 0.7, times)
    for found, wanted in zip(fn(times[shuffled], *problem.start), expected, strict=True):
        np.testing.assert_allclose(found, wanted[shuffled], atol=1e-6)


def test_flow_in_weight_space_is_the_closed_form(problem):
    times = np.array([1.0, 30.0])
    expected = problem.flowed(mse, problem.y, 0.4, times)
    closed = predict.gradient_descent_mse(problem.dd, problem.y, 0.4, trace_axes=())(times, *problem.start)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-8), closed, expected)


def test_a_state_continues():
    random = np.random.RandomState(0)
    features = random.standard_normal((5, 8))
    kernel, y = features @ features.T, random.standard_normal((3, 1))
    dd, td = kernel[:3, :3], kernel[3:, :3]
    fn = predict.gradient_descent(mse, dd, y, 0.3, 0.8)
    middle = fn(4.0, predict.ODEState(jnp.zeros((3, 1)), jnp.zeros((2, 1))), k_test_train=td)
    assert middle.qx_train.shape == (3, 1)
    later = fn(3.0, middle, k_test_train=td)
    for found, wanted in zip((later.fx_train, later.fx_test), fn(7.0, 0.0, 0.0, td), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(InputError, match="there is no momentum"):
        predict.gradient_descent(mse, dd, y)(1.0, middle, k_test_train=td)
    with pytest.raises(InputError, match="contains fx_test"):
        fn(1.0, middle, 0.0, td)


def test_stiff_flows_raise():
    kernel, y = np.diag([1e8, 1.0]), np.ones((2, 1))
    with pytest.raises(NumericalError, match=r"Kvaerno5.*max_steps"):
        predict.gradient_descent(mse, kernel, y, max_steps=100)(1e3)
    implicit = predict.gradient_descent(mse, kernel, y, solver=diffrax.Kvaerno5(), max_steps=500)
    np.testing.assert_allclose(implicit(1e3), y, atol=1e-6)
    with jax.debug_nans(False):
        traced = jax.jit(lambda k: predict.gradient_descent(mse, k, y, max_steps=100)(1e3))(kernel)
    assert np.isnan(traced).all()


def test_jit_and_grad():
    y, direction = np.array([1.0, -2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])

    @jax.jit
    @jax.value_and_grad
    def squared(scale):
        fn = predict.gradient_descent(mse, scale * direction, y, 0.3)
        return jnp.sum(fn(2.0) ** 2) + jnp.sum(fn(steps=np.array([3, 9])) ** 2)

    closed = predict.gradient_descent_mse(direction, y, 0.3)
    value, slope = squared(1.0)
    np.testing.assert_allclose(
        value, jnp.sum(closed(2.0) ** 2) + jnp.sum(closed(steps=np.array([3, 9])) ** 2), rtol=1e-7
    )
    np.testing.assert_allclose(slope, (squared(1.001)[0] - squared(0.999)[0]) / 0.002, rtol=1e-4)


def test_progress(capsys):
    fn = predict.gradient_descent(mse, np.eye(2), np.ones(2), progress=True)
    np.testing.assert_allclose(fn(50.0), np.ones(2), atol=1e-6)
    jax.effects_barrier()
    assert "100.00%" in capsys.readouterr().out


# Arguments.


def test_single_precision_and_lists():
    with jax.enable_x64(False):
        fn = predict.gradient_descent(mse, [[2.0]], [3.0])
        outputs = fn(0.5)
        assert outputs.dtype == jnp.float32
        np.testing.assert_allclose(outputs, [3 * (1 - np.exp(-1.0))], rtol=1e-4)
        np.testing.assert_allclose(fn(None, 1.0, 1.0, [[1.0]], steps=1)[1], [3.0])


@pytest.mark.parametrize(
    ("loss", "y", "question", "message"),
    [
        (lambda fx, y: (fx - y) ** 2, np.ones((2, 1)), {"t": 1.0}, r"optax give one number for each example"),
        (cross_entropy, np.array([0, 1]), {"t": 1.0}, r"pass fx_train_0 as an array \(2, \.\.\.\)"),
        (mse, np.ones((2, 1)), {"t": 1.0, "steps": 1}, "not both"),
        (mse, np.ones((2, 1)), {"t": np.inf}, "t contains 1"),
        (mse, np.ones((2, 1)), {}, "need not have a limit"),
        (mse, np.ones((2, 1)), {"t": -1.0}, "t must be times"),
        (mse, np.ones((2, 1)), {"fx_test_0": 0.0}, "need its kernel"),
        (mse, np.ones((2, 1)), {"steps": 0.5}, "integers"),
    ],
)
def test_bad_questions(loss, y, question, message):
    with pytest.raises((InputError, NumericalError), match=message):
        predict.gradient_descent(loss, np.eye(2), y)(**question)


def test_bad_arguments():
    with pytest.raises(InputError, match="own learning rate"):
        predict.gradient_descent(mse, np.eye(2), np.ones(2), 0.1, optimizer=optax.sgd(0.1))
    with pytest.raises(InputError, match="ask for steps="):
        predict.gradient_descent(mse, np.eye(2), np.ones(2), optimizer=optax.sgd(0.1))(1.0)
    with pytest.raises(InputError, match="rtol must be"):
        predict.gradient_descent(mse, np.eye(2), np.ones(2), rtol=0.0)
    with pytest.raises(InputError, match=r"trace_axes=\(\) would fit"):
        predict.gradient_descent(mse, np.ones((2, 2, 3, 3)), np.ones((2, 3)))
    with pytest.raises(InputError, match="traced by JAX"):
        jax.jit(lambda k: predict.gradient_descent(mse, np.eye(2), np.ones(2))(steps=k))(3)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"diffrax: pip install \"infnet\[predict\]\""):
        predict.gradient_descent(mse, np.eye(2), np.ones(2))(1.0)
