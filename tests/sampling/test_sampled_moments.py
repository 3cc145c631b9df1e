"""Sampled moments are those of brute force over single channels, and of the closed forms where there are any."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import truncnorm

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


def draws(rng, law, std, *shape):
    """Numbers of this standard deviation, as the initialisers of jax.nn draw them."""
    if law == "uniform":
        return rng.uniform(-1, 1, shape) * np.sqrt(3) * std
    numbers = rng.standard_normal(shape)
    if law == "truncated_normal":
        while (outside := np.abs(numbers) > 2).any():
            numbers[outside] = rng.standard_normal(outside.sum())
        numbers /= truncnorm.std(-2, 2)
    return std * numbers


@pytest.mark.parametrize("law", ["normal", "truncated_normal", "uniform"])
def test_an_activation_of_a_depthwise_convolution(law):
    """tanh(sum of v_k relu(g_k)), each channel with a filter v of its own, whose law is seen."""
    rng = np.random.RandomState(7)
    x = rng.randn(2, 3, 4).astype(np.float32)
    s = np.einsum("aic,bjc->aibj", x, x, dtype=np.float64) / 4
    initial = nn.initializers.variance_scaling(4.0, "fan_in", law)

    def init(key, x):
        keys = jax.random.split(key, 3)
        weights = {"w": dense(keys[0], 4, WIDTH), "r": dense(keys[2], WIDTH, 1)}
        return {**weights, "v": initial(keys[1], (2, 1, WIDTH))}

    def apply(p, x):
        h = jax.nn.relu(x @ p["w"])
        numbers = ("NWC", "WIO", "NWC")
        groups = {"feature_group_count": WIDTH}
        h = jax.lax.conv_general_dilated(h, p["v"], (1,), [(1, 0)], dimension_numbers=numbers, **groups)
        return jnp.tanh(h).mean(1) @ p["r"]

    more = infnet.Sampling(points=1024, replicates=8)
    found = infnet.kernel_fn(apply, infnet.infer_priors(init, x), x, on_unsupported=more)(x, get=BOTH)
    count, std = 2**18, np.sqrt(4 / 2)
    g = rng.multivariate_normal(np.zeros(6), s.reshape(6, 6), count).reshape(count, 2, 3)
    v = draws(rng, law, std, count, 2)
    before = np.pad(relu(g), [(0, 0), (0, 0), (1, 0)])
    f = v[:, 0, None, None] * before[..., :-1] + v[:, 1, None, None] * before[..., 1:]
    h, slope = np.tanh(f).mean(-1), 1 - np.tanh(f) ** 2
    in_filter = np.stack([(slope * before[..., k : k + 3]).mean(-1) for k in range(2)], -1)
    later = np.pad(slope, [(0, 0), (0, 0), (0, 1)])[..., 1:]
    in_field = step(g) * (v[:, 1, None, None] * slope + v[:, 0, None, None] * later) / 3
    nngp = h[:, :, None] * h[:, None, :]
    # As the model has them, gradients of a readout of width 8 and of 4 inputs are larger than with unit weights.
    share = np.einsum("nai,nbj,aibj->nab", in_field, in_field, 4 * s) + np.einsum("nak,nbk->nab", in_filter, in_filter)
    for estimate, m in zip(found, (nngp, WIDTH * nngp + share), strict=True):
        assert_within_errors(estimate, m.mean(0), m.std(0) / np.sqrt(count), largest=0.03)


def test_a_random_scale():
    """relu(gamma * g) with gamma uniform on (0, 2), which each channel draws for itself."""
    x, s = two_examples(8)

    def init(key, x):
        keys = jax.random.split(key, 3)
        weights = {"w": dense(keys[0], 5, WIDTH), "r": dense(keys[2], WIDTH, 1)}
        return {**weights, "scale": jax.random.uniform(keys[1], (WIDTH,), maxval=2.0)}

    def apply(p, x):
        return jax.nn.relu(p["scale"] * (x @ p["w"])) @ p["r"]

    found = infnet.kernel_fn(apply, infnet.infer_priors(init, x), x, on_unsupported=SAMPLING)(x, get=BOTH)
    # relu(gamma g) = gamma relu(g), and E gamma^2 = 4/3.
    k, with_tangents = after_relu(s, 5 * s)
    for estimate, exact in zip(found, (4 / 3 * k, WIDTH * 4 / 3 * k + 4 / 3 * (with_tangents - k) + k), strict=True):
        assert_within_errors(estimate, exact, largest=0.03)


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
    """Linen's, as it is; its heads count as infinitely many. `masked`: with this in place of scores of later keys."""

    masked: float | None = None

    @nn.compact
    def __call__(self, x):
        def attend(query, key, value, *, mask, **options):
            if self.masked is None:
                return nn.dot_product_attention(query, key, value, mask=mask)
            scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
            scores = jnp.where(np.tri(x.shape[1], dtype=bool), scores, self.masked)
            return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)

        normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        options = {"kernel_init": normal, "use_bias": False}
        x = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8, attention_fn=attend, **options)(x)
        return nn.Dense(1, **options)(x.mean(1))


@pytest.mark.parametrize(
    ("tokens", "count", "masked"), [(2, 2**17, None), (5, 2**13, None), (3, 2**15, -1e9), (3, 2**15, -np.inf)]
)
def test_softmax_attention_over_the_root_of_a_heads_size(tokens, count, masked):
    """softmax(q k^T / sqrt(d)) v, whose scores are Gaussian for each head (Hron et al. 2020, arXiv:2006.10540)."""
    rng = np.random.RandomState(6)
    x = rng.randn(2, tokens, 5).astype(np.float32)
    model = Attention(masked)
    found = infnet_flax.kernel_fn(model, x, on_unsupported=SAMPLING, parameterization="ntk")(x, get=BOTH)
    # Queries, keys and values: s, and the tangent kernels too. Scores over (example, query, key): s times s.
    s = np.einsum("aic,bjc->aibj", x, x, dtype=np.float64) / 5
    scores = np.einsum("aibj,akbl->aikbjl", s, s)
    n = 2 * tokens**2
    a = rng.multivariate_normal(np.zeros(n), scores.reshape(n, n), count).reshape(-1, 2, tokens, tokens)
    p = np.exp(a) if masked is None else np.exp(a) * np.tri(tokens)
    p /= p.sum(-1, keepdims=True)
    slope = p[..., :, None] * (np.eye(tokens) - p[..., None, :])  # of the weight of key k in the score of key l
    nngp = np.einsum("naik,nbjm,akbm->nab", p, p, s, optimize=True) / tokens**2
    in_scores = np.einsum("naikl,nbjmo,ailbjo,akbm->nab", slope, slope, 2 * scores, s, optimize=True)
    ntk = in_scores / tokens**2 + 3 * nngp  # and of values, of the output and of the readout
    for estimate, m in zip(found, (nngp, ntk), strict=True):
        assert_within_errors(estimate, m.mean(0), m.std(0) / np.sqrt(len(m)))


def test_the_weights_of_all_keys_are_computed_from_the_scores_of_a_query():
    """One integral over 2 x 8 scores for each pair of queries, and not for each of the 8 x 8 pairs of weights."""
    x = np.zeros((2, 8, 5), np.float32)
    kernel_fn = infnet_flax.kernel_fn(Attention(), x, on_unsupported=SAMPLING)
    (step,) = [s for s in kernel_fn.computation.plan(("ntk",), (1, 2)).steps if s.sampled]
    assert step.request.layout.shape == (8,) * 4
    assert step.numbers < 4 * 8**6  # ten times as many, if each pair of weights had scores of its own
