"""Accuracy of subnets: extracted from the supernet, BatchNorm re-calibrated, on images held out of training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.artefacts import append_jsonl, read_jsonl
from ofa.progress import progress
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.supernet import Supernet
from ofa.training.data import Images
from ofa.training.evaluation import evaluate

CALIBRATION_IMAGES = 1_000
GROUP = 8  # architectures that are measured together
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
                for group in self._groups(todo):
                    train, validation = self._images
                    found = evaluate(
                        self._supernet,
                        [todo[key] for key in group],
                        train,
                        validation,
                        self.run.preprocess,
                        num_calibration=CALIBRATION_IMAGES,
                    )
                    for key, top1 in zip(group, found, strict=True):
                        self._known[key] = top1
                        append_jsonl(self.journal, {"key": key, "values": list(todo[key].values), "top1": top1})
                        advance(note=f"top-1 {top1:.4f}")
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

    def _groups(self, todo: Mapping[str, ArchConfig]) -> Iterator[list[str]]:
        """Split architectures into groups that begin alike, small enough that an interruption costs little."""
        keys = list(todo)
        ids = self.run.space.block_ids(self.run.space.encode(list(todo.values())))
        ordered = [keys[i] for i in np.lexsort(ids.T[::-1])]
        for start in range(0, len(ordered), GROUP):
            yield ordered[start : start + GROUP]

    def _key(self, arch: ArchConfig) -> str:
        return hashlib.sha256(f"{self._context}|{arch.values!r}".encode()).hexdigest()[:32]

    @cached_property
    def _context(self) -> str:
        """Weights, data, protocol and precision as text."""
        protocol = {"calibration_images": CALIBRATION_IMAGES, "validation_images": MAX_VALIDATION_IMAGES, "precision": "fp32"}
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


def _is_trial(record: dict[str, object]) -> bool:
    value = record.get("top1")
    return isinstance(record.get("key"), str) and isinstance(value, float | int) and math.isfinite(value) and 0 <= value <= 1
