"""Accuracy of many subnets at once: what they have in common is computed once.

Subnets of one resolution that begin with the same blocks see the same activations there, while BatchNorm is calibrated as well
as afterwards. They are laid out as a tree of blocks with the images at the root; each batch runs once through every branch.
The numbers are those of `calibrate` and `top1` one subnet after the other, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ofa.block_spec import IMAGES, BlockSpec, wiring
from ofa.space import ArchConfig
from ofa.supernet import Supernet
from ofa.training.calibration import Recorder, recording
from ofa.training.data import Images, Preprocessing, calibration_batches, in_batches


@dataclass(eq=False)
class _Node:
    """A block after a certain sequence of blocks, and what follows it."""

    block: nn.Module
    name: str
    reads: tuple[str, ...]
    children: _Children = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)  # outputs up to here that blocks after this one read
    ends: list[int] = field(default_factory=list)  # architectures whose last block this is
    recorder: Recorder | None = None


_Children = dict[tuple[str, BlockSpec, tuple[str, ...]], _Node]


@torch.no_grad()
def evaluate(
    net: Supernet,
    archs: Sequence[ArchConfig],
    train: Images,
    data: Images,
    preprocess: Preprocessing,
    *,
    num_calibration: int = 2_000,
    batch_size: int = 250,
) -> list[float]:
    """Return the top-1 of each architecture on `data`, in [0, 1], BatchNorm calibrated on some images of `train`.

    Args:
        num_calibration: how many training images; which ones is fixed (ofa.training.data.calibration_batches).
        batch_size: images of `data` at a time.
    """
    device = next(net.parameters()).device
    right = torch.zeros(len(archs), dtype=torch.int64)
    for resolution, tree in _trees(net, archs).items():
        nodes = list(_all_nodes(tree))
        with ExitStack() as stack:
            for node in nodes:
                node.recorder = stack.enter_context(recording(node.block))
            for batch in calibration_batches(train, preprocess, resolution, num_images=num_calibration):
                for _ in _run(tree, {IMAGES: batch.to(device)}):
                    pass
        for node in nodes:
            node.recorder = None
        for images, labels in in_batches(data, batch_size):
            for end, logits in _run(tree, {IMAGES: preprocess(images.to(device), resolution)}):
                right[end] += int((logits.argmax(1).cpu() == labels).sum())
    return [count / len(data) for count in right.tolist()]


def _trees(net: Supernet, archs: Sequence[ArchConfig]) -> dict[int, _Children]:
    """Return resolution -> the first blocks of its architectures."""
    trees: dict[int, _Children] = {}
    for index, arch in enumerate(archs):
        children = trees.setdefault(net.space.resolution(arch), {})
        blocks = net.space.blocks(arch)
        path = []
        for name, reads in wiring(blocks).items():
            step = (name, blocks[name], reads)
            if step not in children:
                block: nn.Module = net.extract_block(name, blocks[name])
                children[step] = _Node(block.to(memory_format=torch.channels_last), name, reads)
            path.append(children[step])
            children = path[-1].children
        path[-1].ends.append(index)
        needed: set[str] = set()
        for node in reversed(path):
            node.needed |= needed
            needed = (needed - {node.name}) | set(node.reads)
    return trees


def _all_nodes(children: _Children) -> Iterator[_Node]:
    for node in children.values():
        yield node
        yield from _all_nodes(node.children)


def _run(children: _Children, states: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Run a batch through all branches and yield (architecture, its logits); `states`: name -> what blocks may read."""
    for node in children.values():
        out = node.block(*(states[name] for name in node.reads))
        if node.recorder:
            node.recorder.take(len(out))
        for end in node.ends:
            yield end, out
        yield from _run(node.children, {name: x for name, x in {**states, node.name: out}.items() if name in node.needed})
