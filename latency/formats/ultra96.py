"""Block times of OFA MobileNetV3 on an Ultra96-V2 FPGA board (github.com/Pilot-Khadka/Latency-dataset-for-Once-For-All-network).

{"blocks": [...]}: int8, batch 1, mean over 500 runs a block, at an input size of 224 px. Inverted residual blocks are described
field by field; the others by a name, e.g. "Conv_in-192x7x7_out-1152_k-1_act-h_swish_shape" (the final convolution). A network
takes the plain sum. Two things are not as in the published network: the stem was timed with ReLU instead of h-swish, and pooling
was not timed at all, so it counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from latency.formats.reading import milliseconds, read_json_object
from latency.table import LatencyTable
from latency.table_file import validated
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from ofa.space import SearchSpace

CONV = re.compile(r"Conv_in-(\d{1,5})x(\d{1,4})x(\d{1,4})_out-(\d{1,5})_k-(\d{1,2})_act-(relu|h_swish)(?:_shape)?")
LINEAR = re.compile(r"Linear_in-(\d{1,5})_out-(\d{1,5})")
Positive = Annotated[int, Field(ge=1, le=99999)]


class _Residual(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    in_channels: Positive
    in_size: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    out_channels: Positive
    kernel: Positive
    expand: Positive
    stride: Positive
    act: Literal["relu", "h_swish"]
    se: bool


def import_ultra96(path: Path, space: SearchSpace, device: str) -> LatencyTable:
    """Return the table of a space that the board's times of blocks make, in milliseconds.

    Raises:
        ArtefactError: if the file is damaged, or holds anything but blocks of that network.
    """
    value = read_json_object(path)
    blocks = value.get("blocks")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ArtefactError(f"{path}: holds no 'blocks', expected a list of objects, one a block")
    entries: dict[BlockSpec, float] = {}
    for i, block in enumerate(blocks):
        where = f"{path}: blocks.{i}"
        spec = _residual(block, where) if block.get("block") == "mbconv" else _named(str(block.get("block")), where)
        if spec in entries:
            raise ArtefactError(f"{where}: {spec} stands there twice; which time holds?")
        entries[spec] = milliseconds(block.get("mean_ms"), f"{where}.mean_ms")
        if spec.kind == "conv" and spec.kernel_size == 1:
            entries[BlockSpec("pool", spec.out_channels, spec.out_channels, spec.resolution)] = 0.0
    origin = {name: text for name, text in value.items() if name in ("device", "network", "source") and isinstance(text, str)}
    return LatencyTable(
        space, device, entries, provenance={"source": path.name, "format": "ultra96", "origin": origin, "not_timed": ["pool"]}
    )


def _residual(block: Mapping[str, Any], where: str) -> BlockSpec:
    fields = validated(_Residual, block, Path(where))
    side, other = fields.in_size
    if side != other:
        raise ArtefactError(f"{where}.in_size = {fields.in_size}: expected a square")
    return BlockSpec(
        "mbconv",
        fields.in_channels,
        fields.out_channels,
        side,
        kernel_size=fields.kernel,
        stride=fields.stride,
        hidden_channels=fields.in_channels * fields.expand,
        act=fields.act,
        se=fields.se,
        shortcut="identity" if fields.stride == 1 and fields.in_channels == fields.out_channels else "none",
    )


def _named(name: str, where: str) -> BlockSpec:
    if match := LINEAR.fullmatch(name):
        return BlockSpec("linear", int(match[1]), int(match[2]), 1, bias=True)
    match = CONV.fullmatch(name)
    if match is None or match[2] != match[3] or "0" in match.groups():
        raise ArtefactError(f"{where}: block {name[:80]!r} is none that this board timed, e.g. 'Linear_in-1536_out-1000'")
    inputs, side, outputs, kernel_size = (int(match[i]) for i in (1, 2, 4, 5))
    if inputs == 3:
        return BlockSpec("conv", inputs, outputs, side, kernel_size=kernel_size, stride=2, act="h_swish")  # see above
    if side == 1:
        return BlockSpec("linear", inputs, outputs, 1, act=match[6])  # a 1x1 convolution of one pixel
    return BlockSpec("conv", inputs, outputs, side, kernel_size=kernel_size, act=match[6])
