"""The file of a latency table, field by field: what `latency/<device>.json` may hold, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.device import DEVICE_NAME
from ofa.artefacts import ArtefactError, read_json

SCHEMA = "ofa.latency/2"
Model = TypeVar("Model", bound=BaseModel)
DeviceName = Annotated[str, Field(pattern=DEVICE_NAME)]
Milliseconds = Annotated[float, Field(ge=1e-9, le=1e9)]  # beyond these a time is damage, and arithmetic with it fails
Finite = Annotated[float, Field(allow_inf_nan=False)]
Day = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RuntimeRecord(_Part):
    """What ran the graphs."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str
    version: str


class NetworkRecord(_Part):
    """A whole network that was timed."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    arch: dict[str, int | float | str]
    measured_ms: Milliseconds
    fitted: bool


class Provenance(_Part):
    """Where a table comes from; what a measured one holds, and whatever else its origin says."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    device: dict[str, Any] | None = Field(default=None, description="fields of the device file")
    runtime: RuntimeRecord | None = None
    host: dict[str, Any] | None = None
    clock: Literal["cpu", "wall"] | None = None
    measured: Day | None = None
    checked: Day | None = None
    measured_by: Literal["here", "agent"] | None = Field(default=None, description="this installation, or an agent")
    command: str | None = Field(default=None, description="what made the table, and makes it again")
    networks: list[NetworkRecord] | None = None
    no_error: str | None = Field(default=None, description="why a measured table states no error")


class Entry(_Part):
    """The time of a block run alone."""

    block: dict[str, Any] = Field(description="fields of a BlockSpec; those left out have its default")
    ms: Annotated[float, Field(ge=0, le=1e9)] = Field(description="0 = its time is part of another block's")


class Failure(_Part):
    """A block that the device could not run."""

    block: dict[str, Any]
    why: str


class Line(_Part):
    """network = sum over blocks (per_ms * ms + per_block_ms + per_mmac_ms * million MACs) + offset_ms; default: the plain sum."""

    per_ms: Finite = 1.0
    per_block_ms: Finite = 0.0
    per_mmac_ms: Finite = 0.0
    offset_ms: Finite = 0.0


class Error(_Part):
    """Predicted against measured on n networks that the table was not fitted to; shares, not %."""

    n: Annotated[int, Field(ge=1)]
    mape: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    rmspe: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    within_5: Share
    within_10: Share
    kendall_tau: Annotated[float, Field(ge=-1, le=1)]


class Pair(_Part):
    """One network."""

    predicted_ms: Finite
    measured_ms: Milliseconds


class Energy(_Part):
    """millijoules = watts * milliseconds + offset_mj."""

    watts: Finite
    offset_mj: Finite
    rmspe: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    meter: str


class TableFile(_Part):
    """A latency table; only the first four fields are needed."""

    schema_: Literal["ofa.latency/2"] = Field(alias="schema")
    space: str = Field(description="name of the space whose blocks it holds")
    device: DeviceName = Field(description="name used in limits: latency@DEVICE")
    entries: list[Entry] = Field(min_length=1)
    calibration: Line = Line()
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="nine networks in ten measure within prediction * (1 +- margin); null = not known"
    )
    error: Error | None = None
    macs_error: Error | None = Field(default=None, description="of a line fitted to MACs alone, on the same networks")
    validation: list[Pair] = []
    failed: list[Failure] = []
    energy: Energy | None = None
    provenance: Provenance = Provenance()


def read_table_file(path: Path) -> TableFile:
    """Read and check the file of a table.

    Raises:
        ArtefactError: naming the file and the field that is wrong.
    """
    return validated(TableFile, read_json(path, schema=SCHEMA), path)


def validated(model: type[Model], value: object, source: Path) -> Model:
    """Return a JSON value as what it should be.

    Raises:
        ArtefactError: naming the file and the field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"{source}: {where} = {str(first['input'])[:60]!r}: {first['msg']}; the file is damaged") from None
