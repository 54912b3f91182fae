"""What `ofa bench` found, for people and for machines: a table with the sentences below it, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from deploy.bench import BENCH_SCHEMA, BenchRow
from ofa.progress import shown
from ofa.run_dir import cpu_model, host_facts

HEADER = (
    "file",
    "precision",
    "batch",
    "median ms",
    "95 % interval",
    "p90",
    "p99",
    "images/s",
    "memory MiB",
    "time / first",
    "runs",
)
LEFT = ("file", "precision")
NO_GAIN = 0.95  # share of the time from which on nobody would call it faster


def show_table(rows: Sequence[BenchRow]) -> None:
    """Print a table a device, and what `notes` says, on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a file has no edge to fold names at
    for device in dict.fromkeys(row.device for row in rows):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in HEADER:
            table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
        mine = [row for row in rows if row.device == device]
        for row, after in zip(mine, [*mine[1:], None], strict=True):
            ends = after is not None and after.batch_size != row.batch_size
            table.add_row(*(escape(shown(cell)) for cell in _cells(row)), end_section=ends)
        console.print(shown(f"{device}, {cpu_model()}"), markup=False, highlight=False, soft_wrap=True)
        console.print(table, highlight=False)
    for line in notes(rows):
        console.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def _cells(row: BenchRow) -> list[str]:
    what = [row.file, row.precision, str(row.batch_size)]
    if row.median_ms is None:
        return [*what, "cannot run"]
    ratio = _times(row.ratio, row.ratio_low, row.ratio_high)
    memory = "-" if row.memory_mib is None else f"{row.memory_mib:.1f}"
    interval = f"{_short(row.low_ms)}-{_short(row.high_ms)}"
    rest = [_short(row.p90_ms), _short(row.p99_ms), _short(row.images_per_second), memory, ratio, str(row.n)]
    return [*what, _short(row.median_ms), interval, *rest]


def notes(rows: Sequence[BenchRow]) -> list[str]:
    """Say what a table does not: which clock it is, what could not run, and where a lower precision is not faster than fp32."""
    able = [row for row in rows if row.median_ms is not None]
    lines = []
    cpu = ", ".join(dict.fromkeys(row.device for row in able if row.clock == "cpu"))
    if cpu:
        lines.append(f"Times on {cpu} are CPU time of its one thread; images/s are by wall clock.")
    if any(row.memory_mib is None for row in able):
        lines.append("Memory marked - could not be measured on this system.")
    if any(row.memory_source == "ru_maxrss" for row in able):
        lines.append("Memory is the growth of the process's highest peak so far (ru_maxrss): at least what a file took.")
    unable: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        if row.error is not None:
            unable.setdefault((row.file, row.device, row.error), {})[str(row.batch_size)] = None  # a file may be named twice
    lines += [f"{file} on {device} at batch {', '.join(sizes)}: {why}" for (file, device, why), sizes in unable.items()]
    return lines + _not_faster(able)


def _not_faster(rows: Sequence[BenchRow]) -> list[str]:
    """Say where a file of a lower precision is slower than fp32, or not faster, or that it cannot be told yet."""
    lower = [row for row in rows if row.precision != "fp32" and row.fp32_ratio is not None]
    several = len({row.file for row in lower}) > 1
    lines = []
    for row in lower:
        low, high = row.fp32_ratio_low, row.fp32_ratio_high
        assert low is not None
        assert high is not None
        if high < 1:
            continue
        verdict = "is slower" if low > 1 else "is not faster" if low >= NO_GAIN else "may be no faster"
        times = _times(row.fp32_ratio, low, high, " of its time") + ("" if low >= NO_GAIN else "; time it longer")
        line = f"{row.precision} {verdict} than fp32 on {row.device} at batch {row.batch_size}: {times}"
        lines.append(f"{row.file}: {line}" if several else line)
    return lines


def to_csv(rows: Sequence[BenchRow]) -> str:
    """Return a line for every row under a line of the fields' names; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BenchRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def to_json(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Return the rows with the machine that they are of, and the notes."""
    return {"schema": BENCH_SCHEMA, "host": host_facts(), "rows": [asdict(row) for row in rows], "notes": notes(rows)}


def _times(ratio: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    if ratio is None:
        return "-"
    digits = 2 if ratio >= 0.1 else 4
    return f"{ratio:.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f})"


def _short(value: float | None) -> str:
    """Three digits, but never a power of ten."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
