"""Limits on a network, as users write them: "latency@pi4 <= 12ms", "params <= 1.5M", "size@int8 <= 1MiB", "top1 >= 0.97".

"bitops" are multiply-adds times the bits of both factors, of layers with bits of their own (ofa.counts); K, M and G are powers of
1000.

After @ stands the device of a latency or an energy, or the precision of a memory or a size. "accuracy" is another word for top1.
A search also takes a share of what the largest network costs: "macs <= 60%".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ofa.errors import OfaError

_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_ENERGIES = {"uJ": 1e-3, "mJ": 1.0, "J": 1e3}
_COUNTS = {"K": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS: dict[str, dict[str, float]] = {
    "latency": _TIMES,  # milliseconds
    "macs": _COUNTS,
    "params": _COUNTS,
    "bitops": _COUNTS,
    "top1": {"": 1.0, "%": 0.01},
    "memory": _BYTES,
    "size": _BYTES,
    "energy": _ENERGIES,  # millijoules
}
ON_DEVICE = ("latency", "energy")  # what only a device has
PRECISIONS = {"fp32": 4, "fp16": 2, "int8": 1, "a16w8": 2}  # bytes of an activation; what memory and size depend on
EXAMPLES = "latency@ort_cpu_1t <= 3ms, params <= 1.5M, macs <= 300M, memory <= 4MiB, size@int8 <= 2MB, top1 >= 0.97"
SYNONYMS = {"accuracy": "top1"}
_GRAMMAR = re.compile(r"\s*([a-z0-9_]+)(?:@(\w[\w.-]*))?\s*(<=|>=)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*")


class LimitError(OfaError):
    """A limit cannot be read."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper bound on a cost, or a lower bound on top1."""

    quantity: str  # a key of UNITS
    device: str | None
    bound: float  # milliseconds, multiply-adds, weights, bytes, millijoules, or a share in [0, 1]
    precision: str | None = (
        None  # of memory and size: a key of PRECISIONS; None = that of the file, which a search takes for fp32
    )

    @property
    def key(self) -> str:
        """The name under which values are reported, e.g. "latency@pi4", "size@int8" or "size", which is fp32."""
        return _at(self.quantity, self.device or (self.precision if self.precision != "fp32" else None))

    def allows(self, value: float) -> bool:
        return value >= self.bound if self.quantity == "top1" else value <= self.bound

    def __str__(self) -> str:
        relation = ">=" if self.quantity == "top1" else "<="
        # ten digits: what is written to a file must be the limit that was given
        return (
            f"{_at(self.quantity, self.device or self.precision)} {relation} {format_value(self.quantity, self.bound, digits=10)}"
        )


def parse_limit(text: str, *, largest: Callable[[Limit], float] | None = None, device: str | None = None) -> Limit:
    """Read a limit.

    Args:
        largest: tells what the largest network of a space costs, by a limit on that cost; without it, percentages are refused.
        device: of a latency or energy that names none; without it, these are refused.

    Raises:
        LimitError: saying which part is wrong and what is legal.
    """
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise LimitError(f"limit {text!r}: expected QUANTITY[@DEVICE or @PRECISION] <= NUMBER UNIT, e.g. {EXAMPLES}")
    quantity, where, relation, number, unit = match.groups()
    quantity = SYNONYMS.get(quantity, quantity)
    if quantity not in UNITS:
        raise LimitError(f"limit {text!r}: unknown quantity {quantity!r}; known: {', '.join(UNITS)}")
    wanted = ">=" if quantity == "top1" else "<="
    if relation != wanted:
        raise LimitError(f"limit {text!r}: {quantity} takes {wanted}")
    default, device, precision = device, None, None
    if quantity in ("memory", "size"):
        precision = where
        if precision is not None and precision not in PRECISIONS:
            raise LimitError(f"limit {text!r}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    else:
        device = where or (default if quantity in ON_DEVICE else None)
        if (quantity in ON_DEVICE) != (device is not None):
            problem = f"needs a device, e.g. {quantity}@ort_cpu_1t" if device is None else f"takes no device, write {quantity}"
            raise LimitError(f"limit {text!r}: {quantity} {problem}")
    units = UNITS[quantity]
    share = unit == "%" and quantity != "top1"
    if share and largest is None:
        raise LimitError(f"limit {text!r}: only a search knows a share of the largest network; write a number with a unit")
    if unit not in units and not share:
        given = f"unknown unit {unit!r}" if unit else "no unit"
        raise LimitError(f"limit {text!r}: {given}; write the number with one of: {', '.join(u for u in units if u)}")
    try:
        bound = float(number) * (0.01 if share else units[unit])
    except ValueError:
        raise LimitError(f"limit {text!r}: {number!r} is not a number") from None
    if share and largest is not None:
        bound = _rounded_up(bound * largest(Limit(quantity, device, 1.0, precision)))
    if not 0 < bound < math.inf or (quantity == "top1" and bound > 1):
        raise LimitError(f"limit {text!r}: expected {'a share between 0 and 1' if quantity == 'top1' else 'a bound above zero'}")
    return Limit(quantity, device, bound, precision)


def _at(quantity: str, where: str | None) -> str:
    return f"{quantity}@{where}" if where else quantity


def _rounded_up(value: float) -> float:
    """Round up to six significant digits: short to read, and 100 % still holds the largest network."""
    if not 0 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.6g}")


def format_value(quantity: str, value: float, *, digits: int = 3) -> str:
    """Write a value with its unit and that many significant digits, in the form that `parse_limit` reads.

    Bytes are written in KiB or MiB, or in KB or MB where that takes fewer digits: 2MB stays 2MB.
    """
    if quantity == "top1":
        return f"{value:.{max(4, digits)}g}"
    numbers = {unit: f"{value / UNITS[quantity][unit]:.{digits}g}" for unit in _readable(quantity, value)}
    unit = min(numbers, key=lambda unit: len(numbers[unit]))
    return numbers[unit] + unit


def _readable(quantity: str, value: float) -> list[str]:
    """Return the units that make a number of common size of a value; of bytes two."""
    if quantity in ON_DEVICE:
        small, usual, large = UNITS[quantity]
        return [small if value < 0.1 else usual if value < 1e3 else large]
    if quantity in ("macs", "params", "bitops"):
        return ["G" if value >= 1e9 else "M" if value >= 1e6 else "K"]
    if value < 1e3:
        return ["B"]
    return ["GiB", "GB"] if value >= 1e9 else ["MiB", "MB"] if value >= 1e6 else ["KiB", "KB"]
