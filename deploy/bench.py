"""Time ONNX files on devices of this machine, side by side: latency and its percentiles, throughput, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.device import DeviceSpec, get_device
from deploy.interleave import Samples, interleave, paired_ratio
from deploy.memory import PeakMemory, available_bytes, measure_peak
from deploy.model_file import ModelFile, open_model_file
from deploy.runtimes import Session, open_session, runtime_version
from deploy.timing import Call, clock_of, median_interval, visit
from ofa.artefacts import ArtefactError, format_json
from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import host_facts

BENCH_SCHEMA = "ofa.bench/1"
ROUNDS, MIN_ROUNDS = 20, 6  # fewer than six tell no 95 % interval of a median


class BenchError(OfaError):
    """Nothing could be measured, or not within the memory of this machine."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A file on a device at a batch size. Where it could not run, `error` says why and what would be measured is None.

    Times are of a run of the whole batch: the median of the rounds' medians with a 95 % interval, percentiles of all runs.
    """

    file: str
    device: str
    precision: str  # of the file
    batch_size: int
    size_bytes: int
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    images_per_second: float | None = None  # always by wall clock
    n: int = 0  # timed runs
    clock: str | None = None  # "cpu" or "wall", of the times (deploy.timing)
    memory_mib: float | None = None  # peak above the loaded runtime (deploy.memory)
    memory_source: str | None = None
    ratio: float | None = None  # of times: this file's over the first file's, on the same device at the same batch size
    ratio_low: float | None = None
    ratio_high: float | None = None
    fp32_ratio: float | None = None  # over those of the same network's fp32 file
    fp32_ratio_low: float | None = None
    fp32_ratio_high: float | None = None
    error: str | None = None


@dataclass
class _Cell:
    """A file on a device at a batch size, while it is measured."""

    file: ModelFile
    device: DeviceSpec
    batch_size: int
    memory: PeakMemory | None = None
    call: Call | None = None
    samples: Samples | None = None
    error: str | None = None

    @property
    def column(self) -> int:
        """Of samples: the clock that times the device."""
        return 0 if clock_of(self.device) == "cpu" else 1


def bench_models(
    paths: Sequence[Path | str],
    devices: Sequence[str],
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    seconds: float = 2.0,
    resolution: int | None = None,
) -> list[BenchRow]:
    """Time files side by side; the rows of a file in a bundle are also written to the bundle's bench.json.

    Args:
        paths: ONNX files or exported folders; ratios are to the first.
        devices: names, or paths of .toml files.
        batch_sizes: images in a run.
        seconds: how long each file is timed on each device at each batch size; slow ones take longer.
        resolution: side in pixels of the input of graphs that leave it free.
    Returns:
        A row for every device, batch size and file, in this order.
    Raises:
        OfaError: if a file cannot be read, a device is unknown, nothing could be measured, or memory does not hold all of it.
    """
    if not (paths and devices and batch_sizes and min(batch_sizes) >= 1 and seconds > 0):
        raise BenchError(
            f"{len(paths)} files, {len(devices)} devices, batch sizes {list(batch_sizes)}, {seconds} seconds: "
            "expected at least one of each, batches of at least one image, and some time"
        )
    specs = [get_device(name) for name in dict.fromkeys(devices)]
    files = [open_model_file(path) for path in paths]
    if resolution is not None and not any(file.leaves_resolution_free for file in files):
        raise BenchError(f"resolution {resolution}: every file says which height and width it takes; leave it out")
    cells = [_Cell(file, spec, size) for spec in specs for size in dict.fromkeys(batch_sizes) for file in files]
    _try(cells, resolution)
    _open(cells, resolution)
    able = [cell for cell in cells if cell.call is not None]
    if not able:
        reasons = dict.fromkeys(f"{cell.file.path} on {cell.device.name}: {cell.error}" for cell in cells)
        raise BenchError("nothing could be measured; " + "; ".join(reasons))
    _time(able, seconds)
    rows = [_row(cell, cells) for cell in cells]
    for file in files:
        if file.bundle is not None:
            _write(file, files[0], specs, [row for cell, row in zip(cells, rows, strict=True) if cell.file is file])
    return rows


def _try(cells: Sequence[_Cell], resolution: int | None) -> None:
    """Measure the memory of each. This is also the trial run: what would end this process ends only a child."""
    with progress("memory", len(cells)) as advance:
        for cell in cells:
            try:
                shape = cell.file.input_shape(cell.batch_size, resolution)
                cell.memory = measure_peak(cell.file.content, cell.device, shape)
            except OfaError as error:
                cell.error = str(error)
            advance(note=f"{cell.device.name} batch {cell.batch_size}")
    needed = sum(cell.memory.peak_bytes or 0 for cell in cells if cell.memory is not None)
    free = available_bytes()
    if free is not None and needed > free:
        raise BenchError(
            f"all of it side by side may take {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; "
            "name fewer files, devices or batch sizes at a time"
        )


def _open(cells: Sequence[_Cell], resolution: int | None) -> None:
    """Make the calls that are timed; one session of a file on a device serves all batch sizes."""
    sessions: dict[tuple[ModelFile, DeviceSpec], Session] = {}
    for cell in cells:
        if cell.error is not None:
            continue
        key = (cell.file, cell.device)
        shape = cell.file.input_shape(cell.batch_size, resolution)
        try:
            if key not in sessions:
                sessions[key] = open_session(cell.file.content, cell.device)
            cell.call = sessions[key].prepare(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        except OfaError as error:
            cell.error = str(error)


def _time(cells: Sequence[_Cell], seconds: float) -> None:
    """Plan the rounds from a first look at each call, then time them."""
    calls = [cell.call for cell in cells if cell.call is not None]
    once_s = [min(wall for _, wall in visit(call, warm_up=1, runs=3)) / 1e3 for call in calls]
    rounds = int(np.clip(seconds / (2 * max(once_s)), MIN_ROUNDS, ROUNDS))  # a visit is a run to warm up and one that counts
    runs = [max(1, int(seconds / rounds / once) - 1) for once in once_s]
    expected_s = rounds * sum((n + 1) * once for n, once in zip(runs, once_s, strict=True))
    say(f"timing {len(calls)} combinations in {rounds} rounds, about {expected_s:.0f} s")
    with progress("timing", rounds * len(calls)) as advance:
        found = interleave(calls, runs, rounds=rounds, rng=np.random.default_rng(0), advance=advance)
    for cell, samples in zip(cells, found, strict=True):
        cell.samples = samples


def _row(cell: _Cell, cells: Sequence[_Cell]) -> BenchRow:
    """Make a row; `cells` are all, in the order of the rows."""
    what: dict[str, Any] = {
        "file": str(cell.file.path),
        "device": cell.device.name,
        "precision": cell.file.precision,
        "batch_size": cell.batch_size,
        "size_bytes": len(cell.file.content),
    }
    if cell.samples is None:
        return BenchRow(**what, error=cell.error)
    times = cell.samples[:, :, cell.column]  # (rounds, runs)
    medians = np.median(times, axis=1)
    low, high = median_interval(medians)
    p90, p99 = np.percentile(times, (90, 99))
    rates = cell.batch_size * times.shape[1] * 1e3 / cell.samples[:, :, 1].sum(axis=1)  # a visit's images over all its time
    memory = cell.memory or PeakMemory(None, "")
    beside = [other for other in cells if (other.device, other.batch_size) == (cell.device, cell.batch_size)]
    fp32 = [other for other in beside if other.file.precision == "fp32" and other.file.network == cell.file.network]
    return BenchRow(
        **what,
        median_ms=float(np.median(medians)),
        low_ms=low,
        high_ms=high,
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(np.median(rates)),
        n=times.size,
        clock=clock_of(cell.device),
        memory_mib=None if memory.peak_bytes is None else memory.peak_bytes / 2**20,
        memory_source=memory.source or None,
        **_ratio("ratio", cell, beside[0]),
        **(_ratio("fp32_ratio", cell, fp32[0]) if fp32 else {}),
    )


def _ratio(name: str, cell: _Cell, other: _Cell) -> dict[str, Any]:
    if cell.samples is None or other.samples is None:
        return {}
    median, low, high = paired_ratio(cell.samples, other.samples, cell.column)
    return {name: median, f"{name}_low": low, f"{name}_high": high}


def _write(file: ModelFile, first: ModelFile, specs: Sequence[DeviceSpec], rows: Sequence[BenchRow]) -> None:
    """Write a bundle's bench.json; where that cannot be, the rows are still worth having."""
    assert file.bundle is not None
    ran = {row.device for row in rows if row.error is None}
    devices = {
        spec.name: {**spec.model_dump(), "runtime_version": runtime_version(spec.runtime)} for spec in specs if spec.name in ran
    }
    record = {
        "schema": BENCH_SCHEMA,
        "sha256": file.sha256,
        "host": host_facts(),
        "devices": devices,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "first": {"sha256": first.sha256, "precision": first.precision},  # what `ratio` is to
        "rows": [{**asdict(row), "file": "model.onnx"} for row in rows],
    }
    try:
        file.bundle.add({"bench.json": format_json(record)})
    except (OSError, ArtefactError) as error:
        say(f"warning: {file.bundle.path / 'bench.json'} was not written ({error})")
