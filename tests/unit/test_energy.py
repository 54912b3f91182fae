"""Energy meters on made-up counters: no machine of ours has a real one."""

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latency.energy import EnergyError, Nvml, Rapl, find_meter, measure_energy_mj

RANGE_UJ = 262_143_328_850


def zone(root, name, label, energy_uj):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


@pytest.fixture
def tree(tmp_path):
    """Two packages, and what must not be added to them: a part of one, the platform around them, a second view of one."""
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "intel-rapl:0:0", "core", 10**6)
    zone(tmp_path, "intel-rapl:2", "psys", 10**6)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 10**6)
    counters = zone(tmp_path, "intel-rapl:0", "package-0", 10**6), zone(tmp_path, "intel-rapl:1", "package-1", 5 * 10**6)
    return tmp_path, counters


def test_packages_are_added_and_nothing_else(tree):
    root, (first, second) = tree
    meter = find_meter(root=root)
    assert meter.name == "RAPL, 2 processor packages"
    before = meter.read_mj()
    for counter in root.glob("*/energy_uj"):
        if counter not in (first, second):
            counter.write_text(str(10**9))
    first.write_text(str(10**6 + 3000))
    second.write_text(str(5 * 10**6 + 500))
    assert meter.read_mj() - before == pytest.approx(3.5)


def test_a_counter_that_starts_again_at_zero_goes_on(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1000)
    meter = find_meter(root=tmp_path)
    readings = [meter.read_mj()]
    for value in (RANGE_UJ - 500, 2500, 4500):
        counter.write_text(str(value))
        readings.append(meter.read_mj())
    assert [b - a for a, b in pairwise(readings)] == pytest.approx([0.5, 3.0, 2.0])


def test_measured_energy_is_gross_and_for_one_run(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    calls = []

    def call():
        calls.append(1)
        counter.write_text(str(2000 * len(calls)))

    assert measure_energy_mj(call, find_meter(root=tmp_path), seconds=0.2) == pytest.approx(2.0)  # the first call is not counted
    assert len(calls) > 2


def test_a_counter_that_stands_still_is_no_measurement(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    with pytest.raises(EnergyError, match=r"the counter did not move in 0.01 s"):
        measure_energy_mj(lambda: None, find_meter(root=tmp_path), seconds=0.01)


# -- no meter: one sentence says why --------------------------------------------------------------------------------


def why_not(capsys, **kwargs):
    assert find_meter(**kwargs) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_machine_without_counters_says_so(tmp_path, capsys):
    for root in (tmp_path / "powercap", tmp_path):
        assert "energy is not measured: " in why_not(capsys, root=root)


def test_a_counter_for_root_only_says_how_to_open_it(tmp_path, capsys, monkeypatch):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refuse(path, *args, **kwargs):  # the tests may run as root, who may read anything
        if path == counter:
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert f"may be read by root only; allow it: sudo chmod a+r {counter}" in why_not(capsys, root=tmp_path)


def test_unreadable_and_damaged_counters_say_so(tmp_path, capsys):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    counter.write_text("broken")
    assert "holds 'broken', expected microjoules" in why_not(capsys, root=tmp_path)
    counter.unlink()
    counter.mkdir()
    assert "cannot be read" in why_not(capsys, root=tmp_path)


def test_a_machine_without_an_nvidia_card_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pynvml, which reads NVIDIA cards, is not installed" in why_not(capsys, gpu=True)

    class NVMLError(Exception):
        pass

    def fail():
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail))
    assert "no NVIDIA card with an energy counter (Driver Not Loaded)" in why_not(capsys, gpu=True)


def test_nvml_counts_millijoules(monkeypatch):
    readings = iter([1000, 1000, 1250])
    nvml = SimpleNamespace(
        NVMLError=Exception,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda card: next(readings),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = find_meter(gpu=True)
    assert isinstance(meter, Nvml)
    assert not isinstance(meter, Rapl)
    before = meter.read_mj()
    assert meter.read_mj() - before == 250


def test_energy_follows_latency_by_a_line(trained, monkeypatch):
    """A device of 5 W that needs 0.2 mJ besides: limits on energy are limits on its line, and the file keeps it."""
    from dataclasses import replace

    from deploy.device import get_device
    from latency import energy_cost
    from latency.energy_cost import EnergyCost, with_energy
    from latency.table import LatencyTable
    from ofa.errors import OfaError

    table = LatencyTable.load(trained.latency_path("ort_cpu_1t"), trained.space)
    with pytest.raises(OfaError, match="holds no energy"):
        EnergyCost(table)
    networks = sorted(table.provenance["networks"], key=lambda n: n["measured_ms"])
    chosen = iter([networks[i]["measured_ms"] for i in np.linspace(0, len(networks) - 1, 8).round().astype(int)])
    monkeypatch.setattr(energy_cost, "measure_energy_mj", lambda call, meter, seconds: 5 * next(chosen) + 0.2)

    class Fake:
        name = "fake"

    priced = with_energy(table, get_device("ort_cpu_1t"), Fake())
    assert priced.energy["watts"] == pytest.approx(5)
    assert priced.energy["offset_mj"] == pytest.approx(0.2)
    assert priced.energy["rmspe"] < 1e-6
    population = trained.space.sample(np.random.default_rng(0), 20)
    np.testing.assert_allclose(EnergyCost(priced).predict(population), 5 * table.predict(population) + 0.2)
    assert replace(priced, energy=None) == replace(table, energy=None)


def test_table_file_keeps_energy(trained, tmp_path):
    from dataclasses import replace

    from latency.table import LatencyTable

    table = LatencyTable.load(trained.latency_path("ort_cpu_1t"), trained.space)
    energy = {"watts": 5.0, "offset_mj": 0.2, "rmspe": 0.01, "meter": "RAPL"}
    replace(table, energy=energy).save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json", trained.space).energy == energy
