"""`verify` for frameworks: of models instead of functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from infnet.errors import InputError
from infnet.verification.function import check_wider, verify
from infnet.verification.report import Verification

PyTree = Any
# What `verify` takes; everything else is for the kernel function.
OPTIONS = ("multipliers", "resolution", "n_samples", "level", "gaussian_first_layer", "progress")


def verify_model(
    functions: Callable[..., tuple[Callable[..., PyTree], Callable[..., PyTree], Any]],
    model: Any,
    x: PyTree,
    key: jax.Array,
    widen: Callable[[int], Any] | None,
    options: Mapping[str, Any],
    guesses: Sequence[Callable[[int], Any]] = (),
) -> Verification:
    """Compare the kernel of a model of some framework with random networks; see `verify`.

    Args:
        functions: `(model, x, **options) -> (init_fn, apply_fn, kernel_fn)`.
        model: what it takes.
        x, key: the examples, and the key of the random networks.
        widen: `multiplier -> model`.
        options: of `verify`, and of `functions`.
        guesses: in place of `widen`, if that is None: the first one that does multiply all hidden widths. If there is
            none, the report says why the first one does not.
    """
    own = {name: value for name, value in options.items() if name in OPTIONS}
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    init, apply, kernel_fn = functions(model, x, **others)
    remarks: list[str] = []
    for guess in guesses if widen is None else ():
        try:
            check_wider(kernel_fn, functions(guess(2), x, **others)[2], 2)
        except InputError as error:
            remarks.append(f"not at growing widths: {error}")
        else:
            widen, remarks = guess, []
            break
    made = None if widen is None else lambda multiplier: functions(widen(multiplier), x, **others)
    return verify(kernel_fn, init, apply, x, key, widen=made, remarks=remarks[:1], **own)
