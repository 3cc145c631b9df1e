"""`kernel_fn`: from a model to the function that computes its infinite-width kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.accuracy import largest_variances, raise_not_finite, series_nodes, settled
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
from infnet.computation import Computation
from infnet.context import Weights
from infnet.errors import InputError, NumericalError
from infnet.execute import Given
from infnet.explain import Explanation, explain
from infnet.float64 import in_float64
from infnet.kernel import Kernel
from infnet.model import Model
from infnet.priors import check_readable

PyTree = Any
# What is compiled for the kernels in the tuple: a function of the weights and the inputs.
Make = Callable[[Computation, Sequence[str]], Callable[..., Any]]
# The variances of other examples may be larger than those of the ones at hand.
MARGIN = 2.0


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
    on_unsupported: str = "raise",
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
        on_unsupported: reserved; only "raise" is accepted so far.

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
    one_of("on_unsupported", on_unsupported, ("raise",))
    check_readable(priors)
    model = Model(apply_fn, priors, Inputs(example_inputs, batch_axis), output, cross)
    rates = learning_rates(model.paths, model.tree, trainable, lr_scale)
    weights = Weights([p.mean for p in model.priors], [p.std for p in model.priors], rates)
    options = Options(
        parameterization, precision, positive("tol", tol), None if q_max is None else positive("q_max", q_max)
    )
    return KernelFn(model, weights, options)


@dataclass(frozen=True)
class Options:
    """How kernels are computed; see `kernel_fn`."""

    parameterization: str
    precision: str
    tol: float
    q_max: float | None


class KernelFn:
    """A kernel function: `k(x1, x2)` computes the kernels of a model between two sets of examples."""

    def __init__(self, model: Model, weights: Weights, options: Options):
        self.parameterization = options.parameterization
        self._model = model
        self._weights = weights
        self._options = options
        self._computations: dict[InputKind, Computation] = {}
        self._variances: dict[InputKind, dict[int, float]] = {}
        self._compiled: dict[Any, Any] = {}
        self._error: float | None = None
        # What has no kernel is refused now, rather than at the first call.
        kind = model.inputs.kind
        self._computation(kind).plan(("nngp",), (1, 2))
        if model.inputs.values is not None:
            self._settle(kind, model.inputs.values)

    # Calling

    def __call__(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        """The kernels between two sets of examples.

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

        Raises:
            InputError: shapes or names are wrong.
            UnsupportedError: a series does not converge to the tolerance at the variances of these examples. Like the
                next, not under `jax.jit`; there, see `Kernel.error`.
            NumericalError: the inputs are finite, but a kernel is not; the error names the layer.
        """
        names = names_of(get)
        if isinstance(x1, Kernel) and x2 is None:
            return self._composed(x1, get, names)
        inputs1 = self._model.inputs.read(x1, "x1")
        inputs2 = inputs1 if x2 is None else self._model.inputs.read(x2, "x2")
        kind, other = kind_of(inputs1), kind_of(inputs2)
        if kind != other:
            raise InputError(f"x1 and x2 have different dtypes: {kind.dtypes} and {other.dtypes}")
        sharded = _may_be_sharded([*inputs1, *inputs2])

        def make(computation: Computation, names: Sequence[str]) -> Callable[..., Any]:
            return computation.matrix(names, symmetric=x2 is None, sharded=sharded)

        values = self._run(("matrix", x2 is None, sharded), make, names, kind, inputs1, inputs2)
        return self._picked(values, kind, get, names, symmetric=x2 is None)

    def _composed(self, kernel: Kernel, get: Any, names: tuple[str, ...]) -> Any:
        kind, moments = self._model.inputs.moments(kernel, self.parameterization)
        if BY_PARAM in names:
            raise InputError(f"{BY_PARAM!r} is that of inputs: a Kernel does not say how its NTK is made up")
        make = partial(Computation.composed, symmetric=kernel.symmetric)
        values = self._run(("composed", kernel.symmetric), make, names, kind, *moments)
        values["error"] = jnp.maximum(values["error"], kernel.error)
        return self._picked(values, kind, get, names, symmetric=kernel.symmetric)

    def diag(self, x: PyTree, get: Any = None) -> Any:
        """The kernels of each example with itself, `(n, *positions)`: as the diagonal of `k(x)`, without n^2 work."""
        names = names_of(NAMES if get is None else get)
        inputs = self._model.inputs.read(x, "x")
        kind = kind_of(inputs)
        values = self._run(("diagonal",), Computation.diagonal, names, kind, inputs)
        return self._picked(values, kind, names if get is None else get, names)

    def of_examples(
        self, key: tuple[Any, ...], make: Make, names: tuple[str, ...], x: PyTree, *extra: Any
    ) -> dict[str, Any]:
        """What another function of single examples returns: compiled, and its series settled, as for kernels.

        Args:
            key: says which function it is.
            make: makes it of the computation and `names`: a function of (weights, leaves of x, *extra) that returns
                a dict with "error" and "finite" in it, as `Computation.diagonal` does.
            names: of the kernels that it is about.
            x: the input, each leaf `(n, ...)`.
            extra: further arguments.
        """
        inputs = self._model.inputs.read(x, "x")
        return self._run(key, make, names, kind_of(inputs), inputs, extra=extra)

    @property
    def computation(self) -> Computation:
        """How the kernels of inputs like the example are computed."""
        return self._computation(self._model.inputs.kind)

    @property
    def weights(self) -> Weights:
        """The laws of the parameters, and which of them are trained."""
        return self._weights

    @property
    def example(self) -> PyTree:
        """The shapes and dtypes of one example, as an input with n = 1."""
        return self._model.inputs.batch_of_one

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
        pairs, names = self._computation(kind).program.outputs, names_of(None)
        rows = zip(*(values[n] for n in names), strict=True)
        own = {"error": values["error"], "parameterization": self.parameterization, "symmetric": symmetric}
        return [
            Kernel(**dict(zip(names, arrays, strict=True)), **own, width=pair.one.width, law=pair.law)
            for pair, arrays in zip(pairs, rows, strict=True)
        ]

    def _tree_of(self, kernels: Sequence[Any]) -> PyTree:
        return jax.tree.unflatten(self._model.output_tree, kernels)

    def explain(self) -> Explanation:
        """A printable table: one row per step of the kernel computation, in order."""
        computation, model = self._computation(self._model.inputs.kind), self._model
        return explain(computation, model.paths, model.priors, self._options.precision, self._error)

    @property
    def law(self) -> PyTree:
        """What is known of the law of the output besides its kernels, as `Kernel.law`."""
        program = self._computation(self._model.inputs.kind).program
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
        for leaf in self._computation(self._model.inputs.kind).program.fixed_scales:
            if not isinstance(stds[leaf], jax.core.Tracer) and np.any(np.asarray(stds[leaf])):
                raise InputError(
                    f"{self._model.paths[leaf]!r} multiplies a feature and starts as a constant; with a standard "
                    "deviation the product would not be Gaussian: give the model itself a random initialiser there"
                )
        kernel = copy(self)
        kernel._weights = replace(self._weights, std=stds)
        return kernel

    def __deepcopy__(self, memo: Any) -> KernelFn:
        """Itself, as of any function: scikit-learn copies the arguments of its estimators."""
        return self

    def __repr__(self) -> str:
        shapes = ", ".join(str(("n", *x.shape)).replace("'", "") for x in jax.tree.leaves(self._model.inputs.example))
        return (
            f"KernelFn(inputs {shapes}, {self.parameterization} parameterization, {len(self._model.paths)} parameters)"
        )

    # Running

    def _run(
        self,
        key: tuple[Any, ...],
        make: Make,
        names: tuple[str, ...],
        kind: InputKind,
        *inputs: Given,
        extra: tuple[Any, ...] = (),
    ) -> dict[str, Any]:
        """Compile, compute, and check what outside of `jit` can be checked.

        Args:
            key, make, names: see `of_examples`.
            kind: of the inputs.
            inputs: x1, x2, and the pairs of them if the input is random itself.
            extra: further arguments.
        """
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((self._weights, inputs, extra)))
        if not traced:
            self._settle_at_first(kind, inputs[0])
        arguments = (*inputs, *extra)
        values = self._compute(key, make, names, kind, arguments)
        if not traced and float(values["error"]) > self._options.tol:
            for x in inputs[:2]:
                self._settle(kind, x)
            values = self._compute(key, make, names, kind, arguments)
            self._check_error(float(values["error"]))
        self._error = None if traced else float(values["error"])
        finite = values.pop("finite")
        if not traced and not finite:
            self._raise_not_finite(values, kind, inputs)
        return values

    def _compute(self, key: Any, make: Make, names: tuple[str, ...], kind: InputKind, inputs: Any) -> dict[str, Any]:
        computation = self._computation(kind)
        key = (kind, *key, names, tuple(computation.activations.values()))
        if key not in self._compiled:
            with self._float64(kind):
                function = make(computation, tuple(dict.fromkeys("ntk" if n == BY_PARAM else n for n in names)))
            if BY_PARAM in names:
                function = computation.by_param(function)
            self._compiled[key] = jax.jit(in_float64(function) if self._widens(kind) else function)
        return dict(self._compiled[key](self._weights, *inputs))

    def _computation(self, kind: InputKind) -> Computation:
        if kind not in self._computations:
            with self._float64(kind):
                program = self._model.program(kind, self._widens(kind))
                # Sums of products of half-precision inputs are formed in float32.
                dtype = jnp.promote_types(program.trace.avals[program.trace.outputs[0]].dtype, jnp.float32)
            self._computations[kind] = Computation(program, self.parameterization == "ntk", dtype)
        return self._computations[kind]

    def _widens(self, kind: InputKind) -> bool:
        return self._options.precision == "highest" and jnp.float64 not in kind.dtypes

    def _float64(self, kind: InputKind) -> AbstractContextManager[Any]:
        return jax.enable_x64(True) if self._widens(kind) else nullcontext()

    # Series

    def _settle_at_first(self, kind: InputKind, x: Given) -> None:
        if kind not in self._variances:
            given = None if kind.law else self._model.inputs.values
            self._settle(kind, x if given is None else given)

    def _settle(self, kind: InputKind, x: Given) -> None:
        """Give the series as many terms as the examples `x` need, and at least as many as they had."""
        computation, known = self._computation(kind), self._variances.get(kind, {})
        plan = computation.plan(("nngp",), (1, 2))
        if not series_nodes(plan):
            self._variances[kind] = {}
            return
        with self._float64(kind):
            found = largest_variances(computation, plan, self._weights, x)
        given = self._options.q_max
        largest = {i: max(known.get(i, 0.0), q if given is None else given) for i, q in found.items()}
        activations = settled(computation, plan, self._options.tol, largest, MARGIN if given is None else 1.0)
        self._computations[kind] = replace(computation, activations=activations)
        self._variances[kind] = largest

    def _check_error(self, error: float) -> None:
        if error > self._options.tol:
            raise NumericalError(
                f"the kernel of a layer has a relative error of up to {error:.2g}, above tol={self._options.tol:g}\n"
                "  why:    a series has too few terms for the variances of these examples (with q_max= below them), or "
                "rounding errors are this large (a bounded piecewise activation at large variances)\n"
                '  remedy: precision="highest", a larger q_max=, smaller weights, or a larger tol='
            )

    def _raise_not_finite(self, values: Mapping[str, Any], kind: InputKind, inputs: Sequence[Given]) -> None:
        kernels = [k for n in NAMES for k in values.get(n, []) if not bool(jnp.isfinite(k).all())]
        first = np.argwhere(~np.isfinite(np.asarray(kernels[0])))[0]
        x1, x2, *pairs = inputs if len(inputs) > 1 else (*inputs, *inputs)
        i, j = int(first[0]), int(first[min(1, len(inputs) - 1)])
        places = [(1, i, x1), (2, j, x2), *((0, (i, j), x) for x in pairs)]
        examples = {side: jax.tree.map(itemgetter(place), x) for side, place, x in places}
        with self._float64(kind):
            computation = self._computation(kind)
            raise_not_finite(computation, computation.plan(NAMES, (1, 2)), self._weights, examples)


def _may_be_sharded(inputs: Sequence[jax.Array]) -> bool:
    """Whether examples may lie on several devices; while a function is traced, nobody knows."""
    if any(isinstance(x, jax.core.Tracer) for x in inputs):
        return jax.device_count() > 1
    return any(len(x.sharding.device_set) > 1 for x in inputs)
