"""Numbers and architectures in the words of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from deploy.limits import ON_DEVICE, Limit, format_value
from ofa.space import ArchConfig, SearchSpace
from search.plots import shorten


def brief(space: SearchSpace, arch: ArchConfig) -> str:
    """Describe an architecture in a few words: resolution and the depths of its stages, or else its choices."""
    chosen = {d.name: value for d, value in zip(space.dimensions, arch.values, strict=True)}
    depths = "-".join(str(value) for name, value in chosen.items() if name.endswith(".depth"))
    side = chosen.get("resolution")
    words = [f"{side} px input" if side is not None else "", f"depths {depths}" if depths else ""]
    return ", ".join(filter(None, words)) or shorten(" ".join(map(str, arch.values)), 60)


def unit_of(key: str, largest: float) -> tuple[float, str]:
    """Return what to multiply a cost by, and the unit that it then has.

    Args:
        key: as Limit.key.
        largest: of the values that are shown together, in the unit that files have.
    """
    quantity = key.partition("@")[0]
    if quantity in ("latency", "energy"):
        return 1.0, "ms" if quantity == "latency" else "mJ"
    if quantity in ("macs", "params"):
        return (1e-6, "M") if largest >= 1e6 else (1e-3, "K")
    if quantity in ("memory", "size"):
        return (2.0**-20, "MiB") if largest >= 2**20 else (2.0**-10, "KiB")
    return 1.0, ""


def cost_name(key: str) -> str:
    """Name a cost for people: "latency@pi4" becomes "Latency on pi4"."""
    quantity, _, where = key.partition("@")
    name = {"macs": "Multiply-adds (MACs)", "params": "Parameters", "size": "File size"}.get(quantity, quantity.capitalize())
    return name + (f" on {where}" if quantity in ON_DEVICE and where else f" ({where})" if where else "")


def duration(seconds: float) -> str:
    """Write a time in the unit that suits its length."""
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.3g} {unit}"


def digits(value: float, significant: int = 3) -> str:
    """Write a number with that many significant digits and no exponent."""
    decimals = significant - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def percent(share: float, decimals: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.{decimals}f}%"


def bound(limit: Limit) -> str:
    """Write a limit with as many digits as people read: "60%" of something is a number with ten."""
    relation = "≥" if limit.quantity == "top1" else "≤"
    return f"{limit.key} {relation} {format_value(limit.quantity, limit.bound, digits=4)}"


def accuracy_scale(values: Iterable[float]) -> tuple[float, str, str]:
    """Return what to multiply accuracies by, their unit and their name: scores that are no shares of 1 stay as they are."""
    return (100.0, "%", "top-1") if all(0 <= value <= 1 for value in values) else (1.0, "", "score")


def accuracy(value: float) -> str:
    """Write a top-1 as a percentage, and a score that is no share of 1 as it is."""
    return percent(value) if 0 <= value <= 1 else f"{value:.4g}"


def evenly(count: int, most: int) -> list[int]:
    """Return at most that many indices from the first to the last of `count`."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)}) if count > most else list(range(count))


def count(value: float | None) -> str:
    """Write a count with its unit; None = unknown."""
    if value is None:
        return "–"
    written = format_value("macs", value)
    return f"{written[:-1]} {written[-1]}"


def power_of_ten(value: int) -> str:
    """Write a number of networks for people: in full below a million, larger ones like 4.2 × 10¹⁵."""
    if value < 1_000_000:
        return f"{value:,}"
    power = len(str(value)) - 1
    tenths = (value + 10**power // 20) // 10 ** (power - 1)  # rounded in integers: a space may pass the largest float
    if tenths == 100:  # 9.96 is 10
        tenths, power = 10, power + 1
    return f"{tenths // 10}.{tenths % 10} × 10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
