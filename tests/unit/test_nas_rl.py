"""Searches with reinforcement learning whose children are trained from scratch."""

import dataclasses
import json
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch

from ofa.artefacts import read_jsonl
from ofa.counts import block_macs
from ofa.errors import OfaError
from ofa.genotype import parse_genotype
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.spaces import get_space
from ofa.training.distributed import World
from search.joint import nas_rl
from search.joint.best import best_folders, write_best
from search.joint.controllers.conv import ConvController
from search.joint.nas_rl import ScratchSearch, search_nas_rl, train_commands
from search.joint.nas_rl_config import NasRlConfig
from search.joint.record import SearchError
from search.journal import JOURNAL

TINY = NasRlConfig(
    layers=3,
    least_layers=1,
    grow_every=2,
    resolution=8,
    children=6,
    batch_children=2,
    child_epochs=1,
    last_epochs=1,
    batch_size=64,
    max_images=192,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over several threads differ in their last bits; worker processes have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told:
    """Stands for ScratchAccuracy: accuracy by a formula, at once."""

    def __init__(self, run, *_, **__):
        self.run, self.space, self.chance = run, run.space, 0.1

    def __call__(self, archs):
        column = self.space.column["layer0.filter_height"]
        return np.array([0.9 if arch.values[column] == 7 else 0.3 for arch in archs])


@pytest.fixture
def told(monkeypatch):
    """Let accuracy be a formula."""
    monkeypatch.setattr(nas_rl, "ScratchAccuracy", Told)


def lines(run):
    """What metrics.jsonl says, without the time it took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(run.path / "nas" / "metrics.jsonl")]


def results(run):
    """Everything that a search found."""
    trials = sorted((line["key"], line["top1"]) for line in read_jsonl(run.path / JOURNAL))
    return lines(run), trials, json.loads((run.path / "arch.json").read_text())


def test_a_search_is_the_same_in_parallel_and_when_it_was_stopped(tmp_path, monkeypatch, capsys):
    whole = search_nas_rl("digits", tmp_path / "whole", config=TINY)
    expected = results(whole)
    assert [line["children"] for line in expected[0]] == [2, 4, 6]
    assert [line["depth"] for line in expected[0]] == [1, 3, 3]
    assert "update 3/3" in capsys.readouterr().err
    parallel = search_nas_rl("digits", tmp_path / "parallel", config=TINY, engine="joblib:2")
    assert results(parallel) == expected

    trained = []
    train = nas_rl.ScratchAccuracy._measure

    def stopped(self, todo):
        for found in train(self, todo):
            yield found
            trained.append(found[0])
            if len(trained) == 3:  # in the middle of the second update
                raise KeyboardInterrupt

    monkeypatch.setattr(nas_rl.ScratchAccuracy, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        search_nas_rl("digits", tmp_path / "stopped", config=TINY)
    assert not (tmp_path / "stopped" / "arch.json").exists()
    with pytest.raises(SearchError, match="--resume auto"):
        search_nas_rl("digits", tmp_path / "stopped", config=TINY)
    with pytest.raises(SearchError, match="children is 8, but the search began with 6"):
        search_nas_rl("digits", tmp_path / "stopped", config=dataclasses.replace(TINY, children=8), resume=True)
    again = search_nas_rl("digits", tmp_path / "stopped", config=TINY, resume=True)
    assert results(again) == expected
    assert len(trained) == len(set(trained)) == len(expected[1])  # no child twice
    finished = search_nas_rl("digits", tmp_path / "stopped", config=TINY, resume=True)
    assert results(finished) == expected


def test_the_best_children_are_kept_in_their_order(tmp_path):
    run = search_nas_rl("digits", tmp_path / "run", config=TINY)
    trials = [(line["top1"], line["values"]) for line in read_jsonl(run.path / JOURNAL)]
    ranked = [values for _, values in sorted(trials, key=lambda trial: -trial[0])]  # stable: the earlier of equal ones first
    space = Run(run.path).space
    folders = [run.path / "nas" / "best" / str(place) for place in range(1, 6)]
    for folder, values in zip(folders, ranked[:5], strict=True):
        record = json.loads((folder / "arch.json").read_text())
        assert space.from_json(record).values == tuple(values)
    assert (run.path / "arch.json").read_bytes() == (folders[0] / "arch.json").read_bytes()
    assert [f"best/{place} " in command for place, command in enumerate(train_commands(run), 1)] == [True] * 5
    assert "layer 1" in (run.path / "chain.svg").read_text()
    best = [line["best_top1"] for line in lines(run)]
    assert best == sorted(best)
    assert best[-1] == max(top1 for top1, _ in trials)


def test_rewards_are_cubed_and_compared_with_previous_ones(tmp_path, told):
    run = search_nas_rl("digits", tmp_path / "run", config=dataclasses.replace(TINY, children=24, baseline_decay=0.8))
    found = lines(run)
    for line in found:
        sevens = (line["top1"] - 0.3) / 0.6  # share of children whose accuracy is 0.9
        assert line["reward"] == pytest.approx(0.9**3 * sevens + 0.3**3 * (1 - sevens))
    assert found[0]["baseline"] == pytest.approx(found[0]["reward"])
    baseline = found[0]["reward"]
    for before, line in pairwise(found):
        baseline = 0.8 * baseline + 0.2 * before["reward"]
        assert line["baseline"] == pytest.approx(baseline)


def test_the_controller_learns_what_is_rewarded(tmp_path, told):
    config = dataclasses.replace(TINY, children=800, batch_children=8, controller_lr=0.01, layers=2, grow_every=10_000)
    found = lines(search_nas_rl("digits", tmp_path / "run", config=config))
    first, last = (np.mean([line["top1"] for line in part]) for part in (found[:10], found[-10:]))
    assert first < 0.6  # a quarter of the filters are 7 high: 0.45 is expected
    assert last > 0.85


def test_tokens_are_the_choices_of_the_space():
    config = dataclasses.replace(TINY, layers=9, least_layers=4, strides=3)
    space = config.open_space()
    controller = ConvController(space.layers, strides=space.strides)
    assert controller.options == tuple(space.num_options[2:].tolist())
    assert [config.depth(space, step) for step in range(5)] == [4, 6, 8, 9, 9]
    assert config.depth(get_space("nasbench201"), 0) is None


def test_children_have_the_depth_of_their_update(tmp_path, told, monkeypatch):
    drawn = []
    monkeypatch.setattr(Told, "__call__", lambda self, archs: drawn.append(archs) or np.full(len(archs), 0.5))
    run = search_nas_rl("digits", tmp_path / "run", config=TINY)
    space = Run(run.path).space
    for update, depth in enumerate((1, 3, 3)):
        for arch in drawn[update]:
            assert arch.values[space.column["depth"]] == depth
            assert [name for name in space.blocks(arch) if name.removeprefix("layer").isdecimal()] == [
                f"layer{i}" for i in range(depth)
            ]
            assert space.decode(space.canonical(space.encode([arch]))) == [arch]


def test_any_space_of_images_can_be_searched(tmp_path):
    config = dataclasses.replace(TINY, space="nasbench201:cells=1,channels=4,resolution=8", children=4)
    run = search_nas_rl("digits", tmp_path / "run", config=config)
    space = Run(run.path).space
    space.from_json(json.loads((run.path / "arch.json").read_text()))
    assert "depth" not in lines(run)[0]
    assert (run.path / "network.svg").read_text().startswith("<svg")
    cells = dataclasses.replace(config, space="darts:cells=3,channels=2,resolution=8", children=2)
    found = search_nas_rl("digits", tmp_path / "cells", config=cells)
    space = Run(found.path).space
    arch = space.from_json(json.loads((found.path / "arch.json").read_text()))
    assert space.from_genotype(parse_genotype((found.path / "genotype.txt").read_text())) == arch


def test_costs_are_weighed_against_accuracy(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, layers=2, least_layers=2, reward_power=2.0)
    monkeypatch.setattr(nas_rl, "ScratchAccuracy", Told)
    monkeypatch.setattr(Told, "__call__", lambda self, archs: np.full(len(archs), 0.5))
    run = search_nas_rl("digits", tmp_path / "run", config=config, reward="mnasnet_soft", where=["macs <= 1M"])
    space = Run(run.path).space
    best = space.from_json(json.loads((run.path / "arch.json").read_text()))
    macs = sum(map(block_macs, space.blocks(best).values()))
    assert lines(run)[-1]["best_reward"] == pytest.approx((0.5 * (macs / 1e6) ** -0.07) ** 2)
    with pytest.raises(OfaError, match="needs limits"):
        search_nas_rl("digits", tmp_path / "other", config=config, reward="mnasnet_soft")
    with pytest.raises(SearchError, match="where is"):
        search_nas_rl("digits", tmp_path / "run", config=config, reward="mnasnet_soft", where=["macs <= 2M"], resume=True)


def test_a_child_that_is_drawn_again_takes_one_place_among_the_best(tmp_path, told):
    config = dataclasses.replace(TINY, layers=1, least_layers=1)
    space = config.open_space()
    search = ScratchSearch.__new__(ScratchSearch)  # only the ranking
    search.config, search.step, search.best = config, 0, []
    archs = space.decode(space.everything()[:4])
    rewards = np.array([0.1, 0.3, 0.3, 0.2])
    for step in range(2):
        search.step = step
        search._note_best(archs, rewards, rewards)
    assert [child["child"] for child in search.best] == [2, 3, 4, 1]
    assert ArchConfig(space.name, tuple(search.best[0]["values"])) == archs[1]


def test_best_children_of_before_are_removed_and_what_is_no_number_is_left_alone(tmp_path):
    space = TINY.open_space()
    archs = space.decode(space.sample(np.random.default_rng(0), 3))
    write_best(tmp_path, space, archs)
    (tmp_path / "nas" / "best" / "mine").mkdir()
    write_best(tmp_path, space, archs[:2])
    assert [folder.name for folder in best_folders(tmp_path)] == ["1", "2"]
    assert sorted(folder.name for folder in (tmp_path / "nas" / "best").glob("*")) == ["1", "2", "mine"]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    @contextmanager
    def two(device="auto"):
        yield World(0, 2, torch.device("cpu"))

    monkeypatch.setattr(nas_rl, "join", two)
    with pytest.raises(SearchError, match="2 processes were started, but this search runs in one; leave out torchrun"):
        search_nas_rl("digits", tmp_path / "run", config=TINY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"children": 9, "batch_children": 2}, "multiple of batch_children"),
        ({"schedule": "step"}, "unknown schedule 'step'; known: constant"),
        ({"layers": 0}, "layers is 0"),
        ({"controller_lr": 0.0}, "controller_lr is 0"),
    ],
)
def test_settings_that_make_no_search_are_refused(settings, message):
    with pytest.raises(OfaError, match=message):
        NasRlConfig(**settings)


def test_spaces_and_images_that_cannot_be_searched_are_refused(tmp_path):
    with pytest.raises(OfaError, match="read no images"):
        search_nas_rl("digits", tmp_path / "run", config=dataclasses.replace(TINY, space="darts_rnn"))
    with pytest.raises(OfaError, match="mobilenet_v2: is one network, there is nothing to search"):
        search_nas_rl("digits", tmp_path / "run", config=dataclasses.replace(TINY, space="mobilenet_v2"))
    with pytest.raises(SearchError, match="192 training images, fewer than batch_size 256"):
        search_nas_rl("digits", tmp_path / "run", config=dataclasses.replace(TINY, batch_size=256))
    with pytest.raises(SearchError, match="validation_fraction is 1"):
        search_nas_rl("digits", tmp_path / "run", config=TINY, validation_fraction=1.0)
    assert not (tmp_path / "run").exists()


def test_the_command_line_searches_and_says_what_comes_next(tmp_path, cli):
    small = ("--layers", 2, "--resolution", 8, "--children", 2, "--batch", 2, "--child-epochs", 1, "--max-images", 192)
    done = cli("nas", "nas_rl", "--data", "digits", "--out", "run", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "run/arch.json"
    assert "next: ofa train --arch run/nas/best/1 --data digits --out run-trained1" in done.stderr
    assert Run(tmp_path / "run").record["commands"][0]["argv"][1:3] == ["nas", "nas_rl"]
    refused = {
        ("--space", "rnn", "--layers", 3): "--layers 3: --space rnn searches a cell for text",
        ("--data", "digits", "--text", "x"): "--text x: this searches networks for images",
        ("--data", "digits", "--space", "nasbench201", "--layers", 3): "--layers 3: --space nasbench201",
        (
            "--data",
            "digits",
            "--space",
            "nasbench201",
            "--grow-every",
            3,
        ): "--grow-every 3: networks of --space nasbench201 do not",
        ("--space", "nas_rl_cnn:layers=4", "--grow-every", 3): "a search needs images",  # it may be given
        (): "a search needs images",
    }
    from typer.testing import CliRunner

    from search.cli import app

    for arguments, message in refused.items():
        found = CliRunner().invoke(app, ["nas", "nas_rl", "--out", str(tmp_path / "x"), *map(str, arguments)])
        assert found.exit_code == 1
        assert message in found.stderr
