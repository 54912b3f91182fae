"""The whole job in minutes on data that scikit-learn brings along: what `ofa demo` runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.export import export_subnet
from deploy.limits import format_value, parse_limit
from deploy.verify import Verification, verify_model
from latency.profile import profile_device
from latency.table import LatencyTable
from ofa.progress import say
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.report import write_report
from search.run import search_run

SPACE, DEVICE = "mbv3_tiny_image", "ort_cpu_1t"
# where the two limits lie between the fastest and the slowest network of the space
LIMITS = {"fast": 0.2, "accurate": 0.8}


def run_demo(out: Path, *, epochs: int = 20, evals: int = 60) -> dict[str, Verification]:
    """Train, profile, search under two limits, export, verify and report; returns the verification of each file.

    Interrupted, the same call goes on where it was.

    Raises:
        VerificationError: if a file breaks its limit or computes something else than PyTorch.
    """
    say("1/6 train an elastic supernet on 1,348 handwritten digits of scikit-learn")
    # a quarter held out: with fewer images the accuracy of good networks could not be told apart
    run = train_supernet(
        SPACE, "digits", out, config=TrainConfig(epochs=epochs, batch_size=64), resume=True, validation_fraction=0.25
    )
    say(f"2/6 measure every block of the space on this machine ({DEVICE})")
    table = profile_device(run, DEVICE)
    say(f"    error on whole networks it was not fitted to: {table.error}")
    limits = limits_between(table, LIMITS)
    verified = {}
    for step, (tag, limit) in enumerate(limits.items()):
        say(f"{3 + step}/6 search, export and verify under {limit}")
        search_run(run, [limit], tag=tag, evals=evals)
        model = export_subnet(run.path / "search" / tag / "best", run.path / "export" / tag)
        verified[tag] = verify_model(model.path)
        for check in verified[tag].checks:
            say(f"    {'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    say("5/6 the two files, side by side")
    broken = verified["accurate"].latency[DEVICE].low_ms > parse_limit(limits["fast"]).bound
    for tag, found in verified.items():
        size = found.path.stat().st_size / 2**10
        milliseconds = found.latency[DEVICE].median_ms
        say(f"    {tag:9} {size:6.0f} KiB, {milliseconds:.3g} ms, top-1 {found.top1:.4f} on test images, {limits[tag]}")
    if broken:
        say(f"    the accurate one breaks {limits['fast']}, which the fast one keeps")
    say(f"6/6 report: {write_report(run)}")
    for found in verified.values():
        found.raise_if_failed()
    return verified


def limits_between(table: LatencyTable, shares: Mapping[str, float]) -> dict[str, str]:
    """Name limits by where they lie between the fastest (0) and the slowest (1) network of the space on a device."""
    ends = table.upper(table.space.encode([table.space.smallest, table.space.largest]))
    low, high = float(ends.min()), float(ends.max())
    return {
        tag: f"latency@{table.device} <= {format_value('latency', low + share * (high - low))}" for tag, share in shares.items()
    }
