"""NAS-Bench-201: cells as text, and the differentiable network against a plain one that runs every operation by itself."""

import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ofa.errors import OfaError
from ofa.formats.nasbench201 import EDGES, OPERATIONS, format_nasbench201, parse_nasbench201
from ofa.genotype import GenotypeError
from ofa.mixed_nasbench201 import LEAVING, MixedNasBench201
from ofa.spaces import get_space
from ofa.supernet import Supernet

BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
RENAMED = {"stem": "stem.{}", "reduce1": "layers.2.{}", "reduce2": "layers.5.{}"}  # blocks of the space with two cells a stage
MODULES = {
    "conv.weight": "0.weight",
    "bn.weight": "1.weight",
    "bn.bias": "1.bias",
    **{f"conv1.{name}.{kind}": f"body.{i}.{kind}" for i, name in ((1, "conv"), (2, "bn")) for kind in ("weight", "bias")},
    **{f"conv2.{name}.{kind}": f"body.{i}.{kind}" for i, name in ((4, "conv"), (5, "bn")) for kind in ("weight", "bias")},
    "shortcut.conv.weight": "shortcut.1.weight",
    "linear.weight": "classifier.weight",
    "linear.bias": "classifier.bias",
}
PLAIN = Path(__file__).parents[2] / "benchmarks" / "nasbench201_straightforward.py"


def straightforward(net, cells, channels):
    """The plain network with the weights of `net`."""
    spec = importlib.util.spec_from_file_location("nasbench201_straightforward", PLAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = module.StraightforwardNetwork(net.classifier.out_features, cells_per_stage=cells, channels=channels).to(
        next(net.parameters())
    )
    shared = {key: value for key, value in net.state_dict().items() if ".pointwise." not in key and ".full." not in key}
    missing, unexpected = plain.load_state_dict(shared, strict=False)
    assert not unexpected
    assert all(".edges." in key or "running" in key or "num_batches" in key for key in missing)
    for ours, theirs in zip(net.layers, plain.layers, strict=True):
        for source, leaving in enumerate(LEAVING if hasattr(ours, "full") else ()):
            for column, stacked in ((2, ours.pointwise[source]), (3, ours.full[source])):
                for edge, weight in zip(leaving, stacked.data.chunk(len(leaving)), strict=True):
                    theirs.edges[edge][column][1].weight.data.copy_(weight)
    return plain


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    net = MixedNasBench201(7, cells_per_stage=2, channels=4).double()
    with torch.no_grad():  # learned BatchNorm starts as the identity, which would hide mistakes
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net, straightforward(net, 2, 4), torch.randn(5, 3, 16, 16, dtype=torch.float64)


def one_hot(operations):
    return torch.eye(len(OPERATIONS), dtype=torch.float64)[[OPERATIONS.index(name) for name in operations]]


def random_cells(n):
    indices = torch.randint(0, len(OPERATIONS), (n, len(EDGES)), generator=torch.Generator().manual_seed(0))
    return [tuple(OPERATIONS[i] for i in row) for row in indices.tolist()]


def test_mixed_network_equals_plain_one_with_gradients(pair):
    net, plain, images = pair
    labels = torch.arange(5)
    found = []
    for network in (net, plain):
        alphas = (torch.arange(30.0, dtype=torch.float64).view(6, 5) % 7 / 3).requires_grad_()
        logits = network(images, alphas.softmax(1))
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, labels), [alphas, network.stem[0].weight, network.classifier.weight]
        )
        found.append((logits, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)  # float64, sums in another order


@pytest.mark.parametrize("operations", [parse_nasbench201(BEST), ("skip_connect",) * 6, ("none",) * 6, *random_cells(4)])
def test_one_hot_probabilities_are_the_discrete_network(pair, operations):
    """The discrete network runs only the chosen operations, here those of the plain one."""
    net, plain, images = pair
    torch.testing.assert_close(net(images, one_hot(operations)), discrete(plain, images, operations), rtol=1e-9, atol=1e-11)


def discrete(plain, images, operations):
    x = plain.stem(images)
    for layer in plain.layers:
        if not hasattr(layer, "edges"):
            x = layer(x)
            continue
        chosen = [edge[OPERATIONS.index(name)] for edge, name in zip(layer.edges, operations, strict=True)]
        node1 = chosen[0](x)
        node2 = chosen[1](x) + chosen[2](node1)
        x = chosen[3](x) + chosen[4](node1) + chosen[5](node2)
    return plain.classifier(torch.relu(plain.norm(x)).mean((2, 3)))


@pytest.mark.parametrize("operations", [parse_nasbench201(BEST), ("none",) * 6, *random_cells(4)])
def test_one_hot_probabilities_are_the_network_that_the_space_builds(pair, operations):
    net, _, images = pair
    space = get_space("nasbench201:cells=2,channels=4,resolution=16", num_classes=7)
    choices = {f"node{to}.from{source}": name for (to, source), name in zip(EDGES, operations, strict=True)}
    built = Supernet(space).extract(space.from_values({"resolution": 16, **choices})).double().train()
    state = dict(net.named_parameters())
    for key, parameter in built.named_parameters():
        block, _, layer = key.partition(".")
        if found := re.fullmatch(r"stage(\d)_cell(\d)_node(\d)_from(\d)", block):
            stage, cell, to, source = map(int, found.groups())
            prefix, edge = f"layers.{3 * (stage - 1) + cell}", LEAVING[source].index(EDGES.index((to, source)))
            if layer == "conv.weight":
                kind = "full" if parameter.shape[2] == 3 else "pointwise"
                value = state[f"{prefix}.{kind}.{source}"].chunk(len(LEAVING[source]))[edge]
            else:  # the search network has no learned BatchNorm on edges
                value = torch.full_like(parameter, float(layer == "bn.weight"))
        else:
            value = state[key.replace(".bn.", ".") if block == "norm" else RENAMED.get(block, "{}").format(MODULES[layer])]
        parameter.data.copy_(value)
    torch.testing.assert_close(net(images, one_hot(operations)), built(images), rtol=1e-9, atol=1e-11)


def test_exact_second_derivative_agrees_with_a_finite_difference(pair):
    net, _, images = pair
    labels = torch.arange(5)
    alphas = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(at):
        loss = F.cross_entropy(net(images, at.softmax(1)), labels)
        return torch.autograd.grad(loss, at, create_graph=True)[0]

    product = torch.autograd.grad((gradient(alphas) * direction).sum(), alphas)[0]
    step = 1e-6  # crosses no kink of a ReLU; errors of the order of its square and of 1e-16 / 1e-6
    plus, minus = ((alphas.detach() + sign * step * direction).requires_grad_() for sign in (1, -1))
    torch.testing.assert_close(product, (gradient(plus) - gradient(minus)) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("cells", "channels"), [(1, 8), (5, 16)])
def test_number_of_weights_by_hand(cells, channels):
    c = channels
    stem = 3 * c * 9 + 2 * c
    cell = 6 * (c * c + 9 * c * c)  # six edges with a 1x1 and a 3x3 convolution; their BatchNorm has no weights
    reductions = sum(9 * a * 2 * a + 4 * a + 9 * 4 * a * a + 4 * a + a * 2 * a for a in (c, 2 * c))
    head = 8 * c + 10 * 4 * c + 10
    expected = stem + cells * cell * (1 + 4 + 16) + reductions + head
    found = sum(p.numel() for p in MixedNasBench201(10, cells_per_stage=cells, channels=channels).parameters())
    assert found == expected


def test_skip_drop_is_for_training_and_for_skips(pair):
    net, _, images = pair
    skips = one_hot(("skip_connect",) * 6)
    net.eval()
    assert torch.equal(net(images, skips, skip_drop=0.5, generator=torch.Generator().manual_seed(0)), net(images, skips))
    net.train()
    dropped = [net(images, skips, skip_drop=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    convolutions = one_hot(("nor_conv_3x3",) * 6)
    without = net(images, convolutions, skip_drop=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(without, net(images, convolutions))


def test_dropped_skips_are_scaled_up():
    torch.manual_seed(0)
    cell = MixedNasBench201(2, cells_per_stage=1, channels=2).layers[0]
    x = torch.randn(4000, 2, 1, 1).contiguous(memory_format=torch.channels_last)
    edges = one_hot(("none", "none", "none", "skip_connect", "none", "none")).float()
    weights = [(torch.zeros(2 * len(leaving)),) * 2 for leaving in LEAVING]
    kept = torch.ones(6, 4000)
    kept[3] = (torch.rand(4000) >= 0.25) / 0.75
    assert torch.equal(cell(x, edges, weights, kept), x * kept[3].view(-1, 1, 1, 1))


def test_wrong_sizes_are_refused():
    with pytest.raises(OfaError, match=r"channels = 0"):
        MixedNasBench201(10, channels=0)
    with pytest.raises(OfaError, match=r"\(6, 4\), expected \(6, 5\)"):
        MixedNasBench201(10, cells_per_stage=1, channels=2)(torch.zeros(2, 3, 8, 8), torch.zeros(6, 4))


def test_text_round_trip_of_all_operations():
    for operations in itertools.islice(itertools.product(OPERATIONS, repeat=6), 0, None, 97):
        assert parse_nasbench201(format_nasbench201(operations)) == operations
    assert format_nasbench201(parse_nasbench201(f" {BEST}\n")) == BEST
    assert len(format_nasbench201(("nor_conv_3x3",) * 6)) <= 115


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node 1 is ''"),
        ("__import__('os')", "node 1 is"),
        (BEST.replace("skip_connect", "max_pool_3x3"), "operation 'max_pool_3x3', expected one of: none"),
        (BEST.replace("~1|+", "~0|+"), "node 2 reads 0, expected the six edges"),
        (BEST.rpartition("+")[0], "3 edges, expected the six edges"),
        (BEST + "+|none~0|", "7 edges"),
        (BEST + "|", "node 3 is"),
        (BEST[1:], "node 1 is"),
        (BEST * 20, "characters, expected at most 1000"),
    ],
)
def test_wrong_text_is_refused_with_a_reason(text, message):
    with pytest.raises(GenotypeError, match=message):
        parse_nasbench201(text)


def test_wrong_operations_are_not_written():
    with pytest.raises(GenotypeError, match="of 5 operations"):
        format_nasbench201(("none",) * 5)
    with pytest.raises(GenotypeError, match="operation 'sep_conv_3x3'"):
        format_nasbench201(("sep_conv_3x3",) * 6)
