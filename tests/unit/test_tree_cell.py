"""Recurrent cells that are trees: the published example by hand, any tree by an independent evaluation, and what is around them."""

import json
import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deploy.language import TOLERANCE, export_language_model, onnx_of_language_model, step_error
from ofa.artefacts import write_json
from ofa.find_arch import find_arch, find_genotype
from ofa.genotype import GenotypeError
from ofa.language_model import Dropouts, LanguageModel, Noise, build_cell
from ofa.recurrent import Masks
from ofa.space import ArchConfig, InvalidArchError
from ofa.spaces import get_space
from ofa.spaces.nas_rl_rnn import SPACE
from ofa.training.language import LanguageConfig, load_language_model, train_language_model
from ofa.training.text import load_text
from ofa.training.text_loop import nats_a_token
from ofa.tree_cell import TreeCell
from ofa.tree_genotype import TreeGenotype, parse_text_cell, parse_tree
from search.tree_drawing import sentences, steps_of, write_tree

# Zoph and Le 2016, section 3.4: the base 2 tree whose steps the paper writes down
EXAMPLE = TreeGenotype((("add", "tanh"), ("elem_mult", "relu"), ("elem_mult", "sigmoid")), ("add", "relu"), 0, 1)
CLOSE = 1e-12  # relative, float64: sums in another order


def trees(number, base=8, seed=0):
    space = SPACE.with_numbers(base=base)
    return [space.to_genotype(arch) for arch in space.decode(space.sample(np.random.default_rng(seed), number))]


# -- the cell ----------------------------------------------------------------------------------------------------------


def test_published_example_by_hand():
    """One feature, one text, numbers that a pocket calculator has: W1 x = 0.6, W2 h = 0.2, W3 x = 1, W4 h = -0.8, c = 0.5."""
    cell = TreeCell(EXAMPLE, 1).double()
    with torch.no_grad():
        cell.input_weight.copy_(torch.tensor([[0.3, 0.5]]))  # W1, W3
        cell.hidden_weight.copy_(torch.tensor([[0.5, -2.0]]))  # W2, W4
    x, h, c = 2.0, 0.4, 0.5
    a0 = math.tanh(0.6 + 0.2)
    a1 = max(0.0, 1.0 * -0.8)  # relu of a negative product
    a0_new = max(0.0, a0 + 0.5)
    expected = [1 / (1 + math.exp(-a0_new * a1)), -0.8]
    assert expected[0] == 0.5
    state = cell(torch.tensor([[[x]]]).double(), torch.tensor([[h, c]]).double())
    assert state.flatten().tolist() == pytest.approx(expected, rel=1e-7)  # weights were given as float32
    # with h = -0.4 the product is positive
    a0_new, a1 = math.tanh(0.6 - 0.2) + 0.5, 0.8
    expected = [1 / (1 + math.exp(-a0_new * a1)), 0.8]
    state = cell(torch.tensor([[[x]]]).double(), torch.tensor([[-h, c]]).double())
    assert state.flatten().tolist() == pytest.approx(expected, rel=1e-7)


NUMPY = {
    "identity": lambda v: v,
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "relu": lambda v: np.maximum(v, 0),
    "add": np.add,
    "elem_mult": np.multiply,
}


def independent(tree, cell, inputs, hidden, memory, masks):
    """The tree from its root down, in numpy; returns hidden and cell states over time."""
    weights = [w.detach().numpy() for w in (cell.input_weight, cell.hidden_weight)]
    n, found = cell.features, []
    for x in inputs:
        from_x, from_h = ((v * mask) @ w for v, mask, w in zip((x, hidden), masks, weights, strict=True))

        def before(leaf, from_x=from_x, from_h=from_h):
            place = slice(leaf * n, (leaf + 1) * n)
            return NUMPY[tree.nodes[leaf][0]](from_x[:, place], from_h[:, place])

        def value(level, place, memory=memory, before=before):
            """Of node `place` of a level, 0 = leaves."""
            start = sum(tree.base >> above for above in range(level))
            combine, activation = (NUMPY[name] for name in tree.nodes[start + place])
            if level:
                return activation(combine(value(level - 1, 2 * place), value(level - 1, 2 * place + 1)))
            leaf = activation(before(place))
            if place != tree.inject_leaf:
                return leaf
            return NUMPY[tree.inject[1]](NUMPY[tree.inject[0]](leaf, memory))

        hidden, memory = value(int(math.log2(tree.base)), 0), before(tree.cell_leaf)
        found.append(np.concatenate([hidden, memory], 1))
    return np.stack(found)


@pytest.mark.parametrize("base", [2, 4, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_any_tree_is_what_its_root_asks_for(base, masked):
    rng = np.random.default_rng(base)
    inputs, hidden, memory = (rng.normal(size=shape) for shape in ((4, 3, 5), (3, 5), (3, 5)))
    masks = rng.integers(0, 2, (2, 3, 5)).astype(float) if masked else np.ones((2, 3, 5))
    state = torch.from_numpy(np.concatenate([hidden, memory], 1))
    for tree in trees(20, base, seed=base):
        cell = TreeCell(tree, 5).double()
        found = cell(torch.from_numpy(inputs), state, Masks(*map(torch.from_numpy, masks)) if masked else None)
        expected = independent(tree, cell, inputs, hidden, memory, masks)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=CLOSE)
        np.testing.assert_array_equal(cell.outputs(found).detach().numpy(), found[..., :5].detach().numpy())


def test_weights_are_two_matrices_a_leaf_and_none_above():
    for base in (2, 8):
        cell = TreeCell(trees(1, base)[0], 6)
        assert sum(p.numel() for p in cell.parameters()) == 2 * base * 6 * 6
        assert all(float(p.detach().abs().max()) <= 6**-0.5 for p in cell.parameters())
    assert TreeCell(EXAMPLE, 6).state_features == 12


def test_gradients_reach_all_weights_that_matter():
    cell = TreeCell(EXAMPLE, 4).double()
    inputs, state = torch.rand(3, 2, 4, dtype=torch.float64), torch.rand(2, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, s, *w: cell(x, s), (inputs, state.requires_grad_(), *cell.parameters()))


# -- as text and as points ---------------------------------------------------------------------------------------------


def test_the_published_sequence_is_read_in_its_order():
    """Zoph and Le 2017, section 3.4: "..., Add, ReLU, 1, 0" is c_t from leaf 1, and c_(t-1) into leaf 0."""
    space = SPACE.with_numbers(base=2)
    published = ("add", "tanh", "elem_mult", "relu", "elem_mult", "sigmoid", "add", "relu", 1, 0)
    assert space.to_genotype(ArchConfig(space.name, published)) == EXAMPLE
    assert space.from_genotype(EXAMPLE).values == published


@given(st.integers(0, 2**20), st.sampled_from([2, 4, 8, 16]))
def test_point_tokens_tree_and_text_are_one(seed, base):
    space = SPACE.with_numbers(base=base)
    population = space.sample(np.random.default_rng(seed), 1)
    (arch,) = space.decode(population)
    tree = space.to_genotype(arch)
    assert space.from_genotype(tree) == arch
    assert parse_tree(str(tree)) == tree == parse_text_cell(str(tree))
    tokens = population[0].tolist()
    steps = [
        (("add", "elem_mult")[c], ("identity", "tanh", "sigmoid", "relu")[a])
        for c, a in zip(tokens[:-2:2], tokens[1:-2:2], strict=True)
    ]
    assert (*tree.nodes, tree.inject) == tuple(steps)
    assert [tree.cell_leaf, tree.inject_leaf] == tokens[-2:]
    assert get_space(space.name).from_json(space.to_json(arch)) == arch


def test_children_stand_level_by_level():
    tree = trees(1, 8)[0]
    assert [tree.children(node) for node in range(8, 15)] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13)]


def test_space_is_as_large_as_its_tokens_say():
    assert SPACE.size() == 8**16 * 8**2  # 15 nodes and the injection; two leaves
    assert len(SPACE.dimensions) == 34
    assert SPACE.name == get_space("nas_rl_rnn:base=8").name == "nas_rl_rnn"
    for wrong in ("base=3", "base=128", "base=0", "leaves=4", "base=x"):
        with pytest.raises(InvalidArchError, match="nas_rl_rnn: "):
            get_space(f"nas_rl_rnn:{wrong}")
    with pytest.raises(InvalidArchError, match="tree of 2 leaves, expected 8"):
        SPACE.from_genotype(EXAMPLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tree(", "not a tree"),
        ("Tree()", r"tree has the fields \[\]"),
        (str(EXAMPLE).replace("cell_leaf=1", "cell_leaf=2"), "cell_leaf is 2, expected a leaf, 0 to 1"),
        (str(EXAMPLE).replace("cell_leaf=1", "cell_leaf=True"), "not a tree"),
        (str(EXAMPLE).replace("'tanh'", "'gelu'"), r"has the step \('add', 'gelu'\)"),
        (str(EXAMPLE).replace("('add', 'tanh'), ", ""), "tree of 2 nodes, expected 3, 7"),
        (str(EXAMPLE).replace("nodes=", "nodes=3 + "), "not a tree"),
        (str(EXAMPLE).replace("('add', 'tanh')", "__import__('os')"), "not a tree"),
        (str(EXAMPLE).replace("inject=", "nodes=[], inject="), "not a tree|fields"),
        ("Tree(" + "(" * 30_000, "not a tree"),
        (f"[{EXAMPLE}]", "not a"),
    ],
)
def test_what_is_no_tree_is_refused(text, message):
    with pytest.raises(GenotypeError, match=message):
        parse_tree(text)


def test_cells_for_images_are_no_text_cells():
    from ofa.genotypes import TEXTS

    with pytest.raises(GenotypeError, match="cells for images"):
        parse_text_cell(TEXTS["darts_v2"])


def test_drawing_tells_every_step(tmp_path):
    write_tree(tmp_path / "cells.svg", EXAMPLE)
    svg = (tmp_path / "cells.svg").read_text()
    assert svg.startswith("<svg")
    for line in ("x + h", "tanh", "+ c relu", "x × h = new c", "relu", "× sigmoid", "new h"):
        assert f">{line}</text>" in svg
    assert steps_of(EXAMPLE, 0) == ["x + h", "tanh", "+ c relu"]
    assert sentences(EXAMPLE)[2:] == ["node 2: × sigmoid of 0 and 1", "new h = node 2"]


# -- in a language model -----------------------------------------------------------------------------------------------


def test_language_model_sees_the_hidden_state_and_goes_on_from_both():
    torch.manual_seed(0)
    net = LanguageModel(7, build_cell(EXAMPLE, 5)).double()
    tokens = torch.randint(7, (6, 3))
    nothing = net.no_text(3)
    assert nothing.shape == (3, 10)
    whole = net(tokens, nothing)
    assert (whole.logits.shape, whole.hidden.shape, whole.states.shape) == ((6, 3, 7), (3, 10), (6, 3, 5))
    half = net(tokens[:2], nothing)
    rest = net(tokens[2:], half.hidden)
    torch.testing.assert_close(torch.cat([half.logits, rest.logits]), whole.logits, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(rest.hidden, whole.hidden, rtol=CLOSE, atol=CLOSE)
    logits, hidden = net.step(tokens[0], nothing)
    torch.testing.assert_close(logits, whole.logits[0], rtol=CLOSE, atol=CLOSE)
    assert hidden.shape == (3, 10)
    assert sum(p.numel() for p in net.parameters()) == 7 * 5 + 7 + 2 * 2 * 25
    noise = Noise(Dropouts(), torch.Generator().manual_seed(0))
    dropped = net(tokens, nothing, noise=noise)
    assert dropped.states.shape == (6, 3, 5)
    assert not torch.equal(dropped.logits, whole.logits)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for name, lines in (("train", 150), ("valid", 30), ("test", 30)):
        starts = rng.integers(0, 10, lines)
        folder.joinpath(f"{name}.txt").write_text("".join(f"w{s} w{(s + 1) % 10} w{(s + 2) % 10}\n" for s in starts))
    return folder


# an LSTM-like tree that learns: bounded, and its memory enters by a sum
GOOD = TreeGenotype((("add", "tanh"), ("add", "sigmoid"), ("elem_mult", "tanh")), ("add", "tanh"), 0, 0)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    config = LanguageConfig(features=16, epochs=8, batch_size=4, bptt=10, lr=5.0, eval_batch_size=2)
    nothing = Dropouts(outputs=0, hidden=0, inputs=0, embeddings=0, words=0)
    return out, train_language_model(GOOD, text, out, config=replace(config, dropouts=nothing))


def test_trained_tree_learns_and_is_read_back(trained, text):
    out, result = trained
    assert result.valid_perplexity < 8  # about 9.9 for guessing by frequency
    net, vocabulary = load_language_model(out)
    assert net.cell.genotype == GOOD == find_genotype(out)
    assert (out / "genotype.txt").read_text().strip() == str(GOOD)
    record = json.loads((out / "arch.json").read_text())
    assert record["space"] == "nas_rl_rnn:base=2"
    assert result.parameters == 16 * 12 + 12 + 2 * 2 * 16 * 16
    corpus = load_text(text)
    assert vocabulary == corpus.vocabulary
    assert math.exp(nats_a_token(net, corpus.valid, batch=2)) == pytest.approx(result.valid_perplexity)


def test_a_tree_from_its_point_or_its_text(tmp_path):
    tree = trees(1)[0]
    write_json(tmp_path / "arch.json", SPACE.to_json(SPACE.from_genotype(tree)), sealed=True)
    (tmp_path / "cell.txt").write_text(f"{tree}\n")
    for place in ("", "arch.json", "cell.txt"):
        assert find_genotype(tmp_path / place) == tree
        with pytest.raises(InvalidArchError, match=r"recurrent cell, which reads text, .* ofa train-text"):
            find_arch(tmp_path / place)


def test_exported_step_keeps_both_states_and_says_what_torch_says(trained, text, tmp_path):
    out, _ = trained
    exported = export_language_model(out, tmp_path / "export")
    assert exported.parity_error <= TOLERANCE
    assert (exported.features, exported.state_features) == (16, 32)
    record = json.loads((tmp_path / "export" / "model.json").read_text())
    assert (record["genotype"], record["features"], record["state_features"]) == (str(GOOD), 16, 32)
    net, _ = load_language_model(out)
    stream = load_text(text).test[:60]
    session, hidden, found = onnxruntime.InferenceSession(exported.path.read_bytes()), np.zeros((1, 32), np.float32), []
    assert [value.shape for value in session.get_outputs()] == [["batch", 12], ["batch", 32]]
    for token in stream:
        row, hidden = session.run(None, {"tokens": np.array([token]), "hidden": hidden})
        found.append(row[0])
    with torch.no_grad():
        expected = F.log_softmax(net(stream[:, None], net.no_text(1)).logits[:, 0], -1)
    np.testing.assert_allclose(np.stack(found), expected.numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**20))
def test_any_tree_is_exported(seed):
    torch.manual_seed(seed)
    net = LanguageModel(20, TreeCell(trees(1, seed=seed)[0], 8))
    content = onnx_of_language_model(net)
    assert step_error(net, content) <= TOLERANCE
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert weights < len(content) < weights + 30_000  # names, shapes and operators besides


def test_command_trains_a_tree(cli, tmp_path, text):
    (tmp_path / "cell.txt").write_text(str(EXAMPLE))
    small = ["--features", 8, "--epochs", 1, "--batch-size", 4, "--bptt", 10, "--dropout", 0.1]
    done = cli("train-text", tmp_path / "cell.txt", "--text", text, "--out", tmp_path / "m", *small, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    done = cli("export", tmp_path / "m", "-o", tmp_path / "e", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e" / "model.json").read_text())["state_features"] == 16
