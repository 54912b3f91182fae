"""Weights of the original search network of DARTS (github.com/quark0/darts), which keeps every edge by itself, read into ours.

Each of our tensors is one after the other what the edges that leave a state have there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ofa.formats.published import FormatError
from ofa.mixed import MixedNetwork
from ofa.mixed_cell import DILATED, MAX_POOL, SEPARABLE, SKIP, MixedCell, Source

STATISTICS = {"mean": "running_mean", "var": "running_var"}
REDUCE = {"even.weight": "conv_1.weight", "odd.weight": "conv_2.weight"} | {f"norm.{k}": f"bn.{v}" for k, v in STATISTICS.items()}
PREPROCESS = {"conv.weight": "op.1.weight"} | {f"norm.{k}": f"op.2.{v}" for k, v in STATISTICS.items()}


def load_original(net: MixedNetwork, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights and statistics of the original one's state_dict.

    Raises:
        FormatError: if tensors are missing, left over, or of other shapes.
    """
    ours, used = net.state_dict(), set[str]()
    for key, parts in original_keys(net).items():
        missing = [part for part in parts if part not in state]
        if missing:
            raise FormatError(f"search network: the checkpoint has no {missing[0]}; is it of {len(net.cells)} cells?")
        value = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
        if value.shape != ours[key].shape:
            expected = (len(ours[key]) // len(parts), *ours[key].shape[1:])
            raise FormatError(f"search network: {parts[0]} has shape {tuple(state[parts[0]].shape)}, expected {expected}")
        ours[key].copy_(value)
        used.update(parts)
    extra = sorted(key for key in state.keys() - used if not key.endswith("num_batches_tracked"))
    if extra:
        raise FormatError(f"search network: the checkpoint has {extra[0]}, which a network of {len(net.cells)} cells has not")


def original_keys(net: MixedNetwork) -> dict[str, list[str]]:
    """Return for each of our tensors the names of the original's that it consists of, along its first dimension."""
    found = {key: [key] for key in net.state_dict() if not key.startswith("cells.") and not key.endswith("num_batches_tracked")}
    places = {edge: i for i, edge in enumerate(net.edges)}
    for i, cell in enumerate(net.cells):
        assert isinstance(cell, MixedCell)
        prefix = f"cells.{i}"
        for name in ("preprocess0", "preprocess1"):
            layers = PREPROCESS if hasattr(getattr(cell, name), "conv") else REDUCE
            found |= {f"{prefix}.{name}.{ours}": [f"{prefix}.{name}.{theirs}"] for ours, theirs in layers.items()}
        for s, source in enumerate(cell.sources):
            assert isinstance(source, Source)
            edges = [places[node, s] for node in range(max(0, s - 1), cell.nodes)]
            for ours, theirs in _source_keys(source):
                found[f"{prefix}.sources.{s}.{ours}"] = [f"{prefix}._ops.{edge}._ops.{theirs}" for edge in edges]
    return found


def _source_keys(source: Source) -> Iterator[tuple[str, str]]:
    """Our names of a source's tensors, and the original's on one edge."""
    for kind, name in enumerate(("max_norm", "avg_norm") if source.max_norm is not None else (), MAX_POOL):
        yield from ((f"{name}.{ours}", f"{kind}.1.{theirs}") for ours, theirs in STATISTICS.items())
    if source.stride == 2:
        yield from ((f"skip.{ours}", f"{SKIP}.{theirs}") for ours, theirs in REDUCE.items())
    for name, kinds, first in (("sep_first", SEPARABLE, 1), ("sep_second", SEPARABLE, 5), ("dil", DILATED, 1)):
        for i, kind in enumerate(kinds):
            yield f"{name}.{i}.depthwise.weight", f"{kind}.op.{first}.weight"
            yield f"{name}.{i}.pointwise.weight", f"{kind}.op.{first + 1}.weight"
            for ours, theirs in STATISTICS.items():
                yield f"{name}.{i}.norm.{ours}", f"{kind}.op.{first + 2}.{theirs}"
