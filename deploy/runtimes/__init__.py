"""Runtimes by name: a file here opens an ONNX model for a device."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceError, DeviceSpec
from ofa.errors import OfaError


class ModelError(OfaError):
    """The runtime cannot read or run a model."""


class Session(Protocol):
    """A model loaded on a device."""

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the model's only output, for any batch size."""
        ...

    def prepare(self, inputs: NDArray[np.float32]) -> Callable[[], object]:
        """Return a call that runs the model once on inputs bound beforehand: what is timed."""
        ...


def list_runtimes() -> list[str]:
    """Return the names of the runtimes that ship with the toolkit."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_session(model: bytes, device: DeviceSpec) -> Session:
    """Load a model's bytes on a device.

    Raises:
        DeviceError: if the runtime is unknown, not installed or without what the device asks for, or the file's precision is
            not the device's.
        ModelError: if the runtime cannot read the model.
    """
    runtime = _load(device.runtime)
    # An operator's name stands in the file as plain text. The other way round is no error: any device may run an int8 file, to
    # learn how accurate it is.
    if device.graph_precision in ("int8", "a16w8") and b"QuantizeLinear" not in model:
        raise DeviceError(
            f"device {device.name} runs {device.precision} files, this one is not; name a device of precision fp32, or export it "
            f"with --precision {device.precision}"
        )
    session: Session = runtime.open_session(model, device)
    return session


def runtime_version(name: str) -> str:
    """Return the version of the library behind a runtime.

    Raises:
        DeviceError: if it is not installed.
    """
    version: str = _load(name).VERSION
    return version


def require(device: DeviceSpec, field: str, available: Iterable[str], runtime: str, way_out: str = "") -> None:
    """Refuse a device whose field asks for what a runtime does not have here.

    Raises:
        DeviceError: naming what it has.
    """
    value, available = getattr(device, field), list(available)
    if value not in available:
        raise DeviceError(
            f"device {device.name}: {field} {value!r} is not in this {runtime}; it has: {', '.join(available)}"
            + (f" ({way_out})" if way_out else "")
        )


def first_line(error: BaseException) -> str:
    """Return what fits into a line of a runtime's error message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _load(name: str) -> ModuleType:
    if name not in list_runtimes():
        raise DeviceError(f"unknown runtime {name!r}; known: {', '.join(list_runtimes())}")
    return importlib.import_module(f"{__name__}.{name}")
