"""What was measured: one line of JSON a trial, appended as results arrive, shared by all searches of a run.

A trial's key says everything that its number depends on (search.accuracy), so that a number is never believed of something else.
Lines that a crash cut off, and values that are none, are passed over.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeGuard

from ofa.artefacts import append_jsonl
from ofa.progress import say
from ofa.space import Value

JOURNAL = Path("search") / "trials.jsonl"  # in a run's directory: one for all of its searches
FIELDS = ("top1", "score")  # the name that a trial's number has: a share in [0, 1], or a score of any scale


class Trial(NamedTuple):
    """One measured architecture."""

    values: tuple[Value, ...] | None  # its choices; None = not written down
    result: float


class Journal:
    """The trials in a file, with those that other processes add.

    `trials` holds key -> trial in the order of their first appearance, `failed` key -> reason. A file that cannot be written, or
    is not there, still serves: what is added is then known to this object only.
    """

    def __init__(self, path: Path | None, *, field: str = "top1") -> None:
        """Open a journal; of a damaged or foreign file, what can be read counts.

        Args:
            path: the file; None = in memory only.
            field: one of FIELDS.
        """
        self.path, self.field = path, field
        self.trials: dict[str, Trial] = {}
        self.failed: dict[str, str] = {}
        self._offset, self._depth, self._writable = 0, 0, True
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended since the last time."""
        if self.path is None:
            return
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # it is another file now; what was read stays true, since keys say of what
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return
        end = data.rfind(b"\n") + 1
        self._offset += end  # a last line without its end may be in the middle of being written: it is read again
        for line in data.splitlines():
            self._take(line)

    def add(self, key: str, values: tuple[Value, ...], result: float) -> None:
        """Remember a result and write it down."""
        self.failed.pop(key, None)
        self.trials[key] = Trial(values, result)
        self._append({"key": key, "values": list(values), self.field: result})

    def add_failure(self, key: str, values: tuple[Value, ...], reason: str) -> None:
        """Remember that there is no result, and why."""
        self.failed[key] = reason
        self._append({"key": key, "values": list(values), "failed": reason})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who measures: wait for another search, then know what it found.

        May be nested. A process that ends, however it does, gives the lock back. Without locks - on Windows, on some network file
        systems, in a directory that may only be read - two searches may measure the same twice, and both count.
        """
        with contextlib.nullcontext() if self._depth or self.path is None else self._lock(self.path):
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # Windows
            self.refresh()
            yield
            return
        with contextlib.ExitStack() as stack:
            file = _open_lock(path)
            if file is not None:
                stack.enter_context(file)  # closing it gives the lock back
                with contextlib.suppress(OSError):  # a file system without locks
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        say(f"another search writes to {path}; waiting for it")
                        fcntl.flock(file, fcntl.LOCK_EX)
            self.refresh()
            yield

    def _append(self, record: Mapping[str, Any]) -> None:
        if self.path is None or not self._writable:
            return
        try:
            append_jsonl(self.path, record)
        except OSError as error:
            self._writable = False
            say(f"warning: {self.path} cannot be written ({error.strerror}); what is measured now will not be known next time")

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict) or not isinstance(key := record.get("key"), str):
            return
        result, values = record.get(self.field), record.get("values")
        if is_result(result, self.field):
            self.failed.pop(key, None)
            if isinstance(values, list) and all(isinstance(value, int | float | str) for value in values):
                self.trials[key] = Trial(tuple(values), float(result))
            else:
                self.trials[key] = Trial(None, float(result))
        elif isinstance(reason := record.get("failed"), str) and key not in self.trials:
            self.failed[key] = reason


def _open_lock(path: Path) -> IO[bytes] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + ".lock").open("ab")
    except OSError:
        return None


def is_result(value: object, field: str = "top1") -> TypeGuard[int | float]:
    """Whether a value is a top-1 in [0, 1], or for another field of FIELDS any finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= 1 if field == "top1" else abs(value) <= sys.float_info.max  # JSON's integers have no end
