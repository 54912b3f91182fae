"""Numbers and architectures in the words of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.limits import ON_DEVICE, Limit, format_value
from ofa.space import ArchConfig, SearchSpace
from search.plots import shorten


@dataclass(frozen=True, slots=True)
class Source:
    """What told a search's accuracies, in words: those of images alone were measured."""

    kind: str  # images, predictor, table, function or proxy
    name: str
    where: str  # behind "Top-1" or "Score"
    done: str  # to the networks, as in "12 networks newly measured"
    all_of: str  # a sentence that begins with "Networks"
    defined: str  # ends "Top-1 is the share of images whose first guess is right"; "" = it is none

    @property
    def heading(self) -> str:
        """Name the accuracy in a column of a table."""
        return f"{'Score' if self.kind == 'proxy' else 'Top-1'} {self.where.removeprefix('on ').removesuffix(' images')}"


def source(text: str) -> Source:
    """Return the words for what told the accuracies, from the text that front.json has for it.

    That is one of search.sources.FORMS, or from Python the name of a function or of an accuracy model's class.
    """
    name, chosen = Path(text).name, "which the search chose by"
    if text in ("supernet", "SupernetAccuracy"):
        sentence = "whose accuracy was measured on validation images"
        return Source("images", "supernet", "on validation images", "measured", sentence, f"on validation images, {chosen}")
    if text.endswith(".npz") or text in ("MitPredictor", "AccuracyPredictor"):
        sentence = f"whose accuracy {name} predicts: none was measured"
        return Source("predictor", name, "predicted", "predicted", sentence, f"as {name} predicts it, {chosen}")
    if text.endswith(".csv") or text == "TabularAccuracy":
        name = name.removeprefix("table ")
        sentence = f"whose accuracy stands in the table {name}"
        return Source("table", name, "from a table", "looked up", sentence, f"as the table {name} states it, {chosen}")
    if text.startswith(("proxy:", "proxy ")) or text == "ProxyAccuracy":
        name = text[6:] if text != "ProxyAccuracy" else text
        sentence = f"and their scores by the proxy {name}, which rank untrained networks and are no accuracies"
        return Source("proxy", name, "of a proxy", "scored", sentence, "")
    sentence = f"whose accuracy the function {text} told"
    return Source("function", text, "told by a function", "asked for", sentence, f"as the function {text} tells it, {chosen}")


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
    if quantity in ("macs", "params", "bitops"):
        return (1e-6, "M") if largest >= 1e6 else (1e-3, "K")
    if quantity in ("memory", "size"):
        return (2.0**-20, "MiB") if largest >= 2**20 else (2.0**-10, "KiB")
    return 1.0, ""


def cost_name(key: str) -> str:
    """Name a cost for people: "latency@pi4" becomes "Latency on pi4"."""
    quantity, _, where = key.partition("@")
    names = {"macs": "Multiply-adds (MACs)", "params": "Parameters", "bitops": "Bit operations (BitOPs)", "size": "File size"}
    name = names.get(quantity, quantity.capitalize())
    return name + (f" on {where}" if quantity in ON_DEVICE and where else f" ({where})" if where else "")


def duration(seconds: float) -> str:
    """Write a time in the unit that suits its length."""
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.3g} {unit}"


def digits(value: float, significant: int = 3) -> str:
    """Write a number with that many significant digits and no exponent."""
    value = float(f"{value:.{significant - 1}e}")  # 0.9999 has the digits of 1
    decimals = significant - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def percent(share: float, decimals: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.{decimals}f}%"


def bound(limit: Limit) -> str:
    """Write a limit with as many digits as people read: "60%" of something is a number with ten."""
    relation = "≥" if limit.quantity == "top1" else "≤"
    return f"{limit.key} {relation} {format_value(limit.quantity, limit.bound, digits=4)}"


def accuracy_scale(values: Iterable[float], told: Source | None = None) -> tuple[float, str, str]:
    """Return what to multiply accuracies by, their unit and their name: scores that are no shares of 1 stay as they are."""
    share = all(0 <= value <= 1 for value in values) and not (told and told.kind == "proxy")
    return (100.0, "%", "top-1") if share else (1.0, "", "score")


def accuracy(value: float, told: Source | None = None) -> str:
    """Write a top-1 as a percentage, and a score, which is no share of 1, as it is."""
    return percent(value) if 0 <= value <= 1 and not (told and told.kind == "proxy") else f"{value:.4g}"


def evenly(count: int, most: int) -> list[int]:
    """Return at most that many indices from the first to the last of `count`."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)}) if count > most else list(range(count))


def size(size_bytes: float) -> str:
    """Write the size of a file or of memory."""
    return f"{size_bytes / 2**20:.2f} MiB"


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
