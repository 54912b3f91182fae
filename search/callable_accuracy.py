"""Accuracy from a function of the user's own: training from scratch, another framework, a measurement on a device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import ArchConfig, SearchSpace
from search.accuracy import JournalledAccuracy, OnResult
from search.engine import Engine
from search.fingerprint import fingerprint
from search.journal import FIELDS, Journal, is_result
from search.worker import Failure

MAX_FAILURES = 3  # of different architectures, and no success ever: then it is not the architectures
# one that fails for 30 % at random fails for 14 of some 20 in a row in 0.6 % of the searches of 100, for 10 of 20 in every other
LAST, MOST_FAILED = 20, 14
SCALES = {"top1": FIELDS[0], "any": FIELDS[1]}


class CallableAccuracy(JournalledAccuracy):
    """What a function says of each architecture.

    It may raise, hang, end its process or return nonsense: then it is asked once more, and after that the architecture counts as
    one whose accuracy could not be told. The journal keeps the reason; another search asks again. A function that fails for most
    of them ends the search.
    """

    def __init__(
        self,
        function: Callable[[ArchConfig], float],
        space: SearchSpace,
        journal: Path | Journal | None = None,
        *,
        name: str | None = None,
        version: str = "",
        scale: str = "top1",
        timeout_s: float | None = None,
        engine: Engine | str | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        """Ask `function` for top-1 in [0, 1].

        Args:
            journal: where results are kept; None = nowhere.
            name: in the journal's key; None = the function's module and name. The function's code is in the key as well.
            version: in the journal's key. Change it when something else changes that the results depend on: functions that this
                one calls, global variables, data files (search.fingerprint); or old results are believed of the new one.
            scale: "top1", or "any" for scores that only rank.
            timeout_s: for one architecture; None = as long as it takes. With it, the function runs in a process of its own.
            engine: where it runs (search.engine); by default in this process, which then hangs or ends as the function does.
            on_result: is told every new result as it arrives, NaN for a failure.
        Raises:
            OfaError: for an unknown scale, or a time that is none.
        """
        if scale not in SCALES:
            raise OfaError(f"scale {scale!r}: expected one of {', '.join(SCALES)}")
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise OfaError(f"timeout_s is {timeout_s}, expected seconds above 0")
        self.function, self.scale, self.timeout_s, self.version = function, scale, timeout_s, version
        self.name = name or _name_of(function)
        self.engine = engine if isinstance(engine, Engine) else Engine(engine)
        self._fingerprint = fingerprint(function)  # now, while what it was made with is still what it was made with
        self._lately: deque[bool] = deque(maxlen=LAST)  # whether it failed, for architectures that it never failed for before
        self._failures, self._succeeded = 0, False
        super().__init__(space, journal, on_result=on_result, field=SCALES[scale])

    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        keys, archs = list(todo), list(todo.values())
        failed_before = self.journal.failed.keys() & todo.keys()  # a search that goes on begins with those that failed for sure
        self._succeeded = self._succeeded or bool(self.all_known())
        outcomes = self.engine.attempt(
            _Checked(self.function, self.scale), archs, retries=1, retry_errors=True, timeout_s=self.timeout_s
        )
        for index, outcome in outcomes:
            failed = isinstance(outcome, Failure)
            if keys[index] not in failed_before:
                self._lately.append(failed)
            if isinstance(outcome, Failure):
                self._failures += 1
                self.journal.add_failure(keys[index], archs[index].values, outcome.reason)
                say(f"warning: {self.name} gave no accuracy for {_short(self.space, archs[index])}: {outcome.reason}")
                self._stop_if_hopeless(outcome.reason)
                yield keys[index], math.nan
            else:
                self._succeeded = True
                yield keys[index], outcome

    def _stop_if_hopeless(self, reason: str) -> None:
        if not self._succeeded and self._failures >= MAX_FAILURES:
            failed = f"{self._failures} architectures one after the other"
        elif sum(self._lately) >= MOST_FAILED:
            failed = f"{sum(self._lately)} of the last {len(self._lately)} architectures"
        else:
            return
        raise OfaError(f"{self.name}: failed for {failed}, the last time with: {reason}; what was measured is kept")

    @cached_property
    def _context(self) -> str:
        return f"{self.space.name}|callable|{self.name}|{self.version}|{self._fingerprint}|{self.scale}"


def accuracy_of_function(
    function: Callable[[ArchConfig], float],
    space: SearchSpace,
    journal: Path | Journal | None = None,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    engine: Engine | str | None = None,
) -> CallableAccuracy:
    """Return a function's accuracy, with the version and the scale that are written at the function as attributes.

    Args:
        function: may have an attribute `version`, to be changed when its results do for a reason that its own code does not show,
            and `scale` = "any" where it gives scores that only rank. A partial has those of its function.
        journal, name, timeout_s, engine: as for CallableAccuracy.
    Raises:
        OfaError: as CallableAccuracy.
    """
    version, scale = (_attribute(function, key, default) for key, default in (("version", ""), ("scale", "top1")))
    return CallableAccuracy(function, space, journal, name=name, version=version, scale=scale, timeout_s=timeout_s, engine=engine)


@dataclass(frozen=True)
class _Checked:
    """A function whose results are refused unless they are what is expected: that too is a reason to ask it again."""

    function: Callable[[ArchConfig], Any]
    scale: str

    def __call__(self, arch: ArchConfig) -> float:
        value = self.function(arch)
        number = (
            value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
        )  # numpy and torch scalars
        if is_result(number, SCALES[self.scale]):
            return float(number)
        found = f"it returned {str(value)[:60]!r}" if isinstance(value, str) else f"it returned {str(value)[:60]}"
        if self.scale == "any":
            raise InvalidAccuracyError(f"{found}, expected a finite number")
        percent = isinstance(number, int | float) and 1 < number <= 100
        hint = "; divide percentages by 100" if percent else ""
        raise InvalidAccuracyError(f'{found}, expected top-1 in [0, 1]{hint}; scores of another scale take scale="any"')


class InvalidAccuracyError(OfaError):
    """A function returned something that is no accuracy."""


def _attribute(function: Callable[..., object], name: str, default: str) -> str:
    inner = function.func if isinstance(function, partial) else None
    return str(getattr(function, name, default if inner is None else _attribute(inner, name, default)))


def _name_of(function: Callable[..., object]) -> str:
    """Return module:name of a function; of a partial one that of its function, of another object that of its class."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _short(space: SearchSpace, arch: ArchConfig) -> str:
    """Name an architecture by its choices that matter, cut to a line."""
    active = space.active(space.encode([arch]))[0]
    text = ", ".join(f"{d.name}={v}" for d, v, on in zip(space.dimensions, arch.values, active, strict=True) if on)
    return text if len(text) < 80 else text[:77] + "..."
