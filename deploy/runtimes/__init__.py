"""Runtimes by name: a file here opens an ONNX model for a device."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceError, DeviceSpec


class Session(Protocol):
    """A model loaded on a device."""

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the model's only output."""
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
        DeviceError: if the runtime is unknown or its provider is not in this build.
        ModelError: if the runtime cannot read the model.
    """
    if device.runtime not in list_runtimes():
        raise DeviceError(f"device {device.name}: unknown runtime {device.runtime!r}; known: {', '.join(list_runtimes())}")
    session: Session = importlib.import_module(f"{__name__}.{device.runtime}").open_session(model, device)
    return session
