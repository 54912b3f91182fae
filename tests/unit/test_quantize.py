"""Quantisation that keeps its accuracy: what is chosen, which layers stay in float, and that every figure is the file's."""

import math

import numpy as np
import pytest
import torch

from deploy.bias_correction import corrected, layer_means
from deploy.calibration import activation_ranges, scales_of
from deploy.device import get_device
from deploy.divergence import divergence, sqnr_db
from deploy.emit import emit
from deploy.precision import PrecisionError
from deploy.quantize import quantize
from deploy.runtimes import open_session
from ofa.errors import OfaError

CPU = get_device("ort_cpu_1t")


def inputs(network, split="train"):
    return np.ascontiguousarray(network.preprocess(getattr(network, split).images, network.resolution).numpy())


def judge_of(network):
    images, labels = inputs(network, "validation"), network.validation.labels.numpy()
    return lambda predict: float(
        (np.concatenate([predict(part) for part in np.array_split(images, 3)]).argmax(1) == labels).mean()
    )


def run(network, content):
    return open_session(content, CPU).run(inputs(network, "validation"))


@pytest.fixture
def quantised(digits_network):
    """Quantise the network, or other weights of its blocks."""

    def do(weights=None, **kwargs):
        calibration = [inputs(digits_network)[:100], inputs(digits_network)[100:200]]
        weights = digits_network.weights if weights is None else weights
        return quantize(digits_network.blocks, weights, calibration, judge_of(digits_network), **kwargs)

    return do


def with_an_outlier(weights, factor=1e4):
    """The same function, but of one channel between `expand` and `depthwise` the activations are enormous."""
    found = {name: values.copy() for name, values in weights.items()}
    found["block0.expand.weight"][0] *= factor
    found["block0.expand.bias"][0] *= factor
    found["block0.depthwise.weight"][0] /= factor
    return found


def test_figures_are_those_of_the_emitted_file(digits_network, quantised):
    found = quantised(max_drop=math.inf)
    content = emit(digits_network.blocks, found.weights, precision="int8", scales=found.scales, layers=found.layers)
    out, expected = run(digits_network, content), run(digits_network, emit(digits_network.blocks, digits_network.weights))
    labels = digits_network.validation.labels.numpy()
    assert found.layers == {}
    assert found.top1_quantised == pytest.approx((out.argmax(1) == labels).mean())
    assert found.top1_fp32 == pytest.approx((expected.argmax(1) == labels).mean())
    assert found.agreement == pytest.approx((out.argmax(1) == expected.argmax(1)).mean())
    assert found.sqnr_db == pytest.approx(10 * np.log10((expected**2).mean() / ((out - expected) ** 2).mean()), abs=1e-3)
    assert found.agreement > 0.97
    assert found.sqnr_db > 20


def test_the_choice_is_the_nearest_to_fp32_of_all_that_were_tried(quantised):
    found = quantised(max_drop=math.inf)
    *ranges, last = found.tried
    assert len(ranges) == 6, "three methods, with biases corrected and without"
    nearest = min(ranges, key=lambda trial: trial.error)
    assert nearest.what.startswith(f"ranges: {found.method}")
    assert nearest.what.endswith("biases corrected") == found.bias_corrected
    assert last.error == nearest.error
    assert last.top1 == found.top1_quantised


def test_fallback_finds_the_layer_that_is_broken_and_keeps_the_limit(digits_network, quantised):
    broken = with_an_outlier(digits_network.weights)
    lost = quantised(broken, max_drop=math.inf)
    assert lost.layers == {}
    assert lost.drop > 0.3, "or there is nothing to find"
    found = quantised(broken, max_drop=0.01)
    assert found.layers == {"block0.depthwise": "fp32"}
    assert found.drop <= 0.01
    assert found.tried[-1].what == "block0.depthwise in float"
    assert found.tried[-1].error < 0.01 * found.tried[-2].error
    assert found.tried[-1].top1 == found.top1_quantised


def test_small_layers_that_cause_much_of_the_error_stay_in_float_whatever_top1_says(monkeypatch, digits_network, quantised):
    uneven = with_an_outlier(digits_network.weights, factor=50)
    before = quantised(uneven, max_drop=0.5)
    assert before.layers == {}, "no layer of this network is small beside the others"
    assert before.drop <= 0.5
    monkeypatch.setattr("deploy.quantize.SMALL", 0.1)
    found = quantised(uneven, max_drop=0.5)
    assert found.layers == {"block0.depthwise": "fp32"}
    (outlier,) = (trial for trial in found.tried if trial.what == "block0.depthwise in float")
    assert outlier.error < 0.5 * next(trial.error for trial in before.tried if trial.what == "judged")
    assert quantised(uneven, max_drop=math.inf).layers == {}, "before fine-tuning none does"


@pytest.mark.parametrize("max_drop", [0.0, 0.02, 0.1])
def test_max_drop_is_kept_whatever_it_is(quantised, max_drop):
    found = quantised(precision="a4w4", max_drop=max_drop)
    assert found.drop <= max_drop + 1e-9
    assert set(found.layers.values()) <= {"fp32"}
    tops = [trial.top1 for trial in found.tried if trial.top1 is not None]
    assert len(tops) == 1 + len(found.layers)
    assert all(found.top1_fp32 - top1 > max_drop for top1 in tops[:-1]), "no layer stays in float without need"


def test_layers_that_were_asked_for_keep_their_precision(digits_network, quantised):
    found = quantised(with_an_outlier(digits_network.weights), max_drop=0.01, layers={"head": "a16w8", "stem": "fp32"})
    assert found.layers == {"head": "a16w8", "stem": "fp32", "block0.depthwise": "fp32"}


def test_given_scales_are_used_as_they_are_and_biases_left_alone(digits_network, quantised):
    scales = scales_of(activation_ranges(digits_network.blocks, digits_network.weights, [inputs(digits_network)]), 8, "minmax")
    found = quantised(scales=scales, max_drop=math.inf)
    assert (found.method, found.bias_corrected, found.scales) == ("given", False, scales)
    assert found.weights is digits_network.weights


def test_reference_is_what_the_drop_is_counted_from(digits_network, quantised):
    worse = {name: values * (0.3 if name.startswith("stem") else 1) for name, values in digits_network.weights.items()}
    found = quantised(worse, reference=digits_network.weights, max_drop=math.inf)
    assert found.top1_fp32 == quantised(max_drop=math.inf).top1_fp32
    assert found.drop > 0.02
    with pytest.raises(
        OfaError, match=r"int8 loses [0-9.]+ points of top-1 even with its layers in float, expected at most 1\.00"
    ):
        quantised(worse, reference=digits_network.weights, max_drop=0.01)


def test_corrected_biases_give_each_channel_its_mean(digits_network):
    images = inputs(digits_network)[:64]
    ranges = activation_ranges(digits_network.blocks, digits_network.weights, [images])
    kwargs = {"precision": "a8w3", "scales": scales_of(ranges, 8, "minmax")}
    means = layer_means(emit(digits_network.blocks, digits_network.weights), images)
    before = emit(digits_network.blocks, digits_network.weights, **kwargs)
    weights = corrected(digits_network.weights, before, images, means)
    after = emit(digits_network.blocks, weights, **kwargs)
    for name in ("block0.project.conv", "block1.se.expand.conv", "head.gemm"):
        size = means[name].abs().max()
        shift, left = ((layer_means(content, images)[name] - means[name]).abs().max() / size for content in (before, after))
        assert left < 0.2 * shift, name  # biases themselves are rounded
    assert all(
        np.array_equal(weights[name], values) for name, values in digits_network.weights.items() if name.endswith("weight")
    )


def test_divergence_and_signal_to_noise_by_hand():
    expected, found = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.25, 0.75], [0.25, 0.75]])
    by_hand = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert divergence(found + 3, expected - 1) == pytest.approx(by_hand)  # a shift of all logits changes no probability
    assert divergence(np.array([[1000.0, 0.0]]), np.array([[0.0, 1000.0]])) == pytest.approx(1000)
    assert sqnr_db(np.array([[1.1, -1.0]]), np.array([[1.0, -1.0]])) == pytest.approx(10 * math.log10(2 / 0.01))


def test_what_cannot_be_quantised_is_refused(digits_network, quantised):
    with pytest.raises(PrecisionError, match="precision fp16 is none in integers, expected int8, a16w8"):
        quantised(precision="fp16")
    with pytest.raises(OfaError, match="7 calibration images, expected at least 8"):
        quantize(digits_network.blocks, digits_network.weights, [inputs(digits_network)[:7]], judge_of(digits_network))
    with pytest.raises(OfaError, match="layer 'nothing' is not one of this network"):
        quantised(layers={"nothing": "fp32"})


def test_the_same_images_give_the_same_file(digits_network, quantised):
    first, second = (quantised(max_drop=math.inf) for _ in range(2))
    files = [
        emit(digits_network.blocks, found.weights, precision="int8", scales=found.scales, layers=found.layers)
        for found in (first, second)
    ]
    assert files[0] == files[1]
    assert torch.get_num_threads() > 0
