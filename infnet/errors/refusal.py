"""What an entry of the catalogue of refusals is, and how it becomes an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from infnet.errors.kinds import RefusalError, UnsupportedError, Where

# Calls to paste: of `init(key, x)` and `apply(params, x)`, or of a model that was annotated.
MONTE_CARLO = """\
the kernel can still be estimated by sampling finite networks:
          infnet.monte_carlo_kernel_fn(init, apply, jax.random.key(0), n_samples=100)(x1, x2)
          or, of an annotated Flax or Haiku model,
          model.monte_carlo_kernel(jax.random.key(0), x1, x2, n_samples=100)"""

SAMPLE = 'pass on_unsupported="sample" for an estimate with a standard error'


class Named(Protocol):
    """Something that has a name: a primitive."""

    @property
    def name(self) -> str:
        """The name."""


class Operation(Protocol):
    """An operation of the model: an equation."""

    @property
    def primitive(self) -> Named:
        """What it does."""

    @property
    def where(self) -> Where:
        """Where it stands."""


@dataclass(frozen=True, eq=False)
class Refusal:
    """A reason to refuse a model: an entry of the catalogue.

    Attributes:
        what: what the model does, a template for `str.format`.
        why: the mathematics, in a sentence; a template too.
        remedy: what to do instead; a template too, empty if there is nothing but to sample networks.
        kind: of the error.
        monte_carlo: whether sampling finite networks is a way out.
        sampled: whether a single channel, or pair of channels, can be sampled where the closed form ends.
    """

    what: str
    why: str
    remedy: str = ""
    kind: type[RefusalError] = UnsupportedError
    monte_carlo: bool = True
    sampled: bool = False

    def at(self, where: Where, /, **facts: Any) -> RefusalError:
        """The error for a place in the model; `facts` fill in the templates."""
        return self._made("", where, facts)

    def of(self, operation: Operation, /, **facts: Any) -> RefusalError:
        """The error for an operation of the model, which it names first."""
        return self._made(f"`{operation.primitive.name}`: ", operation.where, facts)

    def _made(self, prefix: str, where: Where, facts: dict[str, Any]) -> RefusalError:
        what, why, remedy = (text.format(**facts) for text in (self.what, self.why, self.remedy))
        ways = filter(None, (remedy, SAMPLE if self.sampled else "", MONTE_CARLO if self.monte_carlo else ""))
        return self.kind(prefix + what, where=where, why=why, remedy="; or ".join(ways), refusal=self)
