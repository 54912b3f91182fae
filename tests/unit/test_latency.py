"""Timing statistics, the fit of a table, its file, and devices."""

import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kendalltau

from deploy.device import DeviceError, get_device, list_devices
from deploy.runtimes import open_session
from deploy.timing import clock_of, measure, median_interval, time_once
from latency.calibration import Calibration, FitError, leave_one_out_residuals
from latency.cost import CountCost
from latency.plan import spread_networks
from latency.profile import ProfileConfig, profile_space
from latency.table import LatencyTable, MissingBlockError
from latency.table_file import SCHEMA
from ofa.artefacts import ArtefactError, read_json
from ofa.errors import OfaError
from ofa.spaces import get_space

SPACE = get_space("mbv3_tiny_image")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    journal = tmp_path_factory.mktemp("profile") / "journal.jsonl"
    return profile_space(SPACE, get_device("ort_cpu_1t"), ProfileConfig(rounds=20), journal=journal)


def test_time_once_tells_waiting_from_working():
    cpu, wall = time_once(lambda: time.sleep(0.02))
    assert wall >= 20
    assert cpu < 10


def test_median_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [low <= 1.0 <= high for low, high in (median_interval(np.exp(rng.normal(size=41))) for _ in range(1000))]
    assert 0.94 <= np.mean(inside) <= 0.99  # exact order statistics: at least 95 %; three standard errors below


def test_measure_reports_the_asked_clock():
    found = measure(lambda: sum(range(1000)), clock="cpu", seconds=0.05)
    assert found.n >= 40
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.clock == "cpu"


def test_clock_is_cpu_time_for_one_thread_only():
    assert clock_of(get_device("ort_cpu_1t")) == "cpu"
    assert clock_of(get_device("ort_cpu_2t")) == "wall"


def test_calibration_recovers_the_law_that_made_the_times():
    design = np.random.default_rng(0).uniform(1, 10, (8, 3))
    measured = design @ [0.8, -0.05, 0.3] + 2
    calibration = Calibration.fit(design, measured)
    assert dataclasses.astuple(calibration) == pytest.approx((0.8, -0.05, 0.3, 2))
    assert calibration.predict(design) == pytest.approx(measured)
    assert leave_one_out_residuals(design, measured) == pytest.approx(np.zeros(8), abs=1e-9)


def test_calibration_weighs_errors_relatively():
    """Two networks of equal design, 1 ms and 3 ms: least squares of relative errors is the harmonic kind of mean, not 2."""
    design, measured = np.zeros((2, 3)), np.array([1.0, 3.0])
    assert Calibration.fit(design, measured).predict(design[:1])[0] == pytest.approx((1 / 1 + 1 / 3) / (1 / 1**2 + 1 / 3**2))


def test_fit_error_is_hand_arithmetic():
    predicted, measured = np.array([1.02, 2.0, 3.6]), np.array([1.0, 2.0, 3.0])
    error = FitError.of(predicted, measured)
    assert error.mape == pytest.approx((0.02 + 0 + 0.2) / 3)
    assert error.rmspe == pytest.approx(((0.02**2 + 0.2**2) / 3) ** 0.5)
    assert (error.within_5, error.within_10) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert error.kendall_tau == kendalltau(predicted, measured).statistic


def test_spread_networks_cover_the_range_of_macs():
    networks = spread_networks(SPACE, np.random.default_rng(0), 40)
    macs = CountCost("macs", SPACE).predict(networks)
    assert len(np.unique(networks, axis=0)) == 40
    np.testing.assert_array_equal(macs, np.sort(macs))
    assert macs[0] == CountCost("macs", SPACE)(SPACE.smallest)
    assert macs[-1] == CountCost("macs", SPACE)(SPACE.largest)
    assert np.diff(macs).max() < 0.25 * (macs[-1] - macs[0])


def test_table_adds_up_blocks_and_orders_networks(table):
    archs = [SPACE.smallest, SPACE.largest]
    c = table.calibration
    chains = [SPACE.blocks(arch).values() for arch in archs]
    macs = [CountCost("macs", SPACE)(arch) / 1e6 for arch in archs]
    by_hand = [
        c.per_ms * sum(table.entries[spec] for spec in chain) + c.per_block_ms * len(chain) + c.per_mmac_ms * m + c.offset_ms
        for chain, m in zip(chains, macs, strict=True)
    ]
    np.testing.assert_allclose(table.predict(SPACE.encode(archs)), by_hand)
    assert table(SPACE.smallest) < table(SPACE.largest)
    assert (table.upper(SPACE.encode(archs)) >= table.predict(SPACE.encode(archs))).all()


def test_table_states_its_error_on_networks_it_was_not_fitted_to(table):
    networks = table.provenance["networks"]
    assert sum(not n["fitted"] for n in networks) == table.error.n == len(table.validation) >= 20
    assert table.error.kendall_tau > 0.5  # a loaded machine; benchmarks/table_error.py asks for more
    predicted, measured = np.array(table.validation).T
    assert FitError.of(predicted, measured) == table.error


def test_table_file_round_trips(table, tmp_path):
    table.save(tmp_path / "t.json")
    again = LatencyTable.load(tmp_path / "t.json", SPACE)
    population = SPACE.sample(np.random.default_rng(0), 50)
    np.testing.assert_array_equal(again.predict(population), table.predict(population))
    assert again.error == table.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other/1"}, "schema is 'other/1'"),
        ({"space": "mbv3_small_image"}, "is a table of space 'mbv3_small_image', expected 'mbv3_tiny_image'"),
        ({"calibration": None}, "calibration = 'None'"),
        ({"calibration": {"per_ms": "1"}}, "calibration.per_ms = '1'"),
        ({"margin": float("nan")}, "holds NaN"),
        ({"error": {}}, r"error.n = .*required"),
        ({"entries": [{"block": {"kind": "conv"}, "ms": 1.0}]}, "missing 3 required"),
        ({"entries": []}, "at least 1 item"),
        ({"entries": 3}, "entries = '3'"),
        ({"more": 3}, "more = '3'"),
    ],
)
def test_damaged_table_is_refused(table, tmp_path, change, message):
    table.save(tmp_path / "t.json")
    content = read_json(tmp_path / "t.json", schema=SCHEMA)
    (tmp_path / "t.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ArtefactError, match=message):
        LatencyTable.load(tmp_path / "t.json", SPACE)


@pytest.mark.parametrize("ms", [-1, float("nan"), "fast", None, True])
def test_entry_that_is_no_latency_is_refused(table, tmp_path, ms):
    table.save(tmp_path / "t.json")
    content = read_json(tmp_path / "t.json", schema=SCHEMA)
    content["entries"][3]["ms"] = ms
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=r"entries\.3\.ms = |holds NaN"):
        LatencyTable.load(tmp_path / "t.json", SPACE)


def test_missing_block_is_an_error_that_names_it(table, tmp_path):
    table.save(tmp_path / "t.json")
    content = read_json(tmp_path / "t.json", schema=SCHEMA)
    del content["entries"][5]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(MissingBlockError, match=r"no entry for mbconv .*ofa profile RUN --device ort_cpu_1t"):
        LatencyTable.load(tmp_path / "t.json", SPACE)(SPACE.largest)


def test_interrupted_measurement_goes_on_from_its_journal(tmp_path):
    journal, device = tmp_path / "j.jsonl", get_device("ort_cpu_1t")
    first = profile_space(SPACE, device, ProfileConfig(rounds=3), journal=journal)
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_text("".join(lines[:3]) + lines[3][: len(lines[3]) // 2])  # killed in the middle of a line
    profile_space(SPACE, device, ProfileConfig(rounds=3), journal=journal)
    kept = journal.read_text().splitlines(keepends=True)
    assert kept[:3] == lines[:3]
    assert len(kept) == 5  # two rounds kept, the broken line, one new round
    again = profile_space(SPACE, device, ProfileConfig(rounds=3), journal=journal)
    assert journal.read_text().splitlines(keepends=True) == kept  # complete: nothing is timed again
    assert again.provenance["rounds"] == 3
    assert again.entries.keys() == first.entries.keys()
    journal.write_text(lines[0].replace('"plan":"', '"plan":"0') + "".join(lines[1:]))  # another machine's
    profile_space(SPACE, device, ProfileConfig(rounds=3), journal=journal)
    assert json.loads(journal.read_text().splitlines()[0])["plan"] == json.loads(lines[0])["plan"]
    assert list(journal.parent.glob("j.jsonl.*.old"))  # the other machine's is kept


@pytest.mark.parametrize("name", list_devices())
def test_every_shipped_device_loads_and_opens_a_session(name):
    from deploy.emit import emit

    device = get_device(name)
    if device.runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is an optional package")
    spec = next(iter(SPACE.blocks(SPACE.smallest).values()))
    session = open_session(emit({"stem": spec}, precision=device.graph_precision), device)
    out = session.run(np.ones((2, spec.in_channels, spec.resolution, spec.resolution), np.float32))
    assert out.shape == (2, spec.out_channels, spec.out_resolution, spec.out_resolution)


def test_device_files_are_checked(tmp_path):
    with pytest.raises(DeviceError, match=r"unknown device 'pi4'; known: .*ort_cpu_1t, ort_cpu_2t"):
        get_device("pi4")
    with pytest.raises(DeviceError, match="unknown device"):
        get_device("../devices/ort_cpu_1t")
    for content, message in (
        ('runtime = "onnxruntime"\nthreads = 2', "threads: Extra inputs are not permitted"),
        ('runtime = "onnxruntime"\nnum_threads = 0', "num_threads: Input should be greater than or equal to 1"),
        ("runtime = ", "not a device file"),
        ("num_threads = 1", "runtime: Field required"),
        ('runtime = "onnxruntime"\nname = "../../evil"', "'name' is not a field of the file"),
    ):
        (tmp_path / "d.toml").write_text(content)
        with pytest.raises(DeviceError, match=message):
            get_device(str(tmp_path / "d.toml"))
    (tmp_path / "d.toml").write_text('runtime = "onnxruntime"\nprovider = "NoProvider"')
    with pytest.raises(DeviceError, match="provider 'NoProvider' is not in this ONNX Runtime"):
        open_session(b"", get_device(str(tmp_path / "d.toml")))
    (tmp_path / "two words.toml").write_text('runtime = "onnxruntime"')
    with pytest.raises(DeviceError, match="name: String should match pattern"):
        get_device(str(tmp_path / "two words.toml"))
    (tmp_path / "d.toml").write_text('runtime = "tpu"')
    with pytest.raises(DeviceError, match="unknown runtime 'tpu'; known: onnxruntime, openvino, torch_eager"):
        open_session(b"", get_device(str(tmp_path / "d.toml")))


def test_too_few_rounds_are_refused():
    with pytest.raises(OfaError, match="rounds is 1, expected at least 3"):
        ProfileConfig(rounds=1)


def test_interval_of_a_drifting_machine_is_wide(monkeypatch):
    """Thousands of runs whose speed depends on when they ran are not thousands of independent observations."""
    import deploy.timing

    clock = iter(np.repeat(np.random.default_rng(0).normal(1, 0.1, 10_000), 50))  # the machine's state changes every 50 runs
    now = iter(np.arange(0, 1e6, 1e-3))
    monkeypatch.setattr(deploy.timing, "time_once", lambda call: (next(clock),) * 2)
    monkeypatch.setattr(deploy.timing, "time", SimpleNamespace(monotonic=lambda: next(now)))
    found = measure(lambda: None, clock="cpu", seconds=2.0)
    assert found.n > 1000
    assert found.high_ms - found.low_ms > 0.02  # 0.1 / sqrt(40) * 2 * 1.25 = 0.04 for 40 independent states
