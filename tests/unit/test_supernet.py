"""Regularisation of a forward, sorting of channels, and what a supernet's skeletons must not leak."""

import copy
import itertools

import numpy as np
import pytest
import torch

from ofa.blocks import Bottleneck, MBConv
from ofa.sorting import sort_channels
from ofa.spaces import get_space, list_elastic_spaces
from ofa.supernet import Noise, Supernet

TINY = get_space("mbv3_tiny_image")


def noise(dropout=0.0, drop_connect=0.0, seed=0):
    return Noise(dropout, drop_connect, torch.Generator().manual_seed(seed))


def random_net(space, seed=0):
    torch.manual_seed(seed)
    net = Supernet(space)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.normal_(0.3, 0.3)
    return net


def images_for(space, n=4):
    return torch.randn(n, 3, *[space.resolution(space.largest)] * 2, generator=torch.Generator().manual_seed(0))


# -- noise ----------------------------------------------------------------------------------------------------------


def test_noise_has_no_effect_in_eval_mode():
    net = random_net(TINY).eval()
    x = images_for(TINY)
    assert torch.equal(net(x, TINY.largest, noise(0.5, 0.5)), net(x, TINY.largest))


@pytest.mark.parametrize(("dropout", "drop_connect"), [(0.3, 0.0), (0.0, 0.5)])
def test_noise_follows_from_its_generator(dropout, drop_connect):
    net = random_net(TINY).train()
    x = images_for(TINY)
    first, again, other, without = (
        net(x, TINY.largest, n)
        for n in (noise(dropout, drop_connect), noise(dropout, drop_connect), noise(dropout, drop_connect, seed=1), None)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, without)
    assert torch.equal(net(x, TINY.largest, noise()), without)


def test_noise_keeps_the_mean():
    scale = noise().scale((200_000,), 0.3, torch.device("cpu"))
    assert sorted(set(scale.tolist())) == pytest.approx([0, 1 / 0.7])
    assert scale.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["mbv3_small_image", "resnet_small_image", "attentive_nas"])
def test_drop_connect_scales_branches_of_the_last_two_stages_by_position(name, monkeypatch):
    """Every scale that a block is given is recorded by who draws it."""
    space = get_space(name)
    net = random_net(space).train()
    rates = {}
    scaled = {}
    drawn = []
    monkeypatch.setattr(Noise, "scale", lambda self, shape, rate, device: drawn.append(rate) or torch.ones(shape))
    for slot, layer in net.layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, slot=slot: scaled.update({slot: len(inputs) > 2}))
        layer.register_forward_hook(lambda *_, slot=slot: rates.update({slot: drawn.pop()}) if drawn else None)
    net(torch.randn(2, 3, 64, 64), space.largest, noise(drop_connect=0.4))
    staged = [slot for slot in space.slots if slot.stage]
    last = staged[-1].stage
    blocks = space.blocks(space.largest)
    expected = {
        slot.name: 0.4 * i / len(staged)
        for i, slot in enumerate(staged)
        if slot.stage >= last - 1 and blocks[slot.name].shortcut != "none"
    }
    assert rates == pytest.approx(expected)
    assert {slot for slot, with_scale in scaled.items() if with_scale} == set(expected)


def test_a_dropped_branch_leaves_the_shortcut_alone():
    torch.manual_seed(0)
    for name, kind in (("mbv3_small_image", MBConv), ("resnet_small_image", Bottleneck)):
        space = get_space(name)
        block = random_net(space).extract(space.largest).stage2_block1
        x = torch.randn(2, space.blocks(space.largest)["stage2_block1"].in_channels, 8, 8)
        out = block(x, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
        assert torch.equal(out[1:], block(x)[1:])
        shortcut = block.shortcut(x)
        assert torch.equal(out[:1], (shortcut if kind is MBConv else shortcut.relu())[:1])


# -- sorting --------------------------------------------------------------------------------------------------------


# elsewhere no channels have an order: there are no elastic stages
STAGED = [name for name in list_elastic_spaces() if any(slot.stage for slot in get_space(name).slots)]


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("num_trained", [0, 1])
def test_sorting_keeps_the_largest_network_and_its_tensors(name, num_trained):
    space = get_space(name)
    net = random_net(space).eval()
    arch, x = space.largest, torch.randn(1, 3, 64, 64)
    identities = [id(tensor) for tensor in [*net.parameters(), *net.buffers()]]
    with torch.no_grad():
        before = net(x, arch)
        sort_channels(net, num_trained=num_trained)
        # sums in another order; branches of random weights let the last digits grow
        torch.testing.assert_close(net(x, arch), before, rtol=0, atol=2e-3 * float(before.abs().max()))
    assert identities == [id(tensor) for tensor in [*net.parameters(), *net.buffers()]]


def test_sorting_orders_channels_within_the_widths_that_were_trained():
    net = random_net(TINY)
    block = net.layers["stage2_block1"].largest
    widths = sorted({spec.hidden_channels for spec in TINY.slot_blocks(next(s for s in TINY.slots if s.name == "stage2_block1"))})
    importance = block.project.conv.weight.abs().sum((0, 2, 3))
    for num_trained, edges in ((0, [0, widths[2]]), (1, [0, *widths[1:]]), (2, [0, *widths])):
        sorted_net = copy.deepcopy(net)
        sort_channels(sorted_net, num_trained=num_trained)
        found = sorted_net.layers["stage2_block1"].largest.project.conv.weight.abs().sum((0, 2, 3))
        for start, end in itertools.pairwise(edges):
            expected = importance[start:end].sort(descending=True).values
            torch.testing.assert_close(found[start:end], expected, rtol=1e-6, atol=0)


# -- skeletons ------------------------------------------------------------------------------------------------------


def test_skeletons_are_no_part_of_the_state_and_keep_no_tensor():
    net = random_net(TINY).train()
    keys = set(net.state_dict())
    net(images_for(TINY), TINY.largest).sum().backward()
    net.extract(TINY.smallest)
    assert set(net.state_dict()) == keys
    assert all(tensor.is_meta for skeleton in net._skeletons.values() for tensor in [*skeleton.parameters(), *skeleton.buffers()])
    copied = copy.deepcopy(net).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert copied(images_for(TINY), TINY.largest).abs().sum() > 0


def test_a_failing_forward_leaves_the_supernet_whole():
    net = random_net(TINY).eval()
    expected = net(images_for(TINY), TINY.largest)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 5, 16, 16), TINY.largest)
    assert torch.equal(net(images_for(TINY), TINY.largest), expected)


def test_extracted_blocks_are_their_own():
    net = random_net(TINY).eval()
    first, second = net.extract(TINY.largest), net.extract(TINY.largest)
    assert not first.training
    first.stage1_block0.register_forward_hook(lambda *_: pytest.fail("a hook of another copy ran"))
    second(images_for(TINY))
    second.train()
    assert not first.stage1_block1.training


def test_supernet_moves_to_another_type():
    net = random_net(TINY).eval()
    x = images_for(TINY)
    expected = net(x, TINY.smallest)  # whatever is cached now must not outlive the move
    arch = TINY.smallest
    np.testing.assert_allclose(net.double()(x.double(), arch).detach(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_supernet_in_channels_last_learns_as_the_static_network_in_nchw():
    """The fast layout changes the speed, not the loss curve: same weights, same images, same losses."""
    space = get_space("mbv3_tiny_image")
    arch = space.arch(resolution=12, stage2__depth=3)
    torch.manual_seed(0)
    supernet = Supernet(space)
    static = supernet.extract(arch).train()
    supernet = supernet.to(memory_format=torch.channels_last).train()
    batches = [(torch.randn(32, 3, 12, 12), torch.randint(0, 10, (32,)))] * 8
    curves = []
    for net, forward in ((static, static), (supernet, lambda x: supernet(x, arch))):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        losses = []
        for images, labels in batches:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][0] != pytest.approx(curves[0][-1], rel=1e-2)  # it does learn something
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)  # float32 sums in another order, grown over eight steps
