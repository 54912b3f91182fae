"""Devices: what a network runs on, each a small TOML file in devices/ (its name is the device's) or anywhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ofa.artefacts import read_bounded
from ofa.errors import OfaError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVICE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
MAX_BYTES = 2**20
FOLDER = Path(__file__).parent / "devices"


class DeviceError(OfaError):
    """No device has this name, or its file is wrong."""


class DeviceSpec(BaseModel):
    """Everything besides the network that fixes a latency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=DEVICE_NAME)  # part of file names and limits
    description: str = ""
    runtime: str  # a module of deploy.runtimes
    provider: str = "CPUExecutionProvider"  # what the runtime computes on, in its own words
    provider_options: dict[str, str] = {}
    precision: Literal["fp32", "fp16", "bf16", "int8", "a16w8"] = "fp32"
    optimization: Literal["all", "extended", "basic", "none"] = "all"  # level of ONNX Runtime's graph optimisation
    num_threads: int = Field(1, ge=1, le=2**10)
    batch_size: int = Field(1, ge=1, le=2**16)

    def __hash__(self) -> int:  # the fields' own would fail on the options
        return hash(self.name)

    @property
    def graph_precision(self) -> Literal["fp32", "fp16", "int8", "a16w8"]:
        """What the file must be (deploy.emit): ONNX Runtime runs what it says; OpenVINO runs fp32 files in bf16 and fp16."""
        if self.precision == "bf16" or (self.precision == "fp16" and self.runtime != "onnxruntime"):
            return "fp32"
        return self.precision


def list_devices() -> list[str]:
    """Return the names of the devices that ship with the toolkit."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def get_device(name: str) -> DeviceSpec:
    """Load a device by name, or from the path of a .toml file.

    Raises:
        DeviceError: listing the names that exist, or the field that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or (not name.endswith(".toml") and name not in list_devices()):
        raise DeviceError(f"unknown device {name!r}; known: {', '.join(list_devices())} (or the path of a .toml file)")
    content = read_bounded(path, what="a device file", limit=MAX_BYTES)
    try:
        fields = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"{path}: not a device file ({error})") from None
    if "name" in fields:
        raise DeviceError(f"{path}: 'name' is not a field of the file; a device is named after its file")
    return make_device({"name": path.stem, **fields}, path)


def make_device(fields: object, source: Path) -> DeviceSpec:
    """Make a device from the fields that `source` holds.

    Raises:
        DeviceError: naming the field that is wrong.
    """
    try:
        return DeviceSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "device"
        raise DeviceError(f"{source}: {where}: {first['msg']}; fields: {', '.join(DeviceSpec.model_fields)}") from None
