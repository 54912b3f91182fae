"""The search network of DARTS: against a plain one with the same weights, one-hot cells, skipped work, dropped skips."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ofa.errors import OfaError
from ofa.formats.darts_search import load_original, original_keys
from ofa.formats.published import FormatError
from ofa.mixed import PRIMITIVES, MixedNetwork
from ofa.mixed_blocks import Norm, from_phases, to_phases
from ofa.mixed_functions import depthwise, weighted_sum

ROOT = Path(__file__).parents[2]
SAME = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums in another order


def load_plain():
    spec = importlib.util.spec_from_file_location("darts_plain", ROOT / "benchmarks" / "darts_plain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain():
    return load_plain()


@pytest.fixture
def pair(plain):
    """A network and a plain one with the same weights and random statistics, and images."""
    torch.manual_seed(0)
    theirs = plain.PlainNetwork(7, cells=3, channels=4).double()
    for name, buffer in theirs.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else 0))
    ours = MixedNetwork(7, cells=3, channels=4).double()
    load_original(ours, theirs.state_dict())
    return ours, theirs, torch.randn(3, 3, 16, 16, dtype=torch.float64)


def drawn(seed, edges=14):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(edges, 8, dtype=torch.float64, generator=rng).softmax(1).requires_grad_() for _ in range(2)]


def one_hot(seed):
    rng = torch.Generator().manual_seed(seed)
    return [F.one_hot(torch.randint(0, 8, (14,), generator=rng), 8).double() for _ in range(2)]


def channels_last(*shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()


@pytest.mark.parametrize("train", [True, False])
def test_outputs_gradients_and_statistics_equal_those_of_a_plain_network(pair, train):
    ours, theirs, images = pair
    results = []
    for net in (ours.train(train), theirs.train(train)):
        p = drawn(1)
        logits = net(images, *p)
        logits.square().sum().backward()
        results.append((logits, p[0].grad[:, 1:], p[1].grad[:, 1:]))  # none: 0 or no gradient at all
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **SAME)
    weights, state = dict(theirs.named_parameters()), theirs.state_dict()
    for key, value in ours.named_parameters():
        grads = [weights[part].grad for part in original_keys(ours)[key]]
        torch.testing.assert_close(value.grad, torch.cat(grads), **SAME)
    for key, value in ours.named_buffers():
        if key in original_keys(ours):
            torch.testing.assert_close(value, torch.cat([state[part] for part in original_keys(ours)[key]]), **SAME)


@pytest.mark.parametrize("train", [True, False])
def test_pools_without_norm_are_plain_terms_of_the_sum(plain, train):
    torch.manual_seed(0)
    theirs = plain.PlainNetwork(7, cells=3, channels=4).double()
    for edge in (edge for cell in theirs.cells for edge in cell._ops):
        for kind in ("max_pool_3x3", "avg_pool_3x3"):
            edge._ops[PRIMITIVES.index(kind)][1] = torch.nn.Identity()
    for name, buffer in theirs.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else 0))
    ours = MixedNetwork(7, cells=3, channels=4, pool_norm=False).double()
    load_original(ours, theirs.state_dict())
    images, results = torch.randn(3, 3, 16, 16, dtype=torch.float64), []
    for net in (ours.train(train), theirs.train(train)):
        p = drawn(1)
        logits = net(images, *p)
        logits.square().sum().backward()
        results.append((logits, p[0].grad[:, 1:], p[1].grad[:, 1:], net.stem[0].weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **SAME)
    with pytest.raises(FormatError, match=r"has cells\.0\._ops\.0\._ops\.1\.1\.running_mean"):
        load_original(ours, plain.PlainNetwork(7, cells=3, channels=4).state_dict())


def test_gradients_in_single_precision_are_those_of_double(plain):
    """Kernels of single precision are others than those of double; 16 channels take their vectorised form."""
    torch.manual_seed(0)
    theirs, ours = plain.PlainNetwork(10, cells=3).double(), MixedNetwork(10, cells=3)
    load_original(ours, theirs.state_dict())
    images, p = torch.randn(4, 3, 16, 16), [q.detach() for q in drawn(4)]
    F.cross_entropy(ours(images, *(q.float() for q in p)), torch.arange(4)).backward()
    F.cross_entropy(theirs(images.double(), *p), torch.arange(4)).backward()
    weights = dict(theirs.named_parameters())
    for key, value in ours.named_parameters():
        expected = torch.cat([weights[part].grad for part in original_keys(ours)[key]])
        error = torch.linalg.vector_norm(value.grad - expected) / torch.linalg.vector_norm(expected)
        assert error < 2e-3, key  # single precision's 1e-7 through 20 layers of BatchNorm; a few kinks of ReLU and pools flip


@pytest.mark.parametrize(("nodes", "size"), [(1, 8), (2, 12), (3, 4)])  # 12: 3 px in the last cells, which have no phases
def test_other_numbers_of_nodes_and_odd_sides_equal_the_plain_network(plain, nodes, size):
    torch.manual_seed(nodes)
    theirs = plain.PlainNetwork(3, cells=4, channels=2, nodes=nodes).double()
    ours = MixedNetwork(3, cells=4, channels=2, nodes=nodes).double()
    load_original(ours, theirs.state_dict())
    images, p = torch.randn(2, 3, size, size, dtype=torch.float64), drawn(2, len(ours.edges))
    torch.testing.assert_close(ours(images, *p), theirs(images, *p), **SAME)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("train", [True, False])
def test_one_hot_probabilities_run_the_discrete_network_alone(pair, train, seed):
    ours, theirs, images = pair
    p = one_hot(seed)
    expected = theirs.train(train)(images, *p)
    with FlopCounterMode(display=False) as counter:
        logits = ours.train(train)(images, *p)
    torch.testing.assert_close(logits, expected, **SAME)
    assert counter.get_total_flops() < 0.4 * 2 * len(images) * 1.5e7 / 4  # of 15.5M multiply-adds for 32 px


def test_one_hot_gradients_and_statistics_are_of_the_chosen_operations_alone(pair):
    ours, theirs, images = pair
    p = one_hot(5)
    before = {key: value.clone() for key, value in ours.named_buffers()}
    for net in (ours, theirs):
        net(images, *p).square().sum().backward()
    weights = dict(theirs.named_parameters())
    for key, value in ours.named_parameters():
        grads = torch.cat([weights[part].grad for part in original_keys(ours)[key]])  # zeros where the probability is 0
        torch.testing.assert_close(torch.zeros_like(value) if value.grad is None else value.grad, grads, **SAME)
    edge = int(p[0][:, PRIMITIVES.index("sep_conv_3x3")].nonzero()[0])
    node, source = ours.edges[edge]
    name, row = f"cells.0.sources.{source}.sep_second.0.norm.mean", node - max(0, source - 1)
    buffer, old = dict(ours.named_buffers())[name].view(-1, 4), before[name].view(-1, 4)
    changed = (buffer != old).any(1)
    targets = [ours.edges.index((n, source)) for n in range(max(0, source - 1), 4)]
    assert changed[row]
    assert changed.tolist() == [bool(p[0][e, PRIMITIVES.index("sep_conv_3x3")]) for e in targets]


def test_no_operation_at_all_gives_the_classifiers_bias(pair):
    ours, _, images = pair
    nothing = torch.zeros(14, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(images, nothing, nothing), ours.classifier.bias.expand(3, -1))


def test_sizes_are_the_published_ones(plain):
    """1,930,618 weights, 300,255,744 multiply-adds; the fast network pads no work to them but in gradients."""
    ours, theirs = MixedNetwork(10), plain.PlainNetwork(10)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 1_930_618
    p = [torch.full((14, 8), 1 / 8)] * 2
    for net in (ours.eval(), theirs.eval()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.randn(1, 3, 32, 32), *p)
        assert counter.get_total_flops() == 2 * 300_255_744


def test_dropped_skips_are_scaled_in_turn_and_reproducible(pair):
    ours, _, images = pair
    p = one_hot(0)
    for rows in p:
        rows.zero_()[:, PRIMITIVES.index("skip_connect")] = 1
    many = images[:1].expand(400, -1, -1, -1)
    cell = ours.cells[0]
    state = torch.randn(1, 12, 8, 8, dtype=torch.float64).expand(400, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    kept = cell(state, state, p[0])
    rng = torch.Generator().manual_seed(0)
    keep = (torch.rand(14, 400, generator=rng) >= 0.25).double() / 0.75
    dropped = cell(state, state, p[0], keep)
    assert torch.equal(dropped[:, :4] == 0, ((keep[0] == 0) & (keep[1] == 0)).view(-1, 1, 1, 1).expand_as(dropped[:, :4]))
    torch.testing.assert_close(dropped[:, :4].mean(0), kept[0, :4], rtol=0.2, atol=0.1)  # 400 draws
    runs = [ours(many[:8], *p, skip_drop=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    ours.eval()
    assert torch.equal(ours(images, *p, skip_drop=0.5), ours(images, *p))


@pytest.mark.parametrize(("edges", "stride", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 1, 5), (2, 1, 5), (2, 2, 3), (2, 2, 5)])
def test_depthwise_has_the_gradients_of_both_orders(edges, stride, kernel):
    inputs = channels_last(2, 2, 4, 6), channels_last(2 * edges, 1, kernel, kernel)

    def run(x, weight):
        return depthwise(x, weight, edges, stride=stride)

    wide = torch.cat([inputs[0]] * edges, 1)
    expected = F.conv2d(wide, inputs[1], stride=stride, padding=kernel // 2, groups=2 * edges)
    torch.testing.assert_close(run(*inputs), expected)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("others", [0, 1, 2])
def test_weighted_sum_has_the_gradients_of_both_orders(others):
    inputs = [channels_last(2), *(channels_last(2, 2, 3, 3) for _ in range(2 + others))]

    def run(weights, *tensors):
        return weighted_sum(weights, tensors[:2], tensors[2:])

    torch.testing.assert_close(run(*inputs), inputs[0][0] * inputs[1] + inputs[0][1] * inputs[2] + sum(inputs[3:]))
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_phases_make_dilated_convolutions_ordinary():
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(3, 1, 5, 5)
    assert torch.equal(from_phases(to_phases(x)), x)
    dilated = F.conv2d(x, weight, padding=4, dilation=2, groups=3)
    torch.testing.assert_close(from_phases(F.conv2d(to_phases(x), weight, padding=2, groups=3)), dilated, rtol=1e-4, atol=1e-5)


def test_norm_of_one_tensor_keeps_statistics_of_every_edge():
    norm, x = Norm(4, 3), torch.randn(5, 4, 6, 6)
    reference = torch.nn.BatchNorm2d(4, affine=False)
    norm.mean[4:8] = 1
    expected = reference(x)
    for y in norm.same(x, [0, 2]):
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(norm.mean.view(3, 4)[2], reference.running_mean)
    torch.testing.assert_close(norm.var.view(3, 4)[0], reference.running_var)
    assert torch.equal(norm.mean[4:8], torch.ones(4))


def test_errors_say_what_is_wrong(plain, pair):
    ours, theirs, _ = pair
    with pytest.raises(OfaError, match="18x16 px, expected sides divisible by 4"):
        ours(torch.zeros(1, 3, 18, 16).double(), *drawn(0))
    with pytest.raises(OfaError, match="channels is 3, expected at least 2, and even"):
        MixedNetwork(10, channels=3)
    with pytest.raises(OfaError, match="cells is 0, expected at least 1"):
        MixedNetwork(10, cells=0)
    state = theirs.state_dict()
    with pytest.raises(FormatError, match=r"has cells\.3\."):
        load_original(MixedNetwork(7, cells=3, channels=4), plain.PlainNetwork(7, cells=4, channels=4).state_dict())
    with pytest.raises(FormatError, match=r"has no cells\.3\."):
        load_original(MixedNetwork(7, cells=4, channels=4), state)
    with pytest.raises(FormatError, match="shape"):
        load_original(MixedNetwork(7, cells=3, channels=8), state)
