"""Training of language models, their folder, and their export."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from deploy.language import TOLERANCE, export_language_model, onnx_of_language_model, step_error
from deploy.pack import ParityError
from ofa.artefacts import ArtefactError, read_jsonl
from ofa.errors import OfaError
from ofa.genotypes import get_genotype
from ofa.language_model import Dropouts, LanguageModel
from ofa.recurrent import DiscreteCell
from ofa.spaces.darts_rnn import SPACE
from ofa.text_cli import scaled
from ofa.training.checkpoint import list_checkpoints
from ofa.training.language import LanguageConfig, LanguageTrainer, load_language_model, measure, train_language_model
from ofa.training.text import load_text
from ofa.training.text_loop import TextTrainingError, nats_a_token, perplexity_of

V2 = get_genotype("darts_rnn_v2")
SMALL = LanguageConfig(features=12, epochs=3, batch_size=4, bptt=10, lr=5.0, eval_batch_size=2, nonmono=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A language in which each word but the first says what follows."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for name, lines in (("train", 150), ("valid", 30), ("test", 30)):
        starts = rng.integers(0, 10, lines)
        folder.joinpath(f"{name}.txt").write_text("".join(f"w{s} w{(s + 1) % 10} w{(s + 2) % 10}\n" for s in starts))
    return folder


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    return out, train_language_model(V2, text, out, config=SMALL)


def test_training_learns_and_measures_the_best_weights_on_unseen_text(trained, text):
    out, result = trained
    lines = list(read_jsonl(out / "metrics.jsonl"))
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert result.valid_perplexity < 12  # of all 12 tokens alike
    assert result.valid_perplexity == pytest.approx(min(line["valid_perplexity"] for line in lines))
    net, vocabulary = load_language_model(out)
    corpus = load_text(text)
    assert vocabulary == corpus.vocabulary
    assert result.test_perplexity == pytest.approx(perplexity_of(nats_a_token(net, corpus.test, batch=2)))
    assert result.parameters == 12 * 12 + 12 + 24 * 24 + 8 * 12 * 24
    assert json.loads((out / "result.json").read_text())["test_perplexity"] == result.test_perplexity


def test_folder_says_which_cell(trained):
    out, _ = trained
    assert (out / "genotype.txt").read_text().strip() == str(V2)
    assert SPACE.to_genotype(SPACE.from_json(json.loads((out / "arch.json").read_text()))) == V2


def test_perplexity_is_the_same_in_pieces_of_any_length_and_that_of_the_formula():
    torch.manual_seed(0)
    net, stream = LanguageModel(7, DiscreteCell(V2, 5)).double(), torch.randint(7, (41,))
    total = 0.0
    for half in (stream[:20], stream[20:40]):
        hidden = net.no_text(1)
        for token, target in itertools.pairwise(half):
            logits, hidden = net.step(token[None], hidden)
            total -= float(torch.log_softmax(logits, -1)[0, target].detach())
    for bptt in (1, 7, 100):
        assert nats_a_token(net, stream, batch=2, bptt=bptt) == pytest.approx(total / 38, rel=1e-12)
    assert perplexity_of(math.log(50)) == pytest.approx(50)
    assert math.isfinite(perplexity_of(1e6))
    assert perplexity_of(math.nan) == perplexity_of(1e6)  # of a loss that is none: the worst, and it can be compared


def new_trainer(out, text, config=SMALL):
    corpus = load_text(text)
    torch.manual_seed(config.seed)
    net = LanguageModel(len(corpus.vocabulary), DiscreteCell(V2, config.features))
    return LanguageTrainer(out, net, corpus, config, torch.device("cpu"))


def test_step_is_that_of_sgd_with_the_rate_in_proportion_to_the_length(tmp_path, text):
    config = replace(SMALL, dropouts=Dropouts(outputs=0, hidden=0, inputs=0, embeddings=0, words=0), slowness=0.5)
    trainer = new_trainer(tmp_path, text, config)
    tokens, targets = trainer.text[:4], trainer.text[1:5]
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    output = trainer.net(tokens, trainer.hidden)
    nats = -torch.log_softmax(output.logits, -1).gather(-1, targets[..., None]).mean()
    changes = (output.states[1:] - output.states[:-1]).square().mean()
    gradients = torch.autograd.grad(nats + 0.5 * changes, list(trainer.net.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > config.clip_norm  # or clipping would not be looked at
    assert trainer.one_step(tokens, targets) == pytest.approx(float(nats.detach()), rel=1e-5)
    rate = config.lr * 4 / config.bptt
    for (name, p), gradient in zip(trainer.net.named_parameters(), gradients, strict=True):
        expected = before[name] - rate * (gradient * config.clip_norm / norm + config.weight_decay * before[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(trainer.hidden, output.hidden)


def test_averages_are_the_mean_of_all_weights_since_validation_stopped_improving(tmp_path, text):
    trainer = new_trainer(tmp_path, text, replace(SMALL, nonmono=2))
    steps = iter(range(100))
    seen = []

    def step():
        trainer.one_step(*(trainer.text[i : i + 5] for i in (0, 1)))
        seen.append(trainer.net.embedding.detach().clone())
        trainer.step = next(steps)

    losses = iter([3.0, 4.0, 2.9, 3.5, 3.4])
    begun = []
    for _ in range(5):
        step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ofa.training.language.nats_a_token", lambda *a, **k: next(losses))
            trainer.look()
        begun.append(trainer.averages is not None)
    # 3.5 is the first above the least of those before the last two, 3.0
    assert begun == [False, False, False, True, True]
    step()
    assert trainer.averaged == 2
    torch.testing.assert_close(trainer.averages["embedding"], (seen[4] + seen[5]) / 2)
    weights, further, _ = trainer.state()
    assert torch.equal(weights["embedding"], trainer.averages["embedding"])
    assert torch.equal(further["weights|embedding"], seen[5])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [3, 20, 40])
def test_resumed_training_is_the_one_that_was_not_stopped(trained, text, tmp_path, monkeypatch, at):
    monkeypatch.setattr("ofa.training.text_loop.CHECKPOINT_SECONDS", 0.0)
    one_step, steps = LanguageTrainer.one_step, iter(range(1000))

    def dies(self, *arguments):
        if next(steps) == at:
            raise Stopped
        return one_step(self, *arguments)

    out = tmp_path / "model"
    monkeypatch.setattr(LanguageTrainer, "one_step", dies)
    with pytest.raises(Stopped):
        train_language_model(V2, text, out, config=SMALL)
    assert list_checkpoints(out)[-1].step == at
    monkeypatch.setattr(LanguageTrainer, "one_step", one_step)
    assert train_language_model(V2, text, out, config=SMALL, resume=True) == trained[1]
    records = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(path / "metrics.jsonl")]
        for path in (out, trained[0])
    ]
    assert records[0] == records[1]


def test_existing_training_is_neither_overwritten_nor_gone_on_with_otherwise(trained, text):
    out, result = trained
    with pytest.raises(TextTrainingError, match="already holds checkpoints; add --resume"):
        train_language_model(V2, text, out, config=SMALL)
    with pytest.raises(TextTrainingError, match=r"lr is 6.0, but it began with 5.0"):
        train_language_model(V2, text, out, config=replace(SMALL, lr=6.0), resume=True)
    with pytest.raises(TextTrainingError, match="genotype is"):
        train_language_model(get_genotype("darts_rnn_v1"), text, out, config=SMALL, resume=True)
    assert train_language_model(V2, text, out, config=SMALL, resume=True) == result


def test_folder_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(TextTrainingError, match="is not empty and holds no training"):
        train_language_model(V2, text, tmp_path, config=SMALL)


def test_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(tmp_path, text, monkeypatch):
    one_step = LanguageTrainer.one_step
    monkeypatch.setattr(LanguageTrainer, "one_step", lambda self, *a: math.nan if self.epoch else one_step(self, *a))
    with pytest.raises(TextTrainingError, match=r"loss is nan at step (\d+); the checkpoint of step \1 is kept; .* lower --lr"):
        train_language_model(V2, text, tmp_path / "model", config=SMALL)
    assert len(list_checkpoints(tmp_path / "model")) == 1


def test_weights_that_are_not_finite_stop_training(tmp_path, text, monkeypatch):
    one_step = LanguageTrainer.one_step

    def breaks(self, *arguments):
        loss = one_step(self, *arguments)
        self.net.bias.data[0] = math.inf
        return 1.0 if math.isnan(loss) else loss

    monkeypatch.setattr(LanguageTrainer, "one_step", breaks)
    with pytest.raises(TextTrainingError, match=r"weights are not finite .*no checkpoint was reached"):
        train_language_model(V2, text, tmp_path / "model", config=SMALL)


def test_too_short_a_text_is_refused_before_anything_is_written(tmp_path, text):
    with pytest.raises(ValueError, match="too short for 100 side by side"):
        train_language_model(V2, text, tmp_path / "model", config=replace(SMALL, eval_batch_size=100))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": math.nan}, "lr is nan"),
        ({"epochs": 0}, "epochs is 0, expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"tokens": "bytes"}, "unknown tokens"),
        ({"dropouts": 0.5}, "expected Dropouts"),
        ({"nonmono": 0}, "nonmono is 0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**setting)


def test_model_of_a_cell_of_no_space_has_no_arch_file(tmp_path, text):
    cell = replace(get_genotype("enas_rnn"), concat=(1, 2))
    train_language_model(cell, text, tmp_path / "odd", config=replace(SMALL, epochs=1))
    assert not (tmp_path / "odd" / "arch.json").exists()


def test_model_of_the_enas_cell_is_a_point_of_its_space(tmp_path, text):
    config = replace(SMALL, epochs=1)
    train_language_model(get_genotype("enas_rnn"), text, tmp_path / "model", config=config)
    assert json.loads((tmp_path / "model" / "arch.json").read_text())["space"] == "enas_rnn"
    assert load_language_model(tmp_path / "model")[0].cell.genotype == get_genotype("enas_rnn")


def test_folder_without_a_model_is_refused(tmp_path, trained, text):
    with pytest.raises(ArtefactError, match=r"config.json: no such file"):
        load_language_model(tmp_path)
    with pytest.raises(ArtefactError, match="no checkpoint with a validation loss"):
        measure(tmp_path, new_trainer(tmp_path, text).net, load_text(text), SMALL)


def test_folder_with_a_setting_removed_is_refused(tmp_path, trained):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["features"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=r"damaged \(KeyError: 'features'\)"):
        load_language_model(folder)


def test_command_scales_dropouts_and_decays_weights(cli, tmp_path, text):
    small = ["--features", 8, "--epochs", 1, "--batch-size", 4, "--bptt", 10, "--dropout", 0.2, "--weight-decay", 1e-5]
    done = cli("train-text", "darts_rnn_v2", "--text", text, "--out", tmp_path / "x", *small, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    expected = {"outputs": 0.15, "hidden": 0.05, "inputs": 0.15, "embeddings": 0.04, "words": 0.02}
    assert config["dropouts"] == pytest.approx(expected)
    assert config["weight_decay"] == 1e-5


@pytest.mark.parametrize("factor", [-0.1, 4 / 3, math.nan])
def test_factor_of_dropouts_keeps_them_shares(factor):
    with pytest.raises(OfaError, match=r"--dropout .*: expected a factor of at least 0 and below 1.33; 1 = as published"):
        scaled(Dropouts(), factor)
    assert scaled(Dropouts(), 1.0) == Dropouts()


# -- export ------------------------------------------------------------------------------------------------------------


def test_exported_model_says_what_torch_says_over_a_text(trained, text, tmp_path):
    out, _ = trained
    exported = export_language_model(out, tmp_path / "export")
    assert exported.parity_error <= TOLERANCE
    net, _ = load_language_model(out)
    stream = load_text(text).test[:60]
    session, hidden, found = onnxruntime.InferenceSession(exported.path.read_bytes()), np.zeros((1, 12), np.float32), []
    for token in stream:
        row, hidden = session.run(None, {"tokens": np.array([token]), "hidden": hidden})
        found.append(row[0])
    with torch.no_grad():
        expected = torch.log_softmax(net(stream[:, None], net.no_text(1)).logits[:, 0], -1)
    np.testing.assert_allclose(np.stack(found), expected.numpy(), rtol=1e-4, atol=1e-5)
    record = json.loads((tmp_path / "export" / "model.json").read_text())
    assert record["genotype"] == str(V2)
    assert (record["vocabulary"], record["features"]) == (12, 12)


@pytest.mark.parametrize("name", ["darts_rnn_v1", "darts_rnn_v2", "enas_rnn"])
def test_every_cell_is_written_with_each_weight_once_and_the_same_bytes(name):
    torch.manual_seed(0)
    net = LanguageModel(100, DiscreteCell(get_genotype(name), 40))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    content = onnx_of_language_model(net)
    assert step_error(net, content) <= TOLERANCE
    assert content == onnx_of_language_model(net)
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert weights < len(content) < weights + 20_000  # names, shapes and operators besides


def test_wrong_model_is_not_written(trained, tmp_path, monkeypatch):
    other = onnx_of_language_model(LanguageModel(12, DiscreteCell(V2, 12)))
    monkeypatch.setattr("deploy.language.onnx_of_language_model", lambda net: other)
    with pytest.raises(ParityError, match="differ by"):
        export_language_model(trained[0], tmp_path / "export")
    assert not (tmp_path / "export").exists()
