"""Sampled moments are those of brute force over single channels, and of the closed forms where there are any."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import stdtrit

import infnet
import infnet.sampling.step
import infnet_flax
from infnet.errors import Where
from infnet.errors.functions import NON_GAUSSIAN_ARGUMENT
from infnet.nodes import Elementwise, Product
from infnet.plan import Ask, AskMean

SAMPLING = infnet.Sampling(points=256, replicates=8)
BOTH = ("nngp", "ntk")
WIDTH = 8


def assert_within_errors(found, exact, error=0.0, *, largest=0.02):
    """Estimates are small of error, and off by no more than that allows: one in 10^4 entries would fail."""
    scale = np.sqrt(np.mean(np.square(exact)))
    distance = np.hypot(found.standard_error, error)
    assert np.max(distance) < largest * scale
    assert np.all(np.abs(found.mean - exact) <= stdtrit(found.n_samples - 1, 1 - 5e-5) * distance + 1e-5 * scale)


# Against brute force: every channel of every layer is drawn, whatever the rules


def samples(covariance, count=2**19, seed=0):
    """Channels of a Gaussian field over two examples, `(count, 2)`."""
    return np.random.default_rng(seed).multivariate_normal(np.zeros(2), covariance, count, method="cholesky")


def two_examples(seed=0):
    x = np.random.RandomState(seed).randn(2, 5).astype(np.float32)
    return x, (x @ x.T / 5).astype(np.float64)


def dense(key, *shape):
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


def kernels_of(apply, x, **options):
    """Of weights w (input), v and u, and a readout r."""

    def init(key, x):
        keys = jax.random.split(key, 4)
        shapes = {"w": (x.shape[1], WIDTH), "v": (WIDTH, WIDTH), "u": (WIDTH, WIDTH), "r": (WIDTH, 1)}
        return {name: dense(k, *shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    options = {"on_unsupported": SAMPLING, "parameterization": "ntk", "get": BOTH, **options}
    get = options.pop("get")
    return infnet.kernel_fn(apply, infnet.infer_priors(init, x), x, **options)(x, get=get)


def by_brute_force(function, slopes, covariances, tangents):
    """Kernels behind the readout, of channels `function(*fields)` with derivatives `slopes(*fields)`.

    The standard errors are those of the brute force.
    """
    fields = [samples(c, seed=k) for k, c in enumerate(covariances)]
    h, along = function(*fields), slopes(*fields)
    s = h[:, :, None] * h[:, None, :]
    t = sum(d[:, :, None] * d[:, None, :] * tangent for d, tangent in zip(along, tangents, strict=True))
    return [(m.mean(0), m.std(0) / np.sqrt(len(m))) for m in (s, s + t)]


def relu(z):
    return np.maximum(z, 0)


def step(z):
    return (z > 0).astype(float)


def after_relu(s, t):
    """Covariance and tangent kernel of a dense layer behind relu; Cho & Saul 2009, arXiv:1112.3712, eqs. 5 and 6."""
    norm = np.sqrt(np.outer(np.diag(s), np.diag(s)))
    angle = np.arccos(np.clip(s / norm, -1, 1))
    k = norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return k, k + (np.pi - angle) / (2 * np.pi) * t


def test_a_rectified_sum():
    """relu(relu(g) + f): two independent fields."""
    x, s1 = two_examples()
    s2, t2 = after_relu(s1, s1)

    def apply(p, x):
        h = jax.nn.relu(x @ p["w"])
        return jax.nn.relu(h + h @ p["v"]) @ p["r"]

    found = kernels_of(apply, x)
    exact = by_brute_force(
        lambda g, f: relu(relu(g) + f),
        lambda g, f: (step(relu(g) + f) * step(g), step(relu(g) + f)),
        (s1, s2),
        (s1, t2),
    )
    for estimate, (mean, error) in zip(found, exact, strict=True):
        assert_within_errors(estimate, mean, error)
    np.testing.assert_array_equal(found.ntk.mean, found.ntk.mean.T)


def test_products_of_dependent_factors():
    """sigmoid(g) * relu(g + f), as in the gates of recurrent networks."""
    x, s1 = two_examples(1)
    s2, t2 = after_relu(s1, s1)

    def apply(p, x):
        g = x @ p["w"]
        f = jax.nn.relu(g) @ p["v"]
        return (jax.nn.sigmoid(g) * jax.nn.relu(g + f)) @ p["r"]

    def gate(z):
        return 1 / (1 + np.exp(-z))

    found = kernels_of(apply, x)
    exact = by_brute_force(
        lambda g, f: gate(g) * relu(g + f),
        lambda g, f: (gate(g) * (1 - gate(g)) * relu(g + f) + gate(g) * step(g + f), gate(g) * step(g + f)),
        (s1, s2),
        (s1, t2),
    )
    for estimate, (mean, error) in zip(found, exact, strict=True):
        assert_within_errors(estimate, mean, error)


def test_an_activation_without_a_closed_form():
    """A kink that no series follows, abs(tanh(z))."""
    x, s1 = two_examples(2)
    found = kernels_of(lambda p, x: jnp.abs(jnp.tanh(x @ p["w"])) @ p["r"], x)
    exact = by_brute_force(lambda g: np.abs(np.tanh(g)), lambda g: [np.sign(g) * (1 - np.tanh(g) ** 2)], (s1,), (s1,))
    for estimate, (mean, error) in zip(found, exact, strict=True):
        assert_within_errors(estimate, mean, error)


def test_a_series_that_is_too_slow_for_the_examples():
    """tanh at variances where its series does not converge is sampled, from then on; and not before."""
    x, s1 = two_examples(2)
    x, s1 = 6 * x, 36 * s1

    def init(key, x):
        return {"w": dense(key, 5, WIDTH), "r": dense(key, WIDTH, 1)}

    def apply(p, x):
        return jnp.tanh(x @ p["w"]) @ p["r"]

    priors = infnet.infer_priors(init, x)
    kernel_fn = infnet.kernel_fn(apply, priors, x / 20, on_unsupported=SAMPLING, parameterization="ntk")
    np.testing.assert_array_equal(kernel_fn(x / 20, get="ntk").standard_error, 0)
    found = kernel_fn(x, get=BOTH)
    exact = by_brute_force(np.tanh, lambda g: [1 - np.tanh(g) ** 2], (s1,), (s1,))
    for estimate, (mean, error) in zip(found, exact, strict=True):
        assert_within_errors(estimate, mean, error, largest=0.03)
    assert np.all(found.ntk.standard_error > 0)


def test_two_activations_of_one_field():
    """Their joint moment, tanh with relu, has no closed form."""
    x, s1 = two_examples(3)

    def apply(p, x):
        g = x @ p["w"]
        return (jnp.tanh(g) + jax.nn.relu(g)) @ p["r"]

    found = kernels_of(apply, x, tol=1e-4)
    exact = by_brute_force(lambda g: np.tanh(g) + relu(g), lambda g: [1 - np.tanh(g) ** 2 + step(g)], (s1,), (s1,))
    for estimate, (mean, error) in zip(found, exact, strict=True):
        assert_within_errors(estimate, mean, error)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_max_pooling(padding):
    """Maxima over windows of three positions of a layer that acts on each position, from every other one."""
    rng = np.random.RandomState(4)
    x = rng.randn(2, 5, 3).astype(np.float32)
    s = np.einsum("aic,bjc->aibj", x, x, dtype=np.float64).reshape(10, 10) / 3

    def init(key, x):
        keys = jax.random.split(key)
        return {"w": dense(keys[0], 3, WIDTH), "r": dense(keys[1], WIDTH, 1)}

    def apply(p, x):
        h = nn.max_pool(jax.nn.relu(x @ p["w"]), (3,), (2,), padding)
        return h.mean(1) @ p["r"]

    kernel_fn = infnet.kernel_fn(
        apply, infnet.infer_priors(init, x), x, on_unsupported=SAMPLING, parameterization="ntk"
    )
    found = kernel_fn(x, get=BOTH)
    g = rng.multivariate_normal(np.zeros(10), s, 2**17).reshape(-1, 2, 5)
    windows = [(0, 1, 2), (2, 3, 4)] if padding == "VALID" else [(0, 1), (1, 2, 3), (3, 4)]
    h, slopes = 0, np.zeros_like(g)
    for window in windows:
        part = relu(g[:, :, window])
        h = h + part.max(-1) / len(windows)
        first = np.eye(5)[np.array(window)[part.argmax(-1)]]
        slopes += first * step(g) / len(windows)
    exact = h[:, :, None] * h[:, None, :]
    with_tangents = exact + np.einsum("nai,nbj,aibj->nab", slopes, slopes, s.reshape(2, 5, 2, 5))
    for estimate, m in zip(found, (exact, with_tangents), strict=True):
        assert_within_errors(estimate, m.mean(0), m.std(0) / np.sqrt(len(m)), largest=0.03)


def test_a_trained_scale_of_a_factor():
    """(gamma * g) * f: its share of the NTK is E[g f g' f'], without sampling S S'."""
    x, s = two_examples(5)

    def init(key, x):
        keys = jax.random.split(key, 3)
        weights = {name: dense(k, 5, WIDTH) for name, k in zip("wv", keys, strict=False)}
        return {**weights, "scale": jnp.ones(WIDTH), "r": dense(keys[2], WIDTH, 1)}

    def apply(p, x):
        return ((p["scale"] * (x @ p["w"])) * (x @ p["v"])) @ p["r"]

    priors = infnet.infer_priors(init, x)
    found = infnet.kernel_fn(apply, priors, x, on_unsupported=SAMPLING)(x, get=BOTH)
    # In as_model units a readout of width 8 has gradients of this size; weights of 5 inputs have gradients 5 times T.
    share = s * s
    assert_within_errors(found.nngp, share, largest=0.05)
    assert_within_errors(found.ntk, WIDTH * share + 2 * 5 * share + share, largest=0.05)


# Against closed forms


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(WIDTH, (3, 3))(x))
        h = nn.avg_pool(h, (2, 2), (2, 2))
        h = nn.relu(nn.LayerNorm(bias_init=nn.initializers.normal(0.3))(nn.Conv(WIDTH, (3, 3))(h)))
        return nn.Dense(1)((nn.Conv(WIDTH, (1, 1))(h) + h).mean((1, 2)))


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True, bias_init=nn.initializers.constant(0.5))
        h = nn.Dense(WIDTH)(nn.relu(norm(nn.Dense(WIDTH)(x))))
        return nn.Dense(1)(nn.sigmoid(h) * nn.Dense(WIDTH)(h + 1.0))


@pytest.mark.parametrize(("model", "shape"), [(Convolutions(), (2, 4, 4, 3)), (Gated(), (3, 5))])
def test_what_has_a_closed_form_agrees_with_it(model, shape, monkeypatch):
    """Trained scales and offsets, means, positions in every layout: if every nonlinearity is sampled."""
    x = np.random.RandomState(0).randn(*shape).astype(np.float32)
    options = {"tol": 1e-5}
    exact = infnet_flax.kernel_fn(model, x, **options)(x, get=BOTH)
    closed_form, sampled = infnet.sampling.step.rule, []

    def refusing(trace, request):
        nodes = (request.u, getattr(request, "v", request.u)) if isinstance(request, Ask | AskMean) else ()
        independent = isinstance(request, Ask) and request.independent
        if any(isinstance(node, Elementwise | Product) for node in nodes) and not independent:
            sampled.append(request)
            raise NON_GAUSSIAN_ARGUMENT.at(Where(), function="", source="", place="")
        return closed_form(trace, request)

    monkeypatch.setattr(infnet.sampling.step, "rule", refusing)
    found = infnet_flax.kernel_fn(model, x, on_unsupported=SAMPLING, **options)(x, get=BOTH)
    assert sampled
    for estimate, kernel in zip(found, exact, strict=True):
        assert_within_errors(estimate, np.asarray(kernel), largest=0.03)


class Attention(nn.Module):
    """Linen's, as it is; its heads count as infinitely many."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        options = {"kernel_init": normal, "use_bias": False}
        x = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8, **options)(x)
        return nn.Dense(1, **options)(x.mean(1))


def test_softmax_attention_over_the_root_of_a_heads_size():
    """softmax(q k^T / sqrt(d)) v, whose scores are Gaussian for each head (Hron et al. 2020, arXiv:2006.10540)."""
    rng = np.random.RandomState(6)
    x = rng.randn(2, 2, 5).astype(np.float32)
    kernel_fn = infnet_flax.kernel_fn(Attention(), x, on_unsupported=SAMPLING, parameterization="ntk")
    found = kernel_fn(x, get=BOTH)
    # Queries, keys and values: s, and the tangent kernels too. Scores over (example, query, key): s times s.
    s = np.einsum("aic,bjc->aibj", x, x, dtype=np.float64) / 5
    scores = np.einsum("aibj,akbl->aikbjl", s, s)
    a = rng.multivariate_normal(np.zeros(8), scores.reshape(8, 8), 2**17).reshape(-1, 2, 2, 2)
    p = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    slope = p[..., :, None] * (np.eye(2) - p[..., None, :])  # of the weight of key k in the score of key l
    of_weights = np.einsum("naik,nbjm->naikbjm", p, p)
    along = np.einsum("naikl,nbjmo,ailbjo->naikbjm", slope, slope, 2 * scores)
    nngp = np.einsum("naikbjm,akbm->nab", of_weights, s) / 4
    ntk = np.einsum("naikbjm,akbm->nab", along, s) / 4 + 3 * nngp  # and of values, of the output and of the readout
    for estimate, m in zip(found, (nngp, ntk), strict=True):
        assert_within_errors(estimate, m.mean(0), m.std(0) / np.sqrt(len(m)))
