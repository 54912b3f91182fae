"""Gradients of alphas: closed forms, the published difference written out, a plain implementation, weights untouched."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from search.joint.architect import first_order, momentum_buffers, second_order, second_order_exact

ROOT = Path(__file__).parents[2]
ETA, MOMENTUM, DECAY = 0.1, 0.9, 0.01
STEP = {"eta": ETA, "momentum": MOMENTUM, "weight_decay": DECAY}


def close(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.fixture
def quadratic():
    """Training loss wAw/2 + wBa and validation loss |w - c|^2/2 + |a|^2/2, whose difference quotients are exact."""
    torch.manual_seed(0)
    w, a, c = (torch.randn(n, dtype=torch.float64) for n in (4, 3, 4))
    root, b = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    w.requires_grad_()
    a.requires_grad_()
    curvature = root @ root.T
    train = lambda: w @ curvature @ w / 2 + w @ b @ a  # noqa: E731
    valid = lambda: (w - c).square().sum() / 2 + a.square().sum() / 2  # noqa: E731
    return w, a, c, curvature, b, train, valid


@pytest.mark.parametrize("differentiate", [second_order, second_order_exact])
@pytest.mark.parametrize("fresh", [True, False])
def test_second_order_equals_the_closed_form(quadratic, differentiate, fresh):
    w, a, c, curvature, b, train, valid = quadratic
    buffer = None if fresh else torch.randn(4, dtype=torch.float64)
    before = w.detach().clone()
    found = differentiate(train, valid, [w], [a], buffers=[buffer], **STEP)
    with torch.no_grad():
        gradient = curvature @ w + b @ a + DECAY * w + (0 if fresh else MOMENTUM * buffer)
        unrolled = w - ETA * gradient
        # d valid / d a at w'(a) = w - eta (... + B a): direct part a, implicit part -eta B^T (w' - c)
        close(found.gradients[0], a - ETA * b.T @ (unrolled - c))
        close(found.loss, (unrolled - c).square().sum() / 2 + a.square().sum() / 2)
    assert torch.equal(w, before)
    assert w.requires_grad
    assert w.grad is None
    assert a.grad is None


def test_clipping_scales_step_and_product(quadratic):
    """Recurrent networks: coefficient c of the clipped step, w' = w - eta c g, gradient = direct - eta c (mixed derivative) v."""
    w, a, c, curvature, b, train, valid = quadratic
    clip = 0.25
    found = second_order(train, valid, [w], [a], eta=ETA, weight_decay=DECAY, clip=clip)
    with torch.no_grad():
        gradient = curvature @ w + b @ a
        coefficient = clip / (gradient.norm() + 1e-6)
        vector = w - ETA * (coefficient * gradient + DECAY * w) - c
        vector = vector * (clip / (vector.norm() + 1e-6)).clamp(max=1)
        close(found.gradients[0], a - ETA * coefficient * b.T @ vector)


def test_unmoved_weights_stay_in_the_unrolled_step_only(quadratic):
    w, a, c, _, b, train, valid = quadratic
    found = second_order(train, valid, [w], [a], unmoved=[w], **STEP)
    with torch.no_grad():
        close(found.gradients[0], a - ETA * b.T @ (w - c))


def test_first_order_is_the_direct_gradient_and_leaves_no_trace(quadratic):
    w, a, _, _, _, train, _ = quadratic
    (expected,) = torch.autograd.grad(train(), a)
    for weights in ((), (w,)):
        found = first_order(train, [a], weights=weights)
        close(found.gradients[0], expected)
        close(found.loss, train().detach())
    assert w.requires_grad
    assert w.grad is None


def test_difference_is_taken_at_the_published_distance():
    """A cubic loss tells the distance: its central difference is off by R^2 v^3 / 6 of the third derivative."""
    w = torch.tensor([0.7, -0.2], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    train, valid = lambda: a[0] * w.pow(4).sum(), lambda: w.square().sum() / 2
    found = second_order(train, valid, [w], [a], eta=ETA)
    with torch.no_grad():
        unrolled = w - ETA * 4 * a[0] * w**3
        r = 0.01 / unrolled.norm()
        plus, minus = (w + r * unrolled).pow(4).sum(), (w - r * unrolled).pow(4).sum()
        close(found.gradients[0], -ETA * (plus - minus)[None] / (2 * r))
    exact = second_order_exact(train, valid, [w], [a], eta=ETA)
    assert not torch.allclose(found.gradients[0], exact.gradients[0], rtol=1e-6)


def test_weights_return_to_the_bit_also_when_a_loss_raises(quadratic):
    w, a, _, _, _, train, valid = quadratic
    before, calls = w.detach().clone(), []

    def failing():
        calls.append(len(calls))
        if len(calls) == 3:  # of the difference's second side
            raise RuntimeError("stop")
        return train()

    with pytest.raises(RuntimeError, match="stop"):
        second_order(failing, valid, [w], [a], **STEP)
    assert torch.equal(w, before)
    assert w.requires_grad


@pytest.mark.parametrize("differentiate", [second_order, second_order_exact])
def test_without_a_gradient_of_the_validation_loss_there_is_no_product(quadratic, differentiate):
    """A vector of zeros has no direction to take a difference in."""
    w, a, _, _, _, train, _ = quadratic
    before = w.detach().clone()
    found = differentiate(train, lambda: a.square().sum() / 2 + 0 * w.sum(), [w], [a], **STEP)
    close(found.gradients[0], a.detach())
    assert torch.equal(w, before)


def test_momentum_is_read_without_making_state():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    assert momentum_buffers(optimizer, list(layer.parameters())) == [None, None]
    assert not optimizer.state
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    buffers = momentum_buffers(optimizer, list(layer.parameters()))
    assert all(torch.equal(buffer, p.grad) for buffer, p in zip(buffers, layer.parameters(), strict=True))


def test_search_network_takes_the_plain_steps():
    """Two steps with SGD in between, so that there is momentum, against the straightforward implementation."""
    from ofa.formats.darts_search import load_original, original_keys
    from ofa.mixed import MixedNetwork

    spec = importlib.util.spec_from_file_location("darts_plain", ROOT / "benchmarks" / "darts_plain.py")
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    torch.manual_seed(0)
    theirs, ours = (kind(5, cells=3, channels=2).double() for kind in (plain.PlainNetwork, MixedNetwork))
    load_original(ours, theirs.state_dict())
    batches = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)) for _ in range(2)]
    alphas = [torch.randn(14, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    keys = original_keys(ours)
    nets = [(ours, list(ours.parameters())), (theirs, list(theirs.parameters()))]
    optimizers = [torch.optim.SGD(weights, lr=ETA, momentum=MOMENTUM, weight_decay=DECAY) for _, weights in nets]
    for _ in range(2):
        losses = [lambda batch=batch: plain.loss_of(ours, alphas, batch) for batch in batches]
        buffers = momentum_buffers(optimizers[0], nets[0][1])
        found = second_order(*losses, nets[0][1], alphas, buffers=buffers, **STEP)
        expected = plain.second_order_gradients(theirs, alphas, *batches, optimizers[1])
        for a, b in zip(found.gradients, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # differences divide rounding errors by 2R
        found = first_order(losses[1], alphas, weights=nets[0][1])
        for a, b in zip(found.gradients, plain.first_order_gradients(theirs, alphas, batches[1]), strict=True):
            close(a, b)
        for (net, _), optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            plain.loss_of(net, alphas, batches[0]).backward()
            optimizer.step()
    state = theirs.state_dict()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.detach(), torch.cat([state[part] for part in keys[name]]), rtol=1e-8, atol=1e-10)
