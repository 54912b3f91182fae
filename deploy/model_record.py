"""The fields of model.json: what whoever reads an exported file may rely on, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.precision import grid_of
from ofa.artefacts import ArtefactError
from ofa.block_spec import SHORTCUTS, Blocks, BlockSpec, wiring
from ofa.errors import OfaError

MOST = 2**14  # channels, pixels


def _precision(name: str) -> str:
    grid_of(name)
    return name


def _layer_precision(name: str) -> str:
    grid_of(name, least_bits=1)
    return name


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=2**12)]  # an image takes 200 MB then
Precision = Annotated[str, AfterValidator(_precision)]
LayerPrecision = Annotated[str, AfterValidator(_layer_precision)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Preprocess(_Part):
    """From an image to the network's input."""

    stored_size: Pixels
    resolution: Pixels
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]


class Quantisation(_Part):
    """What leaving fp32 cost, on so many images."""

    images: Annotated[int, Field(ge=1)]
    split: Annotated[str, Field(pattern=r"^[a-z]+$")]
    top1: Share
    top1_fp32: Share
    agreement: Share
    sqnr_db: Finite


class Anchor(_Part):
    """A network of a device's latency table, and what it took when that was measured."""

    blocks: dict[str, dict[str, Any]]
    latency_ms: Positive


class ModelRecord(_Part):
    """model.json; further fields are notes."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1)]
    precision: Precision
    opset: int
    ir_version: int
    layers: dict[str, LayerPrecision]
    space: str | None
    arch: Annotated[dict[str, int | float | str], Field(min_length=1)] | None
    blocks: dict[str, dict[str, Any]] | None = None  # name -> fields of its BlockSpec and what it reads, in execution order
    bn_eps: Positive | None = None
    classes: Annotated[list[str], Field(min_length=1)]
    preprocess: Preprocess
    weights_sha256: str | None
    limits: list[str]
    predicted: dict[str, Finite]
    devices: dict[str, dict[str, Any]]
    versions: dict[str, Any]
    host: dict[str, Any]
    parity_error: Finite
    deviation: Finite
    anchors: dict[str, Anchor] = {}
    quantisation: Quantisation | None
    data: str | None = None
    top1_validation: Share = Field(default=0.0, description="absent where the weights are not the search's")

    @model_validator(mode="after")
    def _has_both_or_neither(self) -> ModelRecord:
        if len({self.space is None, self.arch is None, self.blocks is None, self.bn_eps is None}) > 1:
            raise ValueError("space, arch, blocks and bn_eps belong together: expected all or none")
        return self


def read_blocks(fields: Mapping[str, Any], path: Path) -> dict[str, BlockSpec]:
    """Return blocks that can be built, by name, in execution order.

    They come with the file, so that whoever checks it needs no module of the space that it was found in.

    Raises:
        ArtefactError: naming what is none.
    """
    from ofa.blocks import KINDS  # here: reading a record must not import torch
    from ofa.layers import ACTIVATIONS

    blocks: dict[str, BlockSpec] = {}
    reads: dict[str, tuple[str, ...]] = {}
    for name, value in fields.items():
        sources = value.get("reads") if isinstance(value, Mapping) else None
        if sources is not None:
            value = {key: item for key, item in value.items() if key != "reads"}
            reads[name] = tuple(map(str, sources)) if isinstance(sources, list) else ()
        try:
            spec = blocks[name] = BlockSpec.from_dict(value)
        except OfaError as error:
            raise ArtefactError(f"{path}: {name!r}: {error}; the file is damaged") from None
        known = spec.kind in KINDS and spec.act in ACTIVATIONS and spec.shortcut in SHORTCUTS
        sizes = (spec.in_channels, spec.out_channels, spec.resolution, spec.kernel_size, spec.stride, spec.num_inputs)
        besides = (spec.hidden_channels, spec.kernel_width, spec.padded, spec.squeezed, spec.weight_bits, spec.activation_bits)
        fits = all(0 < size <= MOST for size in sizes) and all(0 <= size <= MOST for size in besides)
        if not known or not fits or (spec.kind == "pad" and spec.padded < spec.resolution):
            raise ArtefactError(f"{path}: {name!r} is no block that can be built ({spec}); the file is damaged")
    wired = Blocks(blocks, reads) if reads else blocks
    try:
        wiring(wired)
    except OfaError as error:
        raise ArtefactError(f"{path}: {error}; the file is damaged") from None
    return wired


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a model.json that lacks what its readers need.

    Raises:
        ArtefactError: naming the field that is wrong.
    """
    try:
        ModelRecord.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arch"
        value = "missing" if first["type"] == "missing" else repr(first["input"])[:100]
        raise ArtefactError(f"{path}: {where} is {value}: {first['msg']}; the file is damaged") from None
