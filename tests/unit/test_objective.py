"""Rewards of controllers against hand arithmetic, in spaces that are tabulated and in one that cannot be."""

import dataclasses

import numpy as np
import pytest

from latency.cost import CountCost
from latency.energy_cost import EnergyCost
from latency.table import LatencyTable, MissingBlockError
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.slots import fixed
from ofa.space import Dimension, SearchSpace, Slot
from ofa.spaces import get_space
from search.joint import objective as objective_module
from search.joint.objective import open_objective

SPACE = get_space("mbv3_tiny_image")
CELLS = get_space("darts:cells=4,channels=4")


@dataclasses.dataclass(frozen=True)
class Wide(SearchSpace):
    """A layer that two dozen choices decide: more than can be listed."""

    name: str = "wide"
    num_classes: int = 4

    @property
    def dimensions(self):
        return (Dimension("resolution", (8,)), *(Dimension(f"skip{i}", (0, 1)) for i in range(24)))

    @property
    def slots(self):
        names = ("resolution", *(f"skip{i}" for i in range(24)))
        layer = Slot("layer", names, lambda r, *skips: BlockSpec("conv", 3, 8 * (1 + sum(skips)), r, kernel_size=3))
        return (layer, fixed("pool", "pool", 8, 8, 1), fixed("classifier", "linear", 8, self.num_classes, None))


def saved(space, tmp_path, device="pi4", **facts):
    """A table with a millisecond for each million multiply-adds of a block, and one for each block."""
    from ofa.counts import block_macs

    entries = {spec: 1 + block_macs(spec) / 1e6 for spec in space.all_blocks}
    table = LatencyTable(space, device, entries, **facts)
    path = tmp_path / f"{device}.json"
    table.save(path)
    return table, path


def test_without_a_reward_it_is_accuracy():
    objective = open_objective(SPACE, None, [], None)
    top1 = np.array([0.5, 0.25])
    assert objective([SPACE.largest, SPACE.smallest], top1).tolist() == [0.5, 0.25]
    assert objective.fingerprint is None
    assert objective.costs([SPACE.largest]).shape == (1, 0)


@pytest.mark.parametrize("space", [SPACE, CELLS], ids=lambda space: space.name)
def test_counts_by_hand(space):
    archs = space.decode(space.sample(np.random.default_rng(0), 20))
    macs = CountCost("macs", space).predict(space.encode(archs))
    bound = float(f"{np.median(macs) / 1e6:.4g}")
    objective = open_objective(space, "mnasnet_hard", [f"macs <= {bound}M"], None)
    expected = [0.8 * (1 if m <= bound * 1e6 else bound * 1e6 / m) for m in macs]
    assert objective(archs, np.full(20, 0.8)) == pytest.approx(expected)


def test_several_limits_and_a_table(tmp_path):
    table, path = saved(SPACE, tmp_path, margin=0.1)
    archs = [SPACE.largest, SPACE.smallest]
    objective = open_objective(SPACE, "mobilenetv3", ["latency <= 4ms", "params <= 0.1M"], path)
    assert [limit.key for limit in objective.limits] == ["latency@pi4", "params"]
    held = [[1.1 * table(arch), CountCost("params", SPACE)(arch)] for arch in archs]  # the bound, as in a search
    assert objective.costs(archs) == pytest.approx(np.array(held))
    expected = [0.9 * (ms / 4) ** -0.15 * (n / 1e5) ** -0.15 for ms, n in held]
    assert objective(archs, np.array([0.9, 0.9])) == pytest.approx(expected)


def test_a_table_serves_any_space_of_its_blocks(tmp_path):
    _, path = saved(get_space("darts:cells=4,channels=4"), tmp_path)
    wide = get_space("darts:cells=4,channels=8")
    with pytest.raises(MissingBlockError, match=r"table of pi4 has no entry for \w+ .*nearest"):
        open_objective(wide, "mnasnet_soft", ["latency@pi4 <= 4ms"], path)  # and not at the first reward
    objective = open_objective(wide, "mnasnet_soft", ["latency@pi4 <= 4ms"], path, price_now=False)
    with pytest.raises(MissingBlockError, match="has no entry"):
        objective([wide.largest], np.array([0.5]))


def test_energy(tmp_path):
    table, path = saved(SPACE, tmp_path, energy={"watts": 2.0, "offset_mj": 1.0, "rmspe": 0.0, "meter": "fake"})
    objective = open_objective(SPACE, "mnasnet_soft", ["energy@pi4 <= 4mJ"], path)
    assert objective.costs([SPACE.largest])[0, 0] == pytest.approx(EnergyCost(table)(SPACE.largest))


def test_shares_of_the_largest():
    objective = open_objective(SPACE, "mnasnet_hard", ["macs <= 50%"], None)
    assert objective([SPACE.largest], np.array([0.8])) == pytest.approx(0.4, abs=1e-5)
    with pytest.raises(OfaError, match="only a search knows a share"):
        open_objective(Wide(), "mnasnet_hard", ["macs <= 50%"], None)


def test_bit_operations():
    space = get_space("shufflenet_bits:resolution=8,stem=cifar,channels=4,blocks=1")
    objective = open_objective(space, "mnasnet_hard", ["bitops <= 10M"], None)
    archs = [space.smallest, space.largest]
    expected = [CountCost("bitops", space)(arch) for arch in archs]
    assert objective.costs(archs)[:, 0].tolist() == expected


def test_spaces_that_cannot_be_tabulated(tmp_path):
    space = Wide()
    assert not space.is_tabulated
    objective = open_objective(space, "mnasnet_hard", ["macs <= 10K"], None)
    archs = [space.smallest, space.largest, space.smallest]
    macs = [3 * 8 * width * 64 * 9 / 8 + 32 for width in (8, 8 * 25, 8)]  # 3x3 on 8 x 8 pixels, and the classifier
    assert objective.costs(archs)[:, 0].tolist() == macs
    assert objective(archs, np.full(3, 0.9)) == pytest.approx([0.9 * 1e4 / m for m in macs])
    spec = next(iter(space.blocks(space.smallest).values()))
    others = [block for name, block in space.blocks(space.smallest).items() if name != "layer"]
    path = tmp_path / "pi4.json"
    LatencyTable(space, "pi4", {spec: 2.0, **dict.fromkeys(others, 1.0)}).save(path)
    timed = open_objective(space, "mnasnet_hard", ["latency <= 2ms"], path)
    assert timed.costs([space.smallest]).tolist() == [[4.0]]
    with pytest.raises(MissingBlockError, match="3->200"):
        timed([space.largest], np.array([0.5]))


def test_costs_of_too_many_architectures_are_forgotten(monkeypatch):
    monkeypatch.setattr(objective_module, "MOST_KNOWN", 2)
    space = Wide()
    objective = open_objective(space, "mnasnet_hard", ["macs <= 10K"], None)
    archs = space.decode(space.sample(np.random.default_rng(0), 5))
    costs = objective.costs(archs)
    assert len(objective._known) == 2
    assert np.array_equal(objective.costs(archs), costs)


def test_fingerprint_holds_all_that_counts(tmp_path):
    _, path = saved(SPACE, tmp_path)
    limits = ["latency@pi4 <= 4ms"]
    found = {
        open_objective(SPACE, reward, where, table).fingerprint
        for reward, where, table in [
            ("mnasnet_soft", limits, path),
            ("mnasnet_hard", limits, path),
            ("mnasnet_soft", ["latency@pi4 <= 5ms"], path),
            ("mnasnet_soft", ["macs <= 5M"], None),
        ]
    }
    again = open_objective(SPACE, "mnasnet_soft", ["latency <= 4.0ms"], path).fingerprint
    assert len(found) == 4
    assert again in found
    LatencyTable(SPACE, "pi4", dict.fromkeys(SPACE.all_blocks, 1.0)).save(path)
    assert open_objective(SPACE, "mnasnet_soft", limits, path).fingerprint not in found


@pytest.mark.parametrize(
    ("reward", "where", "has_table", "message"),
    [
        (None, ["macs <= 3M"], False, "limit 'macs <= 3M': is weighed against accuracy by a reward"),
        (None, [], True, "is weighed against accuracy by a reward"),
        ("mnasnet_soft", [], False, "needs limits on costs as its targets"),
        ("mnasnet_soft", ["top1 >= 0.9"], False, "none on accuracy"),
        ("mnas", ["macs <= 3M"], False, "unknown reward 'mnas'; known: mnasnet_soft"),
        ("mnasnet_soft", ["latency <= 3ms"], False, "needs a device"),
        ("mnasnet_soft", ["latency@pi4 <= 3ms"], False, "no latency table of device 'pi4'; no table is given"),
        ("mnasnet_soft", ["latency@pi5 <= 3ms"], True, "device 'pi5'; the table given is of 'pi4'"),
        ("mnasnet_soft", ["macs <= 3M"], True, "no limit reads it"),
        ("mnasnet_soft", ["macs <= 3M", "macs <= 4M"], False, "macs is limited 2 times"),
        ("mnasnet_soft", ["energy@pi4 <= 3mJ"], True, "holds no energy"),
        ("mnasnet_soft", ["bitops <= 3M"], False, "no block of mbv3_tiny_image has bits of its own"),
    ],
)
def test_refusals(tmp_path, reward, where, has_table, message):
    path = saved(SPACE, tmp_path)[1] if has_table else None
    with pytest.raises(OfaError, match=message):
        open_objective(SPACE, reward, where, path)


def test_a_space_without_blocks_has_no_costs():
    with pytest.raises(OfaError, match="have no blocks"):
        open_objective(get_space("darts_rnn"), "mnasnet_soft", ["params <= 3M"], None)


def test_no_table(tmp_path):
    with pytest.raises(OfaError, match="no such file, expected a latency table"):
        open_objective(SPACE, "mnasnet_soft", ["latency <= 3ms"], tmp_path / "pi4.json")
