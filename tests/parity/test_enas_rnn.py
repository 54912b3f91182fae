"""ENAS' published recurrent cell: its size, and that what other work calls ENAS' cell is the same graph."""

import json
from pathlib import Path

import pytest
import torch

from ofa.formats.enas import format_arc, parse_arc
from ofa.formats.enas_rnn import rnn_arc, rnn_arch
from ofa.genotypes import get_genotype
from ofa.language_model import LanguageModel
from ofa.recurrent import DiscreteCell
from ofa.spaces.enas_rnn import SPACE

FACTS = Path(__file__).parents[3] / "shared" / "parity" / "cells_public.json"


@pytest.fixture(scope="module")
def release():
    if not FACTS.exists():
        pytest.skip(f"{FACTS} is not there")
    return json.loads(FACTS.read_text())["enas"]["ENAS_PTB_RELEASE"]


def test_published_cell_has_the_published_number_of_parameters(release):
    arc = parse_arc(release["fixed_arc"])
    arch = rnn_arch(SPACE, arc)
    assert format_arc(rnn_arc(SPACE, arch)) == release["fixed_arc"]
    vocabulary, features = release["config"]["vocab"], release["config"]["hidden"]
    with torch.device("meta"):
        net = LanguageModel(vocabulary, DiscreteCell(SPACE.to_genotype(arch), features))
    ours = sum(p.numel() for p in net.parameters())
    assert ours - vocabulary == release["params"] == 22_027_104  # its classifier has no bias


def shape(genotype):
    """What does not depend on the order of nodes: a node as (function, handed on, what reads it, without order)."""

    def below(node):
        name = genotype.first if node == 0 else genotype.recurrent[node - 1][0]
        readers = [reader for reader, (_, source) in enumerate(genotype.recurrent, 1) if source == node]
        return name, node in genotype.concat, tuple(sorted(map(below, readers)))

    return below(0)


def test_the_cell_of_the_field_is_the_arc_with_its_nodes_in_another_order(release):
    arc = SPACE.to_genotype(rnn_arch(SPACE, parse_arc(release["fixed_arc"])))
    field = get_genotype("enas_rnn")
    assert arc != field
    assert shape(arc) == shape(field)
    assert SPACE.to_genotype(SPACE.from_genotype(field)) == field
    others = {name for name in ("darts_rnn_v1", "darts_rnn_v2") if shape(get_genotype(name)) == shape(field)}
    assert not others
