"""Fixtures that several tests share. The trained run is tiny and made once in a process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of the tiny space: two epochs on digits, profiled, searched, exported. Tests must not change it."""
    from deploy.export import export_subnet
    from latency.profile import ProfileConfig, profile_device
    from ofa.training.config import TrainConfig
    from ofa.training.loop import train_supernet
    from search.run import search_run

    out = tmp_path_factory.mktemp("run") / "digits"
    run = train_supernet("mbv3_tiny_image", "digits", out, config=TrainConfig(epochs=2, batch_size=64))
    profile_device(run, "ort_cpu_1t", config=ProfileConfig(rounds=5))
    search_run(run, ["params <= 0.2M"], evals=20, rounds=2)
    export_subnet(out / "search" / "best", out / "export" / "best")
    return run


@pytest.fixture
def cli():
    """Run `ofa` in a process of its own, as a user does; returns the finished process."""

    def run(*arguments, timeout=120, **kwargs):
        command = [sys.executable, "-c", "from search.cli import main; main()", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, **kwargs)

    return run


@pytest.fixture
def image_folder(tmp_path):
    """A small task: train/ and test/ with two classes of 24 px images, dark and bright."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for label, level in (("bright", 180), ("dark", 60)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def random_archs():
    """Return a function (space, n, seed) -> architectures to sweep."""
    from ofa.counts import macs

    def draw(space, n, seed=0):
        """Largest, smallest and random architectures; of large networks fewer, at their smallest input, for the sake of time."""
        population = np.concatenate([space.encode([space.largest, space.smallest]), space.sample(np.random.default_rng(seed), n)])
        if macs(space, population[:1])[0] > 200e6:
            population[:, space.column["resolution"]] = 0
            population = population[: 2 + n // 3]
        return space.decode(population)

    return draw
