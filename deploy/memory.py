"""Peak memory of loading and running a file on a device, measured in a process of its own that does nothing else.

The runtime is loaded first; what the process then takes above that, at its highest, is the file's: the bytes of the file, the
session, the activations, the batch of images. `main` is that process; it reads what to run from stdin.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.device import DeviceSpec
from deploy.runtimes import ModelError, open_session, runtime_version
from ofa.errors import OfaError

PACKAGES = Path(__file__).parent.parent
RUNS = 3  # the first two may still take memory: runtimes plan their buffers after they saw a run


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak in bytes above the loaded runtime; None where the system does not tell."""

    peak_bytes: int | None
    source: str  # "VmHWM": exact; "ru_maxrss": the growth of the highest peak so far, at least; "": not measured


def measure_peak(content: bytes, device: DeviceSpec, input_shape: tuple[int, ...]) -> PeakMemory:
    """Load and run a file on a device, in a child process.

    Args:
        content: the ONNX file.
        device: what to run it on.
        input_shape: of the batch, batch size first.
    Raises:
        ModelError: if the file cannot be loaded or run there, be it that the child was killed.
    """
    plan = {"device": device.model_dump(), "input_shape": list(input_shape)}
    # not -m: a folder of the user's that is named deploy would come first
    code = f"import sys; sys.path[0] = {str(PACKAGES)!r}; from deploy.memory import main; main()"
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(plan).encode() + b"\n" + content,
        capture_output=True,
        check=False,
    )
    if child.returncode:
        last_words = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = last_words[0][:200] if last_words else "the runtime failed, or memory ran out"
        raise ModelError(f"the process that ran it {_death(child.returncode)}: {why}")
    answer = json.loads(child.stdout.splitlines()[-1])  # libraries may print before it
    if "error" in answer:
        raise ModelError(answer["error"])
    return PeakMemory(**answer)


def _death(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _measure_here(device: DeviceSpec, input_shape: tuple[int, ...]) -> PeakMemory:
    """Load the file on stdin and run it; what it takes counts from here."""
    import numpy as np

    runtime_version(device.runtime)  # loads its library
    rng = np.random.default_rng(0)
    before = _reset_peak()
    call = open_session(sys.stdin.buffer.read(), device).prepare(rng.standard_normal(input_shape, dtype=np.float32))
    for _ in range(RUNS):
        call()
    return _peak_since(before)


def _reset_peak() -> tuple[str, int]:
    """Begin a measurement: return (source, bytes that the process holds already)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now (proc(5))
        return "VmHWM", _status("VmHWM")
    except OSError:  # no Linux, or one that allows it not
        return "ru_maxrss", _ru_maxrss()


def _peak_since(before: tuple[str, int]) -> PeakMemory:
    source, held = before
    grown = (_status("VmHWM") if source == "VmHWM" else _ru_maxrss()) - held
    # An old peak, of loading libraries or of the parent (Linux hands its down), may hide what the file took.
    return PeakMemory(grown, source) if grown > 0 else PeakMemory(None, "")


def _status(field: str) -> int:
    """Return a field of this process's /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _ru_maxrss() -> int:
    """Return the highest resident set so far in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def available_bytes() -> int | None:
    """Memory that may be taken without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def main() -> None:
    """Answer one plan."""
    plan: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    try:
        found = asdict(_measure_here(DeviceSpec.model_validate(plan["device"]), tuple(plan["input_shape"])))
    except OfaError as error:
        found = {"error": str(error)}
    except MemoryError:
        found = {"error": "does not fit into memory"}
    print(f"\n{json.dumps(found)}")
