"""Trained networks of DARTS' code (github.com/quark0/darts) and of those that build on it: a state_dict beside its genotype.

Cells there are `cells.0`, `cells.1`, ..., and a cell's operations `_ops.0`, `_ops.1`, ... in the order in which the genotype
lists them. How many cells, channels and classes the network has follows from the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.cell_space import STEM_MULTIPLIER, CellSpace
from ofa.formats.published import FormatError, Source, read_tensors
from ofa.genotype import INPUTS, Genotype
from ofa.space import ArchConfig
from ofa.spaces import get_space
from ofa.training.auxiliary import AuxiliaryHead

LAYERS = {  # kind of block -> our name of a layer inside it -> theirs
    "relu_conv": {"conv": "op.1", "bn": "op.2"},
    "factorized_reduce": {"conv1": "conv_1", "conv2": "conv_2", "bn": "bn"},
    "sep_conv": {
        "depthwise1": "op.1",
        "pointwise1.conv": "op.2",
        "pointwise1.bn": "op.3",
        "depthwise2": "op.5",
        "pointwise2.conv": "op.6",
        "pointwise2.bn": "op.7",
    },
    "dil_conv": {"depthwise": "op.1", "pointwise.conv": "op.2", "pointwise.bn": "op.3"},
    "row_column_conv": {"row": "1", "column": "2", "bn": "3"},
}
STEMS = {  # slot -> our layer -> theirs
    "stem": {"conv": "stem.0", "bn": "stem.1"},
    "stem0": {"conv": "stem0.0", "bn": "stem0.1"},
    "stem1": {"conv": "stem0.3", "bn": "stem0.4"},
    "stem2": {"conv": "stem1.1", "bn": "stem1.2"},
    "classifier": {"linear": "classifier"},
}
TENSORS = {"linear": ("weight", "bias"), "bn": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
AUXILIARY = "auxiliary_head."


def load_network(source: Source, genotype: Genotype) -> tuple[CellSpace, ArchConfig, nn.Sequential]:
    """Return a network of these cells in eval mode with the weights of a checkpoint, float32, and what it is.

    An auxiliary classifier in the checkpoint is left out (`load_auxiliary` reads it).

    Raises:
        FormatError: if the checkpoint cannot be read or is not of these cells.
    """
    state = read_tensors(source)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    space = _find_space(state, genotype)
    arch = space.from_genotype(genotype)
    blocks = space.blocks(arch)
    net = build_network(blocks, bn_eps=space.bn_eps)
    names = key_map(genotype, blocks)
    _load(net, {ours: state.get(theirs) for ours, theirs in names.items()}, names)
    known = set(names.values())
    extra = next((key for key in state if key not in known and not key.startswith(AUXILIARY)), None)
    if extra is not None:
        raise FormatError(f"checkpoint: has {extra}, which a network of these cells does not; is it of another genotype?")
    return space, arch, net.eval()


def load_auxiliary(source: Source, head: AuxiliaryHead) -> AuxiliaryHead:
    """Give a head the weights of a checkpoint's auxiliary classifier, whose layers have the same names.

    Raises:
        FormatError: if the checkpoint has none of its shape.
    """
    state = read_tensors(source)
    names = {ours: f"{AUXILIARY}{ours}" for ours in head.state_dict()}
    _load(head, {ours: state.get(theirs) for ours, theirs in names.items()}, names)
    return head


def key_map(genotype: Genotype, blocks: Mapping[str, BlockSpec]) -> dict[str, str]:
    """Return our key -> theirs, for every tensor of a network of these cells that `build_network` makes of its blocks."""
    places = {kind: _places(nodes) for kind, nodes in (("normal", genotype.normal), ("reduce", genotype.reduce))}
    reductions = _reductions(blocks)
    names: dict[str, str] = {}
    for name, spec in blocks.items():
        layers, prefix = STEMS.get(name), ""
        if layers is None and spec.kind in LAYERS:
            layers = LAYERS[spec.kind]
            cell, _, rest = name.partition("_")
            index = int(cell.removeprefix("cell"))
            place = places["reduce" if index in reductions else "normal"]
            prefix = f"cells.{index}." + (rest.replace("input", "preprocess") if "input" in rest else f"_ops.{place[rest]}") + "."
        for ours, theirs in (layers or {}).items():
            tensors = TENSORS.get(ours.rpartition(".")[2], ("weight",))
            names |= {f"{name}.{ours}.{tensor}": f"{prefix}{theirs}.{tensor}" for tensor in tensors}
    return names


def _places(nodes: tuple[Any, ...]) -> dict[str, int]:
    """Our name of an edge within its cell -> its place in the genotype."""
    found: dict[str, int] = {}
    place = 0
    for node, edges in enumerate(nodes, INPUTS):
        for _, source in edges:
            edge = f"node{node}_from{source}"
            found[f"{edge}_again" if edge in found else edge] = place
            place += 1
    return found


def _reductions(blocks: Mapping[str, BlockSpec]) -> set[int]:
    cells = 1 + max(int(name.partition("_")[0].removeprefix("cell")) for name in blocks if name.startswith("cell"))
    return {cells // 3, 2 * cells // 3}


def _find_space(state: Mapping[str, Tensor], genotype: Genotype) -> CellSpace:
    """The space with the number of cells, channels and classes that a checkpoint's tensors have."""
    cells = [int(found[1]) for key in state if (found := re.match(r"cells\.(\d{1,3})\.", key))]
    stem = state.get("stem.0.weight", state.get("stem0.0.weight"))
    classifier = state.get("classifier.weight")
    if not cells or stem is None or classifier is None or stem.ndim != 4 or classifier.ndim != 2:
        raise FormatError("checkpoint: has no cells, stem and classifier as DARTS' networks do; give the state_dict of one")
    small = "stem.0.weight" in state
    channels = len(stem) // STEM_MULTIPLIER if small else 2 * len(stem)
    base = get_space("darts" if len(genotype.normal) == 4 else "nasnet", num_classes=max(1, len(classifier)))
    assert isinstance(base, CellSpace)
    numbers: dict[str, int | str] = {} if small else {"stem": "imagenet", "resolution": 224}
    return base.with_numbers(cells=max(cells) + 1, channels=channels, **numbers)


@torch.no_grad()
def _load(net: nn.Module, found: Mapping[str, Tensor | None], names: Mapping[str, str]) -> None:
    for ours, tensor in net.state_dict().items():
        value = found.get(ours)
        if value is None:
            if ours.endswith("num_batches_tracked"):
                continue
            raise FormatError(f"checkpoint: has no {names.get(ours, ours)}; is it of another genotype?")
        if value.shape != tensor.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(tensor.shape)}"
            raise FormatError(f"checkpoint: {names[ours]} has shape {shapes}; is it of another genotype?")
        tensor.copy_(value)
