"""The expected cost of undecided networks against brute force over all of them."""

import itertools

import numpy as np
import pytest
import torch

from latency.cost import CountCost, SizeCost
from latency.expected import ExpectedLatency
from ofa import bignas, mobilenet, resnet
from ofa.errors import OfaError
from ofa.spaces import get_space

SPACES = {
    "mobilenet": mobilenet.MobileNetSpace(
        name="mobilenet",
        resolutions=(8, 12),
        stem_width=8,
        stem_stride=1,
        first_width=8,
        stages=(mobilenet.Stage(16, stride=2, act="relu", se=True, depths=(1, 2)),),
        final_width=24,
        feature_width=0,
        kernel_sizes=(3, 5),
        expand_ratios=(2, 3),
    ),
    "resnet": resnet.ResNetSpace(
        name="resnet",
        resolutions=(8, 12),
        stem_mid_widths=(8, 16),
        stem_out_widths=(8, 16),
        stem_stride=1,
        max_pool=False,
        stages=(resnet.Stage((16, 24), depths=(1, 2), stride=2),),
        expand_ratios=(0.25, 0.5),
    ),
    "bignas": bignas.BigNasSpace(
        name="bignas",
        resolutions=(8, 12),
        stem_widths=(8, 16),
        stem_stride=2,
        stages=(bignas.Stage((16, 24), depths=(1, 3), kernel_sizes=(3, 5), expand_ratios=(2, 3), stride=2, se=False),),
        final_expand_ratio=2,
        feature_widths=(32, 48),
    ),
}


class Milliseconds:
    """Random values for blocks, as a latency table has."""

    quantity = "latency"

    def __init__(self, space):
        self.space, self.offset = space, 0.25
        self.block_values = np.append(np.random.default_rng(0).exponential(size=len(space.all_blocks)), 0.0)

    def predict(self, population):
        return self.block_values[self.space.block_ids(population)].sum(1) + self.offset

    def __call__(self, arch):
        return float(self.predict(self.space.encode([arch]))[0])


def random_probabilities(space, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = {d.name: torch.randn(len(d.options), generator=generator, dtype=dtype) for d in space.dimensions}
    return {name: values.softmax(0).requires_grad_() for name, values in logits.items()}


def brute_force(model, probabilities):
    """Sum of probability times cost over every architecture, those that are the same network included."""
    dimensions = model.space.dimensions
    population = np.array(list(itertools.product(*(range(len(d.options)) for d in dimensions))), dtype=np.int16)
    chosen = [probabilities[d.name].detach().numpy()[population[:, c]] for c, d in enumerate(dimensions)]
    return float(np.prod(chosen, axis=0) @ model.predict(population))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("cost", [Milliseconds, SizeCost, lambda space: CountCost("macs", space)])
def test_expectation_equals_brute_force(name, cost):
    model = cost(SPACES[name])
    for seed in range(3):
        probabilities = random_probabilities(model.space, seed)
        assert ExpectedLatency(model)(probabilities).item() == pytest.approx(brute_force(model, probabilities), rel=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_those_of_finite_differences(name):
    space = SPACES[name]
    expected, names = ExpectedLatency(Milliseconds(space)), [d.name for d in space.dimensions]
    probabilities = random_probabilities(space)
    assert torch.autograd.gradcheck(
        lambda *given: expected(dict(zip(names, given, strict=True))), tuple(probabilities[n] for n in names)
    )


def test_certain_choices_cost_what_the_network_costs():
    space = get_space("ofa_mbv3_w1_0")
    model = Milliseconds(space)
    for row in space.sample(np.random.default_rng(0), 5):
        certain = {d.name: torch.eye(len(d.options))[int(i)] for d, i in zip(space.dimensions, row, strict=True)}
        found = ExpectedLatency(model)(certain)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(model.predict(row[None])[0], rel=1e-5)  # float32 sums


def test_descent_on_logits_finds_the_cheapest_network():
    space = SPACES["mobilenet"]
    expected = ExpectedLatency(CountCost("macs", space))
    logits = {d.name: torch.zeros(len(d.options), dtype=torch.float64, requires_grad=True) for d in space.dimensions}
    optimizer = torch.optim.Adam(logits.values(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (expected({name: values.softmax(0) for name, values in logits.items()}) / 1e5).backward()
        optimizer.step()
    assert all(int(logits[d.name].argmax()) == 0 for d in space.dimensions if d.requires is None)


def test_a_choice_without_effect_has_no_gradient():
    space = SPACES["mobilenet"]
    logits = {d.name: torch.zeros(len(d.options), dtype=torch.float64, requires_grad=True) for d in space.dimensions}
    certain = {"stage1.depth": torch.tensor([1.0, 0.0], dtype=torch.float64)}  # the second block does not stand
    ExpectedLatency(Milliseconds(space))({name: values.softmax(0) for name, values in logits.items()} | certain).backward()
    assert logits["stage1.block1.kernel_size"].grad.abs().max() < 1e-12
    assert logits["stage1.block0.kernel_size"].grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": None}, "no probabilities of resolution"),
        ({"resolution": torch.tensor([0.2, 0.3, 0.5])}, r"resolution have shape \(3,\), expected \(2,\)"),
        ({"resolution": torch.tensor([2.0, -0.5])}, "resolution add up to 1.5, expected 1; of logits take softmax"),
    ],
)
def test_wrong_probabilities_are_refused_by_name(change, message):
    space = SPACES["mobilenet"]
    given = {k: v for k, v in (random_probabilities(space, dtype=torch.float32) | change).items() if v is not None}
    with pytest.raises(OfaError, match=message):
        ExpectedLatency(Milliseconds(space))(given)


def test_a_table_with_unknown_blocks_has_no_expectation():
    model = Milliseconds(SPACES["mobilenet"])
    model.block_values[3] = np.nan
    with pytest.raises(OfaError, match="no value for 1 block"):
        ExpectedLatency(model)
