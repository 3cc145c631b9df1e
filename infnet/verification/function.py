"""`verify`: a kernel function against random networks of the model, at growing widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import BY_PARAM, example_args, positive
from infnet.errors import InputError
from infnet.monte_carlo import Estimate
from infnet.priors import infer_priors, path_name
from infnet.verification.first_layer import FirstWeight, not_gaussian
from infnet.verification.networks import KINDS, Functions, Networks
from infnet.verification.report import Comparison, Verification
from infnet.verification.structure import has_heads, hidden_widths
from infnet.verification.trend import counted_for, detectable, fit, threshold

PyTree = Any
# Networks of each width at first, whose variance says how many are needed; and how many times as many at a time.
FEWEST, GROWTH = 200, 8


def verify(
    kernel_fn: Any,
    init_fn: Callable[..., PyTree],
    apply_fn: Callable[..., PyTree],
    x: PyTree,
    key: jax.Array,
    *,
    widen: Callable[[int], Sequence[Any]] | None = None,
    multipliers: Sequence[int] = (1, 2, 4),
    resolution: float = 0.05,
    n_samples: int = 10_000,
    level: float = 1e-3,
    gaussian_first_layer: bool = False,
    progress: bool = False,
    remarks: Sequence[str] = (),
) -> Verification:
    """Compare a kernel function with the mean kernels of random networks of the model, at growing widths.

    The relative deviation of the NNGP, of the NTK and of the share of every parameter in it is fitted as δ + c / width
    in every entry, and δ is compared with its standard error (`infnet/verification/trend.py` has the formulas and their
    sources). Shares are compared one by one because in the NTK as a whole those of biases and of first layers are
    themselves of the order of 1 / width, where a wrong one would not be seen. The model is called as any function is;
    nothing of how the kernel is computed enters, but for the laws of parameters if `gaussian_first_layer`, or in the
    "ntk" parameterization.

    The report has passed if no entry deviates by more than chance allows, with a probability of false alarms of at most
    `level`, and a deviation of 10 % in any entry would have been found. It says which one would have been.

    Args:
        kernel_fn: a `KernelFn` of the model.
        init_fn: `(key, *inputs) -> params`.
        apply_fn: `(params, *inputs) -> outputs`, with a leading batch axis; what `kernel_fn` picks of the outputs
            (`output=`) is picked here too.
        x: a few examples, an input or a tuple of inputs. Two to five that are not alike will do: what is verified is
            the rule, and time grows with their number.
        key: of the random networks.
        widen: `multiplier -> (init_fn, apply_fn)`, or `(init_fn, apply_fn, kernel_fn)`: the model with all hidden
            widths multiplied, and its kernel function, which by default is made as `kernel_fn` was. Some of the widths
            may be multiplied by the square of the multiplier: where numbers and sizes of heads grow, the number of
            features is their product. Without it, networks of the model's own width are drawn, whose deviation from
            the limit is allowed for: only mistakes that are larger can be found.
        multipliers: of the width. Where they are too narrow for a deviation of c / width, more is allowed for.
        resolution: the relative deviation that is to be found; it decides how many networks are drawn.
        n_samples: at most so many networks, of the smallest multiplier. Of others there are fewer, in proportion to
            1 / multiplier, as their kernels vary less.
        level: the probability that a right kernel fails, at most.
        gaussian_first_layer: draw the weights that meet the inputs from normal laws of the same mean and standard
            deviation. Others (such as truncated normal ones, Flax's and Haiku's default) make networks of any width
            deviate from the limit if there are few inputs; otherwise the report says by how much, and allows for it.
        progress: whether to show progress bars, with tqdm.
        remarks: what else the report should say.

    Raises:
        InputError: an argument is of the wrong kind; `widen` does not multiply all hidden widths, or changes the
            kernel's shape; the model has outputs whose kernels cannot be sampled.
    """
    _check(kernel_fn, multipliers, n_samples, level)
    goal = positive("resolution", resolution)
    given = Functions(init_fn, _picking(kernel_fn, apply_fn), kernel_fn)
    multipliers = tuple(multipliers) if widen is not None else (1,)
    models = [given if m == 1 or widen is None else _widened(widen, m, given, x) for m in multipliers]
    ratio = _ratio(kernel_fn, {m: model.kernel_fn for m, model in zip(multipliers, models, strict=True) if m > 1})
    non_gaussian = not_gaussian(given, x)
    normal = {weight.leaf: weight.prior for weight in non_gaussian} if gaussian_first_layer else {}
    networks = [Networks(model, x, jax.random.fold_in(key, k), normal) for k, model in enumerate(models)]
    kernels = [model.kernel_fn(x, None, KINDS) for model in models]
    effect = 0.0 if gaussian_first_layer else max((weight.effect for weight in non_gaussian), default=0.0)
    sampled = _sampled(multipliers, networks, kernels, Allowed(effect, ratio), Goal(goal, n_samples, level, progress))
    remarks = [*remarks, *_remarks(models, non_gaussian, gaussian_first_layer, sampled.allowance)]
    return Verification(
        comparisons=tuple(sampled.comparisons),
        multipliers=tuple(map(float, multipliers)),
        n_samples=tuple(of_width.count for of_width in networks),
        level=level,
        threshold=sampled.threshold,
        resolution=sampled.noise + sampled.allowance,
        remarks=tuple(remarks),
        finite=sampled.finite,
    )


class Goal(NamedTuple):
    """What is asked for; see `verify`."""

    resolution: float
    n_samples: int
    level: float
    progress: bool


class Allowed(NamedTuple):
    """What deviations are allowed for besides those of a product of layers whose widths grow as the multiplier.

    Attributes:
        effect: of first layers that are not Gaussian, relative.
        ratio: of sums of 1 / width; see `fit`.
    """

    effect: float
    ratio: float


class Sampled(NamedTuple):
    """What was found.

    Attributes:
        comparisons: of all kernels that are finite.
        finite: whether all are.
        threshold: of z-scores.
        noise, allowance: the parts of the deviation that would have been found, as of `detectable`.
    """

    comparisons: list[Comparison]
    finite: bool
    threshold: float
    noise: float
    allowance: float


def _sampled(
    multipliers: Sequence[int], networks: Sequence[Networks], kernels: Sequence[PyTree], allowed: Allowed, goal: Goal
) -> Sampled:
    """Draw networks until the goal is reached, and compare them.

    Args:
        multipliers: of the width.
        networks, kernels: of each.
        allowed: says what deviations are.
        goal: says how many networks there are.
    """
    count = min(FEWEST, goal.n_samples)
    while True:
        for m, of_width in zip(multipliers, networks, strict=True):
            number = max(min(FEWEST, goal.n_samples), round(count * multipliers[0] / m))
            of_width.draw(number, f"{m} x the width", goal.progress)
        comparisons, finite = _compared(multipliers, networks, kernels, allowed, goal.level)
        entries = sum(one.trend.intercept.size for one in comparisons)
        limit = threshold(goal.level, max(entries, 1), min(of_width.count for of_width in networks))
        noise, allowance = detectable([one.trend for one in comparisons], limit)
        wanted = max(goal.resolution - allowance, goal.resolution / 2)
        if not finite or noise <= wanted or count == goal.n_samples:
            return Sampled(comparisons, finite, limit, noise, allowance)
        count = min(goal.n_samples, int(count * min(max((noise / wanted) ** 2, 1.2), GROWTH)))


def _check(kernel_fn: Any, multipliers: Any, n_samples: Any, level: Any) -> None:
    if not all(hasattr(kernel_fn, name) for name in ("computation", "weights", "with_model")):
        raise InputError(f"kernel_fn must be an infnet.KernelFn, as of stax kernel_fn.at(x), not {kernel_fn!r}")
    if kernel_fn.model.inputs.batch_axis != 0:
        raise InputError("only models whose examples are on axis 0 of inputs and outputs are verified")
    numbers = list(multipliers) if isinstance(multipliers, Sequence) else []
    if not numbers or any(isinstance(m, bool) or not isinstance(m, int) or m < 1 for m in numbers):
        raise InputError(f"multipliers must be positive integers, not {multipliers!r}")
    if sorted(set(numbers)) != numbers:
        raise InputError(f"multipliers must increase, not {multipliers!r}")
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < FEWEST:
        raise InputError(
            f"n_samples must be at least {FEWEST}, not {n_samples!r}: the standard errors of fewer are not known"
        )
    if isinstance(level, bool) or not 0 < level < 1:
        raise InputError(f"level must be a probability, not {level!r}")


def _picking(kernel_fn: Any, apply_fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        return kernel_fn.model.picked(apply_fn(params, *inputs))

    return apply


def _widened(widen: Callable[[int], Sequence[Any]], multiplier: int, given: Functions, x: PyTree) -> Functions:
    """The model of another width, with its kernel function."""
    made = widen(multiplier)
    if not isinstance(made, Sequence) or len(made) not in (2, 3):
        raise InputError(f"widen must return (init_fn, apply_fn) or (init_fn, apply_fn, kernel_fn), not {made!r}")
    init, apply = made[:2]
    kernel_fn = made[2] if len(made) == 3 else given.kernel_fn.with_model(apply, infer_priors(init, *example_args(x)))
    return Functions(init, _picking(kernel_fn, apply), kernel_fn)


def check_wider(kernel_fn: Any, wider: Any, multiplier: int) -> list[int]:
    """Raise unless all hidden widths of one kernel function are multiplied in another one.

    Returns:
        of each hidden width, whether it is multiplied by the multiplier (1) or by its square (2).

    Raises:
        InputError: a hidden width is not, all are multiplied by the square, or there is another number of them.
    """
    narrow, wide = hidden_widths(kernel_fn), hidden_widths(wider)
    if len(narrow) != len(wide):
        raise InputError(f"a wider model must have the same {len(narrow)} hidden layers, but it has {len(wide)}")
    factors = {multiplier: 1, multiplier**2: 2}
    for (width, module), (other, _) in zip(narrow, wide, strict=True):
        if other not in (width * factor for factor in factors):
            raise InputError(
                f"all hidden widths must be multiplied by {multiplier}, but what {module or 'a layer'} takes for "
                f"infinitely many channels or heads goes from {width} to {other}: {_how(kernel_fn)}"
            )
    powers = [factors[other // width] for (width, _), (other, _) in zip(narrow, wide, strict=True)]
    if powers and 1 not in powers:
        raise InputError(
            f"hidden widths must be multiplied by {multiplier}, but all are by its square: {_how(kernel_fn)}"
        )
    return powers


def _how(kernel_fn: Any) -> str:
    if has_heads(kernel_fn):
        return (
            "the numbers of heads and their sizes must both be, and numbers of features by its square: "
            "widen=lambda m: Model(width=64 * m**2, num_heads=8 * m)"
        )
    return "say how the model is made wider, widen=lambda multiplier: ..., or make its widths fields"


def _ratio(kernel_fn: Any, wider: Mapping[int, Any]) -> float:
    """Of the hidden widths that are multiplied by the square, and of the others, the ratio of sums of 1 / width.

    Args:
        kernel_fn: of the given model.
        wider: those of wider ones, by multiplier.

    Raises:
        InputError: hidden widths are not multiplied, or not alike by all multipliers.
    """
    powers = {m: check_wider(kernel_fn, other, m) for m, other in wider.items()}
    if not powers:
        return 0.0
    widths = hidden_widths(kernel_fn)
    sums = {1: 0.0, 2: 0.0}
    for (width, module), *of_width in zip(widths, *powers.values(), strict=True):
        if len({*of_width}) > 1:
            factors = ", ".join(f"by {m**power} of {m}" for m, power in zip(powers, of_width, strict=True))
            raise InputError(
                f"every hidden width must be multiplied by the multiplier, or every time by its square, but what "
                f"{module or 'a layer'} takes for infinitely many channels or heads is multiplied {factors}"
            )
        sums[of_width[0]] += 1 / width
    return sums[2] / sums[1] if sums[2] else 0.0


def _compared(
    multipliers: Sequence[int], networks: Sequence[Networks], kernels: Sequence[PyTree], allowed: Allowed, level: float
) -> tuple[list[Comparison], bool]:
    """The comparison of every kernel of every output, and whether all is finite."""
    own_errors = [jax.tree.leaves(_own_errors(tree, level)) for tree in kernels]
    kernels = [_means(tree) for tree in kernels]
    # Half of the digits: what an NTK of near-duplicates keeps.
    rounding = max(float(jnp.finfo(a.dtype).eps) ** 0.5 for a in jax.tree.leaves((kernels, networks[0].moments)))
    kernels = [jax.tree.map(lambda a: np.asarray(a, np.float64), tree) for tree in kernels]
    moments = [of_width.means_and_variances for of_width in networks]
    counts = [of_width.count for of_width in networks]
    trees: list[Any] = [jax.tree.structure(tree) for tree in (kernels[0], moments[0][0])]
    if trees[0] != trees[1]:
        raise InputError(f"the kernels are {trees[0]}, but those of random networks {trees[1]}: leave out cross=True")
    found, finite = [], True
    with_paths, _ = jax.tree_util.tree_flatten_with_path(kernels[0])
    for k, (path, _) in enumerate(with_paths):
        kernel, mean, variance = (
            [jax.tree.leaves(tree)[k] for tree in trees]
            for trees in (kernels, [m for m, _ in moments], [v for _, v in moments])
        )
        if not all(np.isfinite(a).all() for a in (*kernel, *mean, *variance)):
            finite = False
            continue
        name = _name(path)
        if not any(np.any(a) for a in (*kernel, *mean)):
            continue  # of a parameter that is not trained
        scales = [_scale(a, b) for a, b in zip(kernel, _wholes(path, k, kernels, networks), strict=True)]
        pairs = list(zip(kernel, scales, strict=True))
        deviations = np.stack([(_like(m, a, name) - a) / s for m, (a, s) in zip(mean, pairs, strict=True)])
        variances = np.stack([_like(v, a, name) / s**2 for v, (a, s) in zip(variance, pairs, strict=True)])
        errors = np.sqrt(variances / np.reshape(counts, (-1, *[1] * kernel[0].ndim)))
        trend = fit(multipliers, counts, deviations, errors, variances, allowed.ratio)
        # Those of kernels of several widths have the same points, so that they do not average out.
        own = np.max([own_error[k] / s for own_error, s in zip(own_errors, scales, strict=True)], axis=0)
        trend = trend._replace(standard_error=np.hypot(trend.standard_error, own))
        trend = trend._replace(allowance=trend.allowance + allowed.effect + rounding)
        found.append(Comparison(name, deviations, errors, trend))
    return found, finite


def _is_estimate(kernel: Any) -> bool:
    """Whether a kernel is one (`on_unsupported="sample"`)."""
    return isinstance(kernel, Estimate)


def _means(kernels: PyTree) -> PyTree:
    return jax.tree.map(lambda kernel: kernel.mean if _is_estimate(kernel) else kernel, kernels, is_leaf=_is_estimate)


def _own_errors(kernels: PyTree, level: float) -> PyTree:
    """The standard errors of kernels that are estimates, as if they were known from many samples; 0 of others."""
    entries = sum(map(np.size, jax.tree.leaves(_means(kernels))))

    def error(kernel: Any) -> np.ndarray:
        if not isinstance(kernel, Estimate):
            return np.zeros(kernel.shape)
        return np.asarray(kernel.standard_error) * counted_for(level, entries, kernel.n_samples)

    return jax.tree.map(error, kernels, is_leaf=_is_estimate)


def _place(path: tuple[Any, ...]) -> int:
    """Where in the path of an array the kind of kernel stands, after the path of the output."""
    return next(k for k, part in enumerate(path) if getattr(part, "name", None) in KINDS)


def _kind(path: tuple[Any, ...]) -> str:
    return str(path[_place(path)].name)


def _output(path: tuple[Any, ...]) -> str:
    return path_name(path[: _place(path)])


def _name(path: tuple[Any, ...]) -> str:
    """`ntk` or `ntk share of Dense_0/kernel`; and of one of several outputs, `ntk, logits`."""
    kind, output, param = _kind(path), _output(path), path_name(path[_place(path) + 1 :])
    name = f"ntk share of {param}" if kind == BY_PARAM else kind
    return f"{name}, {output}" if output else name


def _wholes(
    path: tuple[Any, ...], place: int, kernels: Sequence[PyTree], networks: Sequence[Networks]
) -> list[np.ndarray]:
    """What an array is a share of, for each width: itself, or of the share of a parameter the NTK, in its units.

    Args:
        path, place: of the array among the leaves of the kernels.
        kernels, networks: of each width.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(kernels[0])
    shares = [k for k, (p, _) in enumerate(with_paths) if (_kind(p), _output(p)) == (BY_PARAM, _output(path))]
    leaves = [jax.tree.leaves(tree) for tree in kernels]
    if place not in shares:
        return [arrays[place] for arrays in leaves]
    number = shares.index(place)
    of_widths = zip(leaves, (of_width.units for of_width in networks), strict=True)
    return [
        sum(unit * arrays[k] for unit, k in zip(units, shares, strict=True)) / units[number]
        for arrays, units in of_widths
    ]


def _scale(kernel: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of each entry of a kernel `(n, n, h, h', ...)`, the root of the product of the two diagonal entries.

    Args:
        kernel: the kernel, or the share of a parameter in it.
        whole: what it is a share of. Shares of zero are relative to it: those of queries and keys, say, whose scores
            are constants in the limit, are of the order of 1 / width of it in networks.
    """
    positions = (kernel.ndim - 2) // 2
    letters = "abcdefgh"[: positions + 1]
    diagonal, of_whole = (np.einsum("".join(c + c for c in letters) + "->" + letters, a) for a in (kernel, whole))
    largest, largest_of_whole = (np.abs(a).max(initial=0) for a in (diagonal, of_whole))
    if largest <= 1e-9 * largest_of_whole:
        diagonal, largest = of_whole, largest_of_whole
    # Where there is nothing to compare with, as for an input of zeros, deviations are relative to what there is.
    root = np.sqrt(np.where(diagonal > 1e-6 * largest, diagonal, largest or 1.0))
    rows, columns = (np.expand_dims(root, tuple(2 * k + other for k in range(positions + 1))) for other in (1, 0))
    return rows * columns


def _like(sampled: np.ndarray, kernel: np.ndarray, name: str) -> np.ndarray:
    """A sampled kernel in the shape of the computed one, which has no axes of size 1."""
    kept = [n for k, n in enumerate(sampled.shape) if k < 2 or n > 1]
    if tuple(kept) != kernel.shape:
        raise InputError(
            f"the {name} of random networks has the shape {sampled.shape}, but kernel_fn says {kernel.shape}: the "
            "channels must be the last axis of the output, and all other axes positions"
        )
    return sampled.reshape(kernel.shape)


def _remarks(
    models: Sequence[Functions], non_gaussian: Sequence[FirstWeight], replaced: bool, allowance: float
) -> list[str]:
    widths = hidden_widths(models[0].kernel_fn)
    smallest = f"; the smallest hidden width is {min(widths)[0]}" if widths else ""
    remarks = []
    if len(models) == 1:
        remarks.append(
            f"only networks of one width were drawn{smallest}: how kernels depend on the width was not seen, and a "
            f"deviation of up to {allowance:.1%} is put down to it. Give widen= for a comparison with the limit"
        )
    else:
        remarks.append(f"up to {allowance:.1%} is allowed for terms beyond 1 / width{smallest}")
    for weight in non_gaussian:
        law = f"{weight.path} meets the inputs directly and is not normal (excess kurtosis {_kurtosis(weight):.2g})"
        if replaced:
            remarks.append(f"{law}: it was drawn from a normal law here, so that the first layer is Gaussian")
        else:
            remarks.append(
                f"{law}: networks of any width deviate from the limit, for these inputs by about {weight.effect:.1%}, "
                "which is allowed for. gaussian_first_layer=True removes this"
            )
    return remarks


def _kurtosis(weight: FirstWeight) -> float:
    return float(np.asarray(weight.prior.kurtosis).flat[0])
