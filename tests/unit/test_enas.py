"""ENAS on images: what a step is, what it costs, what is rewarded, and a search that is stopped and gone on with to the bit."""

import itertools
import json
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.artefacts import ArtefactError, read_json
from ofa.enas_cells import EnasMicroSpace
from ofa.errors import OfaError
from ofa.formats.enas import macro_arch, micro_arch, parse_arc
from ofa.genotype import parse_genotype
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.checkpoint import load_training, newest_checkpoint
from search.joint import alternating, enas_space, stepping
from search.joint.alternating import AlternatingSearch
from search.joint.candidates import read_candidates, read_held_out
from search.joint.enas import search_enas
from search.joint.enas_config import EnasConfig, configure
from search.joint.enas_space import ChildSpace
from search.joint.images import open_images
from search.joint.objective import open_objective
from search.joint.record import open_or_create, read_search, train_command

TINY = {
    "channels": 2,
    "resolution": 8,
    "epochs": 2,
    "batch_size": 8,
    "max_images": 100,
    "train_portion": 0.5,
    "controller_steps": 2,
    "samples": 2,
    "candidates": 3,
}
DEPTH = {"micro": 5, "macro": 4}  # steps an epoch: 5 or 6 of the weights, 2 of the controller


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(space="macro", variant="paper", **settings):
    return configure(space, variant, **{**TINY, "depth": DEPTH[space], **settings})


def search(out, space="macro", *, variant="paper", resume=False, reward=None, where=(), **settings):
    return search_enas("digits", out, config=tiny(space, variant, **settings), resume=resume, reward=reward, where=where).path


def opened(out, space="macro", variant="paper", **settings):
    """A search that has not taken a step."""
    config = tiny(space, variant, **settings)
    images = open_images("digits", config, validation_fraction=0.1, flip=None)
    spaces = ChildSpace.of(config, 10)
    run = open_or_create(out, spaces.whole, images.source, {"method": "enas", **asdict(config)}, resume=False)
    return AlternatingSearch(run, config, spaces, images, open_objective(spaces.whole, None, (), None), torch.device("cpu"))


@pytest.fixture(scope="module", params=["micro", "macro"])
def whole(request, tmp_path_factory):
    """(space, run directory) of a search that nothing interrupted."""
    torch.set_num_threads(1)
    return request.param, search(tmp_path_factory.mktemp("enas") / request.param, request.param)


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


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_rate_falls_in_cosines_that_begin_anew_after_10_30_and_70_epochs():
    config = configure("micro")
    for epoch in (0, 10, 30, 70, 150):
        assert config.learning_rate(epoch) == 0.05
    for middle in (5, 20, 50, 110):  # of cosines of 10, 20, 40 and 80 epochs
        assert config.learning_rate(middle) == pytest.approx((0.05 + 0.0005) / 2)
    assert config.learning_rate(149) == pytest.approx(0.0005 + 0.0495 / 2 * (1 + np.cos(np.pi * 79 / 80)))


def test_published_numbers_are_the_defaults():
    micro, macro = configure("micro"), configure("macro", "release")
    assert (micro.depth, micro.channels, micro.epochs, micro.batch_size, micro.l2) == (8, 20, 150, 160, 1e-4)
    assert (micro.controller_steps, micro.samples, micro.controller_lr) == (30, 10, 0.0035)
    assert (macro.depth, macro.channels, macro.epochs, macro.batch_size, macro.l2) == (12, 36, 310, 128, 2.5e-4)
    assert (macro.controller_steps, macro.samples, macro.controller_lr) == (50, 20, 0.001)
    assert (macro.skip_target, macro.skip_weight) == (0.4, 0.8)
    assert micro == EnasConfig()


def test_which_networks_share_weights():
    assert ChildSpace.of(configure("micro"), 10).shared.name == "enas_micro:cells=8,channels=20,join=conv"
    assert ChildSpace.of(configure("macro"), 10).shared.name == "enas_macro:join=conv"
    release = ChildSpace.of(configure("macro", "release"), 10)
    assert (release.shared.name, release.whole.name) == ("enas_macro:growth=1,join=add", "enas_macro")


def test_what_is_priced_is_what_is_trained(tmp_path):
    large = ChildSpace.of(configure("macro", final_channels=96), 10)
    assert (large.shared.name, large.whole.name) == ("enas_macro:join=conv", "enas_macro:channels=96")
    run = opened(tmp_path / "x").run
    assert "--channels 96" in train_command(run)
    for number, settings in enumerate(({"reward": "mnasnet_soft"}, {"final_channels": 20})):
        facts = {"method": "enas", **settings}
        assert "--channels" not in train_command(open_or_create(tmp_path / str(number), run.space, run.data, facts, resume=False))


def test_architectures_are_kept_with_their_spaces_and_not_without_end(monkeypatch):
    monkeypatch.setattr(enas_space, "MOST_KNOWN", 2)
    spaces = ChildSpace.of(tiny(), 10)
    for operation in range(6):
        tokens = torch.tensor([operation, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        assert spaces.arch(tokens) == macro_arch(spaces.whole, tokens.tolist())
        assert spaces.shared_arch(tokens) == macro_arch(spaces.shared, tokens.tolist())
    assert len(spaces._known) == 2


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ("nano", {}, "space is 'nano', expected one of: micro, macro"),
        ("micro", {"variant": "x"}, "variant is 'x', expected one of: paper, release"),
        ("micro", {"epochs": 0}, "epochs is 0, expected a whole number of at least 1"),
        ("micro", {"samples": 2.5}, "samples is 2.5, expected a whole number"),
        ("macro", {"skip_target": 1.0}, "skip_target is 1.0, expected a number from 0.01 to 0.99"),
        ("macro", {"momentum": -0.1}, "momentum is -0.1"),
    ],
)
def test_bad_settings_are_refused(space, settings, message):
    with pytest.raises(OfaError, match=message):
        configure(space, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "micro", "depth": 4}, "cells is 4, expected at least 5"),
        ({"depth": 2}, "layers is 2, expected at least 3"),
        ({"resolution": 10}, "resolution is 10, expected a multiple of 4"),
        ({"batch_size": 64}, "fewer than batch_size 64"),
        ({"reward": "mnasnet_soft"}, "needs limits on costs"),
        ({"where": ["macs <= 1M"]}, "is weighed against accuracy by a reward, and none is given"),
    ],
)
def test_what_cannot_be_searched_leaves_nothing_behind(tmp_path, settings, message):
    with pytest.raises(OfaError, match=message):
        search(tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


# -- a search ----------------------------------------------------------------------------------------------------------


def test_a_search_writes_what_the_rest_of_the_toolkit_reads(whole):
    space, path = whole
    run, record = Run(path), read_search(path)
    arch = run.space.from_json(read_json(path / "arch.json", schema=ARCH_SCHEMA))
    arc = parse_arc((path / "arc.txt").read_text())
    assert arch == (micro_arch if space == "micro" else macro_arch)(run.space, arc)
    assert run.space.name == ("enas_micro:resolution=8" if space == "micro" else "enas_macro:layers=4,resolution=8")
    if space == "micro":
        assert run.space.from_genotype(parse_genotype((path / "genotype.txt").read_text())) == arch
        assert (path / "cells.svg").read_text().startswith("<svg")
    assert record.is_by_controller
    assert record.has_ended
    assert [line["epoch"] for line in record.metrics] == [1, 2]
    names = {"step", "loss", "reward", "best_reward", "baseline", "entropy", "lr", "seconds", "controller_loss", "top1"}
    assert all(set(line) == {"epoch", *names, *(["skips"] if space == "macro" else [])} for line in record.metrics)
    assert record.metrics[0]["best_reward"] >= record.metrics[0]["reward"]


def test_the_best_of_the_candidates_is_found(whole):
    _, path = whole
    ranked, images = read_candidates(path / "nas")
    top1, held_out = read_held_out(path / "nas")
    assert 0 <= top1 <= 1
    assert top1 * held_out == pytest.approx(round(top1 * held_out))  # a share of so many images
    assert (path / "arc.txt").read_text().strip() == ranked[0].arc
    assert [c.reward for c in ranked] == sorted((c.reward for c in ranked), reverse=True)
    assert sum(c.drawn for c in ranked) == 3
    assert images == 50
    record = json.loads((path / "nas" / "candidates.json").read_text())
    held_out = record["held_out_top1"] * record["held_out"]
    assert record["held_out"] > 0
    assert round(held_out) == pytest.approx(held_out)
    assert all(c.reward == c.top1 for c in ranked)
    assert all(round(c.top1 * images) == pytest.approx(c.top1 * images) for c in ranked)  # a share of all of them


@pytest.mark.parametrize("steps", [3, 8, 13], ids=["among weights", "after an epoch", "in the controller's turn"])
def test_a_stopped_search_goes_on_to_the_same_bits(steps, whole, tmp_path):
    space, path = whole
    out = tmp_path / "stopped"
    with stopped_after(steps), pytest.raises(KeyboardInterrupt):
        search(out, space)
    search(out, space, resume=True)
    ours, theirs = (newest_checkpoint(folder / "nas") for folder in (out, path))
    assert (ours.path / "model.safetensors").read_bytes() == (theirs.path / "model.safetensors").read_bytes()
    found = load_training(ours)
    for name, value in load_training(theirs).items():
        assert torch.equal(found[name], value), name
    for name in ("arc.txt", "nas/candidates.json"):
        assert (out / name).read_text() == (path / name).read_text()
    ours, theirs = ([line | {"seconds": 0} for line in read_search(folder).metrics] for folder in (out, path))
    assert ours == theirs  # means over all of an epoch's steps, whichever run took them


def test_a_finished_search_is_left_as_it_is_and_goes_on_with_no_other_settings(whole):
    space, path = whole
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    search(path, space, resume=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    with pytest.raises(OfaError, match="already holds a search"):
        search(path, space)
    with pytest.raises(OfaError, match=r"controller_lr is 0\.5, but the search began with"):
        search(path, space, resume=True, controller_lr=0.5)
    with pytest.raises(OfaError, match="reward is 'mnasnet_soft', but the search began with None"):
        search(path, space, resume=True, reward="mnasnet_soft", where=["macs <= 1M"])


def test_the_release_is_another_search(tmp_path):
    path = search(tmp_path / "x", variant="release")
    assert json.loads((path / "nas" / "config.json").read_text())["moves_unused"] is True
    assert Run(path).space.name == "enas_macro:layers=4,resolution=8"


def test_costs_are_rewarded_by_mnasnets_rule(tmp_path):
    path = search(tmp_path / "x", reward="mnasnet_hard", where=["macs <= 1M"], epochs=1)
    ranked, _ = read_candidates(path / "nas")
    for candidate in ranked:
        over = candidate.macs / 1e6
        assert candidate.reward == pytest.approx(candidate.top1 / over if over > 1 else candidate.top1)
    arch = Run(path).space.from_json(read_json(path / "arch.json", schema=ARCH_SCHEMA))
    assert ranked[0].macs == macs_of(Run(path).space, arch)


def macs_of(space, arch):
    from ofa.counts import macs

    alone = space.restrict(arch)
    return int(macs(alone, alone.encode([arch]))[0])


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real = AlternatingSearch.one_step
    monkeypatch.setattr(AlternatingSearch, "one_step", lambda self: real(self) if self.step < 9 else (float("nan"), None))
    with pytest.raises(OfaError, match=r"loss is nan on images of the weights at step 9; the checkpoint of step 8 is kept"):
        search(tmp_path / "x")


def test_damaged_candidates_are_refused(tmp_path):
    assert read_candidates(tmp_path) == ([], 0)
    (tmp_path / "candidates.json").write_text('{"schema": "ofa.nas_candidates/1", "images": 5, "candidates": [{"arc": "0"}]}')
    with pytest.raises(ArtefactError, match="damaged"):
        read_candidates(tmp_path)


# -- steps of the weights ----------------------------------------------------------------------------------------------


def saved_bytes(space, arch, weights):
    """Bytes of activations that a forward pass keeps for its gradients."""
    net, kept = Supernet(space), {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(net.train()(torch.zeros(4, 3, 8, 8), arch), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    with_gradient = sum(parameter.numel() for parameter in net.parameters() if parameter.grad is not None)
    weights.append(sum(parameter.numel() for parameter in net.parameters()))
    return sum(kept.values()), with_gradient


def test_a_step_holds_the_same_however_many_operations_there_are_to_choose_from():
    operations = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")
    found, weights = [], []
    for number in (1, 2, 5):
        space = EnasMicroSpace(base="x", operations=operations[:number], cells=5, channels=4, resolution_px=8, join="conv")
        found.append(
            saved_bytes(space, micro_arch(space, [0, 0, 1, 0, 1, 0, 2, 0, 0, 0, 3, 0, 2, 0, 2, 0, 4, 0, 1, 0] * 2), weights)
        )
    assert found[0] == found[1] == found[2]
    assert weights[0] < weights[1] < weights[2]  # there are more weights, but the step knows nothing of them


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_weights_that_a_step_does_not_use_stay_or_decay(variant, tmp_path):
    seen = opened(tmp_path / "x", variant=variant, lr=0.1, l2=0.01)
    before = {name: value.detach().clone() for name, value in seen.shared.named_parameters()}
    seen.weight_step(0, 0)
    tokens = seen.draw(seen.weight_steps, alternating.CHILDREN, 0).tokens[0]
    blocks = seen.space.shared.blocks(seen.space.shared_arch(tokens))
    used = {
        f"layers.{name}{suffix}" for name, spec in blocks.items() for suffix in ("", f"_{seen.space.shared.weight_group(spec)}")
    }
    unused = [name for name in before if not any(name.startswith(f"{block}.") for block in used)]
    assert unused
    # Nesterov's first step moves by 1 + 0.9 times the gradient, of the penalty 2 x 0.01 x weight
    factor = 1 if variant == "paper" else 1 - 0.1 * 1.9 * 0.02
    for name in unused:
        torch.testing.assert_close(
            dict(seen.shared.named_parameters())[name].detach(), before[name] * factor, rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_gradients_are_clipped_by_what_is_said_and_not_in_the_release(variant, tmp_path):
    clipped = {"clip_norm": 1e-3} if variant == "paper" else {}
    seen = opened(tmp_path / "x", variant=variant, l2=0.0, **clipped)
    before = [value.detach().clone() for value in seen.weights]
    seen.weight_step(0, 0)
    moved = float(sum((now.detach() - then).square().sum() for now, then in zip(seen.weights, before, strict=True)).sqrt())
    bound = 0.05 * 1.9 * 1e-3  # rate x Nesterov's first step x clip_norm
    assert moved == pytest.approx(bound, rel=1e-3) if variant == "paper" else moved > 100 * bound


def test_children_of_an_epoch_are_drawn_once_without_gradients(tmp_path):
    seen = opened(tmp_path / "x")
    for within in range(seen.weight_steps):
        seen.weight_step(0, within)
    assert all(parameter.grad is None for parameter in seen.controller.parameters())
    first = seen._children
    seen.weight_step(1, 0)
    assert not torch.equal(first[1], seen._children[1])


def test_a_macro_child_is_the_network_to_be_trained_with_those_of_the_weights_that_it_uses():
    """Zeros stand for what is not skipped to; a convolution of the rest alone says the same."""
    spaces, tokens = ChildSpace.of(tiny(channels=4), 10), parse_arc("4 1 1 0 0 1 2 1 0 1")
    final = spaces.whole.with_numbers(channels=4)
    child = Supernet(spaces.shared).extract(macro_arch(spaces.shared, tokens))
    net = Supernet(final).extract(macro_arch(final, tokens))
    weights = child.state_dict()
    for layer, bits in ((1, (1,)), (2, (0, 1)), (3, (1, 0, 1))):
        parts = weights[f"layer{layer}.conv.weight"].chunk(1 + layer, 1)  # of the operation, the stem, layer 0, ...
        kept = [parts[0], *(part for part, bit in zip(parts[1:], bits, strict=True) if bit)]
        weights[f"layer{layer}.conv.weight"] = torch.cat(kept, 1)
    net.load_state_dict(weights)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), child(x), rtol=1e-4, atol=1e-5)  # sums in another order


def test_a_search_of_as_many_layers_as_the_published_network_has():
    assert len(Supernet(ChildSpace.of(tiny(depth=24), 10).shared, device="meta").layers) > 24 * 7


# -- steps of the controller -------------------------------------------------------------------------------------------


def test_rewards_are_measured_on_the_controllers_images_each_once_a_pass(tmp_path, monkeypatch):
    seen, batches = opened(tmp_path / "x"), []
    monkeypatch.setattr(
        AlternatingSearch, "_prepared", lambda self, images: batches.append(images) or self.images.preprocess(images, 8)
    )
    tokens = seen.draw(1, alternating.LAST, 0).tokens[0]
    per_pass = len(seen.images.alphas) // 8
    for number in range(2 * per_pass):
        seen.batch_top1(tokens, number)
    own = [image.numpy().tobytes() for image in seen.images.alphas.images]
    for turn in (batches[:per_pass], batches[per_pass:]):
        drawn = [image.numpy().tobytes() for batch in turn for image in batch]
        assert all(drawn.count(image) <= own.count(image) for image in drawn)
    assert not torch.equal(batches[0], batches[per_pass])
    seen.batch_top1(tokens, 1)  # of a pass that is over: as a search that goes on there
    assert torch.equal(batches[-1], batches[1])


def test_a_reward_is_the_accuracy_by_the_batchs_own_statistics(tmp_path):
    seen = opened(tmp_path / "x")
    tokens, images = seen.draw(1, alternating.LAST, 0).tokens[0], seen.images.alphas
    before = [value.detach().clone() for value in seen.weights]
    found = seen.batch_top1(tokens, 0)
    order = np.random.default_rng((0, 0, alternating.ORDER)).permutation(len(images))[:8]
    net = seen.shared.extract(seen.space.shared_arch(tokens)).train()
    with torch.no_grad():
        logits = net(seen.images.preprocess(images.images[order], 8))
    assert found == float((logits.argmax(1) == images.labels[order]).float().mean())
    assert all(torch.equal(now, then) for now, then in zip(seen.weights, before, strict=True))


@pytest.mark.parametrize(
    ("space", "planted", "reached"),
    # logits are bounded: the largest chance of an operation is 0.80 in the macro space, 0.38 in the micro space
    [("macro", 5, 0.5), ("micro", 3, 0.3)],
)
def test_the_controller_comes_to_prefer_what_is_rewarded(space, planted, reached, tmp_path, monkeypatch):
    seen = opened(tmp_path / "x", space, controller_lr=0.03, samples=16, entropy_weight=0.0, skip_weight=0.0)
    places = torch.tensor([n for n, options in enumerate(seen.controller.options) if options == (6 if space == "macro" else 5)])
    if space == "micro":
        places = torch.arange(1, 40, 2)

    def share(tokens):
        return float((tokens[..., places] == planted).float().mean())

    monkeypatch.setattr(AlternatingSearch, "batch_top1", lambda self, tokens, number: share(tokens))
    before = share(seen.draw(500, alternating.LAST, 1).tokens)
    for number in range(80 if space == "macro" else 40):
        seen.controller_step(number)
    after = share(seen.draw(500, alternating.LAST, 1).tokens)
    assert after > reached
    assert after > before + 0.05


def test_the_skips_of_a_search_come_near_their_target(tmp_path, monkeypatch):
    seen = opened(tmp_path / "x", controller_lr=0.003, samples=16, skip_target=0.2)
    monkeypatch.setattr(AlternatingSearch, "batch_top1", lambda self, tokens, number: 0.5)
    for number in range(150):
        seen.controller_step(number)
    assert float(seen.draw(1000, alternating.LAST, 1).skips.mean()) == pytest.approx(0.2, abs=0.04)


def test_the_two_networks_know_an_architecture_by_the_same_tokens(tmp_path):
    spaces = ChildSpace.of(tiny("micro"), 10)
    arc = "1 3 0 2 1 0 2 1 0 2 1 1 2 1 3 2 0 0 5 2 0 1 1 3 2 0 2 3 0 4 3 3 1 4 2 3 1 4 4 4"
    tokens = torch.tensor(list(map(int, arc.split())))
    arch = spaces.arch(tokens)
    assert spaces.arc(arch) == arc.replace("1 3 0 2 1 0", "0 2 1 3 1 0", 1)  # states of a node in order
    assert arch.values == spaces.shared_arch(tokens).values
    assert get_space("enas_micro:resolution=8", num_classes=10).check(arch) == arch
