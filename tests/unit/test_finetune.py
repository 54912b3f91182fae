"""Quantisation-aware fine-tuning: what is trained is the file; it recovers accuracy, the same way every time."""

import numpy as np
import pytest
import torch

from deploy.calibration import activation_ranges, scales_of
from deploy.device import get_device, make_device
from deploy.emit import emit
from deploy.finetune import RoundedNetwork, _Rounded, finetune_quantised
from deploy.fold import fold
from deploy.precision import grid_of
from deploy.runtimes import open_session
from ofa.errors import OfaError
from ofa.spaces import get_space
from ofa.supernet import Supernet

TORCH = make_device({"name": "torch", "runtime": "torch_eager", "provider": "cpu"}, "here")
ORT = get_device("ort_cpu_1t")


def calibrated(blocks, weights, images, precision):
    return scales_of(activation_ranges(blocks, weights, [images]), grid_of(precision).activation_bits, "minmax")


@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("int8", {}),
        ("a16w8", {}),
        ("a4w4", {"stem": "fp32", "final": "a16w8", "feature": "int8"}),
        ("int8", {"stem": "a4w3", "final": "fp32", "classifier": "a16w4"}),
    ],
)
@pytest.mark.parametrize("name", ["mbv3_tiny_image", "resnet_small_image"])
def test_what_is_trained_is_the_file(name, precision, layers):
    """The rounded network equals the file run by torch, and ONNX Runtime's integers come near both."""
    space = get_space(name)
    torch.manual_seed(0)
    blocks, weights = space.blocks(space.smallest), fold(Supernet(space).eval().extract(space.smallest))
    weights["stem.weight" if "stem.weight" in weights else next(iter(weights))][0] = 0  # a channel that has died
    layers = {layer: other for layer, other in layers.items() if f"{layer}.weight" in weights}
    side = space.resolution(space.smallest)
    images = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    content = emit(blocks, weights, precision=precision, scales=calibrated(blocks, weights, images, precision), layers=layers)
    with torch.no_grad():
        given = {key: torch.from_numpy(values) for key, values in weights.items()}
        found = RoundedNetwork(content, precision, layers)(torch.from_numpy(images), given).numpy()
    by_torch, by_ort = (open_session(content, device).run(images) for device in (TORCH, ORT))
    np.testing.assert_array_equal(found, by_torch)
    # another order of sums rounds some values to the neighbouring integer, which later layers pass on
    coarse = 0.2 if "4" in precision else 0.03
    assert np.sqrt(np.square(by_ort - by_torch).mean() / np.square(by_torch).mean()) < coarse


def test_gradients_pass_through_rounding_and_stop_at_the_ends_of_the_grid():
    x = torch.tensor([-3.0, -1.0, -0.1, 0.0, 0.26, 4.0, 9.0], requires_grad=True)
    scale, zero_point = torch.tensor(0.5), torch.tensor(2, dtype=torch.uint8)  # from -1 to 126.5
    out = _Rounded.apply(x, scale, zero_point)
    assert out.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.5, 4.0, 9.0]
    out.backward(torch.arange(7.0))
    assert x.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_weights_of_layers_in_float_are_not_rounded_and_all_learn(digits_network):
    scales = calibrated(digits_network.blocks, digits_network.weights, inputs(digits_network), "a4w4")
    layers = {"head": "fp32"}
    content = emit(digits_network.blocks, digits_network.weights, precision="a4w4", scales=scales, layers=layers)
    weights = {key: torch.tensor(values, requires_grad=True) for key, values in digits_network.weights.items()}
    network, images = RoundedNetwork(content, "a4w4", layers), torch.from_numpy(inputs(digits_network))
    network(images, weights).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights.values())
    with torch.no_grad():
        before = network(images, weights)
        weights["head.bias"] += 1e-4
        np.testing.assert_allclose(network(images, weights) - before, 1e-4, rtol=0.05)


def inputs(network):
    return np.ascontiguousarray(network.preprocess(network.train.images[:128], network.resolution).numpy())


@pytest.fixture
def tuned(digits_network):
    """Fine-tune digits on four bits from ranges that fit badly."""

    def do(epochs=6, **kwargs):
        scales = calibrated(digits_network.blocks, digits_network.weights, inputs(digits_network), "a4w4")
        return scales, finetune_quantised(
            digits_network.blocks,
            digits_network.weights,
            scales,
            {},
            digits_network.train,
            digits_network.validation,
            digits_network.preprocess,
            **{"epochs": epochs, "precision": "a4w4", "batch_size": 32, "lr": 1e-3, **kwargs},
        )

    return do


def test_fine_tuning_recovers_accuracy_and_keeps_the_best_epoch(digits_network, tuned):
    scales, found = tuned()
    assert len(found.top1) == 7
    assert found.top1[found.best_epoch] == max(found.top1)
    assert max(found.top1) > found.top1[0] + 0.1
    content = emit(
        digits_network.blocks, found.weights, precision="a4w4", scales=found.scales
    )  # what ships is as good as what was trained
    images = digits_network.preprocess(digits_network.validation.images, 8).contiguous().numpy()
    right = open_session(content, ORT).run(images).argmax(1) == digits_network.validation.labels.numpy()
    assert right.mean() == pytest.approx(max(found.top1))
    assert found.scales == scales


def test_the_same_seed_gives_the_same_weights(tuned):
    first, second, other = (tuned(epochs=1, seed=seed)[1] for seed in (3, 3, 4))
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert not all(np.array_equal(first.weights[name], other.weights[name]) for name in first.weights)


def test_training_that_does_harm_changes_nothing(digits_network, tuned):
    _, found = tuned(epochs=1, lr=10.0)
    assert found.best_epoch == 0
    assert all(np.array_equal(found.weights[name], values) for name, values in digits_network.weights.items())


def test_a_loss_that_is_not_finite_stops(digits_network, tuned):
    no_numbers = {name: np.full_like(values, np.nan) for name, values in digits_network.weights.items()}
    with pytest.raises(OfaError, match=r"the loss of fine-tuning is nan at step 0; choose a learning rate below 0\.001"):
        tuned(epochs=1, teacher=no_numbers)
