"""The supernet against its extracted subnets, torch's counters, and hand arithmetic."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from latency.cost import CountCost
from ofa.block_spec import BlockSpec
from ofa.blocks import KINDS, build_block
from ofa.counts import MACS, PARAMS
from ofa.elastic import ElasticBlock
from ofa.spaces import get_space, list_elastic_spaces
from ofa.supernet import Supernet


def shaken(space, seed=0):
    """A supernet whose every tensor is random, so that no slice is equal to another by accident."""
    torch.manual_seed(seed)
    net = Supernet(space)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                if "running_var" in name:
                    tensor.uniform_(0.5, 1.5)
                elif "kernel_transforms" in name:
                    tensor.add_(0.1 * torch.randn_like(tensor))
                elif tensor.ndim == 1:
                    tensor.normal_(0.5, 0.5)
    return net


@pytest.mark.parametrize("name", list_elastic_spaces())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_extract_equals_supernet_for_random_archs(name, layout, random_archs):
    space = get_space(name)
    net = shaken(space).to(memory_format=layout).eval()
    for arch in random_archs(space, 6):
        images = torch.randn(2, 3, space.resolution(arch), space.resolution(arch)).contiguous(memory_format=layout)
        with torch.no_grad():
            # the same kernels on the same numbers: equal to the last bit when the layout is the same too
            static = net.extract(arch).to(memory_format=layout)
            assert torch.equal(net(images, arch), static(images))


def test_different_archs_compute_different_logits():
    space = get_space("mbv3_tiny_image")
    net = shaken(space).eval()
    images = torch.randn(2, 3, 16, 16)
    outputs = [
        net(images, arch) for arch in (space.largest, space.arch(stage1__block0__kernel_size=3), space.arch(stage2__depth=2))
    ]
    for a, b in itertools.combinations(outputs, 2):
        assert (a - b).abs().max() > 10 * torch.finfo(a.dtype).eps * a.abs().max()


def test_extract_shares_no_memory_with_the_supernet():
    space = get_space("mbv3_tiny_image")
    net = shaken(space).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    static = net.extract(space.largest)
    with torch.no_grad():
        for tensor in [*static.parameters(), *static.buffers()]:
            tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_training_one_subnet_leaves_weights_outside_its_slices_without_gradient():
    space = get_space("mbv3_tiny_image")
    net = shaken(space).train()
    arch = space.smallest
    net(torch.randn(4, 3, 8, 8), arch).sum().backward()
    kept = net.layers["stage1_block0"].largest.expand.conv.weight
    hidden = space.blocks(arch)["stage1_block0"].hidden_channels
    assert kept.grad[:hidden].abs().sum() > 0
    assert (kept.grad[hidden:] == 0).all()
    assert net.layers["stage1_block3"].largest.expand.conv.weight.grad is None  # not in the network at all


def test_training_updates_running_statistics_of_the_slice_only():
    space = get_space("mbv3_tiny_image")
    net = shaken(space).train()
    before = net.layers["stage1_block0"].largest.expand.bn.running_mean.clone()
    net(torch.randn(4, 3, 8, 8), space.smallest)
    after = net.layers["stage1_block0"].largest.expand.bn.running_mean
    hidden = space.blocks(space.smallest)["stage1_block0"].hidden_channels
    assert (after[:hidden] != before[:hidden]).all()
    assert torch.equal(after[hidden:], before[hidden:])


def test_smaller_kernels_are_the_chain_of_centre_crops_and_matrices():
    specs = [BlockSpec("mbconv", 8, 8, 8, kernel_size=k, hidden_channels=24, act="relu") for k in (3, 5, 7)]
    block = ElasticBlock(specs, bn_eps=1e-5, kernel_transforms=True)
    with torch.no_grad():
        for matrix in block.kernel_transforms.values():
            matrix.normal_()
    seven = block.largest.depthwise.conv.weight
    derived = block.extract(build_block(specs[0], device="meta")).depthwise.conv.weight
    expected = torch.empty(24, 1, 3, 3)
    for c in range(24):
        five = (block.kernel_transforms["7to5"] @ seven[c, 0, 1:6, 1:6].reshape(25)).reshape(5, 5)
        expected[c, 0] = (block.kernel_transforms["5to3"] @ five[1:4, 1:4].reshape(9)).reshape(3, 3)
    torch.testing.assert_close(derived, expected)


@pytest.mark.parametrize("name", list_elastic_spaces())
def test_macs_and_params_equal_torchs_own_counters(name, random_archs):
    space = get_space(name)
    net = Supernet(space).eval()
    archs = random_archs(space, 8, seed=1)
    multiply_adds = CountCost("macs", space).predict(space.encode(archs))
    params = CountCost("params", space).predict(space.encode(archs))
    for arch, expected_macs, expected_params in zip(archs, multiply_adds, params, strict=True):
        static = net.extract(arch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            static(torch.randn(1, 3, space.resolution(arch), space.resolution(arch)))
        assert counter.get_total_flops() == 2 * expected_macs
        assert sum(p.numel() for p in static.parameters()) == expected_params
        assert CountCost("macs", space)(arch) == expected_macs


def test_every_kind_has_a_counter_and_an_emitter():
    from deploy.emitters import EMITTERS

    assert KINDS.keys() == MACS.keys() == PARAMS.keys() == EMITTERS.keys()


def test_static_mbconv_is_the_published_block():
    """One block against its formula written with torch.nn.functional."""
    spec = BlockSpec("mbconv", 8, 8, 6, kernel_size=5, hidden_channels=24, act="h_swish", se=True, shortcut="identity")
    block = build_block(spec).eval()
    x = torch.randn(2, 8, 6, 6)

    def norm(y, bn):
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def h_swish(y):
        return y * F.relu6(y + 3) / 6

    y = h_swish(norm(F.conv2d(x, block.expand.conv.weight), block.expand.bn))
    y = h_swish(norm(F.conv2d(y, block.depthwise.conv.weight, padding=2, groups=24), block.depthwise.bn))
    gate = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), block.se.reduce.weight, block.se.reduce.bias))
    y = y * F.relu6(F.conv2d(gate, block.se.expand.weight, block.se.expand.bias) + 3) / 6
    y = x + norm(F.conv2d(y, block.project.conv.weight), block.project.bn)
    torch.testing.assert_close(block(x), y)
    assert isinstance(block, nn.Module)
