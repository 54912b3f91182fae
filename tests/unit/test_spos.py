"""Single Path One-Shot: which paths are drawn and what they leave alone, the evolution, and the whole search."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from deploy.limits import parse_limit
from latency.cost import CountCost
from ofa.artefacts import read_json
from ofa.counts import macs
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from ofa.training.optimizer import make_optimizer
from ofa.training.rules import SinglePath
from search.constraints import InfeasibleError
from search.joint.spos import DRAWING, final_run, search_single_path, single_path_config
from search.repair import repairer
from search.strategies import get_strategy
from search.strategies.spos import SinglePathEvolution

SPACE = get_space("shufflenet")
MACS = CountCost("macs", SPACE)
NAME = "shufflenet_channels:resolution=8,stem=cifar,channels=2,blocks=1"
BITS = "shufflenet_bits:resolution=8,stem=cifar,channels=2,blocks=1"
QUICK = single_path_config(epochs=2, batch_size=128)


def rng(step=0):
    return np.random.default_rng((0, step))


# -- paths ----------------------------------------------------------------------------------------------------------


def limited(least, most, width=10.0):
    return TrainConfig(recipe="single_path", least_mmacs=least, most_mmacs=most, bin_mmacs=width)


def test_paths_lie_evenly_in_bins_of_multiply_adds():
    """The release: 290 to 360 M in steps of 10. Of uniform draws half a bin holds 1 %, another one 32 %."""
    rule = SinglePath(SPACE, limited(290, 360))
    drawn = [lesson.arch for step in range(700) for lesson in rule.lessons(rng(step))]
    cost = macs(SPACE, SPACE.encode(drawn)) / 1e6
    assert (cost >= 290).all()
    assert (cost <= 360).all()
    counts = np.histogram(cost, np.arange(290, 361, 10))[0]
    assert counts.min() > 65  # 100 expected, standard deviation 9.3
    assert [lesson.arch for lesson in rule.lessons(rng(3))] == [drawn[3]]


def test_a_bin_that_no_try_meets_gives_any_path():
    rule = SinglePath(SPACE, limited(200, 300, width=50.0))  # nothing takes less than 286 M
    cost = [macs(SPACE, SPACE.encode([lesson.arch]))[0] / 1e6 for step in range(40) for lesson in rule.lessons(rng(step))]
    assert sum(found > 300 for found in cost) > 10  # half of the draws


def test_the_last_bin_ends_with_the_limits():
    rule = SinglePath(SPACE, limited(300, 325, width=20.0))
    cost = [macs(SPACE, SPACE.encode([lesson.arch]))[0] / 1e6 for step in range(60) for lesson in rule.lessons(rng(step))]
    assert max(cost) <= 325
    assert sum(found > 320 for found in cost) > 15


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: limited(300, 300), "least_mmacs is 300, expected less than most_mmacs = 300"),
        (lambda: limited(300, 0), "least_mmacs is 300, expected less than most_mmacs = 0; both 0 for no limits"),
        (lambda: limited(0, 300, width=0.0), "bin_mmacs is 0.0, expected a number of at least 0.001"),
        (lambda: SinglePath(SPACE, limited(100, 200)), "none of 10002 networks of shufflenet lies between, they take 286"),
    ],
)
def test_limits_that_no_path_can_meet_are_named(make, match):
    with pytest.raises(OfaError, match=match):
        make()


def test_limits_of_paths_are_of_no_effect_on_other_recipes():
    config = dataclasses.replace(limited(290, 360), recipe="sandwich")
    assert config.without_effect(taught=False) == ["least_mmacs", "most_mmacs"]
    assert limited(290, 360).without_effect(taught=False) == []
    assert TrainConfig(recipe="single_path", bin_mmacs=5.0).without_effect(taught=False) == ["bin_mmacs"]


def test_weights_of_other_paths_neither_move_nor_decay():
    """Not even by the momentum of earlier steps."""
    space = get_space(NAME, num_classes=10)
    torch.manual_seed(0)
    net = Supernet(space).train()
    optimizer = make_optimizer(net, TrainConfig(weight_decay=0.1, lr=0.1))
    paths = [space.arch(**{f"block{b}__choice": choice for b in range(5)}) for choice in ("shuffle5", "xception")]
    images = torch.randn(4, 3, 8, 8)
    for path in paths:
        before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        net(images, path).logsumexp(1).sum().backward()
        optimizer.step()
        choice = str(path.values[1])
        for name, parameter in net.named_parameters():
            moved = not torch.equal(parameter, before[name])
            if name.startswith("layers.block") and f"_{choice}." not in name:
                assert not moved, name
            elif name.endswith("conv.weight"):  # which decay at least
                assert moved, name


def test_training_leaves_what_was_never_drawn(tmp_path, monkeypatch):
    space = get_space(NAME, num_classes=10)
    monkeypatch.setattr(SinglePath, "lessons", lambda rule, rng: [rule._from_labels(rule.space.smallest)])
    run = train_supernet(NAME, "digits", tmp_path / "a", config=QUICK)
    torch.manual_seed(QUICK.seed)
    fresh, trained = Supernet(space).state_dict(), run.load_supernet().state_dict()
    drawn = [key for key in fresh if "_shuffle3." in key and key.endswith("conv.weight")]
    others = [key for key in fresh if key.startswith("layers.block") and "_shuffle3." not in key]
    assert not any(torch.equal(fresh[key], trained[key]) for key in drawn)
    assert all(torch.equal(fresh[key], trained[key]) for key in others)


# -- evolution ------------------------------------------------------------------------------------------------------


def evolve(strategy, objective, generations, violation=lambda rows: np.zeros(len(rows))):
    asked = []
    for _ in range(generations):
        asked.append(strategy.ask())
        strategy.tell(asked[-1], objective(asked[-1])[:, None], violation(asked[-1]))
    return asked


def worth(rows):
    """Something to be small that every choice takes part in."""
    return (rows * np.linspace(1, 2, rows.shape[1])).sum(1)


def test_generations_are_of_mutants_and_children_of_the_ten_best_ever_seen():
    strategy = SinglePathEvolution(SPACE, rng(), population=50)
    asked = evolve(strategy, worth, 3)
    best = strategy.best
    everything = np.concatenate(asked)
    np.testing.assert_array_equal(np.sort(worth(best)), np.sort(worth(everything))[:10])
    nearest, crossed = [], []
    for child in strategy.ask():
        nearest.append((child != best).sum(1).min())
        crossed.append(all(child[c] in best[:, c] for c in range(best.shape[1])))
    assert len(nearest) == 50
    assert sum(crossed[25:]) == 25
    # a mutant keeps a choice with 1 - 0.1 * 3/4: 1.5 of 20 change, and less than 6 in all but one of 1e3
    assert 0.8 < np.mean(nearest[:25]) < 2.5
    assert max(nearest[:25]) <= 6


def test_nothing_is_judged_twice_and_the_end_is_the_last_generation():
    strategy = get_strategy("spos:population=20,generations=4")(SPACE, rng())
    asked = evolve(strategy, worth, 4)
    assert [len(rows) for rows in asked] == [20] * 4
    assert len(SPACE.distinct(np.concatenate(asked))) == 80
    assert len(strategy.ask()) == 0
    means = [worth(rows).mean() for rows in asked]
    assert means[-1] < means[0] - 5


def test_every_network_keeps_to_the_limit():
    def violation(rows):
        return np.maximum(0.0, MACS.predict(rows) / 300e6 - 1)

    feasible = SPACE.sample(rng(), 4_000)
    feasible = feasible[violation(feasible) == 0]
    strategy = SinglePathEvolution(SPACE, rng(), population=30, repair=repairer(SPACE, violation, feasible, rng(1)))
    # what costs more is better here: the best lie at the limit, where most mutants miss it
    asked = np.concatenate(evolve(strategy, lambda rows: -MACS.predict(rows), 8))
    assert (violation(asked) == 0).all()
    assert MACS.predict(strategy.best[:1])[0] > 299e6
    # without a repair, what misses the limit ranks behind all that meets it
    strategy = SinglePathEvolution(SPACE, rng(), population=30)
    evolve(strategy, lambda rows: -MACS.predict(rows), 12, violation)
    assert (violation(strategy.best) == 0).all()


def test_a_space_with_fewer_networks_than_draws_comes_to_an_end():
    space = get_space("nasbench201").restrict(get_space("nasbench201").smallest)
    assert [len(rows) for rows in evolve(SinglePathEvolution(space, rng(), population=5), worth, 3)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("spos:size=3", r"strategy spos: 'size=3' is none of its numbers \(name=1\), it has: population, generations, best, mut"),
        ("spos:population", "strategy spos: 'population' is none of its numbers"),
        ("spos:batch=3", "strategy spos: 'batch=3' is none of its numbers"),
        ("random:seed=3", "it has: none"),
        ("spso:population=3", "unknown strategy 'spso'; known: "),
    ],
)
def test_numbers_of_strategies_are_checked(name, match):
    with pytest.raises(OfaError, match=match):
        get_strategy(name)


def test_numbers_out_of_range_are_named():
    for wrong in ({"population": 1}, {"generations": 0}, {"best": 0}):
        with pytest.raises(OfaError, match="expected at least 2, 1 and 1"):
            SinglePathEvolution(SPACE, rng(), **wrong)
    with pytest.raises(OfaError, match=r"mutation_probability is 1\.5, expected above 0, at most 1"):
        SinglePathEvolution(SPACE, rng(), mutation_probability=1.5)
    assert get_strategy("aging_evolution:population_size=7")(SPACE, rng()).population_size == 7
    assert not get_strategy("spos:best=3").multi_objective


# -- the whole search -----------------------------------------------------------------------------------------------


def journal(run):
    return [json.loads(line) for line in (run / "search" / "trials.jsonl").read_text().splitlines()]


def test_a_search_stopped_after_any_generation_goes_on_as_if_it_had_not(tmp_path):
    limits = ["macs <= 70%"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    found = search_single_path(NAME, "digits", whole, config=QUICK, where=limits, population=6, generations=3)
    assert search_single_path(NAME, "digits", parts, config=QUICK, where=limits, population=6, generations=0) is None
    assert not (parts / "search").exists()
    search_single_path(NAME, "digits", parts, config=QUICK, where=limits, population=6, generations=1, resume=True)
    assert len(journal(parts)) == 6
    again = search_single_path(NAME, "digits", parts, config=QUICK, where=limits, population=6, generations=3, resume=True)
    assert again.best.arch == found.best.arch
    measured = [{(tuple(line["values"]), line["top1"]) for line in journal(path)} for path in (whole, parts)]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 18
    run = Run(parts)
    assert run.space.from_json(read_json(parts / "arch.json", schema=ARCH_SCHEMA)) == again.best.arch
    assert (parts / DRAWING).read_text().startswith("<svg")
    assert all(c.costs["macs"] <= parse_limit(again.limits[0]).bound for c in again.candidates)
    finished = search_single_path(NAME, "digits", parts, config=QUICK, where=limits, population=6, generations=3, resume=True)
    assert finished.new_evaluations == 0


@pytest.mark.parametrize(("weights", "epochs"), [("scratch", 2), ("inherit", 1)])
def test_what_was_found_is_trained_in_a_run_of_its_own(weights, epochs, tmp_path):
    out = tmp_path / "run"
    found = search_single_path(NAME, "digits", out, config=QUICK, population=3, generations=1, weights=weights)
    trained = Run(final_run(out, weights))
    assert trained.space.largest == found.best.arch
    assert json.loads((trained.supernet_dir / "config.json").read_text())["epochs"] == epochs
    assert trained.data.digest == Run(out).data.digest
    assert ("init" in trained.record) == (weights == "inherit")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"population": 1}, "population is 1, generations 20: expected at least 2, and 0"),
        ({"generations": -1}, "generations -1"),
        ({"weights": "best"}, "weights is 'best', expected scratch or inherit"),
        ({"weights": "scratch", "generations": 0}, "with 0 generations nothing is found"),
        ({"final_epochs": 3}, "final_epochs is 3, expected at least 1, together with weights scratch or inherit"),
        ({"config": TrainConfig()}, "recipe is 'sandwich', expected 'single_path'"),
        ({"where": ["latency@pi4 <= 12ms"]}, r"limit on pi4: .* train first \(--generations 0\), then measure it: ofa profile"),
        ({"where": ["macs <= 90%", "macs <= 1M"]}, "macs"),
        ({"where": ["macs < 3"]}, "expected QUANTITY"),
        ({"space": "mobilenet_v2"}, "is one network, there is nothing to search"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(options, match, tmp_path):
    arguments = {"space": NAME, "data": "digits", "out": tmp_path / "run", "config": QUICK, **options}
    with pytest.raises(OfaError, match=match):
        search_single_path(**arguments)
    assert not (tmp_path / "run").exists()


def test_a_limit_that_nothing_meets_is_told_before_anything_is_trained(tmp_path, cli):
    with pytest.raises(InfeasibleError, match=r"nothing in .* meets macs <= 1K; nearest feasible value: macs <= "):
        search_single_path(NAME, "digits", tmp_path / "run", config=QUICK, where=["macs <= 1K"])
    with pytest.raises(
        OfaError, match=r"limit 'bitops <= 1M': no block of shufflenet\S* has bitops to count; leave the limit out"
    ):
        search_single_path(NAME, "digits", tmp_path / "run", config=QUICK, where=["bitops <= 1M"])
    with pytest.raises(InfeasibleError, match=r"meets bitops <= 1K"):
        search_single_path(BITS, "digits", tmp_path / "run", config=QUICK, where=["bitops <= 1K"])
    result = cli("nas", "spos", "--data", "digits", "--out", tmp_path / "run", "--space", NAME, "--where", "macs <= 1K")
    assert result.returncode == 3
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_search_is_left_alone(tmp_path):
    (tmp_path / "run" / "nas").mkdir(parents=True)
    with pytest.raises(OfaError, match="holds a search of another method; give another --out"):
        search_single_path(NAME, "digits", tmp_path / "run", config=QUICK)


def test_on_the_command_line(tmp_path, cli):
    arguments = ("nas", "spos", "--data", "digits", "--out", tmp_path / "run", "--space", NAME, "--epochs", "1")
    result = cli(*arguments, "--batch-size", "256", "--population", "2", "--generations", "1")
    assert result.returncode == 0
    assert "next, from scratch: ofa train --arch" in result.stderr
    assert "ofa export" in result.stderr
    config = json.loads((tmp_path / "run" / "supernet" / "config.json").read_text())
    assert (config["recipe"], config["schedule"], config["weight_decay"], config["batch_size"]) == (
        "single_path",
        "linear",
        4e-5,
        256,
    )
    assert Run(tmp_path / "run").record["commands"][0]["argv"][1:3] == ["nas", "spos"]
    assert cli(*arguments).returncode == 1  # without --resume
    front = json.loads((tmp_path / "run" / "search" / "front.json").read_text())
    assert front["strategy"] == "spos:population=2,generations=1"
