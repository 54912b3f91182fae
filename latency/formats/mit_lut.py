"""MIT's latency tables (github.com/mit-han-lab/once-for-all, proxylessnas): a time for every block, by input size.

One object `key: {"mean": milliseconds, ...}` for each input size. A key says what a block is:

    expanded_conv-input:112x112x24-output:56x56x32-expand:144-kernel:7-stride:2-idskip:0-se:0-hs:0

Tables of MobileNetV3-like networks name the activation (hs) and squeeze-and-excitation (se), and `expand` is the number of hidden
channels; in those of ProxylessNAS-like ones neither is named, `expand` is the ratio, and everything is ReLU6. A network takes the
plain sum: Conv (stem), expanded_conv (blocks), Conv_1 (final), AvgPool2D (pool), Conv_2 (feature), Logits (classifier). Where no
pooling is named, Logits holds it. Blocks are physical: a table serves any space that is built of them, and no other; the Pixel 1
table's widths are those of ProxylessNAS 1.0, so it prices nothing of ofa_proxyless_w1_3.

Files hold one such object (as published, YAML), or {"table": one} or {"tables": {"224": one, ...}}; "mean_ms" does for "mean".
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latency.formats.by_size import TableBySize
from latency.formats.reading import milliseconds, read_json_object, read_text
from latency.table import LatencyTable
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from ofa.space import SearchSpace

KEY = re.compile(
    r"(?P<layer>Conv|Conv_1|Conv_2|AvgPool2D|Logits|expanded_conv)"
    r"-input:(?P<side>\d{1,4})x(?P=side)x(?P<inputs>\d{1,5})"
    r"-output:(?:(?P<out_side>\d{1,4})x(?P=out_side)x)?(?P<outputs>\d{1,5})"
    r"(?:-expand:(?P<expand>\d{1,5})-kernel:(?P<kernel_size>\d{1,2})-stride:(?P<stride>\d)-idskip:(?P<skip>[01])"
    r"(?:-se:(?P<se>[01])-hs:(?P<hs>[01]))?)?"
)


def import_mit_lut(path: Path, space: SearchSpace, device: str) -> LatencyTable:
    """Return the table of a space that MIT's times of blocks make, in milliseconds, one image at a time.

    Raises:
        ArtefactError: if the file is damaged, or holds a key that is no block of those networks.
    """
    value = _read(path)
    sizes = {side: _entries(table, f"{path}: {side}" if side else str(path)) for side, table in _by_size(value, path).items()}
    for side, entries in sizes.items():
        if side and not any(spec.in_channels == 3 and spec.resolution == side for spec in entries):
            raise ArtefactError(
                f"{path}: the table filed under {side} has no 'Conv-input:{side}x{side}x3-...', so it is of another"
            )
    origin = {name: text for name, text in value.items() if name in ("device", "network", "source") and isinstance(text, str)}
    return TableBySize.of_sizes(space, device, sizes, {"source": path.name, "format": "mit_ofa", "origin": origin})


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        return read_json_object(path)
    try:
        yaml = importlib.import_module("yaml")  # no dependency for the sake of a dozen files
    except ImportError:
        raise ArtefactError(f"{path}: reading YAML needs PyYAML: pip install pyyaml; or make it a .json file") from None
    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path}: not valid YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(value, Mapping):
        raise ArtefactError(f"{path}: holds a {type(value).__name__}, expected an object of key: time")
    return value


def _by_size(value: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    """Return the tables of a file by the input size that they are filed under, 0 where there is but one."""
    found = value["tables"] if "tables" in value else {"0": value.get("table", value)}
    if not isinstance(found, Mapping) or not found or not all(isinstance(table, Mapping) and table for table in found.values()):
        raise ArtefactError(f"{path}: holds no table, expected an object of key: time, or 'tables' with one for each input size")
    wrong = next((name for name in found if not re.fullmatch(r"0|[1-9][0-9]{0,3}", str(name))), None)
    if wrong is not None:
        raise ArtefactError(f"{path}: tables.{str(wrong)[:40]}: expected input sizes in pixels, such as 224")
    return {int(name): table for name, table in found.items()}


def _entries(table: Mapping[str, Any], where: str) -> dict[BlockSpec, float]:
    keys = {str(key): KEY.fullmatch(str(key)) for key in table}
    unknown = next((key for key, match in keys.items() if match is None), None)
    if unknown is not None:
        raise ArtefactError(
            f"{where}: {unknown[:120]!r} is no block of MIT's tables, e.g. 'Conv-input:224x224x3-output:112x112x24'"
        )
    families = {match["hs"] is not None for match in keys.values() if match and match["layer"] == "expanded_conv"}
    if len(families) != 1:
        raise ArtefactError(f"{where}: 'expanded_conv' blocks expected, all of them with -se: and -hs:, or none (ProxylessNAS)")
    (is_mobilenet_v3,) = families
    found: dict[BlockSpec, float] = {}
    for (key, match), value in zip(keys.items(), table.values(), strict=True):
        assert match is not None
        ms = milliseconds(value.get("mean_ms", value.get("mean")) if isinstance(value, Mapping) else value, f"{where}: {key}")
        spec = _block(match, is_mobilenet_v3=is_mobilenet_v3)
        if spec is None or spec.out_resolution != int(match["out_side"] or 1):
            raise ArtefactError(f"{where}: {key!r}: its numbers do not fit together, there is no such block")
        if found.setdefault(spec, ms) != ms:
            raise ArtefactError(f"{where}: {key!r}: stands there twice, with different times")
        if match["layer"] == "Logits" and int(match["side"]) > 1:
            found.setdefault(BlockSpec("pool", spec.in_channels, spec.in_channels, int(match["side"])), 0.0)  # timed with it
    return found


def _block(match: re.Match[str], *, is_mobilenet_v3: bool) -> BlockSpec | None:
    """Return the block that a key names; None if its numbers contradict each other."""
    numbers = {name: int(text) for name, text in match.groupdict().items() if name != "layer" and text is not None}
    layer, inputs, outputs, side = match["layer"], numbers["inputs"], numbers["outputs"], numbers["side"]
    act = "h_swish" if is_mobilenet_v3 else "relu6"
    if min(numbers["inputs"], outputs, side, numbers.get("out_side", 1), numbers.get("stride", 1)) < 1:
        return None
    if (layer == "expanded_conv") != ("expand" in numbers):
        return None
    if layer == "expanded_conv":
        skip, hidden = bool(numbers["skip"]), numbers["expand"] * (1 if is_mobilenet_v3 else inputs)
        if skip and (inputs != outputs or numbers["stride"] > 1):
            return None
        return BlockSpec(
            "mbconv",
            inputs,
            outputs,
            side,
            kernel_size=numbers["kernel_size"],
            stride=numbers["stride"],
            hidden_channels=hidden,
            act=("h_swish" if numbers["hs"] else "relu") if is_mobilenet_v3 else act,
            se=bool(numbers.get("se")),
            shortcut="identity" if skip else "none",
        )
    if layer == "Conv":
        stride = -(-side // numbers.get("out_side", side))
        return BlockSpec("conv", inputs, outputs, side, kernel_size=3, stride=stride, act=act)
    if layer == "Conv_1":
        return BlockSpec("conv", inputs, outputs, side, act=act)
    if layer == "AvgPool2D":
        return BlockSpec("pool", inputs, outputs, side)
    if layer == "Conv_2":
        return BlockSpec("linear", inputs, outputs, side, act=act)
    return BlockSpec("linear", inputs, outputs, 1, bias=True)
