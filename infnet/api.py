"""`kernel_fn`: from a model to the function that computes its infinite-width kernel."""

from __future__ import annotations

import fnmatch
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.execute import Context, Values, Weights, example_values, pair_moments
from infnet.explain import Explanation, explain
from infnet.independence import one_example
from infnet.kernel import Kernel
from infnet.plan import Ask, Moments, Plan, make_plan
from infnet.priors import Prior, Unreadable, check_readable, path_name
from infnet.program import Output, Program
from infnet.rules import read, rule
from infnet.tiling import matrix, symmetric_matrix, tile_sizes
from infnet.trace import trace_at_batch_sizes

PyTree = Any
NAMES = ("nngp", "ntk")


def kernel_fn(
    apply_fn: Callable[..., PyTree],
    priors: PyTree,
    example_inputs: PyTree,
    *,
    parameterization: str = "as_model",
    trainable: Any = None,
    lr_scale: Any = None,
    output: Callable[[PyTree], jax.Array] | None = None,
    precision: str = "default",
    tol: float = 1e-6,
    q_max: float | None = None,
    batch_axis: int = 0,
    on_unsupported: str = "raise",
) -> KernelFn:
    """The kernel function of the infinite-width limit of a model.

    Args:
        apply_fn: `(params, *inputs) -> output`, any JAX function; inputs and output have a leading batch axis.
        priors: pytree of `Prior`, of the structure of `params` (see `infer_priors`).
        example_inputs: what `apply_fn` takes: one input (an array or a pytree of arrays, or of
            `jax.ShapeDtypeStruct`), or a tuple of several. Only shapes and dtypes count.
        parameterization: "as_model" for the NTK of the model as it is written, gradients with respect to the
            parameters themselves; "ntk" as if every weight were written as std * theta.
        trainable: which parameters are trained: a predicate on the path, a mapping from glob to bool, or a pytree of
            bool. The others leave the NTK.
        lr_scale: relative learning rates: a mapping from glob to number, or a pytree of numbers.
        output: picks one array from structured outputs.
        batch_axis: the axis of the inputs that counts examples.
        precision, tol, q_max, on_unsupported: reserved; only their defaults are accepted so far. All kernels here are
            closed forms, so there is no tolerance to choose.

    Returns:
        The kernel function. It is traced now, and again for arguments of other dtypes.

    Raises:
        UnsupportedError: the model has no closed-form limit, or infnet has no rule for an operation of it.
        PriorError: a parameter whose law could not be read off `init`.
        InputError: an argument is of the wrong kind.
    """
    if parameterization not in ("as_model", "ntk"):
        raise InputError(f'parameterization must be "as_model" or "ntk", not {parameterization!r}')
    if (precision, tol, q_max, on_unsupported) != ("default", 1e-6, None, "raise"):
        raise InputError(
            'precision, tol, q_max and on_unsupported accept only "default", 1e-6, None and "raise" so far'
        )
    check_readable(priors)
    return KernelFn(apply_fn, priors, example_inputs, parameterization, trainable, lr_scale, output, batch_axis)


class KernelFn:
    """A kernel function: `k(x1, x2)` computes the kernels of a model between two sets of examples."""

    def __init__(
        self,
        apply_fn: Callable[..., PyTree],
        priors: PyTree,
        example_inputs: PyTree,
        parameterization: str,
        trainable: Any,
        lr_scale: Any,
        output: Callable[[PyTree], jax.Array] | None,
        batch_axis: int,
    ):
        self.parameterization = parameterization
        self._apply_fn = apply_fn
        self._output = output
        self._batch_axis = batch_axis
        self._several = isinstance(example_inputs, tuple)
        self._example = _per_example(example_inputs if self._several else (example_inputs,), batch_axis)
        paths, self._params_tree = jax.tree_util.tree_flatten_with_path(priors, is_leaf=_is_prior)
        self._paths = [path_name(path) for path, _ in paths]
        self._priors: list[Prior] = [prior for _, prior in paths]
        for path, prior in zip(self._paths, self._priors, strict=True):
            if not isinstance(prior, Prior) or prior.shape is None:
                raise InputError(
                    f"priors must be a pytree of infnet.Prior with shapes, but {path!r} is {prior!r}: "
                    "use infnet.infer_priors(init_fn, ...), or give Prior(mean, std, shape=..., dtype=...)"
                )
        rates = learning_rates(self._paths, self._params_tree, trainable, lr_scale)
        self._weights = Weights([p.mean for p in self._priors], [p.std for p in self._priors], rates)
        self._programs: dict[Any, Program] = {}
        self._compiled: dict[Any, Any] = {}
        # What has no closed form is refused now, rather than at the first call.
        self._plan(self._program(jax.tree.map(lambda x: x.dtype, self._example)), ("nngp",), (1, 2))

    # Calling

    def __call__(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        """The kernels between two sets of examples.

        Args:
            x1: the input (a tuple of inputs if the model takes several), each leaf `(n1, ...)`.
            x2: likewise `(n2, ...)`; None for x1 itself.
            get: "nngp" or "ntk" for an array `(n1, n2, *positions)`; a tuple of them for a namedtuple; None for a
                `Kernel`. An output with positions keeps them, in natural order: `(n1, n2, h, h', w, w', ...)`;
                axes of size 1 are dropped, and positions flattened together with channels are averaged over.

        Raises:
            InputError: shapes or names are wrong.
        """
        names = _names(get)
        inputs1, _ = self._inputs(x1, "x1")
        inputs2 = inputs1 if x2 is None else self._inputs(x2, "x2")[0]
        dtypes = jax.tree.map(lambda x: x.dtype, inputs1)
        if dtypes != jax.tree.map(lambda x: x.dtype, inputs2):
            raise InputError(
                f"x1 and x2 have different dtypes: {dtypes} and {[x.dtype for x in jax.tree.leaves(inputs2)]}"
            )
        program = self._program(dtypes)
        key = (tuple(map(str, jax.tree.leaves(dtypes))), names, x2 is None)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self._matrix(program, names, symmetric=x2 is None))
        values = self._compiled[key](self._weights, jax.tree.leaves(inputs1), jax.tree.leaves(inputs2))
        if get is None:
            return Kernel(**values, width=program.output.width, parameterization=self.parameterization)
        return values[get] if isinstance(get, str) else namedtuple("Kernels", names)(*(values[n] for n in names))

    def diag(self, x: PyTree, get: Any = None) -> Any:
        """The kernels of each example with itself, `(n, *positions)`: as the diagonal of `k(x)`, without n^2 work."""
        names = _names(get) if get is not None else NAMES
        inputs, _ = self._inputs(x, "x")
        program = self._program(jax.tree.map(lambda a: a.dtype, inputs))
        key = (tuple(str(a.dtype) for a in jax.tree.leaves(inputs)), names, "diag")
        if key not in self._compiled:
            self._compiled[key] = jax.jit(jax.vmap(self._own(program, names), (None, 0)))
        values = self._compiled[key](self._weights, jax.tree.leaves(inputs))
        return values[get] if isinstance(get, str) else namedtuple("Kernels", names)(*(values[n] for n in names))

    def explain(self) -> Explanation:
        """A printable table: one row per step of the kernel computation, in order."""
        program = self._program(jax.tree.map(lambda x: x.dtype, self._example))
        return explain(program, self._plan(program, ("ntk",), (1, 2)), self._paths, self._priors, self.parameterization)

    def __repr__(self) -> str:
        shapes = ", ".join(str(("n", *x.shape)).replace("'", "") for x in jax.tree.leaves(self._example))
        return f"KernelFn(inputs {shapes}, {self.parameterization} parameterization, {len(self._paths)} parameters)"

    # Building

    def _program(self, dtypes: PyTree) -> Program:
        key = tuple(map(str, jax.tree.leaves(dtypes)))
        if key not in self._programs:
            inputs = jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), self._example, dtypes)
            leaves = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in self._priors]
            params = jax.tree.unflatten(self._params_tree, leaves)
            traced = one_example(trace_at_batch_sizes(self._single_output, params, inputs), len(leaves))
            nonzero_mean = frozenset(i for i, p in enumerate(self._priors) if np.any(np.asarray(p.mean)))
            varying = {i: np.shape(p.std) for i, p in enumerate(self._priors) if np.size(p.std) > 1}
            self._programs[key] = read(traced, nonzero_mean, varying)
        return self._programs[key]

    def _single_output(self, params: PyTree, *inputs: PyTree) -> jax.Array:
        result = self._apply_fn(params, *jax.tree.map(lambda x: jnp.moveaxis(x, 0, self._batch_axis), inputs))
        result = self._output(result) if self._output else result
        leaves = jax.tree.leaves(result)
        if len(leaves) != 1:
            raise InputError(
                f"the model returns {len(leaves)} arrays; pick one with output=, for example "
                "output=lambda y: y['logits']"
            )
        return leaves[0]

    def _inputs(self, x: PyTree, name: str) -> tuple[PyTree, int]:
        if isinstance(x, Kernel):
            raise InputError("a kernel function takes inputs, not the Kernel of another model, so far")
        inputs = x if self._several else (x,)
        if not _same_structure(inputs, self._example):
            raise InputError(
                f"{name} must have the structure of the example input, {jax.tree.structure(self._example)}, "
                f"not {jax.tree.structure(inputs)}"
            )
        inputs = jax.tree.map(lambda a: _batch_first(jnp.asarray(a), self._batch_axis), inputs)
        for leaf, example in zip(jax.tree.leaves(inputs), jax.tree.leaves(self._example), strict=True):
            if leaf.shape[1:] != example.shape or leaf.ndim != len(example.shape) + 1:
                expected = str(("n", *example.shape)).replace("'", "")
                raise InputError(
                    f"{name} has shape {leaf.shape}, but the model was traced for {expected}, where n is any number of "
                    "examples; for other shapes make another kernel function"
                )
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(inputs)}
        if len(sizes) != 1:
            raise InputError(f"the inputs in {name} hold different numbers of examples: {sorted(sizes)}")
        return inputs, sizes.pop()

    def _plan(self, program: Program, names: Sequence[str], side: tuple[int, int]) -> Plan:
        output = program.output
        asks = [Ask(s.node, s.node, 0, side, output.layout, "ntk" in names) for s in output.segments]
        return make_plan(asks, rule)

    def _matrix(self, program: Program, names: Sequence[str], symmetric: bool) -> Callable[..., dict[str, jax.Array]]:
        """The function of (weights, x1, x2) that computes everything in `names`."""
        wanted = [n for n in names if n in NAMES]
        plan = self._plan(program, wanted, (1, 2))
        own = self._own(program, wanted)

        def kernels(weights: Weights, x1: Sequence[jax.Array], x2: Sequence[jax.Array]) -> dict[str, jax.Array]:
            context = self._context(program, weights)

            def of_example(side: int) -> Callable[[Sequence[jax.Array]], Values]:
                return jax.vmap(lambda x: example_values(plan, program.trace, context, side, x))

            def of_pair(one: Values, two: Values) -> dict[str, jax.Array]:
                return _outputs(program.output, pair_moments(plan, context, {1: one, 2: two}), wanted, context.dtype)

            def block(rows: Any, columns: Any) -> dict[str, jax.Array]:
                return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(rows, columns)

            n1, n2 = x1[0].shape[0], x2[0].shape[0]
            tile = tile_sizes(plan, n1, n2, symmetric)
            diagonal = jax.vmap(own, (None, 0))(weights, x1) if symmetric or "cov1" in names else {}
            if symmetric:
                both = (of_example(1)(x1), of_example(2)(x1))
                values = symmetric_matrix(lambda r, c: block(r[0], c[1]), both, tile[0])
                # An example with itself has rho = 1 exactly, which a matrix product rounds.
                index = jnp.arange(n1)
                values = {n: v.at[index, index].set(diagonal[n]) for n, v in values.items()}
            else:
                values = matrix(block, of_example(1)(x1), of_example(2)(x2), tile)
            if "cov1" in names:
                values["cov1"] = diagonal["nngp"]
                values["cov2"] = diagonal["nngp"] if symmetric else jax.vmap(own, (None, 0))(weights, x2)["nngp"]
            return values

        return kernels

    def _own(self, program: Program, names: Sequence[str]) -> Callable[..., dict[str, jax.Array]]:
        """The function of (weights, x) that computes the kernels of one example with itself."""
        plan = self._plan(program, names, (1, 1))

        def kernels(weights: Weights, x: Sequence[jax.Array]) -> dict[str, jax.Array]:
            context = self._context(program, weights)
            values = example_values(plan, program.trace, context, 1, x)
            return _outputs(program.output, pair_moments(plan, context, {1: values}), names, context.dtype)

        return kernels

    def _context(self, program: Program, weights: Weights) -> Context:
        # Sums of products of half-precision inputs are formed in float32.
        dtype = jnp.promote_types(program.trace.avals[program.trace.outputs[0]].dtype, jnp.float32)
        return Context(weights, self.parameterization == "ntk", dtype)


def _outputs(output: Output, moments: Sequence[Moments], names: Sequence[str], dtype: Any) -> dict[str, jax.Array]:
    """The kernels of an output, averaged over its segments, with positions in natural order."""
    blocks = {"nngp": [m.s for m in moments], "ntk": [m.t for m in moments]}
    kept = [k for k in range(len(output.layout.left)) if k not in output.averaged]
    order = [axis for k in kept for axis in (2 * k + 1, 2 * k)]  # the position of x1 first
    channels = [axis for k in output.averaged for axis in (2 * k, 2 * k + 1)]

    def in_order(mean: jax.Array) -> jax.Array:
        return jnp.transpose(mean, [*order, *channels]).mean(range(len(order), mean.ndim))

    return {name: in_order(_mean_over_segments(output, blocks[name], dtype)) for name in names}


def _mean_over_segments(output: Output, blocks: Sequence[jax.Array | None], dtype: Any) -> jax.Array:
    if len(blocks) == 1 and blocks[0] is not None:
        return blocks[0]
    mean, total = jnp.zeros(output.layout.shape, dtype), sum(s.width for s in output.segments)
    for segment, block in zip(output.segments, blocks, strict=True):
        mean = mean if block is None else mean + (segment.width / total) * block
    return mean


def _names(get: Any) -> tuple[str, ...]:
    if get is None:
        return (*NAMES, "cov1", "cov2")
    names = (get,) if isinstance(get, str) else tuple(get) if isinstance(get, tuple | list) else ()
    if not names or any(n not in NAMES for n in names) or len(set(names)) < len(names):
        raise InputError(f'get must be "nngp", "ntk", a tuple of them, or None for a Kernel, not {get!r}')
    return names


def _same_structure(one: PyTree, two: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(two)]
    return structures[0] == structures[1]


def _batch_first(x: jax.Array, batch_axis: int) -> jax.Array:
    return jnp.moveaxis(x, batch_axis, 0) if -x.ndim <= batch_axis < x.ndim else x


def _per_example(inputs: PyTree, batch_axis: int) -> PyTree:
    for leaf in jax.tree.leaves(inputs):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise InputError(f"example inputs must be arrays or jax.ShapeDtypeStruct, not {leaf!r}")
        if not -len(leaf.shape) <= batch_axis < len(leaf.shape):
            raise InputError(f"example inputs must have a batch axis {batch_axis}, but one has shape {leaf.shape}")

    def one(x: Any) -> jax.ShapeDtypeStruct:
        axis = batch_axis % len(x.shape)
        return jax.ShapeDtypeStruct((*x.shape[:axis], *x.shape[axis + 1 :]), jnp.result_type(x.dtype))

    return jax.tree.map(one, inputs)


def _is_prior(leaf: Any) -> bool:
    return isinstance(leaf, Prior | Unreadable)


def learning_rates(paths: Sequence[str], tree: Any, trainable: Any, lr_scale: Any) -> list[float]:
    """The relative learning rate of each parameter: 0 where it is frozen."""
    trained = _by_path(paths, tree, trainable, "trainable", True)
    scales = _by_path(paths, tree, lr_scale, "lr_scale", 1.0)
    return [float(s) if t else 0.0 for t, s in zip(trained, scales, strict=True)]


def _by_path(paths: Sequence[str], tree: Any, choice: Any, name: str, default: Any) -> list[Any]:
    if choice is None:
        return [default] * len(paths)
    if callable(choice):
        return [choice(path) for path in paths]
    if jax.tree.structure(choice) == tree:
        return jax.tree.leaves(choice)
    if not isinstance(choice, Mapping):
        raise InputError(f"{name} must be a predicate on parameter paths, a mapping from glob to value, or a pytree")
    values = [default] * len(paths)
    for pattern, value in choice.items():
        short = [path.removeprefix("params/") for path in paths]
        found = [
            i for i, p in enumerate(paths) if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(short[i], pattern)
        ]
        if not found:
            raise InputError(f"{name}: no parameter matches {pattern!r}; the parameters are {', '.join(paths)}")
        for i in found:
            values[i] = value
    return values
