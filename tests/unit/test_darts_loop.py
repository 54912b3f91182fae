"""The search loop: deterministic, stopped and gone on with to the bit, flat in memory, and stopped by losses that are no numbers."""

import gc
import itertools
import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.artefacts import read_json
from ofa.errors import OfaError
from ofa.genotype import parse_genotype
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.training.checkpoint import list_checkpoints, load_training, newest_checkpoint
from ofa.training.data import load_images
from search.joint import bilevel, stepping
from search.joint.config import DartsConfig
from search.joint.darts import search_images
from search.joint.guards import Guards
from search.joint.images import split_halves
from search.joint.record import read_search

TINY = {"cells": 3, "channels": 4, "resolution": 16, "epochs": 3, "batch_size": 8, "max_images": 60}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def search(out, *, resume=False, **settings):
    return search_images("digits", out, config=DartsConfig(**{**TINY, **settings}), resume=resume)


def alphas(out):
    return {k: v for k, v in load_training(newest_checkpoint(Path(out) / "nas")).items() if k.startswith("alphas|")}


def metrics(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_search(out).metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing interrupted."""
    torch.set_num_threads(1)
    return search(tmp_path_factory.mktemp("nas") / "whole", guards=Guards(skip_drop=0.3)).path


@contextmanager
def stopped_after(steps):
    """As if Ctrl-C was pressed in that step."""
    count = itertools.count(1)

    @contextmanager
    def stop():
        yield lambda: next(count) >= steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "stop_after_step", stop)
        yield


def test_a_search_writes_what_the_rest_of_the_toolkit_reads(whole):
    run, record = Run(whole), read_search(whole)
    genotype = parse_genotype((whole / "genotype.txt").read_text())
    arch = run.space.from_json(read_json(whole / "arch.json", schema=ARCH_SCHEMA))
    assert run.space_name == "darts:resolution=16"
    assert get_space("darts:resolution=16", num_classes=10).from_genotype(genotype) == arch
    assert "seal" in json.loads((whole / "arch.json").read_text())
    assert record.genotype == str(genotype)
    assert [decided.epoch for decided in record.decided] == [0, 1, 2, 3]
    assert [set(line) >= {"loss", "alpha_loss", "alpha_top1", "lr"} for line in record.metrics] == [True] * 3
    assert record.decided[-1].genotype == str(genotype)
    assert sum(np.array(record.decided[-1].probabilities["normal"])[3]) == pytest.approx(1, abs=1e-4)  # five digits each
    assert (whole / "cells.svg").read_text().startswith("<svg")


def test_a_stopped_search_goes_on_to_the_same_bits(whole, tmp_path):
    out, guards = tmp_path / "stopped", Guards(skip_drop=0.3)
    with stopped_after(4), pytest.raises(KeyboardInterrupt):  # in the middle of the second epoch of three steps
        search(out, guards=guards)
    assert [c.step for c in list_checkpoints(out / "nas")] == [3, 4]
    search(out, resume=True, guards=guards)
    for name, value in alphas(whole).items():
        assert torch.equal(alphas(out)[name], value)
    assert (out / "genotype.txt").read_text() == (whole / "genotype.txt").read_text()
    assert (out / "nas" / "alphas.jsonl").read_text() == (whole / "nas" / "alphas.jsonl").read_text()
    assert metrics(out) == metrics(whole)


@pytest.mark.parametrize("where", ["search.joint.record.write_json", "search.joint.record.Run.create"])
def test_a_search_that_died_before_it_began_begins_anew(where, tmp_path, monkeypatch):
    def dies(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, dies)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "x", epochs=1)
    monkeypatch.undo()
    assert (search(tmp_path / "x", epochs=1).path / "genotype.txt").exists()


@pytest.mark.parametrize("order", ["2", "exact"])
def test_second_order_goes_on_to_the_same_bits(order, tmp_path):
    settings = {"order": order, "epochs": 1, "max_images": 40}
    search(tmp_path / "a", **settings)
    with stopped_after(1), pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", **settings)
    search(tmp_path / "b", resume=True, **settings)
    assert all(torch.equal(alphas(tmp_path / "b")[k], v) for k, v in alphas(tmp_path / "a").items())


def test_another_seed_is_another_search(whole, tmp_path):
    search(tmp_path / "x", seed=1, guards=Guards(skip_drop=0.3))
    assert not torch.equal(alphas(tmp_path / "x")["alphas|normal"], alphas(whole)["alphas|normal"])


def test_a_finished_search_is_left_as_it_is(whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    search(whole, resume=True, guards=Guards(skip_drop=0.3))
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("resume", "settings", "message"),
    [
        (False, {}, "already holds a search; add --resume auto"),
        (True, {}, "guards is .* but the search began with"),
        (True, {"seed": 3}, "data's seed is 3, but the search began with 0; use that, or another --out"),
        (True, {"guards": Guards(skip_drop=0.3), "epochs": 4}, "epochs is 4, but the search began with 3"),
    ],
)
def test_other_settings_do_not_go_on(whole, resume, settings, message):
    with pytest.raises(OfaError, match=message):
        search(whole, resume=resume, **settings)


def test_weights_and_alphas_learn_from_different_images_of_all_classes():
    train = load_images("digits", "train")
    first, second = split_halves(train, DartsConfig(batch_size=16))
    assert abs(len(first) - len(second)) <= 10
    assert len(first) + len(second) == len(train)
    seen = {image.numpy().tobytes() for image in first.images}
    assert sum(image.numpy().tobytes() in seen for image in second.images) <= 2  # digits of 8 x 8 px may be equal
    assert set(first.labels.tolist()) == set(second.labels.tolist()) == set(range(10))
    few = split_halves(train, DartsConfig(batch_size=16, max_images=100))
    assert abs(sum(map(len, few)) - 100) <= 10
    assert set(few[0].labels.tolist()) == set(range(10))


def test_alphas_wait_for_the_weights(tmp_path):
    out = search(tmp_path / "x", guards=Guards(warmup_epochs=2)).path
    decided, metrics = read_search(out).decided, read_search(out).metrics
    assert decided[0].probabilities == decided[1].probabilities == decided[2].probabilities
    assert decided[3].probabilities != decided[2].probabilities
    assert ["alpha_loss" in line for line in metrics] == [False, False, True]


def test_the_search_ends_with_too_many_skips_and_stays_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(Guards, "ends", lambda self, epoch, skips: "3 skips" if epoch == 0 else None)
    out = search(tmp_path / "x", epochs=3).path
    assert [line["epoch"] for line in read_search(out).metrics] == [1]
    search(out, epochs=3, resume=True)
    assert [line["epoch"] for line in read_search(out).metrics] == [1]
    assert (out / "genotype.txt").exists()


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real = bilevel.BilevelSearch.one_step
    monkeypatch.setattr(bilevel.BilevelSearch, "one_step", lambda self: real(self) if self.step < 4 else (float("nan"), 1.0))
    with pytest.raises(
        OfaError, match=r"loss is nan .* at step 4; the checkpoint of step 3 is kept; start again with a lower --lr"
    ):
        search(tmp_path / "x")
    assert [c.step for c in list_checkpoints(tmp_path / "x" / "nas")] == [3]


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    real = bilevel.BilevelSearch.one_step

    def one_step(self):
        found = real(self)
        if self.step == 5:  # the last of an epoch: no further loss would tell
            self.alphas["normal"].data[0, 0] = float("inf")
        return found

    monkeypatch.setattr(bilevel.BilevelSearch, "one_step", one_step)
    with pytest.raises(OfaError, match="not finite after step"):
        search(tmp_path / "x")
    assert [c.step for c in list_checkpoints(tmp_path / "x" / "nas")] == [3]


@pytest.mark.parametrize("order", ["1", "2"])
def test_memory_stays_flat(order, tmp_path, monkeypatch):
    """No tensor and no page is left over by a step; the first steps fill buffers and caches."""
    counts, pages = [], []
    real = bilevel.BilevelSearch.one_step

    def one_step(self):
        found = real(self)
        if self.step % 5 == 4:
            gc.collect()
            counts.append(sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects()))
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return found

    monkeypatch.setattr(bilevel.BilevelSearch, "one_step", one_step)
    settings = {"max_images": 240 if order == "1" else 160, "epochs": 2 if order == "1" else 1, "channels": 2, "resolution": 8}
    search(tmp_path / "x", order=order, **settings)  # 30 steps, or 10
    assert len(counts) >= 2
    assert len(set(counts)) == 1
    assert pages[-1] - pages[0] < 8 * 1024  # KiB; the activations of the steps between are several times as much


def test_latency_pulls_towards_fast_operations(tmp_path):
    from latency.cost import CountCost
    from ofa.spaces import darts

    model = CountCost("macs", darts.SPACE.with_numbers(cells=5, channels=4))
    config = DartsConfig(**TINY, alpha_lr=0.05, target_ms=1e3, latency_weight=100.0)  # "ms" are MACs here
    pulled = search_images("digits", tmp_path / "a", config=config, latency=model).path
    costs = [line["expected_ms"] for line in read_search(pulled).metrics]
    assert costs == sorted(costs, reverse=True)
    last = np.array(read_search(pulled).decided[-1].probabilities["normal"]).mean(0)
    assert last[3] > last[5]  # skip, sep_conv_5x5
    for settings, latency, message in (
        ({"target_ms": 3.0}, None, "target_ms is 3, but there is no latency table; give --target-ms and --table, or neither"),
        ({}, model, "there is a latency table, but no target; give --target-ms and --table, or neither"),
        ({"latency_weight": 2.0}, None, "latency_weight is 2, .* give --target-ms and --table, or leave it out"),
    ):
        with pytest.raises(OfaError, match=message):
            search_images("digits", tmp_path / "b", config=DartsConfig(**TINY, **settings), latency=latency)
    assert not (tmp_path / "b").exists()


def test_nasbench201_goes_the_same_way(tmp_path):
    out = search(tmp_path / "x", space="nasbench201", cells=1, epochs=2).path
    record = read_search(out)
    assert record.genotype.startswith("|")
    assert list(record.decided[-1].probabilities) == ["cell"]
    assert Run(out).space_name == "nasbench201:resolution=16"
