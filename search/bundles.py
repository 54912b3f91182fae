"""What lies beside an exported file, read back field by field: model.json, verify.json, bench.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from deploy.bench import BENCH_SCHEMA, BenchRow
from deploy.bundle import Bundle
from deploy.checks import Check
from deploy.comparison import Comparison
from deploy.device import DeviceError, make_device
from deploy.limits import Limit, parse_limit
from deploy.timing import Latency
from deploy.verify import REPORT_SCHEMA
from deploy.verify_latency import Anchor
from ofa.artefacts import ArtefactError, parse_json
from search.reading import build, reading

Result = TypeVar("Result")


@dataclass(frozen=True)
class Proof:
    """A verify.json."""

    sha256: str
    limits: tuple[Limit, ...]
    checks: tuple[Check, ...]
    top1: float | None  # in [0, 1]; None = there were no test images
    top1_interval: tuple[float, float] | None
    test_images: int
    fp32: Comparison | None  # the file beside the fp32 file of the same weights, on test images; None = it is fp32 itself
    latency: Mapping[str, Latency]
    anchors: Mapping[str, Anchor]
    host: Mapping[str, str]

    def __post_init__(self) -> None:
        if (self.top1 is None) != (self.top1_interval is None):
            raise ValueError("top1 and its interval belong together")
        if any(anchor.then_ms <= 0 or anchor.now_ms <= 0 for anchor in self.anchors.values()):
            raise ValueError("an anchor took no time")


@dataclass(frozen=True)
class Bench:
    """A bench.json."""

    rows: tuple[BenchRow, ...]
    host: Mapping[str, str]

    def __post_init__(self) -> None:
        for row in self.rows:
            times = (row.median_ms, row.low_ms, row.high_ms, row.p90_ms, row.p99_ms, row.images_per_second, row.clock)
            ratios = (row.fp32_ratio, row.fp32_ratio_low, row.fp32_ratio_high)
            if (None in times) != (row.error is not None) or len({value is None for value in ratios}) > 1:
                raise ValueError(f"rows: {row.device} at batch {row.batch_size} has neither all its times nor an error")


@dataclass(frozen=True)
class Rounding:
    """What leaving fp32 cost when it was exported, on images of a split; how it was done."""

    images: int
    split: str
    top1: float
    top1_fp32: float
    agreement: float
    sqnr_db: float
    drop_interval: tuple[float, float] | None = None
    method: str | None = None  # of ranges of activations
    bias_corrected: bool = False
    finetune_epochs: int = 0


@dataclass(frozen=True)
class Export:
    """A bundle, all of it as it was exported."""

    record: Mapping[str, Any]  # model.json
    digests: Mapping[str, str]
    rounding: Rounding | None  # None = fp32
    proof: Proof | None
    bench: Bench | None
    faults: tuple[str, ...]  # what is wrong with results that could not be read

    @property
    def precision(self) -> str:
        return str(self.record["precision"])

    @property
    def size_bytes(self) -> int:
        return int(self.record["size_bytes"])

    @property
    def order(self) -> tuple[bool, int]:
        """Sorts fp32 first, then the largest file."""
        return self.precision != "fp32", -self.size_bytes

    def is_predicted(self, device: str) -> bool:
        """Whether what is predicted for a device is of files of this precision: fp32's latency says nothing of int8's."""
        try:
            return make_device(self.record["devices"][device], Path("model.json")).graph_precision == self.precision
        except (KeyError, DeviceError):  # a table from elsewhere does not say
            return self.precision == "fp32"


def read_export(bundle: Bundle) -> Export:
    """Read what a bundle says of itself. Results that are damaged count as not there, with the reason: they can be had again.

    Raises:
        ArtefactError: if model.json is damaged.
    """
    with reading(bundle.path / "model.json"):
        rounding = bundle.record["quantisation"]
        rounding = None if rounding is None else build(Rounding, rounding)
    proof, proof_fault = _result(bundle, "verify.json", _proof)
    bench, bench_fault = _result(bundle, "bench.json", _bench)
    return Export(bundle.record, bundle.digests, rounding, proof, bench, tuple(filter(None, (proof_fault, bench_fault))))


def _result(bundle: Bundle, name: str, read: Callable[[Bundle, Path], Result]) -> tuple[Result | None, str]:
    """Return a result, or None and what is wrong with it, "" = it is not there."""
    path = bundle.path / name
    if not bundle.has(name):  # or it is, and is not what SHA256SUMS lists
        return None, f"{path}: is not the file that was written there" if path.exists() else ""
    try:
        return read(bundle, path), ""
    except ArtefactError as error:
        return None, str(error)


def _proof(bundle: Bundle, path: Path) -> Proof:
    record = parse_json(bundle.read(path.name), path, schema=REPORT_SCHEMA)
    with reading(path):
        limits = tuple(parse_limit(text) for text in record["limits"])
        return replace(build(Proof, {**record, "limits": ()}), limits=limits)


def _bench(bundle: Bundle, path: Path) -> Bench:
    record = parse_json(bundle.read(path.name), path, schema=BENCH_SCHEMA)
    with reading(path):
        return build(Bench, record)
