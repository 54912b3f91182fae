"""REINFORCE: the loss by hand, known optima found by every controller, skips at their target, checkpoints that change nothing."""

import numpy as np
import pytest
import torch

from ofa.errors import OfaError
from ofa.space import Dimension
from search.choice_space import ChoiceSpace
from search.joint.controllers.conv import ConvController
from search.joint.controllers.flat import FlatController
from search.joint.controllers.macro import MacroController
from search.joint.controllers.micro import MicroController
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.controllers.recurrent import RecurrentController
from search.joint.controllers.tree import TreeController
from search.strategies.controller import ControllerSearch

PLAIN = {"betas": (0.9, 0.999), "eps": 1e-8, "baseline_decay": 0.9, "skip_weight": 0.0}  # Adam as usual: the fastest here


def generator(seed):
    return torch.Generator().manual_seed(seed)


def softmax(*logits):
    return np.exp(logits) / np.exp(logits).sum()


# -- known optima -----------------------------------------------------------------------------------------------------


def most_likely(name):
    """Return the largest log-probability that the bounds of logits allow for the sequence that a bandit rewards."""
    bound, op_bound = 1.10, 1.10 / 2.5  # micro
    if name == "micro":
        inputs = sum(2 * np.log(softmax(bound, *[-bound] * (n - 1))[0]) for n in (2, 3))
        return 2 * (inputs + 4 * np.log(softmax(op_bound, *[-op_bound] * 4)[0]))
    if name == "macro":
        return 5 * np.log(softmax(1.5, *[-1.5] * 5)[0]) + 10 * np.log(softmax(1.5, -1.5)[0])
    if name == "recurrent":
        sources = [softmax(*[(2.5 if j == 0 else -2.5) - (n - j) ** 2 / 6 for j in range(n)])[0] for n in range(1, 6)]
        return np.log(sources).sum() + 6 * np.log(softmax(2.5, *[-2.5] * 3)[0])
    return 0.0


BANDITS = {
    "micro": (lambda g: MicroController(2, generator=g), [1, 3, 1, 3] * 4),
    "macro": (lambda g: MacroController(5, generator=g), [4, *(4, 1), *(4, 1, 1), *(4, 1, 1, 1), *(4, 1, 1, 1, 1)]),
    "recurrent": (lambda g: RecurrentController(6, generator=g), [2, *(0, 2) * 5]),
    "conv": (
        lambda g: ConvController(4, strides=3, generator=g),
        [3, 0, 1, 2, *(3, 0, 1, 2, 1), *(3, 0, 1, 2, 1, 1), *(3, 0, 1, 2, 1, 1, 1)],
    ),
    "tree": (lambda g: TreeController(4, generator=g), [0, 3, 1, 0, 1, 2, 0, 1, 1, 1, 0, 3, 0, 2, 1, 2, 3, 0]),
    "flat": (lambda g: FlatController((3, 5, 2, 5, 4, 4), generator=g), [2, 0, 1, 3, 3, 1]),
}


@pytest.mark.parametrize("name", BANDITS)
def test_every_controller_finds_the_optimum_of_a_bandit(name):
    """Reward is the share of tokens that are those of one sequence; in the end it is as likely as bounds of logits allow."""
    make, best = BANDITS[name]
    draws, best = generator(0), torch.tensor(best)
    controller = make(draws)
    gradient = PolicyGradient(controller, lr=0.01 if name != "tree" else 0.005, **PLAIN)
    first = controller(64, generator=draws)
    for _ in range(120):
        sampled = controller(32, generator=draws)
        facts = gradient.step(sampled, (sampled.tokens == best).double().mean(1))
    found = controller(tokens=best[None]).log_prob.item()
    assert found > most_likely(name) - 0.2  # 0.8 of the largest probability
    assert found <= most_likely(name)
    assert facts["reward"] > (first.tokens == best).double().mean() + 0.2


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_release_of_micro_learns_inputs_but_not_which_convolution_is_better(variant):
    """Inputs 1 and operations 0 are rewarded; as released, the two convolutions stay equally likely all the same."""
    draws = generator(0)
    controller = MicroController(2, variant=variant, generator=draws)
    gradient = PolicyGradient(controller, lr=0.005, **PLAIN)
    for _ in range(80):
        sampled = controller(32, generator=draws)
        inputs, operations = sampled.tokens[:, 0::2], sampled.tokens[:, 1::2]
        gradient.step(sampled, (inputs == 1).double().mean(1) + (operations == 0).double().mean(1))
    with torch.no_grad():
        tokens = controller(2000, generator=generator(1)).tokens
    best, other = ((tokens[:, 1::2] == op).double().mean().item() for op in (0, 1))
    assert (tokens[:, 0::2] == 1).double().mean() > 0.7  # at first 5 / 12
    if variant == "release":
        assert abs(best - other) < 0.025  # 16,000 draws: five standard errors
    else:
        assert best > other + 0.2


# -- skips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.4, 0.6])
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_skips_approach_their_target_when_only_the_penalty_acts(variant, target):
    """The release's penalty is least where sigmoid(q) is the target; then skips are drawn at sigmoid(2 q)."""
    draws = generator(0)
    controller = MacroController(5, skip_target=target, variant=variant, generator=draws)
    gradient = PolicyGradient(controller, lr=0.005, betas=(0.9, 0.999), eps=1e-8, skip_weight=0.8, entropy_weight=0.0)
    for _ in range(120):
        facts = gradient.step(controller(8, generator=draws), torch.ones(8))  # all are rewarded alike
    with torch.no_grad():
        sampled = controller(1000, generator=generator(1))
    odds = target / (1 - target)
    expected = target if variant == "paper" else odds**2 / (1 + odds**2)
    assert sampled.skip_penalty.mean() < 0.002
    assert sampled.skips.mean().item() == pytest.approx(expected, abs=0.03)  # 10,000 bits: standard error 0.005
    assert facts["skips"] == pytest.approx(expected, abs=0.25)


# -- the step, by hand ------------------------------------------------------------------------------------------------


def two_armed(**settings):
    """A controller of one choice between two, at even chances, in float64."""
    controller = FlatController((2,), size=2, generator=generator(0)).double()
    with torch.no_grad():
        controller.heads.zero_()
    return controller, PolicyGradient(controller, **{"lr": 0.1, **PLAIN, "entropy_weight": 0.0, **settings})


def test_a_rewarded_sequence_becomes_likelier():
    controller, gradient = two_armed()
    tokens = torch.tensor([[0], [1], [1]])
    facts = gradient.step(controller(tokens=tokens), torch.tensor([0.0, 3.0, 3.0]))
    assert controller(tokens=tokens[1:2]).log_prob.exp().item() > 0.5
    # log p is -log 2 for all; advantages of -2, 1, 1 cancel
    assert facts == pytest.approx({"loss": 0.0, "baseline": 2.0, "entropy": np.log(2), "reward": 2.0, "skips": 0.0})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("initial", [None, 0.0])
def test_baseline_is_the_moving_average_of_rewards(first, initial):
    controller, gradient = two_armed(baseline_first=first, initial_baseline=initial)
    tokens, expected = torch.tensor([[0], [1]]), initial
    for rewards in ([1.0, 3.0], [4.0, 4.0], [0.0, 1.0]):
        mean = np.mean(rewards)
        before = mean if expected is None else expected
        expected = 0.9 * before + 0.1 * mean
        compared = expected if first else before
        with torch.no_grad():
            log_p = controller(tokens=tokens).log_prob.numpy()
        facts = gradient.step(controller(tokens=tokens), torch.tensor(rewards))
        assert facts["baseline"] == pytest.approx(compared)
        assert facts["loss"] == pytest.approx(-((np.array(rewards) - compared) * log_p).mean())
        assert gradient.baseline == pytest.approx(expected)


def test_entropy_counts_in_the_reward_or_in_the_loss():
    tokens, rewards = torch.tensor([[0], [1]]), torch.tensor([1.0, 2.0])
    entropy = log2 = np.log(2)
    controller, gradient = two_armed(entropy_weight=0.5, initial_baseline=0.0, baseline_decay=1.0, entropy_in="reward")
    facts = gradient.step(controller(tokens=tokens), rewards)
    assert facts["loss"] == pytest.approx((1.5 + 0.5 * entropy) * log2)
    assert facts["reward"] == pytest.approx(1.5)
    controller, gradient = two_armed(entropy_weight=0.5, initial_baseline=0.0, baseline_decay=1.0, entropy_in="loss")
    assert gradient.step(controller(tokens=tokens), rewards)["loss"] == pytest.approx(1.5 * log2 - 0.5 * entropy)
    # alone, it evens the chances out
    controller, gradient = two_armed(entropy_weight=0.5, initial_baseline=0.0, lr=0.01, entropy_in="loss")
    with torch.no_grad():
        for weights in controller.parameters():
            weights.mul_(20)
        output = controller.lstm(controller.start[None], controller.lstm.begin(1))[0][0]
        controller.heads[0] = torch.stack([output / (output @ output), torch.zeros_like(output)], 1)  # logits 1 and 0
    before = controller().entropy.item()
    for _ in range(20):
        gradient.step(controller(tokens=tokens), torch.zeros(2))
    assert before < 0.6
    assert controller().entropy.item() > before + 0.001


def test_defaults_are_those_of_the_release():
    gradient = PolicyGradient(MicroController(1, variant="release"))
    group = gradient.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.0035, (0.0, 0.999), 1e-3, 0)
    sampled = gradient.controller(3, generator=generator(0))
    facts = gradient.step(sampled, torch.tensor([0.0, 0.0, 3.0]))
    # the entropy, some 9 nats, is worth 1e-4 a nat
    assert facts["baseline"] == pytest.approx(1 + 1e-4 * sampled.entropy.mean().item())


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped():
    def train(gradient, steps, draws):
        for _ in steps:
            sampled = gradient.controller(4, generator=draws)
            gradient.step(sampled, sampled.tokens.double().mean(1))

    whole, stopped = (PolicyGradient(MacroController(3, generator=generator(0))) for _ in range(2))
    draws = generator(1)
    train(whole, range(6), draws)
    draws = generator(1)
    train(stopped, range(3), draws)
    tensors, facts = stopped.state()
    kept = {name: value.clone() for name, value in tensors.items()} | {"another|tensor": torch.zeros(1)}
    resumed = PolicyGradient(MacroController(3, generator=generator(5)))
    resumed.load_state(kept, {**facts, "epoch": 3})
    train(resumed, range(3), draws)
    assert resumed.baseline == whole.baseline
    for name, value in whole.state().tensors.items():
        assert torch.equal(value, resumed.state().tensors[name]), name


def test_what_cannot_be_learnt_from_is_refused():
    controller, gradient = two_armed()
    sampled = controller(2, generator=generator(0))
    for rewards in (torch.ones(3), torch.tensor([1.0, float("nan")])):
        with pytest.raises(OfaError, match="expected 2 finite numbers"):
            gradient.step(sampled, rewards)
    with torch.no_grad(), pytest.raises(OfaError, match=r"outside of torch.no_grad"):
        gradient.step(controller(2), torch.ones(2))
    for wrong in ({"lr": 0.0}, {"baseline_decay": 1.1}, {"entropy_weight": -1.0}, {"skip_weight": -0.1}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(OfaError, match=f"{name} {value}.*expected"):
            PolicyGradient(controller, **wrong)


# -- as a strategy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "scale", "shift"), [(50, 1.0, 0.0), (10, 1e-3, 1e3), (10, 1e3, -1e5)])
def test_the_strategy_converges_on_dependent_choices_whatever_the_unit(batch, scale, shift):
    """The best network needs two choices to agree, which a policy of independent choices cannot tell before it decides."""
    space = ChoiceSpace("bandit", tuple(Dimension(f"arm{i}", tuple("abcd")) for i in range(6)))
    rng = np.random.default_rng(0)
    worth = rng.normal(size=(6, 4))

    def score(population):
        agree = (population[:, 0] == population[:, 5]).astype(float)
        return worth[np.arange(6), population].sum(1) + 2 * agree

    strategy = ControllerSearch(space, np.random.default_rng(1), batch=batch)
    asked = 0
    while asked < 1000:
        population = strategy.ask()
        asked += len(population)
        strategy.tell(population, shift - scale * score(population)[:, None], np.zeros(len(population)))
    drawn = strategy.draw(200)
    everything = space.everything()
    ranks = np.sort(score(everything))
    assert np.median(score(drawn)) > ranks[-len(everything) // 50]  # half of the draws are among the best 2 %


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"entropy_bonus": -1.0}, {"size": 0}, {"decay": 1.0}, {"minibatch": 0}]
)
def test_a_setting_of_the_strategy_out_of_range_is_named(wrong):
    space = ChoiceSpace("two", (Dimension("a", (1, 2)),))
    name, value = next(iter(wrong.items()))
    with pytest.raises(OfaError, match=f"{name} {value}.*expected"):
        ControllerSearch(space, np.random.default_rng(0), **wrong)


def test_a_space_of_one_network_is_no_trouble_to_the_strategy():
    space = ChoiceSpace("one", (Dimension("a", (1,)),))
    strategy = ControllerSearch(space, np.random.default_rng(0))
    asked = strategy.ask()
    assert len(asked) == 1
    strategy.tell(asked, np.zeros((1, 1)), np.zeros(1))
    assert not len(strategy.ask())
