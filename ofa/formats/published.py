"""Published checkpoints: read in any spelling of their keys, loaded into a supernet, refused in one line if they do not fit.

MIT's once-for-all and AttentiveNAS name their layers alike, in several spellings: `module.` in front, `.conv.conv.` and `.bn.bn.`
in elastic networks, `.mobile_inverted_conv.` in older ones. Every key is brought to one *canonical* spelling first.
"""

from __future__ import annotations

import itertools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ofa.errors import OfaError
from ofa.space import SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet

Source = Path | str | Mapping[str, Any]
WRAPPED = ("conv", "bn", "linear")  # an elastic layer holds a static one under its own name: conv.conv, bn.bn
LAYERS = {  # kind of block -> our name of a layer inside it -> theirs, canonical
    "mbconv": {
        "expand": "conv.inverted_bottleneck",
        "depthwise": "conv.depth_conv",
        "se": "conv.depth_conv.se.fc",
        "project": "conv.point_linear",
        "shortcut.conv": "shortcut.conv",
    },
    "bottleneck": {"reduce": "conv1", "spatial": "conv2", "expand": "conv3", "shortcut.conv": "downsample"},
}
CLASSIFIER = "classifier.linear.weight"


class FormatError(OfaError):
    """A file is not what its format says, or does not fit the space."""


def load_published(source: Source, space: SearchSpace, *, known: Sequence[str], ignored: Callable[[str], bool]) -> Supernet:
    """Return a supernet in eval mode, float32, with a published checkpoint's weights and number of classes.

    A checkpoint without any kernel transform (a static network) gets identity transforms: so a teacher becomes a supernet.

    Args:
        source: .pth, .pt or .safetensors file, or key -> tensor or array; both also inside {"state_dict": ...}.
        space: where the weights belong; a restricted space for a static sub-network.
        known: names of the spaces whose checkpoints this format is made for, to name the right one in an error.
        ignored: tells of a key in canonical spelling whether it may be left over.
    Raises:
        FormatError: naming what does not fit, and the known space that does.
    """
    state = read_state(source)
    net = _empty_supernet(space, state)
    reason = _misfit(net, state, ignored)
    if reason is not None:
        is_one = space.size() == 1
        others = (name for name in known if is_one or name != space.name)
        fitting = [name for name in others if _misfit(_empty_supernet(get_space(name), state), state, ignored) is None]
        hint = f"; it fits {' and '.join(fitting)}" if fitting else ""
        what = f"one network of {space.name}" if is_one else space.name
        raise FormatError(f"{_label(source)}: does not fit {what}: {reason}{hint}")
    empty = net.state_dict()
    names = canonical_names(net)
    net.load_state_dict({ours: _tensor_for(state.get(names[ours]), empty[ours]) for ours in empty}, assign=True)
    return net.eval()


def find_space(source: Source, *, known: Sequence[str], ignored: Callable[[str], bool]) -> str:
    """Return the name of the known space that a checkpoint fits.

    Raises:
        FormatError: if none does; it says why each does not.
    """
    state = read_state(source)
    reasons = {name: _misfit(_empty_supernet(get_space(name), state), state, ignored) for name in known}
    for name, reason in reasons.items():
        if reason is None:
            return name
    told = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items())
    raise FormatError(f"{_label(source)}: fits none of the known spaces ({told}); for a space of your own give its name")


def read_state(source: Source) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under canonical keys.

    Raises:
        FormatError: as `read_tensors`.
    """
    state = {canonical(key): value for key, value in read_tensors(source).items()}
    if CLASSIFIER in state and state[CLASSIFIER].shape[:1] == (0,):
        raise FormatError(f"{_label(source)}: {CLASSIFIER!r} has 0 classes, expected at least 1")
    return state


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the keys that it has.

    Raises:
        FormatError: if the file cannot be read, or holds anything but dense tensors of finite real numbers.
    """
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise FormatError(f"{_label(source)}: holds a {type(content).__name__}, expected a state_dict: key -> tensor")
    state = {}
    for key, value in content.items():
        try:
            state[str(key)] = _weights(value, is_count=str(key).endswith("num_batches_tracked"))
        except ValueError as error:
            raise FormatError(f"{_label(source)}: {key!r} {error}") from None
    return state


def _weights(value: Any, *, is_count: bool) -> Tensor:
    """Return a tensor or array as a tensor if it is what weights can be; a count of batches may be of integers."""
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise ValueError(f"is an array of {value.dtype}, expected floating-point numbers") from None
    if not isinstance(value, Tensor):
        raise ValueError(f"is a {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"is {kind}, expected a dense tensor")
    if value.is_quantized:
        raise ValueError("is quantised, expected floating-point numbers")
    if value.is_meta:
        raise ValueError("has a shape but no values (it is on device meta), expected floating-point numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a few bytes could stand for any memory
        raise ValueError("repeats the same numbers, expected a tensor that holds all of its own")
    if not (value.is_floating_point() or (is_count and not value.is_complex())):
        raise ValueError(f"is {str(value.dtype).removeprefix('torch.')}, expected floating-point numbers")
    if not torch.isfinite(value.detach().float()).all():
        raise ValueError("holds NaN or infinite values, expected finite float32 numbers")
    return value


def _read_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            beginning = file.read(256)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file, expected a checkpoint (.pth, .pt or .safetensors)") from None
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}), expected a checkpoint (.pth, .pt or .safetensors)"
        ) from None
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _require_stored(path)
        with warnings.catch_warnings():  # torch's, about files that it then refuses
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise whatever their readers met; none of it is a bug of ours
        raise FormatError(
            f"{path}: not a file of tensors: {_what_instead(beginning, str(error))}; "
            "expected a state_dict, as torch.save(net.state_dict(), path) or safetensors writes it"
        ) from None


def _require_stored(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size: torch compresses nothing, and reads whatever it unpacks to."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("compressed")


def _what_instead(beginning: bytes, error: str) -> str:
    """Say what a file is that no reader of tensors can read, in one line of plain text."""
    foreign = re.search(r"GLOBAL ([\w.]+) was not an allowed", error)
    if foreign:
        return f"it holds a {foreign[1]}, and reading such objects can run code"
    if "TorchScript" in error:
        return "it is a TorchScript archive"
    if not beginning:
        return "it is empty"
    if beginning.isascii() and beginning.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "it is text"
    if beginning.startswith(b"PK"):
        return "it is an archive of another kind, or was cut off"
    return "it is damaged or of another kind"


def canonical(key: str) -> str:
    """Return the one spelling of a published key."""
    key = key.removeprefix("module.").removeprefix("last_conv.").replace(".mobile_inverted_conv.", ".conv.")
    groups = [(part, len(list(group))) for part, group in itertools.groupby(key.split("."))]
    return ".".join(part for part, count in groups for _ in range(1 if part in WRAPPED else count))


def canonical_names(net: Supernet) -> dict[str, str]:
    """Return our key -> canonical key, for every tensor of the supernet's state."""
    prefixes: dict[str, str] = {}
    blocks, stem = 0, 0
    headed_by_feature = any(slot.name == "feature" for slot in net.space.slots)
    for slot in net.space.slots:
        kind = net.space.slot_blocks(slot)[0].kind
        if kind in LAYERS:
            for ours, theirs in LAYERS[kind].items():
                prefixes[f"{slot.name}.{ours}."] = f"blocks.{blocks}.{theirs}."
            blocks += 1
        elif slot.name.startswith("stem"):
            prefixes[f"{slot.name}.conv."] = f"input_stem.{stem}.conv."
            # a residual block around the layer adds a "conv." that the layer's own convolution swallows
            prefixes[f"{slot.name}.bn."] = f"input_stem.{stem}." + ("conv.bn." if slot.name == "stem_residual" else "bn.")
            stem += kind == "conv"
    if stem == 1:  # MobileNets have one convolution there, and another name for it
        prefixes |= {"stem.conv.": "first_conv.conv.", "stem.bn.": "first_conv.bn."}
    prefixes["final."] = "final_expand_layer." if headed_by_feature else "feature_mix_layer."
    prefixes["feature.linear."] = "feature_mix_layer.conv."  # a 1x1 convolution after pooling
    prefixes["classifier."] = "classifier."

    names = {}
    for key in net.state_dict():
        slot_name, part, rest = key.removeprefix("layers.").split(".", 2)
        if part == "kernel_transforms":
            names[key] = f"{prefixes[f'{slot_name}.depthwise.']}conv.{rest}_matrix"
            continue
        prefix = next(p for p in prefixes if f"{slot_name}.{rest}".startswith(p))
        names[key] = prefixes[prefix] + f"{slot_name}.{rest}".removeprefix(prefix)
    return names


def _misfit(net: Supernet, state: Mapping[str, Tensor], ignored: Callable[[str], bool]) -> str | None:
    """Say what of a checkpoint does not fit a supernet, if anything."""
    names = canonical_names(net)
    is_static = not any(key.endswith("_matrix") for key in state)
    shapes = {names[ours]: tensor.shape for ours, tensor in net.state_dict().items()}
    for key, shape in shapes.items():
        if key not in state:
            if key.endswith("num_batches_tracked") or (is_static and key.endswith("_matrix")):
                continue
            return f"it has no {key}"
        found = state[key].shape
        if found != shape and tuple(found) != (*shape, 1, 1):
            return f"{key} has shape {tuple(found)}, expected {tuple(shape)}"
    unexpected = [key for key in state if key not in shapes and not ignored(key)]
    return f"it has {unexpected[0]}, which is not expected" if unexpected else None


def _empty_supernet(space: SearchSpace, state: Mapping[str, Tensor]) -> Supernet:
    """Return the supernet without memory, with as many classes as the checkpoint has."""
    classifier = state.get(CLASSIFIER)
    if classifier is not None and classifier.ndim == 2:
        space = space.with_num_classes(len(classifier))
    return Supernet(space, device="meta")


def _tensor_for(found: Tensor | None, empty: Tensor) -> Tensor:
    """Return a copy of a checkpoint's tensor in the shape and type of ours, or what stands for one that it lacks."""
    if found is None:
        # a kernel transform of a static network is the identity; a count of batches is none
        return torch.eye(len(empty)) if empty.ndim == 2 else torch.zeros_like(empty, device="cpu")
    return found.detach().to(empty.dtype, copy=True).reshape(empty.shape).contiguous()


def _label(source: Source) -> str:
    return "checkpoint" if isinstance(source, Mapping) else str(source)
