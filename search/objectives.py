"""What a search wants: accuracy high, costs low, one or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.limits import Limit, LimitError, parse_limit
from ofa.errors import OfaError


@dataclass(frozen=True, slots=True)
class Objective:
    """Accuracy to be large, or a cost to be small."""

    limit: Limit  # of the quantity; its bound says nothing here

    @property
    def key(self) -> str:
        """As of a limit: "top1", "latency@pi4", "macs"."""
        return self.limit.key

    @property
    def maximize(self) -> bool:
        return self.limit.quantity == "top1"

    def __str__(self) -> str:
        return f"{'max' if self.maximize else 'min'} {self.key}"


def parse_objectives(maximize: str | Sequence[str] | None, minimize: str | Sequence[str] | None) -> tuple[Objective, ...]:
    """Read objectives, e.g. maximize="accuracy", minimize=["latency@pi4"]; accuracy alone if nothing is given.

    Raises:
        OfaError: for an unknown quantity, one that cannot be wanted that way, or one that is named twice.
    """
    large, small = _names(maximize), _names(minimize)
    found = [_objective(text, "max") for text in large or ([] if small else ["accuracy"])]
    found += [_objective(text, "min") for text in small]
    keys = [objective.key for objective in found]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise OfaError(f"objective {twice!r} is named twice, expected each once")
    return tuple(found)


def _names(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _objective(text: str, direction: str) -> Objective:
    quantity = text.partition("@")[0].strip()
    accuracy = quantity in ("accuracy", "top1")
    if accuracy != (direction == "max"):
        wanted = "accuracy is to be large: --max accuracy" if accuracy else "costs are to be small: --min " + text.strip()
        raise OfaError(f"--{direction} {text}: {wanted}")
    try:
        relation = ">= 50%" if accuracy else "<= 50%"
        return Objective(parse_limit(f"{text} {relation}", largest=lambda limit: 1.0))
    except LimitError as error:
        raise OfaError(f"--{direction} {text}: {str(error).partition(': ')[2]}") from None
