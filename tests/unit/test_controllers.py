"""Controllers: log-probabilities by an independent implementation in NumPy, chances that add up, draws that keep to them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.errors import OfaError
from ofa.formats.enas import PUBLISHED, parse_arc
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.joint.controllers import check_tokens
from search.joint.controllers.conv import ConvController
from search.joint.controllers.flat import FlatController, controller_of
from search.joint.controllers.macro import MacroController
from search.joint.controllers.micro import MicroController
from search.joint.controllers.recurrent import RecurrentController
from search.joint.controllers.tree import TreeController

FIXTURES = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
FIRST_OF_LAYERS = [layer * (layer + 1) // 2 for layer in range(24)]
EXACT = 1e-10  # float64; logits of the order of 1 after some hundred additions


def generator(seed):
    return torch.Generator().manual_seed(seed)


MAKERS = {
    "micro": lambda g: MicroController(3, generator=g),
    "micro_release": lambda g: MicroController(3, variant="release", generator=g),
    "macro": lambda g: MacroController(5, generator=g),
    "macro_release": lambda g: MacroController(5, variant="release", generator=g),
    "recurrent": lambda g: RecurrentController(5, generator=g),
    "recurrent_release": lambda g: RecurrentController(5, variant="release", generator=g),
    "conv": lambda g: ConvController(4, generator=g),
    "conv_strides": lambda g: ConvController(3, heights=2, widths=5, strides=3, filters=4, generator=g),
    "tree": lambda g: TreeController(4, generator=g),
    "flat": lambda g: FlatController((3, 1, 5), generator=g),
    "flat_bounded": lambda g: FlatController((3, 1, 5), tanh_constant=2.0, temperature=3.0, lstm_layers=2, size=8, generator=g),
}


def make(name, seed=0, spread=8.0):
    """A controller in float64; its weights larger than initial ones, so that its choices differ in their chances."""
    controller = MAKERS[name](generator(seed)).double()
    with torch.no_grad():
        for key, weights in controller.named_parameters():
            if key != "bias":
                weights.mul_(spread)
    return controller


# -- the same in NumPy, one sequence at a time, from the weights alone ------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class ByHand:
    """Reads one sequence; adds up log-probability and entropy."""

    def __init__(self, controller, tokens):
        self.w = {name: value.detach().numpy() for name, value in controller.state_dict().items()}
        self.tokens = tokens
        self.log_prob = self.entropy = self.sampled_entropy = 0.0
        layers = [self.w[f"lstm.weights.{i}"] for i in range(sum(name.startswith("lstm.") for name in self.w))]
        self.layers, self.size = layers, layers[0].shape[0] // 2
        self.c, self.h = np.zeros((len(layers), self.size)), np.zeros((len(layers), self.size))

    def lstm(self, x):
        for k, weights in enumerate(self.layers):
            gates = np.concatenate([x, self.h[k]]) @ weights
            i, f, o, g = (gates[a * self.size : (a + 1) * self.size] for a in range(4))
            self.c[k] = sigmoid(f) * self.c[k] + sigmoid(i) * np.tanh(g)
            x = self.h[k] = sigmoid(o) * np.tanh(self.c[k])
        return x.copy()

    def take(self, place, logits):
        p = np.exp(logits) / np.exp(logits).sum()
        token = int(self.tokens[place])
        self.log_prob += np.log(p[token])
        self.entropy -= (p * np.log(p)).sum()
        self.sampled_entropy -= p[token] * np.log(p[token])
        return token

    def attend(self, before, h):
        return np.array(
            [self.w["attention.v"] @ np.tanh(b @ self.w["attention.before"] + h @ self.w["attention.now"]) for b in before]
        )


def micro_by_hand(controller, tokens, nodes, release):
    s = ByHand(controller, tokens)
    for cell in range(2):
        x, anchors, seen = s.w["start"], [], []
        for _ in range(2):
            seen.append(s.lstm(x))
            anchors.append(np.zeros(s.size))
        for node in range(nodes):
            first = 4 * (cell * nodes + node)
            for place in (first, first + 2):
                h = s.lstm(x)
                x = anchors[s.take(place, 1.10 * np.tanh(s.attend(seen, h)))]
            for place in (first + 1, first + 3):
                logits = s.lstm(x) @ s.w["operation.head"]
                if release:
                    logits = logits + s.w["bias"]
                logits = 1.10 / 2.5 * np.tanh(logits)
                if release and cell == 0:
                    logits = logits + np.array([0.25, 0.25, -0.25, -0.25, -0.25])
                x = s.w["operation.embedding"][s.take(place, logits)]
            h = s.lstm(x)
            seen.append(h)
            anchors.append(h)
            x = s.w["start"]
    return s, 0.0, 0.0


def macro_by_hand(controller, tokens, layers, release, target=0.4):
    s = ByHand(controller, tokens)
    x, anchors, place, divergences, taken = s.w["start"], [], 0, [], 0
    for layer in range(layers):
        op = s.take(place, 1.5 * np.tanh(s.lstm(x) @ s.w["operation.head"]))
        h = s.lstm(s.w["operation.embedding"][op])
        x, chosen = s.w["start"], []
        if layer:
            divergence = 0.0
            for j, q in enumerate(s.attend(anchors, h)):
                off, on = 1.5 * np.tanh(-q), 1.5 * np.tanh(q)
                if s.take(place + 1 + j, np.array([off, on])):
                    chosen.append(anchors[j])
                p = sigmoid(np.array([off, on])) if release else np.exp([off, on]) / np.exp([off, on]).sum()
                divergence += p[0] * np.log(p[0] / (1 - target)) + p[1] * np.log(p[1] / target)
            divergences.append(divergence)
            x = np.sum([np.zeros(s.size), *chosen], axis=0) / (1 + len(chosen))
            taken += len(chosen)
        anchors.append(h)
        place += 1 + layer
    return s, np.mean(divergences), taken / (layers * (layers - 1) / 2)


def recurrent_by_hand(controller, tokens, nodes):
    s = ByHand(controller, tokens)
    x, anchors = s.w["start"], []
    for node in range(nodes):
        h = s.lstm(x)
        if node:
            logits = 2.5 * np.tanh(s.attend(anchors, h) / 5.0)
            logits = [logit - (node - j) ** 2 / 6 for j, logit in enumerate(logits)]
            source = s.take(2 * node - 1, np.array(logits))
            x = anchors[source] / (0.1 + node - source)
        else:
            x = s.w["start"]
        anchors.append(h)
        function = s.take(2 * node, 2.5 * np.tanh(s.lstm(x) @ s.w["function.head"] / 5.0))
        x = s.w["function.embedding"][function]
    return s, 0.0, 0.0


def conv_by_hand(controller, tokens, layers, kinds=("height", "width", "stride", "filters")):
    s = ByHand(controller, tokens)
    x, anchors, place, taken = s.w["start"], [], 0, 0
    for _ in range(layers):
        for kind in kinds:
            head = s.w[f"{kind}.head"]
            if head.shape[1] > 1:
                x = s.w[f"{kind}.embedding"][s.take(place, s.lstm(x) @ head)]
            place += 1
        h, chosen = s.lstm(x), []
        for j, q in enumerate(s.attend(anchors, h)):
            on = sigmoid(q)
            if s.take(place, np.log([1 - on, on])):
                chosen.append(anchors[j])
            place += 1
        x = np.sum([s.w["start"], *chosen], axis=0) / (1 + len(chosen))
        taken += len(chosen)
        anchors.append(h)
    return s, 0.0, taken / max(1, layers * (layers - 1) / 2)


def flat_by_hand(controller, tokens, tanh_constant=None, temperature=1.0, active=None):
    s = ByHand(controller, tokens)
    x = s.w["start"]
    for place, options in enumerate(controller.options):
        if options > 1:
            logits = (s.lstm(x) @ s.w["heads"][place])[:options] / temperature
            if tanh_constant:
                logits = tanh_constant * np.tanh(logits)
            if active is None or active[place]:
                s.take(place, logits)
            x = s.w["embeddings"][place][int(tokens[place])]
    return s, 0.0, 0.0


BY_HAND = {
    "micro": lambda c, t: micro_by_hand(c, t, 3, False),
    "micro_release": lambda c, t: micro_by_hand(c, t, 3, True),
    "macro": lambda c, t: macro_by_hand(c, t, 5, False),
    "macro_release": lambda c, t: macro_by_hand(c, t, 5, True),
    "recurrent": lambda c, t: recurrent_by_hand(c, t, 5),
    "recurrent_release": lambda c, t: recurrent_by_hand(c, t, 5),
    "conv": lambda c, t: conv_by_hand(c, t, 4),
    "conv_strides": lambda c, t: conv_by_hand(c, t, 3),
    "tree": flat_by_hand,
    "flat": flat_by_hand,
    "flat_bounded": lambda c, t: flat_by_hand(c, t, 2.0, 3.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_log_probabilities_of_sequences_are_those_computed_by_hand(name):
    controller = make(name)
    rng = np.random.default_rng(0)
    tokens = np.array([[rng.integers(options) for options in controller.options] for _ in range(4)])
    scored = controller(tokens=torch.from_numpy(tokens))
    for i, row in enumerate(tokens):
        s, penalty, skips = BY_HAND[name](controller, row)
        entropy = s.sampled_entropy if name in ("macro_release", "recurrent_release") else s.entropy
        expected = [s.log_prob, entropy, penalty, skips]
        found = [scored.log_prob[i], scored.entropy[i], scored.skip_penalty[i], scored.skips[i]]
        np.testing.assert_allclose([value.item() for value in found], expected, rtol=EXACT, atol=EXACT)
    assert (scored.log_prob < 0).all()  # a logarithm of a probability, not a cross-entropy
    assert np.ptp(scored.log_prob.detach().numpy()) > 0.01


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_log_probabilities_are_differences_of_those_computed_by_hand(name):
    controller, step = make(name), 1e-5
    tokens = controller(1, generator=generator(3)).tokens
    controller(tokens=tokens).log_prob.sum().backward()
    for key, weights in controller.named_parameters():
        if weights.grad is None:  # of a choice with a single option
            assert "stride" in key
            continue
        place = int(weights.grad.abs().argmax())
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                weights.view(-1)[place] += sign * step
                sides.append(BY_HAND[name](controller, tokens[0].tolist())[0].log_prob)
                weights.view(-1)[place] -= sign * step
        # a central difference is off by the third derivative times 1e-10, and by rounding: 1e-16 * |log p| / 1e-5
        np.testing.assert_allclose(weights.grad.view(-1)[place].item(), (sides[0] - sides[1]) / 2 / step, rtol=1e-5, atol=1e-8)
        assert weights.grad.abs().max() > 0, key


# -- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_draws_follow_from_the_generator_and_score_the_same(name):
    controller = make(name)
    drawn, again, other = (controller(64, generator=generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(drawn.tokens, again.tokens)
    assert torch.equal(drawn.log_prob, again.log_prob)
    assert not torch.equal(drawn.tokens, other.tokens)
    assert drawn.tokens.shape == (64, controller.length)
    assert drawn.tokens.dtype == torch.int64
    check_tokens(drawn.tokens, controller.options)
    scored = controller(tokens=drawn.tokens)
    for one, two in zip(drawn, scored, strict=True):
        assert one.shape[0] == 64
        torch.testing.assert_close(one, two, rtol=0, atol=EXACT)
    assert drawn.log_prob.requires_grad
    rows = controller(tokens=drawn.tokens[:3])
    torch.testing.assert_close(rows.log_prob, drawn.log_prob[:3], rtol=EXACT, atol=EXACT)  # a batch is so many sequences


SMALL = {
    "micro": lambda g: MicroController(1, 2, generator=g),
    "micro_release": lambda g: MicroController(1, 2, variant="release", generator=g),
    "macro": lambda g: MacroController(3, 3, generator=g),
    "recurrent": lambda g: RecurrentController(3, 3, generator=g),
    "conv": lambda g: ConvController(3, heights=2, widths=1, filters=3, generator=g),
    "tree": lambda g: TreeController(2, 2, 2, generator=g),
    "flat": lambda g: FlatController((2, 3, 2, 1, 4), requires=[None, (0, 1), (1, 2), None, None], generator=g),
}


def every_sequence(controller):
    return torch.tensor(list(itertools.product(*map(range, controller.options))))


def without_effect(controller, tokens):
    """Which rows of a flat controller hold tokens other than 0 where there is nothing to choose."""
    wrong = torch.zeros(len(tokens), dtype=torch.bool)
    if isinstance(controller, FlatController) and controller.length == 5:
        second = tokens[:, 0] >= 1
        third = second & (tokens[:, 1] >= 2)
        wrong = (~second & (tokens[:, 1] > 0)) | (~third & (tokens[:, 2] > 0))
    return wrong


@pytest.mark.parametrize("name", SMALL)
def test_probabilities_of_all_sequences_add_up_and_draws_keep_to_them(name):
    controller = SMALL[name](generator(1)).double()
    with torch.no_grad():
        for key, weights in controller.named_parameters():
            weights.mul_(1 if key == "bias" else 6)
    tokens = every_sequence(controller)
    tokens = tokens[~without_effect(controller, tokens)]
    with torch.no_grad():
        scored = controller(tokens=tokens)
        drawn = controller(20_000, generator=generator(2)).tokens
    p = scored.log_prob.exp()
    np.testing.assert_allclose(p.sum(), 1, rtol=EXACT)
    # the chain rule: entropies of choices, averaged over sequences, are the entropy of sequences
    np.testing.assert_allclose((p * scored.entropy).sum(), -(p * scored.log_prob).sum(), rtol=EXACT)
    keys = torch.tensor(np.ravel_multi_index(tokens.T.numpy(), controller.options))
    counts = torch.bincount(
        torch.tensor(np.ravel_multi_index(drawn.T.numpy(), controller.options)), minlength=int(keys.max()) + 1
    )
    share = counts[keys] / 20_000
    assert counts[keys].sum() == 20_000
    assert (abs(share - p) < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-4).all()  # 5 standard errors, at most 2000 comparisons


@pytest.mark.parametrize("name", MAKERS)
def test_weights_are_drawn_from_the_published_range_by_the_generator(name):
    bound = 0.08 if name in ("conv", "conv_strides", "tree") else 0.1
    one, two, other = (dict(MAKERS[name](generator(seed)).named_parameters()) for seed in (0, 0, 1))
    for key, weights in one.items():
        assert torch.equal(weights, two[key])
        if key != "bias":
            assert not torch.equal(weights, other[key])
            assert weights.abs().max() <= bound
            assert weights.numel() < 100 or weights.abs().max() > 0.95 * bound


@pytest.mark.parametrize(
    ("controller", "size", "layers"),
    [
        (MicroController(), 100, 1),
        (MicroController(variant="release"), 64, 1),
        (MacroController(), 100, 1),
        (MacroController(variant="release"), 64, 1),
        (RecurrentController(), 100, 1),
        (RecurrentController(variant="release"), 64, 1),
        (ConvController(6), 35, 2),
        (TreeController(), 35, 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else str(value),
)
def test_lstm_is_of_the_published_size_and_has_no_biases(controller, size, layers):
    weights = {name: tuple(p.shape) for name, p in controller.named_parameters() if name.startswith("lstm.")}
    assert weights == {f"lstm.weights.{i}": (2 * size, 4 * size) for i in range(layers)}


# -- lengths and orders of tokens -------------------------------------------------------------------------------------


def test_sequences_are_as_long_as_published_arcs():
    assert MicroController().options == 2 * sum(((n, 5, n, 5) for n in range(2, 7)), ())
    assert MacroController(24).length == 300
    assert MacroController(3, 6).options == (6, 6, 2, 6, 2, 2)
    assert RecurrentController().options == (4, *sum(((n, 4) for n in range(1, 12)), ()))
    assert ConvController(3, 4, 4, 3, 5).options == (4, 4, 3, 5, 4, 4, 3, 5, 2, 4, 4, 3, 5, 2, 2)
    assert [ConvController(3).tokens_of(i) for i in range(3)] == [slice(0, 4), slice(4, 9), slice(9, 15)]
    assert TreeController().options == (2, 4) * 16 + (8, 8)


@pytest.mark.parametrize(
    ("name", "controller"),
    [("enas_micro", MicroController(variant="release")), ("enas_macro", MacroController(24, variant="release"))],
)
def test_published_arcs_are_sequences(name, controller):
    tokens = torch.tensor([parse_arc(PUBLISHED[name][1])])
    scored = controller(tokens=tokens)
    uniform = -np.log(controller.options).sum()
    assert 1.1 * uniform < scored.log_prob.item() < 0.9 * uniform  # weights are small at first
    if name == "enas_macro":
        assert scored.skips.item() == pytest.approx((tokens.sum().item() - tokens[0, FIRST_OF_LAYERS].sum().item()) / 276)
    with pytest.raises(OfaError, match=f"expected integers \\(n, {controller.length}\\)"):
        controller(tokens=tokens[:, :-1])


@pytest.mark.skipif(not FIXTURES.exists(), reason="../shared/parity is not there")
def test_published_arc_of_a_recurrent_cell_is_a_sequence():
    arc = json.loads(FIXTURES.read_text())["enas"]["ENAS_PTB_RELEASE"]["fixed_arc"]
    scored = RecurrentController(variant="release")(tokens=torch.tensor([list(map(int, arc.split()))]))
    assert -60 < scored.log_prob.item() < -10


def test_release_favours_convolutions_by_the_published_biases():
    controller = MicroController(variant="release")
    with torch.no_grad():
        for name, weights in controller.named_parameters():
            if name != "bias":
                weights.zero_()
        drawn = controller(20_000, generator=generator(0)).tokens
    share = (drawn[:, 1::2] < 2).double().mean(0)
    bounded = 1.10 / 2.5
    for cell, (convolution, other) in enumerate([(bounded + 0.25, -0.25), (bounded, 0.0)]):
        expected = 2 * np.exp(convolution) / (2 * np.exp(convolution) + 3 * np.exp(other))
        np.testing.assert_allclose(share[10 * cell : 10 * (cell + 1)], expected, atol=5 * 0.5 / 20_000**0.5)
    controller(tokens=drawn[:32]).log_prob.sum().backward()
    assert controller.bias.grad[:2].abs().max() < 1e-4 * controller.bias.grad[2:].abs().max()  # tanh is flat at 10


def test_macro_skip_bit_zero_reads_the_first_state():
    """The state that bit j of layer l chooses is that of layer j, which stands for the input of layer j: bit 0 is the stem."""
    controller = make("macro")
    tokens = torch.zeros(2, controller.length, dtype=torch.int64)
    tokens[1, 2] = 1  # layer 1, bit 0
    changed = controller(tokens=tokens).log_prob
    s, _, skips = macro_by_hand(controller, tokens[1].numpy(), 5, False)
    assert changed[1].item() == pytest.approx(s.log_prob, rel=EXACT)
    assert skips == pytest.approx(0.1)


# -- growing networks, spaces with requirements -----------------------------------------------------------------------


def test_first_layers_of_a_growing_network_are_drawn_alone():
    controller = make("conv")
    drawn = controller(32, generator=generator(0), layers=2)
    end = controller.tokens_of(1).stop
    assert (drawn.tokens[:, end:] == 0).all()
    assert (drawn.tokens[:, :end] > 0).any()
    shallow = ConvController(2).double()
    shallow.load_state_dict(controller.state_dict())  # all layers share weights
    torch.testing.assert_close(shallow(tokens=drawn.tokens[:, :end]).log_prob, drawn.log_prob, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(controller(tokens=drawn.tokens, layers=2).log_prob, drawn.log_prob, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(drawn.skips, drawn.tokens[:, end - 1].double(), rtol=0, atol=0)
    for layers in (0, 5):
        with pytest.raises(OfaError, match=f"layers to write: {layers}, expected 1 to 4"):
            controller(layers=layers)
    full = drawn.tokens.clone()
    full[3, -1] = 1
    with pytest.raises(OfaError, match="after the first 2 are not 0"):
        controller(tokens=full, layers=2)


def test_choices_without_effect_are_zero_and_certain():
    space = ChoiceSpace(
        "nested",
        (
            Dimension("a.width", (8, 16, 32)),
            Dimension("b.depth", (1, 2, 3, 4)),
            Dimension("b.width", (8, 16, 32), requires=("b.depth", 1)),
            Dimension("b.kernel_size", (3, 5), requires=("b.width", 1)),
            Dimension("resolution", (32,)),
        ),
    )
    controller = controller_of(space, generator=generator(0)).double()
    drawn = controller(500, generator=generator(1))
    population = drawn.tokens.numpy().astype(np.int16)
    np.testing.assert_array_equal(population, space.canonical(population))
    everything = space.everything()
    with torch.no_grad():
        scored = controller(tokens=torch.from_numpy(everything.astype(np.int64)))
    np.testing.assert_allclose(scored.log_prob.exp().sum(), 1, rtol=EXACT)
    active = space.active(everything)
    for i in range(0, len(everything), 7):
        s, _, _ = flat_by_hand(controller, everything[i], active=active[i])
        np.testing.assert_allclose(scored.log_prob[i], s.log_prob, rtol=EXACT)
        np.testing.assert_allclose(scored.entropy[i], s.entropy, rtol=EXACT)


def test_a_controller_of_a_large_space_writes_its_canonical_rows():
    space = get_space("mbv3_tiny_image")
    controller = controller_of(space)
    assert controller.options == tuple(space.num_options)
    population = controller(50, generator=generator(0)).tokens.numpy().astype(np.int16)
    np.testing.assert_array_equal(population, space.canonical(population))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["micro", "conv", "flat"])
def test_tokens_that_are_no_sequences_are_named(name):
    controller = make(name)
    tokens = controller(2, generator=generator(0)).tokens
    options = controller.options[2]
    for value in (-1, options):
        wrong = tokens.clone()
        wrong[1, 2] = value
        with pytest.raises(OfaError, match=f"token 2 of sequence 1 is {value}, expected 0 to {options - 1}"):
            controller(tokens=wrong)
    for shape in (tokens[0], tokens.double(), tokens[:, 1:]):
        with pytest.raises(OfaError, match="expected integers"):
            controller(tokens=shape)
    with pytest.raises(OfaError, match="sequences to draw: 0"):
        controller(0)


def test_settings_out_of_range_are_named():
    for target in (0.0, 1.0):
        with pytest.raises(OfaError, match=f"skip_target is {target}"):
            MacroController(skip_target=target)
    for leaves in (0, 1, 6):
        with pytest.raises(OfaError, match=f"tree of {leaves} leaves"):
            TreeController(leaves)
