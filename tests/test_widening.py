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

import infnet
import infnet_flax
from infnet.errors import InputError
from infnet.verification.function import check_wider

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


class Attention(nn.Module):
    """A block of softmax attention; its scores are divided by the root of the size of heads."""

    width: int = 16
    heads: int = 4
    by_hand: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, **DENSE)(x)
        return nn.Dense(8, **DENSE)((x + self.attention(x)).mean(1))

    def attention(self, x):
        if not self.by_hand:
            return nn.MultiHeadDotProductAttention(self.heads)(x)
        q, k, v = (
            nn.Dense(self.width, use_bias=False)(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
            for _ in range(3)
        )
        scores = jnp.einsum("nhqd,nhkd->nhqk", q, k) / q.shape[-1] ** 0.5
        y = jnp.einsum("nhqk,nhkd->nqhd", nn.softmax(scores), v)
        return nn.Dense(self.width)(y.reshape(x.shape))


class Stages(nn.Module):
    """Numbers of heads beside others that are none: windows, strides of pooling, depths."""

    width: int = 24
    heads: tuple[int, ...] = (2, 3)
    window: int = 3
    pool: int = 2
    depth: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.window,))(x)
        x = nn.avg_pool(x, (self.pool,), (1,), "SAME")
        for heads in self.heads:
            for _ in range(self.depth):
                x = nn.MultiHeadDotProductAttention(heads)(x)
        return nn.Dense(3)(x.mean(1))


TOKENS = examples(3, 4)[0]


@pytest.mark.parametrize("by_hand", [False, True])
def test_numbers_of_heads(by_hand):
    model = Attention(by_hand=by_hand)
    assert infnet_flax.widen(model, 3, TOKENS) == model.clone(width=48)
    assert infnet_flax.widen(model, 3, TOKENS, heads=True) == model.clone(width=16 * 9, heads=12)


def test_numbers_that_are_not_of_heads():
    model = Stages()
    for multiplier in (2, 5):  # 24 channels do not make 10 heads
        assert infnet_flax.widen(model, multiplier, TOKENS) == model.clone(width=24 * multiplier)
        wider = model.clone(width=24 * multiplier**2, heads=(2 * multiplier, 3 * multiplier))
        assert infnet_flax.widen(model, multiplier, TOKENS, heads=True) == wider
    with pytest.raises(InputError, match="no field of PartlyFixed is found to be a number of heads"):
        infnet_flax.widen(PartlyFixed(), 2, X, heads=True)


def test_heads_that_are_not_more():
    """What is wrong with them, and what to do."""
    narrow, wide = (
        infnet_flax.kernel_fn(Attention(width), TOKENS, on_unsupported=infnet.Sampling(points=32, replicates=4))
        for width in (16, 32)
    )
    with pytest.raises(InputError, match=r"qhd takes .* from 4 to 4: the numbers of heads .*, num_heads=8 \* m\)"):
        check_wider(narrow, wide, 2)


def test_attention_at_growing_widths():
    """Numbers and sizes of heads are found and multiplied by 2, all other widths by 4, without being told how.

    Queries and keys are not trained here: their shares vary so much from network to network that many more would be
    needed for a verdict.
    """
    report = infnet_flax.verify(
        Attention(32, 8),
        TOKENS,
        KEY,
        multipliers=(1, 2),
        n_samples=2500,
        on_unsupported=infnet.Sampling(points=256),
        trainable={f"MultiHeadDotProductAttention_0/{name}/*": False for name in ("query", "key")},
    )
    assert report.multipliers == (1, 2)
    assert report.passed, str(report)


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
