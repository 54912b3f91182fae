"""From what a device measured to its table: merging, reuse, interpolation, freshness, and devices behind ssh."""

import copy
import json
import os
import stat
import sys
import time

import numpy as np
import pytest

from deploy.device import get_device
from latency import agent, remote
from latency.calibration import interval_margin
from latency.freshness import judge, require_usable
from latency.plan import Networks, make_plan, reachable_blocks, timed_resolutions
from latency.profile import ProfileConfig, merge_results, plan_space, profile_space, write_plan
from latency.remote import Remote, RemoteError, measure_there, parse_remote
from latency.results import check_results, fit_table, read_results
from latency.table import LatencyTable, MissingBlockError
from latency.table_file import SCHEMA
from ofa.artefacts import ArtefactError, read_json, write_json
from ofa.counts import block_macs
from ofa.errors import OfaError
from ofa.spaces import get_space

SPACE = get_space("mbv3_tiny_image")
CPU = get_device("ort_cpu_1t")
MADE = {"measured_by": "here", "command": "ofa profile RUN --device x --fresh"}


def law(spec):
    """A device that computes 2 million multiply-adds a millisecond and needs 5 us a block, 8 us if it is run alone."""
    return block_macs(spec) / 2e6 + 0.005


def results_of(plan, space, *, factor=1.0, spread=0.0, failing=()):
    """What an agent would write for a device that obeys `law`, times a factor and noise."""
    rng = np.random.default_rng(0)
    items, failed = {}, {}
    specs = {item["id"]: item for item in plan.manifest["items"]}
    for name, item in specs.items():
        if name in failing:
            failed[name] = "no such operator"
            continue
        if item["kind"] == "block":
            ms = law(next(s for s in space.all_blocks if s.to_dict() == item["block"])) + 0.003
        else:
            ms = sum(map(law, space.blocks(space.from_values(item["arch"])).values())) + 0.02
        ms *= factor * np.exp(rng.normal(0, spread))
        quantiles = {f"p{q}": ms for q in agent.QUANTILES}
        items[name] = {"n": 9, "disturbed": 0.0, "noisy": False, "ms": quantiles, "wall_ms": quantiles}
    return {
        "schema": "ofa.results/1",
        "plan": {"id": plan.id, **plan.manifest},
        "agent": 1,
        "device": plan.manifest["device"],
        "runtime": {"name": "onnxruntime", "version": "1.2.3"},
        "host": {"name": "board", "cpu": "slow"},
        "clock": "cpu",
        "conditions": None,
        "measured": "2026-11-22",
        "rounds": 9,
        "seconds": 60.0,
        "anchor_ms": 1.0,
        "drift": 0.0,
        "clock_faults": 0,
        "items": items,
        "failed": failed,
    }


@pytest.fixture(scope="module")
def plan():
    return plan_space(SPACE, CPU, ProfileConfig())


@pytest.fixture(scope="module")
def results(plan):
    return results_of(plan, SPACE)


@pytest.fixture
def run(trained, tmp_path):
    """The run of the shared fixture with a latency folder of its own."""
    import shutil

    from ofa.run_dir import Run

    shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("latency", "search", "export"))
    return Run(tmp_path / "run")


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merged_results_become_a_table_that_obeys_the_law_of_the_device(run, results, tmp_path):
    write_json(tmp_path / "results.json", results)
    merge_results(run, tmp_path / "results.json", "jetson")
    table = LatencyTable.load(run.latency_path("jetson"), run.space)
    population = SPACE.sample(np.random.default_rng(1), 200)
    expected = [sum(map(law, SPACE.blocks(arch).values())) + 0.02 for arch in SPACE.decode(population)]
    np.testing.assert_allclose(table.predict(population), expected, rtol=1e-6)
    assert table.error.rmspe < 1e-6
    assert table.device == "jetson"
    assert table.provenance["device"]["name"] == "ort_cpu_1t"
    assert table.provenance["runtime"]["version"] == "1.2.3"


def set_in(value, path, new):
    """Set a nested entry; a callable makes it of the old one."""
    *parents, last = path
    for key in parents:
        value = value[key]
    value[last] = new(value[last]) if callable(new) else new


FIRST = ("items", "block_00000", "ms")


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("schema",), "other/1", "schema is 'other/1'"),
        (("items",), {}, "graphs are missing, block_00000 first; run the agent again"),
        (("items", "block_99999"), {}, "items.block_99999"),
        (("failed",), {"block_99999": "why"}, "block_99999 was never planned"),
        (("items",), [], "items = "),
        ((*FIRST, "p25"), -1.0, "greater than or equal to"),
        ((*FIRST, "p25"), 0, "greater than or equal to"),
        ((*FIRST, "p100"), 1e308, "less than or equal to"),
        ((*FIRST, "p25"), "fast", "valid number"),
        ((*FIRST, "p25"), True, "valid number"),
        ((*FIRST, "p25"), None, "valid number"),
        ((*FIRST, "p0"), 1e9, "rising order"),
        (FIRST, {"p25": 1.0}, "nine quantiles"),
        (FIRST, {"p26": 1.0}, "p26"),
        (("items", "block_00000", "n"), 0, "greater than or equal to 1"),
        (("drift",), "much", "valid number"),
        (("clock",), "sundial", "'cpu' or 'wall'"),
        (("plan", "items", 0, "block"), {"kind": "conv"}, "is damaged|BlockSpec|missing"),
        (("plan", "items", 0, "block", "kernel_size"), "big", "kernel_size"),
        (("plan", "space"), "mbv3_small_image", "are of space 'mbv3_small_image', this run is of 'mbv3_tiny_image'"),
        (("plan", "items", -1, "arch"), {"resolution": 16}, "no value for"),
    ],
)
def test_results_that_cannot_be_believed_are_refused(run, results, tmp_path, path, new, message):
    damaged = copy.deepcopy(results)
    set_in(damaged, path, new)
    (tmp_path / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(OfaError, match=message) as caught:
        merge_results(run, tmp_path / "results.json", "jetson")
    assert "\n" not in str(caught.value)
    assert not run.latency_path("jetson").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "holds NaN, which is no number"),
        ("Infinity", "holds Infinity, which is no number"),
        ("1e999", "holds 1e999, which is too large"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(results, tmp_path, text, message):
    data = json.dumps(results)
    value = json.dumps(results["items"]["block_00000"]["ms"]["p100"])
    (tmp_path / "r.json").write_text(data.replace(f'"p100": {value}', f'"p100": {text}', 1))
    with pytest.raises(ArtefactError, match=message):
        read_results(tmp_path / "r.json")


def test_results_that_hold_a_name_twice_are_refused(results, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(results).replace('"items": {"block_00001"', '"items": {"block_00000"', 1))
    text = json.dumps(results)
    first = json.dumps({"block_00000": results["items"]["block_00000"]})[1:-1]
    (tmp_path / "r.json").write_text(text.replace(first, f"{first}, {first}", 1))
    with pytest.raises(ArtefactError, match="holds 'block_00000' twice"):
        read_results(tmp_path / "r.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\x00" * 100, b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"null", b"\xff\xfe"])
def test_files_that_are_no_results_are_refused_at_once(tmp_path, data):
    (tmp_path / "r.json").write_bytes(data)
    began = time.process_time()
    with pytest.raises(ArtefactError) as caught:
        read_results(tmp_path / "r.json")
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 1


def test_a_gigabyte_is_not_read(tmp_path):
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(2**30)
    began = time.process_time()
    with pytest.raises(ArtefactError, match="larger than 64 MiB"):
        read_results(tmp_path / "r.json")
    assert time.process_time() - began < 0.5


def test_blocks_that_the_device_cannot_run_are_said_and_never_priced(run, plan, tmp_path):
    lost = next(i for i in plan.manifest["items"] if i["kind"] == "block" and i["block"]["kernel_size"] == 7)
    spec = next(s for s in SPACE.all_blocks if s.to_dict() == lost["block"])
    holding = {
        item["id"]
        for item in plan.manifest["items"]
        if item["kind"] == "network" and spec in SPACE.blocks(SPACE.from_values(item["arch"])).values()
    }
    write_json(tmp_path / "r.json", results_of(plan, SPACE, failing={lost["id"], *holding}))
    table = merge_results(run, tmp_path / "r.json", "old")
    again = LatencyTable.load(run.latency_path("old"), SPACE)
    assert table.failed == again.failed == {spec: "no such operator"}
    population = SPACE.sample(np.random.default_rng(0), 400)
    has_it = np.array([spec in SPACE.blocks(arch).values() for arch in SPACE.decode(population)])
    assert 0 < has_it.sum() < 400
    assert np.isfinite(again.predict(population[~has_it])).all()
    with pytest.raises(MissingBlockError, match=r"old could not run the block mbconv .* \(no such operator\)"):
        again.predict(population)


def test_too_few_networks_make_no_table(plan):
    networks = [item["id"] for item in plan.manifest["items"] if item["kind"] == "network"]
    found = check_results(results_of(plan, SPACE, failing=set(networks[:17])), "here")
    with pytest.raises(OfaError, match=r"3 networks to fit a table on .* at least 5 of each are needed \(no such operator\)"):
        fit_table(SPACE, found, device="x", **MADE)


def test_intervals_hold_as_many_networks_as_they_say(plan):
    """Noise of 3 % on every block and network: over many devices, nine networks in ten lie inside."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        residuals = rng.normal(0, 0.03, 20)
        inside.append(np.mean(np.abs(rng.normal(0, 0.03, 50)) <= interval_margin(residuals)))
    # 16 instead of 20 degrees of freedom: the residuals of a real fit hold its four coefficients
    assert 0.89 <= np.mean(inside) <= 0.93
    table = fit_table(SPACE, check_results(results_of(plan, SPACE, spread=0.03), "here"), device="x", **MADE)
    population = SPACE.sample(rng, 2000)
    truth = np.array([sum(map(law, SPACE.blocks(arch).values())) + 0.02 for arch in SPACE.decode(population)])
    measured = truth * np.exp(rng.normal(0, 0.03, len(truth)))
    low, high = table.interval(population).T
    assert 0.82 <= ((low <= measured) & (measured <= high)).mean() <= 0.97  # one draw of 20 residuals
    assert (table.upper(population) == high).all()


# -- input sizes ------------------------------------------------------------------------------------------------------


def test_input_sizes_between_are_interpolated_in_area():
    space = get_space("ofa_mbv3_w1_0")
    sides = timed_resolutions(space)
    assert sides == (128, 184, 224)  # 184: nearest to the middle in area
    blocks = reachable_blocks(space, sides)
    assert len(blocks) < len(space.all_blocks) / 4
    entries = {spec: law(spec) for spec in blocks}
    table = LatencyTable(space, "x", entries)
    population = space.sample(np.random.default_rng(0), 300)
    exact = np.array([sum(map(law, space.blocks(arch).values())) for arch in space.decode(population)])
    # a sum of multiply-adds is linear in area but for rounding of odd sides
    np.testing.assert_allclose(table.predict(population), exact, rtol=0.02)
    at_timed = np.isin([space.resolution(a) for a in space.decode(population)], sides)
    assert 0 < at_timed.sum() < 300
    np.testing.assert_allclose(table.predict(population[at_timed]), exact[at_timed], rtol=1e-12)
    assert not table.is_interpolated(population[at_timed]).any()
    assert table.is_interpolated(population[~at_timed]).all()


def test_input_sizes_beyond_are_an_error():
    space = get_space("ofa_mbv3_w1_0")
    table = LatencyTable(space, "x", {spec: law(spec) for spec in reachable_blocks(space, (160, 192))})
    with pytest.raises(
        MissingBlockError, match=r"no entry for conv 3->16 .* r224; nearest: conv 3->16 .* r192; .*measure a device of your own"
    ):
        table(space.largest)


def test_planned_blocks_are_what_the_space_can_reach():
    every = reachable_blocks(SPACE, timed_resolutions(SPACE))
    assert set(every) == set(SPACE.all_blocks)
    assert len(set(reachable_blocks(SPACE, (16,)))) < len(every)


# -- reuse ------------------------------------------------------------------------------------------------------------


def test_known_blocks_are_not_timed_again_and_take_the_speed_of_this_session(plan):
    first = fit_table(SPACE, check_results(results_of(plan, SPACE), "here"), device="x", **MADE)
    again = plan_space(SPACE, CPU, ProfileConfig(), known=first.entries)
    assert sum(item["kind"] == "block" for item in again.manifest["items"]) == 12
    slower = check_results(results_of(again, SPACE, factor=1.3), "here")
    table = fit_table(SPACE, slower, device="x", known=first.entries, **MADE)
    assert table.entries.keys() == first.entries.keys()
    assert table.entries == pytest.approx({spec: 1.3 * ms for spec, ms in first.entries.items()})
    assert table.error.rmspe < 1e-6


def test_reuse_wants_the_same_machine_and_settings(run, results, tmp_path, cli):
    write_json(tmp_path / "r.json", results)
    merge_results(run, tmp_path / "r.json", "jetson")
    process = cli("profile", run.path, "--reuse", run.latency_path("jetson"))
    assert process.returncode == 1
    assert "was measured with runtime {'name': 'onnxruntime', 'version': '1.2.3'}" in process.stderr


# -- freshness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0, 1.01, 0.99, 1.02, 1.0, 0.98], "fresh"),
        ([1.2, 1.21, 1.19, 1.2, 1.22, 1.2], "rescaled"),
        ([0.8, 0.81, 0.79, 0.8, 0.8, 0.82], "rescaled"),
        ([1.0, 1.0, 1.3, 1.0, 1.0, 1.0], "stale"),
    ],
)
def test_verdict_on_a_table(ratios, verdict):
    then = np.array([1.0, 2, 3, 4, 5, 6])
    found = judge(then, then * ratios)
    assert found.verdict == verdict
    assert found.factor == pytest.approx(np.median(ratios))


def test_table_of_another_version_thread_count_or_precision_is_refused(run, tmp_path):
    journal = tmp_path / "j"
    table = profile_space(SPACE, CPU, ProfileConfig(rounds=3, num_calibration=5, num_validation=5), journal=journal)
    path = run.latency_path("ort_cpu_1t")
    table.save(path)
    require_usable(table, path)
    for change, words in [
        ({"runtime": {"name": "onnxruntime", "version": "1.2.3"}}, r"measured with onnxruntime 1\.2\.3, this is"),
        ({"device": {**table.provenance["device"], "num_threads": 4}}, "measured with num_threads 4, ort_cpu_1t has 1"),
        ({"device": {**table.provenance["device"], "precision": "int8"}}, "measured with precision int8, ort_cpu_1t has fp32"),
    ]:
        content = read_json(path, schema=SCHEMA)
        content["provenance"].update(change)
        (tmp_path / "t.json").write_text(json.dumps(content))
        with pytest.raises(OfaError, match=f"{words}.*measure anew: ofa profile RUN --device ort_cpu_1t --fresh"):
            require_usable(LatencyTable.load(tmp_path / "t.json", SPACE), tmp_path / "t.json")


def test_check_puts_a_table_right(run, tmp_path, cli):
    """A table that says twice the truth; what is measured now tells, whatever else this machine does meanwhile."""
    table = profile_space(SPACE, CPU, ProfileConfig(rounds=10, num_calibration=6, num_validation=6), journal=tmp_path / "j")
    from latency.freshness import rescaled_table

    wrong = rescaled_table(table, 4.0)
    path = run.latency_path("ort_cpu_1t")
    wrong.save(path)
    process = cli("profile", run.path, "--check", path, "--json")
    found = json.loads(process.stdout)
    assert 0.1 < found["factor"] < 0.5
    assert found["verdict"] in ("rescaled", "stale")
    right = LatencyTable.load(path, run.space)
    if found["verdict"] == "rescaled":
        assert process.returncode == 0
        assert right(SPACE.largest) == pytest.approx(found["factor"] * wrong(SPACE.largest))
        assert right.provenance["rescaled"][-1]["factor"] == pytest.approx(found["factor"])
    else:
        assert process.returncode == 1
        assert "is stale; measure anew" in process.stderr


# -- devices elsewhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ort_cpu_1t", None),
        ("pi4=ssh:pi@host", Remote("pi4", "ssh", "pi@host")),
        ("pi4=ssh:pi@192.168.0.7", Remote("pi4", "ssh", "pi@192.168.0.7")),
        ("phone=adb:R58M123ABC", Remote("phone", "adb", "R58M123ABC")),
        ("phone=adb:192.168.0.9:5555", Remote("phone", "adb", "192.168.0.9:5555")),
    ],
)
def test_device_elsewhere_is_read(text, expected):
    assert parse_remote(text) == expected


@pytest.mark.parametrize(
    "text", ["pi=", "pi=ssh:", "pi=telnet:x", "../x=ssh:h", "=ssh:h", "pi=ssh:-oProxyCommand=x", "pi=ssh:a b"]
)
def test_device_elsewhere_that_cannot_be_read(text):
    with pytest.raises(RemoteError, match="expected NAME=ssh:USER@HOST or NAME=adb:SERIAL"):
        parse_remote(text)


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A device behind a fake ssh: its home is a folder, and `faults` are shell lines that run first."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    home.mkdir()
    tools.mkdir()

    def make(faults=""):
        script = f'#!/bin/sh\nfor last; do :; done\ncd "{home}"\n{faults}\nexec sh -c "$last"\n'
        (tools / "ssh").write_text(script)
        (tools / "ssh").chmod(stat.S_IRWXU)

    make()
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return Remote("pi4", "ssh", "pi@host", python=sys.executable), home, make


@pytest.fixture(scope="module")
def small_plan():
    rng = np.random.default_rng(0)
    return make_plan(SPACE, CPU, reachable_blocks(SPACE, [16])[:8], Networks.spread(SPACE, rng, 5, 5))


def test_device_behind_ssh_is_measured(far, small_plan, tmp_path):
    there, home, _ = far
    out = measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)
    found = read_results(out)
    assert len(found.items) == 18
    (folder,) = (home / ".cache" / "ofa-agent").iterdir()
    assert folder.name == small_plan.id[:16]
    assert (folder / "results.json").read_bytes() == out.read_bytes()


def test_connection_that_breaks_off_goes_on_where_it_was(far, small_plan, tmp_path):
    there, home, make = far
    make('case "$last" in *agent.py\\ plan.zip*) sh -c "$last" & sleep 2; kill $!; exit 255;; esac')
    with pytest.raises(RemoteError, match="kept there: give the same command again"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=60, rounds=2000)
    (journal,) = home.rglob("results.json.journal")
    kept = journal.read_bytes()
    assert kept.count(b"samples") > 0
    make()
    measure_there(there, small_plan, tmp_path / "out.json", budget_s=1, rounds=3)
    assert journal.read_bytes().startswith(kept.rpartition(b"\n")[0])


def test_device_that_hangs(far, small_plan, tmp_path):
    there, _, make = far
    make('case "$last" in *agent.py\\ plan.zip*) exec sleep 60;; esac')
    began = time.monotonic()
    with pytest.raises(RemoteError, match="silent for 1 s"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3, silence_s=1)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out.json").exists()


def test_transfer_that_hangs(far, small_plan, tmp_path, monkeypatch):
    there, _, make = far
    make("exec sleep 60")
    monkeypatch.setattr(remote, "TRANSFER_S", 0.5)
    with pytest.raises(RemoteError, match="no answer from pi@host"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)


def test_half_of_the_output_is_lost(far, small_plan, tmp_path):
    there, _, make = far
    make('case "$last" in *cat\\ *results.json) sh -c "$last" | head -c 1000; exit 0;; esac')
    with pytest.raises(RemoteError, match=r"arrived damaged \(9\d\d bytes\)"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)
    assert not (tmp_path / "out.json").exists()
    make()
    measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)


def test_device_that_cannot_be_reached_or_lacks_python(far, small_plan, tmp_path, monkeypatch):
    there, _, make = far
    make("echo 'ssh: connect to host host port 22: Connection refused' >&2; exit 255")
    with pytest.raises(RemoteError, match="Connection refused"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)
    make()
    with pytest.raises(RemoteError, match="no-such-python"):
        measure_there(Remote("pi4", "ssh", "h", python="no-such-python"), small_plan, tmp_path / "o", budget_s=5, rounds=3)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RemoteError, match="ssh is not installed here"):
        measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3)


# -- from the shell ---------------------------------------------------------------------------------------------------


def test_plan_agent_merge_predict_from_the_shell(run, cli, tmp_path):
    """The whole way of a device without our code, each command as a user gives it."""
    import subprocess

    device = tmp_path / "device"
    process = cli("profile", run.path, "--plan", device / "plan.zip")
    assert process.returncode == 0, process.stderr
    assert "python agent.py plan.zip -o results.json" in process.stderr
    assert sorted(path.name for path in device.iterdir()) == ["agent.py", "plan.zip"]
    assert (device / "plan.zip").stat().st_size < 2**20
    command = [sys.executable, "agent.py", "plan.zip", "-o", "results.json", "--rounds", "3"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=device, check=True, capture_output=True, env=environment)
    process = cli("profile", run.path, "--merge", device / "results.json", "--as", "jetson", "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["tables"][0]["device"] == "jetson"
    write_json(tmp_path / "arch.json", run.space.to_json(run.space.largest))
    process = cli("predict", run.path, "--arch", tmp_path / "arch.json", "--device", "jetson", "--json")
    assert process.returncode == 0, process.stderr
    (found,) = json.loads(process.stdout)["predictions"]
    table = LatencyTable.load(run.latency_path("jetson"), run.space)
    assert found["latency_ms"] == pytest.approx(table(run.space.largest))
    assert found["interval_ms"][0] < found["latency_ms"] < found["interval_ms"][1]
    assert sum(block["latency_ms"] for block in found["blocks"]) + table.offset == pytest.approx(found["latency_ms"])
    assert "█" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge", "r.json"], "--merge needs a name for the device: --as NAME"),
        (["--merge", "r.json", "--as", "x"], "r.json: no such file"),
        (["--merge", "r.json", "--plan", "p.zip"], "--plan and --merge: expected one of them at a time"),
        (["--as", "x"], "--as has no effect here"),
        (["--merge", "r.json", "--as", "x", "--fresh"], "--fresh has no effect with --merge"),
        (["--plan", "p.zip", "--reuse", "t.json"], "--reuse has no effect with --plan"),
        (["--merge", "r.json", "--as", "ort_cpu_1t"], "is a device of this machine"),
        (["--device", "ort_cpu_2t=ssh:host"], "is a device of this machine"),
        (["--device", "ort_cpu_1t", "--device", "typo"], "unknown device 'typo'"),
        (["--plan", "p.zip", "--device", "openvino_1t"], "agent.py has onnxruntime only"),
        (["--plan", "p.zip", "--precision", "bf16"], "agent.py runs fp32, fp16, int8, a16w8"),
        (["--python", "/x/python"], "--settings and --python are for devices behind ssh or adb"),
        (["--import", "x.json", "--as", "y"], "--import needs --format"),
        (["--check", "no.json"], "no.json: no such file"),
        (["--budget", "soon"], "budget 'soon': expected a time"),
        (["--resolutions", "big"], "--resolutions 'big': expected whole numbers"),
        (["--resolutions", "17"], "has no input size 17"),
        (["--resolutions", "16"], "expected the smallest and the largest of mbv3_tiny_image among them, 8 and 16"),
        (["--device", "pi=ftp:x"], "expected NAME=ssh:USER@HOST"),
        (["--precision", "fp99"], "precision"),
    ],
)
def test_bad_arguments_get_one_line(run, cli, arguments, message):
    process = cli("profile", run.path, *arguments)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert message in process.stderr.splitlines()[-1]


def test_plan_for_a_runtime_that_the_agent_lacks(run, tmp_path):
    (tmp_path / "vino.toml").write_text('runtime = "openvino"\n')
    with pytest.raises(OfaError, match=r"agent\.py has onnxruntime only"):
        write_plan(run, str(tmp_path / "vino.toml"), tmp_path / "plan.zip")


def test_file_for_a_device_elsewhere_is_not_timed_here(trained, results, cli, tmp_path):
    """Found under the limit of a merged table, the proof says what was predicted, not what this machine takes."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    write_json(tmp_path / "results.json", results)
    assert cli("profile", run, "--merge", tmp_path / "results.json", "--as", "jetson").returncode == 0
    process = cli("search", run, "--where", "latency@jetson <= 1ms", "--evals", 20, "--rounds", 1, "--tag", "far")
    assert process.returncode == 0, process.stderr
    assert cli("export", run / "search" / "far" / "best", "-o", tmp_path / "out").returncode == 0
    process = cli("verify", tmp_path / "out" / "model.onnx", "--json")
    assert process.returncode == 0, process.stderr
    (check,) = [c for c in json.loads(process.stdout)["checks"] if c["name"] == "latency@jetson"]
    assert "jetson is not this machine, so the file was not timed on it" in check["detail"]
    process = cli("verify", tmp_path / "out" / "model.onnx", "--where", "latency@jetson <= 1us")
    assert process.returncode == 4
    process = cli("verify", tmp_path / "out" / "model.onnx", "--where", "latency@nowhere <= 1ms")
    assert process.returncode == 1
    assert "unknown device 'nowhere'" in process.stderr
    process = cli("report", run)
    assert process.returncode == 0, process.stderr
    assert "Latency on jetson" in (run / "report.html").read_text()


def test_search_keeps_to_the_networks_that_a_table_prices(trained, cli, tmp_path):
    """A table of one input size only: the search stays inside it, and the others cost no error."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    LatencyTable(SPACE, "board", {spec: law(spec) for spec in reachable_blocks(SPACE, (8,))}).save(run / "latency" / "board.json")
    process = cli("search", run, "--where", "latency@board <= 1s", "--evals", 20, "--rounds", 1, "--tag", "b", "--json")
    assert process.returncode == 0, process.stderr
    best = json.loads(process.stdout)
    assert SPACE.resolution(SPACE.from_json(json.loads((run / "search" / "b" / "best" / "arch.json").read_text()))) == 8
    assert best["costs"]["latency@board"] < 1
    LatencyTable(SPACE, "none", {SPACE.all_blocks[0]: 1.0}).save(run / "latency" / "none.json")
    process = cli("search", run, "--where", "latency@none <= 1s")
    assert process.returncode == 1
    assert "table of none has no entry for" in process.stderr.splitlines()[-1]


# -- found in review --------------------------------------------------------------------------------------------------


def test_table_behind_ssh_leaves_the_run_readable(far, trained, cli, tmp_path):
    """The raw results lie beside the tables, but are none: predict, search and report go by tables alone."""
    import shutil

    there, _, _ = far
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    process = cli("profile", run, "--device", "pi4=ssh:pi@host", "--python", there.python, "--rounds", 3)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in (run / "latency").glob("*.json")) == ["ort_cpu_1t.json", "pi4.json"]
    assert (run / "latency" / "results" / "pi4.json").exists()
    for command in (["predict", run, "--arch", run / "search" / "best"], ["report", run]):
        process = cli(*command)
        assert process.returncode == 0, process.stderr


def test_talkative_device_is_heard_out(far, small_plan, tmp_path):
    """A greeting of the shell and pages on stdout: neither blocks the agent nor spoils the file."""
    there, _, make = far
    make("echo welcome; head -c 300000 /dev/zero | tr '\\0' 'x'; echo")
    out = measure_there(there, small_plan, tmp_path / "out.json", budget_s=5, rounds=3, silence_s=20)
    assert len(read_results(out).items) == 18


def test_plan_does_not_replace_a_file_of_the_user(run, tmp_path):
    (tmp_path / "agent.py").write_text("print('mine')\n")
    with pytest.raises(OfaError, match=r"agent\.py is a file of yours; give the plan a folder of its own"):
        write_plan(run, "ort_cpu_1t", tmp_path / "plan.zip")
    assert not (tmp_path / "plan.zip").exists()
    for _ in range(2):  # our own of last time may be replaced
        write_plan(run, "ort_cpu_1t", tmp_path / "device" / "plan.zip")


def test_fresh_keeps_the_earlier_rounds_and_fails_before_it_touches_them(run, cli):
    assert cli("profile", run.path, "--rounds", 3).returncode == 0
    folder = run.path / "latency"
    before = (folder / "ort_cpu_1t.journal.jsonl").read_bytes()
    for wrong in (["--reuse", "nope.json"], ["--resolutions", "99"]):
        assert cli("profile", run.path, "--fresh", *wrong).returncode == 1
        assert (folder / "ort_cpu_1t.journal.jsonl").read_bytes() == before
    assert cli("profile", run.path, "--rounds", 3, "--fresh").returncode == 0
    (aside,) = folder.glob("ort_cpu_1t.journal.jsonl.*.old")
    assert aside.read_bytes() == before


def test_energy_that_fails_costs_only_the_energy(run, monkeypatch, capsys):
    from latency import profile
    from latency.energy import EnergyError

    def fail(*arguments):
        raise EnergyError("the counter did not move")

    monkeypatch.setattr(profile, "find_meter", lambda gpu: object())
    monkeypatch.setattr(profile, "with_energy", fail)
    profile.profile_device(run, "ort_cpu_1t", config=ProfileConfig(rounds=3))
    assert "energy is left out: the counter did not move" in capsys.readouterr().err
    assert LatencyTable.load(run.latency_path("ort_cpu_1t"), run.space).energy is None


def test_rescaling_is_not_undone_by_the_next_profile(run, monkeypatch):
    from latency import freshness
    from latency.profile import profile_device

    config = ProfileConfig(rounds=3)
    table = profile_device(run, "ort_cpu_1t", config=config)
    path = run.latency_path("ort_cpu_1t")
    slower = 1.5 * np.sort([n["measured_ms"] for n in table.provenance["networks"]])  # two may measure the same
    monkeypatch.setattr(freshness, "time_again", lambda *a, **k: slower[[0, 8, 16, 23, 31, 39]])
    assert freshness.check_table(path, run.space).verdict == "rescaled"
    assert LatencyTable.load(path, run.space).provenance["checked"]
    assert not path.with_name("ort_cpu_1t.journal.jsonl").exists()  # its rounds are of the other speed; kept under another name
    assert list(path.parent.glob("*.old"))


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": 3},
        {"runtime": {}},
        {"runtime": {"name": "nope", "version": "1"}},
        {"runtime": {"name": "..", "version": "1"}},
        {"runtime": {"name": "onnxruntime", "version": 3}},
        {"device": 3},
        {"measured": 3},
        {"measured": "yesterday"},
        {"networks": 3},
        {"networks": [3]},
        {"networks": [{"measured_ms": 1.0, "fitted": True}]},
        {"networks": [{"arch": {}, "measured_ms": 0, "fitted": True}]},
        {"networks": [{"arch": {}, "measured_ms": 1.0, "fitted": True}] * 9},
    ],
)
def test_strange_provenance_is_no_traceback(trained, tmp_path, cli, change):
    import shutil

    from typer.testing import CliRunner

    from search.cli import app

    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    path = run / "latency" / "ort_cpu_1t.json"
    content = read_json(path, schema=SCHEMA)
    content["provenance"].update(change)
    path.write_text(json.dumps(content))
    for command in (["profile", run, "--check", path], ["predict", run, "--arch", run / "search" / "best"]):
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)


@pytest.mark.parametrize("times", [1e308, 5e-324, 1e-9, 1e9])
def test_times_at_the_ends_of_floating_point_end_in_a_line_or_a_table(run, plan, tmp_path, times):
    damaged = results_of(plan, SPACE)
    for item in damaged["items"].values():
        item["ms"] = dict.fromkeys(item["ms"], times)
    (tmp_path / "r.json").write_text(json.dumps(damaged))
    if 1e-9 <= times <= 1e9:
        assert np.isfinite(merge_results(run, tmp_path / "r.json", "x")(SPACE.largest))
    else:
        with pytest.raises(ArtefactError, match=r"Input should be (less|greater) than or equal to"):
            merge_results(run, tmp_path / "r.json", "x")
