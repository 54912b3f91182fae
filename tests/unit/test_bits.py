"""Rounding in training: levels, gradients, shared weights; and bit operations."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

from deploy.limits import Limit, parse_limit
from latency.cost import CountCost
from ofa.block_spec import BlockSpec
from ofa.blocks import build_block, build_network
from ofa.counts import bitops, block_bitops, block_macs, block_params
from ofa.errors import OfaError
from ofa.quantised_layers import DISTANCES, FIRST_CLIPS, MOST_BITS, Levels, RoundedConv2d, rounded_weights, weight_steps
from ofa.spaces import get_space
from ofa.supernet import Supernet
from search.constraints import Constraints, InfeasibleError

TINY = "shufflenet_bits:resolution=16,stem=cifar,channels=4,blocks=1"


def layer(weight_bits=2, activation_bits=2, *, signed=False, clip=1.5):
    found = RoundedConv2d(nn.Conv2d(1, 1, 1, bias=False), weight_bits, activation_bits, signed=signed)
    with torch.no_grad():
        found.clip.fill_(clip)
    return found


# -- weights --------------------------------------------------------------------------------------------------------


def test_one_bit_weights_are_signs_times_the_mean_magnitude_of_their_channel():
    weight = torch.tensor([[0.5, -0.1, 0.0, 0.6], [-2.0, 2.0, 1.0, 3.0]]).view(2, 4, 1, 1)
    expected = torch.tensor([[0.3, -0.3, 0.3, 0.3], [-2.0, 2.0, 2.0, 2.0]]).view(2, 4, 1, 1)  # zero counts as positive
    # 1.5958 is 2 sqrt(2 / pi) to four digits
    torch.testing.assert_close(rounded_weights(weight, 1), expected, rtol=1e-4, atol=0)


def test_two_bit_weights_by_hand():
    # mean magnitude 1: step 0.9957 / 2 * sqrt(pi / 2) = 0.62395, levels +-0.62395 and +-1.87186, borders at 0 and +-1.2479
    weight = torch.tensor([0.1, -0.3, 1.2, 1.3, -1.9, 1.2]).view(1, 6, 1, 1)
    integers, step = weight_steps(weight, 2)
    assert step.item() == pytest.approx(0.62395, abs=2e-5)
    assert integers.flatten().tolist() == [1, -1, 1, 3, -3, 1]
    torch.testing.assert_close(rounded_weights(weight, 2), integers * step, rtol=0, atol=0)


def test_eight_bit_weights_are_the_integers_of_an_int8_file():
    weight = torch.tensor([[1.27, 0.011, -0.5, 0.0]]).view(1, 4, 1, 1)
    integers, step = weight_steps(weight, 8)
    assert step.item() == pytest.approx(0.01)
    assert integers.flatten().tolist() == [127, 1, -50, 0]


@given(st.integers(1, MOST_BITS), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_weights_and_activations_have_at_most_two_to_the_bits_levels(bits, seed, size):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 40, 3, 3, generator=generator) * size
    integers, step = weight_steps(weight, bits)
    assert integers.abs().max() <= 127  # fits into int8
    assert (integers == integers.round()).all()
    assert (step > 0).all()
    for channel in rounded_weights(weight, bits):
        assert len(channel.unique()) <= 2**bits
    for signed in (False, True):
        taken = layer(activation_bits=bits, signed=signed).taken(torch.randn(1000, generator=generator) * 3)
        assert len(taken.unique()) <= 2**bits


def test_a_channel_of_zeros_is_finite():
    for bits in range(1, MOST_BITS + 1):
        assert torch.isfinite(rounded_weights(torch.zeros(2, 3, 1, 1), bits)).all()


def test_distances_have_the_least_squared_error_for_normal_weights():
    x = np.linspace(-8, 8, 160_001)
    density = norm.pdf(x) / norm.pdf(x).sum()
    for bits, distance in enumerate(DISTANCES, 1):
        most = 2**bits - 1

        def error(d, most=most):
            return ((x - np.clip(2 * np.floor(x / d) + 1, -most, most) * d / 2) ** 2 * density).sum()

        best = minimize_scalar(error, bounds=(0.01, 2), method="bounded", options={"xatol": 1e-6}).x
        assert distance / np.sqrt(np.pi / 2) == pytest.approx(best, abs=2e-4)  # Max's table has four digits


def test_first_clips_have_the_least_squared_error_for_normal_activations():
    x = np.linspace(-8, 8, 160_001)
    density = norm.pdf(x) / norm.pdf(x).sum()
    for signed, bits in itertools.product((False, True), range(1, MOST_BITS + 1)):
        values, levels = x if signed else np.maximum(x, 0), Levels.of(bits, signed=signed)

        def error(clip, values=values, levels=levels):
            step = clip / levels.high
            return ((values - np.rint(values / step).clip(*levels) * step) ** 2 * density).sum()

        assert error(FIRST_CLIPS[signed][bits - 1]) <= error(FIRST_CLIPS[signed][bits - 1] * 1.02)
        assert error(FIRST_CLIPS[signed][bits - 1]) <= error(FIRST_CLIPS[signed][bits - 1] * 0.98)


# -- activations ----------------------------------------------------------------------------------------------------


def test_activations_after_a_relu_by_hand():
    taken = layer(activation_bits=2, clip=1.5).taken(torch.tensor([-1.0, 0.0, 0.2, 0.3, 0.6, 1.2, 1.3, 1.5, 9.0]))
    torch.testing.assert_close(taken, torch.tensor([0, 0, 0, 0.5, 0.5, 1.0, 1.5, 1.5, 1.5]))


def test_activations_with_signs_by_hand():
    # two bits: integers -1, 0, 1, 2 of 1.5 / 2
    taken = layer(activation_bits=2, signed=True, clip=1.5).taken(torch.tensor([-9.0, -0.5, -0.3, 0.3, 0.5, 1.2, 9.0]))
    torch.testing.assert_close(taken, torch.tensor([-0.75, -0.75, 0, 0, 0.75, 1.5, 1.5]))
    assert Levels.of(4, signed=True) == (-7, 8)
    assert Levels.of(1, signed=True) == Levels.of(1, signed=False) == (0, 1)


# -- gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_passes_the_rounding_of_weights():
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    factor = torch.randn(3, 2, 3, 3)
    for bits in (1, 2, 4, 8):
        (gradient,) = torch.autograd.grad((rounded_weights(weight, bits) * factor).sum(), weight)
        torch.testing.assert_close(gradient, factor, rtol=0, atol=0)


def test_alpha_gets_what_lies_beyond_it_and_the_input_what_lies_inside():
    x = torch.tensor([-1.0, 0.4, 1.4, 1.6, 3.0], requires_grad=True)
    factor = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    unsigned, signed = layer(activation_bits=2), layer(activation_bits=2, signed=True)
    (unsigned.taken(x) * factor).sum().backward()
    assert x.grad.tolist() == [0, 10, 100, 0, 0]
    assert unsigned.clip.grad.tolist() == [0, 11000]  # of one bit, of two
    x.grad = None
    (signed.taken(x) * factor).sum().backward()
    assert x.grad.tolist() == [0, 10, 100, 0, 0]
    assert signed.clip.grad.tolist() == [0, 11000 - 0.5]  # the lower end is -alpha / 2


def test_gradients_of_a_layer_equal_the_chain_rule():
    torch.manual_seed(0)
    conv = RoundedConv2d(nn.Conv2d(3, 4, 3, padding=1, bias=False), 3, 2, signed=True)
    x, target = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 4, 5, 5)
    (conv(x) * target).sum().backward()
    taken = conv.taken(x.detach())
    weight, clip, step = rounded_weights(conv.weight.detach(), 3), conv.clip[-1].item(), conv.input_step.item()
    by_weight = nn.grad.conv2d_weight(taken, weight.shape, target, padding=1)
    by_taken = nn.grad.conv2d_input(x.shape, weight, target, padding=1)
    torch.testing.assert_close(conv.weight.grad, by_weight, rtol=1e-4, atol=1e-5)
    inside = (x > -step) & (x < clip)
    torch.testing.assert_close(x.grad, by_taken * inside, rtol=1e-4, atol=1e-5)
    expected = by_taken[x >= clip].sum() - by_taken[x <= -step].sum() * step / clip
    torch.testing.assert_close(conv.clip.grad, torch.stack([torch.zeros(()), expected.detach()]), rtol=1e-4, atol=1e-4)


def test_a_clip_that_a_step_has_carried_past_zero_is_a_magnitude():
    conv = layer(activation_bits=2, clip=-1.5)
    x = torch.tensor([0.6, 9.0], requires_grad=True)
    taken = conv.taken(x)
    assert taken.tolist() == [0.5, 1.5]
    taken.sum().backward()
    assert conv.clip.grad.tolist() == [0, -1]


# -- blocks ---------------------------------------------------------------------------------------------------------

BLOCKS = {
    "mbconv": BlockSpec("mbconv", 8, 12, 8, kernel_size=3, hidden_channels=16, act="relu", se=True, shortcut="pool_conv_bn"),
    "mbconv of h_swish": BlockSpec("mbconv", 8, 8, 8, kernel_size=3, hidden_channels=16, act="h_swish", shortcut="identity"),
    "mbconv without expansion": BlockSpec("mbconv", 8, 12, 8, kernel_size=5, hidden_channels=8, act="relu6"),
    "bottleneck": BlockSpec("bottleneck", 8, 12, 8, kernel_size=3, stride=2, hidden_channels=4, act="relu", shortcut="pool_conv"),
    "conv": BlockSpec("conv", 8, 12, 8, kernel_size=3, act="relu"),
    "shuffle": BlockSpec("shuffle", 8, 8, 8, kernel_size=5, hidden_channels=4, act="relu"),
    "shuffle of stride 2": BlockSpec("shuffle", 8, 20, 8, kernel_size=3, stride=2, hidden_channels=6, act="relu"),
    "xception": BlockSpec("xception", 8, 20, 8, kernel_size=3, stride=2, hidden_channels=6, act="relu"),
}


def with_bits(spec, weight_bits, activation_bits):
    return BlockSpec(**{**spec.to_dict(), "weight_bits": weight_bits, "activation_bits": activation_bits})


SIGNS = {  # which convolutions of the blocks above take values with signs
    "mbconv": {"expand", "shortcut"},
    "mbconv of h_swish": {"expand", "depthwise", "project"},
    "mbconv without expansion": {"depthwise"},
    "bottleneck": set(),
    "conv": {""},
    "shuffle": {"branch.project"},
    "shuffle of stride 2": {"branch.project", "projection.pointwise"},
    "xception": {"branch.pointwise1", "branch.pointwise2", "branch.pointwise3", "projection.pointwise"},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_convolution_of_a_block_rounds_and_knows_whether_its_input_has_signs(name):
    block = build_block(with_bits(BLOCKS[name], 3, 2))
    rounded = {path: module for path, module in block.named_modules() if isinstance(module, RoundedConv2d)}
    plain = [path for path, module in block.named_modules() if isinstance(module, nn.Conv2d) and path not in rounded]
    assert all(path.startswith("se.") for path in plain)
    signed = {path.removesuffix("conv").removesuffix(".").removesuffix(".conv") for path, m in rounded.items() if m.levels.low}
    assert signed == SIGNS[name]
    assert {module.weight_bits for module in rounded.values()} == {3}
    assert {len(module.clip) for module in rounded.values()} == {2}


@pytest.mark.parametrize("name", BLOCKS)
def test_parameters_are_counted_with_clips(name):
    for bits in (1, 3):
        spec = with_bits(BLOCKS[name], 2, bits)
        assert block_params(spec) == sum(p.numel() for p in build_block(spec).parameters())


@pytest.mark.parametrize("name", BLOCKS)
def test_eight_bits_are_close_to_none(name):
    torch.manual_seed(0)
    plain, rounded = build_block(BLOCKS[name]), build_block(with_bits(BLOCKS[name], 8, 8))
    rounded.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        x = torch.randn(16, 8, 8, 8)
        x = F.relu(x) if BLOCKS[name].kind in ("shuffle", "xception", "bottleneck") else x
        for module in rounded.modules():
            if isinstance(module, RoundedConv2d):
                module.clip.fill_(6.0)  # of values of variance 1, next to none lies beyond
        # BatchNorm makes each layer's output of variance 1 again
        off = (rounded.train()(x) - plain.train()(x)).norm() / plain(x).norm()
    assert off < 0.06  # some 1 % a layer: steps of 6 / 255 or 6 / 128, of variances 1/12


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (BlockSpec("sep_conv", 8, 8, 8, kernel_size=3, weight_bits=2, activation_bits=2), "a sep_conv has no bits of its own"),
        (BlockSpec("conv", 8, 8, 8, weight_bits=2), r"bits are \(2, 0\), expected 1 to 8"),
        (BlockSpec("conv", 8, 8, 8, weight_bits=2, activation_bits=9), r"bits are \(2, 9\), expected 1 to 8"),
    ],
)
def test_bits_that_no_block_has_are_refused(spec, message):
    with pytest.raises(OfaError, match=message):
        build_block(spec)


# -- shared weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return Supernet(get_space(TINY))


def test_bit_widths_share_weights_and_have_clips_of_their_own(supernet):
    space = supernet.space
    narrow, wide = space.arch(block0__bits="w1a2"), space.arch(block0__bits="w4a4")
    nets = [supernet.extract(arch).get_submodule("block0.branch") for arch in (narrow, wide)]
    few, many = ([m for m in net.modules() if isinstance(m, RoundedConv2d)] for net in nets)
    assert len(few) == len(many) == 6
    for ours, theirs in zip(few, many, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0)
        torch.testing.assert_close(ours.clip, theirs.clip[:2], rtol=0, atol=0)
        assert (ours.weight_bits, theirs.weight_bits) == (1, 4)


def test_a_step_of_one_bit_width_leaves_the_clips_of_others_alone(supernet):
    supernet.zero_grad()
    arch = supernet.space.arch(block0__bits="w1a2")
    supernet.train()(torch.randn(8, 3, 16, 16) * 3, arch).logsumexp(1).sum().backward()
    gradients = [p.grad for name, p in supernet.layers["block0_xception"].named_parameters() if name.endswith("clip")]
    assert len(gradients) == 6
    for gradient in gradients:
        assert gradient[1] != 0
        assert gradient[[0, 2, 3]].tolist() == [0, 0, 0]


def test_extracted_networks_equal_the_supernet(supernet):
    supernet.eval()
    images = torch.randn(4, 3, 16, 16)
    for arch in supernet.space.decode(supernet.space.sample(np.random.default_rng(0), 5)):
        with torch.no_grad():
            torch.testing.assert_close(supernet.extract(arch)(images), supernet(images, arch), rtol=0, atol=0)


# -- bit operations -------------------------------------------------------------------------------------------------


def test_bit_operations_by_hand():
    conv = BlockSpec("conv", 8, 12, 10, kernel_size=3, stride=2, weight_bits=2, activation_bits=3)
    assert block_bitops(conv) == 8 * 12 * 9 * 25 * 6
    gated = BlockSpec("mbconv", 8, 12, 10, kernel_size=3, hidden_channels=16, se=True, weight_bits=4, activation_bits=1)
    assert block_bitops(gated) == (8 * 16 + 16 * 9 + 16 * 12) * 100 * 4  # without the gate's
    assert block_bitops(BlockSpec("conv", 8, 12, 10, kernel_size=3)) == 0


def test_resnet18_has_the_bit_operations_of_the_paper():
    """Guo et al. 2020, table of the bit-width search: 6.32, 14.21 and 25.27 G, which are of 2^30."""
    blocks = []
    channels, resolution = 64, 56
    for width in (64, 128, 256, 512):
        for _ in range(2):
            stride = 2 if width != channels else 1
            blocks.append(BlockSpec("conv", channels, width, resolution, kernel_size=3, stride=stride))
            if stride == 2:
                blocks.append(BlockSpec("conv", channels, width, resolution, stride=2))
                resolution //= 2
            blocks.append(BlockSpec("conv", width, width, resolution, kernel_size=3))
            channels = width
    assert sum(map(block_macs, blocks)) == 1_695_547_392
    for bits, published in ((2, 6.32), (3, 14.21), (4, 25.27)):
        assert round(sum(block_bitops(with_bits(spec, bits, bits)) for spec in blocks) / 2**30, 2) == published


def test_bit_operations_of_a_population_are_sums_over_blocks():
    space = get_space(TINY)
    population = space.sample(np.random.default_rng(0), 50)
    expected = [sum(map(block_bitops, space.blocks(arch).values())) for arch in space.decode(population)]
    assert bitops(space, population).tolist() == expected
    np.testing.assert_array_equal(CountCost("bitops", space).predict(population), expected)
    assert min(expected) > 0


# -- limits ---------------------------------------------------------------------------------------------------------


def constraints(*limits, space=TINY):
    return Constraints.for_run(SimpleNamespace(space=get_space(space)), limits)


def test_a_limit_on_bit_operations_is_read_and_written():
    assert parse_limit("bitops <= 2G") == Limit("bitops", None, 2e9)
    assert str(parse_limit("bitops <= 1.5M")) == "bitops <= 1.5M"


def test_a_search_finds_networks_below_a_limit_on_bit_operations():
    limited = constraints("bitops <= 3M", "params <= 99%")
    space = limited.space
    fitting = limited.require_feasible()
    assert len(fitting) > 0
    assert (bitops(space, fitting) <= 3_000_000).all()
    drawn = space.sample(np.random.default_rng(0), 200)
    above = constraints("bitops <= 3M").violation(drawn) > 0
    np.testing.assert_array_equal(above, bitops(space, drawn) > 3_000_000)
    assert above.any()
    assert not above.all()


def test_a_limit_that_nothing_meets_names_the_least():
    space = get_space(TINY)
    least = sum(min(map(block_bitops, space.slot_blocks(slot))) for slot in space.slots)  # blocks are chosen independently
    with pytest.raises(InfeasibleError) as failure:
        constraints("bitops <= 1K").require_feasible()
    named = parse_limit(str(failure.value).rpartition(": ")[2]).bound
    assert least <= named <= 1.01 * least  # rounded up to three digits
    with pytest.raises(OfaError, match="no block of mbv3_tiny_image has bits of its own"):
        constraints("bitops <= 1G", space="mbv3_tiny_image")


# -- training -------------------------------------------------------------------------------------------------------


def test_a_network_of_few_bits_learns(digits_network):
    torch.manual_seed(0)
    known = digits_network
    blocks = {name: with_bits(spec, 2, 2) if name.startswith("block") else spec for name, spec in known.blocks.items()}
    net = build_network(blocks).train()
    before = {name: p.detach().clone() for name, p in net.named_parameters() if name.endswith("clip")}
    images, labels = known.preprocess(known.train.images, 8), known.train.labels
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.01), []
    for chosen in itertools.chain.from_iterable(torch.randperm(len(images)).split(128) for _ in range(5)):
        loss = F.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    moved = [name for name, p in net.named_parameters() if name in before and (p != before[name])[-1]]
    assert len(moved) == len(before)
