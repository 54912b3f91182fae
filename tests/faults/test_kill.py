"""SIGKILL at any moment: training goes on and ends bitwise where an uninterrupted run ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Forks a process for every attempt, so that fifty of them cost seconds: the imports happen once.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
from ofa.training.checkpoint import list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.data import load_images
from ofa.training.loop import train_supernet
from ofa.artefacts import sha256_of

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
settings = json.loads(sys.argv[3])
load_images("digits", "train")


def start(out):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            train_supernet("mbv3_tiny_image", "digits", out, config=TrainConfig(**settings), resume=True, device="cpu")
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid


def digest(out):
    (*_, last) = list_checkpoints(out / "supernet")
    return last.step, sha256_of(last.path / "model.safetensors"), sha256_of(last.path / "training.safetensors")


began = time.monotonic()
assert os.waitpid(start(folder / "straight"), 0)[1] == 0
whole = time.monotonic() - began
expected = digest(folder / "straight")
rng = random.Random(0)
done = {"kills": 0, "runs": 0, "different": 0, "unresumable": 0, "steps": []}
while done["kills"] < kills:
    out = folder / f"run{done['runs']}"
    done["runs"] += 1
    while True:
        pid = start(out)
        patience = rng.uniform(0, whole / 4) if done["kills"] < kills else 1e9
        deadline = time.monotonic() + patience
        status = None
        while time.monotonic() < deadline:
            finished, status = os.waitpid(pid, os.WNOHANG)
            if finished:
                break
            status = None
            time.sleep(0.001)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done["kills"] += 1
            checkpoints = list_checkpoints(out / "supernet")
            done["steps"].append(checkpoints[-1].step if checkpoints else 0)
            continue
        if status != 0:
            done["unresumable"] += 1
        break
    done["different"] += digest(out) != expected
print(json.dumps(done))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "progressive", "epochs": 12, "batch_size": 256, "crop_scale": 0.5, "ema_decay": 0.9, "dropout": 0.1},
        {"recipe": "attentive", "epochs": 8, "batch_size": 256, "optimizer": "adamw", "mixup": 0.2, "drop_connect": 0.1},
    ],
    ids=["progressive", "attentive"],
)
def test_training_survives_being_killed_at_any_moment(tmp_path, settings):
    kills = int(os.environ.get("OFA_KILLS", "20"))
    command = [sys.executable, "-c", SCRIPT, tmp_path, kills, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, timeout=280)
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert finished.returncode == 0, finished.stderr + log[-3000:]
    found = json.loads(finished.stdout)
    assert found["kills"] >= kills
    assert (found["unresumable"], found["different"]) == (0, 0), log[-3000:]
    assert len(set(found["steps"])) > 3  # killed at early and at late moments
