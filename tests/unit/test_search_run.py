"""Searching a run from Python: targets, devices, sweeps, objectives, sources of accuracy, and what is kept for next time."""

import csv
import functools
import itertools
import json
import shutil
import time

import numpy as np
import pytest

from latency.cost import CountCost
from latency.table import LatencyTable
from ofa.artefacts import read_json
from ofa.counts import block_counts, block_macs
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from search.constraints import InfeasibleError
from search.menu import MENU_SCHEMA, InfeasibleTarget
from search.pareto import non_dominated
from search.past_searches import read_menus, read_searches
from search.result import FRONT_SCHEMA
from search.run import open_run, search_run, search_targets
from search.strategies import list_strategies
from search.targets import per_device, sweep

TINY = get_space("mbv3_tiny_image")
MACRO = get_space("search.nasbench_macro")  # 6,561 networks, known by their choices alone
QUICK = {"evals": 16, "rounds": 2, "predictor": "ridge"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Let predictors judge fewer networks: here counts the way, not how good the result is."""
    monkeypatch.setattr("search.modes.PROPOSAL", 2000)


def write_table(run, device, weight):
    """A latency table by hand: `weight` of a block -> its milliseconds."""
    times = weight(TINY.all_blocks)
    LatencyTable(TINY, device, {spec: float(ms) for spec, ms in zip(TINY.all_blocks, times, strict=True)}).save(
        run.latency_path(device)
    )


@pytest.fixture
def run(tmp_path):
    """A run without a supernet, with tables of two devices that like different networks."""
    run = open_run(tmp_path / "run", "mbv3_tiny_image")
    write_table(run, "pi4", lambda specs: 1e-3 + block_counts(TINY, block_macs)[:-1] / 1e6)
    write_table(run, "npu", lambda specs: [0.01 + 1e-4 * spec.resolution for spec in specs])  # each block the same
    return run


@pytest.fixture
def macro(tmp_path):
    """A run in a space of choices."""
    return open_run(tmp_path / "macro", MACRO.name)


def capacity(arch):
    """An accuracy that grows with every choice, in [0, 1]."""
    options = [d.options for d in TINY.dimensions]
    return float(np.mean([o.index(v) / (len(o) - 1) for o, v in zip(options, arch.values, strict=True)]))


def half(arch):
    """An accuracy that stays below a half."""
    return capacity(arch) / 2


def lines(run):
    path = run.path / "search" / "trials.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def macs(*archs):
    return CountCost("macs", TINY).predict(TINY.encode(archs))


# -- one target --------------------------------------------------------------------------------------------------------


def test_the_best_meets_all_limits_and_is_written(run):
    limits = ["macs <= 1M", "params <= 60%", "latency@pi4 <= 1.2ms"]
    found = search_run(run, limits, accuracy=capacity, **QUICK)
    best = found.best
    largest = CountCost("params", TINY)(TINY.largest)
    assert macs(best.arch)[0] <= 1e6
    assert CountCost("params", TINY)(best.arch) <= 0.6 * largest
    assert best.costs["latency@pi4"] <= 1.2
    assert best.top1 == capacity(best.arch)
    assert best in found.front
    written = read_json(found.path / "best" / "arch.json", schema=ARCH_SCHEMA)
    assert TINY.from_json(written) == best.arch
    front = read_json(found.path / "front.json", schema=FRONT_SCHEMA)
    assert front["limits"] == ["macs <= 1M", f"params <= {0.6 * largest / 1e3:.10g}K", "latency@pi4 <= 1.2ms"]
    assert front["evals"] == len(found.candidates) == len(lines(run)) == found.new_evaluations == 16
    (read,) = read_searches(run)
    assert read.best.arch == best.arch
    assert read.evals == 16


def test_the_front_is_feasible_and_nobody_dominates_it(run):
    found = search_run(run, ["macs <= 2M"], maximize="accuracy", minimize=["macs", "latency@npu"], accuracy=capacity, **QUICK)
    rows = [(-c.top1, c.costs["macs"], c.costs["latency@npu"], c) for c in found.candidates]
    allowed = [row for row in rows if row[1] <= 2e6]
    front = [
        row[3]
        for row in allowed
        if not any(all(a <= b for a, b in zip(o[:3], row[:3], strict=True)) and o[:3] != row[:3] for o in allowed)
    ]
    expected = {tuple(-c.top1 if k == "top1" else c.costs[k] for k in ("top1", "macs", "latency@npu")) for c in front}
    got = {tuple(-c.top1 if k == "top1" else c.costs[k] for k in ("top1", "macs", "latency@npu")) for c in found.front}
    assert got == expected
    assert [c.top1 for c in found.front] == sorted((c.top1 for c in found.front), reverse=True)
    assert all(c.feasible == (c.costs["macs"] <= 2e6) for c in found.candidates)


def test_the_cheapest_network_that_is_accurate_enough(run):
    found = search_run(run, ["accuracy >= 0.5"], minimize="macs", accuracy=capacity, evals=30, rounds=3)
    good = [c for c in found.candidates if c.top1 >= 0.5]
    assert found.best.top1 >= 0.5
    assert found.best.costs["macs"] == min(c.costs["macs"] for c in good)
    assert found.objectives == ("min macs",)


def test_a_reward_chooses_the_largest_reward_of_what_was_measured(run):
    found = search_run(run, ["macs <= 1M"], reward="mnasnet_soft", accuracy=capacity, **QUICK)
    rewards = [c.top1 * (c.costs["macs"] / 1e6) ** -0.07 for c in found.candidates]
    assert found.objectives == ("max mnasnet_soft of macs <= 1M",)
    assert found.limits == ()  # a target that may be missed is nothing that an export could be held to
    best = found.best.top1 * (found.best.costs["macs"] / 1e6) ** -0.07
    assert best >= sorted(rewards)[-5]  # a predictor has a say in which of the luckiest it is
    alone = search_run(run, ["macs <= 1M"], reward="mnasnet_hard", accuracy=capacity, predictor="none", evals=16)
    hard = [c.top1 * min(1.0, 1e6 / c.costs["macs"]) for c in alone.candidates]
    assert alone.best.top1 * min(1.0, 1e6 / alone.best.costs["macs"]) == max(hard)


@pytest.mark.parametrize("strategy", list_strategies())
def test_every_strategy_asks_for_measurements_itself(run, strategy):
    found = search_run(run, ["macs <= 1M"], strategy=strategy, predictor="none", accuracy=capacity, evals=24)
    assert found.predictor is None
    assert found.strategy == strategy
    assert 0 < len(lines(run)) == found.new_evaluations <= 24
    assert found.best.top1 == max(c.top1 for c in found.candidates if c.feasible)
    assert all(c.costs["macs"] <= 1e6 for c in found.candidates)  # nothing that misses a limit on costs is measured


def test_the_same_seed_gives_the_same_search(tmp_path):
    def outcome(name, seed):
        run = open_run(tmp_path / name, "mbv3_tiny_image")
        found = search_run(run, ["macs <= 1M"], accuracy=capacity, seed=seed, **QUICK)
        return [json.loads(line)["values"] for line in lines(run)], found.best, found.history

    first, again, other = outcome("a", 0), outcome("b", 0), outcome("c", 1)
    assert first == again
    assert first[0] != other[0]


# -- what was measured is kept -----------------------------------------------------------------------------------------


def test_another_limit_and_another_device_measure_only_what_is_new(run):
    asked = []

    def counted(arch):
        asked.append(arch.values)
        return capacity(arch)

    first = search_run(run, ["macs <= 1M"], accuracy=counted, **QUICK)
    before = lines(run)
    second = search_run(run, ["latency@npu <= 350us"], accuracy=counted, tag="npu", **QUICK)
    after = lines(run)
    assert after[: len(before)] == before
    assert second.new_evaluations == len(after) - len(before) < 16
    assert len(asked) == len(set(asked)) == len(after)
    assert len(second.candidates) == len(after)
    assert first.path == run.path / "search"
    assert second.path == run.path / "search" / "npu"
    assert {c.arch for c in first.candidates} <= {c.arch for c in second.candidates}


def test_measured_networks_serve_a_search_that_may_measure_one_more(run):
    search_run(run, ["macs <= 1M"], accuracy=capacity, **QUICK)
    before = len(lines(run))
    found = search_run(run, ["macs <= 0.8M"], accuracy=capacity, evals=1)
    assert len(lines(run)) == before + 1
    assert found.best.costs["macs"] <= 0.8e6


def test_a_supernets_accuracies_are_measured_once(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = len(lines(run))
    found = search_run(run, ["macs <= 1M"], evals=12, rounds=1, tag="second")
    assert 0 < found.new_evaluations == len(lines(run)) - before <= 12
    assert found.weights_sha256 == run.weights_sha256
    assert macs(found.best.arch)[0] <= 1e6


# -- several targets ---------------------------------------------------------------------------------------------------


def test_every_device_gets_its_own_network_of_one_set_of_measurements(run):
    targets = per_device(["latency@pi4 <= 0.7ms", "latency@npu <= 300us", "params <= 0.3M"])
    found = search_targets(run, targets, accuracy=capacity, **QUICK)
    assert list(found) == ["pi4", "npu"]
    assert found["pi4"].best.costs["latency@pi4"] <= 0.7
    assert found["npu"].best.costs["latency@npu"] <= 0.3
    assert len(lines(run)) == 16 == found["pi4"].new_evaluations
    for name, result in found.items():
        assert result.path == run.path / "search" / name
        assert result.best.costs["params"] <= 0.3e6
        assert [c.arch for c in result.candidates] == [c.arch for c in found["pi4"].candidates]
        assert result.best.top1 <= max(c.top1 for c in result.candidates if c.feasible)
    menu = read_json(run.path / "search" / "menu.json", schema=MENU_SCHEMA)
    assert [target["name"] for target in menu["targets"]] == ["pi4", "npu"]


def test_one_network_for_all_devices_meets_every_limit(run):
    found = search_run(run, ["latency@pi4 <= 0.7ms", "latency@npu <= 300us"], accuracy=capacity, **QUICK)
    assert found.best.costs["latency@pi4"] <= 0.7
    assert found.best.costs["latency@npu"] <= 0.3


def test_a_sweep_writes_a_menu_with_the_reason_of_what_is_infeasible(run):
    targets = sweep("macs: 0.1M..1M x4", ["params <= 0.3M"])
    found = search_targets(run, targets, accuracy=capacity, tag="s", **QUICK)
    assert [isinstance(f, InfeasibleTarget) for f in found.values()] == [True, False, False, False]
    menu = read_json(run.path / "search" / "s_menu.json", schema=MENU_SCHEMA)["targets"]
    assert menu[0]["best"] is None
    assert "nearest feasible value: macs <= " in menu[0]["reason"]
    assert not (run.path / "search" / "s_macs_100K").exists()
    best = [target["best"]["costs"]["macs"] for target in menu[1:]]
    assert [cost <= bound for cost, bound in zip(best, (4e5, 7e5, 1e6), strict=True)] == [True] * 3
    with (run.path / "search" / "s_menu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["limits"] for row in rows] == [f"macs <= {v}; params <= 300K" for v in ("100K", "400K", "700K", "1M")]
    assert [bool(row["reason"]) for row in rows] == [True, False, False, False]
    assert [row["top1"] != "" for row in rows] == [False, True, True, True]
    (read,) = read_menus(run)
    assert [row.reason for row in read.rows] == [target["reason"] for target in menu]


def test_no_target_that_can_be_met_is_an_error_with_all_reasons(run):
    with pytest.raises(InfeasibleError) as caught:
        search_targets(run, sweep("macs: 0.1K..1K x2"), accuracy=capacity, **QUICK)
    assert str(caught.value).count("nearest feasible value: macs <= ") == 2
    assert "\n" not in str(caught.value)
    assert not lines(run)  # nothing was measured


@pytest.mark.parametrize("predictor", ["ridge", "none"])
def test_an_accuracy_that_nothing_reaches_is_infeasible_once_it_is_measured(run, predictor):
    for targets in ({"": ["accuracy >= 0.999"]}, {"a": ["accuracy >= 0.999"], "b": ["accuracy >= 0.9999"]}):
        with pytest.raises(InfeasibleError, match=r"networks meets top1 >= 0.999.*; the nearest has top1 0\.\d+"):
            search_targets(run, targets, accuracy=half, **{**QUICK, "predictor": predictor})
    assert lines(run)  # which is kept
    assert not (run.path / "search" / "menu.json").exists()


def test_more_targets_than_evaluations_without_a_predictor(run):
    found = search_targets(run, sweep("macs: 0.5M..2M x9"), accuracy=capacity, predictor="none", evals=5)
    assert len(lines(run)) <= 5
    assert len(found) == 9
    assert all(isinstance(f, InfeasibleTarget) or f.best.costs["macs"] <= 2e6 for f in found.values())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "no target"),
        ({"../up": []}, "'../up': expected a plain folder name"),
        ({"best": ["latency@pi4 <= 1ms"]}, "'best': expected a plain folder name"),
        ({"menu.json": []}, "expected a plain folder name"),
        ({"": [], "a": []}, "two targets or more need names"),
        ({"x": "macs <= 1M"}, None),
    ],
)
def test_names_of_targets_are_folders(run, targets, message):
    if message is None:  # one limit as a text is one limit
        (found,) = search_targets(run, targets, accuracy=capacity, **QUICK).values()
        assert found.limits == ("macs <= 1M",)
        return
    with pytest.raises(OfaError, match=message) as caught:
        search_targets(run, targets, accuracy=capacity, **QUICK)
    assert not isinstance(caught.value, InfeasibleError)
    assert not lines(run)


# -- small spaces ------------------------------------------------------------------------------------------------------

SMALL = """
from ofa.space import Dimension
from search.choice_space import ChoiceSpace
SPACE = ChoiceSpace("{name}", (Dimension("a", {a}), Dimension("b", {b})))
"""


@pytest.fixture
def small_space(tmp_path, monkeypatch):
    """Return a function that makes a run in a space of two choices."""
    numbers = itertools.count()
    monkeypatch.syspath_prepend(tmp_path)

    def make(a, b):
        package = f"lab_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "small.py").write_text(SMALL.format(name=f"{package}.small", a=a, b=b))
        return open_run(tmp_path / "runs" / package, f"{package}.small")

    return make


def product_of(arch):
    """An accuracy with its best at (3, 2)."""
    a, b = arch.values
    return 0.9 - 0.1 * abs(a - 3) - 0.05 * abs(b - 2)


@pytest.mark.parametrize("predictor", ["auto", "none"])
@pytest.mark.parametrize(("a", "b"), [((1, 2, 3, 4), (1, 2, 3)), ((3, 4), (2,))], ids=["12", "2"])
def test_a_space_with_fewer_networks_than_evaluations_is_measured_completely(small_space, a, b, predictor):
    run = small_space(a, b)
    found = search_run(run, accuracy=product_of, evals=50, predictor=predictor)
    assert len(lines(run)) == len(a) * len(b) == len(found.candidates)
    assert found.best.arch.values == (3, 2)


def test_a_space_of_one_network_is_refused(trained, small_space, tmp_path):
    with pytest.raises(OfaError, match="holds one network, expected at least 2 to search; export it as it is"):
        search_run(small_space((1,), (2,)), accuracy=product_of)
    space = trained.space
    only = Run.create(tmp_path / "only", space, trained.data, space.smallest)
    with pytest.raises(OfaError, match="holds one network"):
        search_run(only, ["macs <= 10M"])


# -- tables of accuracies ----------------------------------------------------------------------------------------------


def write_csv(path, population, top1, **columns):
    names = [d.name for d in MACRO.dimensions]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "top1", *(name.replace("_at_", "@") for name in columns)])
        for i, arch in enumerate(MACRO.decode(population)):
            writer.writerow([*arch.values, top1[i], *(values[i] for values in columns.values())])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """All networks of MACRO with random accuracies and costs: (file, population, top1, costs)."""
    rng = np.random.default_rng(0)
    everything = MACRO.everything()
    top1 = rng.integers(0, 1000, len(everything)) / 1000
    costs = {"latency_ms_at_pi4": rng.uniform(1, 9, len(everything)).round(3), "params": rng.integers(1e4, 1e6, len(everything))}
    return write_csv(tmp_path_factory.mktemp("table") / "acc.csv", everything, top1, **costs), everything, top1, costs


@pytest.mark.parametrize("strategy", [None, "local"])
def test_a_table_gives_its_exact_best_under_limits_on_its_own_columns(macro, table, strategy):
    path, everything, top1, costs = table
    found = search_run(macro, ["latency@pi4 <= 3ms", "params <= 300K"], accuracy=str(path), strategy=strategy)
    allowed = (costs["latency_ms_at_pi4"] <= 3) & (costs["params"] <= 300_000)
    assert found.best.top1 == top1[allowed].max()
    at = MACRO.keys(everything).tolist().index(int(MACRO.keys(MACRO.encode([found.best.arch]))[0]))
    assert allowed[at]
    assert found.best.costs == {"latency@pi4": costs["latency_ms_at_pi4"][at], "params": float(costs["params"][at])}
    assert found.predictor is None
    assert not lines(macro)


def test_a_table_gives_its_exact_front_on_its_own_columns(macro, table):
    path, _, top1, costs = table
    found = search_run(macro, ["params <= 500K"], maximize="accuracy", minimize="latency@pi4", accuracy=str(path))
    allowed = costs["params"] <= 500_000
    points = np.column_stack([-top1, costs["latency_ms_at_pi4"]])[allowed]
    front = {(-t, c) for t, c in points[non_dominated(points)]}
    assert {(c.top1, c.costs["latency@pi4"]) for c in found.front} == front


def test_a_table_of_few_networks_gives_its_best(run, tmp_path):
    """Somebody measured 200 of a million million networks: those are the ones to choose from."""
    rng = np.random.default_rng(3)
    population = TINY.distinct(TINY.sample(rng, 200))
    top1, latency = rng.random(len(population)).round(4), rng.uniform(1, 5, len(population)).round(3)
    path = tmp_path / "few.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(d.name for d in TINY.dimensions), "top1", "latency_ms@phone"])
        writer.writerows([*arch.values, top1[i], latency[i]] for i, arch in enumerate(TINY.decode(population)))
    found = search_run(run, ["latency@phone <= 2ms", "macs <= 1.5M"], accuracy=str(path))
    allowed = (latency <= 2) & (CountCost("macs", TINY).predict(population) <= 1.5e6)
    assert allowed.any()
    assert found.best.top1 == top1[allowed].max()
    assert len(found.candidates) == len(population)
    plain = search_run(run, accuracy=str(path), tag="plain")
    assert plain.best.top1 == top1.max()
    with pytest.raises(InfeasibleError, match="latency@phone <= "):
        search_run(run, ["latency@phone <= 0.5ms"], accuracy=str(path))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", [[], ["latency@phone <= 3ms"]])
def test_a_table_of_no_network_is_refused_in_one_line(run, tmp_path, where):
    path = tmp_path / "none.csv"
    path.write_text(",".join([*(d.name for d in TINY.dimensions), "top1", "latency_ms@phone"]) + "\n")
    with pytest.raises(
        OfaError, match=r"no accuracy could be told of any network|nothing in mbv3_tiny_image is priced"
    ) as caught:
        search_run(run, where, accuracy=str(path), evals=100)
    assert "\n" not in str(caught.value)


def test_limits_and_objectives_that_a_table_lacks_are_refused(macro, table):
    path, *_ = table
    for options in ({"where": ["macs <= 1M"]}, {"minimize": "macs"}):
        with pytest.raises(OfaError, match="known by its choices alone, its macs cannot be counted"):
            search_run(macro, accuracy=str(path), **options)
    with pytest.raises(OfaError, match="no latency table of device 'phone'"):
        search_run(macro, ["latency@phone <= 3ms"], accuracy=str(path))


# -- accuracies of one's own -------------------------------------------------------------------------------------------


def test_a_function_that_fails_now_and_then_costs_its_networks_only(run, capsys):
    def fragile(arch):
        if TINY.encode([arch])[0][1:].sum() % 9 == 0:
            raise ZeroDivisionError("by zero")
        if TINY.encode([arch])[0][1:].sum() % 11 == 0:
            return float("nan")
        return capacity(arch)

    found = search_run(run, ["macs <= 2M"], accuracy=fragile, evals=40, rounds=2)
    told = [json.loads(line) for line in lines(run)]
    failed = {tuple(record["values"]) for record in told if "failed" in record}
    assert failed
    assert len(found.candidates) == len(told) - len(failed)
    assert not failed & {c.arch.values for c in found.candidates}
    assert "gave no accuracy for" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "it returned nan"), (None, "it returned None")])
def test_a_function_that_never_tells_ends_the_search_in_one_line(run, value, reason):
    with pytest.raises(OfaError, match=f"failed for 3 architectures one after the other.*{reason}") as caught:
        search_run(run, ["macs <= 2M"], accuracy=functools.wraps(capacity)(lambda arch: value), **QUICK)
    assert "\n" not in str(caught.value)
    assert not (run.path / "search" / "front.json").exists()


def test_a_function_that_hangs_is_ended(run, tmp_path):
    marker = tmp_path / "hung"

    def slow(arch):
        if not marker.exists():
            marker.touch()
            time.sleep(600)
        return capacity(arch)

    found = search_run(run, ["macs <= 2M"], accuracy=slow, timeout_s=3, predictor="none", evals=4)
    assert marker.exists()
    assert len(found.candidates) == found.new_evaluations  # it was asked once more, and answered


class Wrong:
    """An accuracy model whose answers have another shape than they should."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, archs):
        return self.answer(len(archs))


class WrongTable:
    """The same for one that is asked for populations."""

    def __init__(self, answer):
        self.answer = answer

    def predict(self, population):
        return self.answer(len(population))


@pytest.mark.parametrize("model", [Wrong, WrongTable])
@pytest.mark.parametrize(
    "answer",
    [lambda n: np.zeros(n + 1), lambda n: np.zeros((n, 1)), lambda n: 0.5, lambda n: [], lambda n: ["high"] * n, lambda n: None],
    ids=["longer", "column", "number", "empty", "words", "none"],
)
def test_a_model_of_the_wrong_shape_is_refused_in_one_line(run, model, answer):
    with pytest.raises(OfaError, match=r"expected .*numbers") as caught:
        search_run(run, ["macs <= 2M"], accuracy=model(answer), **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [Wrong, WrongTable])
def test_a_model_that_tells_nothing_is_refused(run, model):
    with pytest.raises(OfaError, match=r"could be told"):
        search_run(run, ["macs <= 2M"], accuracy=model(lambda n: np.full(n, np.nan)), evals=20)


@pytest.mark.parametrize("model", [Wrong, WrongTable])
def test_an_infinite_accuracy_is_none(run, model):
    def answer(n):
        return np.where(np.arange(n) % 4 == 0, np.inf, 0.25)

    found = search_run(run, ["macs <= 2M"], accuracy=model(answer), evals=40, predictor="ridge")
    assert found.best.top1 == 0.25
    assert all(c.top1 == 0.25 for c in found.candidates)


class Lab:
    """A user's object."""

    def accuracy(self, arch):
        return capacity(arch)


def test_a_method_is_a_function_too(run):
    found = search_run(run, ["macs <= 2M"], accuracy=Lab().accuracy, **QUICK)
    assert found.best.top1 == capacity(found.best.arch)
    assert len(lines(run)) == 16


def test_functions_without_a_name_of_their_own_keep_their_results_apart(run):
    half, most = (lambda arch: 0.5), (lambda arch: 0.9)
    assert search_run(run, accuracy=half, **QUICK).best.top1 == 0.5
    again = search_run(run, accuracy=most, **QUICK)
    assert again.best.top1 == 0.9
    assert len(again.candidates) == again.new_evaluations
    found = search_run(run, ["macs <= 2M"], accuracy=functools.partial(capacity), **QUICK)
    assert found.best.top1 == capacity(found.best.arch)


def test_a_run_without_a_supernet_says_what_it_needs(run):
    with pytest.raises(OfaError, match=r"holds no supernet.*--accuracy"):
        search_run(run, ["macs <= 2M"])


# -- how much ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evals", [11, 12, 25])
def test_no_more_than_the_evaluations_are_measured(run, evals):
    found = search_run(run, ["macs <= 1M"], accuracy=capacity, evals=evals, rounds=3)
    assert len(lines(run)) == found.new_evaluations == evals


def test_too_few_evaluations_for_a_predictor_are_refused_before_measuring(run):
    with pytest.raises(OfaError, match=r"evals is 5, expected more than 10 .*--predictor none"):
        search_run(run, ["macs <= 1M"], accuracy=capacity, evals=5)
    assert not lines(run)
    assert search_run(run, ["macs <= 1M"], accuracy=capacity, evals=5, predictor="none").new_evaluations <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evals": 0}, "evals is 0, expected at least 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"predictor": "oracle"}, "oracle"),
        ({"strategy": "genetic"}, "unknown strategy 'genetic'"),
        ({"maximize": "accuracy", "minimize": "macs", "strategy": "evolution"}, "takes one objective"),
        ({"reward": "mnasnet_soft", "minimize": "macs"}, "goes with no --min"),
        ({"reward": "gold"}, "unknown reward 'gold'"),
        ({"tag": "a/b"}, "expected a plain folder name"),
        ({"engine": "threads"}, "engine 'threads'"),
        ({"timeout_s": -1}, "timeout_s is -1"),
        ({"minimize": "latency@phone"}, "no latency table of device 'phone'"),
    ],
)
def test_what_is_asked_is_checked_before_anything_is_measured(run, options, message):
    with pytest.raises(OfaError, match=message) as caught:
        search_run(run, ["macs <= 1M"], accuracy=capacity, **options)
    assert "\n" not in str(caught.value)
    assert not lines(run)


def test_several_kinds_of_predictors_are_compared_and_unknown_ones_refused(run):
    found = search_run(run, accuracy=capacity, **{**QUICK, "predictor": "ridge, macs"})
    assert set(found.predictor["taus"]) == {"ridge", "macs"}
    with pytest.raises(OfaError, match="unknown kind of predictor 'rigde'"):
        search_run(run, accuracy=capacity, **{**QUICK, "predictor": "ridge,rigde"})
