"""NAS-Bench-201: sizes of the published networks, of three cells by the authors' code and of every cell by their table."""

import json
from pathlib import Path

import numpy as np
import pytest

from ofa.counts import macs, params
from ofa.formats.nasbench201 import EDGES, OPERATIONS, format_nasbench201, parse_nasbench201
from ofa.spaces import get_space

SHARED = Path(__file__).parents[2].parent / "shared"
FIXTURES, TABLE = SHARED / "parity" / "cells_public.json", SHARED / "data" / "nasbench201_accuracy.npz"


@pytest.fixture(scope="module")
def space():
    return get_space("nasbench201", num_classes=10)


def encode(space, operations):
    """(n, 6) names of operations as a population."""
    columns = [space.column[f"node{to}.from{source}"] for to, source in EDGES]
    population = np.zeros((len(operations), len(space.dimensions)), dtype=np.int16)
    for column, names in zip(columns, np.transpose(operations), strict=True):
        population[:, column] = [space.dimensions[column].options.index(name) for name in names.tolist()]
    return population


@pytest.mark.skipif(not FIXTURES.exists(), reason="../shared/parity is not there")
def test_sizes_of_three_cells_are_those_of_the_original_code(space):
    cases = json.loads(FIXTURES.read_text())["nb201_official_size_checks"]
    population = encode(space, [parse_nasbench201(text) for text in cases])
    assert params(space, population).tolist() == [case["params"] for case in cases.values()]
    assert macs(space, population).tolist() == [case["macs_32x32"] for case in cases.values()]
    assert [format_nasbench201(parse_nasbench201(text)) for text in cases] == list(cases)


@pytest.mark.skipif(not TABLE.exists(), reason="../shared/data is not there")
def test_sizes_of_all_cells_are_those_of_the_table(space):
    with np.load(TABLE) as table:
        names, ops = table["op_names"].astype(str), table["ops"]
        expected = {"params": table["params"], "macs": table["macs"]}
        order = table["edge_order"].tolist()
    assert tuple(names) == OPERATIONS
    assert order == [f"{to}<-{source}" for to, source in EDGES]
    population = encode(space, names[ops])
    np.testing.assert_array_equal(params(space, population), expected["params"])
    np.testing.assert_array_equal(macs(space, population), expected["macs"])
