"""Checkpoints: safetensors and JSON in a directory that appears whole or not at all.

What a step does is a function of (weights, optimiser state, what the rule has observed, seed, step). The batch, its order and
augmentation, the subnets, the dropout masks and the learning rate are all drawn or computed from (seed, step), so no generator's
state has to be kept.

step_NNNNNN/model.safetensors      the weights to use: the moving averages, where training keeps them
            training.safetensors   optimiser, rule, and the weights themselves where those above are averages
            state.json             step, score, SHA-256 of both
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ofa.artefacts import ArtefactError, read_json, sha256_of, sync_directory, write_bytes, write_json

SCHEMA = "ofa.checkpoint/2"
MODEL, TRAINING = "model.safetensors", "training.safetensors"
KEEP = 2  # the newest, and the one before it should the newest be damaged
CHECKPOINT_SECONDS = 600.0  # longer epochs are saved in between


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood: `step` optimiser steps are done."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """Read state.json.

        Raises:
            ArtefactError: if it is missing or damaged.
        """
        state = read_json(self.path / "state.json", schema=SCHEMA)
        if state.get("step") != self.step:
            raise ArtefactError(f"{self.path}: state.json says step {state.get('step')!r}; it is damaged")
        return state


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    step: int,
    *,
    training: Mapping[str, Tensor] | None = None,
    score: float | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int = KEEP,
) -> Checkpoint:
    """Write step_NNNNNN/; drop all but the newest `keep` and the best.

    Args:
        training: whatever else training needs to go on.
        score: the larger the better; None = not measured at this step.
        extra: further facts for state.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:06d}"
    temporary = folder / f".{target.name}.partial"
    for left_over in folder.glob(".step_*.partial"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {MODEL: weights, TRAINING: training or {}}
        for name, tensors in files.items():
            write_bytes(temporary / name, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
        digests = {name: sha256_of(temporary / name) for name in files}
        state = {"schema": SCHEMA, "step": step, "score": score, "sha256": digests, **dict(extra or {})}
        write_json(temporary / "state.json", state, sealed=True)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync_directory(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise
    _drop_old(folder, keep)
    return Checkpoint(target, step)


def save_weights(folder: Path, net: nn.Module, step: int = 0) -> Checkpoint:
    """Write a checkpoint that holds weights and nothing to go on training with."""
    return save_checkpoint(folder, net.state_dict(), step)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name[5:].isdigit()]
    return sorted((Checkpoint(path, int(path.name[5:])) for path in found), key=lambda c: c.step)


def best_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint with the highest score, the newest of equals; None if none has a score."""
    scored = []
    for checkpoint in list_checkpoints(folder):
        with contextlib.suppress(ArtefactError):
            score = checkpoint.state().get("score")
            if isinstance(score, int | float):
                scored.append((score, checkpoint.step, checkpoint))
    return max(scored)[2] if scored else None


def load_weights(checkpoint: Checkpoint, net: nn.Module) -> None:
    """Load the weights to use, in place.

    Raises:
        ArtefactError: if a file is missing, damaged (its SHA-256 differs) or of another network.
    """
    copy_weights(net, _read_tensors(checkpoint.path / MODEL, checkpoint.state()), str(checkpoint.path))


def copy_weights(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a network that has just these.

    Raises:
        ArtefactError: naming the source and the first tensor that does not fit.
    """
    fits = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if fits != found:
        odd = sorted(name for name in fits.keys() | found.keys() if fits.get(name) != found.get(name))[0]
        raise ArtefactError(
            f"{source}: weights are of another network: {odd} has shape {found.get(odd)}, expected {fits.get(odd)}"
        )
    net.load_state_dict(dict(weights))


def load_training(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the `training` tensors of a checkpoint.

    Raises:
        ArtefactError: if the file is missing or damaged.
    """
    return _read_tensors(checkpoint.path / TRAINING, checkpoint.state())


def newest_checkpoint(folder: Path) -> Checkpoint:
    """Return the newest checkpoint after checking its digests.

    Raises:
        ArtefactError: if there is none, or if it is damaged; the message names the newest good one.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ArtefactError(f"{folder}: no checkpoint inside; train first (ofa train)")
    try:
        _check(checkpoints[-1])
    except ArtefactError as error:
        good = [c.path.name for c in checkpoints[:-1] if _is_intact(c)]
        advice = (
            f"{good[-1]} is good: remove {checkpoints[-1].path.name} to go on from it" if good else "no other checkpoint is good"
        )
        raise ArtefactError(f"{error}; {advice}") from None
    return checkpoints[-1]


def load_latest(folder: Path, net: nn.Module) -> int:
    """Load the newest checkpoint's weights and return its step.

    Raises:
        ArtefactError: see `newest_checkpoint` and `load_weights`.
    """
    checkpoint = newest_checkpoint(folder)
    load_weights(checkpoint, net)
    return checkpoint.step


def _drop_old(folder: Path, keep: int) -> None:
    best = best_checkpoint(folder)
    for old in list_checkpoints(folder)[: -max(1, keep)]:
        if old != best:
            shutil.rmtree(old.path, ignore_errors=True)


def _check(checkpoint: Checkpoint) -> None:
    state = checkpoint.state()
    for name in (MODEL, TRAINING):
        _read_tensors(checkpoint.path / name, state)


def _is_intact(checkpoint: Checkpoint) -> bool:
    try:
        _check(checkpoint)
    except ArtefactError:
        return False
    return True


def _read_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
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
