"""Verify an exported file: is it whole, does it compute what PyTorch computes, how accurate is it, is it fast enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load

from deploy.device import get_device, make_device
from deploy.export import MODEL_SCHEMA, PARITY_TOLERANCE, REFERENCE_DEVICE, parity_error
from deploy.limits import Limit, format_value, parse_limit
from deploy.runtimes import Session, open_session
from deploy.timing import Latency, clock_of, measure
from ofa.artefacts import ArtefactError, read_json, sha256_of, write_json
from ofa.blocks import build_chain
from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import host_facts
from ofa.spaces import get_space
from ofa.training.data import Images, Preprocessing, in_batches, load_images

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
    record = read_json(path.with_suffix(".json"), schema=MODEL_SCHEMA)
    wanted = [parse_limit(text) for text in (record.get("limits", []) if limits is None else limits)]
    names = list(dict.fromkeys([*(limit.device for limit in wanted if limit.device), *devices]))
    known = record.get("devices", {})
    specs = {name: make_device(known[name], path) if name in known else get_device(name) for name in names}
    digest = sha256_of(path)
    if digest != record["sha256"]:
        raise ArtefactError(
            f"{path}: SHA-256 is {digest[:16]}..., model.json says {str(record['sha256'])[:16]}...; "
            "the file is damaged or another one"
        )
    content = path.read_bytes()
    checks = [Check("file", True, f"{len(content) / 2**20:.2f} MiB, SHA-256 as exported"), _check_self_contained(content)]

    reference = open_session(content, get_device(REFERENCE_DEVICE))
    resolution = int(record["preprocess"]["resolution"])
    error = parity_error(_rebuild(path, record), reference, resolution)
    checks.append(
        Check(
            "parity",
            error <= PARITY_TOLERANCE,
            f"differs from PyTorch by {error:.1e} of the largest logit (limit {PARITY_TOLERANCE:.0e})",
        )
    )

    source = data or str(record["data"])
    test = load_images(source, "test", max_size=resolution)
    if list(test.classes) != record["classes"]:
        raise OfaError(
            f"{source}: classes {', '.join(test.classes[:5])}... are not the model's "
            f"{', '.join(record['classes'][:5])}...; give --data"
        )
    accuracy = _top1(reference, test, record)
    low, high = wilson_interval(accuracy, len(test))
    bound = next((limit for limit in wanted if limit.quantity == "top1"), None)
    promise = f", limit {bound}" if bound else ""
    checks.append(
        Check(
            "accuracy",
            bound is None or bound.allows(accuracy),
            f"top-1 {accuracy:.4f} on {len(test)} test images of {source} (95% CI {low:.4f}-{high:.4f}){promise}",
        )
    )

    latency: dict[str, Latency] = {}
    predicted = record.get("predicted", {})
    for name, spec in specs.items():
        limit = next((limit for limit in wanted if limit.device == name), None)
        shape = (spec.batch_size, 3, resolution, resolution)
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        latency[name] = _measure_against(limit, open_session(content, spec), images, clock_of(spec), seconds)
        checks.append(_check_latency(name, latency[name], limit, predicted.get(f"latency@{name}")))

    found = Verification(path, tuple(checks), accuracy, latency)
    write_json(
        path.parent / "verification.json",
        {
            "schema": REPORT_SCHEMA,
            "sha256": digest,
            "ok": found.ok,
            "top1": accuracy,
            "top1_interval": [low, high],
            "test_images": len(test),
            "latency": {name: asdict(value) for name, value in latency.items()},
            "limits": [str(limit) for limit in wanted],
            "checks": [asdict(check) for check in checks],
            "host": host_facts(),
        },
    )
    return found


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927); stays in [0, 1] and holds near its ends."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _check_self_contained(content: bytes) -> Check:
    """Refuse tensors kept outside the file: they could read any path of the machine that loads it."""
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's errors share no base with onnx's
        raise ArtefactError(f"not an ONNX file ({str(error).splitlines()[0][:100]})") from None
    outside = [t.name for t in model.graph.initializer if t.external_data or t.data_location == onnx.TensorProto.EXTERNAL]
    return Check(
        "self-contained", not outside, "all weights inside" if not outside else f"weights outside the file: {outside[0]}"
    )


def _rebuild(path: Path, record: dict[str, Any]) -> torch.nn.Module:
    """The PyTorch network that was exported, from its architecture and weights."""
    space = get_space(record["space"], num_classes=len(record["classes"]))
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


def _top1(session: Session, test: Images, record: dict[str, Any]) -> float:
    pre = record["preprocess"]
    preprocess = Preprocessing(tuple(pre["mean"]), tuple(pre["std"]), flip=False)
    right = 0
    for images, labels in in_batches(test, 250):
        inputs = preprocess(images, int(pre["resolution"])).contiguous().numpy()
        right += int((session.run(np.ascontiguousarray(inputs)).argmax(1) == labels.numpy()).sum())
    return right / len(test)


def _measure_against(limit: Limit | None, session: Session, images: NDArray[np.float32], clock: str, seconds: float) -> Latency:
    """Measure; while the limit lies inside the confidence interval, measure twice as long again."""
    call = session.prepare(images)
    found = measure(call, clock=clock, seconds=seconds)
    for round_ in range(1, MAX_ROUNDS):
        if limit is None or not found.low_ms <= limit.bound <= found.high_ms:
            break
        say(f"{limit}: measured {found.low_ms:.4g}-{found.high_ms:.4g} ms, undecided; measuring longer")
        found = measure(call, clock=clock, seconds=seconds * 2**round_)
    return found


def _check_latency(device: str, found: Latency, limit: Limit | None, predicted: float | None) -> Check:
    detail = (
        f"{found.median_ms:.4g} ms median of {found.n} runs, {found.clock} time (95% CI {found.low_ms:.4g}-{found.high_ms:.4g})"
    )
    if predicted is not None:
        detail += f", predicted {predicted:.4g} ms"
    if limit is None:
        return Check(f"latency@{device}", True, f"{detail}, no limit")
    return Check(f"latency@{device}", found.high_ms <= limit.bound, f"{detail}, limit {format_value('latency', limit.bound)}")
