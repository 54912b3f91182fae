"""Damaged files: cut short, a bit flipped, 64 zero bytes, 16 bytes of garbage. Each is refused in one line that names the file.

200 of each kind for every file; OFA_FUZZ_FILES=2000 makes it ten times as many.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from deploy.bundle import open_bundle, write_bundle
from latency.open import open_latency
from latency.table import LatencyTable
from ofa.artefacts import read_json, write_json
from ofa.errors import OfaError
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.training.checkpoint import load_latest, load_training, newest_checkpoint, save_checkpoint

FILES = int(os.environ.get("OFA_FUZZ_FILES", "200"))
SPACE = get_space("mbv3_tiny_image")


@dataclass(frozen=True)
class Case:
    """A file, and what reads it."""

    path: Path
    load: Callable[[], object]


def damage_bytes(content, kind, rng):
    """Damage a file's content; never so that it stays as it was."""
    while True:
        if kind == "truncate":
            damaged = content[: rng.integers(len(content))]
        elif kind == "flip":
            at = rng.integers(len(content))
            damaged = content[:at] + bytes([content[at] ^ 1 << rng.integers(8)]) + content[at + 1 :]
        else:
            put = bytes(64) if kind == "zeros" else rng.bytes(16)
            at = rng.integers(len(content) - len(put) + 1)
            damaged = content[:at] + put + content[at + len(put) :]
        if damaged != content:
            return damaged


# -- the files ------------------------------------------------------------------------------------------------------


def bundle_part(name):
    def make(folder):
        net = torch.nn.Linear(30, 20)
        content = {
            "model.onnx": np.random.default_rng(0).bytes(3000),
            "model.json": b"{}",
            "model.safetensors": save(net.state_dict()),
        }
        write_bundle(folder, content | {"labels.txt": b"cat\n"})
        return Case(folder / name, lambda: open_bundle(folder))

    return make


def checkpoint_part(name):
    def make(folder):
        net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        momentum = {"momentum": torch.ones(3, 30)}
        checkpoint = save_checkpoint(folder, net.state_dict(), 12, training=momentum, score=0.25, extra={"seconds": 3.5})

        def load():
            load_latest(folder, net)
            load_training(newest_checkpoint(folder))

        return Case(checkpoint.path / name, load)

    return make


def latency_table(folder):
    entries = {spec: 0.1 + i / 7 for i, spec in enumerate(SPACE.all_blocks)}
    provenance = {"host": {"cpu": "a processor"}, "command": "ofa profile", "measured": "2024-02-03"}
    LatencyTable(SPACE, "pi4", entries, margin=0.1, provenance=provenance).save(folder / "pi4.json")
    return Case(folder / "pi4.json", lambda: open_latency(folder / "pi4.json", SPACE))


def architecture(folder):
    path = folder / "arch.json"
    write_json(path, SPACE.to_json(SPACE.smallest), sealed=True)
    return Case(path, lambda: SPACE.from_json(read_json(path, schema=ARCH_SCHEMA)))


CASES = {
    "ONNX file": bundle_part("model.onnx"),
    "safetensors": bundle_part("model.safetensors"),
    "SHA256SUMS": bundle_part("SHA256SUMS"),
    "checkpoint weights": checkpoint_part("model.safetensors"),
    "checkpoint training": checkpoint_part("training.safetensors"),
    "checkpoint state": checkpoint_part("state.json"),
    "latency table": latency_table,
    "architecture": architecture,
}


@pytest.mark.parametrize("kind", ["truncate", "flip", "zeros", "garbage"])
@pytest.mark.parametrize("name", CASES)
def test_damaged_files_are_refused_in_one_line(name, kind, tmp_path):
    case = CASES[name](tmp_path)
    case.load()
    good, rng = case.path.read_bytes(), np.random.default_rng([*name.encode(), *kind.encode()])
    for _ in range(FILES):
        content = damage_bytes(good, kind, rng)
        case.path.write_bytes(content)
        with pytest.raises(OfaError) as caught:  # any other exception, or none, fails the test
            case.load()
        message = str(caught.value)
        assert message.isprintable(), message
        assert case.path.name in message
    case.path.write_bytes(good)
    case.load()


def test_damage_always_damages():
    rng = np.random.default_rng(0)
    for content in (bytes(200), bytes(64) + b"a", b"\0" * 100 + b"x" * 3):
        for kind in ("truncate", "flip", "zeros", "garbage"):
            if kind != "zeros" or content.strip(b"\0"):
                assert damage_bytes(content, kind, rng) != content
