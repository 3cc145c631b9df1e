"""`kernel_fn`: from a model to the function that computes its infinite-width kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import (
    BY_PARAM,
    NAMES,
    InputKind,
    Inputs,
    kind_of,
    learning_rates,
    named_kernels,
    names_of,
    one_of,
    positive,
)
from infnet.batching.batched import BatchedKernelFn
from infnet.batching.blocks import Blocks
from infnet.batching.memory import Footprint, available_bytes, footprint_of
from infnet.computation import Computation
from infnet.context import Weights
from infnet.errors import InputError
from infnet.execute import Given
from infnet.explain import Subject, explain, found_from
from infnet.explanation import Explanation
from infnet.kernel import Kernel
from infnet.model import Model
from infnet.running import Options, OwnTask, Runner, Task
from infnet.sampling.points import Sampling
from infnet.sampling.replicates import without_errors
from infnet.tiling import mirrored

PyTree = Any


def kernel_fn(
    apply_fn: Callable[..., PyTree],
    priors: PyTree,
    example_inputs: PyTree,
    *,
    parameterization: str = "as_model",
    trainable: Any = None,
    lr_scale: Any = None,
    output: Callable[[PyTree], PyTree] | None = None,
    cross: bool = False,
    precision: str = "default",
    tol: float = 1e-6,
    q_max: float | None = None,
    batch_axis: int = 0,
    on_unsupported: str | Sampling = "raise",
) -> KernelFn:
    """The kernel function of the infinite-width limit of a model.

    Args:
        apply_fn: `(params, *inputs) -> output`, any JAX function; inputs and output have a leading batch axis. It is
            read as it acts on two and on three examples; on a single one it may be written otherwise.
        priors: pytree of `Prior`, of the structure of `params` (see `infer_priors`).
        example_inputs: what `apply_fn` takes: one input (an array or a pytree of arrays, or of
            `jax.ShapeDtypeStruct`), or a tuple of several. Shapes and dtypes count, and for series the variances.
            Or the `Kernel` of another model, for a model whose inputs are that one's outputs, channels last.
        parameterization: "as_model" for the NTK of the model as it is written, gradients with respect to the
            parameters themselves; "ntk" as if every weight were written as std * theta.
        trainable: which parameters are trained: a predicate on the path, a mapping from path or glob to bool, or a
            pytree of bool, such as a mask of optax. The others leave the NTK.
        lr_scale: relative learning rates: a mapping from path or glob to number, or a pytree of numbers.
        output: picks from structured outputs (`lambda y: y["logits"]`). Several outputs give a pytree of kernels.
        cross: of several outputs, also the covariances of different ones, channel by channel: a pytree of pytrees, as
            `jax.hessian` nests them. Their positions come one after the other, `(n1, n2, *positions, *positions')`.
        precision: "default" computes in the dtype of the inputs (at least float32); "highest" in float64, with
            results in the dtype of the inputs. In float32, the NTK of near-duplicates loses half of its digits.
        tol: the largest relative error of a kernel that is computed as a series (tanh, silu, softplus ...).
        q_max: the largest variance of the argument of such a function for which `tol` is to hold. By default that of
            the examples: the example inputs, or what the function is called with.
        batch_axis: the axis of the inputs that counts examples.
        on_unsupported: "raise"; or "sample" to estimate moments without a closed form by quasi-Monte Carlo, where a
            single channel is a function of Gaussian fields. Kernels are then `Estimate`s, with a standard error for
            every entry, and cannot be differentiated. An `infnet.Sampling` says with how many points.

    Returns:
        The kernel function. It is traced now, and again for arguments of other dtypes.

    Raises:
        UnsupportedError: the model has no closed-form limit, infnet has no rule for an operation of it, or a series
            does not converge to `tol` at the variances of the example inputs.
        PriorError: a parameter whose law could not be read off `init`.
        InputError: an argument is of the wrong kind.
    """
    one_of("parameterization", parameterization, ("as_model", "ntk"))
    one_of("precision", precision, ("default", "highest"))
    if not isinstance(on_unsupported, Sampling):
        one_of("on_unsupported", on_unsupported, ("raise", "sample"))
    model = Model(apply_fn, priors, Inputs(example_inputs, batch_axis), output, cross)
    rates = learning_rates(model.paths, model.tree, trainable, lr_scale)
    most = None if q_max is None else positive("q_max", q_max)
    sampling = (
        {"raise": None, "sample": Sampling()}.get(on_unsupported) if isinstance(on_unsupported, str) else on_unsupported
    )
    options = Options(parameterization, precision, positive("tol", tol), most, sampling)
    return KernelFn(model, model.weights(rates), options)


# Bytes of kernels for which there is always memory; and how many times that of others is needed, with all in between.
SMALL, COPIES = 2**28, 3


class KernelFn:
    """A kernel function: `k(x1, x2)` computes the kernels of a model between two sets of examples."""

    def __init__(self, model: Model, weights: Weights, options: Options):
        self.parameterization = options.parameterization
        self._model = self.model = model
        self._weights = weights
        self._options = options
        self._runner = Runner(model, options)
        self._error: float | None = None
        # What has no kernel is refused now, rather than at the first call.
        kind = model.inputs.kind
        self._runner.computation(kind).plan(("nngp",), (1, 2))
        if model.inputs.values is not None:
            self._runner.settle(weights, kind, model.inputs.values)

    # Calling

    def __call__(self, x1: PyTree, x2: PyTree = None, get: Any = None, **tile_options: Any) -> Any:
        """The kernels between two sets of examples.

        Kernels for which there is not enough memory on the device are put together in tiles, as NumPy arrays in the
        memory of the host; so are all kernels with `tile_options`, as these say.

        Args:
            x1: the input (a tuple of inputs if the model takes several), each leaf `(n1, ...)`. Or the `Kernel` of
                another model, whose outputs are the inputs of this one, channels last: the kernels of both together,
                where they have no parameters in common.
            x2: likewise `(n2, ...)`; None for x1 itself.
            get: "nngp" or "ntk" for an array `(n1, n2, *positions)`; "ntk_by_param" for a pytree of the structure of
                the parameters, whose arrays are their shares in the NTK and sum to it; a tuple of these for a
                namedtuple; None for a `Kernel`. An output with positions keeps them, in natural order:
                `(n1, n2, h, h', w, w', ...)`; axes of size 1 are dropped, and positions flattened together with
                channels are averaged over.
            **tile_options: of `infnet.batch`, for this call.

        Raises:
            InputError: shapes or names are wrong.
            UnsupportedError: a series does not converge to the tolerance at the variances of these examples. Like the
                next, not under `jax.jit`; there, see `Kernel.error`.
            NumericalError: the inputs are finite, but a kernel is not; the error names the layer.
        """
        names = names_of(get)
        if isinstance(x1, Kernel) and x2 is None:
            if tile_options:
                raise InputError(
                    f"the kernel of a Kernel is not computed in tiles: leave out {', '.join(tile_options)}"
                )
            return self._composed(x1, get, names)
        kind, inputs1, inputs2 = self._read(x1, x2)
        sharded = _may_be_sharded([*inputs1, *inputs2])
        if tile_options or not (sharded or self._fits(kind, names, inputs1, inputs2)):
            return BatchedKernelFn(self, **tile_options)(x1, x2, get)
        values = self._run(Task("matrix", names, x2 is None, sharded), kind, inputs1, inputs2)
        return self._picked(values, kind, get, names, symmetric=x2 is None)

    def _read(self, x1: PyTree, x2: PyTree) -> tuple[InputKind, list[jax.Array], list[jax.Array]]:
        inputs1 = self._model.inputs.read(x1, "x1")
        inputs2 = inputs1 if x2 is None else self._model.inputs.read(x2, "x2")
        kind, other = kind_of(inputs1), kind_of(inputs2)
        if kind != other:
            raise InputError(f"x1 and x2 have different dtypes: {kind.dtypes} and {other.dtypes}")
        return kind, inputs1, inputs2

    def estimate(self, x1: PyTree, x2: PyTree = None, get: Any = None, **tile_options: Any) -> Footprint:
        """The memory and the operations of a call with these arguments, by XLA's analysis; nothing is run.

        Args:
            x1, x2: as of a call, or `jax.ShapeDtypeStruct` in place of arrays.
            get, **tile_options: as of a call.

        Raises:
            InputError: shapes or names are wrong.
        """
        names = names_of(get)
        kind, inputs1, inputs2 = self._read(x1, x2)
        if tile_options or not self._fits(kind, names, inputs1, inputs2):
            return BatchedKernelFn(self, **tile_options).estimate(x1, x2, get)
        function = self._runner.function(Task("matrix", names, x2 is None), kind)
        return footprint_of(function, self._weights, inputs1, inputs1 if x2 is None else inputs2)

    def _fits(self, kind: InputKind, names: Sequence[str], x1: Sequence[Any], x2: Sequence[Any]) -> bool:
        """Whether there is memory for these kernels; while they are traced, tiles belong to a loop outside."""
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((self._weights, *x1, *x2))):
            return True
        size = self._runner.computation(kind).bytes_of_pair(names) * len(x1[0]) * len(x2[0])
        return size <= SMALL or COPIES * size <= available_bytes(jax.local_devices()[0])

    def blocks(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Blocks:
        """The kernels in blocks of examples, as `infnet.batch` and `infnet.compute` need them.

        Arguments and errors are those of a call, but for a `Kernel` as input.
        """
        names = names_of(get)
        kind, inputs1, inputs2 = self._read(x1, x2)
        matrices = tuple(n for n in names if n in (*NAMES, BY_PARAM))
        runner, weights = self._runner, self._weights
        stages = runner.stages(matrices, weights, kind, inputs1, None if x2 is None else inputs2)

        def finish(kernels: Mapping[str, Any], notes: Mapping[str, Any]) -> PyTree:
            values = {**kernels, **notes}
            if get is None:
                both = (inputs1,) if x2 is None else (inputs1, inputs2)
                own = [runner.compute(Task("single", ()), weights, kind, x) for x in both]
                values.update(runner.computation(kind).in_kernel(own[0], own[-1]))
            return self._picked(values, kind, get, names, symmetric=x2 is None)

        def check(notes: Mapping[str, Any], rows: slice, columns: slice) -> None:
            parts = ([a[part] for a in x] for x, part in ((inputs1, rows), (inputs2, columns)))
            runner.check(notes, matrices, weights, kind, *parts)

        symmetric = x2 is None and runner.computation(kind).mirrored
        own_block = stages.own_block if x2 is None else None
        mirror = mirrored if symmetric else None
        return Blocks(weights, stages.one, stages.two, stages.block, own_block, mirror, finish, check)

    def anew(self) -> KernelFn:
        """The same kernel function, whose series have the terms that the next examples need, whatever came before."""
        kernel = copy(self)
        kernel._runner = self._runner.anew()
        return kernel

    def _composed(self, kernel: Kernel, get: Any, names: tuple[str, ...]) -> Any:
        if kernel.standard_errors is not None:
            raise InputError(
                "this Kernel is an estimate, and its standard errors would be lost: sample both models as one"
            )
        kind, moments = self._model.inputs.moments(kernel, self.parameterization)
        if BY_PARAM in names:
            raise InputError(f"{BY_PARAM!r} is that of inputs: a Kernel does not say how its NTK is made up")
        values = self._run(Task("composed", names, kernel.symmetric), kind, *moments)
        values["error"] = jnp.maximum(values["error"], kernel.error)
        return self._picked(values, kind, get, names, symmetric=kernel.symmetric)

    def diag(self, x: PyTree, get: Any = None) -> Any:
        """The kernels of each example with itself, `(n, *positions)`: as the diagonal of `k(x)`, without n^2 work."""
        names = names_of(NAMES if get is None else get)
        inputs = self._model.inputs.read(x, "x")
        kind = kind_of(inputs)
        values = self._run(Task("diagonal", names), kind, inputs)
        return self._picked(values, kind, names if get is None else get, names)

    def of_examples(self, task: OwnTask, x: PyTree, *extra: Any) -> dict[str, Any]:
        """What another function of single examples returns: compiled, and its series settled, as for kernels.

        Args:
            task: makes it.
            x: the input, each leaf `(n, ...)`.
            extra: further arguments of the function.
        """
        inputs = self._model.inputs.read(x, "x")
        return self._run(task, kind_of(inputs), inputs, extra=extra)

    @property
    def computation(self) -> Computation:
        """How the kernels of inputs like the example are computed."""
        return self._runner.computation(self._model.inputs.kind)

    @property
    def weights(self) -> Weights:
        """The laws of the parameters, and which of them are trained."""
        return self._weights

    @property
    def example(self) -> PyTree:
        """The shapes and dtypes of one example, as an input with n = 1."""
        return self._model.inputs.batch_of_one

    def _run(self, task: OwnTask, kind: InputKind, *inputs: Given, extra: tuple[Any, ...] = ()) -> dict[str, Any]:
        values = self._runner.run(task, self._weights, kind, *inputs, extra=extra)
        self._error = None if isinstance(values["error"], jax.core.Tracer) else float(values["error"])
        return values

    def _picked(
        self, values: Mapping[str, Any], kind: InputKind, get: Any, names: Sequence[str], *, symmetric: bool = False
    ) -> PyTree:
        """What `get` asks for, in the structure of the outputs."""
        if get is None:
            return self._tree_of(self._kernels(values, kind, symmetric))
        if BY_PARAM in names:
            params: Any = self._model.tree
            values = {**values, BY_PARAM: [jax.tree.unflatten(params, shares) for shares in values[BY_PARAM]]}
        if isinstance(get, str):
            return self._tree_of(values[get])
        rows = zip(*(values[n] for n in names), strict=True)
        return self._tree_of([named_kernels(tuple(names))(*arrays) for arrays in rows])

    def _kernels(self, values: Mapping[str, Any], kind: InputKind, symmetric: bool) -> list[Kernel]:
        pairs, names = self._runner.computation(kind).program.outputs, names_of(None)
        rows = zip(*(values[n] for n in names), strict=True)
        own = {"error": values["error"], "parameterization": self.parameterization, "symmetric": symmetric}
        found = [dict(zip(names, arrays, strict=True)) for arrays in rows]
        return [
            Kernel(**without_errors(arrays), **own, width=pair.one.width, law=pair.law)
            for pair, arrays in zip(pairs, found, strict=True)
        ]

    def _tree_of(self, kernels: Sequence[Any]) -> PyTree:
        return jax.tree.unflatten(self._model.output_tree, kernels)

    def explain(self, x1: PyTree = None, x2: PyTree = None) -> Explanation:
        """A printable table of the steps of the kernel computation between two examples, in order; see `Row`.

        Its `rows` has one per step; what is printed, one for several in sequence that look alike, with their number.

        Args:
            x1, x2: a few examples, as of a call. With them each row also has the error of its kernel and its share of
                the time, and there is the error of the outputs (`error_bounds`). The time is measured: each step is
                compiled by itself and run on made-up numbers, for as many pairs as kernels are computed of at a time.
        """
        model, runner, found = self._model, self._runner, None
        kind, leaves = model.inputs.kind, jax.tree.leaves(model.inputs.example)
        if x1 is not None:
            kind, x1, x2 = self._arrays(x1, x2)
            leaves = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x1]
            found = found_from(runner, self._weights, kind, x1, x2)
        subject = Subject(runner.computation(kind), self._weights, model.paths, model.priors, self._options.precision)
        with runner.float64(kind):
            return explain(subject, runner.widened(kind, leaves), self._error, found)

    def error_bounds(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        """Bounds on the errors that series make in the kernels of a few examples, to first order in these errors.

        See `infnet.propagation`. Rounding errors come on top. The bounds are zero where all steps are closed forms.

        Args:
            x1, x2: as of a call; all pairs are computed at a time, step by step.
            get: "nngp" or "ntk" for an array like that kernel, or a tuple of them; None for both, a namedtuple.

        Raises:
            InputError: shapes or names are wrong; or the kernels are sampled, which gives them standard errors.
        """
        names = names_of(NAMES if get is None else get)
        if not set(names) <= set(NAMES):
            raise InputError(f"errors are of the kernels {NAMES}, not of {get!r}")
        kind, x1, x2 = self._arrays(x1, x2)
        values, _ = self._runner.error_bounds(names, self._weights, kind, x1, x2)
        return self._picked(values, kind, names if get is None else get, names)

    def _arrays(self, x1: PyTree, x2: PyTree) -> tuple[InputKind, list[jax.Array], list[jax.Array]]:
        """Examples, which must be arrays with numbers in them."""
        found = self._read(x1, x2)
        if any(isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) for x in (*found[1], *found[2])):
            raise InputError("errors and times are those of examples: x1 and x2 must be arrays, and not under `jit`")
        return found

    @property
    def law(self) -> PyTree:
        """What is known of the law of the output besides its kernels, as `Kernel.law`."""
        program = self._runner.computation(self._model.inputs.kind).program
        return self._tree_of([pair.law for pair in program.outputs])

    # Hyperparameters

    @property
    def hyperparameters(self) -> PyTree:
        """The standard deviations of the parameters, as a pytree of the structure of the parameters."""
        return jax.tree.unflatten(self._model.tree, list(self._weights.std))

    def with_hyperparameters(self, tree: PyTree) -> KernelFn:
        """The kernel function with other standard deviations; nothing is traced again.

        Kernels are differentiable in them: `jax.grad(lambda h: loss(k.with_hyperparameters(h)(x)))(k.hyperparameters)`.

        Args:
            tree: of the structure and shapes of `hyperparameters`.

        Raises:
            InputError: the structure or a shape is another.
        """
        found: Any = jax.tree.structure(tree)
        if found != self._model.tree:
            raise InputError(
                f"hyperparameters must have the structure of the parameters, {self._model.tree}, not {found}"
            )
        stds = jax.tree.leaves(tree)
        for path, new, prior in zip(self._model.paths, stds, self._model.priors, strict=True):
            if np.shape(new) != np.shape(prior.std):
                raise InputError(f"the std of {path!r} has shape {np.shape(prior.std)}, not {np.shape(new)}")
        for leaf in self._runner.computation(self._model.inputs.kind).program.fixed_scales:
            if not isinstance(stds[leaf], jax.core.Tracer) and np.any(np.asarray(stds[leaf])):
                raise InputError(
                    f"{self._model.paths[leaf]!r} multiplies a feature and starts as a constant; with a standard "
                    "deviation the product would not be Gaussian: give the model itself a random initialiser there"
                )
        kernel = copy(self)
        kernel._weights = replace(self._weights, std=stds)
        return kernel

    def with_model(self, apply_fn: Callable[..., PyTree], priors: PyTree) -> KernelFn:
        """That of another model with the same inputs, names of parameters, options and learning rates.

        Raises:
            InputError: the parameters have another structure; also the errors of `kernel_fn`.
        """
        model = self._model.of(apply_fn, priors)
        return KernelFn(model, model.weights(list(self._weights.learning_rate)), self._options)

    def __deepcopy__(self, memo: Any) -> KernelFn:
        """Itself, as of any function: scikit-learn copies the arguments of its estimators."""
        return self

    def __repr__(self) -> str:
        shapes = ", ".join(str(("n", *x.shape)).replace("'", "") for x in jax.tree.leaves(self._model.inputs.example))
        return (
            f"KernelFn(inputs {shapes}, {self.parameterization} parameterization, {len(self._model.paths)} parameters)"
        )


def _may_be_sharded(inputs: Sequence[jax.Array]) -> bool:
    """Whether examples may lie on several devices; while a function is traced, nobody knows."""
    if any(isinstance(x, jax.core.Tracer) for x in inputs):
        return jax.device_count() > 1
    return any(len(x.sharding.device_set) > 1 for x in inputs)
