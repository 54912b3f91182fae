"""One task and what comes of it: a result, or a Failure; in a worker, from where errors come back as text, or in this process."""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ofa.errors import OfaError

Task = TypeVar("Task")
Result = TypeVar("Result")
PARENT_S = 1.0  # between looks whether the parent is still there


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result."""

    reason: str  # one line
    error: Exception | None = None  # what the function raised; None = its process died or took too long


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as text: one that cannot be made again on the other side would break the connection to the worker."""

    kind: str
    message: str
    arguments: tuple[str | int | float, ...]
    trace: str
    is_ours: bool

    def again(self) -> Exception:
        """Return the exception: builtin kinds and OfaError as they were, others as RuntimeError."""
        if self.is_ours:
            return OfaError(self.message)
        kind = getattr(builtins, self.kind, None)
        error: Exception = RuntimeError(f"{self.kind}: {self.message}")
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(Exception):  # UnicodeDecodeError, for one, takes an argument that is not plain
                error = kind(*self.arguments)
        add_note(error, f"in a worker process:\n{self.trace}")
        return error


def guarded(function: Callable[[Task], Result], task: Task, timeout_s: float | None) -> Result | Raised:
    """Run one task.

    Args:
        timeout_s: after which the worker ends itself, where nothing else could end it; with it whatever else it is doing.
    """
    watchdog = threading.Timer(timeout_s or 0, os._exit, [1])
    watchdog.daemon = True
    if timeout_s is not None:
        watchdog.start()
    try:
        return function(task)
    except (Exception, SystemExit) as error:
        plain = tuple(arg for arg in error.args if isinstance(arg, str | int | float))
        return Raised(type(error).__name__, str(error), plain, traceback.format_exc(), isinstance(error, OfaError))
    finally:
        watchdog.cancel()


def run_here(function: Callable[[Task], Result], task: Task, retries: int) -> Result | Failure:
    """Run one task in this process, up to 1 + `retries` times while it raises."""
    for left in range(retries, -1, -1):
        try:
            return function(task)
        except Exception as error:
            if not left:
                return Failure(error_line(error), error)
        except SystemExit as error:  # a task must not end the search
            if not left:
                return Failure(error_line(error), RuntimeError(error_line(error)))
    raise AssertionError("unreachable")


def outcome_of(future: Future[Any], late: str | None) -> Any:
    """Return what a finished future holds: a result or a Failure; `late` is why it ended if its worker died."""
    error = CancelledError() if future.cancelled() else future.exception()
    if error is not None:
        return Failure(late or cause_of_death(error))
    result = future.result()
    if isinstance(result, Raised):
        again = result.again()
        return Failure(error_line(again), again)
    return result


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, which tracebacks show from Python 3.11 on."""
    error.__dict__.setdefault("__notes__", []).append(note)


def ready(function: Callable[..., object]) -> None:
    """Do nothing: that a worker got this far means that it holds the function and what that imports."""


def follow(parent: int) -> None:
    """Let a worker process end with the process that started it, whatever it is doing, and not by itself.

    Ctrl-C on a terminal reaches all processes; it is the parent that ends its workers. One that is killed cannot do that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def error_line(error: BaseException) -> str:
    """Return an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def cause_of_death(error: BaseException) -> str:
    """Return what is known of how a worker ended, in one line."""
    codes = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))  # loky's, e.g. SIGSEGV(-11)
    return f"its process died ({codes.group(1)})" if codes else f"its worker failed ({error_line(error)})"
