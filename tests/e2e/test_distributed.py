"""Two processes train one supernet: the same gradients as one, the same weights on both, and nothing lost when one dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ofa.training.checkpoint import list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet

ROOT = Path(__file__).parents[2]

# Some steps of a process in float64, where the order of sums is no matter; the last gradients as a file for each rank.
GRADIENTS = """
import sys
import torch
from safetensors.torch import save_file
from ofa.run_dir import Run
from ofa.training.config import TrainConfig
from ofa.training.distributed import join
from ofa.training.optimizer import make_optimizer
from ofa.training.trainer import Trainer

run, out, steps, batch, lr = Run(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
config = TrainConfig(batch_size=batch, epochs=2, clip_norm=0)

class Doubled:
    flip = run.data.flip

    def __call__(self, images, resolution):
        return run.preprocess(images, resolution).double()

with join("cpu") as world:
    trainer = Trainer(run, config, *run.load_train_and_validation(), run.preprocess, world, sync_batchnorm=True)
    trainer.net.double()
    trainer.optimizer = make_optimizer(trainer.net, config)
    for p in trainer.net.parameters():  # blocks are born as identities: let gradients reach everything
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    trainer.preprocess = Doubled()
    for trainer.step in range(steps):
        trainer.one_step(trainer.phases[0], lr, stop=False)
    tensors = {f"grad {n}": p.grad for n, p in trainer.net.named_parameters() if p.grad is not None}
    tensors |= {n: p.detach() for n, p in trainer.net.named_parameters()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, f"{out}.{world.rank}")
"""


def launch(processes, *command, **kwargs):
    """Start a command under torchrun, or alone."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--no-python"]
    prefix = [sys.executable, *launcher, sys.executable] if processes > 1 else [sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*prefix, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def finish(process, timeout=120):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    return train_supernet("mbv3_tiny_image", "digits", out, config=TrainConfig(epochs=1, batch_size=1024))


def gradients(run, out, processes, *, steps, batch, lr):
    finish(launch(processes, "-c", GRADIENTS, run.path, out, steps, batch, lr))
    return [load_file(f"{out}.{rank}") for rank in range(processes)]


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(empty_run, tmp_path):
    """An odd batch: one process has 17 images, the other 16, and nobody waits for ever."""
    (alone,) = gradients(empty_run, tmp_path / "one", 1, steps=1, batch=33, lr=0)
    together = gradients(empty_run, tmp_path / "two", 2, steps=1, batch=33, lr=0)
    names = [name for name in alone if name.startswith("grad ")]
    assert len(names) > 100
    for name in names:
        difference = (alone[name] - together[0][name]).abs().max()
        assert difference <= 1e-6 * alone[name].abs().max() + 1e-12, f"{name}: {difference}"


def test_processes_hold_bitwise_equal_weights_after_some_steps(empty_run, tmp_path):
    first, second = gradients(empty_run, tmp_path / "two", 2, steps=5, batch=33, lr=0.1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_errors_of_the_first_process_are_told_once_and_end_all(empty_run):
    main = "from search.cli import main; main()"
    command = ["train", "--space", "mbv3_tiny_image", "--data", "digits", "--out", empty_run.path, "--batch-size", "64"]
    process = launch(2, "-c", main, *command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("already holds a trained run") == 1
    assert "gloo" not in output.lower()


def test_synchronised_batchnorm_works_in_reduced_precision(tmp_path):
    main = "from search.cli import main; main()"
    command = ["train", "--space", "mbv3_tiny_image", "--data", "digits", "--out", tmp_path / "a", "--epochs", "1"]
    finish(launch(2, "-c", main, *command, "--batch-size", "512", "--sync-batchnorm", "--precision", "bf16"))


def train_together(out, *extra):
    main = "from search.cli import main; main()"
    arguments = ["train", "--space", "mbv3_tiny_image", "--data", "digits", "--out", out, "--recipe", "progressive"]
    arguments += ["--epochs", "12", "--batch-size", "128", "--resume", "auto", *extra]
    return launch(2, "-c", main, *arguments, start_new_session=True)


def workers(launcher):
    """Processes that torchrun started, by rank order of birth."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in children]


@pytest.mark.slow
def test_a_killed_process_costs_nothing_but_time(tmp_path):
    output = finish(train_together(tmp_path / "a"))
    assert re.search(r"on 2 processes", output)
    assert output.count("epoch 12/12") == 1  # the other process is silent
    interrupted = train_together(tmp_path / "b")
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path / "b" / "supernet") and time.monotonic() < deadline:
        time.sleep(0.02)
    victims = workers(interrupted)
    assert len(victims) == 2
    os.kill(victims[-1], signal.SIGKILL)
    interrupted.communicate(timeout=120)
    assert interrupted.returncode != 0
    reached = list_checkpoints(tmp_path / "b" / "supernet")[-1].step
    finish(train_together(tmp_path / "b"))
    ends = [list_checkpoints(tmp_path / name / "supernet")[-1] for name in "ab"]
    assert ends[0].step == ends[1].step > reached
    first, second = (load_file(end.path / "model.safetensors") for end in ends)
    assert all(torch.equal(first[name], second[name]) for name in first)
