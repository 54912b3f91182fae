"""MIT's once-for-all (github.com/mit-han-lab/once-for-all): checkpoints of supernets and sub-networks, and architectures.

An architecture there is a dict {"ks": [...], "e": [...], "d": [...]} with an entry for every block that could stand (MobileNetV3,
ProxylessNAS), or {"d": [...], "e": [...], "w": [...]} (ResNet50-D); or a *net config*, the description of one static network
(ofa.formats.mit_net_config).
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from torch import nn

from ofa.formats.arch_dict import as_list, check_keys, options_of, pick, stage_blocks
from ofa.formats.mit_net_config import from_net_config, to_net_config
from ofa.formats.published import FormatError, Source, find_space, load_published
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet

__all__ = [
    "SPACES",
    "detect_space",
    "from_arch",
    "from_net_config",
    "load_subnet",
    "load_supernet",
    "to_arch",
    "to_net_config",
]

SPACES = ("ofa_mbv3_w1_0", "ofa_mbv3_w1_2", "ofa_proxyless_w1_3", "ofa_resnet50d")
RESOLUTION_KEYS = ("r", "image_size")  # of the tutorial's and of the package's searches


def load_supernet(source: Source, space: SearchSpace | str) -> Supernet:
    """Return a supernet in eval mode with the weights of MIT's checkpoint, float32.

    Args:
        source: .pth, .pt or .safetensors file, or its state: key -> tensor or array, also inside {"state_dict": ...}. A static
            largest network (a teacher) does too; its kernel transforms are identities then.
        space: name of a space, or a space of the same family.
    Raises:
        FormatError: if the checkpoint cannot be read or does not fit.
    """
    space = get_space(space) if isinstance(space, str) else space
    return load_published(source, space, known=SPACES, ignored=_ignored)


def load_subnet(source: Source, space: SearchSpace | str, arch: ArchConfig) -> nn.Sequential:
    """Return a static network in eval mode with the weights of MIT's checkpoint of it (one of its specialised networks).

    Raises:
        FormatError: if the checkpoint cannot be read or does not fit.
    """
    space = get_space(space) if isinstance(space, str) else space
    return load_supernet(source, space.restrict(arch)).extract(arch)


def detect_space(source: Source) -> str:
    """Return the name of the space that a checkpoint is of.

    Raises:
        FormatError: if it is of none of SPACES.
    """
    return find_space(source, known=SPACES, ignored=_ignored)


def to_arch(space: SearchSpace, config: Mapping[str, Any], *, resolution: int | None = None) -> ArchConfig:
    """Return the architecture that one of MIT's dicts stands for.

    A single value counts for all blocks or stages; None or a missing entry stands for the largest; a depth above a stage's length
    is that length.

    Args:
        resolution: input pixels; None = the dict's own "r" or "image_size", or else the largest.
    Raises:
        FormatError: for an unknown entry or a list of the wrong length.
        InvalidArchError: for an illegal value; it names the legal ones.
    """
    if resolution is None:
        found: Any = next((config[key] for key in RESOLUTION_KEYS if config.get(key) is not None), None)
        resolution = found[0] if isinstance(found, list) and found else found
    values = {"resolution": pick(space, "resolution", resolution)}
    if "stem.depth" in space.column:
        values |= _resnet_values(space, config)
    elif "stage1.block0.kernel_size" in space.column:
        values |= _mobilenet_values(space, config)
    else:
        raise FormatError(f"{space.name}: not a space of MIT's families (MobileNet-like or ResNet-like)")
    return space.from_values(values)


def from_arch(space: SearchSpace, arch: ArchConfig) -> dict[str, list[Any]]:
    """Return MIT's dict of an architecture; the resolution is no part of it. Reverse of `to_arch`."""
    values = {d.name: v for d, v in zip(space.dimensions, space.check(arch).values, strict=True)}
    stages = stage_blocks(space)
    blocks = [block for stage in stages.values() for block in stage]
    expand_ratios = [values[f"{block}.expand_ratio"] for block in blocks]
    depths = [values[f"{stage}.depth"] for stage in stages]
    if "stem.depth" not in values:
        return {"ks": [values[f"{block}.kernel_size"] for block in blocks], "e": expand_ratios, "d": depths}
    extra = _most_extra_blocks(space)
    most = [options_of(space, f"{stage}.depth")[-1] for stage in stages]
    d = [extra if values["stem.depth"] else 0]
    d += [extra - (int(m) - int(depth)) for m, depth in zip(most, depths, strict=True)]
    return {"d": d, "e": expand_ratios, "w": [_width_index(space, name, values[name]) for name in _width_names(space)]}


def _ignored(key: str) -> bool:
    return False


def _mobilenet_values(space: SearchSpace, config: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(config, ("ks", "e", "d", "wid", *RESOLUTION_KEYS))
    if config.get("wid") is not None:
        raise FormatError(f"architecture: 'wid' is {config['wid']!r}, expected null: the width of these networks is fixed")
    stages = stage_blocks(space)
    num_blocks = sum(map(len, stages.values()))
    kernel_sizes, expand_ratios = iter(as_list(config, "ks", num_blocks)), iter(as_list(config, "e", num_blocks))
    values = {}
    for (stage, blocks), depth in zip(stages.items(), as_list(config, "d", len(stages)), strict=True):
        values[f"{stage}.depth"] = pick(space, f"{stage}.depth", depth if depth is None else min(depth, len(blocks)))
        for b, block in enumerate(blocks):
            active = b < values[f"{stage}.depth"]
            for name, value in (("kernel_size", next(kernel_sizes)), ("expand_ratio", next(expand_ratios))):
                values[f"{block}.{name}"] = pick(space, f"{block}.{name}", value, active=active)
    return values


def _resnet_values(space: SearchSpace, config: Mapping[str, Any]) -> dict[str, Any]:
    """Depths are blocks beyond the fewest; the first one, of the stem, keeps its residual convolution only at the most."""
    check_keys(config, ("d", "e", "w", *RESOLUTION_KEYS))
    stages = stage_blocks(space)
    extra = _most_extra_blocks(space)
    stem, *depths = as_list(config, "d", len(stages) + 1)
    expand_ratios = iter(as_list(config, "e", sum(map(len, stages.values()))))
    values: dict[str, Any] = {"stem.depth": int(stem is None or stem == extra)}
    for (stage, blocks), depth in zip(stages.items(), depths, strict=True):
        most = int(options_of(space, f"{stage}.depth")[-1])
        values[f"{stage}.depth"] = pick(space, f"{stage}.depth", None if depth is None else most - (extra - depth))
        for b, block in enumerate(blocks):
            active = b < values[f"{stage}.depth"]
            values[f"{block}.expand_ratio"] = pick(space, f"{block}.expand_ratio", next(expand_ratios), active=active)
    names = _width_names(space)
    for name, index in zip(names, as_list(config, "w", len(names)), strict=True):
        values[name] = options_of(space, name)[-1] if index is None else _width_at(space, name, index)
    return values


def _most_extra_blocks(space: SearchSpace) -> int:
    depths = [options_of(space, f"{stage}.depth") for stage in stage_blocks(space)]
    return max(int(options[-1]) - int(options[0]) for options in depths)


def _width_names(space: SearchSpace) -> list[str]:
    return ["stem.mid.width", "stem.out.width", *(f"{stage}.width" for stage in stage_blocks(space))]


def _missing_widths(space: SearchSpace, name: str) -> int:
    """How many of the smallest width multipliers round to the same number of channels here (24, 24, 32 in MIT's stem)."""
    return max(len(options_of(space, other)) for other in _width_names(space)) - len(options_of(space, name))


def _width_at(space: SearchSpace, name: str, index: Any) -> Any:
    options, missing = options_of(space, name), _missing_widths(space, name)
    if not isinstance(index, Integral) or index not in range(len(options) + missing):
        raise FormatError(f"architecture: 'w' of {name} is {index!r}, expected an index of at most {len(options) + missing - 1}")
    return options[max(0, int(index) - missing)]


def _width_index(space: SearchSpace, name: str, width: Any) -> int:
    index = options_of(space, name).index(width)
    return index + _missing_widths(space, name) if index else 0
