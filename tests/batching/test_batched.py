"""Kernels in tiles are those computed at once, for every kind of kernel function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_zoo import Statistics
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import infnet
import infnet.api
import infnet.batching.batched
import infnet_flax
from infnet import stax
from infnet.batching.grid import Grid
from infnet.errors import BatchAxisError, InputError, NumericalError, UnsupportedError

RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(11, 3), RNG.randn(5, 3)
IMAGES = RNG.randn(7, 4, 3, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


PRIORS = [infnet.Prior(0.0, 1.0, shape=shape, dtype=jnp.float64) for shape in ((3, 8), (8, 1))]


@pytest.fixture(scope="module")
def kernel_fn():
    with jax.enable_x64(True):
        return infnet.kernel_fn(dense, PRIORS, X1)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_the_tiles_of_a_grid_cover_every_pair_once(n1, n2, rows, columns, mirrored):
    if mirrored:
        n2, columns = n1, rows
    grid, covered = Grid(n1, n2, rows, columns, mirrored), np.zeros((n1, n2), int)
    for tile in grid:
        covered[tile.rows, tile.columns] += 1
        if mirrored and not tile.own:
            covered[tile.mirrored.rows, tile.mirrored.columns] += 1
    assert (covered == 1).all()
    assert len(list(grid)) == len(grid)


@pytest.mark.parametrize("x2", [None, X2], ids=["own", "both"])
@pytest.mark.parametrize("store_on_device", [True, False])
def test_a_kernel_with_all_that_it_holds(kernel_fn, x2, store_on_device):
    found = infnet.batch(kernel_fn, 4, store_on_device=store_on_device)(X1, x2)
    assert_same(found, kernel_fn(X1, x2))
    assert isinstance(found.ntk, jax.Array if store_on_device else np.ndarray)


class Positions(nn.Module):
    """Images and a mask of pixels that are there; every position of the output is kept."""

    @nn.compact
    def __call__(self, x, there):
        x = nn.gelu(nn.Conv(4, (3, 2), param_dtype=float)(jnp.where(there, x, 0)))
        return nn.Conv(1, (2, 2), param_dtype=float, kernel_init=nn.initializers.normal(0.3))(x)


def test_positions_masks_and_series():
    inputs = IMAGES, IMAGES[..., :1] > 0
    kernel_fn = infnet_flax.kernel_fn(Positions(), tuple(x[:2] for x in inputs))
    names = ("nngp", "ntk")
    assert_same(infnet.batch(kernel_fn, 3)(inputs, None, names), kernel_fn(inputs, None, names))


def test_two_outputs_and_what_they_have_in_common():
    def two(params, x):
        h = jax.nn.relu(x @ params[0])
        return {
            name: (h[:, None] * some[..., None]) @ params[1] for name, some in {"a": x[:, :2], "b": x[:, 1:]}.items()
        }

    kernel_fn = infnet.kernel_fn(two, PRIORS, X1, cross=True)
    assert_same(kernel_fn(X1, None, "ntk", batch_size=4), kernel_fn(X1, None, "ntk"))


def test_highest_precision_keeps_its_digits():
    with jax.enable_x64(False):
        priors = [infnet.Prior(0.0, 1.0, shape=shape, dtype=jnp.float32) for shape in ((3, 8), (8, 8), (8, 1))]

        def deep(params, x):
            return dense(params[1:], jax.nn.relu(x @ params[0]))

        near = X1.astype("f") * 1e-4 + 1
        kernel_fn = infnet.kernel_fn(deep, priors, near, precision="highest")
        found, wanted = infnet.batch(kernel_fn, 4)(near, None, "ntk"), kernel_fn(near, None, "ntk")
    np.testing.assert_allclose(found, wanted, rtol=3e-7)


def network(params, x):
    h = jnp.tanh(x @ params["w"])
    return (h[:, None] * x[:, :2, None]) @ params["v"]


PARAMS = {"w": RNG.randn(3, 4), "v": RNG.randn(4, 2)}


@pytest.mark.parametrize("axes", [{}, {"diagonal_axes": -1}, {"trace_axes": (1, 2)}], ids=str)
@pytest.mark.parametrize("x2", [None, X2], ids=["own", "both"])
def test_empirical_kernels(axes, x2):
    kernel_fn = infnet.empirical_kernel_fn(network, **axes)
    found = infnet.batch(kernel_fn, 4, store_on_device=False)(X1, x2, ("ntk", "nngp"), PARAMS)
    assert_same(found, kernel_fn(X1, x2, ("ntk", "nngp"), PARAMS))


def test_an_empirical_kernel_of_complex_outputs():
    ntk_fn = infnet.empirical_ntk_fn(lambda params, x: network(params, x) * (1 + 2j * x[:, :2, None]))
    assert_same(infnet.batch(ntk_fn, 4)(X1, None, PARAMS), ntk_fn(X1, None, PARAMS))


def initial(key, x):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (3, 4)), "v": jax.random.normal(b, (4, 2))}


def test_monte_carlo_kernels_and_their_errors():
    kernel_fn = infnet.monte_carlo_kernel_fn(initial, network, jax.random.key(0), 6)
    for x2, get in ((None, ("nngp", "ntk")), (X2, "ntk")):
        assert_same(infnet.batch(kernel_fn, 4)(X1, x2, get), kernel_fn(X1, x2, get))
    running = infnet.monte_carlo_kernel_fn(initial, network, jax.random.key(0), [2, 6])
    with pytest.raises(InputError, match="n_samples as an integer"):
        infnet.batch(running)(X1)


def test_networks_of_stax_and_of_flax():
    _, _, kernel_fn = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
    assert_same(infnet.batch(kernel_fn, 4)(X1), kernel_fn(X1))
    model = infnet_flax.annotate(nn.Dense(2, param_dtype=float))
    assert_same(model.kernel(X1, X2, batch_size=(4, 2)), model.kernel(X1, X2))


def test_examples_that_depend_on_each_other_are_refused():
    module = Statistics(running=False)
    variables = module.init(jax.random.key(0), X1)

    def apply(params, x):
        return module.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    with pytest.raises(BatchAxisError, match="tile"):
        infnet.batch(infnet.empirical_kernel_fn(apply), 4)(X1, None, "ntk", variables["params"])
    estimated = infnet.monte_carlo_kernel_fn(lambda key, x: module.init(key, x)["params"], apply, jax.random.key(0), 2)
    with pytest.raises(BatchAxisError, match="tile"):
        infnet.batch(estimated, 4)(X1)


class Counted:
    """A function of pairs of examples that counts its calls on values."""

    def __init__(self):
        self.pairs, self.examples = 0, 0

    def gaussian(self, x1, x2, scale):
        x2 = x1 if x2 is None else x2
        jax.debug.callback(self._count, x1, x2)
        return jnp.exp(-scale * ((x1[:, None] - x2) ** 2).sum(-1))

    def _count(self, x1, x2):
        self.pairs += len(x1) * len(x2)


def test_an_unordered_pair_of_tiles_is_computed_once():
    counted = Counted()
    found = infnet.batch(counted.gaussian, 4)(X1, None, 0.5)
    jax.effects_barrier()
    assert counted.pairs == 6 * 4**2  # of 3 x 3 tiles
    np.testing.assert_allclose(found, np.exp(-0.5 * ((X1[:, None] - X1) ** 2).sum(-1)))


def test_what_is_known_of_an_example_is_computed_once():
    seen = []

    def prepared(params, x):
        jax.debug.callback(lambda value: seen.append(value.size), x)
        return dense(params, x)

    kernel_fn = infnet.kernel_fn(prepared, PRIORS, X1)
    infnet.batch(kernel_fn, 4)(X1, X2, "nngp")
    jax.effects_barrier()
    assert sum(seen) <= X1.size + X2.size


def test_memory_that_is_short_makes_tiles_smaller_and_the_result_one_of_the_host(kernel_fn, monkeypatch):
    monkeypatch.setattr(infnet.batching.batched, "available_bytes", lambda device: 12_000)
    batched = infnet.batch(kernel_fn)
    x = RNG.randn(40, 3)
    assert batched.estimate(x, None, "ntk").tile[0] < 40
    found = batched(x, None, "ntk")
    assert isinstance(found, np.ndarray)
    assert_same(found, kernel_fn(x, None, "ntk"))


def test_a_call_beyond_the_memory_is_computed_in_tiles(kernel_fn, monkeypatch):
    wanted = kernel_fn(X1)
    monkeypatch.setattr(infnet.api, "SMALL", 0)
    monkeypatch.setattr(infnet.api, "available_bytes", lambda device: 1000)
    assert_same(kernel_fn(X1), wanted)
    assert_same(jax.jit(kernel_fn)(X1), wanted)
    assert_same(jax.jit(lambda x: kernel_fn(x, batch_size=4))(X1), wanted)
    assert not isinstance(kernel_fn(X1[:1], None, "ntk"), np.ndarray)  # this one fits


def test_it_is_the_kernel_function_itself_while_it_is_traced(kernel_fn):
    batched = infnet.batch(kernel_fn, 4)
    assert_same(jax.jit(lambda x: batched(x, None, "ntk"))(X1), kernel_fn(X1, None, "ntk"))
    derivative = jax.grad(lambda x: batched(x, None, "ntk").sum())(X2)
    assert_same(derivative, jax.grad(lambda x: kernel_fn(x, None, "ntk").sum())(X2))
    assert_same(batched.diag(X1), kernel_fn.diag(X1))

    def trace_of(function, scale):
        h = jax.tree.map(lambda std: scale * jnp.asarray(std), kernel_fn.hyperparameters)
        return jnp.trace(function(kernel_fn.with_hyperparameters(h))(X2, None, "ntk"))

    slopes = [jax.grad(trace_of, 1)(f, 1.0) for f in (lambda k: infnet.batch(k, 2), lambda k: k)]
    assert_same(slopes[0], slopes[1])
    assert batched.law == kernel_fn.law


def test_an_example_that_is_not_finite_spoils_its_own_row_and_column(kernel_fn):
    x = X1.copy()
    x[6, 1] = np.nan
    found = np.asarray(infnet.batch(kernel_fn, 4)(x, None, "nngp"))
    bad = np.arange(11) == 6
    assert (np.isnan(found) == (bad[:, None] | bad)).all()


def test_overflow_is_found_in_its_tile_and_names_the_layer():
    def square(params, x):
        return jnp.square(x @ params[0]) @ params[1]

    kernel_fn, x = infnet.kernel_fn(square, PRIORS, X1), X1.copy()
    x[9], x[10] = 1e100, np.nan
    with pytest.raises(NumericalError, match="not finite from this layer on"):
        infnet.batch(kernel_fn, 4)(x, None, "ntk")


def test_a_series_that_needs_more_terms_for_later_examples_gets_them_or_refuses():
    def smooth(params, x):
        return jax.nn.softplus(x @ params[0]) @ params[1]

    kernel_fn, x = infnet.kernel_fn(smooth, PRIORS, 0.1 * X1), np.concatenate([0.1 * X1, X2])
    assert_same(infnet.batch(kernel_fn, 4)(x, None, "ntk"), infnet.kernel_fn(smooth, PRIORS, x)(x, None, "ntk"))
    with pytest.raises(UnsupportedError, match="converges too slowly"):
        infnet.batch(kernel_fn, 4)(1e4 * x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": (1, 2, 3)}, "batch_size must be"),
        ({"batch_size": "all"}, "batch_size must be"),
        ({"device_count": 99}, "has 1 device"),
        ({"device_count": -2}, "device_count must be"),
        ({"store_on_device": "yes"}, "store_on_device must be"),
        ({"mesh": 3}, "mesh must be"),
    ],
)
def test_options_are_checked(kernel_fn, options, message):
    with pytest.raises(InputError, match=message):
        infnet.batch(kernel_fn, **options)


def test_arguments_are_checked(kernel_fn):
    with pytest.raises(InputError, match="must be a function"):
        infnet.batch(3)
    with pytest.raises(InputError, match="as many examples"):
        infnet.batch(lambda x1, x2: x1["a"] @ x2["b"].T)({"a": X1, "b": X2}, None)
    with pytest.raises(InputError, match=r"has the shape \(n1\,\)"):
        infnet.batch(lambda x1, x2: x1.sum(1))(X1, X2)
    with pytest.raises(InputError, match=r"shape \(11, 2\)"):
        infnet.batch(kernel_fn)(X1[:, :2])
    with pytest.raises(InputError, match="leave out"):
        kernel_fn(kernel_fn(X1), batch_size=3)
