"""The file of a latency table, field by field: what `latency/<device>.json` may hold, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ofa.artefacts import ArtefactError, read_json

SCHEMA = "ofa.latency/2"
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entry(_Part):
    """The time of a block run alone."""

    block: dict[str, Any] = Field(description="fields of a BlockSpec; those left out have its default")
    ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="0 = its time is part of another block's")


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
    device: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="name used in limits: latency@DEVICE")
    entries: list[Entry] = Field(min_length=1)
    calibration: Line = Line()
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="nine networks in ten measure within prediction * (1 +- margin); null = not known"
    )
    error: Error | None = None
    macs_error: Error | None = Field(None, description="of a line fitted to MACs alone, on the same networks")
    validation: list[Pair] = []
    failed: list[Failure] = []
    energy: Energy | None = None
    provenance: dict[str, Any] = Field({}, description="where it comes from: device, runtime, host, conditions")


def read_table_file(path: Path) -> TableFile:
    """Read and check the file of a table.

    Raises:
        ArtefactError: naming the file and the field that is wrong.
    """
    value = read_json(path, schema=SCHEMA)
    try:
        return TableFile.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"{path}: {where} = {str(first['input'])[:60]!r}: {first['msg']}; the table is damaged") from None
