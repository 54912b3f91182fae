"""Is a table still true? Settings and versions are compared at every use; `check_table` measures again, in seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.device import DeviceSpec, get_device, list_devices, make_device
from deploy.emit import emit, input_shape
from deploy.runtimes import open_session, runtime_version
from deploy.timing import clock_of, visit
from latency import agent
from latency.table import LatencyTable
from ofa.artefacts import ArtefactError
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import SearchSpace

SAME = 0.03  # a common factor within this is no change,
SPREAD = 0.05  # and networks within this of the common factor follow it
OLD_DAYS = 90
NETWORKS, ROUNDS = 6, 40  # the fastest, the slowest and four between
SECONDS = 20.0  # no round is begun after this


class StaleTableError(OfaError):
    """A table does not say any more what its device does."""


def settings(device: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a device file fixes about a latency: all but its name and description."""
    return {name: value for name, value in device.items() if name not in ("name", "description")}


def own_runtime(device: DeviceSpec) -> dict[str, str]:
    """Name and version of what runs a device's graphs on this machine."""
    return {"name": device.runtime, "version": runtime_version(device.runtime)}


def is_of_this_machine(table: LatencyTable) -> bool:
    """Whether a table was measured on this machine, by this installation."""
    return table.provenance.get("measured_by") == "here" and table.provenance.get("host") == agent.host_facts()


def require_usable(table: LatencyTable, path: Path) -> None:
    """Refuse a table that was measured under other settings than its device has now; warn of an old one.

    Raises:
        StaleTableError: saying what differs: runtime version (major.minor), threads, precision, provider, batch size.
    """
    recorded = table.provenance.get("device")
    again = f"measure anew: {table.provenance.get('command', 'ofa profile')}"
    if isinstance(recorded, Mapping) and table.device in list_devices():
        then, now = settings(recorded), settings(get_device(table.device).model_dump())
        changed = next((name for name in now if name in then and then[name] != now[name]), None)
        if changed:
            raise StaleTableError(f"{path}: measured with {changed} {then[changed]}, {table.device} has {now[changed]}; {again}")
    if not is_of_this_machine(table):
        return
    runtime = table.provenance.get("runtime")
    if runtime is None:
        return
    version = runtime_version(runtime["name"])
    if major_minor(runtime["version"]) != major_minor(version):
        raise StaleTableError(f"{path}: measured with {runtime['name']} {runtime['version']}, this is {version}; {again}")
    last = table.provenance.get("checked") or table.provenance.get("measured")
    age = (date.today() - date.fromisoformat(last)).days if last else 0
    if age > OLD_DAYS:
        say(f"warning: {path} is {age} days old; see whether it still holds: ofa profile RUN --check {path}")


def major_minor(version: str) -> str:
    """Return "1.31" of "1.31.1"."""
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Freshness:
    """What a few networks, timed again, say about a table."""

    verdict: Literal["fresh", "rescaled", "stale"]
    factor: float  # time now over time then, common to all
    spread: float  # largest |deviation| of a network from it
    networks: tuple[tuple[float, float], ...]  # (then, now) ms

    def __str__(self) -> str:
        return f"{self.verdict}: now {self.factor - 1:+.1%}, single networks within {self.spread:.1%} of that"


def check_table(path: Path, space: SearchSpace) -> Freshness:
    """Time an anchor and five networks of a table again and say whether it holds; one that is off by a factor is rescaled.

    A table of one network has but that one to time again, which tells a factor and never a spread.

    Raises:
        OfaError: if the table was not measured on this machine.
    """
    table = LatencyTable.load(path, space)
    known = table.provenance.get("networks") or []
    least = 1 if table.is_of_one else NETWORKS
    if not is_of_this_machine(table) or len(known) < least or "device" not in table.provenance:
        raise OfaError(f"{path}: was not measured on this machine, so it cannot be checked here; measure there with a new plan")
    require_usable(table, path)
    device = make_device(table.provenance["device"], path)
    for warning in agent.warnings(device.model_dump(), agent.conditions()):
        say(f"warning: {warning}")
    by_time = sorted(known, key=lambda network: float(network["measured_ms"]))
    chosen = [by_time[i] for i in np.linspace(0, len(by_time) - 1, min(NETWORKS, len(known))).round().astype(int)]
    then = np.array([network["measured_ms"] for network in chosen])
    now = time_again(space, device, [network["arch"] for network in chosen], clock=table.provenance.get("clock"))
    found = judge(then, now)
    if found.verdict == "rescaled":
        table = rescaled_table(table, found.factor)
        put_aside(path.parent / f"{path.stem}.journal.jsonl")  # its rounds are of the other speed
    if found.verdict != "stale":
        replace(table, provenance={**table.provenance, "checked": date.today().isoformat()}).save(path)
    return found


def put_aside(journal: Path) -> None:
    """Keep a journal under another name, so that measuring begins anew."""
    if journal.exists():
        journal.replace(journal.with_name(f"{journal.name}.{datetime.now():%Y%m%d-%H%M%S}.old"))


def judge(then: np.ndarray[Any, np.dtype[np.float64]], now: np.ndarray[Any, np.dtype[np.float64]]) -> Freshness:
    """Compare the times of some networks, (n,) ms each."""
    ratios = now / then
    factor = float(np.median(ratios))
    spread = float(np.abs(ratios / factor - 1).max())
    verdict: Literal["fresh", "rescaled", "stale"] = "fresh"
    if spread > SPREAD:
        verdict = "stale"
    elif abs(factor - 1) > SAME:
        verdict = "rescaled"
    return Freshness(verdict, factor, spread, tuple(zip(then.tolist(), now.tolist(), strict=True)))


def time_again(
    space: SearchSpace, device: DeviceSpec, archs: list[dict[str, Any]], *, clock: str | None = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Time networks in turns, (n,) ms."""
    calls = []
    for values in archs:
        chain = space.blocks(space.from_values(values))
        shape = (device.batch_size, *input_shape(next(iter(chain.values()))))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        calls.append(open_session(emit(chain, precision=device.graph_precision), device).prepare(images))
    column = 0 if (clock or clock_of(device)) == "cpu" else 1
    rng = np.random.default_rng(0)
    samples: list[list[float]] = [[] for _ in calls]
    end = time.monotonic() + SECONDS
    for number in range(ROUNDS):
        if number >= 3 and time.monotonic() > end:
            break
        for i in rng.permutation(len(calls)).tolist():
            samples[i] += [sample[column] for sample in visit(calls[i], warm_up=1, runs=3)]
    return np.median(samples, axis=1)


def rescaled_table(table: LatencyTable, factor: float) -> LatencyTable:
    """Return the table of the same device at another speed."""
    history = [*table.provenance.get("rescaled", []), {"on": date.today().isoformat(), "factor": factor}]
    networks = [{**n, "measured_ms": n["measured_ms"] * factor} for n in table.provenance["networks"]]
    return replace(
        table,
        calibration=table.calibration.scaled(factor),
        validation=tuple((p * factor, m * factor) for p, m in table.validation),
        provenance={**table.provenance, "networks": networks, "rescaled": history},
    )


def require_same_machine(path: Path, provenance: Mapping[str, Any], device: DeviceSpec) -> None:
    """Refuse block times that were not measured on this machine with these settings.

    Raises:
        ArtefactError: saying what differs.
    """
    here = {"device": settings(device.model_dump()), "runtime": own_runtime(device), "host": agent.host_facts()}
    for name, wanted in here.items():
        found = provenance.get(name)
        found = settings(found) if name == "device" and isinstance(found, Mapping) else found
        if found != wanted:
            raise ArtefactError(f"{path}: was measured with {name} {found}, here it is {wanted}; its times do not carry over")
