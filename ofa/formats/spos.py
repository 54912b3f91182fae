"""Single Path One-Shot (github.com/megvii-model/SinglePathOneShot): checkpoints of supernets and networks, and architectures.

An architecture there is a list of choices, such as `(2, 1, 0, ...)`, one number for each block, and, where widths are searched, a
list of scales: {"architecture": [2, 1, 0, ...], "channels_scales": [1.0, 1.2, ...]}.

Its networks read blue, green and red from 0 to 255. Ours read red first: the input channels of the first convolution are turned
round. `NORMALISATION` takes care of the range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ofa.formats.arch_dict import as_list, check_keys, pick
from ofa.formats.published import FormatError, Source, read_tensors
from ofa.json_text import loads
from ofa.shufflenet import CHOICES, ShuffleNetSpace
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet

SPACES = ("shufflenet",)  # with scales of widths: shufflenet_channels, which has to be asked for
NORMALISATION = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # mean and deviation of pixels in [0, 1]
NAME = "spos"
PUBLISHED = (
    2,
    1,
    0,
    1,
    2,
    0,
    2,
    0,
    2,
    0,
    2,
    3,
    0,
    0,
    0,
    0,
    3,
    2,
    3,
    3,
)  # of the release, 323 M multiply-adds, 74.4 % on ImageNet
NUMBERS = tuple(CHOICES)  # theirs are 0 to 3
MAX_TEXT = 10_000  # characters of an architecture
STEM, CLASSIFIER = "first_conv.0.weight", "classifier.0.weight"
LAYERS = {  # kind of block -> our name of a layer in it -> theirs of its convolution and BatchNorm
    "conv": {"": ("0", "1")},
    "shuffle": {
        "branch.expand.": ("branch_main.0", "branch_main.1"),
        "branch.depthwise.": ("branch_main.3", "branch_main.4"),
        "branch.project.": ("branch_main.5", "branch_main.6"),
    },
    "xception": {
        f"branch.{name}.": (f"branch_main.{place}", f"branch_main.{place + 1}")
        for name, place in zip(
            ("depthwise1", "pointwise1", "depthwise2", "pointwise2", "depthwise3", "pointwise3"),
            (0, 2, 5, 7, 10, 12),
            strict=True,
        )
    },
}
PROJECTION = {
    "projection.depthwise.": ("branch_proj.0", "branch_proj.1"),
    "projection.pointwise.": ("branch_proj.2", "branch_proj.3"),
}


def load_supernet(source: Source, space: SearchSpace | str = "shufflenet") -> Supernet:
    """Return a supernet in eval mode with the weights and the number of classes of a checkpoint of the release, float32.

    Args:
        source: .pth, .pt, .pth.tar or .safetensors file, or its state: key -> tensor or array, also inside {"state_dict": ...}.
        space: name of a space of ShuffleNet's family, or one; restricted to a network, the checkpoint is of this one.
    Raises:
        FormatError: if the checkpoint cannot be read or does not fit.
    """
    state = _read(source)
    space = get_space(space) if isinstance(space, str) else space
    if not any(name.endswith(".choice") for name in space.column):
        raise FormatError(f"{space.name}: not a space of Single Path One-Shot's family, such as {SPACES[0]}")
    net = Supernet(space.with_num_classes(len(state[CLASSIFIER])))
    load_original(net, state)
    return net.eval()


def detect_space(source: Source) -> str:
    """Return the name of the space that a checkpoint is of.

    Raises:
        FormatError: if it is no supernet of the release.
    """
    load_supernet(source)
    return SPACES[0]


@torch.no_grad()
def load_original(net: Supernet, state: Mapping[str, Tensor]) -> None:
    """Give a supernet the weights of the original one's state_dict; its BatchNorm may be without weights (1) and biases (0).

    Raises:
        FormatError: if tensors are missing, left over, or of other shapes.
    """
    names = original_keys(net)
    for ours, tensor in net.state_dict().items():
        theirs = names[ours]
        if theirs not in state:
            if ".bn." in ours and not theirs.endswith(("running_mean", "running_var")):
                tensor.fill_(float(ours.endswith("weight")))
                continue
            raise FormatError(f"checkpoint: does not fit {net.space.name}: it has no {theirs}")
        if state[theirs].shape != tensor.shape:
            shapes = f"{tuple(state[theirs].shape)}, expected {tuple(tensor.shape)}"
            raise FormatError(f"checkpoint: does not fit {net.space.name}: {theirs} has shape {shapes}")
        tensor.copy_(state[theirs].flip(1) if theirs == STEM else state[theirs])
    if extra := sorted(set(state) - set(names.values())):
        raise FormatError(f"checkpoint: does not fit {net.space.name}: it has {extra[0]}, which is not expected")


def original_keys(net: Supernet) -> dict[str, str]:
    """Return our key -> the original's, for every tensor of a supernet's state."""
    prefixes: dict[str, str] = {"classifier.largest.linear.": "classifier.0."}
    for number, slot in enumerate(net.space.slots):
        specs = {net.space.weight_group(spec): spec for spec in net.space.slot_blocks(slot)}
        for group, spec in specs.items():
            if spec.kind not in LAYERS:
                continue
            ours = f"{slot.name}_{group}" if len(specs) > 1 else slot.name
            theirs = {"stem": "first_conv.", "final": "conv_last."}.get(slot.name, f"features.{number - 1}.")
            theirs += f"{NUMBERS.index(group)}." if len(specs) > 1 else ""
            layers = LAYERS[spec.kind] | (PROJECTION if spec.stride > 1 and spec.kind != "conv" else {})
            for layer, (convolution, norm) in layers.items():
                prefixes[f"{ours}.largest.{layer}conv."] = f"{theirs}{convolution}."
                prefixes[f"{ours}.largest.{layer}bn."] = f"{theirs}{norm}."
    return {f"layers.{ours}{leaf}": theirs + leaf for ours, theirs in prefixes.items() for leaf in _leaves(net, ours)}


def to_arch(space: SearchSpace, config: Mapping[str, Any], *, resolution: int | None = None) -> ArchConfig:
    """Return the architecture of a dict {"architecture": choices, "channels_scales": scales}; without scales all are 1.

    Args:
        resolution: input pixels; None = the space's only one.
    Raises:
        FormatError: for an unknown entry, a choice that is none, or a list of the wrong length.
        InvalidArchError: for an illegal value; it names the legal ones.
    """
    check_keys(config, ("architecture", "channels_scales"))
    blocks = [name.removesuffix(".choice") for name in space.column if name.endswith(".choice")]
    if not blocks:
        raise FormatError(f"{space.name}: not a space of Single Path One-Shot's family (a choice for each block)")
    values = {"resolution": pick(space, "resolution", resolution)}
    for block, choice in zip(blocks, as_list(config, "architecture", len(blocks)), strict=True):
        if type(choice) is not int or choice not in range(len(NUMBERS)):
            raise FormatError(
                f"architecture: choice {choice!r} of {block}, expected 0 to {len(NUMBERS) - 1}: {', '.join(NUMBERS)}"
            )
        values[f"{block}.choice"] = NUMBERS[choice]
    scales = as_list({"channels_scales": 1.0, **config}, "channels_scales", len(blocks))
    for block, scale in zip(blocks, scales, strict=True):
        if f"{block}.scale" in space.column:
            values[f"{block}.scale"] = pick(space, f"{block}.scale", scale)
        elif scale != 1:
            raise FormatError(
                f"architecture: scale {scale!r} of {block}, but {space.name} has no scales: --space shufflenet_channels"
            )
        if f"{block}.bits" in space.column:
            values[f"{block}.bits"] = pick(space, f"{block}.bits", None)
    return space.from_values(values)


def from_arch(space: SearchSpace, arch: ArchConfig) -> dict[str, Any]:
    """Return the dict of an architecture, without bits, which the release does not have. Reverse of `to_arch`."""
    values = dict(zip(space.column, space.check(arch).values, strict=True))
    choices = [NUMBERS.index(str(value)) for name, value in values.items() if name.endswith(".choice")]
    scales = [value for name, value in values.items() if name.endswith(".scale")]
    return {"architecture": choices, "channels_scales": scales or [1.0] * len(choices)}


def parse_architecture(text: str) -> dict[str, Any]:
    """Read an architecture as the release writes it: a tuple or list of choices, or the JSON of a dict with scales.

    Raises:
        FormatError: if the text is neither.
    """
    short = text.strip()
    if len(short) <= MAX_TEXT and re.fullmatch(r"[(\[]\s*\d+(\s*,\s*\d+)*\s*,?\s*[)\]]", short):
        return {"architecture": [int(number) for number in re.findall(r"\d{1,6}", short)]}
    try:
        config = loads(short.encode()) if len(short) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise FormatError(f"architecture: {short[:60]!r}, expected choices such as (2, 1, 0, ...), or a JSON object of them")
    return config


def format_architecture(choices: Sequence[int]) -> str:
    """Write choices as the release's scripts print them; the reverse of `parse_architecture`."""
    return str(tuple(choices))


def find_architecture(text: str, space: str | None = None, **numbers: int | str) -> tuple[SearchSpace, ArchConfig]:
    """Return the architecture that a text stands for, and its space.

    Args:
        text: as `parse_architecture` reads it, or NAME, the published one; numbers of its space may follow: "spos:resolution=32".
        space: its name; None = shufflenet with as many blocks.
        numbers: of the network around the choices, e.g. channels=8.
    Raises:
        OfaError: if the text is none, or does not fit the space.
    """
    name, _, own_numbers = text.partition(":")
    config = {"architecture": PUBLISHED} if name == NAME else parse_architecture(text)
    if name == NAME and own_numbers and space is not None:
        raise FormatError(f"{text}: has numbers of its own; leave --space {space} out, or the numbers")
    found = get_space(space or SPACES[0] + (f":{own_numbers}" if name == NAME and own_numbers else ""))
    found = found.with_numbers(**numbers) if numbers else found
    choices = config.get("architecture")
    if space is None and isinstance(found, ShuffleNetSpace) and isinstance(choices, list):
        unit = found.num_blocks // found.first_blocks
        found = found if len(choices) % unit or not choices else found.with_numbers(blocks=len(choices) // unit)
    return found, to_arch(found, config)


def _read(source: Source) -> dict[str, Tensor]:
    state = {key.removeprefix("module."): value for key, value in read_tensors(source).items()}
    classifier = state.get(CLASSIFIER)
    if classifier is None or classifier.ndim != 2 or not len(classifier) or STEM not in state:
        raise FormatError(
            "checkpoint: has no first_conv and classifier.0 as Single Path One-Shot's networks do; give a state_dict"
        )
    return state


def _leaves(net: nn.Module, prefix: str) -> list[str]:
    """What follows a prefix in the keys of a network's state."""
    return list(net.get_submodule(f"layers.{prefix}".removesuffix(".")).state_dict())
