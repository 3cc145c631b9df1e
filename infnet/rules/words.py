"""What nodes are called in errors: the words of the field."""

from __future__ import annotations

from infnet.errors import UnsupportedError
from infnet.nodes import (
    Aggregation,
    ChannelSum,
    Contraction,
    Custom,
    Dropped,
    Elementwise,
    GroupedConvolution,
    GroupSum,
    IndexLinear,
    InputFeature,
    KnownNode,
    Lookup,
    Node,
    OneNode,
    ParamNode,
    Product,
    Repeated,
    Scaled,
    Sum,
    Unfolded,
    WindowMax,
)

WORDS: dict[type[Node], str] = {
    KnownNode: "an input",
    InputFeature: "the output of another model",
    OneNode: "a constant",
    ParamNode: "a bias",
    Contraction: "a dense or convolutional layer",
    GroupedConvolution: "a depthwise or grouped convolution",
    Unfolded: "a feature whose channels became positions",
    Lookup: "an embedding",
    Scaled: "a feature times a trained scale",
    Dropped: "dropout",
    Product: "a product of features",
    GroupSum: "a sum over the channels of a head",
    Repeated: "a feature of a head, spread over other channels",
    ChannelSum: "a sum over channels",
    Sum: "a sum of features",
    IndexLinear: "a linear map of positions",
    WindowMax: "a maximum over windows of positions (max-pooling)",
    Aggregation: "a sum over positions weighted by inputs, as of a graph, or by attention",
}

# What is said besides, where a node makes something not Gaussian.
NOT_GAUSSIAN: dict[type[Node], str] = {
    GroupedConvolution: ", whose few weights are a random variance",
    Product: ", as in a gate or in a norm over positions alone",
}


def in_words(node: Node) -> str:
    """What a node is called: a function by its own name."""
    if isinstance(node, Elementwise):
        return node.activation.what if isinstance(node.activation, UnsupportedError) else node.activation.name
    return f"`{node.operation!r}`" if isinstance(node, Custom) else WORDS[type(node)]


def not_gaussian_in_words(node: Node) -> str:
    """The same, of a node that is why something is not Gaussian."""
    return in_words(node) + NOT_GAUSSIAN.get(type(node), "")
