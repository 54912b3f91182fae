"""Verify an exported file: is it whole, does it compute what PyTorch computes, how accurate is it, is it fast enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.bundle import open_bundle
from deploy.card import render_card
from deploy.checks import Check, wilson_interval
from deploy.comparison import Comparison
from deploy.file_under_test import FileUnderTest
from deploy.timing import Latency
from deploy.verify_latency import TimedFile
from ofa.artefacts import format_json
from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import host_facts

REPORT_SCHEMA = "ofa.verification/2"


class VerificationError(OfaError):
    """The file breaks what it promises."""

    exit_code = 4


@dataclass(frozen=True)
class Verification:
    """All checks of one file."""

    path: Path
    checks: tuple[Check, ...]
    top1: float | None  # on test images; None: there are none
    latency: dict[str, Latency]
    fp32: Comparison | None = None  # the file beside the fp32 file of the same weights, on test images; None: it is fp32 itself

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
    """Check an exported file and write verify.json beside it.

    Args:
        path: a bundle that an export wrote, or the model.onnx in it.
        data: images whose test split is classified; None = the data that the run was trained on.
        limits: what the file must keep, e.g. "latency@ort_cpu_1t <= 3ms"; None = the limits it was searched under. A latency
            without a device is of every one of `devices`, or of ort_cpu_1t.
        devices: further devices to time it on.
        seconds: how long to time it on each.

    Raises:
        OfaError: if files are missing, damaged or of another kind.
    """
    subject = FileUnderTest(open_bundle(path), limits, devices)  # every SHA-256 is checked before anything is parsed
    test = subject.load_test_images(data)
    checks = [*subject.check_file(), *subject.check_parity()]
    accuracy = fp32 = None
    if test is not None:
        accuracy, fp32 = subject.accuracy_on(test)
        checks += subject.judge_accuracy(accuracy, fp32, len(test), data)
    checks += subject.check_costs()
    timed = subject.time_it(seconds)
    checks += subject.judge_latency(timed)
    latency = {name: found.latency for name, found in timed.items()}
    verification = Verification(subject.path, tuple(checks), accuracy, latency, fp32)
    _write(subject, verification, timed, 0 if test is None else len(test))
    return verification


def _write(subject: FileUnderTest, verification: Verification, timed: Mapping[str, TimedFile], test_images: int) -> None:
    """Write verify.json, and the proof into the model card."""
    interval = None if verification.top1 is None else wilson_interval(verification.top1, test_images)
    report = {
        "schema": REPORT_SCHEMA,
        "sha256": subject.record["sha256"],
        "precision": subject.record["precision"],
        "ok": verification.ok,
        "top1": verification.top1,
        "top1_interval": interval,
        "test_images": test_images,
        "fp32": None if verification.fp32 is None else asdict(verification.fp32),
        "latency": {name: asdict(found.latency) for name, found in timed.items()},
        "anchors": {name: asdict(found.anchor) for name, found in timed.items() if found.anchor is not None},
        "limits": [str(limit) for limit in subject.limits],
        "checks": [asdict(check) for check in verification.checks],
        "host": host_facts(),
    }
    card = render_card(subject.record, report)
    try:
        subject.bundle.add({"verify.json": format_json(report), "MODEL_CARD.md": card.encode()})
    except OSError as failure:  # a folder that may only be read: the result is still worth having
        say(f"warning: {subject.bundle.path / 'verify.json'} could not be written ({failure.strerror})")
