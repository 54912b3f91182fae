"""Accuracy of subnets: extracted from the supernet, BatchNorm re-calibrated, on images held out of training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ofa.artefacts import append_jsonl, read_jsonl
from ofa.progress import progress
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate, top1
from ofa.training.data import Images, calibration_batches

CALIBRATION_IMAGES = 1_000
MAX_VALIDATION_IMAGES = 5_000


class AccuracyModel(Protocol):
    """Anything that tells the top-1 accuracy of architectures."""

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return top-1 in [0, 1], (n,)."""
        ...


class SupernetAccuracy:
    """Top-1 on the run's validation images, kept in a journal that all searches of the run share.

    The journal's key holds everything that the number depends on, so that another limit, another device or another day costs no
    evaluation that was made before, and new weights never meet old numbers.
    """

    def __init__(self, run: Run, journal: Path) -> None:
        self.run, self.journal = run, journal
        self._known = {r["key"]: r["top1"] for r in read_jsonl(journal) if _is_trial(r)}

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return top-1 in [0, 1], (n,), measuring what the journal does not hold."""
        population = self.run.space.canonical(self.run.space.encode(archs))
        canonical = self.run.space.decode(population)
        keys = [self._key(arch) for arch in canonical]
        todo = {key: arch for key, arch in zip(keys, canonical, strict=True) if key not in self._known}
        if todo:
            with progress("measuring accuracy", len(todo)) as advance:
                for key, arch in todo.items():
                    self._known[key] = self._measure(arch)
                    append_jsonl(self.journal, {"key": key, "values": list(arch.values), "top1": self._known[key]})
                    advance(note=f"top-1 {self._known[key]:.4f}")
        return np.array([self._known[key] for key in keys])

    def count_known(self, archs: Sequence[ArchConfig]) -> int:
        """Count the architectures that the journal already holds."""
        canonical = self.run.space.decode(self.run.space.canonical(self.run.space.encode(archs)))
        return sum(self._key(arch) in self._known for arch in canonical)

    def all_known(self) -> list[ArchConfig]:
        """Return every architecture that was measured with these weights and data."""
        archs = []
        for record in read_jsonl(self.journal):
            if _is_trial(record) and isinstance(record.get("values"), list):
                arch = ArchConfig(self.run.space.name, tuple(record["values"]))
                if len(arch.values) == len(self.run.space.dimensions) and self._key(arch) == record["key"]:
                    archs.append(self.run.space.check(arch))
        return list(dict.fromkeys(archs))

    def _measure(self, arch: ArchConfig) -> float:
        resolution = self.run.space.resolution(arch)
        net = self._supernet.extract(arch).to(memory_format=torch.channels_last)
        if resolution not in self._calibration:
            train, preprocess = self._images[0], self.run.preprocess
            self._calibration[resolution] = calibration_batches(train, preprocess, resolution, num_images=CALIBRATION_IMAGES)
        calibrate(net, self._calibration[resolution])
        return top1(net, self._images[1], self.run.preprocess, resolution)

    def _key(self, arch: ArchConfig) -> str:
        return hashlib.sha256(f"{self._context}|{arch.values!r}".encode()).hexdigest()[:32]

    @cached_property
    def _context(self) -> str:
        """Weights, data and protocol as text."""
        protocol = [CALIBRATION_IMAGES, MAX_VALIDATION_IMAGES]
        data = {name: value for name, value in asdict(self.run.data).items() if name != "source"}  # its digest is what counts
        return json.dumps([self.run.space.name, self.run.weights_sha256, data, protocol], sort_keys=True)

    @cached_property
    def _supernet(self) -> Supernet:
        return self.run.load_supernet()

    @cached_property
    def _images(self) -> tuple[Images, Images]:
        train, validation = self.run.load_train_and_validation()
        chosen = np.random.default_rng(0).permutation(len(validation))[:MAX_VALIDATION_IMAGES]
        return train, validation.subset(np.sort(chosen))

    @cached_property
    def _calibration(self) -> dict[int, list[torch.Tensor]]:
        return {}


def _is_trial(record: dict[str, object]) -> bool:
    value = record.get("top1")
    return isinstance(record.get("key"), str) and isinstance(value, float | int) and math.isfinite(value) and 0 <= value <= 1
