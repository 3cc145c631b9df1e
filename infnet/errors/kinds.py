"""The classes of errors. Every refusal says what happened, where, why, and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infnet.errors.refusal import Refusal


@dataclass(frozen=True)
class Where:
    """A place in the user's program: the module path (`CNN/Dense_0`) and the source line (`model.py:12 (f)`)."""

    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        return f"{self.module or '(no module)'} at {self.line or '(unknown line)'}"


class InfnetError(Exception):
    """Base class of all errors raised by infnet on purpose."""


class InputError(InfnetError, ValueError):
    """An argument has the wrong shape, type, name or value."""


class RefusalError(InfnetError):
    """A model is refused: its kernel is not known.

    Attributes:
        what, where, why, remedy: the four parts of the message.
        refusal: the entry of the catalogue that it was made from.
    """

    def __init__(self, what: str, *, where: Where, why: str, remedy: str, refusal: Refusal):
        self.what, self.where, self.why, self.remedy, self.refusal = what, where, why, remedy, refusal
        super().__init__(f"{what}\n  where:  {where}\n  why:    {why}\n  remedy: {remedy}")


class PriorError(RefusalError):
    """The distribution of a parameter at initialisation could not be read off `init`."""


class NumericalError(InfnetError, ArithmeticError):
    """A computation met non-finite numbers or a matrix that cannot be factored."""


class StorageError(InfnetError, OSError):
    """A store on disk could not be written or read."""


class UnsupportedError(RefusalError, NotImplementedError):
    """The model contains an operation whose infinite-width kernel infnet does not know."""


class NonGaussianError(UnsupportedError):
    """A nonlinearity meets an argument that is not Gaussian at infinite width: no closed form exists."""


class BatchAxisError(UnsupportedError):
    """An operation makes one example's output depend on other examples, or on the batch size."""
