"""Precisions by name: fp32, fp16, int8, a16w8 and, in general, a{activation bits}w{weight bits}.

A network has one, and any of its layers may have another. Fewer than eight bits are stored in a byte each: a grid, not a format.
Layers that an architecture gives bits of their own were trained on their grids (ofa.quantised_layers), of one bit too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ofa.errors import OfaError

FLOATS = ("fp32", "fp16")
COMMON = (*FLOATS, "int8", "a16w8")
_GRAMMAR = re.compile(r"a(\d+)w(\d+)")


class PrecisionError(OfaError):
    """No precision has this name, or not here."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Bits of the integers that stand for activations and for weights."""

    activation_bits: int
    weight_bits: int

    def __str__(self) -> str:
        return f"a{self.activation_bits}w{self.weight_bits}"

    @property
    def most_activation(self) -> int:
        """The largest integer that stands for an activation; the least is 0."""
        return int(2**self.activation_bits) - 1

    @property
    def most_weight(self) -> int:
        """The largest integer that stands for a weight; the least is its negative."""
        return int(2 ** (self.weight_bits - 1)) - 1


INT8 = Grid(8, 8)


def activation_bytes(precision: str) -> int:
    """Return the bytes that an activation takes."""
    grid = grid_of(precision)
    return {"fp32": 4, "fp16": 2}[precision] if grid is None else -(-grid.activation_bits // 8)


def grid_of(precision: str, *, least_bits: int = 2) -> Grid | None:
    """Return the grid of an integer precision, None for one in floating point.

    Args:
        least_bits: 1 where layers are meant that were trained so, 2 where they are to be rounded.
    Raises:
        PrecisionError: if there is none of this name.
    """
    if precision in FLOATS:
        return None
    if precision == "int8":
        return INT8
    match = _GRAMMAR.fullmatch(precision)
    grid = Grid(int(match[1]), int(match[2])) if match else None
    if grid is None or not (least_bits <= grid.activation_bits <= 16 and least_bits <= grid.weight_bits <= 8):
        raise PrecisionError(
            f"unknown precision {precision!r}; known: {', '.join(COMMON)}, "
            f"and a4w4 and the like: activations of {least_bits} to 16 bits, weights of {least_bits} to 8"
        )
    return grid
