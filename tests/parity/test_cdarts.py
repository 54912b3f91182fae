"""Cyclic-DARTS against the original code, in float64: distillation losses, derived cells; and sizes of its networks."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.mixed import MixedNetwork
from ofa.spaces import get_space
from ofa.supernet import Supernet
from search.joint.cyclic import DistillationHead, Features, derive_weighted, distillation_loss, edge_probabilities

PATH = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
FIXTURES = json.loads(PATH.read_text()) if PATH.exists() else {"cdarts_loss": {}, "cdarts_derive": {"cases": []}}
needs_figures = pytest.mark.skipif(not PATH.exists(), reason="figures of the original code are not here")


def drawn(key, *shape):
    return torch.tensor(np.random.RandomState(zlib.crc32(key.encode())).randn(*shape))


@needs_figures
@pytest.mark.parametrize(
    ("figure", "kind", "reduction"),
    [
        ("kl_batchmean", "kl", "batchmean"),
        ("kl_mean", "kl", "mean"),
        ("cosine", "cosine", "batchmean"),
        ("mse", "mse", "batchmean"),
        ("smooth_l1", "smooth_l1", "batchmean"),
    ],
)
def test_distillation_losses_equal_the_original(figure, kind, reduction):
    student, teacher = drawn("cdarts_fs", 8, 10), drawn("cdarts_fe", 8, 10)
    found = distillation_loss(student, teacher, kind=kind, temperature=2, kl_reduction=reduction)
    assert float(found) == pytest.approx(FIXTURES["cdarts_loss"][figure], rel=1e-12)  # float64, sums in another order


@needs_figures
@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c['tag']}-{c['use_beta']}") for c in FIXTURES["cdarts_derive"]["cases"]])
@pytest.mark.parametrize("equal_is_said", [True, False])
def test_derived_cells_equal_the_original(case, equal_is_said):
    """Our alphas have `none` first, and edges that are all alike may be left out."""
    tag = case["tag"]
    alphas = torch.cat([drawn(f"cdarts_alpha{i}:{tag}", i + 2, 8) for i in range(4)]).roll(1, 1)
    betas = torch.cat(
        [drawn(f"cdarts_beta{i}:{tag}", i + 2) if case["use_beta"] else torch.full((i + 2,), 0.1) for i in range(4)]
    )
    cells = {cell: alphas.softmax(1) for cell in ("normal", "reduce")}
    edges = {cell: edge_probabilities(betas) for cell in cells} if case["use_beta"] or equal_is_said else {}
    genotype = derive_weighted(cells, edges)
    for nodes in (genotype.normal, genotype.reduce):
        assert [[[*edge] for edge in node] for node in nodes] == case["gene"]


def test_both_networks_hand_the_heads_the_same_shapes():
    """Published: reductions at cells 2 and 5 of 8, 6 and 13 of 20; 128 channels of 16 px, 256 of 8 px."""
    searched, seen = MixedNetwork(10, cells=8, channels=16), Features(8)
    weights = torch.full((14, 8), 1 / 8)
    with torch.no_grad():
        searched(torch.randn(1, 3, 32, 32), weights, weights, observe=seen)
    space = get_space("darts:cells=20,channels=16", num_classes=10)
    reduce, chosen = Features(20), space.largest
    with torch.no_grad():
        Supernet(space)(torch.randn(2, 3, 32, 32), chosen, observe=reduce)
    assert [tuple(x.shape[1:]) for x in seen.outputs] == [(128, 16, 16), (256, 8, 8)]
    assert [tuple(x.shape[1:]) for x in reduce.outputs] == [(128, 16, 16), (256, 8, 8)]
    names = {f"cell{i}" for i, cell in enumerate(searched.cells) if cell.reduce}
    assert names == {"cell2", "cell5"} == set(seen._names)
    assert reduce._names == ["cell6", "cell13"]


@pytest.mark.parametrize(("channels", "side", "positions"), [(128, 16, 5), (256, 8, 1)])
def test_heads_are_those_of_the_original(channels, side, positions):
    """Averages of 6 px at stride 2 leave 6 x 6 of 16 px and 2 x 2 of 8 px; no BatchNorm has weights."""
    head = DistillationHead(channels, side, 10)
    assert sum(p.numel() for p in head.parameters()) == channels * 128 + 128 * 768 * 4 + 768 * 10 + 10
    assert head.features(torch.randn(2, channels, side, side)).shape == (2, 768, positions, positions)
    assert head(torch.randn(2, channels, side, side)).shape == (2, 10)
