"""From probabilities to cells: the published rules, by hand."""

import numpy as np
import pytest
import torch

from ofa.mixed import PRIMITIVES
from search.joint.derive import (
    CYCLIC_PRIMITIVES,
    RECURRENT_PRIMITIVES,
    DeriveError,
    derive,
    derive_cyclic,
    derive_recurrent,
    num_skips,
)

NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def rows(edges, width=8):
    """Probabilities from what matters of every edge: {column: value}; the rest goes to none."""
    table = np.zeros((len(edges), width))
    for row, edge in zip(table, edges, strict=True):
        for column, value in edge.items():
            row[column] = value
        row[0] += 1 - row.sum()
    return torch.tensor(table)


def random_rows(seed, edges=14, width=8):
    return torch.randn(edges, width, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def brute_force(p):
    """The rule in its own words, without arrays."""
    nodes, start = [], 0
    for inputs in range(2, 6):
        edges = p[start : start + inputs].tolist()
        start += inputs
        order = sorted(range(inputs), key=lambda source: -max(edges[source][1:]))[:2]
        nodes.append(tuple((PRIMITIVES[max(range(1, 8), key=lambda k: edges[source][k])], source) for source in order))
    return tuple(nodes)


@pytest.mark.parametrize("seed", range(20))
def test_cells_follow_the_published_rule(seed):
    normal, reduce = random_rows(seed), random_rows(100 + seed)
    cells = derive(normal, reduce)
    assert (cells.normal, cells.reduce) == (brute_force(normal), brute_force(reduce))
    assert cells.normal_concat == cells.reduce_concat == (2, 3, 4, 5)
    assert num_skips(cells) == str(cells.normal).count("skip_connect")


def test_stronger_edges_come_first_and_ties_go_to_the_lower_source():
    one_node = rows([{SEP3: 0.2}, {DIL5: 0.3}])
    assert derive(one_node, one_node).normal == ((("dil_conv_5x5", 1), ("sep_conv_3x3", 0)),)
    tied = rows([{SEP3: 0.2}, {AVG: 0.2, MAX: 0.2}, {SEP3: 0.2}, {DIL3: 0.2}, {DIL5: 0.3}])
    assert derive(tied, tied).normal == (
        (("sep_conv_3x3", 0), ("max_pool_3x3", 1)),  # of equal operations, the first
        (("dil_conv_5x5", 2), ("sep_conv_3x3", 0)),
    )


def test_none_is_never_chosen_and_does_not_make_an_edge_strong():
    p = rows([{SKIP: 0.01}, {MAX: 0.02}, {SKIP: 0.3}, {MAX: 0.2}, {AVG: 0.1}])
    assert derive(p, p).normal == ((("max_pool_3x3", 1), ("skip_connect", 0)), (("skip_connect", 0), ("max_pool_3x3", 1)))


def test_skip_cap_strikes_out_the_weakest_and_derives_again():
    p = rows([{SKIP: 0.9}, {SKIP: 0.6, SEP5: 0.1}, {SKIP: 0.8}, {SKIP: 0.7, SEP3: 0.05}, {DIL3: 0.3}])
    cells = derive(p, p)
    assert num_skips(cells) == 4
    capped = derive(p, p, max_skips=2)
    # source 1 of node 0 falls back on its second best; that of node 1 leaves its place to another edge
    assert capped.normal == ((("skip_connect", 0), ("sep_conv_5x5", 1)), (("skip_connect", 0), ("dil_conv_3x3", 2)))
    assert capped.reduce == cells.reduce
    assert derive(p, p, max_skips=4) == cells
    assert num_skips(derive(p, p, max_skips=0)) == 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_skip_cap_holds_and_the_given_tensors_stay(seed, limit):
    p = random_rows(seed)
    p[:, SKIP] += 1
    p /= p.sum(1, keepdim=True)
    copy = p.clone()
    assert num_skips(derive(p, p, max_skips=limit)) <= limit
    assert torch.equal(p, copy)


def test_recurrent_nodes_keep_one_edge():
    p = rows([{1: 0.3, 0: 0.7}, {2: 0.2}, {3: 0.4}, {4: 0.4}, {2: 0.1}, {1: 0.3}], width=5)
    assert derive_recurrent(p).recurrent == (("tanh", 0), ("sigmoid", 1), ("identity", 0))
    assert derive_recurrent(p).concat == (1, 2, 3)
    assert RECURRENT_PRIMITIVES == ("none", "tanh", "relu", "sigmoid", "identity")
    assert len(derive_recurrent(random_rows(0, 36, 5)).recurrent) == 8


def test_cyclic_cells_weigh_operations_by_their_edges():
    assert (*PRIMITIVES[1:], "none") == CYCLIC_PRIMITIVES
    node = torch.tensor([[0.1, 0, 0, 0.5, 0, 0, 0, 0.4], [0, 0, 0.6, 0, 0, 0, 0, 0.4]])
    cells = derive_cyclic([node], [node])
    assert cells.normal == ((("skip_connect", 1), ("sep_conv_3x3", 0)),)
    cells = derive_cyclic([node], [node], normal_edges=[torch.tensor([0.7, 0.3])])
    assert cells.normal == ((("sep_conv_3x3", 0), ("skip_connect", 1)),)
    assert cells.reduce == ((("skip_connect", 1), ("sep_conv_3x3", 0)),)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.randn(14, 8), "apply a softmax"),
        (random_rows(0, 13), "4 edges are left after 3 nodes"),
        (random_rows(0, 0), "0 edges are left after 0 nodes"),
        (random_rows(0, 14, 7), r"shape \(14, 7\), expected \(edges, 8\)"),
        (torch.full((14, 8), float("nan")), "row 0 sums to nan"),
    ],
)
def test_numbers_that_are_no_probabilities_are_refused(table, message):
    with pytest.raises(DeriveError, match=message):
        derive(table, table)


def test_negative_cap_is_refused():
    with pytest.raises(DeriveError, match="max_skips is -1, expected 0 or more"):
        derive(random_rows(0), random_rows(1), max_skips=-1)
