"""Refusals: how a model uses its parameters."""

from __future__ import annotations

from infnet.errors.refusal import Refusal

# The weights of layers

WEIGHT_WITH_MEAN = Refusal(
    "a weight whose mean is not zero",
    "the mean of the output would grow with the width, and all its channels would be alike",
    "initialise the weight with mean zero",
)
WEIGHT_PLUS_NUMBER = Refusal(
    "a parameter plus a number is used as a weight",
    "its mean would not be zero, so the mean of the output would grow with the width",
    "add the number to the result, or initialise the weight with mean zero",
)
WEIGHT_VARYING_ALONG_CHANNELS = Refusal(
    "a parameter whose standard deviation differs from channel to channel",
    "the channels of a layer must all have the same law, to become infinitely many",
    "initialise all channels alike, or replace the prior: infnet.override_priors",
)
WEIGHT_MASKED_ALONG_CHANNELS = Refusal(
    "a parameter times constants that vary along channels",
    "the channels of a layer must all have the same law, to become infinitely many",
    "use a mask that is the same for all channels",
)
SLICE_OF_VARYING_WEIGHT = Refusal(
    "a slice of a parameter whose elements differ in law",
    "the law of each element would have to be followed through the slice, and infnet has no rule for this yet",
    "use a parameter of its own for each part",
)
WEIGHT_REUSED_OTHERWISE = Refusal(
    "a parameter is used a second time in another way",
    "the same weight with its axes exchanged (`W` and `W.T`), in overlapping slices, or in two kinds of layer makes "
    "the two results dependent: the usual kernel would be wrong",
    "use a parameter of its own for each use",
)
WEIGHT_REUSED_WITH_OTHER_WINDOWS = Refusal(
    "one weight is used with two strides, paddings or scales",
    "infnet has no rule yet for the moment of two different uses of one weight",
    "use the shared layer in the same way each time",
)
WEIGHT_OF_CHANNEL_SUMS = Refusal(
    "a weight is applied to sums over channels",
    "their derivatives in the weights before are as large as those in this weight, and random",
    "apply the weight before the channels are summed",
)
PRODUCT_OF_PARAMETERS = Refusal(
    "two parameters are multiplied",
    "the product is not a Gaussian weight with independent elements",
    "multiply the feature by one and then by the other",
)
POSITIONS_MIXED_BY_WEIGHT = Refusal(
    "positions are {filtered} while channels (axis {axis}) stay (token mixing, or a depthwise layer)",
    "all channels then share few weights, or have a few weights each: the result is a scale mixture, not Gaussian, so "
    "a nonlinearity after it has no closed form",
)
FILTER_NOT_A_PARAMETER = Refusal(
    "a convolution whose filter is neither a parameter nor real constants",
    "an output is Gaussian as a sum over random filters that do not depend on the inputs, or a linear map of positions",
    "convolve features with parameters, or with constants",
)
BATCH_GROUPS = Refusal(
    "a convolution with batch groups",
    "each group of examples has filters of its own, and a kernel treats all examples alike",
    "use batch_group_count=1",
)
GROUPS_OF_SEVERAL_FEATURES = Refusal(
    "a grouped convolution whose groups hold positions, or channels of several features",
    "the channels of a group must have one law, and infnet follows groups of channels of one feature only",
    "let the groups end where the concatenated features do",
)
ONE_FILTER_PER_INPUT_CHANNEL = Refusal(
    "a depthwise convolution of inputs with one filter for each channel",
    "the result has as many channels as the input, whatever the width, so no limit makes what follows Gaussian",
    "use an ordinary convolution first, or several filters for each channel",
)
DEPTHWISE_OF_ITSELF = Refusal(
    "a depthwise or grouped convolution is applied to its own result",
    "a channel then holds powers of its few weights, of which no average over many channels is taken",
    "use a layer of its own each time, or a Dense or Conv layer in between",
)

# What is done to a parameter before it is used

PARAMETER_THROUGH_OPERATION = Refusal(
    "a parameter goes through an operation other than multiplication by a number",
    "the law of the result, or its gradient, is then not that of the parameter",
    "give the parameter the wanted law in its initialiser instead",
)
PARAMETER_REPEATED = Refusal(
    "a parameter is repeated along a new axis",
    "its copies are one random number, and infnet follows a repeated parameter only where it is added with axes of "
    "size 1",
    "add the parameter with axes of size 1 (`bias[None, :]`) and let the sum broadcast",
)
REPEATED_PARAMETER_USED = Refusal(
    "a parameter that was repeated along an axis",
    "its copies are one random number, so the elements of this weight are not independent",
    "use the parameter itself, and repeat the result",
)
PARAMETER_SLICED_IRREGULARLY = Refusal(
    "a parameter is sliced in an irregular way",
    "two slices are independent if they have no element in common, which infnet decides for plain ranges only",
    "slice it with step 1, and along whole axes",
)
PARAMETER_TIMES_ARRAY_AFTER_CUT = Refusal(
    "a parameter that was cut or reversed is multiplied by an array",
    "the law of each element would differ, and infnet follows constants along whole axes of a parameter only",
    "multiply the parameter before it is reshaped, or reversed",
)
PARAMETERS_CONCATENATED = Refusal(
    "parameters are concatenated",
    "the result is not one parameter, and not yet a feature with channels",
    "use one parameter, or concatenate features",
)
PARAMETER_SELECTED = Refusal(
    "a parameter is selected by data",
    "the law of the result is then not that of the parameter",
    "mask the feature instead",
)
PARAMETER_INDEXED_IRREGULARLY = Refusal(
    "a parameter is indexed along several axes at once, or by something random",
    "rows of a table are independent where the indices differ, which the inputs alone must decide, along one axis",
    "look rows up along one axis, and slice other axes separately",
)
LOOKUP_OUT_OF_BOUNDS = Refusal(
    "a lookup that reads {number} at indices out of bounds",
    "all channels would be equal there, so they would not be independent",
    "use indices that exist, and no fill value",
)

# Parameters that meet features element by element

PARAMETER_TIMES_INPUT_ADDED = Refusal(
    "a parameter times an input is added to a feature",
    "infnet has no rule for a sum with products of data and parameters, element by element",
    "write it as a product of matrices, `x[:, None] @ w[None]`, or as a layer of its own",
)
PARAMETER_SHARED_BY_CHANNELS = Refusal(
    "a parameter without a channel axis is added to a feature",
    "all channels would share it: they would not be independent, and the NTK would not converge",
    "give the parameter a channel axis",
)
SCALE_SHARED_BY_SOME_CHANNELS = Refusal(
    "a parameter that some channels share",
    "channels that share a scale are not independent, and infnet has rules where all or none of them do",
    "give the scale one number for each channel",
)
PARAMETER_MEETS_FEATURE = Refusal(
    "a feature meets a trainable parameter elementwise, other than in a sum or a product",
    "the result is not Gaussian, and infnet has no rule for its derivative in that parameter",
    "add or multiply trained parameters",
)
RANDOM_SCALE_REUSED = Refusal(
    "a trained scale is used twice, in different ways or with other layers between the two uses",
    "the scale is random, so the two features are dependent through it",
    "use a scale of its own each time, or let it start at a constant",
)

# The tangent kernel in trained scales: the NNGP alone may have a closed form

_RANDOM_DERIVATIVES = (
    "the derivatives in that scale are random and dependent from channel to channel or layer to layer, and infnet has "
    "no rule for them"
)
_NNGP = 'get="nngp" does not need them'

NTK_OF_REUSED_SCALE = Refusal(
    "the NTK of this model: a trained scale is used twice, in different ways or with other layers between the two uses",
    _RANDOM_DERIVATIVES,
    _NNGP,
    sampled=True,
)
NTK_OF_SHARED_SCALE = Refusal("the NTK of this model: all channels share one trained scale", _RANDOM_DERIVATIVES, _NNGP)
NTK_OF_SCALE_BEHIND_NONLINEARITY = Refusal(
    "the NTK of this model: a trained scale reaches a nonlinearity other than by sums and maps of positions",
    _RANDOM_DERIVATIVES,
    _NNGP,
)
NTK_OF_SCALE_NOT_PER_CHANNEL = Refusal(
    "the NTK of this model: before a nonlinearity, a trained scale that is not one number per channel",
    _RANDOM_DERIVATIVES,
    _NNGP,
)
NTK_OF_SCALE_IN_PRODUCT = Refusal(
    "the NTK of this model: a trained scale multiplies a factor of a product", _RANDOM_DERIVATIVES, _NNGP, sampled=True
)
NTK_OF_SCALE_BEFORE_CUSTOM = Refusal(
    "the NTK of this model: a trained scale before `{operation!r}`", _RANDOM_DERIVATIVES, _NNGP
)
