"""Fixtures that several tests share. The trained run is tiny and made once in a process."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(scope="session")
def digits_network():
    """A network of a few thousand weights that knows digits: blocks, folded weights, images and preprocessing."""
    import torch
    from torch.nn import functional as F

    from deploy.fold import fold
    from ofa.block_spec import BlockSpec
    from ofa.blocks import build_network
    from ofa.training.data import Preprocessing, load_images, split_validation

    torch.manual_seed(0)
    blocks = {
        "stem": BlockSpec("conv", 3, 8, 8, kernel_size=3, act="h_swish"),
        "block0": BlockSpec("mbconv", 8, 12, 8, hidden_channels=16, kernel_size=3, stride=2, act="relu"),
        "block1": BlockSpec("mbconv", 12, 12, 4, hidden_channels=24, kernel_size=3, act="h_swish", se=True, shortcut="identity"),
        "pool": BlockSpec("pool", 12, 12, 4),
        "head": BlockSpec("linear", 12, 10, 1, bias=True),
    }
    train, validation = split_validation(load_images("digits", "train"), fraction=0.3, seed=0)
    preprocess = Preprocessing.of(train, flip=False)
    net, images = build_network(blocks).train(), preprocess(train.images, 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(15):
        for chosen in torch.randperm(len(train)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen]), train.labels[chosen]).backward()
            optimizer.step()
    return SimpleNamespace(
        blocks=blocks, weights=fold(net.eval()), train=train, validation=validation, preprocess=preprocess, resolution=8
    )
