#!/usr/bin/env python3
"""Measure a device: run the graphs of a plan and write down how long each takes.

Copy this one file and a plan.zip to the device; it needs Python 3.8, numpy and onnxruntime, nothing else:

    python agent.py plan.zip -o results.json

Interrupted, the same command goes on where it was. The toolkit measures its own machine through this same code.

Blocks are timed cold: each round visits every block a few times, in a new random order, so that a block finds the caches as it
would inside a network. (The usual loop over one block keeps its weights in the nearest cache and comes out far too low.) Whole
networks are timed warm, as a process that serves one model runs them. One network is the anchor: it is visited many times a
round, and every other time is divided by how much slower than usual the anchor just was.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import platform
import random
import re
import sys
import time
import zipfile
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

try:
    import numpy as np
except ImportError:
    sys.exit("error: numpy is not installed here: pip install numpy")

VERSION = 1
PLAN_SCHEMA, RESULTS_SCHEMA, JOURNAL_SCHEMA = "ofa.plan/1", "ofa.results/1", "ofa.journal/1"
PRECISIONS = ("fp32", "fp16", "int8", "a16w8")  # of the graphs in a plan
MAX_PLAN_BYTES = 256 * 2**20  # unpacked; a plan has a few
SMALL_PLAN_BYTES = 2**20  # of plan.zip
BLOCK_VISITS = 3  # to a block in a round: they cost next to nothing beside the networks
NETWORK_RUNS = 3  # timed runs of a network in a visit, after one that fills the caches
ANCHOR_SECONDS = 2.0  # the anchor is visited at least this often,
ANCHOR_VISITS = 4  # and this often in a round
MIN_ROUNDS = 3  # however slow the device is
ENOUGH = 8  # samples of an item: the ones that something disturbed are left out if so many others remain
QUANTILES = (0, 5, 10, 25, 50, 75, 90, 95, 100)
NOISY = 0.15  # spread of the middle half over the median

Call = Callable[[], object]
Open = Callable[[bytes, Mapping[str, Any], Sequence[int]], Call]  # graph, device, input shape -> what runs it once
Say = Callable[[str], None]
Sample = Tuple[int, int, int]  # CPU time of this thread and wall time, ns; whether something else took the core meanwhile


class AgentError(Exception):
    """Something the user can put right, in one line."""


# -- the plan ---------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What to measure: a manifest (plain JSON) and a graph for each of its items."""

    manifest: Dict[str, Any]
    graphs: Mapping[str, bytes]

    @property
    def id(self) -> str:
        """SHA-256 of the manifest, which holds that of each graph."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def write_plan(plan: Plan) -> bytes:
    """Return plan.zip: the manifest and the graphs one after the other; equal plans give equal bytes."""
    # graphs are so alike that one stream of them takes a third of what each would take alone
    graphs = b"".join(plan.graphs[item["id"]] for item in plan.manifest["items"])
    files = {"manifest.json": json.dumps(plan.manifest, sort_keys=True).encode(), "graphs.bin": graphs}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):  # every Python reads the first; the second is far smaller
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data, method, 9)
        if buffer.tell() <= SMALL_PLAN_BYTES:
            break
    return buffer.getvalue()


def read_plan(path: str) -> Plan:
    """Read plan.zip. Nothing is unpacked to disk, and no more is read than a plan may hold."""
    again = "make it again: ofa profile RUN --plan plan.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            if names != ["graphs.bin", "manifest.json"]:
                raise AgentError(f"{path}: holds {', '.join(names)[:80] or 'nothing'}, not a plan; {again}")
            if sum(entry.file_size for entry in archive.infolist()) > MAX_PLAN_BYTES:
                raise AgentError(f"{path}: unpacks to more than {MAX_PLAN_BYTES >> 20} MiB, not a plan; {again}")
            data = {}
            for name in names:
                with archive.open(name) as file:
                    data[name] = file.read(MAX_PLAN_BYTES + 1)
                if len(data[name]) > MAX_PLAN_BYTES:
                    raise AgentError(f"{path}: {name} is larger than it says, not a plan; {again}")
        manifest = json.loads(data["manifest.json"])
    except FileNotFoundError:
        raise AgentError(f"{path}: no such file; make a plan: ofa profile RUN --plan plan.zip") from None
    except AgentError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds for damaged files
        raise AgentError(f"{path}: cannot be read ({first_line(error)}); {again}") from None
    try:
        if manifest["schema"] != PLAN_SCHEMA:
            raise AgentError(f"{path}: schema is {manifest['schema']!r}, expected {PLAN_SCHEMA!r}; copy agent.py and plan anew")
        graphs, end = {}, 0
        for item in manifest["items"]:
            start, end = end, end + item["graph_bytes"]
            graphs[item["id"]] = data["graphs.bin"][start:end]
            if hashlib.sha256(graphs[item["id"]]).hexdigest() != item["sha256"]:
                raise AgentError(f"{path}: graph {item['id']} is damaged; {again}")
        ids = [item["id"] for item in manifest["items"]]
        sound = manifest["anchor"] in ids and len(set(ids)) == len(ids) and all(isinstance(name, str) for name in ids)
        sound = sound and isinstance(manifest["seed"], int) and isinstance(manifest["device"]["num_threads"], int)
        sound = sound and manifest["clock"] in ("cpu", "wall") and len(ids) > 1
        for item in manifest["items"]:
            sound = sound and item["kind"] in ("block", "network")
            sound = sound and isinstance(item["session_bytes"], int) and item["session_bytes"] >= 0
            sound = sound and all(isinstance(side, int) and 0 < side <= 2**16 for side in item["shape"])
    except (KeyError, TypeError) as error:
        raise AgentError(f"{path}: incomplete plan ({type(error).__name__}: {first_line(error)}); {again}") from None
    if not sound:
        raise AgentError(f"{path}: damaged plan; {again}")
    return Plan(manifest, graphs)


# -- the runtime ------------------------------------------------------------------------------------------------------


def session_options(device: Mapping[str, Any]) -> Any:
    """Return the options of an ONNX Runtime session, as a deployed one has them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = device["num_threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = {"all": "ALL", "extended": "EXTENDED", "basic": "BASIC", "none": "DISABLE_ALL"}[device.get("optimization", "all")]
    level = level if level == "DISABLE_ALL" else f"ENABLE_{level}"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 4  # failures are raised; the log would only repeat them
    return options


def open_onnxruntime(graph: bytes, device: Mapping[str, Any], shape: Sequence[int]) -> Call:
    """Load a graph and return a call that runs it once on inputs and outputs bound beforehand."""
    import onnxruntime as ort

    provider = device.get("provider", "CPUExecutionProvider")
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise AgentError(f"provider {provider!r} is not in this ONNX Runtime; it has: {have} (--provider)")
    if device.get("precision", "fp32") not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise AgentError(f"precision {device['precision']!r} is not one of ONNX Runtime here: {known}; make another plan")
    providers = [(provider, dict(device.get("provider_options") or {}))]
    session = ort.InferenceSession(graph, session_options(device), providers=providers, enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise AgentError(
            f"{provider} does not start here, ONNX Runtime would use {session.get_providers()[0]} instead (--provider)"
        )
    inputs = np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)
    name, result = session.get_inputs()[0].name, session.get_outputs()[0].name
    output = session.run([result], {name: inputs})[0]
    if not np.isfinite(output).all():
        raise ValueError("computes values that are not finite")
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(inputs))
    binding.bind_ortvalue_output(result, ort.OrtValue.ortvalue_from_numpy(output))
    return lambda: session.run_with_iobinding(binding)


# -- the clock --------------------------------------------------------------------------------------------------------


def switches() -> int:
    """How often the system took the core away from this thread (0 where it does not tell)."""
    try:
        import resource

        return int(resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw)
    except (ImportError, ValueError):
        return 0


def time_once(call: Call) -> Sample:
    """Run once."""
    before = switches()
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    call()
    return time.thread_time_ns() - cpu, time.perf_counter_ns() - wall, int(switches() > before)


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(
    plan: Plan,
    *,
    open_graph: Open,
    journal: str,
    rounds: int,
    budget_s: float,
    runtime: Mapping[str, str],
    say: Say,
    fresh: bool = False,
    advance: Optional[Callable[[int, int, float], None]] = None,
    alive: Callable[[str], None] = lambda what: None,
    clock: Callable[[Call], Sample] = time_once,
) -> Dict[str, Any]:
    """Measure a plan and return the results.

    Args:
        plan: what to measure.
        open_graph: loads a graph of it.
        journal: file that keeps every finished round; one of another plan or device is moved aside.
        rounds: how often everything is timed, at most.
        budget_s: seconds after which no round is begun; each part of the plan gets at least MIN_ROUNDS rounds.
        runtime: name and version of what runs the graphs.
        say: prints a line for people.
        fresh: put earlier rounds aside and measure anew.
        advance: called as (rounds done, rounds expected, seconds left) after every round.
        alive: called with what is being done before every graph.
        clock: times a call.
    Raises:
        AgentError: if nothing can be measured.
    """
    manifest = plan.manifest
    device = manifest["device"]
    items = {item["id"]: item for item in manifest["items"]}
    anchor = manifest["anchor"]
    header = {"schema": JOURNAL_SCHEMA, "plan": plan.id, "device": device, "runtime": dict(runtime), "host": host_facts()}
    held = lock(journal)
    records, state = open_journal(journal, header, say, fresh)
    failed = {record["failed"]: record["why"] for record in records if "failed" in record}
    done = [record for record in records if "samples" in record]
    waves = split_waves(manifest, state["memory_bytes"] // 2)
    if len(waves) > 1:
        say(f"memory holds a part of the {len(items)} graphs at a time: measuring in {len(waves)} parts")
    broken: Dict[str, str] = {}
    with held, open(journal, "ab") as file:
        for number, wave in enumerate(waves):
            own = [record["seconds"] for record in done if record["wave"] == number]
            calls: Optional[Dict[str, Call]] = None
            while len(own) < MIN_ROUNDS or (len(own) < rounds and sum(own) < budget_s / len(waves)):
                began = time.monotonic()
                if calls is None:
                    calls = load(plan, wave, anchor, open_graph, failed, file, say, alive)
                rng = random.Random(f"{manifest['seed']}/{number}/{len(own)}")
                record = {"wave": number, **one_round(calls, items, anchor, rng, clock, alive, broken)}
                record["seconds"] = time.monotonic() - began
                record["on"] = time.strftime("%Y-%m-%d")
                for name, why in broken.items():
                    failed[name] = why
                    append(file, {"failed": name, "why": why})
                    say(f"warning: {name} cannot be measured here ({why})")
                broken.clear()
                append(file, record)
                done.append(record)
                own.append(record["seconds"])
                if advance:
                    spent = sum(r["seconds"] for r in done)
                    left = max(0.0, budget_s - spent)
                    advance(len(done), min(rounds * len(waves), len(done) + round(left / spent * len(done))), left)
    return summarise(plan, done, failed, {**header, "schema": RESULTS_SCHEMA}, state["conditions"])


def split_waves(manifest: Mapping[str, Any], memory_bytes: int) -> List[List[str]]:
    """Share the items out at random over as few parts as memory allows; the anchor is in every part besides."""
    sizes = {item["id"]: int(item["session_bytes"]) for item in manifest["items"]}
    anchor = sizes.pop(manifest["anchor"])
    order = sorted(sizes)
    random.Random(manifest["seed"]).shuffle(order)
    count = max(1, -(-sum(sizes.values()) // max(1, memory_bytes - anchor)))
    return [order[number::count] for number in range(min(count, len(order)))]


def load(
    plan: Plan,
    wave: Sequence[str],
    anchor: str,
    open_graph: Open,
    failed: Dict[str, str],
    file: Any,
    say: Say,
    alive: Callable[[str], None],
) -> Dict[str, Call]:
    """Load the graphs of a part; what cannot be loaded or run is reported, and the rest goes on."""
    items = {item["id"]: item for item in plan.manifest["items"]}
    calls: Dict[str, Call] = {}
    for name in [anchor, *wave]:
        if name in failed:
            continue
        alive(f"loading graphs, {len(calls)} of {len(wave) + 1}")
        try:
            call = open_graph(plan.graphs[name], plan.manifest["device"], items[name]["shape"])
            for _ in range(2):
                call()
        except AgentError:
            raise
        except Exception as error:  # runtimes raise whatever they like
            if name == anchor:
                raise AgentError(
                    f"the network that everything is compared with does not run here ({first_line(error)})"
                ) from None
            failed[name] = first_line(error)
            append(file, {"failed": name, "why": failed[name]})
            say(f"warning: {name} cannot be measured here ({failed[name]})")
            continue
        calls[name] = call
    return calls


def one_round(
    calls: Dict[str, Call],
    items: Mapping[str, Any],
    anchor: str,
    rng: random.Random,
    clock: Callable[[Call], Sample],
    alive: Callable[[str], None],
    broken: Dict[str, str],
) -> Dict[str, Any]:
    """Visit everything in random order, and the anchor in between; what fails on the way goes from `calls` to `broken`.

    Returns:
        "anchor": samples of each visit to the anchor; "samples": item -> its visits, [number of anchor visits before, samples].
    """
    visits = {"block": BLOCK_VISITS, "network": 1}
    order = [name for name in calls if name != anchor for _ in range(visits[items[name]["kind"]])]
    rng.shuffle(order)
    every = max(1, -(-len(order) // (ANCHOR_VISITS - 1)))

    def visit(name: str) -> List[Sample]:
        if items[name]["kind"] == "block":
            return [clock(calls[name])]
        calls[name]()
        return [clock(calls[name]) for _ in range(NETWORK_RUNS)]

    anchors: List[List[Sample]] = [visit(anchor)]
    samples: Dict[str, List[Any]] = {}
    last = time.monotonic()
    for position, name in enumerate(order, start=1):
        alive(f"graph {position} of {len(order)} in this round")
        try:
            if name in calls:
                samples.setdefault(name, []).append([len(anchors), visit(name)])
        except Exception as error:  # out of memory, say
            broken[name] = first_line(error)
            del calls[name]
        if position % every == 0 or position == len(order) or time.monotonic() - last > ANCHOR_SECONDS:
            anchors.append(visit(anchor))
            last = time.monotonic()
    return {"anchor": anchors, "samples": samples}


# -- results ----------------------------------------------------------------------------------------------------------


def summarise(
    plan: Plan, rounds: Sequence[Mapping[str, Any]], failed: Mapping[str, str], header: Dict[str, Any], conditions: Any
) -> Dict[str, Any]:
    """Reduce the rounds to quantiles of each item, in milliseconds, freed of the drift that the anchor saw."""
    column, clock = choose_clock(plan.manifest, rounds)
    visits = [[np.median([sample[column] for sample in visit]) for visit in record["anchor"]] for record in rounds]
    usual = float(np.median([value for record in visits for value in record]))
    if not usual > 0:
        raise AgentError("the clock of this device stands still; nothing can be measured with it")
    good = float(np.quantile([value for record in visits for value in record], 0.1)) * 1.25
    kept: Dict[str, List[Tuple[float, float, bool]]] = {}
    broken = 0
    for record, anchors in zip(rounds, visits):
        for name, before, samples in ((n, b, s) for n, own in record["samples"].items() if n not in failed for b, s in own):
            near = anchors[max(0, before - 1) : before + 1]  # the visit before it and the one after
            slowdown = float(np.mean(near)) / usual
            for sample in samples:
                if sample[column] <= 0 or sample[1] <= 0:  # a clock that was set back
                    broken += 1
                    continue
                clean = not sample[2] and max(near) <= good
                kept.setdefault(name, []).append((sample[column] / slowdown / 1e6, sample[1] / 1e6, clean))
        kept.setdefault(plan.manifest["anchor"], []).extend(
            (sample[column] / (value / usual) / 1e6, sample[1] / 1e6, not sample[2])
            for visit, value in zip(record["anchor"], anchors)
            for sample in visit
            if sample[column] > 0 and value > 0
        )
    series = [float(np.median(record)) for record in visits]
    third = max(1, len(series) // 3)
    return {
        **header,
        "plan": {"id": plan.id, **plan.manifest},
        "agent": VERSION,
        "clock": clock,
        "conditions": conditions,
        "measured": rounds[-1].get("on", ""),
        "rounds": len(rounds),
        "seconds": sum(record["seconds"] for record in rounds),
        "anchor_ms": usual / 1e6,
        "drift": float(np.median(series[-third:]) / np.median(series[:third]) - 1),
        "clock_faults": broken,
        "items": {name: describe(values) for name, values in sorted(kept.items())},
        "failed": dict(failed),
    }


def describe(values: Sequence[Tuple[float, float, bool]]) -> Dict[str, Any]:
    """Quantiles of one item's (milliseconds, wall milliseconds, undisturbed)."""
    clean = [value for value in values if value[2]]
    used = clean if len(clean) >= ENOUGH else values
    ms, wall = (np.percentile([value[i] for value in used], QUANTILES) for i in (0, 1))
    named = [f"p{q}" for q in QUANTILES]
    middle = dict(zip(QUANTILES, ms))
    return {
        "n": len(used),
        "disturbed": 1 - len(clean) / len(values),
        "noisy": bool((middle[75] - middle[25]) / middle[50] > NOISY),
        "ms": dict(zip(named, ms.tolist())),
        "wall_ms": dict(zip(named, wall.tolist())),
    }


def choose_clock(manifest: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> Tuple[int, str]:
    """Which time to read: that of this thread if the plan says so and the anchor shows that the work is done in it."""
    samples = [sample for record in rounds for visit in record["anchor"] for sample in visit]
    # on a busy machine wall time is the longer one most of the time, but not always
    share = float(np.quantile([cpu / max(1, wall) for cpu, wall, _ in samples], 0.95))
    usual = float(np.median([wall for _, wall, _ in samples]))
    fine = time.get_clock_info("thread_time").resolution * 1e9 < 0.001 * usual  # it ticks every 16 ms on Windows
    return (0, "cpu") if manifest["clock"] == "cpu" and fine and share > 0.8 else (1, "wall")


# -- the journal ------------------------------------------------------------------------------------------------------


def open_journal(path: str, header: Mapping[str, Any], say: Say, fresh: bool) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """Return the records of an earlier measurement of the same plan on the same device, and the state in which it began."""
    lines = list(read_lines(path))
    same = bool(lines) and {name: lines[0].get(name) for name in header} == json.loads(json.dumps(header))
    if same and isinstance(lines[0].get("memory_bytes"), int) and not fresh:
        records = [line for line in lines[1:] if is_record(line)]
        kept = sum("samples" in record for record in records)
        if kept:
            say(f"{kept} rounds of an earlier measurement are kept")
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash left half a line
                file.write(b"\n")
        return records, lines[0]
    if lines:  # of another plan, setting or machine: not ours to continue, nor to lose
        aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}.old"
        os.replace(path, aside)
        say(f"earlier rounds{'' if fresh else ' are of another plan or setting; they'} are kept as {aside}")
    # how much fits into memory is part of the state: what a round visits must not change when measuring goes on
    state = {**header, "conditions": conditions(), "memory_bytes": free_memory_bytes()}
    with open(path, "wb") as file:
        append(file, state)
    return [], state


def lock(path: str, patience_s: float = 20.0) -> Any:
    """Return a held lock on a journal: two processes must not write one. One whose connection broke ends within seconds."""
    file = open(path + ".lock", "ab")  # noqa: SIM115  the lock is held until it is closed
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # a file system without locks
                return file
            if time.monotonic() > until:
                file.close()
                raise AgentError(f"{path}: another process is measuring this plan; wait for it or end it") from None
            time.sleep(0.5)


def is_record(line: Mapping[str, Any]) -> bool:
    """Whether a line of the journal is whole."""
    if isinstance(line.get("failed"), str):
        return isinstance(line.get("why"), str)
    try:
        visits = [*line["anchor"], *(samples for own in line["samples"].values() for _, samples in own)]
        numbers = [line["wave"], line["seconds"], *(number for visit in visits for sample in visit for number in sample)]
        sound = all(len(sample) == 3 for visit in visits for sample in visit) and len(line["anchor"]) > 0
        return sound and all(isinstance(number, (int, float)) and abs(number) < 1e18 for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def read_lines(path: str) -> Iterable[Dict[str, Any]]:
    """Yield the records of a JSON-lines file; a line that a crash cut off is passed over."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def append(file: Any, record: Mapping[str, Any]) -> None:
    """Append a record as a line."""
    file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    file.flush()


# -- the machine ------------------------------------------------------------------------------------------------------


def host_facts() -> Dict[str, Any]:
    """What does not change between two sessions on one device."""
    return {
        "name": platform.node(),
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
    }


def conditions() -> Dict[str, Any]:
    """What disturbs timings, as it is now; None where the system does not tell."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cpu = f"/sys/devices/system/cpu/cpu{usable[0] if usable else 0}/cpufreq"
    return {
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "affinity": usable,
        "governor": read_text(f"{cpu}/scaling_governor"),
        "frequency_khz": read_text(f"{cpu}/scaling_cur_freq"),
        "max_frequency_khz": read_text(f"{cpu}/cpuinfo_max_freq"),
        "temperature_mc": read_text("/sys/class/thermal/thermal_zone0/temp"),
        "cpu_quota": read_text("/sys/fs/cgroup/cpu.max"),
    }


def warnings(device: Mapping[str, Any], state: Mapping[str, Any]) -> List[str]:
    """Say what will make timings of this machine noisy."""
    found = []
    cores = len(state["affinity"] or range(os.cpu_count() or 1))
    threads = device["num_threads"]
    if threads > cores:
        found.append(f"{threads} threads are wanted, this process may use {cores} cores")
    if state["load_average"] is not None and state["load_average"] > 0.5 * cores:
        found.append(f"load average is {state['load_average']:.1f} on {cores} cores; other work makes timings noisier")
    if state["governor"] not in (None, "performance"):
        found.append(f"frequency governor is {state['governor']!r}; 'performance' gives steadier timings")
    quota = (state["cpu_quota"] or "max").split()
    if quota[0].isdigit() and int(quota[0]) < threads * int(quota[-1]):
        found.append(f"this process may use {int(quota[0]) / int(quota[-1]):.1f} cores of processor time, {threads} are wanted")
    if threads > 1:
        found.append("more than one thread is timed by wall clock, which is noisier than the processor time of one")
    return found


def free_memory_bytes() -> int:
    """Memory that may be used without swapping; 1 GiB where the system does not tell."""
    for line in (read_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**30


def cpu_name() -> str:
    """Processor name as the system gives it."""
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_text(path: str) -> Optional[str]:
    """Return the text of a small file of the system, or None."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# -- on the device ----------------------------------------------------------------------------------------------------


def parse_seconds(text: str) -> float:
    """Read "90", "90s", "2min" or "1h" as seconds."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|m|h|)\s*", text)
    try:
        seconds = float(match.group(1)) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match.group(2)] if match else 0.0
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise AgentError(f"budget {text!r}: expected a time such as 60s or 2min")
    return seconds


def run(options: argparse.Namespace) -> None:
    """Measure options.plan and write options.out."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise AgentError("onnxruntime is not installed here: pip install onnxruntime") from None
    plan = read_plan(options.plan)
    device = dict(plan.manifest["device"])
    if device.get("runtime", "onnxruntime") != "onnxruntime":
        raise AgentError(f"the plan is for runtime {device['runtime']!r}, this agent has onnxruntime; make another plan")
    device.update({name: value for name, value in (("num_threads", options.threads), ("provider", options.provider)) if value})
    on_cpu = device["num_threads"] == 1 and device.get("provider", "CPUExecutionProvider") == "CPUExecutionProvider"
    plan = plan._replace(manifest={**plan.manifest, "device": device, "clock": "cpu" if on_cpu else "wall"})

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    last = time.monotonic()

    def alive(what: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(what)

    def advance(done: int, expected: int, left: float) -> None:
        alive(f"round {done} of about {expected}, {left:.0f} s left")

    for warning in warnings(device, conditions()):
        say(f"warning: {warning}")
    say(f"{len(plan.graphs)} graphs of {plan.manifest.get('space')}, ONNX Runtime {ort.__version__}, {cpu_name()}")
    results = measure(
        plan,
        open_graph=open_onnxruntime,
        journal=options.out + ".journal",
        rounds=options.rounds,
        budget_s=parse_seconds(options.budget),
        runtime={"name": "onnxruntime", "version": ort.__version__},
        say=say,
        advance=advance,
        alive=alive,
    )
    data = json.dumps(results, indent=1).encode()
    with open(options.out + ".tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(options.out + ".tmp", options.out)
    drift = f", times changed by {results['drift']:+.1%} on the way" if abs(results["drift"]) > 0.03 else ""
    say(f"{options.out}: {len(results['items'])} graphs in {results['seconds']:.0f} s{drift}; {len(results['failed'])} failed")
    say(f"take it back: ofa profile RUN --merge {os.path.basename(options.out)} --as NAME")
    print(hashlib.sha256(data).hexdigest())  # for whoever fetches the file


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run from the shell; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("plan", help="plan.zip, made by: ofa profile RUN --plan plan.zip")
    parser.add_argument("-o", "--out", default="results.json", help="file to write (%(default)s)")
    parser.add_argument("--budget", default="60s", help="how long to measure, e.g. 60s or 5min (%(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="how often everything is timed, at most (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the runtime, instead of the plan's")
    parser.add_argument("--provider", help="execution provider, instead of the plan's")
    options = parser.parse_args(arguments)
    for name, least in (("rounds", MIN_ROUNDS), ("threads", 1)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: expected at least {least}")
    try:
        run(options)
    except AgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; what was measured is kept: give the same command again", file=sys.stderr)
        return 130
    except OSError as error:
        advice = "; free some space and give the same command again" if error.errno == errno.ENOSPC else ""
        print(f"error: {error.filename or options.out}: {error.strerror or error}{advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
