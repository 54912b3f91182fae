"""The search of trees by reinforcement learning on text: rewards, the journal, what it writes, that it goes on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ofa.artefacts import read_jsonl
from ofa.errors import OfaError
from ofa.find_arch import find_genotype
from ofa.language_model import Dropouts
from ofa.space import ArchConfig
from ofa.spaces.nas_rl_rnn import SPACE
from ofa.training.language import LanguageConfig, train_language_model
from ofa.training.text import TextError, load_text
from ofa.training.text_loop import TextTrainingError
from ofa.tree_genotype import TreeGenotype, parse_tree
from search.engine import Engine
from search.joint import nas_rl_rnn
from search.joint.nas_rl_rnn import TreeSearch, search_tree
from search.joint.nas_rl_rnn_config import NasRlRnnConfig
from search.joint.record import SearchError
from search.scratch_text import TextScratch, Trained, train_from_scratch
from search.worker import Failure

LITTLE = Dropouts(outputs=0.1, hidden=0.1, inputs=0.1, embeddings=0.1, words=0.05)
SMALL = NasRlRnnConfig(
    base=2,
    features=6,
    epochs=2,
    batch_size=4,
    bptt=10,
    lr=2.0,
    eval_batch_size=2,
    dropouts=LITTLE,
    children=12,
    batch_children=4,
    controller_lr=0.05,
)
TREES = SPACE.with_numbers(base=2)
GOOD = TreeGenotype((("add", "tanh"), ("add", "sigmoid"), ("elem_mult", "tanh")), ("add", "tanh"), 0, 0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for name, lines in (("train", 60), ("valid", 30), ("test", 10)):
        starts = rng.integers(0, 10, lines)
        folder.joinpath(f"{name}.txt").write_text("".join(f"w{s} w{(s + 1) % 10} w{(s + 2) % 10}\n" for s in starts))
    return folder


@pytest.fixture(scope="module")
def searched(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "run"
    return out, search_tree(text, out, config=SMALL)


def records(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(out / "nas" / "metrics.jsonl")]


def trials(out):
    return list(read_jsonl(out / "nas" / "trials.jsonl"))


def test_search_writes_the_best_child_and_every_score(searched):
    out, tree = searched
    assert parse_tree((out / "genotype.txt").read_text()) == tree == find_genotype(out) == find_genotype(out / "nas/best/1")
    arch = TREES.from_json(json.loads((out / "arch.json").read_text()))
    assert TREES.to_genotype(arch) == tree
    assert (out / "cells.svg").read_text().startswith("<svg")
    lines = records(out)
    assert [(line["step"], line["children"]) for line in lines] == [(1, 4), (2, 8), (3, 12)]
    found = {tuple(trial["values"]): trial["score"] for trial in trials(out)}
    assert len(found) == len(trials(out))  # none twice
    best = max(found.values())
    assert found[arch.values] == best
    assert lines[-1]["best_perplexity"] == pytest.approx(math.exp(-best))
    assert lines[-1]["best_reward"] == pytest.approx(80 / math.exp(-best) ** 2)
    files = [(out / "nas" / "best" / str(place) / "arch.json").read_text() for place in (1, 2, 3, 4, 5)]
    scores = [found[TREES.from_json(json.loads(content)).values] for content in files]
    assert scores == sorted(found.values(), reverse=True)[:5]


def test_rewards_and_baseline_are_those_of_the_children(searched):
    out, _ = searched
    scores = {tuple(trial["values"]): trial["score"] for trial in trials(out)}
    search = TreeSearch(out / "nas", TREES, None, SMALL)
    baseline = None
    for step, line in enumerate(records(out)):
        drawn = search.controller(4, generator=nas_rl_rnn.generator_of(SMALL.seed, step, nas_rl_rnn.CHILDREN))
        archs = TREES.decode(drawn.tokens.numpy().astype(np.int16))
        rewards = [80 / math.exp(-scores[arch.values]) ** 2 for arch in archs]
        mean = float(np.mean(rewards))
        assert line["reward"] == pytest.approx(mean, rel=1e-5)
        baseline = mean if baseline is None else baseline  # of the children before
        assert line["baseline"] == pytest.approx(baseline, rel=1e-5)
        assert line["perplexity"] == pytest.approx(math.exp(-np.mean([scores[arch.values] for arch in archs])))
        baseline = 0.95 * baseline + 0.05 * mean
        search.policy.step(drawn, torch.tensor(rewards))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [2, 6])
def test_resumed_search_is_the_one_that_was_not_stopped(searched, text, tmp_path, monkeypatch, at):
    from search import scratch_text

    whole, trained = scratch_text.train_from_scratch, []

    def counted(genotype, *arguments):
        if len(trained) == at:
            raise KeyboardInterrupt
        trained.append(str(genotype))
        return whole(genotype, *arguments)

    out = tmp_path / "run"
    monkeypatch.setattr(scratch_text, "train_from_scratch", counted)
    with pytest.raises(KeyboardInterrupt):
        search_tree(text, out, config=SMALL)
    assert len(trials(out)) == at
    at = -1
    assert search_tree(text, out, config=SMALL, resume=True) == searched[1]
    assert records(out) == records(searched[0])
    assert trials(out) == trials(searched[0])
    assert len(trained) == len(set(trained)) == len(trials(out))  # no child twice, stopped or not


def test_a_finished_search_trains_nothing_again(searched, text, monkeypatch):
    out, tree = searched
    monkeypatch.setattr("search.scratch_text.train_from_scratch", None)
    assert search_tree(text, out, config=SMALL, resume=True) == tree
    with pytest.raises(TextTrainingError, match="already holds checkpoints; add --resume"):
        search_tree(text, out, config=SMALL)
    with pytest.raises(TextTrainingError, match=r"lr is 3.0, but it began with 2.0"):
        search_tree(text, out, config=replace(SMALL, lr=3.0), resume=True)


def test_other_processes_find_the_same(searched, text, tmp_path):
    out = tmp_path / "run"
    assert search_tree(text, out, config=SMALL, engine="joblib:2") == searched[1]
    assert records(out) == records(searched[0])
    assert {tuple(t["values"]): t["score"] for t in trials(out)} == {tuple(t["values"]): t["score"] for t in trials(searched[0])}


def scratch(text, tmp_path, engine=None, **changes):
    config = LanguageConfig(features=6, epochs=2, batch_size=4, bptt=10, lr=2.0, eval_batch_size=2, dropouts=LITTLE)
    return TextScratch(
        TREES,
        text,
        load_text(text),
        replace(config, **changes),
        tmp_path / "trials.jsonl",
        engine=engine or Engine("in-process"),
        device="cpu",
    )


def test_score_is_that_of_ordinary_training(text, tmp_path):
    judge = scratch(text, tmp_path)
    arch = TREES.from_genotype(GOOD)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    (score,) = judge([arch])
    assert torch.equal(torch.random.get_rng_state(), before)
    result = train_language_model(GOOD, text, tmp_path / "model", config=judge.config, device="cpu")
    assert score == pytest.approx(-math.log(result.valid_perplexity), rel=1e-9)
    assert scratch(text, tmp_path)._keys([arch]) == judge._keys([arch])
    assert scratch(text, tmp_path, seed=1)._keys([arch]) != judge._keys([arch])


def test_child_that_diverges_counts_as_guessing(text, tmp_path, monkeypatch):
    corpus = load_text(text)
    explosive = TreeGenotype((("add", "identity"), ("add", "identity"), ("elem_mult", "identity")), ("add", "identity"), 0, 0)
    config = LanguageConfig(features=6, epochs=30, batch_size=4, bptt=10, lr=1e6, eval_batch_size=2, clip_norm=0.0)
    found = train_from_scratch(explosive, corpus, config, torch.device("cpu"))
    assert found.nats == math.log(len(corpus.vocabulary))
    assert "loss was" in found.diverged
    monkeypatch.setattr("search.scratch_text.train_from_scratch", lambda *_: Trained(2.0, "its loss was nan"))
    assert scratch(text, tmp_path)([TREES.smallest]) == [-2.0]


class Fails:
    """An engine whose workers die."""

    text = "fails"

    def attempt(self, function, tasks, **_):
        for index in range(len(tasks)):
            yield index, Failure("its worker died")


def test_workers_that_fail_end_a_search_only_if_nothing_ever_worked(text, tmp_path):
    (a, b, c, d) = TREES.decode(TREES.sample(np.random.default_rng(3), 4))
    judge = scratch(text, tmp_path, engine=Fails())
    guessing = -math.log(len(load_text(text).vocabulary))
    assert judge([a, b]).tolist() == [guessing, guessing]
    with pytest.raises(OfaError, match=r"3 cells could not be trained, .* its worker died"):
        judge([c])
    works = scratch(text, tmp_path)
    works([d])
    judge = scratch(text, tmp_path, engine=Fails())
    assert len(judge([a, b, c])) == 3
    assert judge([d]) == works([d])


def test_text_that_changed_is_refused(text, tmp_path):
    judge = scratch(text, tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("".join(f"w{i % 7} w{i % 5}\n" for i in range(400)))
    judge._train = replace(judge._train, text=str(other))
    assert judge([TREES.smallest]) == [-math.log(len(judge.corpus.vocabulary))]
    assert "is another text than when the search began" in next(iter(judge.journal.failed.values()))


def test_settings_that_make_no_sense_are_refused(text, tmp_path):
    assert NasRlRnnConfig().updates == 1875
    with pytest.raises(OfaError, match="children is 10, expected a multiple of batch_children, 4"):
        replace(SMALL, children=10)
    with pytest.raises(OfaError, match=r"controller_lr is 0\.0, expected a number of at least 1e-09"):
        replace(SMALL, controller_lr=0.0)
    with pytest.raises(OfaError, match="nas_rl_rnn: base is 3"):
        search_tree(text, tmp_path / "run", config=replace(SMALL, base=3))
    with pytest.raises(TextError, match="too short for 500 side by side"):
        search_tree(text, tmp_path / "run", config=replace(SMALL, batch_size=500))
    assert not (tmp_path / "run").exists()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SearchError, match="is not empty and holds no search"):
        search_tree(text, tmp_path, config=SMALL)


def test_reward_of_a_hopeless_child_is_a_number(tmp_path):
    search = TreeSearch(tmp_path, TREES, None, SMALL)
    assert search.reward(-math.log(100)) == pytest.approx(80 / 100**2)
    assert 0 <= search.reward(-1e6) < 1e-200


def test_tokens_of_the_controller_are_choices_of_the_space():
    search = TreeSearch(None, SPACE, None, NasRlRnnConfig())
    assert list(search.controller.options) == SPACE.num_options.tolist()
    arch = SPACE.decode(search.controller(1).tokens.numpy().astype(np.int16))[0]
    assert isinstance(SPACE.check(arch), ArchConfig)


def test_command_searches(cli, text, tmp_path):
    small = ["--base", 2, "--features", 6, "--child-epochs", 1, "--batch-size", 4, "--bptt", 10, "--children", 4, "--batch", 2]
    command = ["nas", "nas_rl", "--space", "rnn", "--text", text, "--out", tmp_path / "run", *small, "--dropout", 0.1]
    done = cli(*command, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert parse_tree(done.stdout) == find_genotype(tmp_path / "run")
    assert "ofa train-text" in done.stderr
