"""AttentiveNAS and AlphaNet (github.com/facebookresearch): checkpoints of supernets and sub-networks, and architectures.

An architecture there is a dict {"resolution": r, "width": [...], "depth": [...], "kernel_size": [...], "expand_ratio": [...]};
widths are of the stem, the stages and the features, the other lists are of the stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ofa.formats.arch_dict import as_list, check_keys, pick, stage_blocks
from ofa.formats.published import FormatError, Source, find_space, load_published
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet

SPACES = ("attentive_nas",)
KINDS = ("depth", "kernel_size", "expand_ratio")  # the lists with one entry a stage


def load_supernet(source: Source, space: SearchSpace | str = "attentive_nas") -> Supernet:
    """Return a supernet in eval mode with the weights of a checkpoint of AttentiveNAS or AlphaNet, float32.

    Left out are its statistics for other purposes (bn_tracking) and the weights of shortcuts that no architecture uses.

    Args:
        source: .pth, .pt, .pth.tar or .safetensors file, or its state: key -> tensor or array, also inside {"state_dict": ...}.
        space: name of a space, or a space of the same family.
    Raises:
        FormatError: if the checkpoint cannot be read or does not fit.
    """
    space = get_space(space) if isinstance(space, str) else space
    return load_published(source, space, known=SPACES, ignored=_ignored)


def load_subnet(source: Source, space: SearchSpace | str, arch: ArchConfig) -> nn.Sequential:
    """Return a static network in eval mode with the weights of a checkpoint of it.

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
    """Return the architecture that a dict stands for; a single value counts for all, None or a missing entry is the largest.

    Args:
        resolution: input pixels; None = the dict's own, or else the largest.
    Raises:
        FormatError: for an unknown entry or a list of the wrong length.
        InvalidArchError: for an illegal value; it names the legal ones.
    """
    check_keys(config, ("resolution", "width", *KINDS))
    if "feature.width" not in space.column:
        raise FormatError(f"{space.name}: not a space of AttentiveNAS's family (BigNAS-like)")
    values = {"resolution": pick(space, "resolution", config.get("resolution") if resolution is None else resolution)}
    names = {"width": _width_names(space), **{kind: [f"{s}.{kind}" for s in stage_blocks(space)] for kind in KINDS}}
    for kind, dimensions in names.items():
        for name, value in zip(dimensions, as_list(config, kind, len(dimensions)), strict=True):
            values[name] = pick(space, name, value)
    return space.from_values(values)


def from_arch(space: SearchSpace, arch: ArchConfig) -> dict[str, Any]:
    """Return the dict of an architecture. Reverse of `to_arch`."""
    values = {d.name: v for d, v in zip(space.dimensions, space.check(arch).values, strict=True)}
    found: dict[str, Any] = {"resolution": values["resolution"], "width": [values[name] for name in _width_names(space)]}
    return found | {kind: [values[f"{stage}.{kind}"] for stage in stage_blocks(space)] for kind in KINDS}


def _width_names(space: SearchSpace) -> list[str]:
    return ["stem.width", *(f"{stage}.width" for stage in stage_blocks(space)), "feature.width"]


def _ignored(key: str) -> bool:
    """Whether a key may be left over: shortcuts have a 1x1 convolution there even where no architecture uses it."""
    return ".bn_tracking." in key or re.fullmatch(r"blocks\.\d+\.shortcut\.conv\.weight", key) is not None
