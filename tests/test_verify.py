"""`verify` finds wrong rules, and only these: right kernels pass, and sabotaged ones fail."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import CASES
from finite import Model, conv, dense, examples
from flax import linen as nn
from quick import quick_keys

import infnet
import infnet_flax
from infnet.nodes import Contraction, Elementwise, ParamNode
from infnet.plan import Moments
from infnet.rules import linear, moments
from infnet.verification import function
from infnet.verification.networks import Networks

(KEY,) = quick_keys(jax.random.key(3), 1)


# Models, and what is wrong with their kernels.


def mlp(module, width, x):
    """Two branches, whose sum is not of mean zero, and a layer after it."""
    x = nn.relu(dense(width)(x)) + nn.relu(dense(width)(x))
    return nn.relu(dense(width)(x))


def cnn(module, width, x):
    x = nn.relu(conv(width)(x))
    return x.reshape(len(x), -1)


MODELS = {"mlp": (mlp, 24, (4,)), "cnn": (cnn, 12, (3, 3, 2))}


def verified(name):
    body, width, shape = MODELS[name]
    model = Model(body, width, 8)
    return infnet_flax.verify(model, examples(*shape)[0], KEY, multipliers=(1, 4), resolution=0.08, n_samples=4000)


def changed(patch, kind, change):
    """Change what the rule of one kind of node computes: `change(request, node, context, s, t) -> s, t`."""
    rule = moments.OF_A_KIND[kind]

    def sabotaged(request, u, v):
        step = rule(request, u, v)

        def evaluate(context, results):
            return Moments(*change(request, u, context, *step.evaluate(context, results)))

        return replace(step, evaluate=evaluate)

    patch.setitem(moments.OF_A_KIND, kind, sabotaged)


def more_variance(patch):
    """Every weight has 3 % more variance; in a network of three layers, kernels are about 9 % off."""
    changed(patch, Contraction, lambda request, u, context, s, t: (1.03 * s, None if t is None else 1.03 * t))


def no_variance_of_biases(patch):
    changed(patch, ParamNode, lambda request, u, context, s, t: (0 * s, t))


def smaller_slope(patch):
    """E relu' relu' is 10 % too small."""
    changed(patch, Elementwise, lambda request, u, context, s, t: (s, None if t is None else 0.9 * t))


def untrained_readout(patch):
    """The share of the readout's weights in the NTK is forgotten; it is made before the layers of the body."""
    rule = moments.OF_A_KIND[Contraction]

    def sabotaged(request, u, v):
        step = rule(request, u, v)

        def evaluate(context, results):
            if u.where.module.endswith("Dense_0"):
                weights = replace(context.weights, learning_rate=[0.0 * r for r in context.weights.learning_rate])
                context = replace(context, weights=weights)
            return step.evaluate(context, results)

        return replace(step, evaluate=evaluate)

    patch.setitem(moments.OF_A_KIND, Contraction, sabotaged)


def untrained_biases(patch):
    """They are O(1 / width) of the NTK of the model as written, so this is not seen there."""
    changed(patch, ParamNode, lambda request, u, context, s, t: (s, None if t is None else 0 * t))


def no_cross_terms(patch):
    """The terms of a sum are taken for uncorrelated."""
    request_of = linear._term_request

    def without(request, k, m):
        return request_of(request, k, m) if k.node is m.node else None

    patch.setattr(linear, "_term_request", without)


def shifted(patch):
    """Of two examples, one is taken at a pixel to the right."""

    def change(request, u, context, s, t):
        if request.side[0] == request.side[1] or s.shape[-1:] in ((), (1,)):
            return s, t
        return jnp.roll(s, 1, -1), None if t is None else jnp.roll(t, 1, -1)

    changed(patch, Contraction, change)


SABOTAGES = {
    more_variance: "mlp",
    no_variance_of_biases: "mlp",
    smaller_slope: "mlp",
    untrained_readout: "mlp",
    untrained_biases: "mlp",
    no_cross_terms: "mlp",
    shifted: "cnn",
}


@pytest.fixture(scope="module")
def drawn():
    """The networks of each model and width: what is sampled does not depend on the rules."""
    return {}


@pytest.fixture(autouse=True)
def networks_are_drawn_once(drawn, monkeypatch):
    def networks(functions, x, key, normal_leaves):
        params = jax.eval_shape(functions.init, key, *infnet.example_args(x))
        name = str((jax.tree.map(jnp.shape, (x, params)), sorted(normal_leaves)))
        return drawn.setdefault(name, Networks(functions, x, key, normal_leaves))

    monkeypatch.setattr(function, "Networks", networks)


@pytest.mark.parametrize("name", MODELS)
def test_right_kernels_pass(name):
    report = verified(name)
    assert report.passed, str(report)
    assert report.multipliers == (1, 4)
    assert report.resolution < 0.1
    assert all(np.abs(z).max() < 4 for z in report.z_scores.values())


def test_an_architecture_passes():
    """One of all those in `benchmarks/verify_zoo.py`."""
    case = CASES["FourierFeatures"]
    report = infnet_flax.verify(
        case.module(24), case.examples()[0], KEY, multipliers=(1, 4), resolution=0.09, n_samples=4000
    )
    assert report.passed, str(report)


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_wrong_kernels_fail(sabotage, monkeypatch):
    sabotage(monkeypatch)
    report = verified(SABOTAGES[sabotage])
    assert not report.passed
    assert str(report).splitlines()[-1].startswith("failed: the sampled "), str(report)
    assert max(np.abs(z).max() for z in report.z_scores.values()) > report.threshold
