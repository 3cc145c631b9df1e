"""Refusals: what a model does to the positions and channels of its features."""

from __future__ import annotations

from infnet.errors.refusal import Refusal

# Sums over channels

SUM_OVER_CHANNELS = Refusal(
    "a sum over channels that is not divided by their number",
    "it fluctuates from one initialisation to the next, so what follows is a random mixture and not Gaussian, as in "
    "attention with scores divided by sqrt(d)",
    'divide the sum by the number of channels d; or, of attention with several heads, pass on_unsupported="sample"',
)
GROUP_SUM_OF_UNLIKE_CHANNELS = Refusal(
    "a sum over a group of channels that are not alike",
    "inputs, or constants that vary along the channels, were added or multiplied, so each group has a sum of its own",
    "put a Dense or Conv layer before the sum",
)
HEAD_SUM_OF_DEPENDENT_CHANNELS = Refusal(
    "a sum over the channels of a head after these were multiplied by one and the same feature",
    "they depend on each other, so their mean stays random, however many they are",
    "sum over heads too, or put a Dense layer before",
)
CHANNEL_SUM_ON_MIXED_AXIS = Refusal(
    "a sum over channels that leaves positions and channels on one axis",
    "the sum is a number for each position, and the channels that stay need an axis of their own to be counted",
    "sum before positions and channels are flattened into one axis",
)
DEPENDENT_HEAD_SUMS = Refusal(
    "the joint moment of sums over channels that depend on several channels of each other",
    "infnet has a rule for channels that depend on their own in the other alone",
    "use weights of their own for different heads",
)
DEPENDENT_HEADS = Refusal(
    "the joint moment of features of a head that are spread over other channels",
    "infnet has a rule for channels that depend on their own in the other alone",
    "use weights of their own for different heads",
)

# Channels, one by one

CHANNELS_MIXED_BY_INPUTS = Refusal(
    "channels are mixed by an array of inputs",
    "the channels become infinitely many, all with the same law",
    "mix channels with `nn.Dense`",
)
CHANNELS_MIXED_BY_CONSTANTS = Refusal(
    "channels are mixed by constants, or taken one by one",
    "the channels become infinitely many, all with the same law",
    "mix channels with `nn.Dense`",
)
CHANNELS_FILTERED_BY_CONSTANTS = Refusal(
    "channels are mixed, or filtered differently, by constants",
    "the channels become infinitely many, all with the same law",
    "use the same filters for each channel, and mix channels with `nn.Dense`",
)
MATRIX_PER_CHANNEL = Refusal(
    "the matrix that mixes positions differs from channel to channel",
    "the channels must all have the same law, to become infinitely many",
    "use the same matrix for all channels (heads)",
)
SCALE_OF_UNLIKE_CHANNELS = Refusal(
    "a scale that varies along channels, on a feature whose channels are not alike",
    "the channels then differ in two ways that infnet would have to average together",
    "put a Dense or Conv layer between the two",
)
PART_OF_UNLIKE_CHANNELS = Refusal(
    "a part of the channels of a feature whose channels are not alike",
    "an input was added to the feature, so each channel has a mean of its own",
    "cut before the input is added, or put a Dense or Conv layer in between",
)
CHANNEL_SPREAD_OVER_OTHERS = Refusal(
    "a feature with one channel is spread over the {width} channels of another",
    "all channels would share it, so they would not be independent at infinite width",
    "give both features the same number of channels",
)
CHANNELS_IN_IRREGULAR_STEPS = Refusal(
    "channels are flipped, padded or taken with a stride",
    "channels of one law are followed as ranges: which of them depend on each other is a shift",
    "channels are interchangeable: slice them with step 1",
)
CHANNELS_PADDED = Refusal(
    "channels are padded",
    "channels without weights are not like the others",
    "pad the positions alone, or before the first layer",
)
CHANNELS_POOLED = Refusal(
    "pooling over channels",
    "the channels become infinitely many, all with the same law and no order",
    "mix channels with `nn.Dense`",
)
CHANNELS_PERMUTED = Refusal(
    "the channel axes of a feature are in another order than they were made in",
    "which channels of two features depend on each other is followed as a shift, which a permutation is not",
    "flatten the channels in the order in which the layer made them",
)
CHANNELS_AS_POSITIONS = Refusal(
    "channels of an earlier layer are used as positions",
    "that needs a channel axis that stays, next to those that become positions, of one layer whose channels are all "
    "alike (without inputs added or concatenated)",
    "put a Dense or Conv layer before the reshape, and keep channels in the result",
)
DEPENDENT_CHANNELS_AS_POSITIONS = Refusal(
    "channels that depend on each other are used as positions",
    "infnet has a rule for positions that are made of independent channels, in one way",
    "put a Dense or Conv layer before the reshape",
)
POSITIONS_MEET_CHANNELS = Refusal(
    "two features whose axes do not match: positions of one meet channels of the other",
    "channels become infinitely many and positions do not, so the two cannot be added",
    "give both features the same axes, in the same order",
)
POSITIONS_TIMES_CHANNELS = Refusal(
    "positions of one feature are multiplied with channels of another",
    "channels become infinitely many and positions do not, so the product has no limit",
    "give both features the same axes, in the same order",
)

# Positions

AXES_MIXED_BY_RESHAPE = Refusal(
    "{how}",
    "the axes of the result mix parts of the axes of the operand",
    "keep whole axes, or whole factors of them, together",
)
MIXED_AXIS_CUT = Refusal(
    "an axis that holds positions and channels at once, or several axes of channels, is cut",
    "infnet follows slices of positions or of channels, before they are flattened into one axis",
    "slice before the reshape",
)
SLICE_AT_INPUTS = Refusal(
    "a slice that starts where the inputs say",
    "which positions are read would be another linear map for each example, and the slice is not of one position",
    "index with an array of the positions of each example (`jnp.take_along_axis`)",
)
PADDING_WITH_VALUES = Refusal(
    "padding with values other than zero",
    "the feature would be a known number at some positions and random at others",
    "pad with zeros, and add the values",
)
POOLING_WITH_DILATED_BASE = Refusal(
    "pooling with base dilation",
    "infnet has a rule for windows of positions that are there",
    "pad between the positions (`lax.pad`), then pool",
)
STACKED_WITH_OTHERS = Refusal(
    "a feature is stacked with something else",
    "the feature would be random at some positions and known at others",
    "stack features alone",
)
EMPTY_RESULT = Refusal(
    "a result without any position or channel",
    "there is nothing that a kernel could be of",
    "keep at least one of each axis",
    monte_carlo=False,
)
INDICES_OUT_OF_BOUNDS = Refusal(
    "indices out of bounds",
    "the axis has {size} positions, and the indices are from {lowest} to {highest}",
    "use indices that exist",
)
SEVERAL_AXES_INDEXED = Refusal(
    "indexing of several axes at once",
    "infnet follows indices into one axis only, which are a matrix that the positions are multiplied by",
    "flatten the axes into one, and use one index into it",
)
COMPLEX_MATRIX = Refusal(
    "a feature is multiplied by a complex array",
    "kernels are those of real features",
    "multiply by the real and the imaginary part, one after the other",
)
ARRAY_ON_MIXED_AXIS = Refusal(
    "an array of inputs or constants varies along an axis that holds positions and channels at once",
    "positions stay as they are while channels become infinitely many, so the numbers must belong to one or the other",
    "add or multiply before the reshape",
)
CHOICE_BY_ONE_NUMBER = Refusal(
    "one number of the inputs selects for all examples",
    "the choice must be a constant, or be made for each example",
    "select with a mask that has an axis for the examples",
)
