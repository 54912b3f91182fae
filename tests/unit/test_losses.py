"""Distillation losses, augmentation, optimiser and averages: each against hand arithmetic or another implementation."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.augment import augment, blend, draw
from ofa.training.config import TrainConfig
from ofa.training.data import Images, load_images, training_batch
from ofa.training.distillation import adaptive_alpha, kl_divergence, soft_cross_entropy
from ofa.training.optimizer import MovingAverage, load_optimizer, make_optimizer, optimizer_tensors

SPACE = get_space("mbv3_tiny_image")


# -- distillation ---------------------------------------------------------------------------------------------------


def test_soft_cross_entropy_is_the_hand_computed_sum_and_spares_the_teacher():
    student = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    p = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    log_q = np.array([1.0, 2.0, 0.5]) - math.log(np.exp([1.0, 2.0, 0.5]).sum())
    loss = soft_cross_entropy(student, teacher)
    assert loss.item() == pytest.approx(-(p * log_q).sum(), rel=1e-6)
    loss.backward()
    assert teacher.grad is None


def logits(seed, scale=3.0):
    return (torch.randn(16, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).requires_grad_()


def test_kl_has_the_gradient_of_soft_cross_entropy_and_vanishes_where_both_agree():
    student, teacher = logits(0), logits(1)
    a, b = (torch.autograd.grad(f(student, teacher, 2.0), student)[0] for f in (kl_divergence, soft_cross_entropy))
    torch.testing.assert_close(a, b)
    assert kl_divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [soft_cross_entropy, kl_divergence])
def test_temperature_keeps_the_size_of_the_gradient(loss):
    student = logits(0, 0.1)
    sizes = [torch.autograd.grad(loss(student, logits(1, 0.1), t), student)[0].norm().item() for t in (1.0, 4.0)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)  # equal in the limit of small logits (Hinton et al. 2015, section 2.1)


def naive_adaptive_alpha(student, teacher):
    """AlphaNet's loss written out a probability at a time."""
    value, gradient = 0.0, torch.zeros_like(student)
    q, p = student.detach().softmax(1), teacher.detach().softmax(1)
    for i in range(len(student)):
        options = []
        for alpha in (-1.0, 1.0):
            w = p[i] / q[i]
            if alpha == 1.0:
                f, base, rho = w * w.log(), 0.0, w
            else:
                power = (w**alpha).clamp(0, 5)
                base = 1 / (alpha * (alpha - 1))
                f, rho = power / (alpha * (alpha - 1)), power / alpha + base
            live = student[i].detach().requires_grad_()
            surrogate = -(q[i] * rho * live.log_softmax(0)).sum()
            options.append((float((q[i] * (f - base)).sum()), torch.autograd.grad(surrogate, live)[0]))
        worse = max(options, key=lambda option: option[0])
        value += worse[0] / len(student)
        gradient[i] = worse[1] / len(student)
    return value, gradient


def test_adaptive_alpha_is_the_larger_divergence_of_each_image():
    student, teacher = logits(0), logits(1)
    loss = adaptive_alpha(student, teacher)
    value, gradient = naive_adaptive_alpha(student, teacher)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], gradient.detach())


def test_adaptive_alpha_survives_probabilities_that_underflow():
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss = adaptive_alpha(student, torch.tensor([[-200.0, 0.0, 200.0]]))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


# -- augmentation ----------------------------------------------------------------------------------------------------


def test_crops_keep_at_least_their_share_and_stay_inside():
    size = 64
    ramp = torch.arange(size, dtype=torch.uint8) * 3
    images = ramp.expand(200, 3, size, size).contiguous()  # brightness tells the column
    draws = draw(np.random.default_rng(0), 200, size, flip=False, crop_scale=0.25)
    out = augment(images, draws)
    left, right = out[:, 0, 0, 0].float() / 3, out[:, 0, 0, -1].float() / 3
    widths = (right - left + 1) / size
    np.testing.assert_allclose(widths, draws.crop[:, 3], atol=2.5 / size)  # a pixel at either end, and rounding
    area = draws.crop[:, 2] * draws.crop[:, 3]
    assert area.min() > 0.2  # of 0.25, less what the aspect ratio cut off
    assert area.max() <= 1
    assert widths.std() > 0.1


def test_a_whole_crop_is_the_image_and_mirrors_are_mirrors():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    draws = draw(np.random.default_rng(0), 4, 16, flip=True, crop_scale=0.5)
    draws.crop[:] = [0, 0, 1, 1]
    out = augment(images, draws)
    for image, result, mirrored in zip(images, out, draws.mirror, strict=True):
        assert torch.equal(result, image.flip(2) if mirrored else image)


def test_parts_of_a_batch_join_to_the_whole():
    data = load_images("digits", "train")
    for changes in ({}, {"crop_scale": 0.5}, {"mixup": 0.4}, {"cutmix": 1.0}):
        config = TrainConfig(batch_size=50, **changes)
        images, labels = training_batch(data, 3, config, flip=True)
        parts = [training_batch(data, 3, config, flip=True, rank=r, num_ranks=3) for r in range(3)]
        assert [len(part[0]) for part in parts] == [17, 17, 16]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_mixup_and_cutmix_mix_labels_as_they_mix_pixels():
    black, white = torch.zeros(2, 3, 20, 20, dtype=torch.uint8), torch.full((2, 3, 20, 20), 255, dtype=torch.uint8)
    first, second = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    for seed in range(20):
        for options in ({"mixup": 0.5, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 0.5}):
            images, labels = blend(black, white, first, second, np.random.default_rng(seed), **options)
            share = float(images.float().mean() / 255)
            assert labels[0, 1].item() == pytest.approx(share, abs=0.01)
            assert labels.sum(1).tolist() == pytest.approx([1, 1])


# -- optimiser and averages ---------------------------------------------------------------------------------------------


def one_update(net, optimizer, arch, images):
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(net(images, arch), torch.arange(len(images)) % 10).backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_blocks_that_were_not_sampled_neither_decay_nor_move(optimizer):
    net = Supernet(SPACE).train()
    images = torch.randn(8, 3, 16, 16)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, lr=0.1)
    optimizer = make_optimizer(net, config)
    one_update(net, optimizer, SPACE.largest, images)  # momentum everywhere
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    shallow = SPACE.arch(**{f"stage{s}__depth": 2 for s in (1, 2, 3)})
    one_update(net, optimizer, shallow, images)
    used = SPACE.blocks(shallow)
    for name, p in net.named_parameters():
        layer = name.split(".")[1]
        if "kernel_transforms" in name or layer not in used:
            assert torch.equal(p, before[name]), name
        elif p.ndim > 1:  # vectors behind a zero BatchNorm have no gradient yet
            assert not torch.equal(p, before[name]), name


def test_only_weights_decay():
    net = Supernet(SPACE)
    decayed, plain = make_optimizer(net, TrainConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0)
    names = {id(p): name for name, p in net.named_parameters()}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert {p.ndim for p in plain["params"] if "kernel_transforms" not in names[id(p)]} == {1}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_state_survives_a_round_trip(optimizer):
    config, images = TrainConfig(optimizer=optimizer), torch.randn(8, 3, 16, 16)
    first, second = Supernet(SPACE), Supernet(SPACE)
    a, b = make_optimizer(first, config), make_optimizer(second, config)
    one_update(first, a, SPACE.largest, images)
    second.load_state_dict(first.state_dict())
    load_optimizer(second, b, {k: v.clone() for k, v in optimizer_tensors(first, a).items()})
    for net, optim in ((first, a), (second, b)):
        one_update(net, optim, SPACE.smallest, images[..., :8, :8])
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_moving_average_is_the_recursion_by_hand():
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    average = MovingAverage(net, 0.5)
    expected = 1.0
    for step, value in enumerate((3.0, -1.0, 2.0)):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    average.swap(net)
    assert net.weight.item() == pytest.approx(expected)
    average.swap(net)
    assert net.weight.item() == 2.0


def test_images_of_any_size_are_shifted_by_an_eighth():
    data = Images(torch.full((300, 3, 40, 40), 9, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64), ("a", "b"))
    batch, _ = training_batch(data, 0, TrainConfig(batch_size=300), flip=False)
    black = (batch[:, 0] == 0).all(2).sum(1)  # rows that came from the border
    assert set(black.tolist()) == set(range(6))
