"""Every refusal names the operation, the module, the user's own line, the reason and the remedy."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import infnet
import infnet_flax
from infnet.errors import BatchAxisError, InputError, NonGaussianError, PriorError, UnsupportedError

IMAGE, VECTOR, SEQUENCE = jnp.zeros((2, 6, 6, 3)), jnp.zeros((2, 5)), jnp.zeros((2, 6, 5))


class MaxPool(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.max_pool(x, (2, 2))  # here
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class TrainingBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = x - x.mean(axis=0)  # here
        return nn.Dense(2)(nn.relu(x))


class DependsOnBatchSize(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        return nn.Dense(2)(nn.tanh(x) if x.shape[0] > 2 else nn.relu(x))  # here


class BiasTimesInput(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x) + x[:, :1] * self.param("slope", nn.initializers.normal(1.0), (8,))  # here
        return nn.Dense(2)(nn.relu(x))


class Softmax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softmax(nn.Dense(8)(x))  # here


class SumOfRelus(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x)) + nn.relu(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))  # here


class TokenMixing(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = jnp.swapaxes(x, 1, 2)
        x = nn.relu(nn.Dense(6)(x))  # here
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class Depthwise(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (1, 1))(x)
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))  # here
        return nn.Dense(2)(x.mean(axis=(1, 2)))


class TransposedReuse(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (5, 5))
        x = nn.relu(x @ w)
        return x @ w.T  # here


class Quotient(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dense(8)(x) / nn.Dense(8)(x))  # here


class KinkedTanh(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.abs(nn.tanh(nn.Dense(8)(x))))  # here


class HalfSine(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        return nn.Dense(2)(jnp.where(x > 0, jnp.sin(x), x))  # here


class WeightWithMean(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, kernel_init=nn.initializers.constant(0.1))(x)  # here


class ResidualFromInput(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.Dense(5)(x)
        return nn.Dense(2)(nn.relu(x))  # here


class SharedGate(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dense(8)(x) + nn.Dense(1)(x))  # here


class Rounded(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x).astype(int).astype(jnp.float32)  # here
        return nn.Dense(2)(x)


class BatchSizeInside(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) / x.shape[0]  # here


REFUSED = [
    (SharedGate, VECTOR, UnsupportedError, "add", "same number of channels"),
    (Rounded, VECTOR, UnsupportedError, "convert_element_type", "closed form"),
    (BatchSizeInside, VECTOR, BatchAxisError, "div", "batch size"),
    (MaxPool, IMAGE, UnsupportedError, "reduce_window_max", "avg_pool"),
    (TrainingBatchNorm, VECTOR, BatchAxisError, "reduce_sum", "running statistics"),
    (DependsOnBatchSize, VECTOR, BatchAxisError, "custom_jvp_call", "out of the control flow"),
    (BiasTimesInput, VECTOR, UnsupportedError, "add", "product of matrices"),
    (Softmax, VECTOR, UnsupportedError, "reduce_max", "softmax"),
    (SumOfRelus, VECTOR, NonGaussianError, "relu", "Dense or Conv layer between"),
    (TokenMixing, SEQUENCE, UnsupportedError, "dot_general", "sampling finite networks"),
    (Depthwise, IMAGE, NonGaussianError, "relu", "Dense or Conv layer between"),
    (TransposedReuse, VECTOR, UnsupportedError, "dot_general", "a parameter of its own"),
    (Quotient, VECTOR, UnsupportedError, "div", "sampling finite networks"),
    (KinkedTanh, VECTOR, UnsupportedError, "tanh", "closed form"),
    (HalfSine, VECTOR, UnsupportedError, "sin", "supported are"),
    (WeightWithMean, VECTOR, UnsupportedError, "dot_general", "mean zero"),
    (ResidualFromInput, VECTOR, UnsupportedError, "relu", "Dense or Conv layer between"),
]


def line_marked(module_class):
    lines, first = inspect.getsourcelines(module_class)
    return first + next(i for i, line in enumerate(lines) if "# here" in line)


@pytest.mark.parametrize(
    ("module_class", "x", "kind", "operation", "remedy"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_refusal_says_what_where_why_and_what_to_do(module_class, x, kind, operation, remedy):
    with pytest.raises(kind) as caught:
        infnet_flax.kernel_fn(module_class(), x)(x)
    error = caught.value
    assert type(error) is kind
    assert operation in error.what
    assert error.where.module.startswith(module_class.__name__)
    assert re.search(rf"test_refusals\.py:{line_marked(module_class)}\b", error.where.line), error.where
    assert remedy in error.remedy
    assert len(error.why) > 20
    assert all(part in str(error) for part in (error.what, str(error.where), error.why, error.remedy))


def test_linen_batch_norm_in_training_mode_names_the_module():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x)))

    with pytest.raises(BatchAxisError, match="BatchNorm") as caught:
        infnet_flax.kernel_fn(Model(), VECTOR)
    assert "Model/BatchNorm_0" in caught.value.where.module
    assert "test_refusals.py" in caught.value.where.line


def test_unknown_initialiser_names_the_parameter_and_the_override():
    def spectral(key, shape, dtype=jnp.float32):
        return jnp.sort(jax.random.normal(key, shape, dtype), axis=0)

    model = nn.Dense(3, kernel_init=spectral)
    with pytest.raises(PriorError, match=r"(?s)params/kernel.*override_priors"):
        infnet_flax.kernel_fn(model, VECTOR)
    k = infnet_flax.kernel_fn(model, VECTOR, priors={"kernel": infnet.Prior(0.0, 1.0)})
    assert k(VECTOR + 1, get="nngp").tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_wrong_input_rank_says_which_shape_was_expected():
    k = infnet_flax.kernel_fn(nn.Dense(3), VECTOR)
    for wrong in (jnp.zeros(5), jnp.zeros((2, 6)), jnp.zeros((2, 3, 5))):
        with pytest.raises(InputError, match=r"traced for \('?n'?, 5\)"):
            k(wrong)
    with pytest.raises(InputError, match="x2 has shape"):
        k(VECTOR, jnp.zeros((3, 4)))


@pytest.mark.parametrize("get", ["nngpp", "NTK", (), ("ntk", "ntk"), 3, ["cov1"]])
def test_wrong_get_lists_what_there_is(get):
    k = infnet_flax.kernel_fn(nn.Dense(3), VECTOR)
    with pytest.raises(InputError, match='"nngp", "ntk"'):
        k(VECTOR, get=get)


def test_unknown_keywords_and_values_are_errors():
    with pytest.raises(TypeError, match="diagonal_spatail"):
        infnet_flax.kernel_fn(nn.Dense(3), VECTOR, diagonal_spatail=True)
    with pytest.raises(InputError, match="as_model"):
        infnet_flax.kernel_fn(nn.Dense(3), VECTOR, parameterization="standard")
    with pytest.raises(InputError, match="no parameter matches"):
        infnet_flax.kernel_fn(nn.Dense(3), VECTOR, trainable={"Dense_7/*": False})


def test_a_model_that_fails_on_its_input_is_an_explained_error():
    with pytest.raises(InputError, match="cannot be traced"):
        infnet.kernel_fn(
            lambda p, x: x.reshape(4, -1) @ p,
            infnet.Prior(0.0, 1.0, shape=(5, 1), dtype=jnp.float32),
            VECTOR,
        )
