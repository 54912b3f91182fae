"""Verify an exported file: is it whole, does it compute what PyTorch computes, how accurate is it, is it fast enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch.utils.flop_counter import FlopCounterMode

from deploy.device import DeviceSpec, get_device, list_devices, make_device
from deploy.export import MODEL_SCHEMA, PARITY_TOLERANCE, REFERENCE_DEVICE, parity_error
from deploy.footprint import block_file_bytes, block_peak, frame_file_bytes
from deploy.integrity import require_self_contained
from deploy.limits import PRECISIONS, Limit, format_value, parse_limit
from deploy.runtimes import Session, open_session
from deploy.timing import Latency, clock_of, measure
from ofa.artefacts import ArtefactError, read_json, sha256_of, write_json
from ofa.blocks import build_chain
from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import host_facts
from ofa.space import SearchSpace
from ofa.spaces import get_space
from ofa.training.calibration import top1
from ofa.training.data import Preprocessing, load_images

REPORT_SCHEMA = "ofa.verification/1"
MAX_ROUNDS = 4  # a limit inside the interval is measured again, each time longer


class VerificationError(OfaError):
    """The file breaks what it promises."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the file and its answer."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of one file."""

    path: Path
    checks: tuple[Check, ...]
    top1: float | None
    latency: dict[str, Latency]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def raise_if_failed(self) -> None:
        """Raise VerificationError, naming the first broken promise."""
        for check in self.checks:
            if not check.ok:
                raise VerificationError(f"{self.path}: {check.name} failed: {check.detail}")


def verify_model(
    path: Path | str,
    *,
    data: str | None = None,
    limits: Sequence[str] | None = None,
    devices: Sequence[str] = (),
    seconds: float = 3.0,
) -> Verification:
    """Check an exported file and write verification.json beside it.

    Args:
        path: a model.onnx with the model.json, model.safetensors that `export_subnet` wrote beside it.
        data: images whose test split is classified; None = the data that the run was trained on.
        limits: what the file must keep, e.g. "latency@ort_cpu_1t <= 3ms"; None = the limits it was searched under.
        devices: further devices to time it on.
        seconds: how long to time it on each.
    Raises:
        OfaError: if files are missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file, expected an exported model.onnx")
    record = _read_record(path.with_suffix(".json"))
    wanted = [parse_limit(text) for text in (record["limits"] if limits is None else limits)]
    specs = _devices(record, [limit for limit in wanted if limit.quantity == "latency"], devices, path)
    digest = sha256_of(path)
    if digest != record["sha256"]:
        raise ArtefactError(
            f"{path}: SHA-256 is {digest[:16]}..., model.json says {str(record['sha256'])[:16]}...; "
            "the file is damaged or another one"
        )
    content = path.read_bytes()
    require_self_contained(content, path)  # before a runtime follows any reference
    reference = open_session(content, get_device(REFERENCE_DEVICE))
    net, pre = _rebuild(path, record), record["preprocess"]
    resolution = int(pre["resolution"])
    checks = [Check("file", True, f"{len(content) / 2**20:.2f} MiB, SHA-256 as exported, all weights inside")]
    error = parity_error(net, reference, resolution)
    tolerance = f"differs from PyTorch by {error:.1e} of the largest logit (limit {PARITY_TOLERANCE:.0e})"
    checks.append(Check("parity", error <= PARITY_TOLERANCE, tolerance))

    source = data or str(record["data"])
    test = load_images(source, "test", size=int(pre["stored_size"]), classes=tuple(record["classes"]))
    preprocess = Preprocessing(tuple(pre["mean"]), tuple(pre["std"]), flip=False)
    accuracy = top1(lambda x: torch.from_numpy(reference.run(np.ascontiguousarray(x.numpy()))), test, preprocess, resolution)
    low, high = wilson_interval(accuracy, len(test))
    detail = f"top-1 {accuracy:.4f} on {len(test)} test images of {source} (95% CI {low:.4f}-{high:.4f})"
    checks += _judge("accuracy", detail, [limit for limit in wanted if limit.quantity == "top1"], accuracy)
    for quantity, value in _count(net, resolution).items():
        bounds = [limit for limit in wanted if limit.quantity == quantity]
        checks += _judge(quantity, format_value(quantity, value), bounds, value) if bounds else []
    for limit in wanted:
        if limit.quantity in ("memory", "size"):
            value, how = _footprint(limit, content, record)
            checks += _judge(limit.key, f"{format_value(limit.quantity, value)} ({how})", [limit], value)

    stored = "int8" if b"QuantizeLinear" in content else "fp32"
    other = {name: spec for name, spec in specs.items() if spec.graph_precision == "int8" != stored and name not in devices}
    for limit in wanted:
        if limit.quantity == "energy":
            checks.append(_predicted(limit, record, "energy is not measured here"))
        elif limit.device in other:
            checks.append(
                _predicted(limit, record, f"{limit.device} is of int8 files, this one is {stored}, so it was not timed")
            )
        elif limit.device and limit.device not in specs:
            checks.append(_predicted(limit, record, f"{limit.device} is not this machine, so the file was not timed on it"))

    latency: dict[str, Latency] = {}
    for name, spec in specs.items():
        if name in other:
            continue
        bounds = [limit for limit in wanted if limit.device == name]
        images = np.random.default_rng(0).standard_normal((spec.batch_size, 3, resolution, resolution), dtype=np.float32)
        found = _measure_against(bounds, open_session(content, spec), images, clock_of(spec), seconds)
        latency[name] = found
        interval = f"95% CI {found.low_ms:.4g}-{found.high_ms:.4g}"
        detail = f"{found.median_ms:.4g} ms median of {found.n} runs, {found.clock} time ({interval})"
        if f"latency@{name}" in record["predicted"]:
            detail += f", predicted {record['predicted'][f'latency@{name}']:.4g} ms"
        checks += _judge(f"latency@{name}", detail, bounds, found.high_ms)

    verification = Verification(path, tuple(checks), accuracy, latency)
    report = {
        "schema": REPORT_SCHEMA,
        "sha256": digest,
        "ok": verification.ok,
        "top1": accuracy,
        "top1_interval": [low, high],
        "test_images": len(test),
        "latency": {name: asdict(value) for name, value in latency.items()},
        "limits": [str(limit) for limit in wanted],
        "checks": [asdict(check) for check in checks],
        "host": host_facts(),
    }
    try:
        write_json(path.parent / "verification.json", report)
    except OSError as failure:  # a folder that may only be read: the result is still worth having
        say(f"warning: {path.parent / 'verification.json'} could not be written ({failure.strerror})")
    return verification


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927); stays in [0, 1] and holds near its ends."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _rebuild(path: Path, record: dict[str, Any]) -> torch.nn.Module:
    """The PyTorch network that was exported, from its architecture and weights."""
    space = _space(record)
    net = build_chain(space.blocks(space.from_values(record["arch"])), bn_eps=space.bn_eps)
    weights = path.with_suffix(".safetensors")
    try:
        net.load_state_dict(load(weights.read_bytes()))
    except OSError as error:
        raise ArtefactError(
            f"{weights}: cannot be read ({error.strerror}); parity needs the weights that were exported"
        ) from None
    except (SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"{weights}: not the weights of this model ({str(error).splitlines()[0]})") from None
    return net.eval()


def _space(record: dict[str, Any]) -> SearchSpace:
    return get_space(record["space"], num_classes=len(record["classes"]))


def _read_record(path: Path) -> dict[str, Any]:
    """Read model.json; a file that lacks what verification needs is refused here, by name."""
    record = read_json(path, schema=MODEL_SCHEMA)
    wanted = {"sha256": str, "space": str, "arch": dict, "classes": list, "preprocess": dict, "data": str}
    for name, kind in wanted.items():
        if not isinstance(record.get(name), kind):
            raise ArtefactError(f"{path}: {name} is {record.get(name)!r}, expected a {kind.__name__}; the file is damaged")
    pre = record["preprocess"]
    sizes_ok = all(isinstance(pre.get(name), int) and pre[name] > 0 for name in ("resolution", "stored_size"))
    stats = [pre.get("mean"), pre.get("std")]
    if not sizes_ok or not all(isinstance(s, list) and len(s) == 3 and all(isinstance(v, float | int) for v in s) for s in stats):
        raise ArtefactError(f"{path}: preprocess is {pre!r}, expected resolution, stored_size, mean and std; the file is damaged")
    return {"limits": [], "predicted": {}, "devices": {}, **record}


def _devices(record: dict[str, Any], wanted: list[Limit], further: Sequence[str], path: Path) -> dict[str, DeviceSpec]:
    """The devices to time on, by name: those given as files, those that travel with the model, those that ship."""
    given = {spec.name: spec for spec in map(get_device, (name for name in further if name.endswith(".toml")))}
    here = [limit.device for limit in wanted if limit.device and not _is_elsewhere(limit.device, record)]
    specs = dict(given)
    for name in [*here, *(name for name in further if not name.endswith(".toml"))]:
        if name not in specs:
            specs[name] = make_device(record["devices"][name], path) if name in record["devices"] else get_device(name)
    return specs


def _predicted(limit: Limit, record: dict[str, Any], why: str) -> Check:
    """Hold a limit against what the search predicted, where nothing can be measured; and say so."""
    value = record["predicted"].get(limit.key)
    if not isinstance(value, float | int):
        raise OfaError(f"limit {str(limit)!r}: {why}, and no prediction came with the file; leave the limit out")
    detail = (
        f"predicted {format_value(limit.quantity, value, digits=4)}; {why}, limit {format_value(limit.quantity, limit.bound)}"
    )
    return Check(limit.key, limit.allows(value), detail)


def _is_elsewhere(name: str, record: dict[str, Any]) -> bool:
    """Whether a device is one that only a latency table of the run knows: measured on another machine, or imported."""
    return name not in record["devices"] and name not in list_devices() and f"latency@{name}" in record["predicted"]


def _judge(name: str, detail: str, limits: list[Limit], value: float) -> list[Check]:
    """One check for every limit; without a limit, one that only states the value."""
    if not limits:
        return [Check(name, True, detail)]
    return [Check(name, limit.allows(value), f"{detail}, limit {format_value(limit.quantity, limit.bound)}") for limit in limits]


@torch.no_grad()
def _count(net: torch.nn.Module, resolution: int) -> dict[str, float]:
    """Parameters and multiply-adds by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, resolution, resolution))
    return {"params": float(sum(p.numel() for p in net.parameters())), "macs": counter.get_total_flops() / 2}


def _footprint(limit: Limit, content: bytes, record: dict[str, Any]) -> tuple[float, str]:
    """Return a file's size or its network's peak of activations in bytes, and how it is known."""
    precision, stored = limit.precision or "fp32", "int8" if b"QuantizeLinear" in content else "fp32"
    if limit.quantity == "size" and precision == stored:
        return float(len(content)), "of this file"
    space = _space(record)
    blocks = space.blocks(space.from_values(record["arch"])).values()
    if limit.quantity == "size":
        return float(frame_file_bytes(space) + sum(block_file_bytes(spec, precision) for spec in blocks)), "computed"
    return float(PRECISIONS[precision] * max(map(block_peak, blocks))), "activations of one image, computed"


def _measure_against(limits: list[Limit], session: Session, images: NDArray[np.float32], clock: str, seconds: float) -> Latency:
    """Measure; while a limit lies inside the confidence interval, measure twice as long again."""
    call = session.prepare(images)
    found = measure(call, clock=clock, seconds=seconds)
    for round_ in range(1, MAX_ROUNDS):
        undecided = [limit for limit in limits if found.low_ms <= limit.bound <= found.high_ms]
        if not undecided:
            break
        say(f"{undecided[0]}: measured {found.low_ms:.4g}-{found.high_ms:.4g} ms, undecided; measuring longer")
        found = measure(call, clock=clock, seconds=seconds * 2**round_)
    return found
