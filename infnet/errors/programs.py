"""Refusals: the program as a whole. Its examples, loops, inputs and outputs, and what is asked of it."""

from __future__ import annotations

from infnet.errors.kinds import BatchAxisError
from infnet.errors.refusal import Refusal

# The examples of a batch

EXAMPLES_TREATED_DIFFERENTLY = Refusal(
    "{what} is not the same operation for each example, at batch sizes 2 and 3",
    "a kernel is a function of two examples, so the model must treat every example in the same way, whatever the size "
    "of the batch",
    "keep the batch size out of the arithmetic and out of the control flow, and loop over other axes than that of the "
    "examples",
    kind=BatchAxisError,
)
_OF_OTHERS = (
    "a kernel is a function of two examples, so the output for one example must not depend on the others (BatchNorm in "
    "training mode does; on a single example it would return zero)"
)
_SEPARATELY = "use BatchNorm with running statistics (`use_running_average=True`), or act on each example separately"
EXAMPLES_MIXED = Refusal("mixes the examples of a batch", _OF_OTHERS, _SEPARATELY, kind=BatchAxisError)
EXAMPLES_NOT_KNOWN_TO_BE_SEPARATE = Refusal(
    "is not known to treat the examples of a batch separately", _OF_OTHERS, _SEPARATELY, kind=BatchAxisError
)
EXAMPLES_NOT_ON_ONE_AXIS = Refusal(
    "{name} does not have one row per example: {how} at batch sizes 2 and 3",
    "a kernel is a function of two examples, so every array must hold the examples along one axis or none",
    "keep the examples on an axis of their own, and compare or multiply each with itself alone",
    kind=BatchAxisError,
)
EXAMPLES_IN_ONE_JACOBIAN = Refusal(
    "{what}",
    "with vmap_axes=0 the Jacobian of a batch is taken example by example, so what is computed for one example must "
    "not depend on the others or on their number",
    'use vmap_axes="auto" or None, which treat such a batch as a whole',
    kind=BatchAxisError,
    monte_carlo=False,
)
EXAMPLES_IN_TILES = Refusal(
    "{what}",
    "a tile of the kernel holds some of the examples, so the outputs for one of them must not depend on the others or "
    "on their number",
    "call the kernel function itself with all examples at once, or use the model as it is evaluated "
    "(`use_running_average=True`)",
    kind=BatchAxisError,
    monte_carlo=False,
)

# Operations

_NO_RULE = "no kernel rule for this operation on ({operands})"
UNKNOWN_OPERATION = Refusal(_NO_RULE, "infnet has no kernel rule for this operation")
LOOP_OF_UNKNOWN_LENGTH = Refusal(
    _NO_RULE,
    "how often the loop runs must be known beforehand: it would be another network for each number of steps",
    "use a loop of a fixed length (`lax.scan`, or `lax.fori_loop` with integer bounds)",
)
LOOP_WITHOUT_STEPS = Refusal(_NO_RULE, "a loop without any step", "leave the loop out")
UNKNOWN_BRANCH = Refusal(
    _NO_RULE,
    "which branch is taken must be a constant: a random choice, or one by the inputs, makes the features of two "
    "examples two different functions",
    "choose the branch in Python, or select with `jnp.where` and a mask of the inputs",
)
OWN_DERIVATIVE = Refusal(
    _NO_RULE,
    "a function with a derivative of its own that does not act element by element: the NTK would have to use that "
    "derivative, which need not be that of any linear map",
    "leave `jax.custom_jvp` or `jax.custom_vjp` out, or use `infnet.custom_kernel`",
)
FOURIER_TRANSFORM = Refusal(
    _NO_RULE,
    "its result is complex, and kernels are those of real features",
    "multiply by the real and the imaginary part of the Fourier matrix (`jnp.einsum`)",
)
DRAWS_OF_DEFAULT_DTYPE = Refusal(
    "`{name}`: the model draws random numbers of the default dtype",
    'precision="highest" runs the model in float64, where the same key gives other numbers',
    "give the draw a dtype (`jax.random.normal(key, shape, jnp.float32)`), or draw before the model is called; or use "
    'precision="default"',
    monte_carlo=False,
)

# Inputs and outputs

OUTPUT_NOT_RANDOM = Refusal(
    "the output of the model is not a random function of its input",
    "it depends on the input alone, on parameters alone, or on means over channels, which are no longer random at "
    "infinite width",
    "return what comes after the first Dense or Conv layer, and sum channels with a Dense layer",
)
OUTPUTS_OF_OTHER_WIDTHS = Refusal(
    "the covariance of two outputs whose channels do not correspond",
    "it is taken channel by channel, and they have {one} and {two} channels, or positions flattened together with them",
    "leave out `cross=True`, or return outputs of equal widths with their positions",
)
MEAN_OF_GIVEN_KERNEL = Refusal(
    "the mean of an input that is given as a kernel",
    "the mean enters (in a norm, a product, or beside known values), and this kernel comes without it",
    "compute the kernel of both models as one function",
    monte_carlo=False,
)

# Random features

_EXACT = "use the exact kernel function, in tiles or by conjugate gradients if it does not fit into memory"

FEATURES_OF_OPERATION = Refusal(
    "random features of an operation ({kind})",
    "infnet has features for dense layers, sums, biases and elementwise functions alone, not for {kind}",
    _EXACT,
    monte_carlo=False,
)
FEATURES_OF_POSITIONS = Refusal(
    "random features of a layer with positions, of sizes {sizes}",
    "its kernel at two examples is a matrix over pairs of positions, which no rule here follows",
    _EXACT,
    monte_carlo=False,
)
FEATURES_OF_NORM = Refusal(
    "random features of a norm over channels",
    "it divides by a number of each example, which the features of the layer would have to be divided by too",
    _EXACT,
    monte_carlo=False,
)
FEATURES_OF_SCALE = Refusal(
    "random features of a scale that varies along channels",
    "the channels are then not alike, and one feature stands for all of them",
    _EXACT,
    monte_carlo=False,
)
FEATURES_OF_SEVERAL_INPUTS = Refusal(
    "random features of a sum of several inputs",
    "their channels are not alike, and their products with each other would enter the kernel",
    _EXACT,
    monte_carlo=False,
)
FEATURES_OF_DEPENDENT_LAYERS = Refusal(
    "random features of two layers that depend on each other side by side",
    "a weight is shared, or two functions of one feature are added: their features would have to be drawn together",
    _EXACT,
    monte_carlo=False,
)
