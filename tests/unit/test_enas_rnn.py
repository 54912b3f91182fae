"""ENAS' recurrent cells: space, arcs, shared weights, and the search."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deploy.language import TOLERANCE, export_language_model
from ofa.artefacts import read_jsonl, write_json
from ofa.errors import OfaError
from ofa.find_arch import find_arch, find_genotype
from ofa.formats.enas import ArcError, format_arc
from ofa.formats.enas_rnn import rnn_arc, rnn_arch
from ofa.genotype import GenotypeError, RecurrentGenotype, genotype_from_json, parse_genotype
from ofa.genotypes import get_genotype
from ofa.language_model import Dropouts, LanguageModel, Noise, prediction_loss
from ofa.recurrent import ACTIVATIONS, DiscreteCell, Masks
from ofa.shared_cell import EPSILON, SharedCell
from ofa.space import InvalidArchError
from ofa.spaces import get_space
from ofa.spaces.enas_rnn import FUNCTIONS, SPACE, loose_ends
from ofa.training.checkpoint import list_checkpoints
from ofa.training.language import LanguageConfig, load_language_model, train_language_model
from ofa.training.text import load_text
from ofa.training.text_loop import TextTrainingError, nats_a_token, perplexity_of
from search.cell_drawing import cells_of
from search.joint.enas_rnn import RecurrentEnas, search_enas_recurrent
from search.joint.enas_rnn_config import EnasRnnConfig, configure_rnn
from search.joint.record import SearchError

CLOSE = 1e-12  # relative, float64: sums in another order
FORMULAS = {
    "tanh": lambda g: 2 / (1 + (-2 * g).exp()) - 1,
    "relu": lambda g: g.clamp(min=0),
    "sigmoid": lambda g: 1 / (1 + (-g).exp()),
    "identity": lambda g: g,
}
NODES = st.integers(2, 14)


@st.composite
def arcs(draw):
    """Nodes and an arc of so many."""
    nodes = draw(NODES)
    rest = [draw(st.integers(0, top)) for node in range(1, nodes) for top in (node - 1, 3)]
    return nodes, (draw(st.integers(0, 3)), *rest)


# -- space, arcs, texts ------------------------------------------------------------------------------------------------


@given(arcs())
def test_arc_point_genotype_and_text_are_one(drawn):
    nodes, arc = drawn
    space = SPACE.with_numbers(nodes=nodes)
    arch = rnn_arch(space, arc)
    assert rnn_arc(space, arch) == arc == tuple(space.encode([arch])[0])
    genotype = space.to_genotype(arch)
    assert space.from_genotype(genotype) == arch
    assert parse_genotype(str(genotype)) == genotype
    assert genotype.first == FUNCTIONS[arc[0]]
    assert [(FUNCTIONS.index(name), source) for name, source in genotype.recurrent] == [*zip(arc[2::2], arc[1::2], strict=True)]
    assert not set(genotype.concat) & {source for _, source in genotype.recurrent}
    assert set(genotype.concat) | {source for _, source in genotype.recurrent} == set(range(nodes))


def test_space_is_as_large_as_published():
    assert SPACE.size() == pytest.approx(1e15, rel=0.5)  # "4^N x N!" of the paper, which counts an input for node 0 as well
    assert SPACE.size() == 4**12 * 39_916_800
    assert get_space("enas_rnn") == SPACE
    assert get_space("enas_rnn:nodes=4").name == "enas_rnn:nodes=4"
    assert get_space("enas_rnn:nodes=12").name == "enas_rnn"
    with pytest.raises(InvalidArchError, match="expected nodes=2 to nodes=64"):
        get_space("enas_rnn:nodes=1")
    with pytest.raises(InvalidArchError, match="has no"):
        get_space("enas_rnn:cells=1")
    with pytest.raises(OfaError, match="train one with: ofa train-text"):
        SPACE.blocks(SPACE.largest)


@pytest.mark.parametrize(
    ("arc", "message"),
    [
        ((0, 0), "arc of 2 integers, expected 7 for 4 nodes"),
        ((0, 1, 0, 0, 0, 0, 0), "node1.input is 1, expected 0 to 0"),
        ((0, 0, 0, 1, 4, 0, 0), "node2.op is 4, expected 0 to 3"),
        ((-1, 0, 0, 0, 0, 0, 0), "node0.op is -1, expected 0 to 3"),
    ],
)
def test_wrong_arcs_are_refused(arc, message):
    with pytest.raises(ArcError, match=message):
        rnn_arch(SPACE.with_numbers(nodes=4), arc)


def test_cells_of_other_spaces_are_refused():
    for name in ("darts_rnn_v1", "darts_rnn_v2"):
        with pytest.raises(InvalidArchError, match="expected 12 nodes and the mean of those that none reads"):
            SPACE.from_genotype(get_genotype(name))
    darts = get_space("darts_rnn")
    with pytest.raises(InvalidArchError, match="8 nodes after a relu"):
        darts.from_genotype(replace(get_genotype("darts_rnn_v1"), first="relu"))


def test_function_of_the_first_state_is_written_where_it_is_not_tanh():
    cell = RecurrentGenotype((("relu", 0), ("tanh", 1)), (1, 2))
    assert str(cell) == "Genotype(recurrent=[('relu', 0), ('tanh', 1)], concat=[1, 2])"
    other = replace(cell, first="sigmoid")
    assert str(other) == "Genotype(recurrent=[('relu', 0), ('tanh', 1)], concat=[1, 2], first='sigmoid')"
    assert parse_genotype(str(other)) == other
    assert genotype_from_json({"recurrent": [["relu", 0], ["tanh", 1]], "concat": [1, 2], "first": "sigmoid"}) == other
    for wrong in ("first=3", "second='relu'", "first='relu', first='relu'"):
        with pytest.raises(GenotypeError):
            parse_genotype(f"Genotype(recurrent=[('relu', 0)], concat=[1], {wrong})")
    with pytest.raises(GenotypeError, match="has the operation 'gelu'"):
        DiscreteCell(replace(cell, first="gelu"), 4)


def test_a_cell_from_its_name_its_point_or_its_arc(tmp_path):
    arch = SPACE.decode(SPACE.sample(np.random.default_rng(1), 1))[0]
    genotype = SPACE.to_genotype(arch)
    write_json(tmp_path / "arch.json", SPACE.to_json(arch), sealed=True)
    (tmp_path / "arc.txt").write_text(format_arc(rnn_arc(SPACE, arch)) + "\n")
    (tmp_path / "cell.txt").write_text(str(genotype))
    for place in ("", "arch.json", "arc.txt", "cell.txt"):
        assert find_genotype(tmp_path / place) == genotype
        with pytest.raises(InvalidArchError, match=r"recurrent cell, which reads text, .* ofa train-text"):
            find_arch(tmp_path / place)
    assert find_genotype("enas_rnn") == get_genotype("enas_rnn")
    with pytest.raises(InvalidArchError, match="recurrent cell, which reads text"):
        find_arch("enas_rnn")
    (tmp_path / "arc.txt").write_text(format_arc([0, 0, 0, 5, *[0] * 19]))
    with pytest.raises(ArcError, match=r"node2\.input is 5"):
        find_genotype(tmp_path / "arc.txt")


def test_drawing_names_the_function_of_the_first_state():
    genotype = SPACE.to_genotype(SPACE.smallest)
    assert cells_of(genotype)[0].inputs == ("x, h",)
    assert cells_of(replace(genotype, first="relu"))[0].inputs == ("relu of x, h",)


# -- shared weights ----------------------------------------------------------------------------------------------------


def random_cells(number, nodes=5, seed=0):
    space = SPACE.with_numbers(nodes=nodes)
    return [space.to_genotype(arch) for arch in space.decode(space.sample(np.random.default_rng(seed), number))]


def shaken(cell):
    """Larger weights, so that activations differ from each other."""
    torch.manual_seed(1)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return cell.double()


@pytest.fixture
def piece():
    """Inputs (4, 3, 6), a hidden state, and masks."""
    generator = torch.Generator().manual_seed(0)
    inputs, hidden = (torch.randn(*shape, 3, 6, dtype=torch.float64, generator=generator) for shape in ((4,), ()))
    masks = Masks(*(torch.rand(3, 6, dtype=torch.float64, generator=generator) for _ in range(2)))
    return inputs, hidden, masks


def straightforward(cell, genotype, inputs, hidden, masks, normalised):
    """The cell step by step, with a shared cell's matrices; BatchNorm by its formula."""

    def norm(product, place):
        if not normalised:
            return product
        mean, variance = product.mean(0), product.var(0, correction=0)
        return cell.norms[place].weight * (product - mean) / (variance + EPSILON).sqrt() + cell.norms[place].bias

    found = []
    for x in inputs:
        both = torch.cat([x * masks.inputs, hidden * masks.hidden], 1)
        c, h = norm(both @ cell.input_matrix(genotype.first), 0).chunk(2, 1)
        states = [hidden + FORMULAS["sigmoid"](c) * (FORMULAS[genotype.first](h) - hidden)]
        for node, (name, source) in enumerate(genotype.recurrent, 1):
            c, h = norm((states[source] * masks.hidden) @ cell.matrix(node, source, name), node).chunk(2, 1)
            states.append(states[source] + FORMULAS["sigmoid"](c) * (FORMULAS[name](h) - states[source]))
        read = {source for _, source in genotype.recurrent}
        ends = [state for number, state in enumerate(states) if number not in read]
        hidden = norm(sum(ends) / len(ends), -1)
        found.append(hidden)
    return torch.stack(found)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("a_function", [False, True])
def test_shared_cell_is_the_formula(piece, normalise, a_function):
    cell = shaken(SharedCell(6, 5, normalise=normalise, matrix_a_function=a_function))
    inputs, hidden, masks = piece
    for genotype in random_cells(6):
        expected = straightforward(cell, genotype, inputs, hidden, masks, normalise)
        torch.testing.assert_close(cell(inputs, hidden, genotype, masks), expected, rtol=CLOSE, atol=CLOSE)


def test_shared_cell_without_normalisation_is_the_discrete_cell_of_its_matrices(piece):
    shared = shaken(SharedCell(6, 5, normalise=False))
    inputs, hidden, masks = piece
    for genotype in random_cells(6):
        alone = DiscreteCell(genotype, 6).double()
        with torch.no_grad():
            alone.input_weight.copy_(shared.input_matrix(genotype.first))
            matrices = [shared.matrix(node, source, name) for node, (name, source) in enumerate(genotype.recurrent, 1)]
            alone.node_weight.copy_(torch.cat(matrices, 1))
        torch.testing.assert_close(alone(inputs, hidden, masks), shared(inputs, hidden, genotype, masks), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("a_function", [False, True])
def test_every_pair_has_a_matrix_of_its_own_and_as_released_every_function(a_function):
    cell = SharedCell(4, 5, normalise=False, matrix_a_function=a_function)
    pairs = [(node, source) for node in range(1, 5) for source in range(node)]
    found = {(pair, name): id(cell.matrix(*pair, name)) for pair in pairs for name in ACTIVATIONS}
    assert len(set(found.values())) == (40 if a_function else 10) == len(cell.node_weights)
    assert len({id(cell.input_matrix(name)) for name in ACTIVATIONS}) == (4 if a_function else 1)
    if not a_function:
        assert len({found[(3, 1), name] for name in ACTIVATIONS}) == 1
    factor = 4 if a_function else 1
    assert sum(p.numel() for p in cell.parameters()) == factor * (8 * 8 + 10 * 4 * 8)


def test_gradients_reach_the_matrices_of_the_cell_alone(piece):
    cell = shaken(SharedCell(6, 5, normalise=False))
    (genotype,) = random_cells(1)
    cell(*piece[:2], genotype).sum().backward()
    used = {id(cell.matrix(node, source, name)) for node, (name, source) in enumerate(genotype.recurrent, 1)}
    assert {id(p) for p in cell.node_weights if p.grad is not None} == used


def test_shared_cell_refuses_other_nodes(piece):
    with pytest.raises(GenotypeError, match="cell of 4 nodes, expected 5"):
        SharedCell(6, 5)(*piece[:2], random_cells(1, nodes=4)[0])


# -- search ------------------------------------------------------------------------------------------------------------

NOTHING = Dropouts(outputs=0, hidden=0, inputs=0, embeddings=0, words=0)
LITTLE = Dropouts(outputs=0.1, hidden=0.1, inputs=0.1, embeddings=0.1, words=0.05)
SMALL = EnasRnnConfig(
    nodes=4,
    features=8,
    epochs=2,
    batch_size=4,
    bptt=10,
    lr=5.0,
    clip_norm=1.0,
    controller_steps=6,
    controller_samples=2,
    controller_lr=0.05,
    candidates=8,
    eval_batch_size=2,
    dropouts=LITTLE,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for name, lines in (("train", 150), ("valid", 30), ("test", 10)):
        starts = rng.integers(0, 10, lines)
        folder.joinpath(f"{name}.txt").write_text("".join(f"w{s} w{(s + 1) % 10} w{(s + 2) % 10}\n" for s in starts))
    return folder


@pytest.fixture(scope="module")
def searched(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "run"
    return out, search_enas_recurrent(text, out, config=SMALL)


def records(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(out / "nas" / "metrics.jsonl")]


def test_search_writes_the_cell_and_how_it_came_about(searched):
    out, genotype = searched
    space = SPACE.with_numbers(nodes=4)
    assert parse_genotype((out / "genotype.txt").read_text()) == genotype
    arch = space.from_json(json.loads((out / "arch.json").read_text()))
    assert space.to_genotype(arch) == genotype == find_genotype(out)
    assert (out / "arc.txt").read_text().strip() == format_arc(rnn_arc(space, arch))
    assert (out / "cells.svg").read_text().startswith("<svg")
    first, last = records(out)
    assert (first["epoch"], last["epoch"]) == (1, 2)
    assert last["loss"] < first["loss"]
    assert 80 / 14 < first["reward"] <= first["best_reward"]  # guessing has a perplexity of 12
    assert last["best_reward"] >= max(first["best_reward"], last["reward"])
    assert 0 < last["entropy"] < np.log(4.0**4 * 6) + 1e-6
    assert json.loads((out / "nas" / "config.json").read_text())["method"] == "enas_rnn"
    ranking = json.loads((out / "nas" / "ranking.json").read_text())["candidates"]
    assert ranking[0]["arc"] == (out / "arc.txt").read_text().strip()
    assert sum(row["drawn"] for row in ranking) == 8
    assert [row["valid_perplexity"] for row in ranking] == sorted(row["valid_perplexity"] for row in ranking)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("method", "at"), [("one_step", 3), ("more", 4), ("more", 9)])
def test_resumed_search_is_the_one_that_was_not_stopped(searched, text, tmp_path, monkeypatch, method, at):
    monkeypatch.setattr("ofa.training.text_loop.CHECKPOINT_SECONDS", 0.0)
    whole, calls = getattr(RecurrentEnas, method), iter(range(1000))

    def dies(self, *arguments):
        if next(calls) == at:
            raise Stopped
        return whole(self, *arguments)

    out = tmp_path / "run"
    monkeypatch.setattr(RecurrentEnas, method, dies)
    with pytest.raises(Stopped):
        search_enas_recurrent(text, out, config=SMALL)
    assert list_checkpoints(out / "nas")
    monkeypatch.setattr(RecurrentEnas, method, whole)
    assert search_enas_recurrent(text, out, config=SMALL, resume=True) == searched[1]
    assert records(out) == records(searched[0])
    assert (out / "nas" / "ranking.json").read_bytes() == (searched[0] / "nas" / "ranking.json").read_bytes()


def test_finished_search_is_neither_repeated_nor_gone_on_with_otherwise(searched, text, tmp_path):
    out, genotype = searched
    assert search_enas_recurrent(text, out, config=SMALL, resume=True) == genotype
    with pytest.raises(TextTrainingError, match="already holds checkpoints; add --resume"):
        search_enas_recurrent(text, out, config=SMALL)
    with pytest.raises(TextTrainingError, match=r"controller_lr is 0.1, but it began with 0.05"):
        search_enas_recurrent(text, out, config=replace(SMALL, controller_lr=0.1), resume=True)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SearchError, match="is not empty and holds no search"):
        search_enas_recurrent(text, tmp_path, config=SMALL)


@pytest.fixture
def search(text, tmp_path):
    corpus = load_text(text)
    torch.manual_seed(0)
    net = LanguageModel(len(corpus.vocabulary), SharedCell(8, 4))
    return RecurrentEnas(tmp_path, net, corpus, SMALL, torch.device("cpu"))


def test_reward_is_c_over_the_perplexity_of_a_piece_without_dropout(search):
    cells = random_cells(3, nodes=4)
    found = search.rewards(cells)
    search.net.eval()
    rows = len(search.reward_text) - 1
    expected = []
    for start in range(rows - 10 + 1):
        tokens, targets = search.reward_text[start : start + 10], search.reward_text[start + 1 : start + 11]
        with torch.no_grad():
            nats = [prediction_loss(search.net(tokens, search.net.no_text(4), cell), targets) for cell in cells]
        expected.append(80 / torch.stack(nats).exp())
    assert any(torch.allclose(found, each, rtol=1e-5) for each in expected)
    assert torch.equal(found, search.rewards(cells))  # the piece follows from seed and step
    search.step += 1
    assert not torch.equal(found, search.rewards(cells))


def test_step_averages_the_gradients_of_its_cells(search, monkeypatch):
    search.config = replace(SMALL, cells_a_step=2, slowness=0.3, clip_norm=0.0, lr_decay=0.5, lr_decay_from=0)
    tokens, targets = search.text[:4], search.text[1:5]
    parameters = dict(search.net.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    monkeypatch.setattr(search, "noise", lambda part: Noise(LITTLE, torch.Generator().manual_seed(part)))
    losses, regular = [], 0
    search.net.train()
    statistics = {name: b.clone() for name, b in search.net.named_buffers()}
    cells = search._draw(2, 0xE1)
    assert cells[0] != cells[1]
    for number, cell in enumerate(cells):
        output = search.net(tokens, search.hidden, cell, noise=search.noise(0xE4 + number))
        losses.append(F.cross_entropy(output.logits.flatten(0, 1), targets.flatten()))
        regular = regular + 0.3 * (output.states[1:] - output.states[:-1]).square().mean()
    gradients = torch.autograd.grad((sum(losses) + regular) / 2, list(parameters.values()), allow_unused=True)
    for name, buffer in search.net.named_buffers():
        buffer.copy_(statistics[name])
    assert search.one_step(tokens, targets) == pytest.approx(float(sum(losses).detach()) / 2, rel=1e-5)
    rate = 5.0 * 0.5 * 4 / 10  # decayed once, for 4 of 10 tokens
    unused = 0
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        unused += gradient is None
        moved = 0 if gradient is None else rate * (gradient + SMALL.weight_decay * before[name])
        torch.testing.assert_close(p.detach(), before[name] - moved, rtol=1e-4, atol=1e-6)
    assert unused
    assert torch.equal(search.hidden, output.hidden)


def test_ranking_measures_drawn_cells_on_all_of_the_validation_text(search):
    ranked = search.ranked()
    assert len({arch for arch, _, _ in ranked}) == len(ranked)
    arch, perplexity, _ = ranked[0]
    choice = search.space.to_genotype(arch)
    assert perplexity == perplexity_of(nats_a_token(search.net, search.corpus.valid, batch=2, choice=choice))
    assert perplexity == min(found for _, found, _ in ranked)


def test_learning_rate_and_variants():
    config = EnasRnnConfig()
    assert [config.learning_rate(epoch) for epoch in (0, 14, 15, 16)] == pytest.approx([20, 20, 20 * 0.96, 20 * 0.96**2])
    released = configure_rnn("release", features=100)
    assert (released.lr, released.matrix_a_function, released.controller_samples, released.features) == (8.75, True, 10, 100)
    assert configure_rnn() == config
    with pytest.raises(OfaError, match="unknown variant 'best'"):
        configure_rnn("best")
    with pytest.raises(OfaError, match="unknown variant 'best'"):
        EnasRnnConfig(variant="best")
    with pytest.raises(OfaError, match="baseline_decay is 2, expected a number from 0 to 1"):
        EnasRnnConfig(baseline_decay=2)
    with pytest.raises(OfaError, match="initial_baseline is 'x'"):
        EnasRnnConfig(initial_baseline="x")


def test_shared_weights_learn_and_are_rewarded_for_it(text, tmp_path):
    config = replace(SMALL, nodes=2, features=32, epochs=20, normalise=False, controller_lr=1e-6, candidates=1, clip_norm=0.25)
    search_enas_recurrent(text, tmp_path / "run", config=replace(config, dropouts=NOTHING))
    rewards = [line["reward"] for line in records(tmp_path / "run")]
    assert rewards[-1] > 1.5 * rewards[0]


def test_released_variant_searches(text, tmp_path):
    small = {name: getattr(SMALL, name) for name in ("nodes", "features", "batch_size", "bptt", "eval_batch_size", "dropouts")}
    config = configure_rnn("release", **small, epochs=1, controller_steps=2, controller_samples=3, candidates=2)
    genotype = search_enas_recurrent(text, tmp_path / "run", config=config)
    assert len(genotype.recurrent) == 3


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_any_point_trains_and_exports(text, tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("point")
    genotype = SPACE.to_genotype(SPACE.decode(SPACE.sample(np.random.default_rng(seed), 1))[0])
    config = LanguageConfig(features=8, epochs=1, batch_size=4, bptt=10, lr=2.0, eval_batch_size=2)
    train_language_model(genotype, text, folder / "model", config=config)
    assert load_language_model(folder / "model")[0].cell.genotype == genotype
    assert find_genotype(folder / "model") == genotype
    assert export_language_model(folder / "model", folder / "export").parity_error <= TOLERANCE
    assert loose_ends(genotype.recurrent) == genotype.concat


def test_command_searches_and_goes_on(cli, text, tmp_path):
    small = ["--features", 8, "--epochs", 1, "--batch-size", 4, "--bptt", 10, "--controller-steps", 2, "--candidates", 2]
    command = ["nas", "enas", "--space", "rnn", "--text", text, "--out", tmp_path / "run", *small, "--dropout", 0.1]
    done = cli(*command, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert parse_genotype(done.stdout) == find_genotype(tmp_path / "run")
    assert "ofa train-text" in done.stderr
    again = cli(*command, "--resume", "auto", env={"OMP_NUM_THREADS": "1"})
    assert again.stdout == done.stdout
