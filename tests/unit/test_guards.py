"""Guards against collapse, settings of a search, and the expected latency of undecided cells."""

import itertools
import math

import numpy as np
import pytest
import torch

from latency.cost import CountCost, additive
from latency.table import LatencyTable
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.spaces import darts, nasbench201
from search.joint.config import DartsConfig
from search.joint.guards import Guards
from search.joint.hardware import ExpectedCellLatency, LatencyTerm, open_table
from search.joint.relaxation import DartsCells, NasBench201Cell

SMALL = darts.SPACE.with_numbers(cells=5, channels=4)
RELAXED = DartsCells(resolution=32)


class MadeUpCost:
    """A time for every block that no formula knows."""

    quantity, offset = "latency", 0.7

    def __init__(self, space):
        self.space = space
        self.block_values = np.append(np.random.default_rng(3).uniform(0.1, 2.0, len(space.all_blocks)), 0.0)

    def predict(self, population):
        return additive(self.space, self.block_values, population) + self.offset


def uniform(relaxed):
    n = len(relaxed.operations)
    return {cell: torch.full((len(rows), n), 1 / n, dtype=torch.float64) for cell, rows in relaxed.edges.items()}


def drawn(relaxed, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = {cell: (len(rows), len(relaxed.operations)) for cell, rows in relaxed.edges.items()}
    return {cell: torch.randn(s, generator=generator, dtype=torch.float64).softmax(-1) for cell, s in shape.items()}


# -- guards ------------------------------------------------------------------------------------------------------------


def test_guards_are_off_unless_asked_for():
    guards = Guards()
    assert guards.ends(10, {"normal": 8, "reduce": 8}) is None
    assert guards.decides(0)
    assert guards.drop_rate(0, 100) == 0
    assert guards.max_skips is None


def test_the_search_ends_when_the_normal_cell_has_so_many_skips():
    guards = Guards(stop_skips=2)
    assert guards.ends(3, {"normal": 1, "reduce": 8}) is None
    assert guards.ends(3, {"normal": 2, "reduce": 0}) == "2 skips in the normal cell, stop_skips is 2"


def test_alphas_that_have_not_learned_end_nothing():
    guards = Guards(stop_skips=2, warmup_epochs=3)
    assert [guards.decides(epoch) for epoch in range(4)] == [False, False, False, True]
    assert guards.ends(2, {"normal": 5}) is None
    assert guards.ends(3, {"normal": 5}) is not None


def test_dropped_skips_fall_to_nothing():
    guards = Guards(skip_drop=0.4)
    assert [guards.drop_rate(step, 4) for step in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_skips": -1}, "max_skips is -1"),
        ({"stop_skips": 0}, "stop_skips is 0"),
        ({"skip_drop": 1.0}, "skip_drop is 1.0"),
        ({"skip_drop": math.nan}, "skip_drop is nan"),
        ({"warmup_epochs": 1.5}, "warmup_epochs is 1.5"),
    ],
)
def test_guards_refuse_nonsense(settings, message):
    with pytest.raises(OfaError, match=message):
        Guards(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "3"}, "unknown order '3'; known: 1, 2, exact"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
        ({"lr": math.inf}, "lr is inf"),
        ({"train_portion": 1.0}, "train_portion is 1.0"),
        ({"epochs": 5, "guards": Guards(warmup_epochs=5)}, "alphas would never learn"),
    ],
)
def test_settings_refuse_nonsense(settings, message):
    with pytest.raises(OfaError, match=message):
        DartsConfig(**settings)


def test_learning_rate_falls_as_published():
    config = DartsConfig()
    # CosineAnnealingLR(T_max=50, eta_min=0.001) of an SGD with rate 0.025
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.025)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.001)
    for epoch in range(50):
        assert config.learning_rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_none_is_found_on_nasbench201_only_if_it_may_be():
    p = torch.full((6, 5), 0.1)
    p[:, 0], p[:, 4] = 0.6, 0.2
    assert NasBench201Cell(resolution=32, derives_none=True).derive({"cell": p}).arch.values[1:] == ("none",) * 6
    assert NasBench201Cell(resolution=32).derive({"cell": p}).arch.values[1:] == ("avg_pool_3x3",) * 6
    assert p[0, 0] == torch.tensor(0.6)  # untouched


def test_a_cap_on_skips_of_nasbench201_strikes_the_weakest():
    relaxed = NasBench201Cell(resolution=32)
    p = torch.full((6, 5), 0.05)
    p[:, 1] = torch.tensor([0.8, 0.7, 0.6, 0.5, 0.4, 0.3])  # skip
    p[:, 3] = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.2, 0.25])  # 3x3 convolution: the next best
    assert relaxed.derive({"cell": p}).skips == {"cell": 6}
    found = relaxed.derive({"cell": p}, 2)
    assert found.skips == {"cell": 2}
    assert found.text == ("|skip_connect~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|")
    assert found.arch.values[1:] == ("skip_connect", "skip_connect", *["nor_conv_3x3"] * 4)


# -- expected latency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MadeUpCost(SMALL), CountCost("macs", SMALL)], ids=["made_up", "macs"])
def test_uniform_alphas_predict_the_mean_of_all_cells(model):
    expected = float(ExpectedCellLatency(RELAXED, model)(uniform(RELAXED)))
    # canonical cells are a sample of what alphas can decide for: two different inputs, seven operations, all equally probable
    some = model.predict(SMALL.sample(np.random.default_rng(0), 40_000))
    assert expected == pytest.approx(some.mean(), abs=4 * some.std() / 200)  # four standard errors of a mean of 40,000


def test_expectation_is_the_sum_over_edges_and_operations():
    """2 / n x sum of q x F over all edges of all cells, with F looked up block by block, and what every network has."""
    model, p = MadeUpCost(SMALL), drawn(RELAXED)
    time = dict(zip(SMALL.all_blocks, model.block_values[:-1], strict=True))
    kinds = {
        "max_pool_3x3": ("maxpool", 3),
        "avg_pool_3x3": ("avgpool", 3),
        "sep_conv_3x3": ("sep_conv", 3),
        "sep_conv_5x5": ("sep_conv", 5),
        "dil_conv_3x3": ("dil_conv", 3),
        "dil_conv_5x5": ("dil_conv", 5),
    }
    total, channels, side = model.offset, 4, 32
    for cell in range(5):
        reduces = cell in (1, 3)
        channels *= 2 if reduces else 1
        rows = p["reduce" if reduces else "normal"]
        for row, (to, source) in enumerate(RELAXED.edges["normal"]):
            stride, at = (2, side) if reduces and source < 2 else (1, side // 2 if reduces else side)
            for column, operation in enumerate(RELAXED.operations[1:], 1):
                q = float(rows[row, column] / (1 - rows[row, 0]))
                if operation == "skip_connect":
                    f = time[BlockSpec("factorized_reduce", channels, channels, at, stride=2)] if stride == 2 else 0.0
                else:
                    kind, kernel = kinds[operation]
                    f = time[BlockSpec(kind, channels, channels, at, kernel_size=kernel, stride=stride)]
                total += 2 / to * q * f  # a node `to` has as many edges as there are states before it
        side //= 2 if reduces else 1
    total += sum(time[spec] for name, spec in SMALL.blocks(SMALL.largest).items() if "_from" not in name)
    assert float(ExpectedCellLatency(RELAXED, model)(p)) == pytest.approx(total, rel=1e-9)


def test_decided_operations_and_equally_probable_pairs_are_priced_exactly():
    """With one operation certain on every edge, the expectation is the mean over the pairs that nodes may keep."""
    model, rng = MadeUpCost(SMALL), np.random.default_rng(5)
    certain = {cell: rng.integers(1, 8, len(rows)) for cell, rows in RELAXED.edges.items()}
    p = {cell: torch.nn.functional.one_hot(torch.tensor(c), 8).double() for cell, c in certain.items()}
    choices = []
    for _ in range(4_000):
        values = {"resolution": 32}
        for cell in ("normal", "reduce"):
            for to in range(2, 6):
                a, b = sorted(rng.choice(to, 2, replace=False).tolist())
                rows = [RELAXED.edges[cell].index((to, s)) for s in (a, b)]
                op1, op2 = (RELAXED.operations[certain[cell][row]] for row in rows)
                prefix = f"{cell}.node{to}"
                values |= {f"{prefix}.inputs": f"{a} {b}", f"{prefix}.op1": op1, f"{prefix}.op2": op2}
        choices.append(SMALL.from_values(values))
    found = model.predict(SMALL.encode(choices))
    assert float(ExpectedCellLatency(RELAXED, model)(p)) == pytest.approx(found.mean(), abs=4 * found.std() / 4_000**0.5)


def test_gradients_ask_for_faster_operations_and_leave_none_alone():
    model = CountCost("macs", SMALL)
    p = {cell: rows.requires_grad_() for cell, rows in uniform(RELAXED).items()}
    logits = {cell: torch.zeros_like(rows, requires_grad=True) for cell, rows in p.items()}
    ExpectedCellLatency(RELAXED, model)({cell: rows.softmax(-1) for cell, rows in logits.items()}).backward()
    for rows in logits.values():
        gradient = rows.grad
        assert torch.allclose(gradient[:, 0], torch.zeros(14, dtype=gradient.dtype), atol=1e-6 * float(gradient.abs().max()))
        assert bool((gradient[:, RELAXED.operations.index("sep_conv_5x5")] > 0).all())
        assert bool((gradient[:, RELAXED.operations.index("skip_connect")] < 0).all())


@pytest.mark.parametrize("derives_none", [False, True])
def test_expectation_of_nasbench201_is_exact(derives_none):
    space = nasbench201.SPACE.with_numbers(cells=1, channels=4)
    relaxed, model = NasBench201Cell(resolution=32, derives_none=derives_none), MadeUpCost(space)
    p = drawn(relaxed)
    if not derives_none:
        rows = p["cell"].clone()
        rows[:, 0] = 0
        p = {"cell": rows / rows.sum(1, keepdim=True)}
    columns = [relaxed.operations.index(o) for o in space.dimensions[1].options]
    codes = np.array(list(itertools.product(range(5), repeat=6)), np.int16)
    population = np.concatenate([np.zeros((len(codes), 1), np.int16), codes], 1)
    chance = np.prod([p["cell"].numpy()[e, columns][codes[:, e]] for e in range(6)], axis=0)
    # every cell of the space, weighted by its probability
    assert float(ExpectedCellLatency(relaxed, model)(p)) == pytest.approx(float(chance @ model.predict(population)), rel=1e-9)


def test_the_term_counts_above_the_target_only():
    model, p = MadeUpCost(SMALL), uniform(RELAXED)
    expected = float(ExpectedCellLatency(RELAXED, model)(p))
    assert float(LatencyTerm(RELAXED, model, expected / 2, 3.0)(p)) == pytest.approx(3.0)
    assert float(LatencyTerm(RELAXED, model, expected * 1.01, 3.0)(p)) == 0


def test_a_cost_of_other_cells_is_refused():
    with pytest.raises(OfaError, match="expected one of the cells searched: darts"):
        ExpectedCellLatency(RELAXED, MadeUpCost(nasbench201.SPACE))


def test_a_table_is_opened_for_the_network_that_it_is_of(tmp_path):
    space = SMALL.with_num_classes(7)
    times = np.random.default_rng(2).uniform(0.1, 2.0, len(space.all_blocks))
    table = LatencyTable(space, "pi4", dict(zip(space.all_blocks, times.tolist(), strict=True)))
    table.save(tmp_path / "pi4.json")
    found = open_table(tmp_path / "pi4.json")
    assert (found.space.name, found.space.num_classes) == ("darts:cells=5,channels=4", 7)
    assert np.array_equal(found.block_values, table.block_values)
    assert float(ExpectedCellLatency(RELAXED, found)(uniform(RELAXED))) > 0


def test_a_missing_time_is_told():
    model = MadeUpCost(SMALL)
    model.block_values[4] = np.nan
    with pytest.raises(OfaError, match="has no value for 1 block"):
        ExpectedCellLatency(RELAXED, model)
