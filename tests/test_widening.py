"""Which fields of linen modules are widths, and `verify` of models of all frameworks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import CASES
from finite import biases, examples, normal
from flax import linen as nn
from flax import nnx
from quick import quick_keys
from zoo import CASES as ZOO

import infnet_flax
from infnet.errors import InputError

(KEY,) = quick_keys(jax.random.key(5), 1)
X = examples(4)[0]
DENSE = {"kernel_init": normal, "bias_init": biases}


@pytest.mark.parametrize("name", CASES)
def test_architectures(name):
    """Their field `width` is found, and neither the number of outputs nor that of heads."""
    case = CASES[name]
    narrow, wide = (case.module(width) for width in (8, 24))
    assert infnet_flax.widen(narrow, 3, case.examples()[0]) == wide


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_zoo(case):
    x = jax.ShapeDtypeStruct((2, *case.shape), jnp.float32)
    narrow, wide = (case.make(m, dtype=jnp.float32) for m in (1, 2))
    found = infnet_flax.widen(narrow, 2, x)
    if case.name != "sequential":  # of new modules, which are not equal
        assert found == wide
    shapes = [jax.eval_shape(m.init, jax.random.key(0), x) for m in (found, wide)]
    assert shapes[0] == shapes[1]


class Residual(nn.Module):
    """Widths that can only change together; windows, depth and labels of the same size."""

    stem: int = 6
    blocks: tuple[int, ...] = (6, 6)
    window: int = 3
    repeats: int = 2
    labels: int = 6
    head: nn.Module | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.stem, (self.window,))(x)
        for features in self.blocks:
            for _ in range(self.repeats):
                x = x + nn.Conv(features, (self.window,))(nn.relu(x))
        return nn.Dense(self.labels)(self.head(x.mean(1)))


def test_fields_that_change_together():
    model = Residual(head=nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(20)]))
    wider = infnet_flax.widen(model, 2, np.ones((2, 5, 3)))
    assert (wider.stem, wider.blocks, wider.window, wider.repeats, wider.labels) == (12, (12, 12), 3, 2, 6)
    assert [getattr(layer, "features", None) for layer in wider.head.layers] == [20, None, 40]
    assert (model.stem, model.head.layers[0].features) == (6, 10)


class PartlyFixed(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, **DENSE)(x))
        return nn.Dense(4, **DENSE)(nn.relu(nn.Dense(16, **DENSE)(x)))


def test_widths_that_are_no_fields():
    fixed = nn.Sequential([nn.Dense(3)])
    with pytest.raises(InputError, match="no field of Sequential is found to be a hidden width"):
        infnet_flax.widen(fixed, 2, X)
    report = infnet_flax.annotate(PartlyFixed()).verify(X, KEY, n_samples=200)
    assert report.multipliers == (1,)
    assert any(
        "not at growing widths: all hidden widths must be multiplied by 2, but what" in line for line in report.remarks
    )
    assert not report.passed
    assert not report.deviates


def test_a_factory_and_options_of_the_kernel():
    def sequential(width):
        return nn.Sequential([nn.Dense(width, **DENSE), nn.relu, nn.Dense(8, **DENSE)])

    report = infnet_flax.verify(
        sequential(16),
        X,
        KEY,
        widen=lambda m: sequential(16 * m),
        multipliers=(1, 2),
        n_samples=200,
        trainable={"layers_0/*": False},
    )
    assert report.multipliers == (1, 2)
    assert {name for name in report.z_scores if "share" in name} == {
        f"ntk share of layers_2/{name}" for name in ("kernel", "bias")
    }
    assert not report.deviates


class OfNNX(nnx.Module):
    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(4, width, **DENSE, rngs=rngs)
        self.readout = nnx.Linear(width, 8, **DENSE, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.hidden(x)))


def test_models_of_nnx():
    def make(width):
        return lambda rngs: OfNNX(width, rngs)

    report = infnet_flax.verify(make(16), X, KEY, widen=lambda m: make(16 * m), multipliers=(1, 2), n_samples=200)
    assert report.multipliers == (1, 2)
    assert not report.deviates
    with pytest.raises(InputError, match="pass a function that makes it"):
        infnet_flax.verify(OfNNX(4, nnx.Rngs(0)), X, KEY)
