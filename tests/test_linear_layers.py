"""Layers that are linear in their weights, against the tensor of the layer itself.

A layer without bias is u_i = sum_kp A[i, k, p] W_k h_p for each channel, so that with iid weights of variance s2, and
C channels h of kernels (S, T) that share no weight,

    S'[i, j] = s2 C sum_kpq A[i, k, p] A[j, k, q] S[p, q],      T'[i, j] = C sum_kpq A A (s2 T + S)[p, q].

A is the layer's own `apply` on every unit weight and unit feature, (S, T) the kernel of the model before the layer
(which other tests compare with independent references). On inputs, the kernel is s2 J Jᵀ with J the Jacobian in the
weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import assert_limit_of_finite_networks, flat
from flax import linen as nn
from zoo import settings

import infnet_flax
from infnet.errors import NonGaussianError, UnsupportedError

H, W, C, STD = 4, 3, 8, 0.3
RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(2, H, W, 3), RNG.randn(3, H, W, 3)
OPTIONS = {"kernel_init": nn.initializers.normal(STD), "use_bias": False, "dtype": jnp.float64}
OPTIONS["param_dtype"] = jnp.float64
TAPS = np.array([[1.0, 0.5, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])  # a causal mask, and a little more


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def masked(features, channels):
    mask = np.broadcast_to(TAPS[:, :, None, None], (3, 3, channels, features))
    return nn.Conv(features, (3, 3), mask=mask, **OPTIONS)


def unshuffled(features, channels):
    """Positions as channels: blocks of 2 x 3 pixels are the channels of a convolution."""

    def blocks(x):
        x = x.reshape(x.shape[0], 2, 2, 1, 3, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 2, 1, 6 * channels)

    return nn.Sequential([blocks, nn.Conv(features, (2, 1), **OPTIONS)])


def patches(features, channels):
    def cut(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated_patches(x, (2, 2), (1, 2), "SAME", dimension_numbers=numbers)

    return nn.Sequential([cut, nn.Dense(features, **OPTIONS)])


class PerPosition(nn.Module):
    """A weight matrix for every position, written with einsum."""

    features: int

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", OPTIONS["kernel_init"], (H, W, x.shape[-1], self.features), jnp.float64)
        return jnp.einsum("bhwi,hwio->bhwo", x, w)


class PerRow(nn.Module):
    """A weight for every row, contracted with columns and channels, written with the weight first."""

    features: int

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", OPTIONS["kernel_init"], (self.features, H, x.shape[-1], W), jnp.float64)
        return jnp.einsum("ohiw,bhwi->bho", w, x)


def layer(kind, *args, **kwargs):
    return lambda features, channels: kind(features, *args, **OPTIONS, **kwargs)


def grouped(size, multiplier=1, **kwargs):
    def make(features, channels):
        groups = channels // size
        return nn.Conv(max(groups * multiplier, 1), (3, 2), feature_group_count=max(groups, 1), **OPTIONS, **kwargs)

    return make


# name -> (features, channels) -> module
LAYERS = {
    "transposed, circular": layer(nn.ConvTranspose, (3, 2), (2, 1), "CIRCULAR"),
    "transposed kernel": layer(nn.ConvTranspose, (3, 2), (2, 2), transpose_kernel=True),
    "input dilation": layer(nn.Conv, (2, 2), (2, 1), input_dilation=(2, 3), padding=((-1, 2), (0, -2))),
    "masked": masked,
    "local": layer(nn.ConvLocal, (2, 3), (2, 1)),
    "per row": lambda features, channels: PerRow(features),
    "patches": patches,
    "positions as channels": unshuffled,
}
# name -> the same, and the number of channels in a group
GROUPED = {
    "depthwise, two filters each": (grouped(1, 2, strides=(2, 1)), 1),
    "grouped": (grouped(2, 3, padding="CIRCULAR"), 2),
}


class Model(nn.Module):
    """relu(Conv), then layers."""

    layers: tuple = ()

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(C, (2, 2), **settings(jnp.float64))(x))
        for one in self.layers:
            x = one(x)
        return x


def as_tensor(module, sizes):
    """A[i, k, p] of one channel, and the sizes of the positions i."""

    def on_positions(w, h):
        return module.apply(jax.tree.unflatten(tree, [w]), h[None, ..., None])[0, ..., 0]

    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *sizes, 1)))
    (w,), tree = jax.tree.flatten(shapes)
    weights = np.eye(w.size).reshape(w.size, *w.shape)
    positions = np.eye(int(np.prod(sizes))).reshape(-1, *sizes)
    tensor = jax.jit(jax.vmap(jax.vmap(on_positions, (None, 0)), (0, None)))(weights, positions)
    out = tensor.shape[2:]
    return np.asarray(tensor).reshape(w.size, len(positions), -1).transpose(2, 0, 1), out


def kernels(model, x1=X1, x2=X2):
    kernel = infnet_flax.kernel_fn(model, x1)(x1, x2, ("nngp", "ntk"))
    return np.asarray(kernel.nngp), np.asarray(kernel.ntk)


@pytest.fixture(scope="module")
def base():
    with jax.enable_x64(True):
        return [flat(k, H * W) for k in kernels(Model())]


def contracted(tensor, s, t, channels):
    def sandwich(k):
        return channels * np.einsum("ikp,abpq,jkq->abij", tensor, k, tensor, optimize=True)

    return STD**2 * sandwich(s), STD**2 * sandwich(t) + sandwich(s)


def pool_and_flatten(x):
    return nn.avg_pool(x, (2, 1)).reshape(x.shape[0], -1)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
def test_layers_after_a_random_feature(name, base):
    make, channels = GROUPED[name] if name in GROUPED else (LAYERS[name], C)
    tensor, _ = as_tensor(make(1, 1), (H, W))
    expected = contracted(tensor, *base, channels)
    found = kernels(Model((make(C, C),)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(flat(one, len(tensor)), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["transposed kernel", "depthwise, two filters each"])
def test_layers_before_a_head_that_needs_a_band_of_positions(name, base):
    make, channels = GROUPED[name] if name in GROUPED else (LAYERS[name], C)
    tensor, sizes = as_tensor(make(1, 1), (H, W))
    expected = contracted(tensor, *base, channels)
    matrix = np.asarray(jax.jacobian(lambda z: pool_and_flatten(z[None, ..., None])[0])(jnp.zeros(sizes)))
    matrix = matrix.reshape(len(matrix), -1)
    width = C * len(matrix) * make(C, C).features // C if name in GROUPED else C * len(matrix)
    s, t = (np.einsum("pi,abij,pj->ab", matrix, k, matrix) / len(matrix) for k in expected)
    nngp, ntk = kernels(Model((make(C, C), pool_and_flatten, nn.Dense(2, **OPTIONS))))
    np.testing.assert_allclose(nngp, STD**2 * width * s, rtol=1e-10)
    np.testing.assert_allclose(ntk, width * (STD**2 * t + s), rtol=1e-10)


def on_inputs(module, x1, x2, channel=slice(0, 1)):
    """s2 J(x1) J(x2)ᵀ and J(x1) J(x2)ᵀ of the outputs in one channel (or their mean over several)."""
    (w,), tree = jax.tree.flatten(module.init(jax.random.key(0), x1))

    def outputs(w, x):
        return module.apply(jax.tree.unflatten(tree, [w]), x)[..., channel]

    one, two = (np.asarray(jax.jacobian(outputs)(w, x)) for x in (x1, x2))
    one, two = (j.reshape(len(x), -1, j.shape[j.ndim - w.ndim - 1], w.size) for j, x in ((one, x1), (two, x2)))
    ntk = np.einsum("aick,bjck->abij", one, two) / one.shape[2]
    return STD**2 * ntk, ntk


@pytest.mark.parametrize("name", ["local"])
def test_layers_on_inputs(name):
    module = LAYERS[name](2, 3)
    expected = on_inputs(module, X1, X2)
    for one, other in zip(kernels(module), expected, strict=True):
        np.testing.assert_allclose(flat(one, other.shape[-1]), other, rtol=1e-10, atol=1e-12)


def test_a_depthwise_convolution_of_inputs_is_averaged_over_channels():
    module = nn.Conv(6, (2, 2), feature_group_count=3, **OPTIONS)
    expected = on_inputs(module, X1, X2, slice(None))
    for one, other in zip(kernels(module), expected, strict=True):
        np.testing.assert_allclose(flat(one, H * W), other, rtol=1e-10, atol=1e-12)
    with pytest.raises(UnsupportedError, match="channels are not alike"):
        kernels(nn.Sequential([module, nn.relu]))


@pytest.mark.parametrize(
    ("shape", "module"),
    [
        ((7, 2), nn.Conv(2, (3,), padding="CIRCULAR", kernel_dilation=(2,), **OPTIONS)),
        ((2, 3, 3, 2), nn.Conv(2, (2, 3, 1), (1, 2, 1), "CIRCULAR", **OPTIONS)),
        ((2, 2, 3, 2), nn.ConvTranspose(2, (1, 2, 2), (2, 1, 2), "VALID", **OPTIONS)),
    ],
    ids=["1-D circular", "3-D circular", "3-D transposed"],
)
def test_one_and_three_dimensions(shape, module):
    x1, x2 = RNG.randn(2, *shape), RNG.randn(1, *shape)
    expected = on_inputs(module, x1, x2)
    for one, other in zip(kernels(module, x1, x2), expected, strict=True):
        np.testing.assert_allclose(flat(one, other.shape[-1]), other, rtol=1e-10, atol=1e-12)


# Sums of depthwise convolutions: uncorrelated, whatever they share.


def test_depthwise_convolutions_of_one_feature_are_uncorrelated(base):
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            u, v = (nn.Conv(2 * C, (3, 2), feature_group_count=C, **OPTIONS)(x) for _ in range(2))
            return u[..., :C] + v[..., :C] + v[..., C:] + x

    tensor, _ = as_tensor(grouped(1)(1, 1), (H, W))
    parts = contracted(tensor, *base, 1)
    for one, part, identity in zip(kernels(Model((Sum(),))), parts, base, strict=True):
        np.testing.assert_allclose(flat(one, H * W), 3 * part + identity, rtol=1e-10)


class Decoder(nn.Module):
    """A latent vector reshaped to a small image, a transposed, a depthwise and a pointwise convolution."""

    width: int
    between: object = None

    @nn.compact
    def __call__(self, x):
        options = settings(x.dtype)
        x = nn.relu(nn.Dense(4 * self.width, **options)(x.reshape(x.shape[0], -1)))
        x = x.reshape(x.shape[0], 2, 2, self.width)
        x = nn.relu(nn.ConvTranspose(self.width, (2, 2), (2, 1), **options)(x))
        x = nn.Conv(2 * self.width, (2, 2), feature_group_count=self.width, **options)(x)
        x = self.between(x) if self.between else x
        x = nn.relu(nn.Conv(self.width, (1, 1), **options)(x))
        return nn.Dense(32, **options)(nn.avg_pool(x, (4, 2))[:, 0, 0])


def test_the_limit_of_finite_networks():
    x1, x2 = np.float32(X1 + 0.5), np.float32(X2[:2] + 0.5)
    assert_limit_of_finite_networks(
        lambda multiplier: Decoder(12 * multiplier), x1, x2, n_samples=(1000, 500), largest_error=0.04
    )


def test_a_nonlinearity_right_after_a_depthwise_convolution_is_refused():
    with pytest.raises(NonGaussianError, match="depthwise or grouped convolution"):
        infnet_flax.kernel_fn(Decoder(12, nn.relu), X1)


# Channels as positions


class Reshaped(nn.Module):
    """relu(Dense), its channels reshaped to `shape`, perhaps transposed, then a layer."""

    shape: tuple
    last: object
    order: tuple | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(int(np.prod(self.shape)), **settings(jnp.float64))(x.reshape(x.shape[0], -1)))
        x = x.reshape(x.shape[0], *self.shape)
        return self.last(x if self.order is None else x.transpose(self.order))


@pytest.fixture(scope="module")
def unfolded():
    """S and T of relu(Dense) at 12 positions that are different channels: independent, of equal mean."""
    with jax.enable_x64(True):

        def identity(x):
            return x

        s, t = kernels(Reshaped((12 * C,), identity))
        z1, z2 = X1.reshape(2, -1), X2.reshape(3, -1)
        q1, q2 = (1.4**2 / z.shape[1] * (z**2).sum(1) + 0.3**2 for z in (z1, z2))
        means = np.sqrt(q1[:, None] * q2) / (2 * np.pi)
        same = np.eye(12)
        return s[..., None, None] * same + means[..., None, None] * (1 - same), t[..., None, None] * same


CONV, DENSE = layer(nn.Conv, (2, 3)), layer(nn.Dense)


def larger(features, channels):
    """A resized image, its columns twice, before a convolution."""

    def resize(x):
        return jnp.repeat(jax.image.resize(x, (x.shape[0], H + 1, W, channels), "bilinear"), 2, axis=2)

    return nn.Sequential([resize, CONV(features, channels)])


RESHAPED = {
    "resized": ((H, W, C), larger, None),
    "channels last": ((H, W, C), CONV, None),
    "channels first, transposed": ((C, W, H), CONV, (0, 3, 2, 1)),
    "Dense at each position": ((H, W, C), DENSE, None),
    "a weight for each position": ((H, W, C), lambda features, channels: PerPosition(features), None),
}


@pytest.mark.parametrize("name", RESHAPED)
def test_channels_as_positions(name, unfolded):
    shape, make, order = RESHAPED[name]
    tensor, _ = as_tensor(make(1, 1), (H, W))
    expected = contracted(tensor, *unfolded, C)
    for found, other in zip(kernels(Reshaped(shape, make(C, C), order)), expected, strict=True):
        np.testing.assert_allclose(flat(found, len(tensor)), other, rtol=1e-9, atol=1e-12)


def test_pixels_made_of_channels():
    """Depth to space: blocks of 2 x 1 pixels are channels of one convolution, and pixels of the next."""

    class Shuffled(nn.Module):
        last: object = None

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2 * C, (2, 2), **OPTIONS)(x)
            if self.last is None:
                return x
            x = x.reshape(x.shape[0], H, W, 2, C).transpose(0, 1, 3, 2, 4)
            return self.last(x.reshape(x.shape[0], 2 * H, W, C))

    def in_blocks(k):
        k = k.reshape(2, 3, H, W, H, W)
        return np.einsum("abhwij,pq->abhpwiqj", k, np.eye(2)).reshape(2, 3, 2 * H * W, 2 * H * W)

    before = [in_blocks(flat(k, H * W)) for k in kernels(Shuffled())]
    tensor, _ = as_tensor(CONV(1, 1), (2 * H, W))
    for found, expected in zip(kernels(Shuffled(CONV(C, C))), contracted(tensor, *before, C), strict=True):
        np.testing.assert_allclose(flat(found, 2 * H * W), expected, rtol=1e-9, atol=1e-12)


def test_masks_in_the_ntk_parameterization():
    model = nn.Sequential([nn.Conv(C, (2, 2), **OPTIONS), masked(C, C)])
    nngp, ntk = infnet_flax.kernel_fn(model, X1, parameterization="ntk")(X1, X2, ("nngp", "ntk"))
    np.testing.assert_allclose(ntk, 2 * nngp, rtol=1e-10)  # one for each linear layer


# What is refused


class Inputs(nn.Module):
    """Layers on inputs."""

    layers: object

    @nn.compact
    def __call__(self, x):
        return self.layers(x)


def kernel_of(layers):
    return infnet_flax.kernel_fn(layers if isinstance(layers, Reshaped | Inputs) else Model((layers,)), X1)


class WeightTwice(nn.Module):
    """One weight, used in two ways."""

    first: object
    second: object
    shape: tuple = (2, 2, C, C)

    @nn.compact
    def __call__(self, x):
        w = self.param("w", OPTIONS["kernel_init"], self.shape, jnp.float64)
        return self.first(x, w) + self.second(x, w)


def conv(x, w, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def depthwise_twice(x, w):
    return conv(conv(x, w[:, :, :1], C), w[:, :, :1], C)


def folded_sum(x):
    x = nn.Dense(4 * C, **OPTIONS)(x)
    x = x[..., : 2 * C] + x[..., C : 3 * C]
    return CONV(C, C)(x.reshape(x.shape[0], -1, 2, C))


REFUSED = {
    "a second time in another way": WeightTwice(conv, lambda x, w: conv(x, jnp.flip(w, 0))),
    "two strides, paddings or scales": WeightTwice(conv, lambda x, w: conv(x, w * TAPS[:2, :2, None, None])),
    "to its own result": WeightTwice(lambda x, w: x, depthwise_twice),
    "constants that vary along channels": WeightTwice(conv, lambda x, w: conv(x, w * np.arange(C))),
    "cut or reversed is multiplied": WeightTwice(conv, lambda x, w: conv(x, w[::-1] * TAPS[:2, :2, None, None])),
    "indexed along several axes": WeightTwice(conv, lambda x, w: x + w[np.array([0, 1, 0]), np.array([0, 1, 1]), 0]),
    "depend on each other are used as positions": lambda x: folded_sum(x.mean((1, 2))),
    "are used as positions": Reshaped((H, W, 1), lambda x: CONV(C, C)(x)),
    "mixed, or filtered differently, by constants": lambda x: conv(x, np.ones((2, 2, C, 3))),
    "positions are mixed while channels (axis 2)": lambda x: DENSE(C, C)(jnp.swapaxes(x, 2, 3)),
    "mixed while channels (axis 2)": Reshaped((H, W, C), lambda x: DENSE(C, C)(jnp.swapaxes(x, 2, 3))),
    "one filter for each channel": Inputs(lambda x: nn.Conv(3, (2, 2), feature_group_count=3, **OPTIONS)(x)),
    "without any position": lambda x: x[:, 3:3],
    "result is complex": lambda x: jnp.fft.fft(x, axis=1).real,
    "along a new axis": WeightTwice(conv, lambda x, w: x + jnp.tile(w[0, 0, 0], (H, W, 1))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    with pytest.raises(UnsupportedError) as caught:
        kernel_of(REFUSED[what])
    assert what in str(caught.value)
    assert caught.value.where.line


def test_widths_that_are_not_sent_to_infinity_are_not_reported():
    upsampled = nn.Sequential(
        [nn.ConvTranspose(40, (2, 2), (2, 2), **OPTIONS), nn.relu, nn.Conv(40, (2, 2), **OPTIONS)]
    )
    assert "smallest width is 40" in str(infnet_flax.kernel_fn(upsampled, X1).explain())
    assert "smallest width is 24" in str(infnet_flax.kernel_fn(Decoder(24), X1).explain())
