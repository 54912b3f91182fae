"""MIT's *net config*: the JSON description of one static network, block by block, that comes with its specialised networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ofa.block_spec import BlockSpec
from ofa.formats.arch_dict import options_of, stage_blocks
from ofa.formats.published import FormatError
from ofa.space import ArchConfig, SearchSpace, Slot, Value
from ofa.spaces import get_space

KNOWN = ("ofa_mbv3_w1_0", "ofa_mbv3_w1_2", "ofa_proxyless_w1_3", "ofa_resnet50d")


# -- writing ------------------------------------------------------------------------------------------------------


def to_net_config(space: SearchSpace, arch: ArchConfig) -> dict[str, Any]:
    """Return the net config of an architecture of a MobileNet-like or ResNet-like space, ready for JSON."""
    blocks = space.blocks(arch)
    values = {d.name: v for d, v in zip(space.dimensions, arch.values, strict=True)}
    described = []
    for name, spec in blocks.items():
        ratio = values.get(f"{name.replace('_', '.')}.expand_ratio", 1)
        if spec.kind == "mbconv":
            described.append(_residual(_mbconv_layer(spec, ratio), spec))
        elif spec.kind == "bottleneck":
            described.append(_bottleneck_block(spec, ratio))
    bn = {"momentum": 0.1, "eps": space.bn_eps, "ws_eps": None}
    classifier = _linear_layer(blocks["classifier"])
    if "stem_out" in blocks:
        stem = [_stem_layer(spec) for name, spec in blocks.items() if name.startswith("stem") and spec.kind == "conv"]
        return {"name": "ResNets", "bn": bn, "input_stem": stem, "blocks": described, "classifier": classifier}
    config = {"bn": bn, "first_conv": _conv_layer(blocks["stem"]), "blocks": described, "classifier": classifier}
    if "feature" not in blocks:
        return {"name": "ProxylessNASNets", **config, "feature_mix_layer": _conv_layer(blocks["final"])}
    feature = blocks["feature"]
    mix = {**_conv_layer(feature), "kernel_size": 1, "stride": 1, "use_bn": False}
    return {"name": "MobileNetV3", **config, "final_expand_layer": _conv_layer(blocks["final"]), "feature_mix_layer": mix}


def _common(spec: BlockSpec, *, act: str | None, use_bn: bool = True) -> dict[str, Any]:
    return {"use_bn": use_bn, "act_func": None if act == "none" else act, "dropout_rate": 0, "ops_order": "weight_bn_act"}


def _conv_layer(spec: BlockSpec) -> dict[str, Any]:
    return {
        "name": "ConvLayer",
        "kernel_size": spec.kernel_size,
        "stride": spec.stride,
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "has_shuffle": False,
        "use_se": False,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        **_common(spec, act=spec.act),
    }


def _linear_layer(spec: BlockSpec) -> dict[str, Any]:
    sizes = {"in_features": spec.in_channels, "out_features": spec.out_channels, "bias": spec.bias}
    return {"name": "LinearLayer", **sizes, **_common(spec, act=None, use_bn=False)}


def _identity_layer(spec: BlockSpec) -> dict[str, Any]:
    channels = {"in_channels": [spec.in_channels], "out_channels": [spec.out_channels]}
    return {"name": "IdentityLayer", **channels, **_common(spec, act=None, use_bn=False)}


def _expanded(spec: BlockSpec, expand_ratio: Value) -> dict[str, Any]:
    """What both kinds of block with hidden channels say."""
    return {
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "kernel_size": spec.kernel_size,
        "stride": spec.stride,
        "expand_ratio": expand_ratio,
        "mid_channels": spec.hidden_channels,
        "act_func": spec.act,
    }


def _mbconv_layer(spec: BlockSpec, expand_ratio: Value) -> dict[str, Any]:
    return {
        "name": "MBConvLayer",
        **_expanded(spec, expand_ratio),
        "use_se": spec.se,
        "groups": None,
    }


def _residual(layer: dict[str, Any], spec: BlockSpec) -> dict[str, Any]:
    return {"name": "ResidualBlock", "conv": layer, "shortcut": _identity_layer(spec) if spec.shortcut == "identity" else None}


def _stem_layer(spec: BlockSpec) -> dict[str, Any]:
    return _residual(_conv_layer(spec), spec) if spec.shortcut == "identity" else _conv_layer(spec)


def _bottleneck_block(spec: BlockSpec, expand_ratio: Value) -> dict[str, Any]:
    return {
        "name": "ResNetBottleneckBlock",
        **_expanded(spec, expand_ratio),
        "groups": 1,
        "downsample_mode": "avgpool_conv",
    }


# -- reading ------------------------------------------------------------------------------------------------------


def from_net_config(
    config: Mapping[str, Any], space: SearchSpace | str | None = None, *, resolution: int | None = None
) -> tuple[SearchSpace, ArchConfig]:
    """Return the space and the architecture that a net config describes.

    Args:
        space: where it belongs; None = the one of MIT's spaces that it fits.
        resolution: input pixels, which a net config does not say; None = the largest.
    Raises:
        FormatError: if it is no net config, or of another space; it says what differs.
        InvalidArchError: for an illegal resolution.
    """
    found = _read(config)
    if space is not None:
        space = get_space(space) if isinstance(space, str) else space
        return space, _arch_in(space, found, resolution)
    reasons = []
    for name in KNOWN:
        try:
            return get_space(name), _arch_in(get_space(name), found, resolution)
        except FormatError as error:
            reasons.append(str(error))
    raise FormatError(f"net config fits none of MIT's spaces ({'; '.join(reasons)}); for a space of your own give its name")


def _read(config: Mapping[str, Any]) -> _Rows:
    try:
        return _Rows(config)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise FormatError(
            f"net config of a {config.get('name')!r} cannot be read ({reason}), expected first_conv or input_stem, and blocks, "
            "each layer with in_channels, out_channels, kernel_size, stride and act_func"
        ) from None


def _arch_in(space: SearchSpace, found: _Rows, resolution: int | None) -> ArchConfig:
    values: dict[str, Value] = {d.name: d.options[-1] for d in space.dimensions}
    if resolution is not None:
        values["resolution"] = resolution
    if "stem.depth" in values:
        values["stem.depth"] = len(found.stem) - 2
        values["stem.mid.width"], values["stem.out.width"] = found.stem[0]["out_channels"], found.stem[-1]["out_channels"]
    slots = {slot.name: slot for slot in space.slots}
    rows = iter(found.blocks)
    row = next(rows, None)
    if "first" in slots:
        row = next(rows, None)
    for stage, blocks in stage_blocks(space).items():
        depth = 0
        while row is not None and depth < len(blocks) and (depth == 0 or _continues(row)):
            if depth == 0 and f"{stage}.width" in values:
                values[f"{stage}.width"] = row["out_channels"]
            block = blocks[depth]
            if f"{block}.kernel_size" in values:
                values[f"{block}.kernel_size"] = row["kernel_size"]
            values[f"{block}.expand_ratio"] = _ratio(space, slots[block.replace(".", "_")], f"{block}.expand_ratio", values, row)
            depth, row = depth + 1, next(rows, None)
        values[f"{stage}.depth"] = depth
    illegal = [name for name, value in values.items() if value not in options_of(space, name) and name != "resolution"]
    if illegal:
        raise FormatError(f"not {space.name}: {illegal[0]} would be {values[illegal[0]]!r}")
    arch = space.from_values(values)
    _require_equal(space, _Rows(to_net_config(space, arch)), found)
    return space.decode(space.canonical(space.encode([arch])))[0]


class _Rows:
    """The layers of a net config, whatever its age: each a dict of what fixes its weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        layers = [config["first_conv"]] if "first_conv" in config else list(config["input_stem"])
        if not layers:
            raise ValueError("input_stem is empty")
        self.stem = [_row(layer) for layer in layers]
        self.blocks = [_row(layer) for layer in config["blocks"]]
        self.head = [_row(config[name]) for name in ("final_expand_layer", "feature_mix_layer") if config.get(name)]

    def all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in ("stem", "blocks", "head"):
            yield from ((f"{name}[{i}]", row) for i, row in enumerate(getattr(self, name)))


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    layer = layer.get("conv") or layer.get("mobile_inverted_conv") or layer  # inside a residual block
    row: dict[str, Any] = {key: _whole(layer, key) for key in ("in_channels", "out_channels", "kernel_size", "stride")}
    row |= {"act_func": layer["act_func"], "use_se": bool(layer.get("use_se"))}
    if "expand_ratio" in layer:
        inner = row["in_channels"] if layer["name"].startswith("MB") else row["out_channels"]
        mid = layer.get("mid_channels") and _whole(layer, "mid_channels")
        row["mid_channels"] = mid or round(inner * float(layer["expand_ratio"]))
    return row


def _whole(layer: Mapping[str, Any], key: str) -> int:
    value = layer[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        raise ValueError(f"{key} is {value!r}, expected a whole number")
    return int(value)


def _continues(row: Mapping[str, Any]) -> bool:
    """Whether a block goes on with the stage before it instead of starting one."""
    return bool(row["stride"] == 1 and row["in_channels"] == row["out_channels"])


def _ratio(space: SearchSpace, slot: Slot, name: str, values: Mapping[str, Value], row: Mapping[str, Any]) -> Value:
    """Return the expand ratio that gives a block its hidden channels; the largest if none does (the comparison then says so)."""
    for option in options_of(space, name):
        chosen = {**values, name: option, f"stage{slot.stage}.depth": options_of(space, f"stage{slot.stage}.depth")[-1]}
        spec = slot.choose(*(chosen[d] for d in slot.depends_on))
        if spec is not None and spec.hidden_channels == row["mid_channels"]:
            return option
    return options_of(space, name)[-1]


def _require_equal(space: SearchSpace, ours: _Rows, theirs: _Rows) -> None:
    expected, found = dict(ours.all()), dict(theirs.all())
    for place in expected | found:
        if expected.get(place) != found.get(place):
            raise FormatError(f"not {space.name}: {place} is {found.get(place)}, expected {expected.get(place)}")
