"""What a report draws of searches, from known inputs: positions, lengths and numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.limits import parse_limit
from latency.calibration import Calibration
from latency.cost import CountCost, SizeCost
from latency.energy_cost import EnergyCost
from latency.table import LatencyTable
from ofa.counts import block_macs
from ofa.errors import OfaError
from ofa.space import ArchConfig, Dimension, SearchSpace
from ofa.spaces import get_space
from search.agreement import foreseen, held_out, rank_agreement
from search.choice_space import ChoiceSpace
from search.fronts import chosen_labels, history_curves, measured, threads
from search.parallel_plot import BANDS, HEIGHT, SIDE, choice_axes, number_axis, parallel_plot
from search.pareto_plot import SHADES, Bound, Point, design_front, pareto_plot, shade
from search.past_searches import PredictorFacts, Round, Search
from search.plots import Axes, span
from search.result import Candidate
from search.spending import OVERHEAD, Spending, spend, stage_choices, stages
from search.spending_plot import show_spending, spending_plot, stage_style
from search.wording import bound, cost_name, evenly, power_of_ten, unit_of

SPACE = get_space("mbv3_tiny_image", num_classes=2)
DEVICE = "pi4"


@dataclass(frozen=True)
class AnyRun:
    """What drawing reads of a run."""

    space: SearchSpace


def found(markup: str, name: str, class_: str) -> list[dict[str, str]]:
    """Return the attributes of the elements of a name and class, in order."""
    tags = re.findall(rf"<{name} ([^>]*)>", markup)
    parsed = [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in tags]
    return [attributes for attributes in parsed if class_ in attributes.get("class", "").split()]


def corners(attributes: dict[str, str]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in attributes["points"].split())]


def table(space: SearchSpace = SPACE, *, offset: float = 0.5, margin: float | None = 0.1, **fields: Any) -> LatencyTable:
    entries = {spec: 0.001 * (1 + i) for i, spec in enumerate(space.all_blocks)}
    return LatencyTable(space, DEVICE, entries, Calibration(2.0, 0.001, 0.0, offset), margin=margin, **fields)


def candidate(arch: ArchConfig, top1: float, round_: int = 0, predicted: float | None = None, **costs: float) -> Candidate:
    return Candidate(arch, top1, costs, True, round_, predicted)


def search(candidates: Iterable[Candidate], limits: tuple[str, ...] = (), name: str = "s", **fields: Any) -> Search:
    rows = tuple(candidates)
    facts = {
        "objectives": ("max top1",),
        "strategy": "evolution",
        "accuracy": "supernet",
        "evals": 60,
        "new_evaluations": len(rows),
        "num_candidates": len(rows),
        "ranges": (),
        "feasibility": (),
        "front": rows,
        "best": rows[-1],
        "predictor": None,
        "history": (),
    }
    return Search(name=name, path=Path(name), limits=tuple(map(parse_limit, limits)), candidates=rows, **{**facts, **fields})


def archs(n: int, space: SearchSpace = SPACE) -> list[ArchConfig]:
    return space.decode(space.sample(np.random.default_rng(0), n))


# -- accuracy against cost ---------------------------------------------------------------------------------------------


def history() -> list[Point]:
    return [
        Point(1.0, 40.0, "a", True),
        Point(3.0, 50.0, "b", False),
        Point(4.0, 45.0, "c", False),
        Point(2.0, 55.0, "d", True, "", 1),
        Point(3.5, 60.0, "e", True, "", 3),
    ]


def test_front_after_the_design_knows_no_active_round() -> None:
    assert [point.title for point in design_front(history())] == ["a", "b"]
    assert design_front([Point(1.0, 50.0, "x", True, "", 1)]) == []


def test_pareto_plot_puts_points_and_both_fronts_where_they_belong() -> None:
    points = history()
    drawn = pareto_plot(points, [], x_title="Cost, ms", width=900, height=400)
    axes = Axes(900, 400, span(p.cost for p in points), span(p.top1 for p in points), "", "")
    circles = found(drawn, "circle", "point")
    where = sorted((float(c["cx"]), float(c["cy"])) for c in circles)
    assert np.allclose(where, sorted((axes.x(p.cost), axes.y(p.top1)) for p in points), atol=0.1)
    assert sorted(c["class"] for c in circles) == ["point r0", "point r0", "point r0 front", "point r1 front", "point r3 front"]
    end = span(p.cost for p in points)[1]
    steps = {
        "front-line": [(1, 40), (2, 40), (2, 55), (3.5, 55), (3.5, 60), (end, 60)],
        "design-line": [(1, 40), (3, 40), (3, 50), (end, 50)],
    }
    for name, expected in steps.items():
        (line,) = found(drawn, "polyline", name)
        assert np.allclose(corners(line), [(axes.x(x), axes.y(y)) for x, y in expected], atol=0.06), name


def test_pareto_plot_of_one_round_draws_no_second_front() -> None:
    drawn = pareto_plot([Point(1.0, 40.0, "a", True), Point(2.0, 50.0, "b", True)], [], x_title="x", width=380, height=380)
    assert not found(drawn, "polyline", "design-line")
    assert [c["class"] for c in found(drawn, "circle", "point")] == ["point r0 front"] * 2


@pytest.mark.parametrize(("last", "shades"), [(1, [0, 3]), (2, [0, 2, 3]), (3, [0, 1, 2, 3]), (6, [0, 1, 1, 2, 2, 3, 3])])
def test_later_rounds_are_stronger(last: int, shades: list[int]) -> None:
    assert [shade(round_, last) for round_ in range(last + 1)] == shades
    assert max(shades) == SHADES


@pytest.mark.parametrize("count", [8, 9])
def test_many_limits_become_marks_at_the_edge(count: int) -> None:
    bounds = [Bound(1 + i / 10, f"search{i}", f"≤ {1 + i / 10:g} ms") for i in range(count)]
    drawn = pareto_plot(history(), bounds, x_title="x", width=900, height=400)
    lines = found(drawn, "line", "limit")
    assert len(lines) == count
    assert len(found(drawn, "text", "limit-label")) == (count if count == 8 else 0)
    lengths = [float(line["y2"]) - float(line["y1"]) for line in lines]
    if count == 9:
        assert set(lengths) == {16}
        assert "<title>search8 ≤ 1.8 ms</title>" in drawn
    else:
        assert min(lengths) > 200


def test_chosen_networks_go_by_name_or_where_many_by_number() -> None:
    nets = archs(9)
    few = [search([candidate(nets[i // 2], 0.5)], name=f"n{i}") for i in range(4)]
    assert chosen_labels(few) == {nets[0]: "n0, n1", nets[1]: "n2, n3"}
    picks = [0, 0, 0, 1, 2, 3, 1, 1, 4, 5]
    many = [search([candidate(nets[i], 0.5)], name=f"n{k}") for k, i in enumerate(picks)]
    assert chosen_labels(many, many[3:6]) == {nets[1]: "4", nets[2]: "5", nets[3]: "6"}
    assert chosen_labels(many) == {nets[0]: "1–3", nets[1]: "4, 7–8", nets[2]: "5", nets[3]: "6", nets[4]: "9", nets[5]: "10"}


def test_a_network_belongs_to_the_round_that_measured_it() -> None:
    arch = archs(1)[0]
    later = search([candidate(arch, 0.5)])
    first = search([candidate(arch, 0.5, 2, 0.6)])
    for order in ([first, later], [later, first]):
        assert measured(order)[arch].round == 2


# -- what a limit is spent on ------------------------------------------------------------------------------------------


def test_stages_are_stem_elastic_stages_and_head() -> None:
    assert list(dict.fromkeys(stages(SPACE).values())) == ["stem", "stage1", "stage2", "stage3", "head"]
    assert {slot for slot, stage in stages(SPACE).items() if stage == "stem"} == {"stem", "first"}
    resnet = get_space("resnet_small_image")
    assert list(dict.fromkeys(stages(resnet).values())) == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    alone = SPACE.restrict(SPACE.smallest)  # its slots are those of one network
    assert list(dict.fromkeys(stages(alone).values())) == ["stem", "stage1", "stage2", "stage3", "head"]
    assert stages(ChoiceSpace("c", (Dimension("a", (1, 2)),))) == {}


@pytest.mark.parametrize("name", ["mbv3_tiny_image", "resnet_small_image", "attentive_nas"])
def test_stage_costs_are_sums_over_their_blocks(name: str) -> None:
    space = get_space(name)
    for arch in [space.smallest, space.largest, *archs(5, space)]:
        spent = spend("n", CountCost("macs", space), arch)
        expected: dict[str, float] = {}
        for block, spec in space.blocks(arch).items():
            stage = stages(space)[block]
            expected[stage] = expected.get(stage, 0) + block_macs(spec)
        assert spent.parts == pytest.approx(expected)
        assert list(spent.parts) == list(expected)
        assert spent.total == pytest.approx(CountCost("macs", space)(arch))


@pytest.mark.parametrize("offset", [0.5, -0.004])
def test_latency_is_taken_apart_with_its_overhead_and_margin(offset: float) -> None:
    model = table(offset=offset)
    arch = SPACE.smallest
    spent = spend("n", model, arch, 3.0)
    assert spent.parts[OVERHEAD] == pytest.approx(offset)
    assert spent.total == pytest.approx(model(arch))
    assert spent.margin == pytest.approx(0.1 * model(arch))
    assert spent.limit == 3.0
    stage1 = sum(2 * model.entries[spec] + 0.001 for name, spec in SPACE.blocks(arch).items() if name.startswith("stage1"))
    assert spent.parts["stage1"] == pytest.approx(stage1)


def test_energy_and_file_size_are_taken_apart_too() -> None:
    model = EnergyCost(table(energy={"watts": 3.0, "offset_mj": 2.0, "rmspe": 0.1, "meter": "x"}))
    spent = spend("n", model, SPACE.largest)
    assert spent.total == pytest.approx(model(SPACE.largest))
    assert spent.parts[OVERHEAD] == pytest.approx(3.0 * 0.5 + 2.0)
    assert spent.margin == pytest.approx(0.1 * 3.0 * model.table(SPACE.largest))
    size = SizeCost(SPACE)
    assert spend("n", size, SPACE.largest).parts[OVERHEAD] == pytest.approx(size.offset)


def test_a_prediction_below_zero_is_not_taken_apart() -> None:
    with pytest.raises(OfaError, match="n is predicted to cost -"):
        spend("n", table(offset=-50.0), SPACE.smallest)


def test_stage_choices_leave_out_what_has_no_effect() -> None:
    arch = SPACE.arch(stage1__depth=2, stage1__block0__kernel_size=3, stage1__block1__kernel_size=5)
    chosen = stage_choices(SPACE, arch)
    assert chosen["stem"] == {"resolution": (16,)}
    assert chosen["stage1"] == {"depth": (2,), "kernel size": (3, 5), "expand ratio": (6, 6)}
    assert chosen["stage2"]["kernel size"] == (7, 7, 7, 7)
    bignas = get_space("attentive_nas")
    chosen = stage_choices(bignas, bignas.smallest)
    assert chosen["stem"] == {"resolution": (192,), "width": (16,)}
    assert chosen["stage7"] == {"depth": (1,), "width": (216,), "kernel size": (3,), "expand ratio": (6,)}
    assert chosen["head"] == {"width": (1792,)}


def test_bars_are_to_one_scale_that_begins_at_zero() -> None:
    rows = [
        Spending("a", {"stem": 1.0, "stage1": 3.0, OVERHEAD: 1.0}, margin=1.0, limit=8.0),
        Spending("b", {"stem": 1.0, "stage1": 2.0}),
    ]
    drawn = spending_plot(rows, title="Cost, ms", scale=1.0, unit="ms", order=["stage1"], width=920)
    bars = found(drawn, "rect", "part")
    left, px = float(bars[0]["x"]), float(bars[0]["width"])  # of one unit
    assert [(float(b["x"]) - left) / px for b in bars] == pytest.approx([0, 1, 4, 0, 1], abs=0.01)
    assert [float(b["width"]) / px for b in bars] == pytest.approx([1, 3, 1, 1, 2], abs=0.01)
    assert [b["class"].split()[1] for b in bars] == ["stage-ends", "stage-1", "stage-rest", "stage-ends", "stage-1"]
    (margin,) = found(drawn, "rect", "margin")
    assert (float(margin["x"]) - left) / px == pytest.approx(5, abs=0.01)
    assert float(margin["width"]) / px == pytest.approx(1, abs=0.01)
    (limit,) = found(drawn, "line", "bound")
    assert (float(limit["x1"]) - left) / px == pytest.approx(8, abs=0.01)
    assert "5 ms + 1 margin of 8 (75%)" in drawn
    assert ">stage1 60%<" in drawn
    (zero,) = re.findall(r'class="tick" x="([\d.]+)"[^>]*>0<', drawn)
    assert float(zero) == pytest.approx(left, abs=0.1)


def test_a_negative_part_shortens_the_bar() -> None:
    row = Spending("a", {"stem": 4.0, OVERHEAD: -1.0})
    drawn = spending_plot([row], title="Cost, ms", scale=1.0, unit="ms", order=[], width=920)
    (bar,) = found(drawn, "rect", "part")
    zero = float(next(x for x in re.findall(r'class="tick" x="([\d.]+)"[^>]*>0\.?0*<', drawn)))
    px = float(bar["width"]) / 4
    assert (float(bar["x"]) - zero) / px == pytest.approx(-1, abs=0.01)  # it ends at the total, 3
    assert "3 ms" in drawn


def test_a_limit_far_beyond_is_written_and_not_drawn() -> None:
    drawn = spending_plot([Spending("a", {"stem": 1.0}, limit=50.0)], title="x", scale=1, unit="ms", order=[], width=380)
    assert not found(drawn, "line", "bound")
    assert "of 50 (2%)" in drawn


def test_every_limited_sum_has_its_bars_and_what_is_none_says_why() -> None:
    nets = archs(3)
    limits = (f"latency@{DEVICE} <= 3ms", "memory <= 4MiB", "latency@gone <= 1ms")
    found_ = [search([candidate(nets[0], 0.5)], limits, "a"), search([candidate(nets[1], 0.6)], ("params <= 300K",), "b")]
    shown = show_spending(AnyRun(SPACE), [table()], found_)  # type: ignore[arg-type]
    assert [plot["title"] for plot in shown["plots"]] == [f"Latency on {DEVICE}", "Parameters"]
    for plot in shown["plots"]:
        names = re.findall(r'<tspan class="strong">([^<]*)<', plot["wide"])
        assert names == (["a", "smallest network"] if "Latency" in plot["title"] else ["b", "smallest network"])
        assert plot["limited"]
    assert shown["notes"] == [
        "Memory is not shown: it is no sum over blocks.",
        "Latency on gone is not shown: this run has no table of gone.",
    ]
    (stem, *_, rest) = shown["networks"][0]["rows"]
    assert (stem[0], rest[0]) == ("stem", OVERHEAD)
    assert rest[2] == [("0.5 ms", f"{50 / table()(nets[0]):.0f}%")]
    objectives = search([candidate(nets[0], 0.5)], objectives=("max top1", f"min latency@{DEVICE}"))
    assert show_spending(AnyRun(SPACE), [table()], [objectives])["plots"][0]["title"] == f"Latency on {DEVICE}"  # type: ignore[arg-type]
    without = show_spending(AnyRun(SPACE), [], [search([candidate(nets[0], 0.5)])])  # type: ignore[arg-type]
    assert without["plots"][0]["title"] == "Multiply-adds (MACs)"


def test_of_many_networks_some_are_drawn_from_first_to_last() -> None:
    many = [search([candidate(arch, 0.5)], ("macs <= 9M",), f"n{i}") for i, arch in enumerate(archs(20))]
    (plot,) = show_spending(AnyRun(SPACE), [], many)["plots"]  # type: ignore[arg-type]
    names = re.findall(r'<tspan class="strong">([^<]*)<', plot["wide"])
    assert len(names) == 13
    assert (names[0], names[11], names[12], plot["left_out"]) == ("n0", "n19", "smallest network", 8)


def test_stages_keep_their_colours() -> None:
    order = [f"stage{i}" for i in range(1, 10)]
    styles = [stage_style(stage, order) for stage in ("stem", *order, "head", OVERHEAD)]
    assert styles == ["stage-ends", *(f"stage-{i}" for i in (1, 2, 3, 4, 5, 6, 7, 1, 2)), "stage-ends", "stage-rest"]


# -- choices of the front ----------------------------------------------------------------------------------------------


def test_axes_of_a_mobilenet_are_depths_by_stage_and_means_of_active_blocks() -> None:
    population = SPACE.sample(np.random.default_rng(1), 30)
    axes = choice_axes(SPACE, population)
    assert [axis.title for axis in axes] == [
        ("resolution", ""),
        *((f"stage{s}", "depth") for s in (1, 2, 3)),
        ("kernel size", "mean"),
        ("expand ratio", "mean"),
    ]
    for row, arch in enumerate(SPACE.decode(population)):
        kernels = [spec.kernel_size for name, spec in SPACE.blocks(arch).items() if name.startswith("stage")]
        assert axes[4].values[row] == pytest.approx(np.mean(kernels))
    assert (axes[4].low, axes[4].high) == (3, 7)
    assert axes[4].ticks == ((3, "3"), (5, "5"), (7, "7"))


def test_axes_of_other_spaces_follow_from_their_names() -> None:
    resnet = get_space("resnet_small_image")
    axes = choice_axes(resnet, resnet.encode([resnet.smallest, resnet.largest]))
    titles = [axis.title for axis in axes]
    assert titles == [
        ("resolution", ""),
        *((stage, "depth") for stage in ("stem", "stage1", "stage2", "stage3", "stage4")),
        ("width", "% of largest"),
        ("expand ratio", "mean"),
    ]
    shares = [8 / 16, 16 / 24, 24 / 32, 48 / 64, 96 / 128, 192 / 256]
    assert axes[6].values == pytest.approx([100 * np.mean(shares), 100])
    bignas = get_space("attentive_nas")
    axes = choice_axes(bignas, bignas.encode([bignas.largest]))
    assert [axis.title[1] for axis in axes].count("depth") == 7
    assert ("kernel size", "mean") in [axis.title for axis in axes]
    assert all(axis.low <= axis.values[0] <= axis.high for axis in axes)


def test_axes_of_words_are_options_or_where_many_counts() -> None:
    words = ("none", "skip", "conv")
    edges = ChoiceSpace("edges", tuple(Dimension(f"edge{i}", words) for i in range(6)))
    axes = choice_axes(edges, np.array([[0, 1, 2, 0, 1, 2]], np.int16))
    assert [axis.title[0] for axis in axes] == [f"edge{i}" for i in range(6)]
    assert [axis.values[0] for axis in axes] == [0, 1, 2, 0, 1, 2]
    assert axes[0].ticks == ((0, "none"), (1, "skip"), (2, "conv"))
    chain = ChoiceSpace("chain", tuple(Dimension(f"layer{i}.op", words) for i in range(12)))
    rows = np.array([[0] * 12, [2] * 5 + [1] * 7], np.int16)
    axes = choice_axes(chain, rows)
    assert [axis.title for axis in axes] == [(word, "count") for word in words]
    assert [axis.values.tolist() for axis in axes] == [[12, 0], [0, 7], [0, 5]]
    fixed = ChoiceSpace("fixed", (Dimension("a", (1,)), Dimension("b", (1, 2))))
    assert [axis.title for axis in choice_axes(fixed, np.array([[0, 1]], np.int16))] == [("b", "")]


def test_a_choice_without_effect_has_no_place_on_its_axis() -> None:
    space = ChoiceSpace("c", (Dimension("depth", (1, 2)), Dimension("second", (3, 5), ("depth", 1))))
    axes = choice_axes(space, np.array([[0, 0], [1, 1]], np.int16))
    assert np.isnan(axes[1].values[0])
    drawn = parallel_plot([*axes, number_axis(("top-1", "%"), [1.0, 2.0], str)], [0.1, 0.2], ["a", "b"], [False, False])
    assert [len(corners(line)) for line in found(drawn, "polyline", "thread")] == [2, 3]


def test_lines_stand_where_their_values_are() -> None:
    axes = [number_axis(("macs", "M"), [1.0, 3.0, 2.0], str), number_axis(("top-1", "%"), [50.0, 70.0, 65.0], str)]
    drawn = parallel_plot(axes, [0.5, 0.7, 0.65], ["a", "b", "c"], [True, False, False])
    lines = found(drawn, "polyline", "thread")
    ends = [corners(line) for line in lines]  # least accurate first, but chosen ones last
    assert re.findall(r"<title>([abc])</title>", drawn) == ["c", "b", "a"]
    top, bottom = ends[1][0][1], ends[2][0][1]
    assert top < bottom < HEIGHT
    assert ends[0][0][1] == pytest.approx((top + bottom) / 2, abs=0.1)
    assert ends[0][1][1] == pytest.approx(bottom - 0.75 * (bottom - top), abs=0.1)
    assert {x for line in ends for x, _ in line} == {SIDE, max(x for line in ends for x, _ in line)}
    assert [line["class"] for line in lines] == ["thread band-3", f"thread band-{BANDS - 1}", "thread band-0 picked"]
    many = parallel_plot(axes, [0.5, 0.7, 0.65], ["a"] * 3, [True] * 3)
    assert len(found(many, "polyline", "picked")) == 3
    five = [number_axis(("x", ""), list(range(5)), str)] * 2
    crowded = parallel_plot(five, [0.1, 0.2, 0.3, 0.4, 0.5], ["a"] * 5, [True] * 5)
    assert not found(crowded, "polyline", "picked")
    assert len(found(crowded, "polyline", "bold")) == 5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**16))
def test_parallel_plot_draws_every_network_inside_its_frame(top1: list[float], seed: int) -> None:
    population = SPACE.sample(np.random.default_rng(seed), len(top1))
    axes = [*choice_axes(SPACE, population), number_axis(("top-1", "%"), top1, str)]
    drawn = parallel_plot(axes, top1, [""] * len(top1), [False] * len(top1))
    lines = [corners(line) for line in found(drawn, "polyline", "thread")]
    assert len(lines) == len(top1)
    assert all(len(line) == len(axes) for line in lines)
    assert all(0 < y < HEIGHT for line in lines for _, y in line)


def test_threads_show_the_fronts_of_all_searches_once() -> None:
    nets = archs(4)
    rows = [candidate(arch, 0.5 + i / 10, macs=1e6 * (i + 1), **{f"latency@{DEVICE}": 1.0 + i}) for i, arch in enumerate(nets)]
    both = [search(rows[:3], (f"latency@{DEVICE} <= 9ms",), "a"), search(rows[1:], (), "b")]
    shown = threads(AnyRun(SPACE), both, chosen_labels(both))  # type: ignore[arg-type]
    assert shown is not None
    assert (shown["drawn"], shown["of"], shown["costs"]) == (4, 4, ["macs", f"latency@{DEVICE}"])
    titles = re.findall(r"<title>([^<]*top-1[^<]*)</title>", shown["plot"])
    assert any(title.startswith("b, ") for title in titles)
    assert f"latency@{DEVICE} 2ms" in shown["plot"]
    assert len(found(shown["plot"], "polyline", "picked")) == 2
    assert threads(AnyRun(SPACE), [search(rows, front=())], {}) is None  # type: ignore[arg-type]
    lone = search([candidate(nets[0], 0.5)])
    assert threads(AnyRun(SPACE), [lone], {}) is not None  # type: ignore[arg-type]


def test_threads_of_a_large_front_are_a_sample_that_says_so() -> None:
    rows = [candidate(arch, i / 1000) for i, arch in enumerate(dict.fromkeys(archs(400)))]
    shown = threads(AnyRun(SPACE), [search(rows)], {})  # type: ignore[arg-type]
    assert shown is not None
    assert (shown["drawn"], shown["of"]) == (150, len(rows))
    assert len(found(shown["plot"], "polyline", "thread")) == 150


# -- predictions and history -------------------------------------------------------------------------------------------


def by_hand(first: list[float], second: list[float]) -> float:
    """Kendall's tau of values without ties."""
    signs = [np.sign((a - b) * (x - y)) for (a, x), (b, y) in itertools.combinations(zip(first, second, strict=True), 2)]
    return float(np.mean(signs))


def test_foreseen_networks_are_those_of_active_rounds_each_once() -> None:
    nets = list(dict.fromkeys(archs(12)))[:8]
    predicted, measured_ = [0.5, 0.62, 0.6, 0.7, 0.65, 0.8, 0.75], [0.48, 0.6, 0.61, 0.66, 0.7, 0.71, 0.76]
    active = [candidate(a, m, 1 + i % 3, p) for i, (a, p, m) in enumerate(zip(nets, predicted, measured_, strict=False))]
    design = candidate(nets[7], 0.1)
    result = foreseen(AnyRun(SPACE), [search([design, *active]), search([design, *active[:3]])])  # type: ignore[arg-type]
    assert result is not None
    assert result.n == 7
    assert result.tau == pytest.approx(by_hand(predicted, measured_))
    macs = CountCost("macs", SPACE).predict(SPACE.encode(nets[:7])).tolist()
    assert result.macs_tau == pytest.approx(by_hand(macs, measured_))
    assert result.bias == pytest.approx(100 * np.mean(np.subtract(measured_, predicted)))
    assert result.error == pytest.approx(100 * np.mean(np.abs(np.subtract(measured_, predicted))))
    both = span([100 * value for value in [*predicted, *measured_]])
    axes = Axes(380, 340, both, both, "", "")
    points = [(float(c["cx"]), float(c["cy"])) for c in found(result.plot, "circle", "point")]
    expected = [(axes.x(100 * p), axes.y(100 * m)) for p, m in zip(predicted, measured_, strict=True)]
    assert np.allclose(points, expected, atol=0.1)
    assert foreseen(AnyRun(SPACE), [search([design])]) is None  # type: ignore[arg-type]


def test_macs_of_a_space_of_choices_are_those_that_its_searches_noted() -> None:
    space = ChoiceSpace("lab", (Dimension("edge", ("a", "b", "c", "d")),))
    nets, macs, told = space.decode(space.everything()), [3.0, 1.0, 2.0, 5.0], [0.5, 0.1, 0.4, 0.3]
    rows = [candidate(a, t, 1, 0.5 + 0.1 * t, macs=m) for a, t, m in zip(nets, told, macs, strict=True)]
    result = foreseen(AnyRun(space), [search(rows)])  # type: ignore[arg-type]
    assert result is not None
    assert result.macs_tau == pytest.approx(by_hand(macs, told))
    unknown = foreseen(AnyRun(space), [search([*rows[:3], candidate(nets[3], 0.3, 1, 0.5)])])  # type: ignore[arg-type]
    assert unknown is not None
    assert unknown.macs_tau is None


def test_rank_agreement_needs_something_to_rank() -> None:
    assert rank_agreement([1, 2, 3], [1, 2, 3]) == 1
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == -1
    assert rank_agreement([1, 2], [1, 2]) is None
    assert rank_agreement([1, 1, 1], [1, 2, 3]) is None
    assert rank_agreement([], [1, 2, 3]) is None


def test_held_out_is_of_the_search_that_knew_most() -> None:
    row = candidate(archs(1)[0], 0.5)
    facts = [PredictorFacts("ridge", 0.7, 0.5, ((0.5, 0.6),) * n) for n in (3, 5, 4)]
    searches = [search([row], name=f"s{i}", predictor=found_) for i, found_ in enumerate([*facts, None])]
    chosen = held_out(searches)
    assert chosen is not None
    assert (chosen[0].name, chosen[1].n, chosen[1].tau, chosen[1].macs_tau) == ("s1", 5, 0.7, 0.5)
    assert chosen[1].bias == pytest.approx(10)
    assert held_out([search([row]), search([row], predictor=PredictorFacts("ridge", None, None, ()))]) is None


def test_history_is_a_curve_from_two_rounds_on() -> None:
    row = candidate(archs(1)[0], 0.5)
    states = (Round(40, 0.5, 3, 1.0), Round(46, 0.6, 5, 2.5), Round(52, 0.65, 6, 3.0))
    best, volume = history_curves(search([row], history=states))
    assert len(found(best, "circle", "dot")) == len(found(volume, "circle", "dot")) == 3
    assert "<title>networks measured 46: 60</title>" in best
    assert "<title>networks measured 52: 3</title>" in volume
    heights = [float(dot["cy"]) for dot in found(volume, "circle", "dot")]
    assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(0.75, abs=0.01)
    assert history_curves(search([row], history=states[:1])) == []
    assert history_curves(search([row])) == []
    unknown = tuple(Round(r.evaluations, None if r.evaluations == 40 else r.best_top1, r.front_size, None) for r in states)
    (only,) = history_curves(search([row], history=unknown))
    assert len(found(only, "circle", "dot")) == 2


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("macs <= 2.8357632M", "macs ≤ 2.836M"),
        ("latency@pi4 <= 12ms", "latency@pi4 ≤ 12ms"),
        ("top1 >= 0.9", "top1 ≥ 0.9"),
        ("size@int8 <= 2MB", "size@int8 ≤ 2MB"),
    ],
)
def test_limits_are_short(text: str, short: str) -> None:
    assert bound(parse_limit(text)) == short


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (5, [0, 1, 2, 3, 4]), (9, [0, 2, 4, 6, 8])])
def test_some_are_spread_from_first_to_last(count: int, expected: list[int]) -> None:
    assert evenly(count, 5) == expected


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "largest", "name", "unit"),
    [
        ("latency@pi4", 12.0, "Latency on pi4", (1.0, "ms")),
        ("energy@pi4", 12.0, "Energy on pi4", (1.0, "mJ")),
        ("macs", 3e6, "Multiply-adds (MACs)", (1e-6, "M")),
        ("params", 2e5, "Parameters", (1e-3, "K")),
        ("size@int8", 2e6, "File size (int8)", (2.0**-20, "MiB")),
        ("memory", 5e4, "Memory", (2.0**-10, "KiB")),
        ("something", 5.0, "Something", (1.0, "")),
    ],
)
def test_costs_have_names_and_units(key: str, largest: float, name: str, unit: tuple[float, str]) -> None:
    assert cost_name(key) == name
    assert unit_of(key, largest) == unit


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (15_625, "15,625"),
        (999_999, "999,999"),
        (1_000_000, "1.0 × 10⁶"),
        (1_049_999, "1.0 × 10⁶"),
        (1_050_000, "1.1 × 10⁶"),
        (9_949_999, "9.9 × 10⁶"),
        (9_950_000, "1.0 × 10⁷"),
        (5_390_000_000_000_000_000_000, "5.4 × 10²¹"),
        (10**400, "1.0 × 10⁴⁰⁰"),
    ],
)
def test_numbers_of_networks_are_written_in_full_or_rounded(value: int, expected: str) -> None:
    assert power_of_ten(value) == expected
