"""What this machine is, as far as training and timing care."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from deploy.device import get_device, list_devices
from ofa.run_dir import host_facts

FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "asimddp",
    "fphp",
)
OPTIONAL = {"openvino": "a second runtime on Intel and AMD processors; pip install 'ofa-toolkit[openvino]'"}


def diagnose() -> tuple[dict[str, str], list[str]]:
    """Return (fact -> value, advice)."""
    import onnxruntime
    import torch

    facts = host_facts()
    advice = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    facts["cpu features"] = ", ".join(f for f in FEATURES if f in _cpu_flags()) or "unknown"
    facts["cores"] = f"{cores} usable of {os.cpu_count()}"
    facts["load average"] = f"{load:.2f}"
    facts["governor"] = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not exposed"
    facts["frequency"] = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq") or "not exposed"
    facts["cpu quota"] = _read("/sys/fs/cgroup/cpu.max") or "not exposed"
    facts["torch threads"] = str(torch.get_num_threads())
    facts["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["onnxruntime providers"] = ", ".join(onnxruntime.get_available_providers())
    facts["devices"] = ", ".join(list_devices())
    if load > 0.5 * cores:
        advice.append(f"load average {load:.1f} on {cores} cores: timings will be noisy; profile when the machine is quiet")
    if facts["governor"] not in ("performance", "not exposed"):
        advice.append(f"governor is {facts['governor']!r}: set 'performance' before profiling")
    advice += [
        f"device {name} wants {get_device(name).num_threads} threads, {cores} core(s) are usable"
        for name in list_devices()
        if get_device(name).num_threads > cores
    ]
    advice += [
        f"package {name} is not installed ({use})" for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is None
    ]
    return facts, advice


def _cpu_flags() -> set[str]:
    """Flags of the first processor in /proc/cpuinfo ("flags" on x86, "Features" on Arm)."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
