"""Cells as text and as points of a space; blocks that read several others; what training adds to networks of cells."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.export_module import load_cells
from ofa.artefacts import ArtefactError, write_json
from ofa.block_spec import Blocks, BlockSpec, last_readers, wiring
from ofa.blocks import build_network
from ofa.errors import OfaError
from ofa.find_arch import find_arch, find_genotype
from ofa.formats.darts import key_map, load_network
from ofa.formats.published import FormatError
from ofa.genotype import Genotype, GenotypeError, RecurrentGenotype, parse_genotype
from ofa.genotypes import get_genotype, list_genotypes
from ofa.space import InvalidArchError
from ofa.spaces import UnknownSpaceError, get_space
from ofa.supernet import Noise, Supernet
from ofa.training.augment import cut_out
from ofa.training.auxiliary import make_head
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.cli import app

SMALL = get_space("darts:cells=4,channels=4,resolution=16")
SPACES = {name: get_space(name) for name in ("darts", "nasnet")}

# -- genotypes as text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_genotypes())
def test_published_cells_survive_both_text_forms(name):
    genotype = get_genotype(name)
    assert parse_genotype(str(genotype)) == genotype
    if isinstance(genotype, Genotype):
        assert parse_genotype(genotype.text(nested=True)) == genotype
        space, arch = find_arch(name)
        assert space.to_genotype(arch).normal_concat == tuple(sorted(genotype.normal_concat))


@st.composite
def genotypes(draw, space):
    def cell():
        nodes = []
        for node in range(2, 2 + space.nodes):
            sources = st.lists(st.integers(0, node - 1), min_size=2, max_size=2, unique=not space.repeats)
            nodes.append(tuple((draw(st.sampled_from(space.operations)), source) for source in draw(sources)))
        states = list(range(2, 2 + space.nodes))
        concat = draw(st.lists(st.sampled_from(states), min_size=1, unique=True)) if space.chooses_concat else states
        return tuple(nodes), tuple(concat)

    (normal, normal_concat), (reduce, reduce_concat) = cell(), cell()
    return Genotype(normal, normal_concat, reduce, reduce_concat)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_every_genotype_of_a_space_is_one_of_its_points(space, data):
    genotype = data.draw(genotypes(space))
    assert parse_genotype(str(genotype)) == genotype
    back = space.to_genotype(space.from_genotype(genotype))
    for ours, theirs in ((back.normal, genotype.normal), (back.reduce, genotype.reduce)):
        assert [sorted(node) for node in ours] == [sorted(node) for node in theirs]
    assert space.from_genotype(back) == space.from_genotype(genotype)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a genotype"),
        ("1 + 1", "not a genotype"),
        ("(" * 9000, "not a genotype"),
        ("Genotype(" + "[" * 300 + "]" * 300 + ")", "not a genotype"),
        ("x" * 30_000, "30000 characters"),
        ("Genotype(normal=[('a', 0)])", "expected normal, normal_concat, reduce, reduce_concat"),
        ("Genotype(recurrent=[('tanh', 1)], concat=[1])", "node 1 of recurrent reads state 1 (tanh), expected 0 to 0"),
        ("Genotype(recurrent=[('tanh', 0)], concat=range(1, 10**9))", "expected lists of names and numbers"),
        ("Genotype(recurrent=__import__('os').system('x'), concat=[1])", "expected lists of names and numbers"),
        ("Genotype(recurrent=[('tanh', 0)], concat=[True])", "concat is [True]"),
        ("Genotype(recurrent=[('tanh', 0)], concat=[2])", "hands on the states [2]"),
        ("Genotype([('a', 0)] * 3, [2], [('a', 0)], [2])", "expected lists"),
        ("Genotype([('a', 0), ('b', 1), ('c', 0)], [2], [('a', 0)], [2])", "flat cell of 3 entries"),
        ("Genotype([[('a', 0)], []], [2], [('a', 0), ('b', 1)], [2])", "node [], expected a list"),
    ],
)
def test_other_texts_are_refused_in_one_line(text, message):
    with pytest.raises(GenotypeError, match=re.escape(message)) as caught:
        parse_genotype(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_recurrent_cell_keeps_range_and_list():
    genotype = parse_genotype("Genotype(recurrent=[('relu', 0), ('tanh', 1)], concat=range(1, 3))")
    assert genotype == RecurrentGenotype((("relu", 0), ("tanh", 1)), (1, 2))


# -- spaces of cells --------------------------------------------------------------------------------------------------


def test_numbers_follow_a_spaces_name():
    space = get_space("darts:channels=16,cells=8")
    assert (space.name, space.cells, space.channels) == ("darts:cells=8,channels=16", 8, 16)
    assert get_space(space.name) == space
    assert get_space("darts:cells=20") == get_space("darts")
    assert get_space("nasbench201:cells=1").name == "nasbench201:cells=1"
    # 20 cells of 2 inputs, 14 edges, 4 sums and a concatenation; stem, pool and classifier
    assert len(get_space("darts").slots) == 20 * 21 + 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("darts:cells=2", "cells is 2, expected at least 3"),
        ("darts:channels=3", "channels is 3, expected an even number"),
        ("darts:resolution=30", "multiple of 4 px"),
        ("darts:stem=x", "expected cifar or imagenet"),
        ("darts:stem=imagenet", "multiple of 32"),
        ("darts:depth=3", "has no number 'depth'"),
        ("darts:cells=many", "cells is 'many'"),
        ("darts:cells", "expected numbers such as"),
        ("mbv3_tiny_image:cells=3", "comes in one size"),
        ("nasbench201:stem=3", "has no number 'stem'"),
    ],
)
def test_numbers_that_no_network_has_are_refused(name, message):
    if name == "darts:stem=imagenet":
        name = "darts:stem=imagenet,resolution=48"
    with pytest.raises((OfaError, UnknownSpaceError), match=re.escape(message)):
        get_space(name)


def test_a_skip_is_no_block_and_in_a_reduction_one():
    arch = SMALL.from_genotype(get_genotype("darts_v1"))
    blocks, wires = SMALL.blocks(arch), wiring(SMALL.blocks(arch))
    assert wires["cell0_node3"] == ("cell0_input0", "cell0_node3_from1")  # skip_connect from 0, sep_conv_3x3 from 1
    assert "cell0_node3_from0" not in blocks
    assert blocks["cell2_node2_from0"].kind == "maxpool"
    halved = next(spec for name, spec in blocks.items() if spec.kind == "factorized_reduce")
    assert (halved.stride, halved.out_resolution) == (2, halved.resolution // 2)


def test_one_state_may_feed_a_node_of_nasnet_twice():
    space = get_space("nasnet:cells=4,channels=4,resolution=16")
    arch = space.from_genotype(get_genotype("nasnet_a"))
    assert wiring(space.blocks(arch))["cell0_node3"] == ("cell0_node3_from0", "cell0_node3_from0_again")
    wires = wiring(space.blocks(arch))
    assert len(wires["cell0"]) == 5
    assert len(wires["cell1"]) == 3  # the first reduction cell hands on three of its five nodes


def test_a_supernet_of_cells_gives_every_operation_of_every_edge_its_own_weights():
    net = Supernet(SMALL)
    kinds = {key.removeprefix("cell3_node5_from4_") for key in net.layers if key.startswith("cell3_node5_from4")}
    assert kinds == {"maxpool3", "avgpool3", "dil_conv3", "dil_conv5", "sep_conv3", "sep_conv5"}
    rng = np.random.default_rng(0)
    images = torch.randn(2, 3, 16, 16)
    for arch in SMALL.decode(SMALL.sample(rng, 3)):
        static = net.eval().extract(arch)
        with torch.no_grad():
            torch.testing.assert_close(static(images), net(images, arch))
        assert sum(p.numel() for p in static.parameters()) < sum(p.numel() for p in net.parameters()) / 3


# -- blocks that read several others ------------------------------------------------------------------------------------


def pair(**reads):
    spec = BlockSpec("relu_conv", 3, 3, 8)
    blocks = {"a": spec, "b": spec, "sum": BlockSpec("sum", 3, 3, 8, num_inputs=2)}
    return Blocks(blocks, {"sum": ("a", "b"), **reads})


def test_a_chain_is_what_remains_without_wiring():
    spec = BlockSpec("relu_conv", 3, 3, 8)
    assert wiring({"a": spec, "b": spec}) == {"a": ("images",), "b": ("a",)}
    assert wiring({"sum": BlockSpec("sum", 3, 3, 8, num_inputs=2)}) == {"sum": ("images", "images")}
    assert last_readers(wiring(pair())) == {"a": ["images"], "b": [], "sum": ["a", "b"]}
    assert last_readers(wiring(pair(sum=("a", "a")))) == {"a": ["images"], "b": ["b"], "sum": ["a"]}  # b leads nowhere


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ({"a": ("b",)}, "block 'a' reads 'b', which is none of the blocks before it"),
        ({"a": ("a",)}, "block 'a' reads 'a'"),
        ({"sum": ("a",)}, "reads 1 tensors, expected 2"),
        ({"c": ("a",)}, "there is no such block"),
    ],
)
def test_wiring_that_cannot_run_is_refused(reads, message):
    with pytest.raises(OfaError, match=re.escape(message)):
        wiring(pair(**reads))


def test_a_network_adds_what_its_wiring_says():
    net = build_network(pair(b=("images",))).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.a(images) + net.b(images))


# -- which architecture a word means ------------------------------------------------------------------------------------


def test_an_architecture_by_name_file_or_text(tmp_path):
    space, arch = find_arch("darts_v2", cells=8, channels=16)
    assert space.name == "darts:cells=8,channels=16"
    write_json(tmp_path / "arch.json", space.to_json(arch), sealed=True)
    (tmp_path / "genotype.txt").write_text(str(get_genotype("darts_v2")))
    assert find_arch(tmp_path) == find_arch(tmp_path / "arch.json") == (space, arch)
    assert find_arch(tmp_path / "genotype.txt", cells=8, channels=16) == (space, arch)
    larger, same_cells = find_arch(tmp_path, cells=20, channels=36, resolution=64)
    assert larger.name == "darts:resolution=64"
    assert larger.to_genotype(same_cells) == space.to_genotype(arch)
    assert find_genotype(tmp_path) is None  # an arch.json is read with its space
    assert find_arch("nasnet_a")[0].name == "nasnet"


def test_a_genotype_in_a_folder_or_of_nasbench201(tmp_path):
    (tmp_path / "genotype.txt").write_text(str(get_genotype("enas_rnn")))
    assert find_genotype(tmp_path) == get_genotype("enas_rnn")  # of no space, so that there is no arch.json
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|none~2|"
    (tmp_path / "cell.txt").write_text(text + "\n")
    space, arch = find_arch(tmp_path / "cell.txt", cells=1)
    assert space.name == "nasbench201:cells=1"
    assert arch.values == (32, "nor_conv_3x3", "none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3", "none")


def test_a_recurrent_space_is_not_trained_on_images(tmp_path):
    with pytest.raises(OfaError, match="its networks read no images; recurrent cells are trained with: ofa train-text"):
        train_supernet("darts_rnn", "digits", tmp_path / "run")


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("darts_v9", ArtefactError, "darts_v9: no such file; expected an arch.json"),
        ("darts_rnn_v2", InvalidArchError, "is a recurrent cell, which reads text"),
    ],
)
def test_words_that_are_no_architecture_for_images(word, error, message):
    with pytest.raises(error, match=message):
        find_arch(word)


def test_cells_do_not_fit_other_spaces():
    with pytest.raises(InvalidArchError, match="has no such cells"):
        find_arch("darts_v2", space="mbv3_tiny_image")
    with pytest.raises(GenotypeError, match="has 5 nodes, expected 4"):
        find_arch("nasnet_a", space="darts")


# -- weights of the authors' code ---------------------------------------------------------------------------------------


def original_state(name):
    """A random network of published cells under the keys of its authors' code, as they save it: in a DataParallel wrapper."""
    genotype = get_genotype(name)
    space = find_arch(name, cells=3, channels=4)[0]
    blocks = space.blocks(space.from_genotype(genotype))
    net = build_network(blocks).eval()
    with torch.no_grad():
        for key, value in net.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 1.5)
    names = key_map(genotype, blocks)
    return net, {f"module.{names[key]}": value for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", ["darts_v2", "amoebanet_a"])
def test_the_authors_weights_are_exported_as_they_are(name, tmp_path):
    net, state = original_state(name)
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    found = load_cells(name, tmp_path / "weights.pt")
    images = torch.randn(2, 3, found.resolution, found.resolution)
    with torch.no_grad():
        torch.testing.assert_close(found.net(images), net(images))
    argv = ["export", name, "--weights", str(tmp_path / "weights.pt"), "-o", str(tmp_path / "out"), "--no-prove"]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert record["parity_error"] < 1e-5
    assert record["preprocess"]["mean"] == [0.4914, 0.4822, 0.4465]  # CIFAR's, which the authors normalised with
    assert record["preprocess"]["resolution"] == 32


def test_weights_of_other_cells_are_refused(tmp_path):
    _, state = original_state("darts_v2")
    for wrong, message in (
        ({**state, "cells.0.more": torch.zeros(1)}, "has cells.0.more"),
        ({key: value for key, value in state.items() if "classifier" not in key}, "has no cells, stem and classifier"),
        ({key: value for key, value in state.items() if not key.endswith("stem.1.bias")}, "has no stem.1.bias"),
        ({**state, "module.stem.1.bias": torch.zeros(3)}, "stem.1.bias has shape (3,)"),
    ):
        with pytest.raises(FormatError, match=re.escape(message)):
            load_network(wrong, get_genotype("darts_v2"))
    with pytest.raises(FormatError, match="is it of another genotype"):
        load_network(state, get_genotype("pc_darts"))
    write_json(tmp_path / "arch.json", SMALL.to_json(SMALL.largest), sealed=True)
    with pytest.raises(OfaError, match="its run has them"):
        load_cells(tmp_path / "arch.json", tmp_path / "w.pt")


# -- training -----------------------------------------------------------------------------------------------------------


def test_drop_path_leaves_identities_and_the_mean_alone():
    arch = SMALL.from_genotype(get_genotype("darts_v1"))
    net, images = Supernet(SMALL.restrict(arch)).train(), torch.randn(64, 3, 16, 16)
    seen, dropped = {}, {}
    with torch.no_grad():
        net(images, arch, observe=seen.__setitem__)
        net(images, arch, Noise(0.0, 0.0, torch.Generator().manual_seed(0), drop_path=0.5), observe=dropped.__setitem__)
        edge = dropped["cell0_node2_from0"]
        zeros = edge.abs().sum((1, 2, 3)) == 0
        assert 10 < zeros.sum() < 54  # of 64; 5 standard deviations
        torch.testing.assert_close(edge[~zeros], 2 * seen["cell0_node2_from0"][~zeros])
        torch.testing.assert_close(dropped["cell0_input0"], seen["cell0_input0"])
        quiet = {}
        net.eval()(images, arch, Noise(0.0, 0.0, torch.Generator(), drop_path=0.5), observe=quiet.__setitem__)
        assert not (quiet["cell0_node2_from0"].abs().sum((1, 2, 3)) == 0).any()


def test_cutout_leaves_out_one_square():
    centres = np.array([[0.5, 0.5], [0.0, 0.99]])
    out = cut_out(torch.ones(2, 3, 8, 8), centres, 4)
    hole = torch.ones(8, 8)
    hole[2:6, 2:6] = 0
    torch.testing.assert_close(out[0], hole.expand(3, 8, 8))
    corner = torch.ones(8, 8)
    corner[0:2, 5:8] = 0  # it reaches over two borders
    torch.testing.assert_close(out[1], corner.expand(3, 8, 8))


def test_an_auxiliary_head_needs_one_network_with_room_for_it():
    arch = SMALL.largest
    with pytest.raises(OfaError, match="goes with one network of cells"):
        make_head(SMALL)
    with pytest.raises(OfaError, match="features are 4 px"):
        make_head(SMALL.restrict(arch))
    with pytest.raises(OfaError, match="goes with one network of cells"):
        make_head(get_space("mbv3_tiny_image"))
    large = SMALL.with_numbers(resolution=64)
    head = make_head(large.restrict(large.from_values({**dict(zip(SMALL.column, arch.values, strict=True)), "resolution": 64})))
    assert head(torch.randn(2, 64, 16, 16)).shape == (2, 10)


def test_settings_of_cells_on_other_networks_leave_nothing_behind(tmp_path):
    with pytest.raises(OfaError, match="leave --auxiliary out"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "run", config=TrainConfig(auxiliary=0.4))
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="drop_path = 0.1 has no effect on mbv3_tiny_image"):
        train_supernet("mbv3_tiny_image", "digits", tmp_path / "run", config=TrainConfig(epochs=1, batch_size=512, drop_path=0.1))


@pytest.mark.parametrize("stopped_after", [1])
def test_training_with_everything_on_resumes_to_the_bit(stopped_after, tmp_path):
    space = get_space("darts:cells=3,channels=2")
    arch = space.from_genotype(get_genotype("darts_v2"))
    settings = {"drop_path": 0.3, "auxiliary": 0.4, "cutout": 8, "batch_size": 256, "seed": 3}
    whole = train_supernet(space.name, "digits", tmp_path / "whole", arch=arch, config=TrainConfig(epochs=2, **settings))

    class Stop(Exception):
        pass

    from ofa.training.trainer import Trainer

    original = Trainer.save

    def save_and_stop(self, score=None):
        original(self, score)
        if self.step == stopped_after * self.epoch_steps:
            raise Stop

    Trainer.save = save_and_stop
    try:
        with pytest.raises(Stop):
            train_supernet(space.name, "digits", tmp_path / "two", arch=arch, config=TrainConfig(epochs=2, **settings))
    finally:
        Trainer.save = original
    two = train_supernet(space.name, "digits", tmp_path / "two", arch=arch, config=TrainConfig(epochs=2, **settings), resume=True)
    first, second = (run.load_supernet().state_dict() for run in (whole, two))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any("auxiliary" in key for key in first)  # no part of the network
    assert json.loads((whole.supernet_dir / "config.json").read_text())["auxiliary"] == 0.4
