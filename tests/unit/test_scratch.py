"""Accuracy of architectures that are trained from scratch, each once."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import search.scratch
from ofa.errors import OfaError
from ofa.run_dir import DataSource, Run
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.data import Preprocessing, load_images, split_validation
from ofa.training.distributed import World
from ofa.training.evaluation import evaluate
from ofa.training.loop import train_supernet
from search.accuracy import CALIBRATION_IMAGES
from search.journal import JOURNAL, Journal
from search.scratch import Scratch, ScratchAccuracy, _share, train_from_scratch

SPACE = "nas_rl_cnn:layers=2,least_depth=1,resolution=8"
TINY = Scratch(TrainConfig(epochs=1, batch_size=64, warmup=0.0, lr_floor=1.0), last_epochs=1, max_images=256)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads differ in their last bits; worker processes have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images_run(path):
    """A run with images and a space, without weights."""
    images = load_images("digits", "train")
    train, _ = split_validation(images, fraction=0.1, seed=0)
    preprocess = Preprocessing.of(train, flip=False)
    source = DataSource.of("digits", images, preprocess, validation_fraction=0.1, seed=0)
    return Run.create(path, get_space(SPACE), source, None)


def points(n, seed=0):
    space = get_space(SPACE)
    return space.decode(space.sample(np.random.default_rng(seed), n))


def test_a_child_is_what_ofa_train_would_make_of_it(tmp_path):
    """With all images and the same settings, accuracy is the one that training alone ends with."""
    arch, config = points(1)[0], TrainConfig(epochs=2, batch_size=128, lr=0.05, seed=3)
    run = train_supernet(SPACE, "digits", tmp_path / "alone", arch=arch, config=config)
    train, validation = run.load_train_and_validation()
    world = World(0, 1, torch.device("cpu"))
    found = train_from_scratch(run, arch, train, validation, Scratch(config, last_epochs=1), world)
    expected = evaluate(run.load_supernet(), [arch], train, validation, run.preprocess, num_calibration=CALIBRATION_IMAGES)
    assert found == (expected[0], "")


def test_parallel_equals_in_process_and_nothing_is_trained_twice(tmp_path):
    run, archs = images_run(tmp_path / "run"), points(4)
    here = ScratchAccuracy(run, None, TINY)(archs)
    journal = run.path / JOURNAL
    told = []
    accuracy = ScratchAccuracy(run, journal, TINY, engine="joblib:2", on_result=lambda arch, top1: told.append((arch, top1)))
    with accuracy.engine:
        np.testing.assert_array_equal(accuracy(archs), here)
        assert sorted(top1 for _, top1 in told) == sorted(here.tolist())
        np.testing.assert_array_equal(accuracy([archs[2], archs[0]]), here[[2, 0]])
    assert len(told) == len(journal.read_text().splitlines()) == 4
    again = ScratchAccuracy(run, journal, TINY, engine="joblib:2")  # starts no worker: all is known
    np.testing.assert_array_equal(again(archs), here)
    assert {arch.values for arch in again.all_known()} == {arch.values for arch in archs}
    assert again.engine._pool is None


def test_other_settings_are_other_numbers(tmp_path):
    run = images_run(tmp_path / "run")
    known = Journal(None)
    keys = {
        ScratchAccuracy(run, known, scratch)._keys(points(1))[0]
        for scratch in (
            TINY,
            dataclasses.replace(TINY, max_images=128),
            dataclasses.replace(TINY, last_epochs=2),
            dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, seed=1)),
        )
    }
    assert len(keys) == 4


def test_the_best_of_the_last_epochs_counts(tmp_path, monkeypatch):
    run, arch = images_run(tmp_path / "run"), points(1)[0]
    told = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(search.scratch, "evaluate", lambda *_, **__: [next(told)])
    scratch = dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, epochs=6), last_epochs=3)
    assert ScratchAccuracy(run, None, scratch)([arch]) == [0.9]
    assert next(told, None) is None


def test_what_diverges_counts_as_guessing_and_is_not_tried_again(tmp_path, capsys):
    run = images_run(tmp_path / "run")
    wild = dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, lr=1e30, clip_norm=0.0, epochs=2))
    accuracy = ScratchAccuracy(run, run.path / JOURNAL, wild)
    assert accuracy(points(1)) == [0.1]
    assert "counts as guessing: its loss was" in capsys.readouterr().err
    assert json.loads((run.path / JOURNAL).read_text())["top1"] == 0.1


def test_what_fails_counts_as_guessing_and_the_next_search_tries_again(tmp_path, monkeypatch):
    run, archs = images_run(tmp_path / "run"), points(3)
    trained = []

    def fail_for_the_second(run, arch, *_):
        trained.append(arch)
        if arch == archs[1]:
            raise MemoryError("no room")
        return search.scratch.Trained(0.5)

    monkeypatch.setattr(search.scratch, "train_from_scratch", fail_for_the_second)
    accuracy = ScratchAccuracy(run, run.path / JOURNAL, TINY)
    assert accuracy(archs).tolist() == [0.5, 0.1, 0.5]
    assert accuracy(archs).tolist() == [0.5, 0.1, 0.5]
    assert trained == archs
    assert math.isclose(ScratchAccuracy(run, run.path / JOURNAL, TINY)(archs)[1], 0.1)
    assert trained == [*archs, archs[1]]


def test_a_search_in_which_nothing_can_be_trained_ends(tmp_path, monkeypatch):
    run = images_run(tmp_path / "run")

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(search.scratch, "train_from_scratch", fail)
    with pytest.raises(OfaError, match=r"3 architectures one after the other .* broken"):
        ScratchAccuracy(run, None, TINY)(points(8))


def test_a_share_has_every_class():
    images = load_images("digits", "train")
    some = _share(images, 200, np.random.default_rng(0))
    assert abs(len(some) - 200) <= 5  # rounded for each of ten classes
    counts = np.bincount(some.labels.numpy(), minlength=10)
    expected = np.bincount(images.labels.numpy(), minlength=10) * 200 / len(images)
    assert np.abs(counts - expected).max() <= 0.5
    assert len(_share(images, 3, np.random.default_rng(0))) == 10
    for number in (0, 10_000):
        assert _share(images, number, np.random.default_rng(0)) is images


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(OfaError, match="last_epochs 0"):
        Scratch(last_epochs=0)
    with pytest.raises(OfaError, match="progressive"):
        Scratch(TrainConfig(recipe="progressive"))
    published = Scratch().config
    assert (published.epochs, published.lr, published.weight_decay, published.lr_floor) == (50, 0.1, 1e-4, 1.0)
