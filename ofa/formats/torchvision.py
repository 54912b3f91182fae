"""Weights of torchvision's mobile networks, for those that are spaces of one network here (ofa.fixed_network).

torchvision numbers its layers in the order in which they run, the classifier's under a name of its own; ours stand in the same
order, so that the layers correspond one to one, and their tensors have equal names and shapes. Source: torchvision.models,
mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small and mnasnet1_0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofa.formats.published import FormatError, Source, read_tensors
from ofa.space import SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet

SPACES = ("mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "mnasnet_b1")
COUNT = "num_batches_tracked"  # of BatchNorm; older files have none


def load_supernet(source: Source, space: SearchSpace | str) -> Supernet:
    """Return the one network of a space in eval mode with torchvision's weights, float32, as a supernet.

    Args:
        source: .pth, .pt or .safetensors file, or its state_dict.
        space: one of SPACES, also for another input size; with the classes of the weights.
    Raises:
        FormatError: if the weights cannot be read or are of another network.
    """
    state = read_tensors(source)
    net = Supernet(_with_classes(get_space(space) if isinstance(space, str) else space, state), device="meta")
    reason = _misfit(net, state)
    if reason is not None:
        fitting = next((name for name in SPACES if _fits(name, state)), None)
        hint = f"; they are of {fitting}" if fitting else ""
        raise FormatError(f"{_label(source)}: its weights do not fit {net.space.name}: {reason}{hint}")
    names = _names(net, state)
    filled = {
        ours: state[names[ours]].detach().to(empty.dtype, copy=True).contiguous() if names[ours] in state else torch.tensor(0)
        for ours, empty in net.state_dict().items()
    }
    net.load_state_dict(filled, assign=True)
    return net.eval()


def load_network(source: Source, space: SearchSpace | str) -> nn.Sequential:
    """Return the network itself, static, in eval mode: images (n, 3, r, r) to logits (n, classes).

    Raises:
        FormatError: as `load_supernet`.
    """
    net = load_supernet(source, space)
    return net.extract(net.space.largest)


def detect_space(source: Source) -> str:
    """Return the name of the network that weights are of.

    Raises:
        FormatError: if it is none of SPACES.
    """
    state = read_tensors(source)
    fitting = next((name for name in SPACES if _fits(name, state)), None)
    if fitting is None:
        raise FormatError(
            f"{_label(source)}: is the weights of none of torchvision's networks that are known: {', '.join(SPACES)}"
        )
    return fitting


def _fits(name: str, state: Mapping[str, Tensor]) -> bool:
    return _misfit(Supernet(_with_classes(get_space(name), state), device="meta"), state) is None


def _misfit(net: Supernet, state: Mapping[str, Tensor]) -> str | None:
    """Say what of the weights does not fit, if anything."""
    ours, theirs = _layers(net.state_dict()), _layers(state)
    if len(ours) != len(theirs):
        return f"they are of {len(theirs)} layers, expected {len(ours)}"
    names = _names(net, state)
    for key, tensor in net.state_dict().items():
        found = state.get(names[key])
        if found is None and not key.endswith(COUNT):
            return f"they have no {names[key]}"
        if found is not None and found.shape != tensor.shape:
            return f"{names[key]} has shape {tuple(found.shape)}, expected {tuple(tensor.shape)}"
    extra = sorted(set(state) - set(names.values()))
    return f"they have {extra[0]}, which is not expected" if extra else None


def _names(net: Supernet, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our key -> theirs, for layers that correspond in order."""
    layers = dict(zip(_layers(net.state_dict()), sorted(_layers(state), key=_place), strict=True))
    parts = ((key, *key.rpartition(".")[::2]) for key in net.state_dict())
    return {key: f"{layers[layer]}.{tensor}" for key, layer, tensor in parts}


def _layers(state: Mapping[str, Tensor]) -> list[str]:
    """Names of layers that have tensors, in the order of the keys."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state))


def _place(layer: str) -> tuple[bool, list[tuple[int, str]]]:
    """Order torchvision's layers as they run; a file may hold them in another order."""
    parts = [(int(part), "") if part.isdecimal() else (0, part) for part in layer.split(".")]
    return layer.startswith("classifier"), parts


def _with_classes(space: SearchSpace, state: Mapping[str, Tensor]) -> SearchSpace:
    last = max((key for key in state if key.endswith(".bias")), key=lambda key: _place(key.rpartition(".")[0]), default=None)
    return space if last is None or not len(state[last]) else space.with_num_classes(len(state[last]))


def _label(source: Source) -> str:
    return "checkpoint" if isinstance(source, Mapping) else str(source)
