"""ENAS' spaces against the release: sizes of its networks, its arcs, what reads what."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.block_spec import wiring
from ofa.counts import block_macs, block_params, macs, params
from ofa.enas_cells import loose_ends
from ofa.find_arch import find_arch
from ofa.formats.enas import (
    PUBLISHED,
    ArcError,
    arch_of_arc,
    format_arc,
    macro_arc,
    macro_arch,
    micro_arc,
    micro_arch,
    parse_arc,
    published_arch,
)
from ofa.spaces import get_space
from ofa.supernet import Supernet

FIXTURES = Path(__file__).parents[3] / "shared" / "parity" / "cells_public.json"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="needs the published architectures' figures")


def size(space, arch):
    blocks = space.blocks(arch).values()
    return sum(map(block_params, blocks)), sum(map(block_macs, blocks))


@needs_fixtures
def test_released_micro_network_has_the_published_size():
    case = json.loads(FIXTURES.read_text())["enas"]["ENAS_MICRO_RELEASE"]
    assert parse_arc(case["fixed_arc"]) == parse_arc(PUBLISHED["enas_micro"][1])
    space, arch = published_arch("enas_micro")
    assert size(space, arch) == (case["params_no_aux"], case["macs_32x32_no_aux"])
    blocks = space.blocks(arch)
    found = [[blocks[f"cell{i}"].out_channels, blocks[f"cell{i}"].out_resolution] for i in range(case["num_blocks"])]
    assert found == case["layer_out_channels_hw"]
    assert list(space.reductions) == case["reduction_layers"]
    assert size(space, arch) == (params(space, space.encode([arch]))[0], macs(space, space.encode([arch]))[0])


def test_released_macro_network_has_the_size_of_its_code():
    # 42,559,392 is what the release builds; its separable operations are full convolutions
    space, arch = arch_of_arc(published_arc("enas_macro"), space="enas_macro:layers=24,channels=96,separable=no")
    found = size(space, arch)
    assert found[0] == 42_559_392
    assert found[1] == pytest.approx(5.65e9, rel=1e-3)
    separable, same = published_arch("enas_macro")
    assert size(separable, same)[0] < found[0]


def published_arc(name):
    return parse_arc(PUBLISHED[name][1])


@pytest.mark.parametrize("name", ["enas_micro", "enas_macro"])
def test_arcs_are_read_and_written(name):
    space = get_space(name)
    write, read = (micro_arc, micro_arch) if name == "enas_micro" else (macro_arc, macro_arch)
    for arch in space.decode(space.sample(np.random.default_rng(0), 30)):
        arc = write(space, arch)
        # a state that is read twice may have its operations in either order: one network, two points
        again = read(space, parse_arc(format_arc(arc)))
        assert write(space, again) == tuple(write(space, read(space, arc)))
        assert size(space, again) == size(space, arch)
    assert arch_of_arc(published_arc(name))[1].values == published_arch(name)[1].values


@pytest.mark.parametrize(
    ("arc", "message"),
    [
        ((0,) * 39, "39 integers"),
        ((2, *(0,) * 39), "node 2 of the normal cell has 2 0, expected a state from 0 to 1"),
        ((0, 5, *(0,) * 38), "operation from 0 to 4"),
        ((0, 0, 2, *(0,) * 3), "layer 1 has 0 2"),
        ((6, *(0,) * 5), "layer 0 has 6"),
    ],
)
def test_what_is_no_arc_is_refused(arc, message):
    with pytest.raises(ArcError, match=message):
        arch_of_arc(arc)


def test_text_that_is_no_arc_is_refused():
    for text in ("", "a", "1 2 x", "1.5", "-1", "9" * 30_000):
        with pytest.raises(ArcError):
            parse_arc(text)


def test_loose_ends_are_what_no_node_reads():
    assert loose_ends(0, "0 0", "0 2", "0 2", "0 0", "0 0") == (1, 3, 4, 5, 6)
    assert loose_ends(2, "0 0", "0 2", "0 2", "0 0", "0 0") == (3, 4, 5, 6)
    assert loose_ends(2, "0 1", "2 2", "3 3", "4 4", "5 5") == (6,)


def test_a_normal_cell_hands_on_its_inputs_too_where_nothing_reads_them():
    arc = [0, 0, 0, 0] * 10  # every node of both cells reads state 0 twice
    space, arch = arch_of_arc(arc, cells=5, channels=4)
    wires = wiring(space.blocks(arch))
    assert wires["cell0"] == ("cell0_input1", *(f"cell0_node{n}" for n in range(2, 7)))
    assert wires["cell1"] == tuple(f"cell1_node{n}" for n in range(2, 7))  # the first reduction
    assert wires["cell0_input1"] == ("cell0_calibrate1",)


def test_the_shared_network_reads_zeros_in_place_of_what_is_not_handed_on():
    arc = [0, 0, 1, 0, 2, 0, 2, 0, 3, 0, 3, 0, 4, 0, 4, 0, 5, 0, 5, 0] * 2
    space, arch = arch_of_arc(arc, cells=5, channels=4, join="conv")
    blocks = space.blocks(arch)
    assert wiring(blocks)["cell0_all"] == (*["cell0_nothing"] * 6, "cell0_node6")
    assert blocks["cell0"].in_channels == 28
    assert blocks["cell0"].out_channels == 4


def test_the_illustrated_macro_network():
    """Conv 3x3; sep 5x5 with layer 1; max pool with layers 1 and 2; conv 5x5 with layers 1 and 3 (counted from 1)."""
    space = get_space("enas_macro:layers=4,channels=8,resolution=16")
    arch = macro_arch(space, parse_arc("0  3 0  5 0 1  2 0 1 0"))
    wires, blocks = wiring(space.blocks(arch)), space.blocks(arch)
    assert blocks["layer0"].kernel_size == 3
    assert blocks["layer1_op"].kind == "relu_sep"
    assert wires["layer1_in"] == ("layer0_half1",)
    assert wires["layer2_join"] == ("layer2_op", "layer0_half2")
    assert wires["layer3_join"] == ("layer3_op", "layer0_half2")
    assert wires["layer3_in"] == ("layer2",)


def test_adding_skips_equals_the_formula():
    """Search form: BatchNorm of the operation's result plus everything that is skipped from."""
    torch.manual_seed(0)
    space = get_space("enas_macro:layers=3,channels=4,resolution=8,growth=1,join=add")
    arch = macro_arch(space, parse_arc("0  1 1  2 1 1"))
    net = Supernet(space).eval()
    seen = {}
    net(torch.randn(2, 3, 8, 8), arch, observe=lambda name, x: seen.update({name: x}))
    total = seen["layer2_op"] + seen["stem_half2"] + seen["layer0_half2"]
    torch.testing.assert_close(seen["layer2_join"], total)
    norm = net.extract(arch).get_submodule("layer2").bn
    torch.testing.assert_close(seen["layer2"], norm(total))


def test_architectures_are_found_by_name_and_by_file(tmp_path):
    assert find_arch("enas_micro") == published_arch("enas_micro")
    assert find_arch("enas_micro", cells=8, channels=16)[0].name == "enas_micro:cells=8,channels=16"
    (tmp_path / "arc.txt").write_text(PUBLISHED["enas_macro"][1])
    space, arch = find_arch(tmp_path / "arc.txt", space="enas_macro:layers=24,channels=96,separable=no")
    assert size(space, arch)[0] == 42_559_392
    assert find_arch(tmp_path / "arc.txt")[0].name == "enas_macro:layers=24"
    (tmp_path / "arc.txt").write_text("0 1 2")
    with pytest.raises(ArcError, match="3 integers"):
        find_arch(tmp_path / "arc.txt")
