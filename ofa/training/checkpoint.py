"""Checkpoints: safetensors and JSON in a directory that appears whole or not at all.

What a step does is a function of (weights, optimiser state, seed, step), so these four are all there is to keep.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ofa.artefacts import ArtefactError, read_json, sha256_of, sync_directory, write_bytes, write_json

SCHEMA = "ofa.checkpoint/1"
KEEP = 2  # the newest, and the one before it should the newest be damaged


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood: `step` optimiser steps are done."""

    path: Path
    step: int


def save_checkpoint(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Checkpoint:
    """Write step_NNNNNN/ with model.safetensors, optimizer.safetensors and state.json; drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:06d}"
    temporary = folder / f".{target.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {"model.safetensors": net.state_dict(), "optimizer.safetensors": _optimizer_tensors(net, optimizer)}
        for name, tensors in files.items():
            write_bytes(temporary / name, save({key: value.contiguous() for key, value in tensors.items()}))
        digests = {name: sha256_of(temporary / name) for name in files}
        write_json(temporary / "state.json", {"schema": SCHEMA, "step": step, "sha256": digests})
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync_directory(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old.path, ignore_errors=True)
    return Checkpoint(target, step)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name[5:].isdigit()]
    return sorted((Checkpoint(path, int(path.name[5:])) for path in found), key=lambda c: c.step)


def load_checkpoint(checkpoint: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Load weights (and optimiser state) in place and return the step.

    Raises:
        ArtefactError: if a file is missing, damaged (its SHA-256 differs) or of another network.
    """
    state = read_json(checkpoint.path / "state.json", schema=SCHEMA)
    if state.get("step") != checkpoint.step:
        raise ArtefactError(f"{checkpoint.path}: state.json says step {state.get('step')!r}; it is damaged")
    model = _read_tensors(checkpoint.path / "model.safetensors", state)
    fits = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in model.items()}
    if fits != found:
        odd = sorted(name for name in fits.keys() | found.keys() if fits.get(name) != found.get(name))[0]
        raise ArtefactError(
            f"{checkpoint.path}: weights are of another network: {odd} has shape {found.get(odd)}, expected {fits.get(odd)}"
        )
    net.load_state_dict(model)
    if optimizer is not None:
        _load_optimizer(net, optimizer, _read_tensors(checkpoint.path / "optimizer.safetensors", state))
    return checkpoint.step


def load_latest(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Load the newest checkpoint and return its step.

    Raises:
        ArtefactError: if there is none, or if it is damaged; the message names the newest good one.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ArtefactError(f"{folder}: no checkpoint inside; train first (ofa train)")
    try:
        return load_checkpoint(checkpoints[-1], net, optimizer)
    except ArtefactError as error:
        good = [c.path.name for c in checkpoints[:-1] if _is_intact(c)]
        advice = (
            f"{good[-1]} is good: remove {checkpoints[-1].path.name} to go on from it" if good else "no other checkpoint is good"
        )
        raise ArtefactError(f"{error}; {advice}") from None


def _is_intact(checkpoint: Checkpoint) -> bool:
    try:
        state = read_json(checkpoint.path / "state.json", schema=SCHEMA)
        for name in ("model.safetensors", "optimizer.safetensors"):
            _read_tensors(checkpoint.path / name, state)
    except ArtefactError:
        return False
    return True


def _read_tensors(path: Path, state: dict[str, object]) -> dict[str, Tensor]:
    digests = state.get("sha256")
    expected = digests.get(path.name) if isinstance(digests, dict) else None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from None
    if sha256_of(path) != expected:
        raise ArtefactError(f"{path}: damaged (its SHA-256 is not the one in state.json)")
    try:
        return load(content)
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: not a safetensors file ({error})") from None


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the state to "<parameter name>|<key>"; a value that is None is left out."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _load_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(net.named_parameters())
    for flat, value in tensors.items():
        name, _, key = flat.rpartition("|")
        state = optimizer.state[parameters[name]]
        # a layout other than the parameter's would change the order of the optimiser's sums
        state[key] = torch.empty_like(parameters[name]).copy_(value) if value.shape == parameters[name].shape else value
