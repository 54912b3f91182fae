"""Recurrent cells: mixed against discrete, both against the formula written down step by step."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.genotype import GenotypeError, RecurrentGenotype
from ofa.genotypes import get_genotype
from ofa.language_model import Dropouts, LanguageModel, Noise, haste, prediction_loss
from ofa.mix_activations import OPERATIONS, mix_activations, mix_by_autograd
from ofa.recurrent import DiscreteCell, Masks, MixedCell, num_edges
from ofa.space import InvalidArchError
from ofa.spaces import get_space
from ofa.spaces.darts_rnn import ACTIVATIONS, SPACE

FORMULAS = {
    "tanh": lambda g: 2 / (1 + (-2 * g).exp()) - 1,
    "relu": lambda g: g.clamp(min=0),
    "sigmoid": lambda g: 1 / (1 + (-g).exp()),
    "identity": lambda g: g,
}
CLOSE = 1e-12  # relative, float64: sums in another order


def one_hot(genotype):
    probabilities = torch.zeros(num_edges(len(genotype.recurrent)), len(OPERATIONS), dtype=torch.float64)
    for node, (name, source) in enumerate(genotype.recurrent):
        probabilities[node * (node + 1) // 2 + source, OPERATIONS.index(name)] = 1
    return probabilities


def straightforward(cell, inputs, hidden, edges, concat, masks=None, norm=lambda state: state):
    """The cell step by step: `edges` are (node, source, operation, weight), every operation by itself."""
    states_over_time = []
    hidden_mask = 1 if masks is None else masks.hidden
    for x in inputs:
        x = x if masks is None else x * masks.inputs
        c, h = (torch.cat([x, hidden * hidden_mask], 1) @ cell.input_weight).chunk(2, 1)
        states = [norm(hidden + FORMULAS["sigmoid"](c) * (FORMULAS["tanh"](h) - hidden))]
        for node in range(1, cell.nodes + 1):
            weight = cell.node_weight.view(cell.features, cell.nodes, -1)[:, node - 1]
            total = 0
            for _, source, operation, share in (edge for edge in edges if edge[0] == node):
                c, h = ((states[source] * hidden_mask) @ weight).chunk(2, 1)
                moved = FORMULAS[operation](h) - states[source]
                total = total + share * (states[source] + FORMULAS["sigmoid"](c) * moved)
            states.append(norm(total))
        hidden = sum(states[i] for i in concat) / len(concat)
        states_over_time.append(hidden)
    return torch.stack(states_over_time)


@pytest.fixture
def piece():
    """Inputs (4, 3, 5), a hidden state, and masks."""
    generator = torch.Generator().manual_seed(0)
    inputs, hidden = (torch.randn(*shape, 3, 5, dtype=torch.float64, generator=generator) for shape in ((4,), ()))
    masks = Masks(*(torch.rand(3, 5, dtype=torch.float64, generator=generator) for _ in range(2)))
    return inputs, hidden, masks


def shaken(cell):
    """Larger weights, so that activations differ from each other."""
    torch.manual_seed(1)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return cell.double()


@pytest.mark.parametrize("name", ["darts_rnn_v1", "darts_rnn_v2", "enas_rnn"])
@pytest.mark.parametrize("masked", [False, True])
def test_discrete_cell_is_the_formula(name, masked, piece):
    genotype = get_genotype(name)
    cell = shaken(DiscreteCell(genotype, 5))
    inputs, hidden, masks = piece
    masks = masks if masked else None
    edges = [(node, source, operation, 1) for node, (operation, source) in enumerate(genotype.recurrent, 1)]
    expected = straightforward(cell, inputs, hidden, edges, genotype.concat, masks)
    torch.testing.assert_close(cell(inputs, hidden, masks), expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_mixed_cell_and_its_gradients_are_the_formula(normalise, masked, piece):
    cell = shaken(MixedCell(5, normalise=normalise))
    inputs, hidden, masks = piece
    masks = masks if masked else None
    probabilities = torch.softmax(torch.randn(36, 5, dtype=torch.float64), 1).requires_grad_()
    rows = [(node, source) for node in range(1, 9) for source in range(node)]
    edges = [
        (node, source, name, probabilities[row, column])
        for row, (node, source) in enumerate(rows)
        for column, name in enumerate(OPERATIONS)
        if name != "none"
    ]
    norm = (lambda state: F.batch_norm(state, None, None, training=True)) if normalise else (lambda state: state)
    expected = straightforward(cell, inputs, hidden, edges, range(1, 9), masks, norm)
    found = cell(inputs, hidden, probabilities, masks)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    wanted = [probabilities, cell.input_weight, cell.node_weight]
    gradients = [torch.autograd.grad(states.square().sum(), wanted, retain_graph=True) for states in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["darts_rnn_v1", "darts_rnn_v2"])
def test_mixed_cell_with_one_hot_probabilities_is_the_discrete_cell(name, piece):
    genotype = get_genotype(name)
    mixed = shaken(MixedCell(5, normalise=False))
    discrete = DiscreteCell(genotype, 5).double()
    discrete.load_state_dict(mixed.state_dict())
    inputs, hidden, masks = piece
    expected = discrete(inputs, hidden, masks)
    torch.testing.assert_close(mixed(inputs, hidden, one_hot(genotype), masks), expected, rtol=CLOSE, atol=CLOSE)


def test_mixing_has_the_gradients_of_plain_operations_and_gradients_of_gradients():
    generator = torch.Generator().manual_seed(0)

    def fresh(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = fresh(3, 4, 2, 5), fresh(3, 5), fresh(4, 5)
    torch.testing.assert_close(mix_activations(*inputs), mix_by_autograd(*inputs), rtol=CLOSE, atol=CLOSE)
    assert torch.autograd.gradcheck(mix_activations, inputs)
    assert torch.autograd.gradgradcheck(mix_activations, inputs)


def test_second_derivatives_are_right_where_products_are_made_of_the_state():
    """A gradient that went by way of the products would be counted twice, and a cell's would take exponential time."""
    state = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 40, dtype=torch.float64)
    weighting = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)

    def of(mix):
        value = mix((state @ weight).view(3, 4, 2, 5), state, weighting).square().sum()
        (first,) = torch.autograd.grad(value, [state], create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), [state, weighting])]

    for ours, plain in zip(of(mix_activations), of(mix_by_autograd), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_mixing_keeps_less_for_the_backward_pass_than_plain_operations():
    products, state = torch.randn(4, 3, 2, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    weighting = torch.rand(3, 5, requires_grad=True)

    def kept(mix):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            mix(products, state, weighting)
        return sum(sizes)

    assert kept(mix_activations) == products.numel() + state.numel() + weighting.numel()
    assert kept(mix_by_autograd) > 2 * kept(mix_activations)


def test_probabilities_of_another_cell_are_refused():
    with pytest.raises(ValueError, match=r"\(35, 5\), expected \(36, 5\)"):
        MixedCell(4)(torch.zeros(1, 2, 4), torch.zeros(2, 4), torch.ones(35, 5))


def test_genotype_with_an_unknown_operation_is_refused():
    with pytest.raises(GenotypeError, match=r"gelu.*expected one of: tanh, relu, sigmoid, identity"):
        DiscreteCell(RecurrentGenotype((("gelu", 0),), (1,)), 4)


# -- the language model ------------------------------------------------------------------------------------------------


def language_model(name="darts_rnn_v2", vocabulary=11, features=6):
    torch.manual_seed(0)
    return LanguageModel(vocabulary, DiscreteCell(get_genotype(name), features))


def test_text_in_two_pieces_is_the_text_in_one():
    net, tokens = language_model().double(), torch.randint(11, (7, 3))
    whole = net(tokens, net.no_text(3))
    first = net(tokens[:4], net.no_text(3))
    second = net(tokens[4:], first.hidden)
    torch.testing.assert_close(torch.cat([first.logits, second.logits]), whole.logits, rtol=CLOSE, atol=CLOSE)
    assert torch.equal(whole.hidden, whole.states[-1])


def test_embedding_and_classifier_are_one_tensor():
    net = language_model()
    names = {name for name, _ in net.named_parameters()}
    assert names == {"embedding", "bias", "cell.input_weight", "cell.node_weight"}
    output = net(torch.zeros(1, 1, dtype=torch.long), net.no_text(1))
    torch.testing.assert_close(output.logits[0], output.states[0] @ net.embedding.T + net.bias)


@pytest.mark.parametrize("place", Dropouts.__slots__)
def test_each_dropout_changes_the_output_and_is_the_same_for_the_same_generator(place):
    net, tokens = language_model(), torch.randint(11, (5, 4))
    rates = dict.fromkeys(Dropouts.__slots__, 0.0) | {place: 0.5}

    def logits(seed):
        return net(tokens, net.no_text(4), noise=Noise(Dropouts(**rates), torch.Generator().manual_seed(seed))).logits

    plain = net(tokens, net.no_text(4)).logits
    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    assert not torch.equal(logits(0), plain)
    nothing = Noise(Dropouts(**dict.fromkeys(rates, 0.0)), torch.Generator())
    assert torch.equal(net(tokens, net.no_text(4), noise=nothing).logits, plain)


@pytest.mark.parametrize("rate", [-0.1, 1, "half", True])
def test_impossible_dropout_is_refused(rate):
    with pytest.raises(ValueError, match="dropout of hidden is"):
        Dropouts(hidden=rate)


def test_loss_is_the_mean_over_tokens_and_haste_the_mean_squared_change():
    net, tokens = language_model(), torch.randint(11, (3, 2))
    output, targets = net(tokens, net.no_text(2)), torch.randint(11, (3, 2))
    chosen = torch.log_softmax(output.logits, -1).gather(-1, targets[..., None])
    torch.testing.assert_close(prediction_loss(output, targets), -chosen.mean())
    states = torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]], [[2.0, 4.0]]])
    assert float(haste(states)) == (4 + 0 + 0 + 9) / 4
    assert float(haste(states[:1])) == 0


# -- the space ---------------------------------------------------------------------------------------------------------


def test_space_has_all_cells_and_each_is_a_genotype_and_back():
    assert get_space("darts_rnn") is SPACE
    assert SPACE.size() == 40_320 * 4**8  # 8! choices of inputs
    assert [d.name for d in SPACE.dimensions][:4] == ["node1.input", "node1.op", "node2.input", "node2.op"]
    population = SPACE.sample(np.random.default_rng(0), 50)
    for arch in SPACE.decode(population):
        assert SPACE.from_genotype(SPACE.to_genotype(arch)) == arch
        assert SPACE.from_json(SPACE.to_json(arch)) == arch
        DiscreteCell(SPACE.to_genotype(arch), 2)
    for name in ("darts_rnn_v1", "darts_rnn_v2"):
        assert SPACE.to_genotype(SPACE.from_genotype(get_genotype(name))) == get_genotype(name)


def test_operations_of_space_and_search_agree():
    assert ("none", *ACTIVATIONS) == OPERATIONS
    assert len(list(itertools.product(ACTIVATIONS))) == 4


def test_cells_outside_the_space_are_refused():
    with pytest.raises(InvalidArchError, match="expected 8 nodes"):
        SPACE.from_genotype(get_genotype("enas_rnn"))
    v2 = get_genotype("darts_rnn_v2")
    with pytest.raises(InvalidArchError, match="mean of all"):
        SPACE.from_genotype(RecurrentGenotype(v2.recurrent, (7, 8)))
    with pytest.raises(InvalidArchError, match=r"node1.op = 'none' is not one of"):
        SPACE.from_genotype(RecurrentGenotype((("none", 0), *v2.recurrent[1:]), v2.concat))


def test_blocks_are_refused():
    with pytest.raises(ValueError, match="recurrent cells have no blocks"):
        SPACE.blocks(SPACE.largest)
