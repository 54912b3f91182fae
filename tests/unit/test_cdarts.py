"""The steps of Cyclic-DARTS: schedule, gradients against plain formulas, who moves when, resumption to the bit, flat memory."""

import gc
import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.artefacts import read_json
from ofa.errors import OfaError
from ofa.genotype import parse_genotype
from ofa.mixed import PRIMITIVES
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.training.checkpoint import list_checkpoints, load_training, load_weights, newest_checkpoint
from ofa.training.data import Images, Preprocessing
from search.joint import cyclic_search, stepping
from search.joint.cdarts import search_cyclic
from search.joint.cyclic import FeatureEnsemble, absolute_sum, distillation_loss, edge_probabilities
from search.joint.cyclic_config import VARIANTS, CyclicConfig, variant
from search.joint.cyclic_search import CyclicSearch, parameters_of
from search.joint.images import SearchImages
from search.joint.record import read_search

TINY = {
    "cells": 3,
    "evaluation_cells": 4,
    "channels": 2,
    "resolution": 12,
    "pretrain_epochs": 1,
    "cycles": 2,
    "warmup_epochs": 1,
    "cycle_epochs": 1,
    "batch_size": 4,
    "max_images": 40,
    "sample_ratio": 0.4,  # two of five steps
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def search(out, *, resume=False, **settings):
    return search_cyclic("digits", out, config=CyclicConfig(**{**TINY, **settings}), resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing interrupted."""
    torch.set_num_threads(1)
    return search(tmp_path_factory.mktemp("nas") / "whole", edge_weights="learned").path


@pytest.fixture
def make(tmp_path):
    """A search that has not begun, in float64, on noise."""

    def make(**settings):
        config = CyclicConfig(**{**TINY, "loss_alpha": 2.0, **settings})
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 255, (20, 3, 12, 12), dtype=torch.uint8, generator=generator)
        images = Images(pixels, torch.arange(20) % 3, ("a", "b", "c"))
        run = SimpleNamespace(num_classes=3, path=tmp_path)
        found = CyclicSearch(
            run, config, SearchImages(None, Preprocessing.of(images, flip=True), images, images, images), torch.device("cpu")
        )
        found.net.double()
        for name, alphas in found.alphas.items():
            alphas.data = 300 * alphas.data.double()  # as if learned: far enough apart to matter
            assert found.alphas[name] is alphas
        found._choose(found._derived())
        found._batch = lambda half, number: tuple(
            part.double() if part.is_floating_point() else part for part in CyclicSearch._batch(found, half, number)
        )
        return found

    return make


def test_the_schedule_is_that_of_the_algorithm():
    config = CyclicConfig(pretrain_epochs=2, cycles=3, warmup_epochs=1, cycle_epochs=2)
    phases = [config.position(epoch) for epoch in range(config.epochs)]
    assert "".join(p.phase[0] for p in phases) == "pp" + "wjj" * 3
    assert [p.cycle for p in phases] == [0, 0, *[0] * 3, *[1] * 3, *[2] * 3]
    assert [p.joint for p in phases if p.phase == "joint"] == [0, 1, 2, 3, 4, 5]
    joint = [epoch for epoch, p in enumerate(phases) if p.phase == "joint"]
    # 5 max(0, 1 - epoch / (6 x 0.5))
    assert [config.penalty_at(epoch) for epoch in joint] == pytest.approx([5, 10 / 3, 5 / 3, 0, 0, 0])
    assert variant("released", cycles=3, cycle_epochs=2).penalty_at(config.pretrain_epochs + 5) == 15
    rates = [config.learning_rate(epoch) for epoch in joint]
    assert rates == pytest.approx([0.001 + 0.049 * (1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)])
    assert {config.learning_rate(epoch) for epoch in (0, 1)} == {0.05}
    halfway = 0.001 + 0.099 / 2
    assert [config.evaluation_rate(epoch) for epoch in range(2, 5)] == pytest.approx([0.1, 0.1, halfway])


def test_variants_differ_where_the_code_differs_from_the_paper():
    paper, released = variant("paper"), variant("released", seed=3)
    assert (paper, released.seed) == (CyclicConfig(), 3)
    assert (released.kl_reduction, released.detach_teacher, released.penalty_count) == ("mean", False, 3)
    assert (released.penalised, released.edge_weights, released.ensemble) == ("skip_and_pools", "equal", "concat")
    with pytest.raises(OfaError, match="unknown variant 'x'; known: paper, released"):
        variant("x")
    with pytest.raises(OfaError, match="distillation is 'l2', expected one of: kl, cosine"):
        CyclicConfig(distillation="l2")
    with pytest.raises(OfaError, match="resolution is 8, expected a whole number from 12"):
        CyclicConfig(resolution=8)


def test_the_norm_counts_the_named_operations():
    alphas = {"normal": torch.arange(-8.0, 8).reshape(2, 8), "reduce": torch.ones(1, 8)}
    skip, pools = PRIMITIVES.index("skip_connect"), [PRIMITIVES.index(f"{kind}_pool_3x3") for kind in ("max", "avg")]
    rows = [[-8 + c, c] for c in range(8)]
    assert float(absolute_sum(alphas, "skip")) == sum(map(abs, rows[skip])) + 1
    expected = sum(abs(value) for column in (skip, *pools) for value in rows[column]) + 3
    assert float(absolute_sum(alphas, "skip_and_pools")) == expected


def test_edges_of_a_node_share_one():
    assert edge_probabilities(torch.zeros(14)).tolist() == pytest.approx([1 / 2] * 2 + [1 / 3] * 3 + [1 / 4] * 4 + [1 / 5] * 5)


def test_ensembles_weigh_three_depths():
    ensemble = FeatureEnsemble(2, 12, 3, join="sum", learned=True)
    ensemble.weights.data = torch.tensor([0.0, 1.0, 2.0])
    features, logits = [torch.randn(4, 16, 6, 6), torch.randn(4, 32, 3, 3)], torch.randn(4, 3)
    p = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    parts = [ensemble.heads[0](features[0]), ensemble.heads[1](features[1]), logits]
    torch.testing.assert_close(ensemble(features, logits), sum(float(w) * part for w, part in zip(p, parts, strict=True)))
    ensemble.join = "concat"
    torch.testing.assert_close(ensemble(features, logits), torch.cat([float(w) * x for w, x in zip(p, parts, strict=True)]))


@pytest.mark.parametrize("name", ["paper", "released"])
def test_depths_count_a_third_each_unless_their_weights_are_to_learn(name, make):
    found, learning = make(**VARIANTS[name]), make(**VARIANTS[name], learn_ensemble=True)
    for one, learned in ((found, False), (learning, True)):
        assert ("ensemble.weights" in dict(one.net.named_parameters())) is learned
        before = one.ensemble.weights.detach().clone()
        torch.testing.assert_close(before.softmax(0), torch.full((3,), 1 / 3, dtype=torch.float64))
        assert ("ensemble.weights" in changed(one, 2 * one.epoch_steps)) is learned
        assert torch.equal(one.ensemble.weights, before) is not learned
        assert "ensemble.weights" in one.net.state_dict()


@pytest.mark.parametrize("name", ["paper", "released"])
@pytest.mark.parametrize("edge_weights", ["none", "learned"])
def test_a_joint_step_has_the_gradients_of_the_plain_formula(name, edge_weights, make, monkeypatch):
    """The graph of both networks at once, written down anew; ours lets go of one before the other comes."""
    settings = {key: getattr(variant(name), key) for key in ("kl_reduction", "detach_teacher", "ensemble", "penalised")}
    found = make(**settings, edge_weights=edge_weights, penalty_count=2)
    monkeypatch.setattr(CyclicSearch, "_move", lambda *_: None)
    monkeypatch.setattr(found.alpha_optimizer, "step", lambda: None)
    found.step = 2 * found.epoch_steps  # the first joint epoch
    images, labels = found._batch(1, 7)
    found.net.train()

    seen, other = {}, {}
    weights = []
    for cell in ("normal", "reduce"):
        p = torch.softmax(found.alphas[cell], 1)
        if edge_weights == "learned":
            nodes = found.alphas[f"{cell}_edges"].split([2, 3, 4, 5])
            p = p * torch.cat([torch.softmax(node, 0) for node in nodes])[:, None]
        weights.append(p)
    logits_s = found.searched(images, *weights, observe=seen.__setitem__)
    logits_e = found.evaluated(images, found.arch, observe=other.__setitem__)
    f_s = found.ensemble([seen["cell1"], seen["cell2"]], logits_s)  # of 3 cells
    f_e = found.ensemble([other["cell1"], other["cell2"]], logits_e)  # of 4
    f_e = f_e.detach() if found.config.detach_teacher else f_e
    q, p = F.softmax(f_e / 2, 1), F.log_softmax(f_s / 2, 1)
    distilled = 4 * (q * (q.log() - p)).sum() / (f_s.numel() if found.config.kl_reduction == "mean" else len(f_s))
    columns = [3] if found.config.penalised == "skip" else [1, 2, 3]
    norm = sum(found.alphas[cell][:, columns].abs().sum() for cell in ("normal", "reduce"))
    cross = F.cross_entropy(logits_s, labels) + F.cross_entropy(logits_e, labels)
    plain = cross / 2 + 2 * distilled + 2 * 5 * norm
    wanted = [*found.alphas.parameters(), *found.ensemble.parameters(), *parameters_of(found.evaluated, found.arch)]
    expected = torch.autograd.grad(plain, wanted)

    assert found._joint_step((images, labels)) == pytest.approx(plain.item(), rel=1e-12)
    for parameter, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)  # float64, sums in another order
    assert all(p.grad is None for p in found.searched.parameters())  # not even computed


def changed(found, step):
    """Names of what a step moved."""
    before = {name: value.clone() for name, value in (*found.net.named_parameters(), *found.alphas.named_parameters())}
    found.step = step
    found.one_step()
    now = {**dict(found.net.named_parameters()), **dict(found.alphas.named_parameters())}
    return {name for name, value in now.items() if not torch.equal(before[name], value)}


def test_every_phase_moves_what_it_should(make):
    found = make()
    steps, own = found.epoch_steps, {name for name, _ in found.net.named_parameters()}
    searched = {name for name in own if name.startswith("search.")}
    heads = {name for name in own if name.startswith("ensemble.")}
    assert changed(found, 0) <= searched
    warmed = changed(found, steps)
    chosen = {id(p) for p in parameters_of(found.evaluated, found.arch)}
    path = {name for name, p in found.net.named_parameters() if id(p) in chosen}
    assert warmed == path
    assert len(path) < len([name for name in own if name.startswith("evaluation.")])  # the rest of the pool rests
    joint = changed(found, 2 * steps)
    assert {"normal", "reduce"} | heads | path <= joint
    assert joint <= {"normal", "reduce"} | heads | path | searched


@pytest.mark.parametrize("name", ["paper", "released"])
@pytest.mark.parametrize("train", [True, False])
def test_pools_of_the_search_network_have_no_batchnorm(name, train, make):
    found = make(**VARIANTS[name])
    cell = found.searched.cells[0].train(train)
    x = torch.randn(4, 6, 12, 12, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    p = torch.zeros(14, 8, dtype=torch.float64)
    p[:, PRIMITIVES.index("max_pool_3x3")], p[:, PRIMITIVES.index("avg_pool_3x3")] = 0.5, 0.25
    states = [cell.preprocess0(x), cell.preprocess1(x)]
    for _ in range(4):
        pools = [F.max_pool2d(s, 3, 1, 1) / 2 + F.avg_pool2d(s, 3, 1, 1, count_include_pad=False) / 4 for s in states]
        states.append(sum(pools))
    torch.testing.assert_close(cell(x, x, p), torch.cat(states[2:], 1))


def test_a_new_cycle_derives_anew_and_keeps_the_weights_of_the_pool(make):
    found = make()
    found.step = found.epoch_steps
    found.one_step()
    first, kept = found.genotype, {n: p.clone() for n, p in found.evaluated.named_parameters()}
    for alphas in found.alphas.values():
        alphas.data = alphas.data.flip(1)
    found.step = 3 * found.epoch_steps - 1
    found._choose(found._derived())
    assert found.genotype != first
    assert all(torch.equal(p, kept[name]) for name, p in found.evaluated.named_parameters())
    assert all(p.grad is None for p in found.evaluated.parameters())  # or those of former networks would stay
    assert not found.evaluation_optimizer.state


def test_distillations_are_scaled_by_the_square_of_the_temperature():
    one, two = torch.randn(4, 3), torch.randn(4, 3)
    plain = {
        "cosine": -F.cosine_similarity(one, two).mean(),
        "mse": F.mse_loss(one, two),
        "smooth_l1": F.smooth_l1_loss(one, two),
    }
    for kind, value in plain.items():
        found = distillation_loss(one, two, kind=kind, temperature=3, kl_reduction="mean")
        torch.testing.assert_close(found, 9 * value)


def test_a_search_writes_what_the_rest_of_the_toolkit_reads(whole):
    run, record = Run(whole), read_search(whole)
    arch = run.space.from_json(read_json(whole / "arch.json", schema=ARCH_SCHEMA))
    genotype = parse_genotype((whole / "genotype.txt").read_text())
    assert run.space.from_genotype(genotype) == arch
    assert (record.config["method"], record.config["epochs"]) == ("cdarts", 5)
    assert [line["phase"] for line in record.metrics] == ["pretrain", *["warmup", "joint"] * 2]
    assert [decided.epoch for decided in record.decided] == list(range(6))
    assert {"loss", "alpha_loss", "evaluation_loss", "evaluation_top1", "alpha_top1", "distillation"} <= set(record.metrics[-1])
    assert record.metrics[1]["evaluated"] == record.decided[1].genotype  # of the alphas before the warm-up


@contextmanager
def stopped_after(steps):
    """As if Ctrl-C was pressed in that step."""
    count = itertools.count(1)

    @contextmanager
    def stop():
        yield lambda: next(count) >= steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "stop_after_step", stop)
        yield


@pytest.mark.parametrize("steps", [6, 9], ids=["between cycles", "in a joint epoch"])
def test_a_stopped_search_goes_on_to_the_same_bits(steps, whole, tmp_path):
    out = tmp_path / "stopped"
    with stopped_after(steps), pytest.raises(KeyboardInterrupt):
        search(out, edge_weights="learned")
    search(out, resume=True, edge_weights="learned")
    ours, theirs = (newest_checkpoint(path / "nas") for path in (out, whole))
    for name, value in load_training(theirs).items():
        assert torch.equal(load_training(ours)[name], value), name
    assert (ours.path / "model.safetensors").read_bytes() == (theirs.path / "model.safetensors").read_bytes()
    for name in ("genotype.txt", "nas/alphas.jsonl"):
        assert (out / name).read_text() == (whole / name).read_text()
    ours, theirs = ([line | {"seconds": 0} for line in read_search(path).metrics] for path in (out, whole))
    assert ours == theirs  # means over all of an epoch's steps, whichever run took them


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real = CyclicSearch.one_step
    monkeypatch.setattr(CyclicSearch, "one_step", lambda self: real(self) if self.step < 5 else (1.0, float("nan")))
    with pytest.raises(OfaError, match=r"nan .* at step 5; the checkpoint of step 4 is kept; .*--evaluation-lr \(now 0.1\)"):
        search(tmp_path / "x")
    assert [c.step for c in list_checkpoints(tmp_path / "x" / "nas")] == [2, 4]


def test_other_settings_are_refused(whole):
    with pytest.raises(OfaError, match="cycles is 3, but the search began with 2"):
        search(whole, resume=True, edge_weights="learned", cycles=3)


def test_memory_stays_flat(tmp_path, monkeypatch):
    """Over three cycles with a new network each, no tensor is left over."""
    counts = {}
    real = CyclicSearch.one_step

    def one_step(self):
        found = real(self)
        gc.collect()
        counts[self.step] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return found

    monkeypatch.setattr(cyclic_search.CyclicSearch, "one_step", one_step)
    monkeypatch.setattr(CyclicSearch, "_derived", lambda self: same)
    normal, reduce = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4, [("max_pool_3x3", 0), ("dil_conv_3x3", 1)] * 4
    concat = "[2, 3, 4, 5]"
    same = parse_genotype(f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat})")
    search(tmp_path / "x", cycles=3, pretrain_epochs=0)
    # steps 2, 3 / 6, 7 / 10, 11 are joint: the same moment of every cycle holds the same
    assert counts[3] == counts[7] == counts[11]
    assert counts[2] == counts[6] == counts[10]


def test_checkpoints_hold_both_networks(whole):
    config = CyclicConfig(**TINY, edge_weights="learned")
    images = Images(torch.zeros(8, 3, 12, 12, dtype=torch.uint8), torch.arange(8) % 10, tuple("0123456789"))
    found = CyclicSearch(
        Run(whole), config, SearchImages(None, Preprocessing.of(images, flip=False), images, images, images), torch.device("cpu")
    )
    load_weights(newest_checkpoint(whole / "nas"), found.net)
    assert {name.split(".")[0] for name in found.net.state_dict()} == {"search", "evaluation", "ensemble"}
