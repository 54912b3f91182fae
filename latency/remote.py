"""Profile a device over ssh or adb: send the plan and the agent, watch it measure, fetch what it wrote.

Everything on the device lies in one folder that is named after the plan, with the agent's journal: however the connection
ends, the same command goes on where the device was.
"""

from __future__ import annotations

import hashlib
import queue
import re
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.device import DEVICE_NAME
from latency import agent
from ofa.artefacts import write_bytes
from ofa.errors import OfaError
from ofa.progress import say

SILENCE_S = 120.0  # the agent says something every ten seconds
TRANSFER_S = 300.0  # for a file of a megabyte
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")


class RemoteError(OfaError):
    """A device cannot be reached, or broke off."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A device with a shell."""

    name: str  # of its table
    kind: str  # "ssh" or "adb"
    target: str  # user@host, or a serial number
    python: str = "python3"

    @property
    def root(self) -> str:
        """The folder on the device under which everything lies."""
        return "/data/local/tmp/ofa-agent" if self.kind == "adb" else ".cache/ofa-agent"

    def argv(self, command: str) -> list[str]:
        """Return the local command that runs a shell command there."""
        if self.kind == "adb":
            return ["adb", "-s", self.target, "shell", "-T", command]
        return [*SSH, "--", self.target, command]


def parse_remote(text: str, *, python: str = "python3") -> Remote | None:
    """Read "pi4=ssh:pi@host" or "phone=adb:SERIAL"; None if the text is the name of a device of this machine.

    Raises:
        RemoteError: for any other text with "=", or a name or target that could be taken for something else.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return None
    kind, _, target = rest.partition(":")
    sound = re.fullmatch(DEVICE_NAME, name) and re.fullmatch(r"[A-Za-z0-9_.@:\[\]%][A-Za-z0-9_.@:\[\]%-]*", target)
    if kind not in ("ssh", "adb") or not sound:
        raise RemoteError(f"device {text!r}: expected NAME=ssh:USER@HOST or NAME=adb:SERIAL")
    return Remote(name, kind, target, python)


def measure_there(
    remote: Remote,
    plan: agent.Plan,
    out: Path,
    *,
    budget_s: float,
    rounds: int,
    fresh: bool = False,
    silence_s: float = SILENCE_S,
) -> Path:
    """Run a plan on a device and write its results to `out`.

    Raises:
        RemoteError: if the device cannot be reached, falls silent, or what it sent is not what it wrote.
    """
    if shutil.which(remote.argv("")[0]) is None:
        raise RemoteError(f"{remote.kind} is not installed here; it is what {remote.target} is reached by")
    folder = f"{remote.root}/{plan.id[:16]}"
    say(f"{remote.name}: sending the plan to {remote.target}:{folder}")
    _shell(remote, f"mkdir -p {folder}" + (f" && rm -f {folder}/results.json.journal" if fresh else ""))
    for name, data in (("agent.py", Path(agent.__file__).read_bytes()), ("plan.zip", agent.write_plan(plan))):
        _shell(remote, f"cat > {folder}/{name}.new && mv {folder}/{name}.new {folder}/{name}", given=data)
    digest = _watch(
        remote,
        f"cd {folder} && {shlex.quote(remote.python)} agent.py plan.zip -o results.json --budget {budget_s:g}s --rounds {rounds}",
        silence_s,
    )
    # a shell may greet: what counts stands after the mark
    mark = f"--ofa-{digest[:16]}--"
    _, _, data = _shell(remote, f"echo {mark}; cat {folder}/results.json").partition(f"{mark}\n".encode())
    if hashlib.sha256(data).hexdigest() != digest:
        raise RemoteError(
            f"{remote.name}: its results arrived damaged ({len(data)} bytes); "
            "give the same command again: nothing is measured twice"
        )
    write_bytes(out, data)
    return out


def _shell(remote: Remote, command: str, *, given: bytes = b"") -> bytes:
    """Run a command there and return what it prints."""
    try:
        done = subprocess.run(remote.argv(command), input=given, capture_output=True, timeout=TRANSFER_S, check=False)
    except subprocess.TimeoutExpired:
        raise RemoteError(f"{remote.name}: no answer from {remote.target} within {TRANSFER_S:.0f} s") from None
    if done.returncode:
        why = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RemoteError(f"{remote.name}: {remote.target} cannot be used: {why[:200]}")
    return done.stdout


def _watch(remote: Remote, command: str, silence_s: float) -> str:
    """Run the agent, repeat what it says, and return the SHA-256 of the file that it wrote."""
    lines: queue.Queue[str | None] = queue.Queue()
    printed: deque[str] = deque(maxlen=1)  # the last line of stdout; all of it must be read, or the agent would wait
    process = subprocess.Popen(
        remote.argv(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )

    def listen(stream: IO[str], take: Callable[[str], None], end: Callable[[], None]) -> threading.Thread:
        def read() -> None:
            for line in stream:
                take("".join(c for c in line.rstrip() if c.isprintable()))
            end()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    assert process.stdout is not None
    assert process.stderr is not None
    stdout = listen(process.stdout, printed.append, lambda: None)
    listen(process.stderr, lines.put, lambda: lines.put(None))
    last = ""
    try:
        while (line := lines.get(timeout=silence_s)) is not None:
            last = line or last
            say(f"  {remote.name}: {line}")
    except queue.Empty:
        raise RemoteError(
            f"{remote.name}: silent for {silence_s:.0f} s; what it measured is kept there: give the same command again"
        ) from None
    finally:
        _end(process)
    stdout.join(timeout=5)
    digest = printed[0] if printed else ""
    if process.returncode or not re.fullmatch("[0-9a-f]{64}", digest):
        why = last.removeprefix("error: ") or f"exit code {process.returncode}"
        raise RemoteError(f"{remote.name}: {why[:200]}; what it measured is kept there: give the same command again")
    return digest


def _end(process: subprocess.Popen[str]) -> None:
    """Give a process that has closed its output a moment to end, and end it if it does not."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
