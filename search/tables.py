"""Tables on the screen: how limits lie in a space, and the menu of a search with several targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploy.limits import format_value
from ofa.progress import say
from search.constraints import Range
from search.menu import InfeasibleTarget
from search.result import SearchResult


def show_ranges(ranges: Mapping[str, Sequence[Range]]) -> None:
    """Print, for every limit of every target, what the space offers and how much of it fits."""
    rows = []
    for name, found in ranges.items():
        for r in found:
            values = [format_value(r.limit.quantity, value) for value in (r.minimum, r.median, r.maximum)]
            fits = "nothing fits" if r.minimum > r.limit.bound else f"{r.share:.1%} fits" if r.share else "few fit"
            rows.append([name, str(r.limit).replace("<=", "≤"), *values, fits])
    if rows:
        named = len(ranges) > 1
        header = ["target", "limit", "min", "median", "max", "of the space"]
        _show(header if named else header[1:], [row if named else row[1:] for row in rows])


def show_menu(results: Mapping[str, SearchResult | InfeasibleTarget]) -> None:
    """Print the best network of every target."""
    rows = []
    for name, found in results.items():
        if isinstance(found, InfeasibleTarget):
            rows.append([name, "-", found.reason])
        else:
            costs = ", ".join(f"{key} {format_value(key.partition('@')[0], value)}" for key, value in found.best.costs.items())
            rows.append(
                [name, f"{found.best.top1:.4g}" if found.accuracy.startswith("proxy:") else f"{found.best.top1:.4f}", costs]
            )
    _show(["target", "top-1", "best network"], rows)


def _show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(
            name, justify="left" if name in ("target", "limit", "best network", "of the space") else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escape, row))  # [x] in a name is no colour
    say(table)
