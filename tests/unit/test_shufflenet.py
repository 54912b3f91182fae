"""Spaces of choice blocks: their numbers, what a block does to channels, which weights are shared, the release's text and files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from ofa.block_spec import BlockSpec
from ofa.blocks import build_block
from ofa.counts import macs, params
from ofa.errors import OfaError
from ofa.find_arch import find_arch
from ofa.formats import import_arch, import_checkpoint
from ofa.formats.spos import (
    NUMBERS,
    PUBLISHED,
    find_architecture,
    format_architecture,
    from_arch,
    load_supernet,
    original_keys,
    parse_architecture,
    to_arch,
)
from ofa.shufflenet import ShuffleNetSpace, branch_width
from ofa.space import InvalidArchError
from ofa.spaces import get_space
from ofa.supernet import Supernet

SMALL = get_space("shufflenet:resolution=16,stem=cifar,channels=4,blocks=1", num_classes=10)
WIDTHS = get_space("shufflenet_channels:resolution=16,stem=cifar,channels=4,blocks=1", num_classes=10)
BITS = dataclasses.replace(SMALL, base="mine", bit_pairs=((1, 2), (4, 4)))


def random_net(space):
    torch.manual_seed(0)
    return Supernet(space).eval()


# -- numbers --------------------------------------------------------------------------------------------------------


def test_the_published_space_has_twenty_blocks_of_four_choices():
    space = get_space("shufflenet")
    assert space.size() == 4**20
    assert [d.name for d in space.dimensions][:3] == ["resolution", "block0.choice", "block1.choice"]
    assert space.dimensions[1].options == ("shuffle3", "shuffle5", "shuffle7", "xception")
    blocks = space.blocks(space.smallest)
    assert [spec.out_channels for spec in blocks.values()][1:21] == [64] * 4 + [160] * 4 + [320] * 8 + [640] * 4
    assert [blocks[name].out_resolution for name in ("stem", "block0", "block4", "block8", "block19")] == [112, 56, 28, 14, 7]
    assert (blocks["classifier"].in_channels, blocks["classifier"].bias) == (1024, False)
    assert get_space("shufflenet_channels").size() == 32**20


def test_numbers_stand_in_the_name_and_are_read_back():
    assert SMALL.name == "shufflenet:resolution=16,stem=cifar,channels=4,blocks=1"
    assert get_space(SMALL.name, num_classes=10) == SMALL
    assert get_space("shufflenet:resolution=224").name == "shufflenet"
    assert [spec.out_channels for spec in SMALL.blocks(SMALL.smallest).values()] == [4, 16, 40, 80, 80, 160, 256, 256, 10]
    assert [spec.out_resolution for spec in SMALL.blocks(SMALL.smallest).values()][:6] == [16, 16, 8, 4, 4, 2]


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ("stem=mnist", "stem is 'mnist', expected imagenet or cifar"),
        ("channels=3", "channels is 3, expected an even number"),
        ("blocks=0", "blocks is 0, expected at least 1"),
        ("resolution=4", "resolution is 4, expected 8 to 2048 px"),
        ("depth=4", "shufflenet has no number 'depth'; it has: resolution, stem, channels, blocks"),
        ("blocks=x", "blocks is 'x', expected something like 4"),
    ],
)
def test_numbers_that_no_network_can_have_are_named(numbers, match):
    with pytest.raises(OfaError, match=match):
        get_space(f"shufflenet:{numbers}")
    with pytest.raises(OfaError, match="scales are"):
        ShuffleNetSpace(base="mine", scales=(0.0, 1.0))


def test_widths_are_rounded_down_as_in_the_release():
    assert [branch_width(64, scale) for scale in (0.2, 0.4, 0.6, 1.0, 1.4, 1.6)] == [6, 12, 19, 32, 44, 51]
    assert branch_width(180, 1.4) == 126  # 90 * 1.4 is 125.99999999999999 in floating point
    assert branch_width(4, 0.2) == 1


def test_widths_change_costs_and_nothing_else():
    narrow, wide = (WIDTHS.arch(**{f"block{b}__scale": scale for b in range(5)}) for scale in (0.2, 1.6))
    population = WIDTHS.encode([narrow, wide])
    assert (np.diff(macs(WIDTHS, population)) > 0).all()
    assert (np.diff(params(WIDTHS, population)) > 0).all()
    for small, large in zip(WIDTHS.blocks(narrow).values(), WIDTHS.blocks(wide).values(), strict=True):
        assert dataclasses.replace(small, hidden_channels=large.hidden_channels) == large


def test_bits_are_a_choice_of_their_own():
    assert BITS.dimensions[2].name == "block0.bits"
    assert BITS.dimensions[2].options == ("w1a2", "w4a4")
    blocks = BITS.blocks(BITS.arch(block0__bits="w1a2"))
    assert (blocks["block0"].weight_bits, blocks["block0"].activation_bits) == (1, 2)
    assert (blocks["block1"].weight_bits, blocks["block1"].activation_bits) == (4, 4)
    assert (blocks["stem"].weight_bits, blocks["classifier"].weight_bits) == (0, 0)


# -- what a block does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shuffle", "xception"])
def test_even_channels_pass_as_they_are_and_odd_ones_pass_the_branch(kind):
    block = build_block(BlockSpec(kind, 6, 10, 5, kernel_size=3, hidden_channels=4, act="relu")).eval()
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        out = block(x)
        assert out.shape == (2, 10, 5, 5)
        torch.testing.assert_close(out[:, :3], x[:, 0::2])
        torch.testing.assert_close(out[:, 3:], block.branch(x[:, 1::2].contiguous()))


@pytest.mark.parametrize("kind", ["shuffle", "xception"])
def test_a_stride_gives_every_channel_to_both_sides(kind):
    block = build_block(BlockSpec(kind, 6, 10, 5, kernel_size=5, stride=2, hidden_channels=4, act="relu")).eval()
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        out = block(x)
        assert out.shape == (2, 10, 3, 3)
        torch.testing.assert_close(out, torch.cat([block.projection(x), block.branch(x)], 1))


def test_choices_have_weights_of_their_own_and_widths_share_them():
    net = random_net(WIDTHS)
    assert [name for name in net.layers if name.startswith("block0")] == [f"block0_{choice}" for choice in NUMBERS]
    narrow = net.extract(WIDTHS.arch(block0__choice="shuffle5", block0__scale=0.6)).block0
    widest = net.layers["block0_shuffle5"].largest
    for ours, theirs in zip(narrow.parameters(), widest.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs[tuple(slice(n) for n in ours.shape)])
    assert narrow.branch.expand.conv.out_channels == branch_width(16, 0.6)
    weights, of_bits = ({k for k in Supernet(s, device="meta").state_dict() if ".conv." in k} for s in (SMALL, BITS))
    assert sum(key.endswith("weight") for key in of_bits) == sum(key.endswith("weight") for key in weights)


def test_choice_blocks_begin_as_in_the_release():
    net = random_net(get_space("shufflenet:channels=8,blocks=1", num_classes=10))
    block = net.layers["block4_shuffle7"].largest  # 320 channels, 160 in its branch
    assert block.branch.project.conv.weight.std().item() == pytest.approx(1 / 160, rel=0.05)
    assert block.branch.depthwise.conv.weight.std().item() == pytest.approx(1, rel=0.05)
    classifier = next(m for m in net.layers["classifier"].modules() if isinstance(m, nn.Linear))
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)


# -- architectures as text ------------------------------------------------------------------------------------------


def test_the_published_network_has_a_name():
    space, arch = find_arch("spos")
    assert from_arch(space, arch)["architecture"] == list(PUBLISHED)
    small, other = find_arch("spos:resolution=32,stem=cifar", channels=8)
    assert small.name == "shufflenet:resolution=32,stem=cifar,channels=8"
    assert other.values[1:] == arch.values[1:]
    assert find_arch("spos", space="shufflenet_channels")[1].values[1:5] == ("shuffle7", 1.0, "shuffle5", 1.0)


@pytest.mark.parametrize("text", ["(2, 1, 0, 3, 1)", "[2,1,0,3,1]", " (2, 1, 0, 3, 1,)\n", '{"architecture": [2, 1, 0, 3, 1]}'])
def test_choices_are_read_as_the_release_writes_them(text, tmp_path):
    assert parse_architecture(text) == {"architecture": [2, 1, 0, 3, 1]}
    space, arch = find_architecture(text)
    assert space.name == "shufflenet:blocks=1"
    if not text.startswith("{"):
        (tmp_path / "found.txt").write_text(text)
        assert find_arch(tmp_path / "found.txt") == (space, arch)


def test_choices_and_scales_there_and_back():
    assert parse_architecture(format_architecture(PUBLISHED))["architecture"] == list(PUBLISHED)
    for space in (SMALL, WIDTHS):
        for arch in space.decode(space.sample(np.random.default_rng(0), 20)):
            assert to_arch(space, json.loads(json.dumps(from_arch(space, arch)))) == arch


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"architecture": [0, 1, 2, 3, 4]}, "choice 4 of block4, expected 0 to 3: shuffle3, shuffle5, shuffle7, xception"),
        ({"architecture": [0, 1, 2, 3, 1.0]}, "choice 1.0 of block4"),
        ({"architecture": [0, 1, 2]}, "'architecture' has 3 entries, expected 5"),
        ({}, "choice None of block0"),
        ({"architecture": 0, "channels_scales": 1.2}, "scale 1.2 of block0, but .* has no scales: --space shufflenet_channels"),
        ({"architecture": 0, "depth": 3}, "unknown entry 'depth'"),
    ],
)
def test_wrong_architectures_are_refused(config, match):
    with pytest.raises(OfaError, match=match):
        to_arch(SMALL, config)


def test_wrong_texts_and_spaces_are_refused():
    for text in ("2 1 0", "(2, 1", "[2.5]", '{"a": NaN}', "(" * 20_000, "1" * 20_000):
        with pytest.raises(OfaError, match=r"expected choices such as \(2, 1, 0, ...\)"):
            parse_architecture(text)
    with pytest.raises(InvalidArchError, match=r"block0.scale = 1.1 is not one of"):
        to_arch(WIDTHS, {"architecture": 0, "channels_scales": 1.1})
    with pytest.raises(OfaError, match="mbv3_tiny_image: not a space of Single Path One-Shot's family"):
        to_arch(get_space("mbv3_tiny_image"), {"architecture": 0})
    with pytest.raises(OfaError, match="has numbers of its own; leave --space shufflenet out"):
        find_arch("spos:resolution=32", space="shufflenet")


# -- checkpoints ----------------------------------------------------------------------------------------------------


def released(net):
    """A supernet's state as the release would have saved it."""
    names, state = original_keys(net), net.state_dict()
    found = {theirs: state[ours].clone() for ours, theirs in names.items()}
    found["first_conv.0.weight"] = found["first_conv.0.weight"].flip(1)  # it reads blue first
    return found


def test_a_checkpoint_becomes_a_run_and_its_architecture_an_arch(tmp_path):
    whole = get_space("shufflenet", num_classes=3)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in released(random_net(whole)).items()}}, tmp_path / "checkpoint.pth.tar"
    )
    run = import_checkpoint(tmp_path / "checkpoint.pth.tar", tmp_path / "run", format="spos")
    assert (run.space_name, run.num_classes) == ("shufflenet", 3)
    ours, theirs = run.load_supernet().state_dict(), random_net(whole).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    (tmp_path / "found.json").write_text(json.dumps({"architecture": list(PUBLISHED)}))
    written = import_arch(tmp_path / "found.json", tmp_path / "arch", format="spos")
    assert whole.from_json(json.loads(written.read_text())) == find_arch("spos")[1]


def test_images_of_an_imported_checkpoint_are_as_the_release_has_them(tmp_path, image_folder):
    """Its networks read 0 to 255: no mean is taken off."""
    space = get_space(SMALL.name, num_classes=2)
    torch.save(released(random_net(space)), tmp_path / "checkpoint.pth")
    run = import_checkpoint(
        tmp_path / "checkpoint.pth", tmp_path / "run", format="spos", space=SMALL.name, data=str(image_folder)
    )
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    torch.testing.assert_close(run.preprocess(white, 16), torch.full((1, 3, 16, 16), 255.0))


def test_checkpoints_that_do_not_fit_are_refused():
    state = released(random_net(SMALL))
    assert load_supernet(state, SMALL).space.num_classes == 10
    for changed, match in (
        ({}, "has no first_conv and classifier.0"),
        (
            {k: v for k, v in state.items() if k != "features.1.3.branch_main.0.weight"},
            "it has no features.1.3.branch_main.0.weight",
        ),
        (state | {"features.9.0.branch_main.0.weight": torch.zeros(1)}, "it has features.9.0.branch_main.0.weight, which is not"),
        (state | {"conv_last.0.weight": torch.zeros(3, 3, 1, 1)}, r"conv_last.0.weight has shape \(3, 3, 1, 1\), expected"),
    ):
        with pytest.raises(OfaError, match=match):
            load_supernet(changed or {"x": torch.zeros(1)}, SMALL)
    with pytest.raises(OfaError, match="not a space of Single Path One-Shot's family"):
        load_supernet(state, "mbv3_tiny_image")
