"""Linear maps of positions and of channels, against matrices built without infnet.

For a map L of positions, K -> L K Lᵀ for both kernels. L is the Jacobian of the operation itself, and K the kernel,
with all pairs of positions, of the model before the operation (which other tests compare with independent references).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import flat
from flax import linen as nn
from recurrence import relu_moments
from zoo import settings

import infnet_flax
from infnet.errors import UnsupportedError

H, W, C = 6, 4, 8
RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(2, H, W, 3), RNG.randn(3, H, W, 3)
RAMP = np.arange(1.0, H * W + 1).reshape(H, W)
RNG_MATRIX = np.random.RandomState(1).randn(W, H)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Base(nn.Module):
    """relu(Conv), then an operation on the array (n, h, w, c), then perhaps a head."""

    operation: object = None
    head: object = None
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Conv(C, (3, 3), **settings(jnp.float64))(x))
        x = self.operation(x) if self.operation else x
        return self.head(x) if self.head else x


def pool(x):
    return nn.avg_pool(x, (3, 2), strides=(2, 1), padding=((1, 0), (0, 1)))


def blur(x):
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    kernel = np.broadcast_to(RNG_MATRIX[:3, :2, None, None], (3, 2, 1, channels))
    return jax.lax.conv_general_dilated(x, kernel, (2, 1), "SAME", None, (1, 2), numbers, channels)


OPERATIONS = {
    "slice": lambda x: x[:, 1:5, :3],
    "strided slice": lambda x: x[:, 1::2],
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))),
    "crop by negative pad": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (0, -2, 0), (0, 0, 0))),
    "flip": lambda x: jnp.flip(x, (1, 2)),
    "x + flip": lambda x: x + jnp.flip(x, 1),
    "transpose": lambda x: jnp.swapaxes(x, 1, 2),
    "merge positions": lambda x: x.reshape(x.shape[0], H * W, -1),
    "merge and slice": lambda x: x.reshape(x.shape[0], H * W, -1)[:, 3:17],
    "merge and flip": lambda x: jnp.flip(x.reshape(x.shape[0], H * W, -1), 1),
    "split an axis": lambda x: x.reshape(x.shape[0], 2, 3, W, -1),
    "split otherwise": lambda x: x.reshape(x.shape[0], 8, 3, -1),
    "patches": lambda x: jnp.swapaxes(x.reshape(x.shape[0], 3, 2, 2, 2, -1), 2, 3),
    "avg_pool": pool,
    "sum over height": lambda x: x.sum(1),
    "mean over width, kept": lambda x: x.mean(2, keepdims=True),
    "global mean": lambda x: x.mean((1, 2)),
    "centring": lambda x: x - x.mean((1, 2), keepdims=True),
    "concatenate positions": lambda x: jnp.concatenate([x, jnp.flip(x, 1), x[:, :1, :]], 1),
    "scale positions": lambda x: x * jnp.asarray(RAMP)[None, :, :, None],
    "divide by an array": lambda x: x / jnp.asarray(RAMP)[None, :, :, None],
    "scale rows and negate": lambda x: -(x * jnp.asarray(RAMP[:, :1])[..., None]) / 3.0,
    "repeat": lambda x: jnp.broadcast_to(x[:, :, None], (x.shape[0], H, 2, W, x.shape[-1])),
    "difference of neighbours": lambda x: x[:, 1:] - x[:, :-1],
    "stack": lambda x: jnp.stack([x, 2 * x], 1),
    "cumulative sum": lambda x: jnp.cumsum(x, 1),
    "less a cumulative sum": lambda x: x - jnp.cumsum(x, 1),
    "cumulative sum backwards": lambda x: jax.lax.cumsum(x, 2, reverse=True),
    "constant matrix": lambda x: jnp.einsum("ih,bhwc->biwc", RNG_MATRIX, x),
    "constant matrix last": lambda x: jnp.einsum("bhwc,wi->bhci", x, RNG_MATRIX[:, :W]).transpose(0, 1, 3, 2),
    "weighted mean": lambda x: jnp.einsum("bhwc,h->bwc", x, RAMP[:, 0] / RAMP[:, 0].sum()),
    "matrix over two axes": lambda x: jnp.einsum("hwij,bhwc->bijc", np.random.RandomState(2).randn(H, W, 2, 3), x),
    "a matrix for each row": lambda x: jnp.einsum("hwi,bhwc->bhic", np.random.RandomState(2).randn(H, W, 3), x),
    "constants along a new axis": lambda x: (x[:, :1] + np.zeros((H, 1, 1))) * 2.0,
    "Fourier": lambda x: jnp.einsum("ih,bhwc->biwc", np.cos(np.pi / H * np.outer(range(H), np.arange(H) + 0.5)), x),
    "resize": lambda x: jax.image.resize(x, (x.shape[0], 9, 3, x.shape[3]), "bilinear"),
    "take": lambda x: jnp.take(x, np.array([3, 0, 0, 5]), axis=1),
    "index": lambda x: x[:, :, np.array([-1, 1])],
    "index once": lambda x: x[:, 2],
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 1)),
    "roll": lambda x: jnp.roll(x, (1, -1), (1, 2)),
    "pad between": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (1, 0, 1), (-2, 1, 2), (0, 0, 0))),
    "blur": lambda x: blur(x),
    "pad, pool, slice": lambda x: pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))[:, ::2],
}


@functools.cache
def as_matrix(name):
    """The operation on positions as a matrix (its Jacobian, of one channel), and the sizes above 1 of its result."""

    def on_positions(z):
        return OPERATIONS[name](z[None, ..., None])[0, ..., 0]

    jacobian = jax.jit(jax.jacobian(on_positions))(jnp.zeros((H, W)))
    out = jacobian.shape[:-2]
    return np.asarray(jacobian).reshape(int(np.prod(out)), -1), tuple(n for n in out if n > 1)


def full_kernel(model):
    return infnet_flax.kernel_fn(model, X1)(X1, X2, ("nngp", "ntk"))


@pytest.fixture(scope="module")
def base():
    with jax.enable_x64(True):
        kernel = full_kernel(Base())
        return {name: flat(getattr(kernel, name), H * W) for name in ("nngp", "ntk")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_maps_of_positions(name, base):
    matrix, sizes = as_matrix(name)
    kernel = full_kernel(Base(OPERATIONS[name]))
    for moment, before in base.items():
        value = getattr(kernel, moment)
        assert value.shape == (2, 3, *(n for n in sizes for _ in range(2)))
        np.testing.assert_allclose(flat(value, len(matrix)), matrix @ before @ matrix.T, rtol=1e-10, atol=1e-12)


REFUSED = {
    "channels are mixed by constants": lambda x: x @ np.ones((C, 3)),
    "taken one by one": lambda x: x[..., np.array([0, 2])],
    "mixed by constants, or taken": lambda x: jnp.cumsum(x, 3),
    "indices out of bounds": lambda x: jnp.take(x, np.array([0, H]), axis=1),
    "indexing of several axes": lambda x: x[:, np.array([0, 1]), np.array([1, 2])],
    "without any position": lambda x: jnp.einsum("ih,bhwc->biwc", np.ones((0, H)), x),
    "complex array": lambda x: jnp.einsum("ih,bhwc->biwc", np.exp(1j * RNG_MATRIX), x),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_a_map_of_one_axis_of_positions_is_refused(what):
    with pytest.raises(UnsupportedError, match=what) as caught:
        infnet_flax.kernel_fn(Base(REFUSED[what]), X1)
    assert "test_structures.py" in caught.value.where.line


@pytest.mark.parametrize("name", OPERATIONS)
def test_maps_of_positions_before_flatten_and_dense(name, base):
    """The plan then asks for equal positions alone, and each map for what it needs of its operand."""
    weights = {"kernel_init": nn.initializers.variance_scaling(1.0, "fan_in", "normal"), "use_bias": False}
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    matrix, sizes = as_matrix(name)
    kernel = full_kernel(Base(OPERATIONS[name], lambda x: nn.Dense(2, **weights, **dtypes)(x.reshape(x.shape[0], -1))))
    after = {moment: np.einsum("pi,abij,pj->ab", matrix, before, matrix) for moment, before in base.items()}
    count = int(np.prod(sizes))
    np.testing.assert_allclose(kernel.nngp, after["nngp"] / count, rtol=1e-10)
    np.testing.assert_allclose(kernel.ntk, after["ntk"] / count + C * after["nngp"], rtol=1e-10)


def identity(x):
    return x


@pytest.fixture(scope="module")
def gaussian():
    """NNGP of the convolution alone, of both sets and between them."""
    with jax.enable_x64(True):
        kernel_fn = infnet_flax.kernel_fn(Base(activation=identity), X1)
        return [flat(kernel_fn(*xs, get="nngp"), H * W) for xs in ((X1,), (X2,), (X1, X2))]


@pytest.mark.parametrize("name", ["slice", "avg_pool", "x + flip", "centring", "merge positions", "scale positions"])
def test_a_nonlinearity_after_a_map_of_gaussian_positions(name, gaussian):
    """Linear maps keep Gaussian fields Gaussian: conv, map, relu equals the arc-cosine formula on L K Lᵀ."""
    matrix, _ = as_matrix(name)
    model = Base(OPERATIONS[name], nn.relu, identity)
    first, second, cross = gaussian
    cross = matrix @ cross @ matrix.T
    q1, q2 = (np.einsum("pi,aaij,pj->ap", matrix, k, matrix) for k in (first, second))
    scale = np.sqrt(q1[:, None, :, None] * q2[None, :, None, :])
    angle = np.arccos(np.clip(cross / scale, -1, 1))
    expected = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    np.testing.assert_allclose(flat(full_kernel(model).nngp, len(matrix)), expected, rtol=1e-9)


# Channels


def dense(width, **changes):
    return nn.Dense(width, **settings(jnp.float64, use_bias=False, **changes))


class Channels(nn.Module):
    operation: object

    @nn.compact
    def __call__(self, x):
        return self.operation(x.reshape(x.shape[0], -1))


def kernels(operation):
    kernel = infnet_flax.kernel_fn(Channels(operation), X1)(X1, X2, ("nngp", "ntk"))
    return np.asarray(kernel.nngp), np.asarray(kernel.ntk)


def test_different_slices_of_one_feature_are_independent():
    def added_halves(x):
        h = nn.relu(dense(16)(x))
        return h[:, :8] + h[:, 8:]

    def two_layers(x):
        return nn.relu(dense(8)(x)) + nn.relu(dense(8)(x))

    for one, two in zip(kernels(added_halves), kernels(two_layers), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_split_and_concatenate_is_the_identity():
    def around(x):
        a, b = jnp.split(dense(16)(x), [5], axis=-1)
        return dense(2)(nn.relu(jnp.concatenate([a, b], -1)))

    def swapped(x):
        a, b = jnp.split(dense(16)(x), 2, axis=-1)
        return dense(2)(nn.relu(jnp.concatenate([b, a], -1)))

    def plain(x):
        return dense(2)(nn.relu(dense(16)(x)))

    expected = kernels(plain)
    for other in (around, swapped):
        for one, two in zip(kernels(other), expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12)


def two_axes(*features):
    return nn.DenseGeneral(features, **settings(jnp.float64, use_bias=False))


CUT = {
    "leading axis": (lambda x: nn.relu(two_axes(3, 8)(x)[..., 1, :]), lambda x: nn.relu(dense(8)(x))),
    "both axes at once": (
        lambda x: nn.relu(two_axes(3, 8)(x)[..., 0:1, 2:6][..., 0, :]),
        lambda x: nn.relu(dense(4)(x)),
    ),
    "one after the other": (lambda x: nn.relu(two_axes(3, 8)(x)[..., 2, :][..., 2:6]), lambda x: nn.relu(dense(4)(x))),
    "both, multiplied": (
        lambda x: nn.relu((y := two_axes(2, 8)(x))[..., 0, :]) * y[..., 1, :],
        lambda x: nn.relu((y := dense(16)(x))[..., :8]) * y[..., 8:],
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_cuts_of_channels_with_two_axes(name):
    """Of the first, they are ranges of channels: those of a smaller layer."""

    def with_head(operation):
        return lambda x: dense(2)(operation(x))

    cut, plain = CUT[name]
    for one, two in zip(kernels(with_head(cut)), kernels(with_head(plain)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize("cut", [lambda y: y[..., 2:6], lambda y: y[..., 0:2, 2:6], lambda y: y[..., ::2, :]])
def test_channels_in_irregular_steps_are_refused(cut):
    with pytest.raises(UnsupportedError, match="channels are flipped, padded or taken with a stride"):
        kernels(lambda x: dense(2)(cut(two_axes(3, 8)(x)).reshape(*x.shape[:-1], -1)))


def test_one_layer_applied_to_two_slices_is_one_weight():
    """Tied weights: W a + W b for halves a, b of one feature; the halves are independent, W is shared."""

    def tied(x):
        h, layer = dense(16)(x), dense(4)
        return layer(h[:, :8]) + layer(h[:, 8:])

    def sum_first(x):
        h = dense(16)(x)
        return dense(4)(h[:, :8] + h[:, 8:])

    for one, two in zip(kernels(tied), kernels(sum_first), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_a_layer_called_twice_in_a_row_shares_its_weight():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(64, use_bias=False, kernel_init=nn.initializers.normal(1 / 8.0))
            return layer(nn.relu(layer(nn.relu(nn.Dense(64, use_bias=False)(x)))))

    x = np.asarray(RNG.randn(2, 8), np.float64)
    nngp = infnet_flax.kernel_fn(Twice(), x)(x, get="nngp")
    draw = jax.jit(lambda key: Twice().apply(Twice().init(key, x), x))
    outputs = jnp.stack([draw(jax.random.key(i)) for i in range(400)])
    sample = jnp.einsum("iac,ibc->iab", outputs, outputs) / 64
    error = sample.std(0) / 20
    assert (abs(sample.mean(0) - nngp) < 4 * error + 0.03 * nngp).all()


def test_scaling_channels_by_constants_before_a_layer():
    scales = RNG.rand(16) + 0.5

    def scaled(x):
        return dense(2)(nn.relu(dense(16)(x)) * scales)

    def plain(x):
        return dense(2)(nn.relu(dense(16)(x)))

    for one, two in zip(kernels(scaled), kernels(plain), strict=True):
        np.testing.assert_allclose(one, two * np.mean(scales**2), rtol=1e-12)

    with pytest.raises(UnsupportedError, match="channels are not alike"):
        kernels(lambda x: nn.relu(dense(16)(x) * scales))


def test_residual_connection_from_the_input():
    """x + W x: the input's own channels are summed exactly."""
    z1, z2 = (x.reshape(len(x), -1) for x in (X1, X2))
    n = z1.shape[1]

    def residual(x):
        return dense(2)(x + dense(n)(x))

    variance = 1.4**2
    inner = z1 @ z2.T / n
    first = variance * inner  # nngp of W x per channel; its ntk is n * inner
    nngp, ntk = kernels(residual)
    np.testing.assert_allclose(nngp, variance * (inner + first), rtol=1e-12)
    np.testing.assert_allclose(ntk, variance * n * inner + n * (inner + first), rtol=1e-12)


def test_preprocessing_is_ordinary_jax():
    def standardised(x):
        x = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-3)
        return dense(2)(nn.relu(dense(16)(jnp.concatenate([x, jnp.sin(x) ** 2], 1))))

    def plain(x):
        return dense(2)(nn.relu(dense(16)(x)))

    def prepare(x):
        x = x.reshape(len(x), -1)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3)
        return np.concatenate([x, np.sin(x) ** 2], 1)

    z1, z2 = prepare(X1), prepare(X2)
    expected = infnet_flax.kernel_fn(Channels(plain), z1)(z1, z2)
    np.testing.assert_allclose(kernels(standardised)[0], expected.nngp, rtol=1e-12)
    np.testing.assert_allclose(kernels(standardised)[1], expected.ntk, rtol=1e-12)


def shifts(sizes, window):
    """For each element of a window, the matrix that takes positions to their neighbours there; zeros are padded."""
    positions = list(np.ndindex(*sizes))
    for element in np.ndindex(*window):
        offset = np.array(element) - (np.array(window) - 1) // 2
        yield np.array([[tuple(np.add(i, offset)) == j for j in positions] for i in positions], float)


def two_convolutions(x1, x2, window):
    """NNGP and NTK of Conv, relu, Conv with 8 channels between, (n1, n2, i, j) over all pairs of positions."""
    sizes = x1.shape[1:-1]
    neighbours = list(shifts(sizes, window))
    flat1, flat2 = (x.reshape(len(x), -1, x.shape[-1]) for x in (x1, x2))

    def conv(k):
        return 0.25 * sum(m @ k @ m.T for m in neighbours)

    def first(x, z):
        return conv(np.einsum("aic,bjc->abij", x, z)) + 0.09

    q1, q2 = (np.einsum("aaii->ai", first(x, x)) for x in (flat1, flat2))
    s = first(flat1, flat2)
    k, kdot = relu_moments(s, q1[:, None, :, None], q2[None, :, None, :])
    nngp = conv(8 * k) + 0.09
    return nngp, nngp + conv(8 * kdot * s)


@pytest.mark.parametrize(("sizes", "window"), [((9,), (3,)), ((9,), (4,)), ((3, 4, 3), (3, 2, 3))])
def test_one_and_three_dimensional_convolutions(sizes, window):
    x1, x2 = RNG.randn(2, *sizes, 2), RNG.randn(2, *sizes, 2)
    options = {"kernel_init": nn.initializers.normal(0.5), "bias_init": nn.initializers.normal(0.3)}
    first, second = (nn.Conv(width, window, param_dtype=jnp.float64, **options) for width in (8, 3))
    kernel = infnet_flax.kernel_fn(nn.Sequential([first, nn.relu, second]), x1, parameterization="ntk")(x1, x2)
    pairs = [axis for k in range(len(sizes)) for axis in (2 + k, 2 + len(sizes) + k)]
    for found, wanted in zip((kernel.nngp, kernel.ntk), two_convolutions(x1, x2, window), strict=True):
        np.testing.assert_allclose(found, wanted.reshape(2, 2, *sizes, *sizes).transpose(0, 1, *pairs), rtol=1e-10)


def test_delta_orthogonal_filters_have_variance_in_the_centre_only():
    options = {"use_bias": False, "dtype": jnp.float64, "param_dtype": jnp.float64}

    def last(init, window):
        first = nn.Conv(8, (3, 3), **settings(jnp.float64))
        return nn.Sequential([first, nn.relu, nn.Conv(8, window, kernel_init=init, **options)])

    orthogonal = full_kernel(last(nn.initializers.delta_orthogonal(), (3, 3)))
    pointwise = full_kernel(last(nn.initializers.orthogonal(), (1, 1)))
    np.testing.assert_allclose(orthogonal.nngp, pointwise.nngp, rtol=1e-12)
    assert (orthogonal.ntk >= pointwise.ntk - 1e-12).all()  # all nine taps train, from zero
    assert (orthogonal.ntk > pointwise.ntk + 1e-3).any()
