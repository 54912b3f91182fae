"""Energy of a network on this machine, where a counter tells it: RAPL for a processor, NVML for an NVIDIA card.

Energy is gross: what the whole package (or card) used while the network ran again and again, divided by the runs. Nothing is
subtracted for idling, since a device that runs the network pays for that as well; so other work on the machine counts too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ofa.errors import OfaError
from ofa.progress import say

POWERCAP = Path("/sys/class/powercap")


class EnergyError(OfaError):
    """A meter cannot be read, or tells nothing."""


class Meter(Protocol):
    """A counter of energy."""

    @property
    def name(self) -> str:
        """What is counted."""
        ...

    def read_mj(self) -> float:
        """Return the millijoules used since some fixed moment; never falls."""
        ...


class Rapl:
    """Energy of all processor packages by Linux' powercap files, which AMD processors have under the same name as Intel's.

    Only packages are counted: cores and graphics lie inside them and memory is no part of the processor. A counter starts again
    at zero after max_energy_range_uj, minutes to hours; it must be read more often than that.
    Source: Linux kernel documentation, power/powercap/powercap.rst.
    """

    def __init__(self, folders: list[Path]) -> None:
        """Take the folders of packages, as `packages` finds them; reads them once, so that a failure shows here."""
        self.name = f"RAPL, {len(folders)} processor package{'s' if len(folders) > 1 else ''}"
        self._counters = [folder / "energy_uj" for folder in folders]
        self._ranges = [_number(folder / "max_energy_range_uj") for folder in folders]
        self._last = [_number(counter) for counter in self._counters]
        self._total_uj = 0

    @staticmethod
    def packages(root: Path = POWERCAP) -> list[Path]:
        """Return the folders of packages: intel-rapl:0, intel-rapl:1; intel-rapl:0:0 would be a part of the first."""
        folders = sorted(folder for folder in root.glob("intel-rapl:*") if folder.name.count(":") == 1)
        return [folder for folder in folders if _text(folder / "name").startswith("package")]

    def read_mj(self) -> float:
        now = [_number(counter) for counter in self._counters]
        for value, last, range_uj in zip(now, self._last, self._ranges, strict=True):
            self._total_uj += value - last if value >= last else value - last + range_uj
        self._last = now
        return self._total_uj / 1e3


class Nvml:
    """Energy of one NVIDIA card (Volta and later) by NVML, which counts millijoules since its driver was loaded."""

    def __init__(self, nvml: Any, index: int = 0) -> None:
        """Take the module pynvml, initialised, and the number of a card."""
        self._nvml, self._card = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self.name = f"NVML, card {index}"
        self.read_mj()  # older cards have no counter and say so here

    def read_mj(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card))


def find_meter(*, gpu: bool = False, root: Path = POWERCAP) -> Meter | None:
    """Return a meter of this machine's processor, or of its first NVIDIA card; without one, say why and return None.

    Args:
        gpu: which of the two.
        root: where Linux shows RAPL counters.
    """
    try:
        return _nvml() if gpu else _rapl(root)
    except EnergyError as error:
        say(f"energy is not measured: {error}")
        return None


def measure_energy_mj(call: Callable[[], object], meter: Meter, seconds: float = 5.0) -> float:
    """Return the millijoules of one call: those of the meter while it runs for `seconds`, divided by the number of runs.

    Counters move about once a millisecond (RAPL) or in 20 to 100 ms (NVML), so a second and more is needed.

    Raises:
        EnergyError: if the counter cannot be read or stands still.
    """
    call()  # fills the caches
    runs, before, end = 0, meter.read_mj(), time.monotonic() + seconds
    while runs == 0 or time.monotonic() < end:
        call()
        runs += 1
    used = meter.read_mj() - before
    if used <= 0:
        raise EnergyError(f"{meter.name}: the counter did not move in {seconds:g} s of {runs} runs; measure for longer")
    return used / runs


def _rapl(root: Path) -> Meter:
    packages = Rapl.packages(root)
    if not packages:
        raise EnergyError(f"{root} has no intel-rapl package; virtual machines and most ARM boards show no energy counter")
    return Rapl(packages)


def _nvml() -> Meter:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        raise EnergyError("pynvml, which reads NVIDIA cards, is not installed (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()
        return Nvml(pynvml)
    except pynvml.NVMLError as error:
        raise EnergyError(f"no NVIDIA card with an energy counter ({error})") from None


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text)
    except ValueError:
        raise EnergyError(f"{path}: holds {text[:20]!r}, expected microjoules") from None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        raise EnergyError(f"{path} may be read by root only; allow it: sudo chmod a+r {path}") from None
    except OSError as error:
        raise EnergyError(f"{path} cannot be read ({error.strerror})") from None
