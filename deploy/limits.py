"""Limits on a network, as users write them: "latency@pi4 <= 12ms", "params <= 1.5M", "macs <= 300M", "top1 >= 0.97"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ofa.errors import OfaError

UNITS: dict[str, dict[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},  # milliseconds
    "macs": {"K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"K": 1e3, "M": 1e6, "G": 1e9},
    "top1": {"": 1.0, "%": 0.01},
}
EXAMPLES = "latency@ort_cpu_1t <= 3ms, params <= 1.5M, macs <= 300M, top1 >= 0.97"
_GRAMMAR = re.compile(r"\s*([a-z0-9_]+)(?:@([^\s<>=]+))?\s*(<=|>=)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


class LimitError(OfaError):
    """A limit cannot be read."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper bound on latency (ms), macs or params, or a lower bound on top1."""

    quantity: str
    device: str | None
    bound: float  # milliseconds, multiply-adds, weights, or a share in [0, 1]

    @property
    def key(self) -> str:
        """The name under which values are reported, e.g. "latency@pi4"."""
        return f"{self.quantity}@{self.device}" if self.device else self.quantity

    def allows(self, value: float) -> bool:
        return value >= self.bound if self.quantity == "top1" else value <= self.bound

    def __str__(self) -> str:
        relation = ">=" if self.quantity == "top1" else "<="
        # ten digits: what is written to a file must be the limit that was given
        return f"{self.key} {relation} {format_value(self.quantity, self.bound, digits=10)}"


def parse_limit(text: str) -> Limit:
    """Read a limit.

    Raises:
        LimitError: saying which part is wrong and what is legal.
    """
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise LimitError(f"limit {text!r}: expected QUANTITY[@DEVICE] <= NUMBER UNIT, e.g. {EXAMPLES}")
    quantity, device, relation, number, unit = match.groups()
    if quantity not in UNITS:
        raise LimitError(f"limit {text!r}: unknown quantity {quantity!r}; known: {', '.join(UNITS)}")
    wanted = ">=" if quantity == "top1" else "<="
    if relation != wanted:
        raise LimitError(f"limit {text!r}: {quantity} takes {wanted}")
    if (quantity == "latency") != (device is not None):
        problem = "needs a device, e.g. latency@ort_cpu_1t" if device is None else f"takes no device, write {quantity}"
        raise LimitError(f"limit {text!r}: {quantity} {problem}")
    units = UNITS[quantity]
    if unit not in units:
        given = f"unknown unit {unit!r}" if unit else "no unit"
        raise LimitError(f"limit {text!r}: {given}; write the number with one of: {', '.join(u for u in units if u)}")
    try:
        bound = float(number) * units[unit]
    except ValueError:
        raise LimitError(f"limit {text!r}: {number!r} is not a number") from None
    if bound <= 0 or (quantity == "top1" and bound > 1):
        raise LimitError(f"limit {text!r}: expected {'a share between 0 and 1' if quantity == 'top1' else 'a bound above zero'}")
    return Limit(quantity, device, bound)


def format_value(quantity: str, value: float, *, digits: int = 3) -> str:
    """Write a value with its unit and that many significant digits, in the form that `parse_limit` reads."""
    if quantity == "top1":
        return f"{value:.{max(4, digits)}g}"
    if quantity == "latency":
        unit = "us" if value < 0.1 else "ms" if value < 1e3 else "s"
    else:
        unit = "G" if value >= 1e9 else "M" if value >= 1e6 else "K"
    return f"{value / UNITS[quantity][unit]:.{digits}g}{unit}"
