"""LayerNorm, RMSNorm, GroupNorm and BatchNorm, as Flax and Haiku write them, with their trained scales and offsets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, conv, dense, examples, relu_kernels
from flax import linen as nn

import infnet
import infnet_flax
from infnet.errors import BatchAxisError, InputError, NonGaussianError, UnsupportedError

SHIFTED = {"scale_init": nn.initializers.constant(1.5), "bias_init": nn.initializers.constant(0.5)}


def normed_mlp(norm, activation, before=None):
    def body(module, width, x):
        x = dense(32 * width)(x)
        x = before(x) if before else x
        x = norm()(x)
        return activation(x) if activation else x

    return body


def normed_conv(norm):
    def body(module, width, x):
        return nn.relu(norm()(conv(24 * width)(x))).mean((1, 2))

    return body


MLPS = {
    "LayerNorm, gelu": normed_mlp(nn.LayerNorm, nn.gelu),
    "relu, LayerNorm": normed_mlp(nn.LayerNorm, None, before=nn.relu),
    "RMSNorm, relu": normed_mlp(nn.RMSNorm, nn.relu),
    "shifted LayerNorm, relu": normed_mlp(functools.partial(nn.LayerNorm, **SHIFTED), nn.relu),
}
CONVS = {
    "GroupNorm": normed_conv(functools.partial(nn.GroupNorm, 2)),
    "BatchNorm": normed_conv(functools.partial(nn.BatchNorm, use_running_average=True)),
}


@pytest.mark.parametrize("name", MLPS)
def test_dense_networks(name):
    assert_limit_of_finite_networks(lambda w: Model(MLPS[name], w), *examples(4), largest_error=0.08)


@pytest.mark.parametrize("name", CONVS)
def test_convolutional_networks(name):
    assert_limit_of_finite_networks(lambda w: Model(CONVS[name], w), *examples(3, 4, 2), n_samples=(600, 300))


@pytest.mark.parametrize("name", ["shifted LayerNorm, relu", "LayerNorm, gelu"])
def test_the_share_of_the_scales(name):
    """It is a small part of the whole NTK, so it is compared by itself."""
    make = functools.partial(Model, MLPS[name])
    assert_limit_of_finite_networks(make, *examples(4), only="scale", widths=(2, 8), largest_error=0.08)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def kernels_of(body, x, width=8, **options):
    kernels = infnet_flax.kernel_fn(Model(body, width), x, **options)(x, None, ("nngp", "ntk"))
    return kernels.nngp, kernels.ntk


@pytest.mark.usefixtures("float64")
def test_relu_of_a_norm_has_a_closed_form():
    """x relu'(x) = relu(x): the scale's share is the kernel of relu itself. The readout counts 32 channels."""
    x, width = np.random.RandomState(0).standard_normal((5, 3)), 32
    q = np.sum(x**2, 1) / 3 + 0.3**2
    scale = 1 / np.sqrt(np.outer(q + 1e-6, q + 1e-6))
    s, t = (x @ x.T / 3 + 0.3**2) * scale, (x @ x.T + 1) * scale
    k, kdot = relu_kernels(s, jnp.diag(s)[:, None], jnp.diag(s)[None])
    off = ~np.eye(5, dtype=bool)  # arccos(1) has lost half its digits
    for norm, offset in (("RMSNorm, relu", 0), ("LayerNorm, relu", 1)):
        nngp, ntk = kernels_of({**MLPS, "LayerNorm, relu": normed_mlp(nn.LayerNorm, nn.relu)}[norm], x, width=1)
        np.testing.assert_allclose(nngp[off], (k + 0.3**2)[off], rtol=1e-10)
        np.testing.assert_allclose(ntk[off], (width * k + kdot * (t + offset) + k + 1)[off], rtol=1e-10)


def gauss_hermite(n=80):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


@pytest.mark.usefixtures("float64")
def test_the_share_of_scales_by_quadrature():
    """T = E[phi' phi'] T_h + E[h phi'(u) h' phi'(u')] with u = 1.5 h + 0.5, integrated on a grid."""
    x = np.random.RandomState(1).standard_normal((2, 3))
    body = normed_mlp(functools.partial(nn.LayerNorm, **SHIFTED), jnp.sin)
    s = x @ x.T / 3 + 0.3**2
    q = np.diag(s) + 1e-6
    s = s / np.sqrt(np.outer(q, q))
    nodes, weights = gauss_hermite()
    a, b = np.meshgrid(nodes, nodes, indexing="ij")
    root = np.linalg.cholesky(s)
    h, k = root[0, 0] * a, root[1, 0] * a + root[1, 1] * b
    slopes = np.cos(1.5 * h + 0.5) * np.cos(1.5 * k + 0.5)
    share = np.einsum("ab,a,b->", h * k * slopes, weights, weights)
    kernel_fn = infnet_flax.kernel_fn(Model(body, 8), x, trainable=lambda path: "scale" in path)
    np.testing.assert_allclose(kernel_fn(x, get="ntk")[0, 1], share, rtol=1e-9)


def by_hand(x):
    """LayerNorm as it is often written."""
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


PLAIN = functools.partial(nn.LayerNorm, use_scale=False, use_bias=False)
SAME = {
    "by hand": lambda module, x: by_hand(x),
    "nn.standardize": lambda module, x: nn.standardize(x, epsilon=1e-6),
    "slow variance": lambda module, x: PLAIN(use_fast_variance=False)(x),
    "projected to the sphere": lambda module, x: x / jnp.linalg.norm(x, axis=-1, keepdims=True) * x.shape[-1] ** 0.5,
    "root mean square": lambda module, x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
    "sum of squares": lambda module, x: x / jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) / x.shape[-1]),
    "a power": lambda module, x: x * jnp.power(jnp.sum(x * x, -1, keepdims=True) / x.shape[-1], -0.5),
    "inner product": lambda module, x: x / jnp.sqrt(jnp.einsum("ni,ni->n", x, x) / x.shape[-1])[:, None],
    "scale of zeros plus one": lambda module, x: (
        PLAIN()(x) * (1 + module.param("scale", nn.initializers.zeros, (x.shape[-1],)))
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_ways_to_write_it(name):
    x = examples(4)[0]

    def body(normalise):
        return lambda module, width, x: nn.relu(normalise(module, dense(width)(x)))

    frozen = {"trainable": lambda path: "scale" not in path}
    expected = kernels_of(body(lambda module, x: PLAIN()(x)), x)
    for found, value in zip(kernels_of(body(SAME[name]), x, **frozen), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5)


def test_norm_of_concatenated_branches():
    """Statistics run over all channels: here two thirds are erf, one third relu."""

    def body(module, width, x):
        branches = [nn.relu(dense(16 * width)(x)), jax.scipy.special.erf(dense(32 * width)(x))]
        return nn.LayerNorm()(jnp.concatenate(branches, -1))

    assert_limit_of_finite_networks(lambda w: Model(body, w), *examples(4), largest_error=0.1)


@pytest.mark.usefixtures("float64")
def test_derivatives_in_the_standard_deviations():
    x = np.random.RandomState(2).standard_normal((3, 4))
    kernel_fn = infnet_flax.kernel_fn(Model(MLPS["shifted LayerNorm, relu"], 8), x)
    stds = kernel_fn.hyperparameters

    def total(size):
        changed = {**stds, "Dense_0": {"kernel": size, "bias": stds["Dense_0"]["bias"]}}
        return kernel_fn.with_hyperparameters(changed)(x, x[::-1] + 0.1, "ntk").sum()

    size = stds["Dense_0"]["kernel"]
    slope = (total(size + 1e-4) - total(size - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(total)(size), slope, rtol=1e-6)


def test_a_constant_scale_stays_constant():
    kernel_fn = infnet_flax.kernel_fn(Model(MLPS["RMSNorm, relu"], 8), examples(4)[0])
    stds = jax.tree.map(lambda std: 0.5, kernel_fn.hyperparameters)
    with pytest.raises(InputError, match="starts as a constant"):
        kernel_fn.with_hyperparameters(stds)


def refused(body):
    x = examples(3, 4, 2)[0]
    return lambda **options: infnet_flax.kernel_fn(Model(body, 8), x, **options)


def test_statistics_of_the_batch_are_refused():
    with pytest.raises(BatchAxisError, match="mixes the examples"):
        refused(normed_conv(lambda: nn.BatchNorm(use_running_average=False)))()


def test_statistics_of_positions_are_refused():
    with pytest.raises(NonGaussianError, match="norm over positions alone"):
        refused(normed_conv(nn.InstanceNorm))()


def test_a_random_scale_is_not_gaussian():
    norm = functools.partial(nn.LayerNorm, scale_init=nn.initializers.normal(1.0))
    with pytest.raises(NonGaussianError):
        refused(normed_conv(norm))()


@pytest.mark.parametrize(
    "body",
    [
        lambda module, width, x: jnp.tanh(dense(width)(x).sum(-1, keepdims=True)),
        lambda module, width, x: jnp.exp(dense(width)(x).sum(-1, keepdims=True) / width**0.5),
        lambda module, width, x: dense(width)(x) - jnp.square(dense(width)(x)).sum(-1, keepdims=True),
        lambda module, width, x: jnp.exp(jnp.square(dense(width)(x)).sum(-1, keepdims=True) ** 2 / width),
    ],
)
def test_sums_over_channels_that_are_no_means_are_refused(body):
    with pytest.raises(UnsupportedError, match="not divided by their number"):
        refused(body)()


def test_a_weight_on_means_over_channels_is_refused():
    with pytest.raises(UnsupportedError, match="a weight is applied to sums over channels"):
        refused(lambda module, width, x: (dense(width)(x) ** 2).mean(-1, keepdims=True))()


def test_the_ntk_of_a_scale_shared_by_all_channels_is_refused():
    def body(module, width, x):
        return dense(width)(x) * module.param("alpha", nn.initializers.ones, ())

    kernel_fn = refused(body)()
    assert np.isfinite(kernel_fn(examples(3, 4, 2)[0], get="nngp")).all()
    with pytest.raises(UnsupportedError, match="share one trained scale"):
        kernel_fn(examples(3, 4, 2)[0], get="ntk")


def test_the_ntk_of_a_scale_with_positions_before_a_nonlinearity_is_refused():
    kernel_fn = refused(normed_conv(functools.partial(nn.LayerNorm, feature_axes=(1, 2, 3))))()
    with pytest.raises(UnsupportedError, match="not one number per channel"):
        kernel_fn(examples(3, 4, 2)[0], get="ntk")


class TiedNorms(nn.Module):
    """One norm used twice, the second time on what follows from the first."""

    scale_init: object = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        norm = nn.RMSNorm(scale_init=self.scale_init)
        x = norm(dense(8)(x))
        return dense(2)(norm(x + dense(8)(nn.relu(x))))


def test_one_scale_used_twice():
    x = examples(4)[0]
    kernel_fn = infnet_flax.kernel_fn(TiedNorms(), x)
    assert np.isfinite(kernel_fn(x, get="nngp")).all()
    with pytest.raises(UnsupportedError, match="used twice"):
        kernel_fn(x, get="ntk")
    with pytest.raises(UnsupportedError):
        infnet_flax.kernel_fn(TiedNorms(nn.initializers.normal(1.0)), x)


def test_scales_with_positions():
    """Of their own at every position: they have no share between different positions."""

    def body(module, width, x):
        x = nn.LayerNorm(feature_axes=(1, 2, 3))(conv(24 * width)(x))
        return x.mean((1, 2))

    assert_limit_of_finite_networks(lambda w: Model(body, w), *examples(3, 4, 2), only="scale", largest_error=0.2)


def test_explain_names_the_layers():
    text = str(infnet_flax.kernel_fn(Model(MLPS["LayerNorm, gelu"], 8), examples(4)[0]).explain())
    assert "Model/LayerNorm_0" in text
    assert "trained scale" in text


def test_priors_with_a_mean_scale_the_kernel():
    x = examples(4)[0]
    body = normed_mlp(nn.RMSNorm, None)
    plain = infnet_flax.kernel_fn(Model(body, 8), x)
    doubled = infnet_flax.kernel_fn(Model(body, 8), x, priors={"RMSNorm_0/scale": infnet.Prior(2.0, 0.0)})
    np.testing.assert_allclose(doubled(x, get="nngp") - 0.09, 4 * (plain(x, get="nngp") - 0.09), rtol=1e-5)
