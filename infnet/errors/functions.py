"""Refusals: nonlinear functions of features, their products, random numbers in the model, and where no law is known."""

from __future__ import annotations

from infnet.errors.kinds import NonGaussianError
from infnet.errors.refusal import Refusal

_LAYER_BETWEEN = "put a Dense or Conv layer between the two"

# Nonlinearities

NON_GAUSSIAN_ARGUMENT = Refusal(
    "a nonlinearity ({function}) of something that is not Gaussian at infinite width",
    "its argument contains {source} ({place}), so its joint law has no closed form",
    _LAYER_BETWEEN,
    kind=NonGaussianError,
    sampled=True,
)
UNLIKE_ARGUMENT = Refusal(
    "a nonlinearity ({function}) of a feature whose channels are not alike",
    "inputs, or constants that vary along the channels, were added or multiplied, so each channel has a law of its own",
    _LAYER_BETWEEN,
)
TWO_NONLINEARITIES = Refusal(
    "the joint moment of two different nonlinearities, {one} and {two}",
    "they act on dependent fields, and infnet knows no closed form for these two together",
    "use the same activation on both branches",
    sampled=True,
)
UNKNOWN_PAIR = Refusal(
    "the joint moment of {one} and {two}",
    "the two depend on each other, and infnet has no rule for their moment yet",
)
NO_CLOSED_FORM = Refusal(
    "the activation `{name}` has no known closed form yet",
    "{why}",
    "supported are piecewise polynomials and exponentials (relu6, hard_tanh, elu, ...), sums of powers times "
    "exponentials, sines and cosines, polynomials times erf(b * x + c) (the exact gelu), and smooth functions",
    sampled=True,
)
_FOR_SERIES = "allow a larger error (tol=); or use an activation with a closed form, or smaller weights"
SERIES_DIVERGES = Refusal(
    "the activation `{name}` has no known closed form, and no Hermite series that converges",
    "after {terms} terms, at variances up to 1, the series' relative error is only known to be below {phi:.1e} (below "
    "{slope:.1e} for its derivative): the function has kinks, jumps, poles or NaNs, or grows too fast",
    _FOR_SERIES,
    sampled=True,
)
SERIES_TOO_SLOW = Refusal(
    "the Hermite series of the activation `{name}` converges too slowly",
    "with {terms} terms, at variances up to {q_max:.3g}, its relative error is only known to be below {phi:.1e} (below "
    "{slope:.1e} for its derivative), and {tol:.1e} is asked for",
    _FOR_SERIES,
    sampled=True,
)
FUNCTION_OF_TWO_FEATURES = Refusal(
    "a nonlinear function of two different features",
    "infnet knows sums, products and maxima of several features only: other functions of two Gaussian numbers have no "
    "closed form that it knows",
    "use a function of the sum of the features",
)
FUNCTION_OF_VARYING_ARRAY = Refusal(
    "a nonlinear function (`{name}`) of a feature and of an array that varies",
    "the function would differ from one position, channel or example to the next",
    "use a number in place of the array",
)

# Maxima

MAX_POOL = Refusal(
    "the maximum over windows of positions (max-pooling)",
    "the maximum of several random values is not a linear map, and its law at infinite width has no closed form",
    "use `nn.avg_pool`",
    sampled=True,
)
MAXIMUM_OVER_AXIS = Refusal(
    "no kernel rule for this operation on ({operands})",
    "the maximum over an axis (in a softmax, over channels or positions) has no closed-form law at infinite width",
    "drop the softmax (the kernel of the logits is usually what is wanted)",
)

# Products

DEPENDENT_FACTORS = Refusal(
    "the moment of a product of features",
    "the factors have no joint law with a closed form: they are not independent of each other, and not all of them are "
    "Gaussian, as in the gates of a GRU or LSTM",
    "multiply features of different weights, each with a Dense or Conv layer of its own",
    kind=NonGaussianError,
    sampled=True,
)
UNLIKE_FACTORS = Refusal(
    "the moment of a product of features",
    "the factors have no joint law with a closed form: one of them has channels that are not alike",
    "multiply features of different weights, each with a Dense or Conv layer of its own",
)
PRODUCT_ACROSS_CHANNELS = Refusal(
    "two features are multiplied other than channel by channel",
    "infnet has a rule for products of equal channels, and for their sums: others are of infinitely many pairs",
    "multiply equal channels (`u * v`), or put a Dense or Conv layer behind each",
)
PRODUCT_OF_UNLIKE_CHANNELS = Refusal(
    "products of features whose channels are not alike",
    "inputs were added or concatenated, so the mean of the products over channels is not that of a single channel",
    "put a Dense or Conv layer before the product",
)

# Moments that are sampled

NOT_SAMPLED = Refusal(
    "{what}; and it cannot be sampled",
    "{why}; and {node} ({place}) is no function of Gaussian fields channel by channel, of which every other channel "
    "would be an independent copy",
)
OWN_WEIGHT_OF_UNKNOWN_LAW = Refusal(
    "{what}; and it cannot be sampled",
    "{why}; and each channel has weights of its own ({place}), so that their law matters, of which infnet knows the "
    "mean, the variance and the excess kurtosis ({kurtosis}): neither that of a normal, nor of a uniform law, nor of "
    "jax.nn.initializers.truncated_normal",
    "draw them from one of these, or replace their prior: infnet.override_priors",
)
TOO_MANY_POSITIONS = Refusal(
    "{what}; and it is too large to be sampled",
    "{why}; and a pair of examples has {groups} pairs of positions that depend on {width} or more Gaussian variables "
    "each, which take {size:.1f} GiB",
    "use smaller images, or flatten in place of a mean over positions, which needs fewer pairs",
)
DERIVATIVE_OF_SAMPLES = Refusal(
    "the derivative of a kernel that is sampled",
    "the derivative of an average over points is not the derivative of the integral, where a function has kinks",
    "take differences of kernels with the same seed, or differentiate a model whose kernel has a closed form",
    monte_carlo=False,
)

# Operations with a kernel rule of their own

CUSTOM_WITHOUT_RULE = Refusal(
    "`{operation!r}` cannot be used here", "it has no kernel rule yet", "define one with `@{operation!r}.def_kernel`"
)
CUSTOM_ARGUMENTS = Refusal(
    "`{operation!r}` cannot be used here",
    "a kernel rule maps the kernel of one feature, given the laws of parameters",
    "pass the feature first, then parameters; close over constants",
)
CUSTOM_SHAPE = Refusal(
    "`{operation!r}` cannot be used here", "it maps shape {before} to {after}", "keep all axes but the last"
)
CUSTOM_PARAMETERS = Refusal(
    "`{operation!r}` cannot be used here",
    "its argument is a concatenation of features, or a parameter has a mean",
    "apply it to each feature by itself, with parameters of mean zero",
)
CUSTOM_CHANNELS = Refusal(
    "`{operation!r}` cannot be used here",
    "the channels of its argument are not the last axis",
    "move the channels to the end",
)
_CUSTOM_ARGUMENT = (
    "`{operation!r}` is applied to a feature that is not Gaussian with mean zero and equal channels",
    "that is what the kernel rule of an operation without parameters is told the moments of",
    "put a Dense or Conv layer before it",
)
CUSTOM_OF_UNLIKE_CHANNELS = Refusal(*_CUSTOM_ARGUMENT)
CUSTOM_OF_NON_GAUSSIAN = Refusal(*_CUSTOM_ARGUMENT, kind=NonGaussianError)
CUSTOM_MEAN = Refusal(
    "the mean of `{operation!r}`",
    "it is multiplied by another, independent feature; the kernel rule says nothing of means",
)

# Random numbers in the model

NOISE_WITH_INPUTS = Refusal(
    "random numbers are combined with inputs, before any weight",
    "infnet follows random numbers that multiply features (dropout behind a layer)",
    "use dropout behind the first layer",
)
NOISE_OTHER_THAN_DROPOUT = Refusal(
    "a feature meets random numbers other than as in dropout",
    "infnet knows features times random numbers, and features that random numbers replace by zeros",
    "use dropout",
)
NOISE_LAW_UNKNOWN = Refusal(
    "random numbers whose law cannot be read",
    "{why}",
    "use jax.random.bernoulli with a key of its own for each layer",
)
NOISE_LAWS_DIFFER = Refusal(
    "random numbers with different laws",
    "all channels must have the same law",
    "draw all of them with the same probability",
)
NOISE_SHARED_BY_CHANNELS = Refusal(
    "all channels share the same random numbers",
    "they would all be kept or dropped together, so they would not be independent at infinite width",
    "draw a number for each channel",
)
NOISE_REUSED = Refusal(
    "the joint moment of two features that contain the same random numbers",
    "one contains them in a product or behind a nonlinearity, and infnet has no rule for that",
)
