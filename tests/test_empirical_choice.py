"""Which implementation of the empirical NTK is chosen, and what it is said to cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import infnet
from infnet.empirical.choice import choose


def dense(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def bounded(p, x):
    """What is done to the weight leaves its gradient without structure."""
    return jnp.tanh(x @ jnp.tanh(p["w"])) @ p["v"]


DENSE = dense, {"a": np.ones((300, 200), np.float32), "b": np.ones((200, 5), np.float32)}, np.ones((20, 300), "f")
# One example with many outputs: the contraction of Jacobians is what takes time.
WIDE = bounded, {"w": np.ones((200, 200), "f"), "v": np.ones((200, 300), "f")}, np.ones((1, 200), np.float32)


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (DENSE, {}, "structured_derivatives"),
        (DENSE, {"diagonal_axes": (0, 1)}, "structured_derivatives"),
        (WIDE, {}, "ntk_vector_products"),
        (WIDE, {"memory_limit": 1e7}, "ntk_vector_products"),
    ],
)
def test_choice(network, options, expected):
    f, params, x = network
    ntk_fn = infnet.empirical_ntk_fn(f, **options)
    choice = ntk_fn.explain(x, None, params)
    assert choice.implementation == expected, str(choice)
    chosen = choice.costs[expected]
    fitting = [c for c in choice.costs.values() if (c.memory or 0) <= choice.memory_limit]
    assert chosen.work < 1.2 * min(c.work for c in fitting)
    assert f"{expected:24}" in str(choice)
    assert str(choice).count("<- used") == 1


def at_once(x):
    return jnp.sort(x @ x.T).sum()


def in_rows(x):
    """Twice as much work, and hardly any memory."""
    return lax.map(lambda row: jnp.sort(x @ jnp.stack([row, row], 1), axis=0).sum() / 2, x).sum()


@pytest.mark.parametrize(("limit", "expected"), [(1e9, "at once"), (1e6, "in rows"), (1e3, "in rows")])
def test_the_limit_of_memory(limit, expected):
    programs = {"in rows": jax.jit(in_rows), "at once": jax.jit(at_once)}
    choice = choose(programs, [np.ones((600, 200), np.float32)], limit)
    assert choice.implementation == expected, str(choice)
    assert choice.costs["at once"].memory > 600**2 * 4


def test_nothing_fits():
    """What takes the least memory is used, and is right."""
    f, params, x = DENSE
    ntk_fn = infnet.empirical_ntk_fn(f, memory_limit=1e4)
    costs = ntk_fn.explain(x, None, params).costs
    assert all(cost.memory > 1e4 for cost in costs.values())
    chosen = ntk_fn.explain(x, None, params).implementation
    assert costs[chosen].memory == min(cost.memory for cost in costs.values())
    expected = infnet.empirical_ntk_fn(f, implementation="jacobian_contraction")(x, None, params)
    np.testing.assert_allclose(ntk_fn(x, None, params), expected, rtol=1e-5)


def test_loops_are_counted_whole():
    """XLA counts the body of a loop once."""

    def looped(turns):
        def f(p, x):
            return lax.scan(lambda h, _: (jnp.tanh(h @ p), None), x, None, length=turns)[0]

        ntk_fn = infnet.empirical_ntk_fn(f, -1, implementation="jacobian_contraction")
        explained = ntk_fn.explain(np.ones((30, 100), "f"), None, np.ones((100, 100), np.float32))
        return explained.costs["jacobian_contraction"].flops

    few, many = looped(10), looped(20)
    per_turn = (many - few) / 10
    backward = 2 * 30 * 100 * 100 * 100  # 100 cotangents for each of 30 examples, through a matrix
    assert per_turn > 2 * backward  # ... and the gradient in the matrix itself


def test_choice_under_transformations():
    f, params, x = WIDE
    ntk_fn = infnet.empirical_ntk_fn(f, diagonal_axes=1)
    expected = ntk_fn(x, None, params)
    np.testing.assert_allclose(jax.jit(ntk_fn)(x, None, params), expected, rtol=1e-5)
    twice = jax.vmap(lambda scale: ntk_fn(scale * x, None, params))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(twice[0], expected, rtol=1e-5)


def test_the_kernel_of_outputs_has_one_cost():
    f, params, x = DENSE
    explained = infnet.empirical_nngp_fn(f).explain(x, None, params)
    (cost,) = explained.costs.values()
    assert cost.flops > 2 * 20 * (300 * 200 + 200 * 5)


# The pseudo-NTK


def test_pseudo_ntk():
    """The sum of all entries of the NTK between two examples, divided by the number of logits."""
    f, params, x = DENSE
    expected = infnet.empirical_ntk_fn(f)(x, x[:3], params).sum((2, 3)) / 5
    found = infnet.empirical_pseudo_ntk_fn(f)(x, x[:3], params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pseudo_ntk_of_positions():
    def f(p, x):
        return {"logits": jnp.sin(x @ p)}

    rng = np.random.RandomState(0)
    p, x = rng.standard_normal((3, 2)), rng.standard_normal((4, 5, 3))
    found = infnet.empirical_pseudo_ntk_fn(f, diagonal_axes=1)(x, None, p)["logits"]
    expected = infnet.empirical_ntk_fn(f, diagonal_axes=1)(x, None, p)["logits"].sum((3, 4)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pseudo_ntk_without_logits():
    with pytest.raises(infnet.errors.InputError, match=r"shape \(4,\) has no axis of logits"):
        infnet.empirical_pseudo_ntk_fn(lambda p, x: x @ p)(np.ones((4, 3)), None, np.ones(3))
