"""Training on any loss in the space of functions: gradient flow, solved numerically, and steps of linear optimizers.

With r the derivative of the loss in the outputs on the training set, the outputs of a network that is linear in its
parameters move by df/dt = -Θ r (Lee et al. 2019, arXiv:1902.06720, eqs. 4 and 5); of the optimizers see
`infnet/predict/linear_optimizers.py`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import positive
from infnet.errors import InputError, NumericalError
from infnet.predict.axes import OutputAxes, Shape
from infnet.predict.checks import is_traced, require_finite
from infnet.predict.linear_optimizers import require_linear
from infnet.predict.posterior import pytree
from infnet.predict.training_set import (
    cross_matrices,
    initial,
    learning_rate_of,
    momentum_of,
    ntk_of,
    require_asked,
    step_counts,
    times,
    train_matrices,
    train_targets,
)

Array = jax.Array
Loss = Callable[[Array, Array], Array]

# Steps of the solver.
MAX_STEPS = 2**16


@pytree()
@dataclass(frozen=True)
class ODEState:
    """Outputs, and their velocities where there is momentum; at several times with leading axes for these."""

    fx_train: Array | None = None
    """Outputs on the training set, (n, o, ...)."""
    fx_test: Array | None = None
    """Outputs on the test set, (m, o, ...)."""
    qx_train: Array | None = None
    """Velocities of the former; None where there is no momentum."""
    qx_test: Array | None = None
    """Velocities of the latter."""


def gradient_descent(
    loss: Loss,
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    momentum: Any = None,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    diagonal_axes: int | Sequence[int] = (),
    optimizer: Any = None,
    decay_to_init: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    max_steps: int = MAX_STEPS,
    progress: Any = False,
) -> LossTraining:
    """Predicts training on any loss, in the space of functions.

    At times t it is gradient flow, df/dt = -learning_rate * Θ dloss/df, solved by diffrax
    (`pip install "infnet[predict]"`). With momentum μ it is the flow that Neural Tangents has, in which time counts
    steps: d²f/ds² = -Θ dloss/df - (1 - μ) / √learning_rate * df/ds at s = √learning_rate * t.

    After steps it is training with an optax optimizer, exactly as the linearised network would: by default with
    `optax.sgd(learning_rate, momentum)`, else with any that is linear in gradients: `optax.sgd` with Nesterov's
    momentum and schedules, `optax.trace`, `optax.ema`, chains of these. That it is linear is proved from its jaxpr;
    others, such as Adam, are refused.

    Args:
        loss: `loss(fx, y_train)`, a scalar, of all outputs `(n, o, ...)`: optax losses are to be averaged or summed.
        k_train_train: `(n, n, o, o', ...)` kernel of the training set: an array, or anything with the attribute `.ntk`.
        y_train: targets, as the loss takes them, examples on axis 0. If they are integers, as labels are, the outputs
            have the shape of `fx_train_0`, which must be given as an array; else that of the targets.
        learning_rate: a positive scalar.
        momentum: in [0, 1), or None.
        trace_axes, diagonal_axes: axes of the outputs that kernels lack, or have once; see `gradient_descent_mse`.
        optimizer: an `optax.GradientTransformation`, in place of `learning_rate` and `momentum`.
        decay_to_init: allows optimizers that use parameters, as weight decay does, and gives them the displacements
            from their initial values in place of these: they decay to where they started, not to 0.
        rtol, atol: tolerances of the solver, for outputs; 1e-8 in float64, 1e-5 in float32.
        solver: a diffrax solver; `diffrax.Tsit5()` by default. Where eigenvalues differ by many orders of magnitude,
            and times are long, an implicit one, `diffrax.Kvaerno5()`, takes fewer steps.
        max_steps: of the solver.
        progress: whether to print how far the solver is; or a progress meter of diffrax.

    Returns:
        `predict(t=None, fx_train_0=0., fx_test_0=None, k_test_train=None, *, steps=None)`, see `LossTraining`.

    Raises:
        InputError: a shape, a dtype or an option is wrong, or the optimizer is not linear.
        NumericalError: (outside `jit`) a number is not finite, or the kernel is not symmetric.
    """
    rate, mu = learning_rate_of(learning_rate), momentum_of(momentum)
    if optimizer is not None:
        if momentum is not None or is_traced(rate) or float(rate) != 1:
            raise InputError("an optimizer has its own learning rate and momentum: leave the arguments out.")
        require_linear(optimizer, decay_to_init)
    kernel = ntk_of(k_train_train, "k_train_train")
    y = jnp.asarray(y_train)
    if jnp.issubdtype(y.dtype, jnp.integer) or y.dtype == bool:
        if not y.ndim or not y.size:
            raise InputError(f"y_train must have shape (n, ...) with n >= 1 training points; got {y.shape}.")
    else:
        y = train_targets(y)
        train_matrices(kernel, OutputAxes.read(y.shape, trace_axes, diagonal_axes), len(y))
    precision = 1e-8 if jnp.result_type(float) == jnp.float64 else 1e-5
    relative, absolute = (precision if x is None else positive(n, x) for n, x in (("rtol", rtol), ("atol", atol)))
    flow = _Flow(relative, absolute, solver, int(positive("max_steps", max_steps)), progress)
    return LossTraining(loss, kernel, y, rate, mu, trace_axes, diagonal_axes, optimizer, flow)


@dataclass(frozen=True)
class _Flow:
    """How to solve differential equations."""

    rtol: float
    atol: float
    solver: Any
    max_steps: int
    progress: Any

    def solve(self, velocity: _Velocity, start: ODEState, args: Any, ends: Array) -> tuple[ODEState, Array]:
        """The states at times `ends`, in ascending order, and whether the solver got there."""
        diffrax = _needed("diffrax")
        controller = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        meter = diffrax.TextProgressMeter() if self.progress is True else self.progress or diffrax.NoProgressMeter()
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            self.solver or diffrax.Tsit5(),
            t0=0.0,
            t1=ends[-1],
            dt0=None,
            y0=start,
            args=args,
            saveat=diffrax.SaveAt(ts=ends),
            stepsize_controller=controller,
            max_steps=self.max_steps,
            throw=False,
            progress_meter=meter,
        )
        return solution.ys, diffrax.is_okay(solution.result)


@dataclass(frozen=True)
class _Velocity:
    """The right-hand side of the differential equation; hashable, so that what is compiled is found again."""

    loss: Loss
    axes: OutputAxes

    def __call__(self, _: Array, state: ODEState, args: Any) -> ODEState:
        matrices, y, damping = args
        pulls = [-self.axes.outputs(k @ self.gradient(state.fx_train, y)) for k in matrices]
        if damping is None:
            return ODEState(*pulls)
        moving = [q for q in (state.qx_train, state.qx_test) if q is not None]
        pulls = [pull - damping * q for pull, q in zip(pulls, moving, strict=True)]
        return ODEState(state.qx_train, state.qx_test, *pulls)

    def gradient(self, fx: Array | None, y: Array) -> Array:
        """Of the loss in the outputs, in columns."""
        return self.axes.columns(jax.grad(self.loss)(fx, y))


class LossTraining:
    """The training set, to be called with times or steps."""

    def __init__(
        self,
        loss: Loss,
        kernel: Array,
        y_train: Array,
        learning_rate: Array,
        momentum: Array | None,
        trace_axes: Any,
        diagonal_axes: Any,
        optimizer: Any,
        flow: _Flow,
    ):
        self._loss, self._kernel, self._y_train = loss, kernel, y_train
        self._learning_rate, self._momentum, self._optimizer = learning_rate, momentum, optimizer
        self._kinds_of_axes, self._flow = (trace_axes, diagonal_axes), flow

    def __call__(
        self,
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
        *,
        steps: Any = None,
    ) -> Any:
        """The outputs at times of training.

        Args:
            t: times, finite, of any shape and in any order: see `gradient_descent`.
            fx_train_0: outputs on the training set before training, `(n, o, ...)` or what broadcasts to it; None: the
                training set is not returned, and starts from 0. Or an `ODEState`, for which one is returned: of the
                flow, to be continued with momentum.
            fx_test_0: outputs on the test set before training, `(m, o, ...)`. None: it is not predicted.
            k_test_train: `(m, n, o, o', ...)`, the kernel between test and training set, if the former is predicted.
            steps: in place of t: numbers of steps, integers of any shape, not traced.

        Returns:
            `fx_train`, `(*times, n, o, ...)`; with `fx_test_0` the tuple of it and `fx_test`, `(*times, m, o, ...)`, or
            `fx_test` alone if `fx_train_0` is None. Or an `ODEState`.

        Raises:
            InputError: a shape, a dtype or a combination of arguments is wrong.
            NumericalError: (outside `jit`; under it, results are NaN) the solver did not reach the last of the times.
        """
        given = fx_train_0 if isinstance(fx_train_0, ODEState) else None
        if given is not None:
            if fx_test_0 is not None or steps is not None:
                raise InputError("an ODEState is of the flow at times t, without steps, and contains fx_test.")
            fx_train_0, fx_test_0 = given.fx_train, given.fx_test
        require_asked(fx_train_0, fx_test_0, k_test_train)
        if t is not None and steps is not None:
            raise InputError("give t, for gradient flow, or steps, for steps of an optimizer, but not both.")
        axes = OutputAxes.read(self._output_shape(fx_train_0), *self._kinds_of_axes)
        start = self._start(axes, fx_train_0, fx_test_0, given, k_test_train)
        matrices = self._matrices(axes, k_test_train)
        self._check_loss(start.fx_train)
        if steps is not None:
            end = self._after_steps(axes, matrices, start, steps)
        else:
            end = self._at_times(axes, matrices, start, t)
        end = jax.tree.map(lambda x: x.astype(self._kernel.dtype), end)
        if given is not None:
            return end
        results = [fx for fx, asked in ((end.fx_train, fx_train_0), (end.fx_test, fx_test_0)) if asked is not None]
        return results[0] if len(results) == 1 else tuple(results)

    def _output_shape(self, fx_train_0: Any) -> Shape:
        y = self._y_train
        if jnp.issubdtype(y.dtype, jnp.floating):
            return tuple(y.shape)
        shape = tuple(jnp.shape(fx_train_0)) if fx_train_0 is not None else ()
        if shape[:1] != (len(y),):
            raise InputError(
                f"y_train holds labels (dtype {y.dtype}), from which the shape of the outputs cannot be seen: pass "
                f"fx_train_0 as an array ({len(y)}, ...), for example jnp.zeros(({len(y)}, number_of_classes))."
            )
        return shape

    def _matrices(self, axes: OutputAxes, k_test_train: Any) -> list[Array]:
        n, dtype = len(self._y_train), jnp.result_type(float)
        matrices = [train_matrices(self._kernel, axes, n)]
        if k_test_train is not None:
            matrices.append(cross_matrices(ntk_of(k_test_train, "k_test_train"), axes, n))
        return [k.astype(dtype) for k in matrices]

    def _start(
        self, axes: OutputAxes, fx_train_0: Any, fx_test_0: Any, given: ODEState | None, k_test_train: Any
    ) -> ODEState:
        """The outputs, and velocities if there is momentum and no optimizer's own state."""
        state, dtype = given or ODEState(), jnp.result_type(float)
        shapes: list[Shape | None] = [axes.shape(len(self._y_train)), None]
        if fx_test_0 is not None:
            shapes[1] = axes.shape(len(ntk_of(k_test_train, "k_test_train")))

        def broadcast(value: Any, shape: Shape | None, label: str) -> Array | None:
            return None if shape is None else initial(0.0 if value is None else value, shape, label).astype(dtype)

        outputs = (
            broadcast(*x) for x in zip((fx_train_0, fx_test_0), shapes, ("fx_train_0", "fx_test_0"), strict=True)
        )
        if self._momentum is None:
            if state.qx_train is not None or state.qx_test is not None:
                raise InputError("the ODEState has velocities, but there is no momentum.")
            return ODEState(*outputs)
        velocities = (state.qx_train, state.qx_test)
        return ODEState(
            *outputs, *(broadcast(*x) for x in zip(velocities, shapes, ("qx_train", "qx_test"), strict=True))
        )

    def _check_loss(self, fx: Any) -> None:
        found = jax.eval_shape(self._loss, fx, self._y_train)
        if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
            raise InputError(
                f"loss(fx, y_train) must be a real scalar, but is {found}: losses of optax give one number for each "
                "example, so write `lambda fx, y: jnp.mean(optax.losses...(fx, y))`."
            )

    def _at_times(self, axes: OutputAxes, matrices: list[Array], start: ODEState, t: Any) -> ODEState:
        if self._optimizer is not None:
            raise InputError("an optimizer makes steps: ask for steps=, not for times t of gradient flow.")
        if t is None:
            raise InputError(
                "the flow of a loss need not have a limit, and none is found here: give a late time t. For the mean "
                "squared error infnet.predict.gradient_descent_mse has the limit in closed form."
            )
        t = times(t)
        require_finite(t, "t", of_kernel=False)
        rate, dtype = self._learning_rate, jnp.result_type(float)
        unit = rate if self._momentum is None else jnp.sqrt(rate)
        damping = None if self._momentum is None else ((1 - self._momentum) / unit).astype(dtype)
        args = (matrices, self._y_train, damping)
        ends = (unit * t.ravel()).astype(dtype)
        velocity = _Velocity(self._loss, axes)
        states, ok = self._flow.solve(velocity, start, args, jnp.sort(ends))
        if not is_traced(ok) and not bool(ok):
            raise NumericalError(
                f"the differential equation was not solved to the last time in max_steps={self._flow.max_steps} steps, "
                "or overflowed. Where eigenvalues differ by many orders of magnitude, pass solver=diffrax.Kvaerno5(); "
                "else raise max_steps or the tolerances rtol and atol."
            )
        places = jnp.argsort(jnp.argsort(ends))
        return jax.tree.map(lambda x: jnp.where(ok, x[places], jnp.nan).reshape(*t.shape, *x.shape[1:]), states)

    def _after_steps(self, axes: OutputAxes, matrices: list[Array], start: ODEState, steps: Any) -> ODEState:
        counts = step_counts(steps)
        if is_traced(counts):
            raise InputError("steps must be known when the loop over them is compiled, but are traced by JAX.")
        found, places = np.unique(np.asarray(counts), return_inverse=True)
        slots = np.full(found[-1] + 1, len(found))
        slots[found] = np.arange(len(found))
        rates = (self._learning_rate, self._momentum)
        of_training = (matrices[0], start.fx_train, self._y_train)
        moves = _scan(self._loss, self._optimizer, axes, len(found), rates, *of_training, slots)
        moves = moves[places.ravel()].reshape(*counts.shape, *axes.shape(len(self._y_train)))
        outputs = [fx for fx in (start.fx_train, start.fx_test) if fx is not None]
        ends = [fx + axes.outputs(k @ axes.columns(moves)) for fx, k in zip(outputs, matrices, strict=True)]
        return ODEState(*ends)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _scan(
    loss: Loss,
    optimizer: Any,
    axes: OutputAxes,
    kept: int,
    rates: Any,
    matrices: Array,
    start: Any,
    y: Array,
    slots: Array,
) -> Array:
    """What an optimizer makes of the gradients in outputs, `(kept, n, o, ...)`, after those steps that have a slot.

    None is `optax.sgd` of the learning rate and the momentum in `rates`.
    """
    if optimizer is None:
        optimizer = _needed("optax").sgd(*rates)

    def keep(moves: Array, h: Array, slot: Array) -> Array:
        return moves.at[slot].set(h, mode="drop")

    def step(carry: Any, slot: Array) -> Any:
        h, state, moves = carry
        gradient = jax.grad(loss)(start + axes.outputs(matrices @ axes.columns(h)), y)
        update, state = optimizer.update(gradient, state, h)
        h = (h + update).astype(h.dtype)
        return (h, state, keep(moves, h, slot)), None

    h = jnp.zeros_like(start)
    moves = keep(jnp.zeros((kept, *h.shape), h.dtype), h, slots[0])
    (_, _, moves), _ = jax.lax.scan(step, (h, optimizer.init(h), moves), slots[1:])
    return moves


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'infnet.predict.gradient_descent needs the package {package}: pip install "infnet[predict]"'
        ) from error
