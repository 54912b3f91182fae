"""Progress of long work on stderr: a live bar on a terminal, a line every half minute in a log file; and how to stop it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Advance = Callable[..., None]
LOG_SECONDS = 30.0


_live: list[Console] = []  # of bars that are shown at this moment: what is printed elsewhere would tear them


def say(message: str | Table) -> None:
    """Print a line or a table for people, to stderr; stdout is for results."""
    from rich.console import Console
    from rich.segment import Segments

    console = _live[-1] if _live else Console(stderr=True)
    if isinstance(message, str):
        console.print(shown(message), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(Segments(part._replace(text=shown(part.text)) for part in console.render(message)))


def shown(text: str) -> str:
    """Return text with escapes for what a terminal would obey or cannot show: names in files are anybody's."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show progress; yields `advance(n=1, note="", total=...)`. Time left is estimated from what this process did itself."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _logger(description, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar, _shown(console):
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
            bar.update(task, advance=n, total=total)
            if note is not None:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _shown(console: Console) -> Iterator[None]:
    _live.append(console)
    try:
        yield
    finally:
        _live.pop()


def _logger(description: str, total: int, done: int) -> Advance:
    start = last = time.monotonic()
    count, latest = 0, ""

    def advance(n: int = 1, note: str | None = None, total: int = total) -> None:
        nonlocal last, count, latest
        count, latest = count + n, latest if note is None else note
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            last = now
            left = f", {(now - start) / count * (total - done - count) / 60:.1f} min left" if count else ""
            say(f"{description} {done + count}/{total}{left}  {latest}")

    return advance


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop between steps; a second one interrupts at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this step (once more: stop at once)")

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are not ours to handle
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
