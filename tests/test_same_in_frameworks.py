"""The same architectures in linen and in Haiku, with the frameworks' own layers, have the same kernels.

Each architecture is a function of a framework's layers and the input; `test_nnx.py` does the same for NNX.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function
from flax import linen as nn

import infnet_flax
import infnet_haiku

STD = 1.3
B_STD = 0.4


class Linen:
    """Layers of linen, all of the same laws."""

    options = {
        "kernel_init": nn.initializers.variance_scaling(STD**2, "fan_in", "normal"),
        "bias_init": nn.initializers.normal(B_STD),
        "param_dtype": jnp.float64,
    }
    norm_options = {"scale_init": nn.initializers.ones, "bias_init": nn.initializers.normal(B_STD)}

    def dense(self, width, **options):
        return nn.Dense(width, **self.options, **options)

    def conv(self, width, window, stride=1, **options):
        return nn.Conv(width, window, (stride,) * len(window), **self.options, **options)

    def transposed(self, width, window, stride):
        return nn.ConvTranspose(width, window, (stride,) * len(window), **self.options)

    def embed(self, vocabulary, width):
        return nn.Embed(vocabulary, width, embedding_init=nn.initializers.normal(1.0), param_dtype=jnp.float64)

    def avg_pool(self, x, window, stride):
        return nn.avg_pool(x, window, (stride,) * len(window))

    def layer_norm(self, x):
        return nn.LayerNorm(epsilon=1e-5, **self.norm_options, param_dtype=jnp.float64)(x)

    def group_norm(self, x, groups):
        return nn.GroupNorm(groups, epsilon=1e-5, **self.norm_options, param_dtype=jnp.float64)(x)

    def batch_norm(self, x):
        return nn.BatchNorm(use_running_average=True, **self.norm_options, param_dtype=jnp.float64)(x)

    def kernel_fn(self, body, x):
        module = Function(functools.partial(body, self))
        # linen's running statistics are float32 whatever the parameters are.
        shapes = jax.eval_shape(module.init, jax.random.key(0), x).get("batch_stats", {})
        statistics = {
            layer: {"mean": jnp.zeros(own["mean"].shape), "var": jnp.ones(own["var"].shape)}
            for layer, own in shapes.items()
        }
        return infnet_flax.kernel_fn(module, x, variables={"batch_stats": statistics} if statistics else None)


def in_float64(make, shape, dtype, init, context):
    """Haiku's embeddings and running statistics are float32 whatever the inputs are."""
    return make(shape, jnp.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype, init)


class Haiku:
    """The same layers of Haiku."""

    w_init = hk.initializers.VarianceScaling(STD**2, "fan_in", "normal")
    b_init = hk.initializers.RandomNormal(B_STD)

    def dense(self, width, use_bias=True):
        return hk.Linear(width, use_bias, self.w_init, self.b_init)

    def conv(self, width, window, stride=1, padding="SAME"):
        layers = {1: hk.Conv1D, 2: hk.Conv2D}
        return layers[len(window)](width, window, stride, padding=padding, w_init=self.w_init, b_init=self.b_init)

    def transposed(self, width, window, stride):
        # Haiku stores these weights as (*window, outputs, inputs), so its "fan in" counts the outputs.
        return hk.Conv2DTranspose(width, window, stride, w_init=self._of_swapped_axes, b_init=self.b_init)

    def _of_swapped_axes(self, shape, dtype):
        *window, outputs, inputs = shape
        return jnp.swapaxes(self.w_init((*window, inputs, outputs), dtype), -1, -2)

    def embed(self, vocabulary, width):
        return hk.Embed(vocabulary, width, w_init=hk.initializers.RandomNormal(1.0))

    def avg_pool(self, x, window, stride):
        return hk.avg_pool(x, (1, *window, 1), (1, *(stride,) * len(window), 1), "VALID")

    def layer_norm(self, x):
        return hk.LayerNorm(-1, True, True, offset_init=self.b_init)(x)

    def group_norm(self, x, groups):
        return hk.GroupNorm(groups, offset_init=self.b_init)(x)

    def batch_norm(self, x):
        return hk.BatchNorm(True, True, 0.9, offset_init=self.b_init)(x, is_training=self.initialising)

    # hk.BatchNorm makes its state only in training mode.
    initialising = False

    def kernel_fn(self, body, x):
        def net(x, initialising=False):
            layers = Haiku()
            layers.initialising = initialising
            with hk.custom_creator(in_float64, state=True):
                return body(layers, x)

        return infnet_haiku.kernel_fn(hk.transform_with_state(net), x, init_kwargs={"initialising": True})


def mlp(layers, x):
    for _ in range(3):
        x = nn.relu(layers.dense(16)(x))
    return layers.dense(3)(x)


def deep_linear(layers, x):
    for _ in range(3):
        x = layers.dense(16, use_bias=False)(x)
    return layers.dense(3)(x)


def siren(layers, x):
    for _ in range(2):
        x = jnp.sin(3 * layers.dense(16)(x))
    return layers.dense(3)(x)


def layer_norms(layers, x):
    for activation in (functools.partial(nn.gelu, approximate=False), jax.lax.erf):
        x = activation(layers.layer_norm(layers.dense(16)(x)))
    return layers.dense(3)(x)


def gated(layers, x):
    x = nn.relu(layers.dense(16)(x))
    return layers.dense(3)(layers.dense(16)(x) * jax.lax.erf(layers.dense(16)(x)))


def siamese(layers, x):
    body, head = layers.dense(16), layers.dense(16)
    one, two = (nn.relu(head(nn.relu(body(part)))) for part in (x[:, :3], x[:, 3:]))
    return layers.dense(3)(one - two)


def lenet(layers, x):
    x = layers.avg_pool(nn.relu(layers.conv(8, (3, 3))(x)), (2, 2), 2)
    x = layers.avg_pool(nn.relu(layers.conv(16, (2, 2), padding="VALID")(x)), (2, 2), 1)
    return layers.dense(3)(nn.relu(layers.dense(16)(x.reshape(len(x), -1))))


def strided_and_pooled(layers, x):
    x = nn.relu(layers.conv(8, (3, 3))(x))
    x = nn.relu(layers.conv(16, (3, 3), stride=2)(x))
    return layers.dense(3)(x.mean((1, 2)))


def residual(layers, x):
    """Pre-activation."""
    x = layers.conv(16, (3, 3))(x)
    for _ in range(2):
        x = x + layers.conv(16, (3, 3))(nn.relu(layers.conv(16, (3, 3))(nn.relu(x))))
    return layers.dense(3)(nn.relu(x).mean((1, 2)))


def densely_connected(layers, x):
    x = layers.conv(8, (3, 3))(x)
    for _ in range(2):
        x = jnp.concatenate([x, layers.conv(8, (3, 3))(nn.relu(x))], -1)
    return layers.dense(3)(x.mean((1, 2)))


def unet(layers, x):
    fine = nn.relu(layers.conv(8, (3, 3))(x))
    coarse = nn.relu(layers.conv(16, (3, 3), stride=2)(fine))
    x = jnp.concatenate([fine, nn.relu(layers.transposed(8, (2, 2), 2)(coarse))], -1)
    return layers.conv(3, (1, 1))(x)


def batch_norms(layers, x):
    x = nn.relu(layers.batch_norm(layers.conv(8, (3, 3))(x)))
    return layers.dense(3)(nn.relu(layers.batch_norm(layers.conv(8, (3, 3))(x))).mean((1, 2)))


def group_norms(layers, x):
    x = nn.relu(layers.group_norm(layers.conv(8, (3, 3))(x), 4))
    return layers.dense(3)(x.reshape(len(x), -1))


def text_classifier(layers, tokens):
    x = layers.embed(11, 16)(tokens)
    return layers.dense(3)(nn.relu(layers.dense(16)(x.mean(1))))


def convolutions_over_time(layers, tokens):
    x = layers.embed(11, 16)(tokens)
    return layers.dense(3)(nn.relu(layers.conv(16, (3,))(x)).mean(1))


def transformer(layers, tokens):
    """Scores divided by the number of channels."""
    x = layers.embed(11, 16)(tokens)
    q, k, v = (layers.dense(16)(layers.layer_norm(x)) for _ in range(3))
    x = x + layers.dense(16)(nn.softmax(jnp.einsum("nic,njc->nij", q, k) / 16) @ v)
    x = x + layers.dense(16)(nn.relu(layers.dense(32)(layers.layer_norm(x))))
    return layers.dense(3)(x.mean(1))


def recurrent(layers, x):
    """The same weights at every step."""
    first, again = layers.dense(16), layers.dense(16, use_bias=False)
    state = first(x[:, 0])
    for step in range(1, x.shape[1]):
        state = first(x[:, step]) + again(jax.lax.erf(state))
    return layers.dense(3)(jax.lax.erf(state))


RANDOM = np.random.RandomState(0)
VECTORS, IMAGES, SEQUENCES = (
    (RANDOM.standard_normal((3, *shape)) + 0.3, RANDOM.standard_normal((2, *shape)) + 0.3)
    for shape in ((6,), (6, 6, 2), (4, 5))
)
TOKENS = RANDOM.randint(0, 11, (3, 4)), RANDOM.randint(0, 11, (2, 4))
ARCHITECTURES = {
    **dict.fromkeys((mlp, deep_linear, siren, layer_norms, gated, siamese), VECTORS),
    **dict.fromkeys((lenet, strided_and_pooled, residual, densely_connected, unet, batch_norms, group_norms), IMAGES),
    **dict.fromkeys((text_classifier, convolutions_over_time, transformer), TOKENS),
    recurrent: SEQUENCES,
}


@pytest.mark.parametrize("body", ARCHITECTURES, ids=lambda body: body.__name__)
def test_linen_and_haiku_agree(body):
    x1, x2 = ARCHITECTURES[body]
    with jax.enable_x64(True):
        ours, theirs = (framework.kernel_fn(body, x1)(x1, x2, ("nngp", "ntk")) for framework in (Linen(), Haiku()))
        np.testing.assert_allclose(ours.nngp, theirs.nngp, rtol=1e-12)
        np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-12)


def test_there_are_enough_of_them():
    assert len(ARCHITECTURES) >= 15
