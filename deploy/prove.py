"""Prove: what an export measures of the file that it wrote, so that the bundle carries it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.bench import BenchRow, bench_models
from deploy.bundle import open_bundle
from deploy.device import list_devices
from deploy.file_under_test import DEFAULT_DEVICE, FileUnderTest
from deploy.verify import Verification, verify_model
from ofa.artefacts import write_bytes

BATCH_SIZES = (1, 8)


def prove(
    path: Path | str, *, data: str | None = None, devices: Sequence[str] = (), seconds: float = 3.0
) -> tuple[list[BenchRow], Verification]:
    """Time a bundle's file, beside the fp32 file of the same weights where it is another, and verify it.

    Writes bench.json and verify.json.

    Args:
        path: a bundle that an export wrote, or the model.onnx in it.
        data: images whose test split is classified; None = the data that the run was trained on.
        devices: to time it on; none = those of its limits, or ort_cpu_1t.
        seconds: how long, on each device at each batch size.
    """
    subject = FileUnderTest(open_bundle(path), [], devices)
    with tempfile.TemporaryDirectory() as folder:
        files = [subject.path]
        if not subject.is_fp32 and subject.fp32_content is not None:
            files.append(Path(folder) / "fp32.onnx")
            write_bytes(files[-1], subject.fp32_content)
        limited = [name for name in subject.record["devices"] if name in list_devices()]
        rows = bench_models(files, list(devices) or limited or [DEFAULT_DEVICE], batch_sizes=BATCH_SIZES, seconds=seconds)
    return rows, verify_model(path, data=data, devices=devices, seconds=seconds)
