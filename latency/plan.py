"""Plan a measurement: which blocks and which whole networks of a space to time on a device, and their graphs.

The graphs come from the emitter that writes the file that ships; constant weights make them small enough to send anywhere.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.device import DeviceSpec
from deploy.emit import emit, input_shape
from deploy.timing import clock_of
from latency.agent import PLAN_SCHEMA, Plan
from ofa.block_spec import BlockSpec
from ofa.counts import block_params, macs
from ofa.errors import OfaError
from ofa.space import Population, SearchSpace

ALL_UP_TO = 3  # resolutions: a space with more is timed at the smallest, the middle and the largest, and interpolated


@dataclass(frozen=True, slots=True)
class Networks:
    """Whole networks to time."""

    fitted: Population  # block times are calibrated on these; the one in the middle is the anchor
    held_out: Population  # the stated error is computed from these alone

    @classmethod
    def spread(cls, space: SearchSpace, rng: np.random.Generator, num_fitted: int, num_held_out: int) -> Networks:
        """Draw both kinds over the whole range of MACs."""
        networks = spread_networks(space, rng, num_fitted + num_held_out)
        held_out = np.zeros(len(networks), dtype=bool)
        held_out[np.linspace(1, len(networks) - 2, num_held_out).round().astype(int)] = True
        return cls(networks[~held_out], networks[held_out])

    @classmethod
    def only(cls, space: SearchSpace) -> Networks:
        """Return the network of a space that holds one: fitted to, and the anchor; nothing is left to judge a fit by."""
        network = space.encode([space.largest])
        return cls(network, network[:0])


def make_plan(space: SearchSpace, device: DeviceSpec, blocks: Sequence[BlockSpec], networks: Networks, *, seed: int = 0) -> Plan:
    """Write the graphs to time and say what they are.

    Args:
        space: the space that the networks are of.
        device: what they will run on; merged results say what they did run on.
        blocks: blocks to time alone.
        networks: whole networks to time.
        seed: of the order of measuring.
    """
    chains: list[tuple[str, str, dict[str, Any], Mapping[str, BlockSpec]]] = [
        (f"block_{i:05d}", "block", {"block": spec.to_dict()}, {"block": spec}) for i, spec in enumerate(blocks)
    ]
    chains += [
        (
            f"network_{i:03d}",
            "network",
            {"arch": space.to_json(arch)["values"], "fitted": i < len(networks.fitted)},
            space.blocks(arch),
        )
        for i, arch in enumerate(space.decode(np.concatenate([networks.fitted, networks.held_out])))
    ]
    items, graphs = [], {}
    for name, kind, what, chain in chains:
        graph = graphs[name] = emit(chain, precision=device.graph_precision)
        first = next(iter(chain.values()))
        items.append(
            {
                "id": name,
                "kind": kind,
                **what,
                "shape": [device.batch_size, *input_shape(first)],
                "session_bytes": session_bytes(chain.values(), device.batch_size),
                "graph_bytes": len(graph),
                "sha256": hashlib.sha256(graph).hexdigest(),
            }
        )
    manifest = {
        "schema": PLAN_SCHEMA,
        "space": space.name,
        "num_classes": space.num_classes,
        "device": device.model_dump(),
        "clock": clock_of(device),
        "seed": seed,
        "anchor": f"network_{len(networks.fitted) // 2:03d}",
        "items": items,
    }
    return Plan(manifest, graphs)


def session_bytes(blocks: Collection[BlockSpec], batch_size: int) -> int:
    """Estimate what a loaded graph occupies: its weights twice (a runtime keeps packed copies) and its activations."""
    weights = sum(block_params(spec) for spec in blocks)
    sides = [(max(spec.in_channels, spec.hidden_channels), spec.resolution) for spec in blocks]
    activations = max(2 * channels * side**2 for channels, side in sides)
    return 4 * (2 * weights + batch_size * activations) + 2**20


def timed_resolutions(space: SearchSpace) -> tuple[int, ...]:
    """Return the input sizes at which blocks are timed; between them, times are interpolated in area."""
    options = [int(value) for value in space.dimensions[space.column["resolution"]].options]
    if len(options) <= ALL_UP_TO:
        return tuple(options)
    middle = ((options[0] ** 2 + options[-1] ** 2) / 2) ** 0.5
    return (options[0], min(options, key=lambda side: abs(side - middle)), options[-1])


def reachable_blocks(space: SearchSpace, resolutions: Collection[int]) -> list[BlockSpec]:
    """Return every block that some architecture of the space holds at one of these input sizes.

    Raises:
        OfaError: for an input size that the space does not have.
    """
    legal = space.dimensions[space.column["resolution"]].options
    wrong = next((side for side in resolutions if side not in legal), None)
    if wrong is not None:
        raise OfaError(f"{space.name} has no input size {wrong}; it has: {', '.join(map(str, legal))}")
    found: dict[BlockSpec, None] = {}
    for slot in space.slots:
        options = [
            tuple(resolutions) if name == "resolution" else space.dimensions[space.column[name]].options
            for name in slot.depends_on
        ]
        chosen = (slot.choose(*values) for values in itertools.product(*options))
        found.update(dict.fromkeys(spec for spec in chosen if spec is not None))
    return list(found)


def spread_networks(space: SearchSpace, rng: np.random.Generator, n: int) -> Population:
    """Draw n distinct architectures spread evenly over the range of MACs, smallest and largest included, in that order.

    Uniform sampling would crowd them in the middle, while searches under tight limits go to the ends.
    """
    # a blend of two extremes at random odds per network reaches the ends that uniform draws never see
    drawn = space.sample(rng, max(4096, 8 * n))
    extremes = space.encode([space.smallest, space.largest])
    pull = rng.random((len(drawn), 1))
    to_large = rng.random((len(drawn), 1)) < 0.5
    blended = np.where(rng.random(drawn.shape) < pull, np.where(to_large, extremes[1], extremes[0]), drawn).astype(drawn.dtype)
    pool = np.unique(space.canonical(np.concatenate([extremes, drawn, blended])), axis=0)
    if len(pool) < n:
        plural = "" if len(pool) == 1 else "s"
        raise OfaError(
            f"{space.name} holds {len(pool)} network{plural} here, fewer than the {n} that are timed to calibrate a table; "
            "so few are timed as files: ofa export does it, or ofa bench"
        )
    cost = macs(space, pool).astype(float)
    order = np.argsort(cost, kind="stable")
    targets = np.linspace(cost[order[0]], cost[order[-1]], n)
    chosen: list[int] = []
    free = np.ones(len(pool), dtype=bool)
    for target in targets:
        nearest = int(np.where(free, np.abs(cost - target), np.inf).argmin())
        free[nearest] = False
        chosen.append(nearest)
    return pool[np.array(sorted(chosen, key=lambda i: cost[i]))]
