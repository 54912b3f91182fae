"""Grids by hand, histograms against the values themselves, ranges that leave outliers out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import calibration
from deploy.calibration import METHODS, activation_ranges, grid, scales_of, squared_error
from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.errors import OfaError

RNG = np.random.default_rng(0)
NET = {
    "stem": BlockSpec("conv", 3, 8, 8, kernel_size=3, act="h_swish"),
    "block": BlockSpec("mbconv", 8, 8, 8, hidden_channels=16, kernel_size=3, act="relu", se=True, shortcut="identity"),
    "pool": BlockSpec("pool", 8, 8, 8),
    "head": BlockSpec("linear", 8, 4, 1, bias=True),
}
WEIGHTS = fold(build_network(NET).eval())


def images(n=20, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 8, 8), dtype=np.float32)


def ranges_of(values):
    """The histogram of some values, through a network that is one of its own inputs."""
    values = np.asarray(values, np.float32).reshape(-1, 1)
    block = {"head": BlockSpec("linear", 1, 1, 1)}
    return activation_ranges(block, {"head.weight": np.ones((1, 1), np.float32)}, [values])["images"]


def rounded(values, scale, zero_point, bits):
    return (np.clip(np.rint(values / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale


@pytest.mark.parametrize(
    ("low", "high", "bits", "expected"),
    [
        (-1, 3, 8, (4 / 255, 64)),  # 63.75 steps below zero
        (0, 15, 4, (1.0, 0)),
        (2, 6, 8, (6 / 255, 0)),  # zero is part of every range
        (-5, -1, 8, (5 / 255, 255)),
        (-1, 2, 2, (1.0, 1)),
        (-2, 2, 16, (4 / 65535, 32768)),
        (0, 0, 8, (1.0, 0)),
        (0, 1e-30, 8, (1.0, 0)),
    ],
)
def test_grid_by_hand(low, high, bits, expected):
    scale, zero_point = grid(low, high, bits)
    assert (scale, zero_point) == (pytest.approx(expected[0], rel=1e-7), expected[1])
    assert scale == np.float32(scale), "what the file stores"


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.sampled_from([2, 4, 8, 16]))
def test_zero_is_on_every_grid_and_the_ends_are_half_a_step_away_at_most(low, width, bits):
    scale, zero_point = grid(low, low + width, bits)
    assert 0 <= zero_point <= 2**bits - 1
    assert rounded(np.array(0.0), scale, zero_point, bits) == 0
    for end in (low, low + width):
        assert abs(rounded(np.array(end), scale, zero_point, bits) - end) <= 0.501 * scale + 1e-6 * abs(end)


def test_histogram_holds_every_value_in_its_bin():
    values = np.concatenate([RNG.standard_normal(3_000) * 10.0 ** RNG.integers(-6, 6, 3_000), np.zeros(50)]).astype(np.float32)
    found = ranges_of(values)
    assert (found.low, found.high, found.zeros) == (values.min(), values.max(), 50)
    assert found.counts.sum() == 3_000
    assert (found.left < found.right).all()
    assert (np.diff(found.left) > 0).all()
    assert (found.right - found.left <= 0.0079 * np.maximum(np.abs(found.left), np.abs(found.right))).all()
    for left, right, count in list(zip(found.left, found.right, found.counts, strict=True))[::40]:
        inside = (values >= left) & (values < right) if left >= 0 else (values > left) & (values <= right)
        assert inside.sum() == count


@pytest.mark.parametrize("most", [1, calibration.MAX_BYTES])
def test_ranges_are_those_of_all_tensors_however_the_images_are_cut(monkeypatch, most):
    monkeypatch.setattr(calibration, "MAX_BYTES", most)
    found = activation_ranges(NET, WEIGHTS, [images()[:3], images()[3:]])
    content = emit(NET, WEIGHTS)
    names = calibration.activation_names(content)
    assert set(found) == {"images", *names}
    ((_, whole),) = list(calibration.run_with_activations(content, [images()[:1]], names))  # parts grow from one image
    assert {name: values.shape[0] for name, values in whole.items()} == dict.fromkeys(names, 1)
    for name in names:
        parts = [part[name] for _, part in calibration.run_with_activations(content, [images()], names)]
        assert [len(part) for part in parts] == ([1] * 20 if most == 1 else [1, 19])
        values = np.concatenate(parts)
        assert (found[name].low, found[name].high) == (pytest.approx(values.min()), pytest.approx(values.max()))
        assert found[name].counts.sum() + found[name].zeros == values.size


def test_a_layer_without_weights_and_constant_tensors_still_make_a_file_that_computes():
    weights = {**WEIGHTS, "stem.weight": np.zeros_like(WEIGHTS["stem.weight"]), "stem.bias": np.zeros(8, np.float32)}
    weights["block.expand.weight"] = np.zeros_like(WEIGHTS["block.expand.weight"])
    weights["block.expand.bias"] = np.full(16, 2.0, np.float32)
    found = activation_ranges(NET, weights, [images()])
    for method in METHODS:
        scales = scales_of(found, 8, method)
        assert scales["stem.conv"] == scales["stem.act"] == (1.0, 0)
        assert scales["block.expand.conv"] == (pytest.approx(2 / 255), 0)
        content = emit(NET, weights, precision="int8", scales=scales)
        expected, out = (open_session(c, get_device("ort_cpu_1t")).run(images()) for c in (emit(NET, weights), content))
        assert np.abs(out - expected).max() < 0.05 * np.abs(expected).max()


def test_a_tensor_below_zero_has_zero_as_its_upper_end():
    for method in METHODS:
        scale, zero_point = scales_of({"x": ranges_of(-1 - RNG.random(1_000))}, 8, method)["x"]
        assert zero_point == 255
        assert scale == pytest.approx(2 / 255, rel=0.01)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_squared_error_is_that_of_rounding_the_values(bits, method):
    values = RNG.standard_t(3, 100_000).astype(np.float32)
    scale, zero_point = scales_of({"x": ranges_of(values)}, bits, method)["x"]
    expected = np.square(rounded(values.astype(np.float64), scale, zero_point, bits) - values).sum()
    assert squared_error(ranges_of(values), scale, zero_point, bits) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_beats_minmax_on_heavy_tails_and_is_near_the_best_there_is(bits):
    values = RNG.standard_t(4, 100_000).astype(np.float32)
    found = ranges_of(values)
    error = {
        method: squared_error(found, *scales_of({"x": found}, bits, method)["x"], bits)
        for method in ("minmax", "percentile", "mse")
    }
    assert error["mse"] < (0.9 if bits == 8 else 0.2) * error["minmax"]
    best = min(
        squared_error(found, *grid(found.low * a, found.high * b, bits), bits)
        for a in 0.9 ** np.arange(60)
        for b in 0.9 ** np.arange(60)
    )
    assert error["mse"] <= 1.02 * best


def test_percentile_leaves_one_value_in_ten_thousand_out_at_either_end():
    values = np.concatenate([RNG.uniform(-1, 2, 100_000), [1e6] * 5, [-1e5] * 8]).astype(np.float32)
    scale, zero_point = scales_of({"x": ranges_of(values)}, 8, "percentile")["x"]
    assert scale * 255 == pytest.approx(3, rel=0.01)
    assert zero_point == 85
    few = scales_of({"x": ranges_of(values[:50])}, 8, "percentile")["x"]  # fewer than ten thousand: nearly all of them
    assert few[0] == pytest.approx(scales_of({"x": ranges_of(values[:50])}, 8, "minmax")["x"][0], rel=0.02)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration has no images"),
        ([np.full((1, 3, 8, 8), np.nan, np.float32)], "activation images is not finite"),
        ([np.full((1, 3, 8, 8), 3e38, np.float32)], "activation [a-z.]+ is not finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(batches, message):
    with pytest.raises(OfaError, match=message):
        activation_ranges(NET, WEIGHTS, batches)


def test_an_unknown_method_is_refused():
    with pytest.raises(OfaError, match="unknown calibration method 'entropy'; known: minmax, percentile, mse"):
        scales_of({}, 8, "entropy")
