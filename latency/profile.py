"""Profile: from a run and a device to the latency table of that device, measured here, or elsewhere and merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from deploy.device import DeviceSpec, get_device, list_devices, make_device
from deploy.runtimes import open_session
from latency import agent
from latency.energy import EnergyError, find_meter
from latency.energy_cost import with_energy
from latency.freshness import own_runtime, require_same_machine
from latency.plan import Networks, make_plan, reachable_blocks, timed_resolutions
from latency.remote import measure_there, parse_remote
from latency.results import Results, check_results, fit_table, read_results
from latency.table import LatencyTable
from latency.table_file import read_table_file
from ofa.artefacts import write_bytes
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import Run
from ofa.space import SearchSpace

AGENT_HEAD = 100  # bytes by which an agent.py is known for one of ours
LINKS = 12  # blocks of an earlier table that are timed again, to tell how the two sessions compare


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """What to measure and for how long."""

    budget_s: float = 60.0
    rounds: int = 60  # at most
    num_calibration: int = 20  # networks that the line is fitted to
    num_validation: int = 20  # networks that only the stated error is computed from
    resolutions: tuple[int, ...] | None = None  # input sizes at which blocks are timed; None = see latency.plan
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", agent.MIN_ROUNDS), ("num_calibration", 5), ("num_validation", 5), ("budget_s", 0)):
            if getattr(self, name) < least:
                raise OfaError(f"{name} is {getattr(self, name)}, expected at least {least}")


def profile_device(
    run: Run | Path | str,
    device: str,
    *,
    config: ProfileConfig | None = None,
    fresh: bool = False,
    reuse: Path | None = None,
    precision: str | None = None,
    settings: str = "ort_cpu_1t",
    python: str = "python3",
) -> LatencyTable:
    """Measure the latency table of a run's space on a device and save it in the run.

    What is measured is `profiled_space`: where it holds one network, the table is that network's and states no error.

    Args:
        run: run directory.
        device: name of a device of this machine, the path of a device file, NAME=ssh:USER@HOST or NAME=adb:SERIAL.
        config: what to measure and for how long.
        fresh: measure anew; otherwise earlier rounds are kept and only missing ones are added.
        reuse: table of the same device from another run: blocks that it holds are not timed again.
        precision: instead of the device's own.
        settings: device file with the threads and provider of a device reached by ssh or adb.
        python: interpreter on a device reached by ssh or adb.
    Raises:
        OfaError: if the run or the device cannot be read or reached, or nothing runs on it.
    """
    config = config or ProfileConfig()
    run = run if isinstance(run, Run) else Run(run)
    remote = parse_remote(device, python=python)
    if remote is not None:
        require_foreign_name(remote.name)
        plan = plan_space(profiled_space(run), agent_device(settings, precision), config)
        results = run.path / "latency" / "results" / f"{remote.name}.json"
        measure_there(remote, plan, results, budget_s=config.budget_s, rounds=config.rounds, fresh=fresh)
        return merge_results(run, results, remote.name, command=f"ofa profile {run.path} --device {device}")
    spec = with_precision(get_device(device), precision)
    for warning in agent.warnings(spec.model_dump(), agent.conditions()):
        say(f"warning: {warning}")
    journal = run.path / "latency" / f"{spec.name}.journal.jsonl"
    space = profiled_space(run)
    known = known_blocks(reuse, spec, space) if reuse else None
    command = f"ofa profile {run.path} --device {device}" + (f" --precision {precision}" if precision else "") + " --fresh"
    table = profile_space(space, spec, config, journal=journal, known=known, fresh=fresh, command=command)
    table.save(run.latency_path(spec.name))
    return add_energy(run, table, spec)


def profiled_space(run: Run) -> SearchSpace:
    """Return the space that a run's tables are of.

    That is the whole one also for a run of one network, since a single network has no line to calibrate; but the one network,
    where the whole space has no more or its blocks cannot be listed.

    Raises:
        OfaError: if the blocks cannot be listed and the run is not of one network.
    """
    if run.whole_space.is_tabulated:
        return run.whole_space
    if run.space.size() > 1:
        raise OfaError(
            f"{run.path}: the blocks of {run.space_name} are too many to time; train one network of it, and profile its run: "
            "ofa train --arch ARCH"
        )
    return run.space


def add_energy(run: Run, table: LatencyTable, device: DeviceSpec) -> LatencyTable:
    """Measure energy too, where this machine has a meter for the device; a failure costs no more than the energy."""
    on_card = device.provider.startswith(("CUDA", "Tensorrt", "NvTensorRTRTX"))
    if not on_card and device.provider not in ("CPUExecutionProvider", "CPU", "cpu", "XnnpackExecutionProvider"):
        say(f"energy is not measured: no meter is known for {device.provider}")
        return table
    meter = find_meter(gpu=on_card)
    if meter is None:
        return table
    if table.is_of_one:
        say("energy is not measured: its line from milliseconds to millijoules takes more than one network")
        return table
    try:
        priced = with_energy(table, device, meter)
    except EnergyError as error:
        say(f"warning: energy is left out: {error}")
        return table
    priced.save(run.latency_path(device.name))
    return priced


def profile_space(
    space: SearchSpace,
    device: DeviceSpec,
    config: ProfileConfig,
    *,
    journal: Path,
    known: Mapping[BlockSpec, float] | None = None,
    networks: Networks | None = None,
    fresh: bool = False,
    command: str = "",
) -> LatencyTable:
    """Measure a space's blocks and networks on this machine and fit the table; `journal` makes it resumable."""
    plan = plan_space(space, device, config, known=known, networks=networks)
    found = measure_here(plan, device, config, journal, fresh=fresh)
    command = command or f"ofa profile RUN --device {device.name} --fresh"
    return fit_table(space, found, device=device.name, known=known, measured_by="here", command=command)


def plan_space(
    space: SearchSpace,
    device: DeviceSpec,
    config: ProfileConfig,
    *,
    known: Mapping[BlockSpec, float] | None = None,
    networks: Networks | None = None,
) -> agent.Plan:
    """Plan what `config` says: the blocks that no earlier table holds, and networks over the whole range of MACs."""
    rng = np.random.default_rng((config.seed, 0x7AB1E))
    if networks is None and space.size() == 1:
        networks = Networks.only(space)
    elif networks is None:
        networks = Networks.spread(space, rng, config.num_calibration, config.num_validation)
    blocks = reachable_blocks(space, config.resolutions or timed_resolutions(space))
    sides = space.dimensions[space.column["resolution"]].options
    if config.resolutions and not {sides[0], sides[-1]} <= set(config.resolutions):
        raise OfaError(
            f"input sizes {', '.join(map(str, config.resolutions))}: expected the smallest and the largest of {space.name} "
            f"among them, {sides[0]} and {sides[-1]}; between timed sizes a table interpolates, beyond them it does not guess"
        )
    if known:
        links = [spec for spec in blocks if spec in known]
        links = [links[i] for i in sorted(rng.permutation(len(links))[:LINKS])]
        blocks = links + [spec for spec in blocks if spec not in known]
    return make_plan(space, device, blocks, networks, seed=config.seed)


def describe_items(plan: agent.Plan) -> str:
    """Say how much a plan times, e.g. "14 blocks and 1 network"."""
    kinds = [item["kind"] for item in plan.manifest["items"]]
    networks = kinds.count("network")
    return f"{kinds.count('block')} blocks and {networks} network{'' if networks == 1 else 's'}"


def measure_here(plan: agent.Plan, device: DeviceSpec, config: ProfileConfig, journal: Path, *, fresh: bool = False) -> Results:
    """Measure a plan on this machine, through the runtime of the device."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    say(f"timing {describe_items(plan)} of {plan.manifest['space']} on {device.name}")

    def open_graph(graph: bytes, settings: Mapping[str, Any], shape: Any) -> agent.Call:
        inputs = np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)
        return open_session(graph, device).prepare(inputs)

    with progress("measuring", config.rounds) as bar:
        shown = 0

        def advance(done: int, expected: int, left_s: float) -> None:
            nonlocal shown
            bar(done - shown, total=expected, note=f"{left_s:.0f} s left")
            shown = done

        try:
            found = agent.measure(
                plan,
                open_graph=open_graph,
                journal=str(journal),
                rounds=config.rounds,
                budget_s=config.budget_s,
                runtime=own_runtime(device),
                say=say,
                fresh=fresh,
                advance=advance,
            )
        except agent.AgentError as error:
            raise OfaError(f"device {device.name}: {error}") from None
    return check_results(found, str(journal))


def write_plan(
    run: Run | Path | str, device: str, path: Path, *, config: ProfileConfig | None = None, precision: str | None = None
) -> agent.Plan:
    """Write plan.zip for a device that this code does not run on, and agent.py, which does, beside it.

    Raises:
        OfaError: if the device's runtime is not one that the agent has, or the plan is too large to be sent around.
    """
    run = run if isinstance(run, Run) else Run(run)
    plan = plan_space(profiled_space(run), agent_device(device, precision), config or ProfileConfig())
    data = agent.write_plan(plan)
    if len(data) > agent.SMALL_PLAN_BYTES:
        size = len(data) / 2**20
        raise OfaError(f"the plan takes {size:.1f} MiB, at most 1 MiB is sent around; fewer --resolutions make it smaller")
    ours, beside = Path(agent.__file__).read_bytes(), path.parent / "agent.py"
    if beside.exists() and beside.read_bytes()[:AGENT_HEAD] != ours[:AGENT_HEAD]:
        raise OfaError(f"{beside} is a file of yours; give the plan a folder of its own, e.g. --plan device/{path.name}")
    write_bytes(path, data)
    if not beside.exists() or not beside.samefile(agent.__file__):
        write_bytes(beside, ours)
    return plan


def merge_results(run: Run | Path | str, results: Path, name: str, *, command: str = "") -> LatencyTable:
    """Make the table of another device of what its agent wrote, and save it in the run as `name`.

    Raises:
        OfaError: if the results are damaged, of another space, or lack too much.
    """
    run = run if isinstance(run, Run) else Run(run)
    require_foreign_name(name)
    found = read_results(results)
    device = device_of(found, name, results)
    command = command or f"ofa profile {run.path} --plan plan.zip, measure it there again, and --merge its results --as {name}"
    table = fit_table(profiled_space(run), found, device=device.name, measured_by="agent", command=command)
    table.save(run.latency_path(device.name))
    return table


def check_device(device: str, *, precision: str | None, settings: str = "ort_cpu_1t", python: str = "python3") -> None:
    """Refuse what `profile_device` would refuse of a device, before anything is measured.

    Raises:
        OfaError: naming what is wrong; also for settings of a device elsewhere, given for one of this machine.
    """
    remote = parse_remote(device, python=python)
    if remote is not None:
        require_foreign_name(remote.name)
        agent_device(settings, precision)
        return
    if settings != "ort_cpu_1t" or python != "python3":
        raise OfaError(f"--settings and --python are for devices behind ssh or adb; {device} is one of this machine")
    own_runtime(with_precision(get_device(device), precision))


def require_foreign_name(name: str) -> None:
    """Refuse a name under which a device of this machine goes.

    Raises:
        OfaError: for the name of a device that ships.
    """
    if name in list_devices():
        raise OfaError(
            f"name {name!r}: is a device of this machine, whose table it would replace; name the other one differently"
        )


def agent_device(name: str, precision: str | None) -> DeviceSpec:
    """Return the settings of a device that the agent measures.

    Raises:
        OfaError: if they need another runtime than the agent has.
    """
    spec = with_precision(get_device(name), precision)
    if spec.runtime != "onnxruntime":
        raise OfaError(
            f"device {spec.name} is of runtime {spec.runtime}; agent.py has onnxruntime only; profile it on its machine"
        )
    if spec.precision not in agent.PRECISIONS:
        raise OfaError(f"device {spec.name} is of precision {spec.precision}; agent.py runs {', '.join(agent.PRECISIONS)}")
    return spec


def with_precision(device: DeviceSpec, precision: str | None) -> DeviceSpec:
    """Return a device at another precision, under a name that says so."""
    if precision is None or precision == device.precision:
        return device
    return make_device({**device.model_dump(), "precision": precision, "name": f"{device.name}_{precision}"}, Path("--precision"))


def device_of(results: Results, name: str, source: Path) -> DeviceSpec:
    """Return the device that results were measured on, under a name of its own."""
    try:
        return DeviceSpec.model_validate({**results.device, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"--as {name!r}" if field == "name" else f"{source}: device.{field}"
        raise OfaError(f"{problem}: {first['msg']}") from None


def known_blocks(path: Path, device: DeviceSpec, space: SearchSpace) -> dict[BlockSpec, float]:
    """Return the times of this space's blocks from a table that was measured on this machine with the same settings.

    Raises:
        ArtefactError: if it was not.
    """
    value = read_table_file(path)
    require_same_machine(path, value.provenance.model_dump(), device)
    blocks = set(space.all_blocks)
    times = ((BlockSpec.from_dict(entry.block), entry.ms) for entry in value.entries)
    return {spec: ms for spec, ms in times if spec in blocks}
