"""Drawings of chains with skip connections."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ofa.formats.enas import macro_arch, parse_arc
from ofa.spaces import get_space
from search.chain_drawing import chain_of, draw_chain, write_chain

MACRO = get_space("enas_macro:layers=4")


def test_what_each_layer_of_a_macro_network_reads_is_said():
    chain = chain_of(MACRO, macro_arch(MACRO, parse_arc("0  3 0  5 0 1  2 1 1 0")))
    assert chain.sentences() == [
        "layer 1: conv 3×3, reads stem",
        "layer 2: sep conv 5×5, reads layer 1",
        "layer 3: max pool 3×3, reads layer 2, layer 1",
        "layer 4: conv 5×5, reads layer 3, stem, layer 1",
        "pool reads layer 4",
    ]
    assert [layer.halves for layer in chain.layers] == [True, True, False, False]


def test_a_network_of_convolutions_ends_with_what_nothing_reads():
    space = get_space("nas_rl_cnn:layers=3,least_depth=3")
    choices = {"layer1__from0": 1, "layer2__from0": 1, "layer2__from1": 0, "layer0__filter_width": 1}
    chain = chain_of(space, space.arch(**choices))
    assert [layer.reads for layer in chain.layers] == [(0,), (1,), (1,)]
    assert chain.reads == (2, 3)
    assert chain.layers[0].lines == ("7×1", "64 ch")


@pytest.mark.parametrize("name", ["enas_macro", "nas_rl_cnn", "nas_rl_cnn:strides=3"])
def test_drawings_hold_every_layer_and_every_connection(name, tmp_path):
    space = get_space(name)
    for arch in space.decode(space.sample(np.random.default_rng(0), 5)):
        chain = chain_of(space, arch)
        write_chain(tmp_path / "chain.svg", space, arch)
        root = ElementTree.parse(tmp_path / "chain.svg").getroot()
        boxes = [each for each in root.iter() if each.tag.endswith("rect")]
        wires = [each for each in root.iter() if each.tag.endswith("path")]
        assert len(boxes) == len(chain.layers) + 2
        assert len(wires) == sum(len(layer.reads) for layer in chain.layers) + len(chain.reads)
        width, height = (float(root.get(side)) for side in ("width", "height"))
        for box in boxes:
            x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height
        assert ElementTree.fromstring(draw_chain(chain)).get("width") == root.get("width")


def test_what_is_no_chain_is_not_drawn(tmp_path):
    space = get_space("darts")
    assert chain_of(space, space.largest) is None
    with pytest.raises(ValueError, match="darts has no chains"):
        write_chain(tmp_path / "x.svg", space, space.largest)
