"""The search of a recurrent cell: what it writes, that it goes on, stops, learns, and takes each order."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ofa.artefacts import read_jsonl
from ofa.errors import OfaError
from ofa.genotype import parse_genotype
from ofa.language_model import Dropouts
from ofa.spaces.darts_rnn import SPACE
from ofa.training.checkpoint import list_checkpoints
from ofa.training.text_loop import TextTrainingError
from search.joint import darts_rnn
from search.joint.architect import second_order, second_order_exact
from search.joint.darts_rnn import RecurrentSearch, search_recurrent
from search.joint.record import read_search
from search.joint.rnn_config import RecurrentSearchConfig

LITTLE = Dropouts(outputs=0.1, hidden=0.1, inputs=0.1, embeddings=0.1, words=0.05)
SMALL = RecurrentSearchConfig(
    features=8, epochs=2, batch_size=4, bptt=10, lr=5.0, alpha_lr=0.03, eval_batch_size=2, dropouts=LITTLE
)


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
    return out, search_recurrent(text, out, config=SMALL)


def records(out, name):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(out / "nas" / name)]


def test_search_writes_the_cell_and_how_it_came_about(searched):
    out, genotype = searched
    assert parse_genotype((out / "genotype.txt").read_text()) == genotype
    assert SPACE.to_genotype(SPACE.from_json(json.loads((out / "arch.json").read_text()))) == genotype
    assert (out / "cells.svg").read_text().startswith("<svg")
    metrics, alphas = records(out, "metrics.jsonl"), records(out, "alphas.jsonl")
    assert [line["epoch"] for line in metrics] == [1, 2]
    assert metrics[1]["loss"] < metrics[0]["loss"]
    assert [line["epoch"] for line in alphas] == [0, 1, 2]
    assert alphas[-1]["genotype"] == str(genotype)
    first, last = (np.array(alphas[i]["probabilities"]["recurrent"]) for i in (0, -1))
    assert first.shape == (36, 5)
    np.testing.assert_allclose(first, 0.2, atol=2e-3)  # alphas begin near zero
    assert np.abs(last - first).max() > 0.02


def test_search_is_read_back_as_others_are(searched):
    found = read_search(searched[0])
    assert found.operations == ["none", "tanh", "relu", "sigmoid", "identity"]
    assert found.edges["recurrent"][:4] == [(1, 0), (2, 0), (2, 1), (3, 0)]
    assert len(found.decided) == 3
    assert found.genotype == str(searched[1])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("order", ["1", "2"])
def test_resumed_search_is_the_one_that_was_not_stopped(text, tmp_path, monkeypatch, order):
    config = replace(SMALL, order=order)
    whole = search_recurrent(text, tmp_path / "whole", config=config)
    monkeypatch.setattr("ofa.training.text_loop.CHECKPOINT_SECONDS", 0.0)
    one_step, steps = RecurrentSearch.one_step, iter(range(1000))

    def dies(self, *arguments):
        if next(steps) == 9:
            raise Stopped
        return one_step(self, *arguments)

    monkeypatch.setattr(RecurrentSearch, "one_step", dies)
    with pytest.raises(Stopped):
        search_recurrent(text, tmp_path / "parts", config=config)
    assert list_checkpoints(tmp_path / "parts" / "nas")[-1].step == 9
    monkeypatch.setattr(RecurrentSearch, "one_step", one_step)
    assert search_recurrent(text, tmp_path / "parts", config=config, resume=True) == whole
    for name in ("metrics.jsonl", "alphas.jsonl"):
        assert records(tmp_path / "parts", name) == records(tmp_path / "whole", name)


@pytest.mark.parametrize(
    ("order", "expected", "untied"), [("2", second_order, False), ("2", second_order, True), ("exact", second_order_exact, False)]
)
def test_higher_orders_clip_and_move_the_embedding_unless_asked_not_to(text, tmp_path, monkeypatch, order, expected, untied):
    calls = []

    def spy(*arguments, **settings):
        calls.append((arguments, settings))
        return expected(*arguments, **settings)

    monkeypatch.setattr(darts_rnn, expected.__name__, spy)
    config = replace(SMALL, order=order, epochs=1, untied_unrolled_embedding=untied)
    search_recurrent(text, tmp_path / "run", config=config)
    (train_loss, valid_loss, weights, alphas), settings = calls[0]
    assert len(weights) == 4
    assert alphas[0].shape == (36, 5)
    assert settings["clip"] == config.clip_norm
    assert settings["weight_decay"] == config.weight_decay
    assert [w.shape for w in settings["unmoved"]] == ([(12, 8)] if untied else [])
    # the same masks each time: a difference of losses is one of weights alone
    assert float(train_loss().detach()) == float(train_loss().detach())
    assert float(train_loss().detach()) != float(valid_loss().detach())


def test_alphas_go_where_validation_loss_falls(text, tmp_path, monkeypatch):
    """Probabilities of an edge follow the gradient: with a loss that punishes tanh, tanh becomes the least probable."""
    real = darts_rnn.first_order

    def punished(valid_loss, alphas):
        return real(lambda: valid_loss() + 100 * alphas[0].softmax(-1)[:, 1].sum(), alphas)

    monkeypatch.setattr(darts_rnn, "first_order", punished)
    genotype = search_recurrent(text, tmp_path / "run", config=SMALL)
    assert all(name != "tanh" for name, _ in genotype.recurrent)


def test_loss_or_alphas_that_are_not_finite_stop_the_search(text, tmp_path, monkeypatch):
    real = darts_rnn.first_order

    def broken(valid_loss, alphas):
        found = real(valid_loss, alphas)
        return found._replace(gradients=(found.gradients[0] * math.nan,))

    monkeypatch.setattr(darts_rnn, "first_order", broken)
    with pytest.raises(TextTrainingError, match=r"loss is nan at step 0; no checkpoint was reached; .* lower --lr"):
        search_recurrent(text, tmp_path / "run", config=SMALL)
    assert not (tmp_path / "run" / "genotype.txt").exists()
    monkeypatch.undo()
    search_recurrent(text, tmp_path / "run", config=SMALL)  # begins anew, without the lines of the first
    assert [line["epoch"] for line in records(tmp_path / "run", "alphas.jsonl")] == [0, 1, 2]


def test_existing_search_is_not_overwritten(searched, text):
    with pytest.raises(TextTrainingError, match="already holds checkpoints"):
        search_recurrent(text, searched[0], config=SMALL)
    with pytest.raises(TextTrainingError, match=r"order is '2', but it began with '1'"):
        search_recurrent(text, searched[0], config=replace(SMALL, order="2"), resume=True)
    assert search_recurrent(text, searched[0], config=SMALL, resume=True) == searched[1]


@pytest.mark.parametrize(
    ("name", "message"), [("run.json", "is a run of another command"), ("config.json", "is not empty and holds no search")]
)
def test_what_another_command_made_is_left_alone(text, tmp_path, name, message):
    kept = {name: "{}", "arch.json": "that of another network"}
    for path, content in kept.items():
        (tmp_path / path).write_text(content)
    for resume in (False, True):
        with pytest.raises(OfaError, match=f"{message}.*; give another --out"):
            search_recurrent(text, tmp_path, config=SMALL, resume=resume)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "3"}, "unknown order '3'; known: 1, 2, exact"),
        ({"untied_unrolled_embedding": True}, "no effect on order 1"),
        ({"alpha_lr": -1.0}, "alpha_lr is -1.0"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RecurrentSearchConfig(**settings)


def test_defaults_are_the_published_ones():
    config = RecurrentSearchConfig()
    assert (config.features, config.batch_size, config.bptt, config.epochs) == (300, 256, 35, 50)
    assert (config.lr, config.clip_norm, config.weight_decay, config.slowness) == (20.0, 0.25, 5e-7, 1e-3)
    assert (config.alpha_lr, config.alpha_weight_decay) == (3e-3, 1e-3)
    assert config.dropouts == Dropouts(outputs=0.75, hidden=0.25, inputs=0.75, embeddings=0.2, words=0.0)


def test_hidden_states_go_on_without_the_graph_of_earlier_pieces(text, tmp_path, monkeypatch):
    one_step, kept = RecurrentSearch.one_step, []

    def watched(self, *arguments):
        loss = one_step(self, *arguments)
        kept.append([tensor.grad_fn for tensor in (self.hidden, self.alpha_hidden)])
        return loss

    monkeypatch.setattr(RecurrentSearch, "one_step", watched)
    search_recurrent(text, tmp_path / "run", config=replace(SMALL, epochs=1))
    assert len(kept) > 3
    assert all(graphs == [None, None] for graphs in kept)
