"""Binary gates: gradients against enumeration, rescaling by hand, planted choices found, searches that stop and go on."""

import dataclasses
import itertools
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latency.cost import CountCost
from latency.table import LatencyTable
from ofa.artefacts import read_jsonl
from ofa.block_spec import IMAGES, BlockSpec, wiring
from ofa.errors import OfaError
from ofa.find_arch import find_arch
from ofa.mobilenet import MobileNetSpace, Stage
from ofa.slots import fixed
from ofa.space import Dimension, SearchSpace, Slot
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.checkpoint import load_training, newest_checkpoint
from search.joint import stepping
from search.joint.gate_latency import LatencyLoss
from search.joint.gate_search import GateSearch
from search.joint.gates import Gates, Pairs, gated_logits, new_gates, pair_gradients
from search.joint.gates_config import GatesConfig
from search.joint.open_choices import open_choices
from search.joint.proxyless import search_gates
from search.joint.record import SearchError, read_search
from search.report import write_report

MOBILE = MobileNetSpace(
    name="mobile",
    resolutions=(8, 16),
    stem_width=8,
    stem_stride=1,
    first_width=8,
    stages=(Stage(8, 1, "relu", se=False, depths=(1, 2)), Stage(16, 2, "h_swish", se=True, depths=(1,))),
    final_width=16,
    feature_width=0,
    kernel_sizes=(3, 5),
    expand_ratios=(2, 3),
    num_classes=3,
)
SHUFFLE = "shufflenet:resolution=8,stem=cifar,channels=4,blocks=1"
SHUFFLE_OPTIONS = ("shuffle3", "shuffle5", "shuffle7", "xception")
FIX = ("resolution=8", "*.depth=2")
TINY = {
    "space": SHUFFLE,
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 8,
    "alpha_every": 2,
    "alpha_lr": 0.05,
    "max_images": 60,
    "train_portion": 0.5,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_pairs(choices, seed=0):
    rng = np.random.default_rng(seed)
    return Pairs(torch.tensor([rng.permutation(len(d.options))[:2].tolist() for d in choices.dimensions]))


@dataclasses.dataclass(frozen=True)
class Shared(SearchSpace):
    """Two convolutions whose kernels are one choice."""

    name: str = "shared"
    num_classes: int = 3

    @property
    def dimensions(self):
        return (Dimension("resolution", (8,)), Dimension("kernel_size", (1, 3, 5)))

    @property
    def slots(self):
        def choose(width):
            return lambda r, k: BlockSpec("conv", width, 8, r, kernel_size=k, act="relu")

        convolutions = [Slot(f"conv{i}", ("resolution", "kernel_size"), choose(width)) for i, width in enumerate((3, 8))]
        return (*convolutions, fixed("pool", "pool", 8, 8, 1), fixed("classifier", "linear", 8, 3, None, bias=True))


@dataclasses.dataclass(frozen=True)
class Rewired(Shared):
    """A choice that decides, besides blocks, what another block reads."""

    @property
    def slots(self):
        reads = lambda k: ("conv1", "conv0") if k == 1 else ("conv1", "conv1")  # noqa: E731
        add = fixed("add", "add", 8, 8, 8, num_inputs=2)
        first, second, *rest = super().slots
        return (first, second, dataclasses.replace(add, reads=reads, reads_on=("kernel_size",)), *rest)


SPACES = {
    "shufflenet": (get_space(SHUFFLE, num_classes=3), ()),
    "mobilenet": (MOBILE, FIX),  # two choices a block
    "shared": (Shared(), ()),  # one choice for two blocks
}


@pytest.fixture(params=SPACES)
def tiny(request):
    """Choices, a supernet in double precision, and a batch."""
    space, fix = SPACES[request.param]
    choices = open_choices(space, fix)
    torch.manual_seed(0)
    net = Supernet(space).double().train()
    for name, weights in net.named_parameters():
        if name.endswith("project.bn.weight"):
            torch.nn.init.ones_(weights)  # branches that begin as nothing would tell nothing
    side = space.resolution(choices.arch([0] * len(choices.columns)))
    return choices, net, torch.randn(4, 3, side, side, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def loss_with(choices, net, images, labels, chosen, place, option, amount):
    """Loss of a path with `amount` of what another option of one choice returns added to every block that it decides."""
    space = choices.space
    other = list(chosen)
    other[place] = option
    blocks, others = space.blocks(choices.arch(chosen)), space.blocks(choices.arch(other))
    states = {IMAGES: images}
    for name, sources in wiring(blocks).items():
        inputs = [states[source].clone() for source in sources]
        out = net.run_block(name, blocks[name], *inputs)
        if place in choices.slots.get(name, ()):
            inputs = [states[source].clone() for source in sources]
            out = out + amount * net.run_block(name, others[name], *inputs)
        states[name] = out
    return float(F.cross_entropy(out, labels))


def test_gradients_by_gates_are_what_enumeration_says(tiny):
    """Each gate's gradient is the difference quotient of the loss when some of that option's output is added."""
    choices, net, images, labels = tiny
    pairs = some_pairs(choices)
    gates = new_gates(pairs)
    logits = gated_logits(net, choices, pairs, gates, images)
    torch.testing.assert_close(logits, net(images, choices.arch(pairs.chosen)))
    (found,) = torch.autograd.grad(F.cross_entropy(logits, labels), [gates])
    step = 1e-6
    with torch.no_grad():
        for place, two in enumerate(pairs.options.tolist()):
            for side, option in enumerate(two):
                up, down = (loss_with(choices, net, images, labels, pairs.chosen, place, option, sign * step) for sign in (1, -1))
                # gates are float32, and a step across a kink of ReLU is off by some millionths
                assert float(found[place, side]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)


def test_only_two_paths_are_computed(tiny, monkeypatch):
    choices, net, images, _ = tiny
    counted = []
    real = Supernet.run_block
    monkeypatch.setattr(Supernet, "run_block", lambda self, name, *rest: counted.append(name) or real(self, name, *rest))
    pairs = some_pairs(choices)
    gated_logits(net, choices, pairs, new_gates(pairs), images)
    blocks = choices.space.blocks(choices.arch(pairs.chosen))
    assert len(counted) == len(blocks) + sum(map(len, choices.slots.values()))


def test_pair_gradients_by_hand():
    # p = 3/4 and 1/4; the mean of 2 and -2 is 1
    found = pair_gradients(torch.tensor([[math.log(3), 0.0]]), torch.tensor([[2.0, -2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.75 * (2 - 1), 0.25 * (-2 - 1)]]))


def test_pair_gradients_are_the_published_sum():
    torch.manual_seed(0)
    logits, by_gates = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    p = logits.softmax(1)
    expected = torch.zeros_like(p)
    for row, i, j in itertools.product(range(5), range(2), range(2)):
        expected[row, i] += by_gates[row, j] * p[row, j] * (float(i == j) - p[row, i])
    torch.testing.assert_close(pair_gradients(logits, by_gates), expected)


def made_gates(logits):
    """Gates of the one open choice of a space, with these logits."""
    space = get_space(SHUFFLE, num_classes=3)
    choices = open_choices(space, [f"block{i}.choice=shuffle3" for i in range(1, space.num_blocks)])
    gates = Gates(choices, generator())
    with torch.no_grad():
        gates.logits[0].copy_(torch.tensor(logits))
    return gates


def test_pairs_are_drawn_without_replacement_and_the_likelier_computes_more_often():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    gates = made_gates(np.log(p).tolist())
    rng = np.random.default_rng(0)
    draws = [tuple(gates.draw_pairs(rng).options[0].tolist()) for _ in range(6000)]
    for i, j in itertools.permutations(range(4), 2):
        together = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        expected = together * p[i] / (p[i] + p[j])  # i computes
        # four standard deviations of a share of 6000
        assert np.mean([draw == (i, j) for draw in draws]) == pytest.approx(expected, abs=4 * math.sqrt(expected / 6000))


def test_pairs_and_entropy_where_all_but_one_probability_is_rounded_to_0():
    gates = made_gates([0.0, -3000.0, -2000.0, -4000.0])
    assert float(gates.entropy().detach()) == 0
    (entropy_by,) = torch.autograd.grad(gates.entropy(), [gates.logits[0]])
    assert torch.isfinite(entropy_by).all()
    assert gates.draw_pairs(np.random.default_rng(0)).options[0].tolist() == [0, 2]


def test_alphas_must_have_a_step_after_the_warm_up():
    config = GatesConfig(epochs=3, warmup_epochs=1, alpha_every=5)
    config.require_alpha_steps(2)  # the fifth of steps 3 to 6
    with pytest.raises(OfaError, match="steps 2 to 3, after the warm-up, hold no multiple"):
        config.require_alpha_steps(1)


def test_rescaling_leaves_the_others_probabilities():
    """Logits 0, 1, 2, 3; those of 1 and 3 move to 1.5 and 2: both are shifted by what makes their exponentials' sum e + e^3."""
    gates = made_gates([0.0, 1.0, 2.0, 3.0])
    pairs = Pairs(torch.tensor([[3, 1]]))
    before = gates.of_pairs(pairs).detach()
    with torch.no_grad():
        gates.logits[0].copy_(torch.tensor([0.0, 1.5, 2.0, 2.0]))
    gates.rescale(pairs, before)
    shift = math.log(math.e**1.5 + math.e**2) - math.log(math.e + math.e**3)
    assert gates.logits[0].tolist() == pytest.approx([0, 1.5 - shift, 2, 2 - shift])
    total = sum(math.e**logit for logit in (0, 1, 2, 3))
    p = gates.probabilities()["block0.choice"].tolist()
    assert [p[0], p[2]] == pytest.approx([1 / total, math.e**2 / total])
    assert sum(p) == pytest.approx(1)


def test_what_was_not_drawn_does_not_move():
    gates = made_gates([0.0, 0.1, 0.2, 0.3])
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1, betas=(0.0, 0.999))
    for two, still in (([3, 1], [0, 2]), ([0, 2], [1, 3])):  # the second time those that moved have moments
        logits, p = gates.logits[0].tolist(), gates.probabilities()["block0.choice"].tolist()
        pairs = Pairs(torch.tensor([two]))
        before = gates.of_pairs(pairs).detach()
        gates.set_gradients(pairs, torch.tensor([[1.0, -1.0]]))
        optimizer.step()
        gates.rescale(pairs, before)
        after = gates.probabilities()["block0.choice"].tolist()
        for option in still:
            assert gates.logits[0][option] == logits[option]
            assert after[option] == pytest.approx(p[option])
        assert after[two[0]] < p[two[0]]
        assert after[two[1]] > p[two[1]]


def test_the_better_option_is_found():
    """Four options whose outputs miss a target by 3, 1, 2 and 4: the second one wins, and the first two are not last."""
    gates = made_gates([0.0] * 4)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05, betas=(0.0, 0.999))
    outputs = torch.tensor([3.0, 1.0, 2.0, 4.0])
    rng = np.random.default_rng(0)
    for _ in range(300):
        pairs = gates.draw_pairs(rng)
        open_gates = new_gates(pairs)
        loss = (open_gates * outputs[pairs.options]).sum() ** 2
        (by_gates,) = torch.autograd.grad(loss, [open_gates])
        before = gates.of_pairs(pairs).detach()
        gates.set_gradients(pairs, pair_gradients(before, by_gates))
        optimizer.step()
        gates.rescale(pairs, before)
    p = gates.probabilities()["block0.choice"].tolist()
    assert gates.most_probable() == [1]
    assert p[1] > 0.9


# -- latency --------------------------------------------------------------------------------------------------------------


def test_latency_losses_by_hand():
    choices = open_choices(MOBILE, FIX)
    model = CountCost("macs", choices.sub_space)  # any additive cost
    gates = Gates(choices, generator())
    expected = float(model.predict(choices.sub_space.everything()).mean())  # all networks are nearly as likely
    entropy = torch.tensor(2.0)
    for name, weight, target, by_hand in (
        ("add", 0.5, 2e5, 2 + 0.5 * expected / 2e5),
        ("multiply", 0.3, 2e5, 2 * (math.log(expected) / math.log(2e5)) ** 0.3),
    ):
        config = GatesConfig(latency_loss=name, latency_weight=weight, target_ms=target)
        loss = LatencyLoss(choices, model, config)
        assert float(loss.expected_ms(gates.probabilities()).detach()) == pytest.approx(expected, rel=2e-3)
        assert float(loss(entropy, gates.probabilities()).detach()) == pytest.approx(by_hand, rel=2e-3)


def test_expected_latency_of_a_pair_is_that_of_its_two_networks():
    gates = made_gates([0.0, 1.0, 2.0, 3.0])
    model = CountCost("macs", gates.choices.sub_space)
    loss = LatencyLoss(gates.choices, model, GatesConfig(target_ms=1.0))
    pairs = Pairs(torch.tensor([[1, 3]]))
    p = torch.tensor([1.0, 3.0]).softmax(0).tolist()
    by_hand = sum(share * model(gates.choices.arch([option])) for share, option in zip(p, (1, 3), strict=True))
    assert float(loss.expected_ms(pairs.probabilities(gates, gates.of_pairs(pairs))).detach()) == pytest.approx(by_hand)


def test_the_factor_needs_milliseconds_above_one():
    choices = open_choices(MOBILE, FIX)
    table = LatencyTable(choices.sub_space, "pi4", dict.fromkeys(choices.sub_space.all_blocks, 0.01))
    with pytest.raises(SearchError, match=r"expected a target and networks above 1 ms, found 0\.08 ms"):
        LatencyLoss(choices, table, GatesConfig(latency_loss="multiply", target_ms=5.0))


# -- choices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "fix", "message"),
    [
        (
            MOBILE,
            (),
            "the shape of block stem depends on resolution; gates choose between blocks of equal shape in one wiring",
        ),
        (
            MOBILE,
            ("resolution=8",),
            "whether there is a block stage1_block1 depends on stage1.depth, .* --fix 'stage1.depth=OPTION'",
        ),
        (get_space("darts"), (), "whether there is a block cell0_node2_from0 depends on normal.node2.op1, normal.node2.op2"),
        (get_space("nasbench201"), (), "whether there is a block stage1_cell0_node1_from0 depends on node1.from0"),
        (MOBILE, ("resolution=9",), "resolution has the options 8, 16"),
        (MOBILE, ("width=9",), "expected NAME=OPTION with the name, or a pattern, of one of: resolution, stage1.depth"),
        (MOBILE, ("resolution",), "expected NAME=OPTION"),
        (Rewired(), (), "the wiring, which blocks add reads, depends on kernel_size; gates choose"),
        (get_space("darts_rnn"), (), "read no images"),
        (get_space("mobilenet_v2"), (), "no choice is left to be decided"),
        (MOBILE, ("*=8", "*=2", "*=3"), "has the options"),
    ],
)
def test_spaces_that_are_no_choices_between_blocks(space, fix, message):
    with pytest.raises(SearchError, match=message):
        open_choices(space, fix)


def test_a_choice_without_effect_is_not_searched():
    choices = open_choices(MOBILE, ("resolution=16", "stage1.depth=1"))
    assert [d.name for d in choices.dimensions] == [
        *("stage1.block0.kernel_size", "stage1.block0.expand_ratio", "stage2.block0.kernel_size", "stage2.block0.expand_ratio")
    ]
    arch = choices.arch([1, 0, 0, 1])
    assert MOBILE.resolution(arch) == 16
    assert MOBILE.blocks(arch)["stage1_block0"].kernel_size == 5
    assert choices.sub_space.size() == 16


# -- searches -------------------------------------------------------------------------------------------------------------


def search(out, *, resume=False, table=None, reward=None, where=(), **settings):
    config = GatesConfig(**{**TINY, **settings})
    return search_gates("digits", out, config=config, resume=resume, table=table, reward=reward, where=where)


def alphas(out):
    training = load_training(newest_checkpoint(Path(out) / "nas"))
    return {name: value for name, value in training.items() if name.startswith("controller|")}


def metrics(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_search(out).metrics]


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return search(tmp_path_factory.mktemp("gates") / "whole").path


def test_a_search_writes_what_the_rest_reads(whole):
    space, arch = find_arch(whole)
    assert space.name == SHUFFLE
    assert (whole / "network.svg").exists()
    assert [line["epoch"] for line in metrics(whole)] == [1, 2, 3]
    assert "alpha_loss" not in metrics(whole)[0]  # they wait
    assert "alpha_loss" in metrics(whole)[1]
    noted = list(read_jsonl(whole / "nas" / "alphas.jsonl"))
    assert [line["epoch"] for line in noted] == [0, 1, 2, 3]
    assert noted[0]["probabilities"] == noted[1]["probabilities"] != noted[3]["probabilities"]
    for place, dimension in enumerate(d for d in space.dimensions if d.name != "resolution"):
        last = noted[3]["probabilities"][dimension.name]
        assert sum(last) == pytest.approx(1, abs=1e-4)
        assert arch.values[1 + place] == dimension.options[int(np.argmax(last))]


@pytest.mark.parametrize("update", ["gradient", "reinforce"])
def test_a_stopped_search_goes_on_to_the_same_bits(whole, tmp_path, update):
    if update == "reinforce":
        whole = search(tmp_path / "whole", update=update, samples=2).path
    settings = {"update": update, "samples": 2} if update == "reinforce" else {}
    for steps in (4, 3):
        with stopped_after(steps), pytest.raises(KeyboardInterrupt):
            search(tmp_path / "run", resume=True, **settings)
    search(tmp_path / "run", resume=True, **settings)
    for name, value in alphas(whole).items():
        assert torch.equal(alphas(tmp_path / "run")[name], value), name
    assert metrics(tmp_path / "run") == metrics(whole)
    assert (tmp_path / "run" / "arch.json").read_text() == (whole / "arch.json").read_text()


def test_weights_beside_the_path_stay(tmp_path, monkeypatch):
    """After some steps, so that there is momentum: what a step's path does not use neither decays nor moves."""
    seen = []
    real = GateSearch.weight_step

    def weight_step(self):
        before = {name: value.clone() for name, value in self.shared.named_parameters()}
        loss = real(self)
        seen.append({name for name, value in self.shared.named_parameters() if not torch.equal(before[name], value)})
        return loss

    monkeypatch.setattr(GateSearch, "weight_step", weight_step)
    search(tmp_path / "run", epochs=2, warmup_epochs=0)
    for moved in seen:
        groups = {name.split(".")[1] for name in moved if name.startswith("layers.block")}
        assert len(groups) == 5  # one of each block's four


def planted(tmp_path, fastest):
    """A table in which one operation takes a hundredth of a millisecond and every other one ten milliseconds."""
    space = get_space(SHUFFLE, num_classes=10)
    choice = {"shuffle": lambda spec: f"shuffle{spec.kernel_size}", "xception": lambda spec: "xception"}
    entries = {spec: 1.0 for spec in space.all_blocks if spec.kind not in choice}
    entries |= {spec: 0.01 if choice[spec.kind](spec) == fastest else 10.0 for spec in space.all_blocks if spec.kind in choice}
    LatencyTable(space, "pi4", entries).save(tmp_path / "pi4.json")
    return tmp_path / "pi4.json"


@pytest.mark.parametrize("loss", ["add", "multiply"])
def test_what_is_much_faster_is_found(tmp_path, loss):
    table = planted(tmp_path, "shuffle7")
    settings = {"epochs": 20, "warmup_epochs": 0, "alpha_every": 1, "alpha_lr": 0.3, "latency_loss": loss}
    run = search(tmp_path / "run", table=table, target_ms=10.0, latency_weight=20.0, **settings)
    _, arch = find_arch(run.path)
    assert set(arch.values[1:]) == {"shuffle7"}
    expected = [line["expected_ms"] for line in metrics(run.path)]
    assert expected[-1] < expected[0] / 2


def test_reinforce_finds_it_too(tmp_path):
    table = planted(tmp_path, "xception")
    settings = {"epochs": 12, "warmup_epochs": 0, "alpha_every": 1, "alpha_lr": 0.2, "update": "reinforce", "samples": 4}
    where = {"reward": "mnasnet_hard", "where": ["latency@pi4 <= 5ms"], "table": table}
    run = search(tmp_path / "run", baseline_decay=0.8, **where, **settings)
    _, arch = find_arch(run.path)
    assert arch.values[1:].count("xception") >= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_ms": 3.0}, "target_ms is 3, but there is no latency table"),
        ({"table": Path("pi4.json")}, "pi4.json: has no target"),
        ({"reward": "mnasnet_soft", "where": ["macs <= 3M"]}, "a reward is given, but alphas learn by gradients"),
        ({"update": "reinforce", "target_ms": 3.0}, "reinforce takes a reward with limits"),
        ({"update": "guess"}, "update is 'guess', expected one of: gradient, reinforce"),
        ({"warmup_epochs": 3}, "alphas would never learn"),
        ({"alpha_every": 1000}, "alphas would never learn"),
        ({"latency_weight": 0.3}, "latency_weight is 0.3, but no latency matters to this search"),
        ({"latency_loss": "multiply"}, "latency_loss is multiply, but no latency matters to this search"),
        ({"latency_loss": "divide"}, "expected one of: add, multiply"),
    ],
)
def test_refusals(tmp_path, settings, message):
    with pytest.raises(OfaError, match=message):
        search(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_the_report_shows_probabilities(whole):
    page = write_report(whole).read_text()
    assert "Found by gates (ProxylessNAS), after 3 of 3 epochs" in page
    assert "block4.choice" in page
    last = list(read_jsonl(whole / "nas" / "alphas.jsonl"))[-1]["probabilities"]["block0.choice"]
    assert f"<strong>{SHUFFLE_OPTIONS[int(np.argmax(last))]} {max(last):.3f}</strong>" in page


def test_the_command(cli, tmp_path):
    options = ("--space", SHUFFLE, "--data", "digits", "--epochs", "2", "--warmup-epochs", "0", "--batch-size", "8")
    few = ("--max-images", "60", "--train-portion", "0.5", "--alpha-lr", "0.05", "--alpha-every", "1")
    done = cli("nas", "spos", "--decide", "gates", "--out", tmp_path / "run", *options, *few)
    assert done.returncode == 0, done.stderr
    assert "next, from scratch: ofa train --arch" in done.stderr
    assert find_arch(tmp_path / "run")[0].name == SHUFFLE
    for wrong, message in (
        (("--decide", "gates", "--population", "3"), "--population 3: --decide gates has no evolution"),
        (("--decide", "reinforce", "--target-ms", "3"), "--target-ms 3.0: --decide reinforce"),
        (("--alpha-lr", "3"), "--alpha-lr 3.0: the evolution decides, not gates"),
    ):
        refused = cli("nas", "spos", *wrong, "--data", "digits", "--out", tmp_path / "other")
        assert refused.returncode == 1
        assert message in refused.stderr
    assert not (tmp_path / "other").exists()


def test_other_settings_do_not_go_on(whole):
    with pytest.raises(SearchError, match="alpha_lr"):
        search(whole, resume=True, alpha_lr=0.01)
    with pytest.raises(SearchError, match="already holds a search"):
        search(whole)
