"""Checks: a question about a file, its answer, and whether a limit allows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.limits import Limit, format_value
from ofa.errors import OfaError


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the file and its answer."""

    name: str
    ok: bool
    detail: str


def judge(name: str, detail: str, limits: list[Limit], value: float) -> list[Check]:
    """One check for every limit; without a limit, one that only states the value."""
    if not limits:
        return [Check(name, True, detail)]
    return [Check(name, limit.allows(value), f"{detail}, limit {format_value(limit.quantity, limit.bound)}") for limit in limits]


def judge_prediction(limit: Limit, record: Mapping[str, Any], why: str) -> Check:
    """Hold a limit against what the search predicted, where nothing can be measured; and say so."""
    value = record["predicted"].get(limit.key)
    if not isinstance(value, float | int):
        raise OfaError(f"limit {str(limit)!r}: {why}, and no prediction came with the file; leave the limit out")
    detail = (
        f"predicted {format_value(limit.quantity, value, digits=4)}; {why}, limit {format_value(limit.quantity, limit.bound)}"
    )
    return Check(limit.key, limit.allows(value), detail)


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927); stays in [0, 1] and holds near its ends."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half
