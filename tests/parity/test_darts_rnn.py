"""Recurrent cells against the original code in float64: log-probabilities, losses, gradients of alphas, Adam's step, parameters.

References were computed with quark0/darts on weights that a rule fills by key; they lie in ../shared/parity.
"""

import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.genotypes import get_genotype
from ofa.language_model import LanguageModel, prediction_loss
from ofa.mix_activations import OPERATIONS
from ofa.recurrent import DiscreteCell, MixedCell, num_edges
from search.joint.architect import first_order, second_order, second_order_exact
from search.joint.derive import derive_recurrent

SHARED = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
EXACT = 1e-8  # relative, float64: sums in another order
DIFFERENCE = 1e-6  # relative: a finite difference divides rounding errors by its step

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="../shared/parity is not here")


@lru_cache
def facts():
    return json.loads(SHARED.read_text())


def drawn(key):
    return np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)


def filled(key, *shape):
    """A weight matrix or bias as the rule of the fixtures fills it."""
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return torch.from_numpy(drawn(key).randn(*shape) * scale)


def original_weights(case, net):
    """Weights under the original's keys; ours have one matrix for all nodes."""
    features, vocabulary = case["hidden"], case["vocab"]
    # encoder and decoder are one tensor there too
    state = {"embedding": filled("encoder.weight", vocabulary, features), "bias": filled("decoder.bias", vocabulary)}
    state["cell.input_weight"] = filled("rnns.0._W0", 2 * features, 2 * features)
    nodes = [filled(f"rnns.0._Ws.{node}", features, 2 * features) for node in range(8)]
    state["cell.node_weight"] = torch.cat(nodes, dim=1)
    if isinstance(net.cell, MixedCell):
        state["cell.norm.running_mean"] = torch.from_numpy(0.1 * drawn("rnns.0.bn.running_mean").randn(features))
        state["cell.norm.running_var"] = torch.from_numpy(0.5 + drawn("rnns.0.bn.running_var").rand(features))
        state["cell.norm.num_batches_tracked"] = torch.tensor(0)
    net.load_state_dict(state)
    return net.double()


def tokens(case, key):
    return torch.from_numpy(drawn(key).randint(0, case["vocab"], size=(case["T"], case["B"])))


def alphas_of(case):
    return torch.from_numpy(case["alpha_scale"] * drawn(f"alphas_rnn:{case['tag']}").randn(36, 5)).requires_grad_()


def search_network(case):
    return original_weights(case, LanguageModel(case["vocab"], MixedCell(case["hidden"])).double()).train()


def relative(found, expected):
    found, expected = found.detach(), torch.as_tensor(expected, dtype=torch.float64).reshape(found.shape)
    return float((found - expected).abs().max() / expected.abs().max())


def losses(case, net, alphas):
    hidden = net.no_text(case["B"])

    def loss(split):
        output = net(tokens(case, f"x{split}"), hidden, torch.softmax(alphas, dim=-1))
        return prediction_loss(output, tokens(case, f"y{split}"))

    return lambda: loss("t"), lambda: loss("v")


CASES = range(len(facts()["rnn"])) if SHARED.exists() else [0]


@pytest.mark.parametrize("index", CASES)
def test_search_network_predicts_as_the_original(index):
    case = facts()["rnn"][index]
    net, alphas = search_network(case), alphas_of(case)
    output = net(tokens(case, "xt"), net.no_text(case["B"]), torch.softmax(alphas, dim=-1))
    assert relative(torch.log_softmax(output.logits[0, 0], -1), case["log_prob_train_first_step_first_seq"]) < EXACT
    assert relative(output.hidden, case["hidden_train"]) < EXACT
    loss = prediction_loss(output, tokens(case, "yt"))
    assert float(loss.detach()) == pytest.approx(case["loss_train"], rel=EXACT)
    (gradient,) = torch.autograd.grad(loss, [alphas])
    assert relative(gradient, case["first_order_grad_on_train"]) < EXACT


@pytest.mark.parametrize("index", CASES)
def test_search_network_in_eval_mode_predicts_as_the_original(index):
    case = facts()["rnn"][index]
    net, alphas = search_network(case).eval(), alphas_of(case)
    output = net(tokens(case, "xt"), net.no_text(case["B"]), torch.softmax(alphas, dim=-1))
    assert relative(torch.log_softmax(output.logits[0, 0], -1), case["log_prob_eval_first_step_first_seq"]) < EXACT


@pytest.mark.parametrize("index", CASES)
def test_derived_cell_is_the_original(index):
    case = facts()["rnn"][index]
    found = derive_recurrent(torch.softmax(alphas_of(case), dim=-1))
    assert [list(edge) for edge in found.recurrent] == case["genotype"]["recurrent"]
    assert list(found.concat) == case["genotype"]["concat"]


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("eta", [20, 1])
@pytest.mark.parametrize("order", ["first", "second"])
def test_alpha_gradients_are_the_original(index, eta, order):
    case = facts()["rnn"][index]
    net, alphas = search_network(case), alphas_of(case)
    train, valid = losses(case, net, alphas)
    if order == "first":
        gradients = first_order(valid, [alphas])
    else:  # the original loses the step of the tied embedding
        gradients = second_order(
            train, valid, list(net.parameters()), [alphas], eta=eta, weight_decay=5e-7, clip=0.25, unmoved=[net.embedding]
        )
    expected = case[f"{order}_eta{eta}"]
    assert relative(gradients.gradients[0], expected["grad"]) < (EXACT if order == "first" else DIFFERENCE)
    optimizer = torch.optim.Adam([alphas], lr=3e-3, weight_decay=1e-3)
    alphas.grad = gradients.gradients[0]
    optimizer.step()
    # Adam's first step has the length of the rate whatever the gradient: errors count where a gradient is near its epsilon
    assert relative(alphas.detach(), expected["alpha_after_adam"]) < 1e-6


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("eta", [20, 1])
def test_moved_embedding_is_what_the_original_loses(index, eta):
    case = facts()["rnn"][index]
    net, alphas = search_network(case), alphas_of(case)
    settings = {"eta": eta, "weight_decay": 5e-7, "clip": 0.25}
    right = second_order(*losses(case, net, alphas), list(net.parameters()), [alphas], **settings)
    assert relative(right.gradients[0], case[f"second_eta{eta}"]["grad"]) > 0.01
    assert relative(right.gradients[0], by_second_network(case, net, alphas, eta)) < DIFFERENCE


def by_second_network(case, net, alphas, eta):
    """Gradients of alphas through a step of all weights, written down once more: with copies of the network."""

    def gradients(weights, split, wanted):
        moved = search_network(case)
        with torch.no_grad():
            for parameter, weight in zip(moved.parameters(), weights, strict=True):
                parameter.copy_(weight)
        loss = losses(case, moved, alphas)[split]()
        return torch.autograd.grad(loss, wanted(moved))

    def clipped(vector):
        return [v * min(1.0, 0.25 / (float(torch.cat([v.flatten() for v in vector]).norm()) + 1e-6)) for v in vector]

    weights = [parameter.detach() for parameter in net.parameters()]
    step = gradients(weights, 0, lambda moved: list(moved.parameters()))
    after = [w - eta * (s + 5e-7 * w) for w, s in zip(weights, clipped(step), strict=True)]
    (direct,) = gradients(after, 1, lambda moved: [alphas])
    vector = clipped(gradients(after, 1, lambda moved: list(moved.parameters())))
    radius = 0.01 / float(torch.cat([v.flatten() for v in vector]).norm())
    (plus,) = gradients([w + radius * v for w, v in zip(weights, vector, strict=True)], 0, lambda moved: [alphas])
    (minus,) = gradients([w - radius * v for w, v in zip(weights, vector, strict=True)], 0, lambda moved: [alphas])
    return direct - eta * case[f"clip_coef_eta{eta}"] * (plus - minus) / (2 * radius)


@pytest.mark.parametrize("index", CASES)
def test_exact_product_is_the_limit_of_the_difference(index, monkeypatch):
    case = facts()["rnn"][index]
    net, alphas = search_network(case), alphas_of(case)
    settings = {"eta": 1, "weight_decay": 5e-7, "clip": 0.25}
    exact = second_order_exact(*losses(case, net, alphas), list(net.parameters()), [alphas], **settings)
    monkeypatch.setattr("search.joint.architect.PERTURBATION", 1e-6)  # too short to cross a kink of ReLU
    close = second_order(*losses(case, net, alphas), list(net.parameters()), [alphas], **settings)
    assert relative(exact.gradients[0], close.gradients[0]) < 1e-5


SIZES = [("PTB_850", 10_000, 850), ("WT2_700", 33_278, 700)]


@pytest.mark.parametrize(("setting", "vocabulary", "features"), SIZES)
@pytest.mark.parametrize("cell", ["DARTS_V1", "DARTS_V2", "ENAS"])
def test_evaluation_networks_have_the_published_number_of_parameters(setting, vocabulary, features, cell):
    genotype = get_genotype({"DARTS_V1": "darts_rnn_v1", "DARTS_V2": "darts_rnn_v2", "ENAS": "enas_rnn"}[cell])
    published = facts()["rnn_genotypes"][cell]
    assert [list(edge) for edge in genotype.recurrent] == published["recurrent"]
    assert list(genotype.concat) == published["concat"]
    with torch.device("meta"):
        net = LanguageModel(vocabulary, DiscreteCell(genotype, features))
    assert sum(p.numel() for p in net.parameters()) == facts()["rnn_counts"][f"{setting}_{cell}"]


def test_search_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = LanguageModel(10_000, MixedCell(300))
    assert sum(p.numel() for p in net.parameters()) == facts()["rnn_counts"]["PTB_search_300"]
    assert [num_edges(), len(OPERATIONS)] == facts()["rnn_counts"]["alphas_shape"]
