"""Measure a device: every block of a space and some whole networks, through the runtime that ships.

Blocks are timed cold: each round visits every block once, in a new random order, so that a block finds the caches as it would
inside a network. (The usual loop over one block keeps its weights in the nearest cache and comes out far too low.) Whole
networks are timed warm, as a process that serves one model runs it. A round is one line of a journal; an interrupted
measurement goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceSpec, get_device
from deploy.emit import emit, input_shape
from deploy.runtimes import open_session
from deploy.timing import clock_of, visit
from latency.cost import CountCost
from latency.table import Calibration, FitError, LatencyTable, block_design
from ofa.artefacts import append_jsonl, read_jsonl
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import Run, host_facts
from ofa.space import Population, SearchSpace

NETWORK_RUNS = 3  # timed runs of a whole network in each round, after one that fills the caches
ONE_SIDED_95 = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """How long to measure."""

    rounds: int = 60
    num_calibration: int = 20  # networks that the line is fitted to
    num_validation: int = 24  # networks that only the stated error is computed from
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 3), ("num_calibration", 5), ("num_validation", 5)):
            if getattr(self, name) < least:
                raise OfaError(f"{name} is {getattr(self, name)}, expected at least {least}")


def profile_device(
    run: Run | Path | str, device: str, *, config: ProfileConfig | None = None, fresh: bool = False
) -> LatencyTable:
    """Measure the latency table of a run's space on a device of this machine and save it in the run.

    A run of one network gets the table of the whole space that it is of: a single network has no line to calibrate.

    Args:
        run: run directory.
        device: name of a device, or the path of a device file.
        config: how long to measure.
        fresh: measure anew; otherwise earlier rounds are kept and only missing ones are added.
    Raises:
        OfaError: if the run or the device cannot be read.
    """
    config = config or ProfileConfig()
    run = run if isinstance(run, Run) else Run(run)
    spec = get_device(device)
    warn_about_noise(spec)
    journal = run.path / "latency" / f"{spec.name}.journal.jsonl"
    if fresh:
        journal.unlink(missing_ok=True)
    table = profile_space(run.whole_space, spec, config, journal=journal)
    table.save(run.latency_path(spec.name))
    return table


def profile_space(space: SearchSpace, device: DeviceSpec, config: ProfileConfig, *, journal: Path) -> LatencyTable:
    """Measure a space's blocks and networks and fit the table; `journal` makes it resumable."""
    rng = np.random.default_rng((config.seed, 0x7AB1E))
    networks = spread_networks(space, rng, config.num_calibration + config.num_validation)
    block_ms, network_ms = _measure(space, device, networks, config, journal)

    entries = dict(zip(space.all_blocks, np.quantile(block_ms, 0.25, axis=0).tolist(), strict=True))
    measured = np.median(network_ms, axis=(0, 2))
    per_block = np.vstack([block_design(space.all_blocks, list(entries.values())), np.zeros(3)])
    design = per_block[space.block_ids(networks)].sum(1)
    # the networks stand in order of MACs: every second one or so is held out, and both sets span the whole range
    held_out = np.zeros(len(networks), dtype=bool)
    held_out[np.linspace(1, len(networks) - 2, config.num_validation).round().astype(int)] = True
    fitted = ~held_out

    calibration = Calibration.fit(design[fitted], measured[fitted])
    predicted = calibration.predict(design)
    macs = design * [0, 0, 1]
    from_macs = Calibration.fit(macs[fitted], measured[fitted]).predict(macs)
    residuals = leave_one_out_residuals(design[fitted], measured[fitted])
    return LatencyTable(
        space=space,
        device=device.name,
        entries=entries,
        calibration=calibration,
        error=FitError.of(predicted[held_out], measured[held_out]),
        macs_error=FitError.of(from_macs[held_out], measured[held_out]),
        margin=max(0.0, float(residuals.mean() + ONE_SIDED_95 * residuals.std(ddof=1))),
        validation=tuple(zip(predicted[held_out].tolist(), measured[held_out].tolist(), strict=True)),
        provenance={
            "device": device.model_dump(),
            "clock": clock_of(device),
            "rounds": len(block_ms),
            "host": host_facts(),
            "load_average": next(read_jsonl(journal))["load_average"],  # when measuring began
            "networks": [
                {"arch": space.to_json(arch)["values"], "measured_ms": ms, "fitted": bool(used)}
                for arch, ms, used in zip(space.decode(networks), measured.tolist(), fitted, strict=True)
            ],
        },
    )


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
        raise OfaError(f"{space.name} holds {len(pool)} networks here, fewer than the {n} that are timed to calibrate a table")
    macs = CountCost("macs", space).predict(pool)
    order = np.argsort(macs, kind="stable")
    targets = np.linspace(macs[order[0]], macs[order[-1]], n)
    chosen: list[int] = []
    free = np.ones(len(pool), dtype=bool)
    for target in targets:
        nearest = int(np.where(free, np.abs(macs - target), np.inf).argmin())
        free[nearest] = False
        chosen.append(nearest)
    return pool[np.array(sorted(chosen, key=lambda i: macs[i]))]


def leave_one_out_residuals(design: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return measured / predicted - 1 for every network, the calibration being fitted to the others."""
    others = ~np.eye(len(measured), dtype=bool)
    predicted = [Calibration.fit(design[k], measured[k]).predict(design[~k])[0] for k in others]
    return measured / np.array(predicted) - 1


def warn_about_noise(device: DeviceSpec) -> None:
    """Say what will make timings of this machine noisy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.num_threads > cores:
        say(f"warning: {device.name} wants {device.num_threads} threads, this process may use {cores} cores")
    load = os.getloadavg()[0]
    if load > 0.5 * cores:
        say(f"warning: load average is {load:.1f} on {cores} cores; other work makes timings noisier")
    if clock_of(device) == "wall":
        say(f"note: {device.name} is timed by wall clock, which is noisier than the CPU clock of one thread")


# -- measuring ------------------------------------------------------------------------------------------------------


def _measure(
    space: SearchSpace, device: DeviceSpec, networks: Population, config: ProfileConfig, journal: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return block times (rounds, blocks) and network times (rounds, networks, runs) in milliseconds."""
    blocks = space.all_blocks
    plan = _plan(space, device, networks)
    rounds = _finished_rounds(journal, plan, len(blocks), len(networks))
    if not rounds:
        if journal.exists():
            journal.replace(journal.with_suffix(".old.jsonl"))  # of another plan or machine: not ours to continue, nor to lose
        append_jsonl(journal, {"plan": plan, "load_average": os.getloadavg()[0]})
    if len(rounds) < config.rounds:
        start = f", {len(rounds)} rounds of an earlier measurement kept" if rounds else ""
        say(f"timing {len(blocks)} blocks and {len(networks)} networks of {space.name} on {device.name}{start}")
        calls = _open_all(space, device, networks)
        column = 0 if clock_of(device) == "cpu" else 1
        with progress("measuring", config.rounds, done=len(rounds)) as advance:
            for number in range(len(rounds), config.rounds):
                rounds.append(_round(calls, len(blocks), column, np.random.default_rng((config.seed, number))))
                append_jsonl(journal, {"blocks": rounds[-1][0], "networks": rounds[-1][1]})
                advance()
    return np.array([r[0] for r in rounds]), np.array([r[1] for r in rounds])


def _round(
    calls: list[Callable[[], object]], num_blocks: int, column: int, rng: np.random.Generator
) -> tuple[list[float], list[list[float]]]:
    """Visit everything once in random order; column 0 = CPU time, 1 = wall time."""
    blocks, networks = [0.0] * num_blocks, [[0.0]] * (len(calls) - num_blocks)
    for index in rng.permutation(len(calls)).tolist():
        if index < num_blocks:
            blocks[index] = visit(calls[index], warm_up=0, runs=1)[0][column]
        else:
            networks[index - num_blocks] = [sample[column] for sample in visit(calls[index], warm_up=1, runs=NETWORK_RUNS)]
    return blocks, networks


def _open_all(space: SearchSpace, device: DeviceSpec, networks: Population) -> list[Callable[[], object]]:
    """Load every block and every network on the device."""
    chains: list[dict[str, BlockSpec]] = [{"block": spec} for spec in space.all_blocks]
    chains += [space.blocks(arch) for arch in space.decode(networks)]
    calls = []
    with progress("loading graphs", len(chains)) as advance:
        for chain in chains:
            shape = (device.batch_size, *input_shape(next(iter(chain.values()))))
            inputs = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            call = open_session(emit(chain), device).prepare(inputs)
            visit(call, warm_up=2, runs=0)
            calls.append(call)
            advance()
    return calls


def _plan(space: SearchSpace, device: DeviceSpec, networks: Population) -> str:
    """Fingerprint of what is measured and on what: a journal of another plan is not continued."""
    facts: dict[str, Any] = {
        "blocks": [spec.to_dict() for spec in space.all_blocks],
        "networks": networks.tolist(),
        "device": device.model_dump(),
        "host": host_facts(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _finished_rounds(journal: Path, plan: str, num_blocks: int, num_networks: int) -> list[tuple[list[float], list[list[float]]]]:
    records = list(read_jsonl(journal))
    if not records or records[0].get("plan") != plan:
        return []
    rounds: list[tuple[Any, Any]] = [(r.get("blocks"), r.get("networks")) for r in records[1:]]
    shapes = (num_blocks,), (num_networks, NETWORK_RUNS)
    return [(b, n) for b, n in rounds if np.shape(b) == shapes[0] and np.shape(n) == shapes[1]]
