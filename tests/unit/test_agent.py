"""The agent: what it needs, how it measures, what it survives."""

import ast
import hashlib
import itertools
import json
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deploy.device import get_device
from latency import agent
from latency.plan import Networks, make_plan, reachable_blocks
from latency.profile import ProfileConfig, plan_space
from latency.results import check_results
from ofa.errors import OfaError
from ofa.spaces import get_space

SPACE = get_space("mbv3_tiny_image")
SOURCE = Path(agent.__file__)
CPU = get_device("ort_cpu_1t")
MS = 1_000_000  # nanoseconds


@pytest.fixture(scope="module")
def small_plan():
    """Eight blocks and ten networks."""
    rng = np.random.default_rng(0)
    blocks = reachable_blocks(SPACE, [16])[:8]
    return make_plan(SPACE, CPU, blocks, Networks.spread(SPACE, rng, 5, 5))


class Bench:
    """A device whose times are known: `ms` gives the milliseconds of a graph's next run."""

    def __init__(self, plan, ms):
        self.names = {hashlib.sha256(graph).hexdigest(): name for name, graph in plan.graphs.items()}
        self.ms, self.runs = ms, 0

    def open_graph(self, graph, device, shape):
        name = self.names[hashlib.sha256(graph).hexdigest()]
        return lambda: name

    def clock(self, call):
        self.runs += 1
        sample = self.ms(call(), self.runs)
        return sample if isinstance(sample, tuple) else (round(sample * MS), round(sample * MS), 0)


def measure(plan, bench, journal, *, rounds=10, budget_s=60.0, **kwargs):
    return agent.measure(
        plan,
        open_graph=kwargs.pop("open_graph", bench.open_graph),
        journal=str(journal),
        rounds=rounds,
        budget_s=budget_s,
        runtime={"name": "onnxruntime", "version": "1"},
        say=lambda text: None,
        clock=bench.clock,
        **kwargs,
    )


def true_ms(name):
    return 1 + int(name.rpartition("_")[2]) / 10


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_needs_python_3_8_numpy_and_onnxruntime_only():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"numpy", "onnxruntime"}


def test_it_runs_graphs_with_the_options_of_the_runtime_that_ships():
    """Every option that can be read, for each device of the runtime."""
    from deploy.device import list_devices
    from deploy.runtimes.onnxruntime import session_options

    for name in list_devices():
        device = get_device(name)
        if device.runtime != "onnxruntime":
            continue
        theirs, ours = session_options(device), agent.session_options(device.model_dump())
        names = [n for n in dir(ours) if not n.startswith("_") and not callable(getattr(ours, n))]
        assert "intra_op_num_threads" in names
        assert {n: getattr(ours, n) for n in names} == {n: getattr(theirs, n) for n in names}


# -- how it measures --------------------------------------------------------------------------------------------------


def test_known_times_are_recovered_although_the_device_slows_down_and_is_disturbed(small_plan, tmp_path):
    rng = random.Random(0)

    def ms(name, run):
        drift = 1 + run / 10_000  # 19 % slower after 1,890 runs
        jitter = rng.uniform(0.999, 1.001)
        value = round(true_ms(name) * drift * jitter * MS)
        if rng.random() < 0.1:  # something else took the core: its caches are gone as well
            return (round(value * 1.4), value * 3, 1)
        return (value, value, 0)

    found = measure(small_plan, Bench(small_plan, ms), tmp_path / "j", rounds=30)
    assert check_results(found, "here").clock == "cpu"
    assert found["drift"] == pytest.approx(1.157 / 1.031 - 1, abs=0.01)  # last third against first
    anchor = small_plan.manifest["anchor"]
    scale = found["items"][anchor]["ms"]["p50"] / true_ms(anchor)  # the whole is stated at the device's usual speed
    assert 1.05 < scale < 1.14
    for name, item in found["items"].items():
        assert item["ms"]["p25"] / scale == pytest.approx(true_ms(name), rel=0.01), name
        assert item["ms"]["p50"] / scale == pytest.approx(true_ms(name), rel=0.01), name
        assert not item["noisy"]


def test_an_item_that_varies_is_called_noisy(small_plan, tmp_path):
    def ms(name, run):
        return 1.0 + (run % 2) * (name == "block_00003")

    found = measure(small_plan, Bench(small_plan, ms), tmp_path / "j", rounds=20)
    assert [name for name, item in found["items"].items() if item["noisy"]] == ["block_00003"]


def test_time_spent_in_other_threads_is_not_lost(small_plan, tmp_path):
    """A runtime that works in a thread of its own leaves the caller's clock standing: then wall time is read."""
    found = measure(small_plan, Bench(small_plan, lambda name, run: (1000, 2 * MS, 0)), tmp_path / "j")
    assert found["clock"] == "wall"
    assert found["items"]["block_00001"]["ms"]["p50"] == pytest.approx(2.0)


def test_clock_that_goes_backwards(small_plan, tmp_path):
    bench = Bench(small_plan, lambda name, run: -5.0 if run % 7 == 0 else 2.0)
    found = measure(small_plan, bench, tmp_path / "j")
    assert found["clock_faults"] > 0
    assert all(item["ms"]["p0"] > 0 for item in found["items"].values())
    with pytest.raises(agent.AgentError, match="clock of this device stands still"):
        measure(small_plan, Bench(small_plan, lambda name, run: 0.0), tmp_path / "still")


def test_device_that_is_a_hundred_times_slower_still_gets_its_rounds(small_plan, tmp_path):
    found = measure(small_plan, Bench(small_plan, lambda name, run: 100 * true_ms(name)), tmp_path / "j", budget_s=1e-9)
    assert found["rounds"] == agent.MIN_ROUNDS
    assert found["items"]["block_00002"]["ms"]["p50"] == pytest.approx(120)


def test_what_does_not_run_is_reported_and_the_rest_goes_on(small_plan, tmp_path):
    bench = Bench(small_plan, lambda name, run: true_ms(name))

    def open_graph(graph, device, shape):
        call = bench.open_graph(graph, device, shape)
        if call() == "block_00002":
            raise RuntimeError("no kernel for HardSwish(14)\nand a page more")
        return call

    for _ in range(2):  # the second time from the journal
        found = measure(small_plan, bench, tmp_path / "j", open_graph=open_graph)
        assert found["failed"] == {"block_00002": "no kernel for HardSwish(14)"}
        assert len(found["items"]) == 17
        check_results(found, "here")


def test_parts_that_fit_into_memory(small_plan, tmp_path, monkeypatch):
    sizes = [item["session_bytes"] for item in small_plan.manifest["items"]]
    monkeypatch.setattr(agent, "free_memory_bytes", lambda: sum(sizes) // 2)
    waves = agent.split_waves(small_plan.manifest, sum(sizes) // 4)
    assert len(waves) > 2
    anchor = small_plan.manifest["anchor"]
    assert sorted(name for wave in waves for name in [*wave]) == sorted(set(small_plan.graphs) - {anchor})
    bench = Bench(small_plan, lambda name, run: true_ms(name))
    loaded = []

    def open_graph(graph, device, shape):
        loaded.append(bench.open_graph(graph, device, shape)())
        return lambda: bench.open_graph(graph, device, shape)()

    found = measure(small_plan, bench, tmp_path / "j", rounds=4, open_graph=open_graph)
    assert loaded.count(anchor) == len(waves)
    assert len(loaded) == len(small_plan.graphs) + len(waves) - 1
    assert {item["n"] for name, item in found["items"].items() if name.startswith("block")} == {4 * agent.BLOCK_VISITS}
    # with more memory at the second try, the parts stay as they were
    monkeypatch.setattr(agent, "free_memory_bytes", lambda: 2**40)
    again = measure(small_plan, bench, tmp_path / "j", rounds=5)
    assert {item["n"] for name, item in again["items"].items() if name.startswith("block")} == {5 * agent.BLOCK_VISITS}


def test_two_processes_do_not_write_one_journal(small_plan, tmp_path, monkeypatch):
    held = agent.lock(str(tmp_path / "j"))
    monkeypatch.setattr(agent.lock, "__defaults__", (0.1,))
    with pytest.raises(agent.AgentError, match="another process is measuring"):
        measure(small_plan, Bench(small_plan, lambda name, run: 1.0), tmp_path / "j")
    held.close()
    measure(small_plan, Bench(small_plan, lambda name, run: 1.0), tmp_path / "j")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("1.5min", 90), ("2m", 120), ("1h", 3600)])
def test_budget(text, seconds):
    assert agent.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-3s", "0", "1..2s", "3 days"])
def test_budget_that_is_no_time(text):
    with pytest.raises(agent.AgentError, match="expected a time such as 60s"):
        agent.parse_seconds(text)


def test_warnings_name_what_disturbs():
    state = {"affinity": [0, 1], "load_average": 3.0, "governor": "powersave", "cpu_quota": "50000 100000"}
    found = " ".join(agent.warnings({"num_threads": 4}, state))
    for words in (
        "4 threads are wanted, this process may use 2 cores",
        "load average is 3.0",
        "'powersave'",
        "0.5 cores",
        "wall",
    ):
        assert words in found
    quiet = {"affinity": [0, 1], "load_average": 0.1, "governor": "performance", "cpu_quota": "max 100000"}
    assert agent.warnings({"num_threads": 1}, quiet) == []


# -- as a user runs it ------------------------------------------------------------------------------------------------


def run_agent(folder, *arguments, **kwargs):
    command = [sys.executable, str(folder / "agent.py"), "plan.zip", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture
def copied(small_plan, tmp_path):
    """A folder of a device that was given the two files."""
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "agent.py").write_bytes(SOURCE.read_bytes())
    (folder / "plan.zip").write_bytes(agent.write_plan(small_plan))
    return folder


def test_agent_alone_measures_and_says_what_to_do_next(copied):
    process = run_agent(copied, "-o", "results.json", "--rounds", 3)
    assert process.returncode == 0, process.stderr
    data = (copied / "results.json").read_bytes()
    assert process.stdout.strip() == hashlib.sha256(data).hexdigest()
    assert "ofa profile RUN --merge results.json --as NAME" in process.stderr
    found = check_results(json.loads(data), "results.json")
    assert len(found.items) == 18
    assert found.device["num_threads"] == 1


def test_killed_at_twenty_random_points_it_goes_on(copied):
    rng = random.Random(0)
    command = [sys.executable, "agent.py", "plan.zip", "-o", "results.json", "--rounds", "60", "--budget", "30s"]
    kept = []
    for _ in range(20):
        process = subprocess.Popen(command, cwd=copied, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 1.2))
        process.kill()
        process.wait()
        journal = copied / "results.json.journal"
        kept.append(sum("samples" in line for line in agent.read_lines(str(journal))))
    assert kept == sorted(kept)  # nothing that was measured is lost
    process = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    results = check_results(json.loads((copied / "results.json").read_text()), "results.json")
    assert results.rounds == 60
    assert len(results.items) == 18


def test_agent_reports_errors_in_one_line(copied):
    for arguments, words in [
        (["--provider", "NoSuchProvider"], "provider 'NoSuchProvider' is not in this ONNX Runtime"),
        (["--budget", "soon"], "expected a time"),
        (["-o", "no/such/folder/results.json"], "no/such/folder"),
    ]:
        process = run_agent(copied, *arguments)
        assert process.returncode == 1
        assert "Traceback" not in process.stderr
        assert words in process.stderr.splitlines()[-1]


# -- plans that are none ----------------------------------------------------------------------------------------------


def rewrite(plan, change):
    """plan.zip with its files (name -> bytes) changed."""
    files = {"manifest.json": json.dumps(plan.manifest).encode()}
    files["graphs.bin"] = b"".join(plan.graphs[item["id"]] for item in plan.manifest["items"])
    change(files)
    return files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update({"../../etc/cron.d/x": b"1"}), "not a plan"),
        (lambda f: f.update({"/etc/passwd": b"1"}), "not a plan"),
        (lambda f: f.update({"manifest.json/../../x": b"1"}), "not a plan"),
        (lambda f: f.pop("manifest.json"), "not a plan"),
        (lambda f: f.pop("graphs.bin"), "not a plan"),
        (lambda f: f.update({"manifest.json": b"{"}), "cannot be read"),
        (lambda f: f.update({"manifest.json": b"[" * 100_000}), "cannot be read"),
        (lambda f: f.update({"manifest.json": b"[]"}), "incomplete plan"),
        (lambda f: f.update({"manifest.json": b'{"schema": "other/9"}'}), "schema is 'other/9'"),
        (lambda f: f.update({"graphs.bin": b"other"}), "graph block_00000 is damaged"),
        (lambda f: f.update({"graphs.bin": b"x" + f["graphs.bin"]}), "graph block_00000 is damaged"),
        (lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"graph_bytes": ', b'"graph_bytes": -')}), "damaged"),
        (lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"graph_bytes": ', b'"more": ')}), "incomplete plan"),
        (lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"seed": 0', b'"seed": null')}), "damaged plan"),
        (lambda f: f.update({"manifest.json": f["manifest.json"].replace(b'"anchor": "net', b'"anchor": "nut')}), "damaged plan"),
        (
            lambda f: f.update({"manifest.json": f["manifest.json"].replace(b"[1, 3, 16, 16]", b"[1, 3, -16, 16]")}),
            "damaged plan",
        ),
    ],
)
def test_hostile_plan_is_refused(small_plan, tmp_path, change, message):
    path = tmp_path / "plan.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in rewrite(small_plan, change).items():
            archive.writestr(name, data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(agent.AgentError, match=message):
        agent.read_plan(str(path))
    assert sorted(tmp_path.iterdir()) == before


def test_bomb_is_not_unpacked(small_plan, tmp_path):
    path = tmp_path / "plan.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("graphs.bin", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(2**20))
        archive.writestr("manifest.json", "{}")
    assert path.stat().st_size < 2**20
    began = time.process_time()
    with pytest.raises(agent.AgentError, match="unpacks to more than 256 MiB"):
        agent.read_plan(str(path))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_plan_is_refused(small_plan, tmp_path, share):
    data = agent.write_plan(small_plan)
    path = tmp_path / "plan.zip"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(agent.AgentError, match="cannot be read"):
        agent.read_plan(str(path))


def test_flipped_bits_of_a_plan_are_noticed(small_plan, tmp_path):
    data = bytearray(agent.write_plan(small_plan))
    rng = random.Random(0)
    path = tmp_path / "plan.zip"
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read = agent.read_plan(str(path))
        except agent.AgentError:
            continue
        assert read.id == small_plan.id  # a bit of a date or an attribute, which nothing depends on


def test_plan_is_small_and_reproducible():
    plan = plan_space(SPACE, CPU, ProfileConfig())
    assert agent.write_plan(plan) == agent.write_plan(plan_space(SPACE, CPU, ProfileConfig()))
    with pytest.raises(OfaError, match="has no input size 17; it has"):
        plan_space(SPACE, CPU, ProfileConfig(resolutions=(17,)))


def test_what_fails_while_measuring_is_reported_and_the_rest_goes_on(small_plan, tmp_path):
    bench = Bench(small_plan, lambda name, run: true_ms(name))
    plain = bench.clock

    def clock(call):
        if bench.runs > 60 and call() == "block_00005":
            raise MemoryError("out of memory on the card")
        return plain(call)

    bench.clock = clock
    found = measure(small_plan, bench, tmp_path / "j")
    assert found["failed"] == {"block_00005": "out of memory on the card"}
    check_results(found, "here")
    assert measure(small_plan, Bench(small_plan, lambda name, run: 1.0), tmp_path / "j")["failed"] == found["failed"]


def test_provider_that_does_not_start_is_not_the_processor_under_its_name(small_plan, monkeypatch):
    """ONNX Runtime falls back to the processor by itself; a table of that would bear the card's name."""
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    device = {**small_plan.manifest["device"], "provider": "CUDAExecutionProvider"}
    graph = small_plan.graphs["block_00000"]
    with pytest.raises((agent.AgentError, Exception), match=r"does not start here|CUDAExecutionProvider"):
        agent.open_onnxruntime(graph, device, small_plan.manifest["items"][0]["shape"])


def test_coarse_clock_is_not_read(small_plan, tmp_path, monkeypatch):
    """Processor time ticks every 16 ms on Windows."""
    from types import SimpleNamespace

    monkeypatch.setattr(agent.time, "get_clock_info", lambda name: SimpleNamespace(resolution=0.0156))
    assert measure(small_plan, Bench(small_plan, lambda name, run: 2.0), tmp_path / "j")["clock"] == "wall"


def test_more_budget_goes_to_every_part(small_plan, tmp_path, monkeypatch):
    sizes = [item["session_bytes"] for item in small_plan.manifest["items"]]
    monkeypatch.setattr(agent, "free_memory_bytes", lambda: sum(sizes))
    bench = Bench(small_plan, lambda name, run: true_ms(name))
    ticks = itertools.count()
    monkeypatch.setattr(agent.time, "monotonic", lambda: next(ticks) / 1000)  # a millisecond for every look at the clock
    for budget_s in (0.5, 2, 6):
        found = measure(small_plan, bench, tmp_path / "j", rounds=10_000, budget_s=budget_s)
    counts = [item["n"] for name, item in found["items"].items() if name.startswith("block")]
    assert min(counts) > 10 * agent.BLOCK_VISITS
    assert max(counts) < 2 * min(counts)


@pytest.mark.parametrize(
    "line",
    [
        {"wave": 0, "seconds": "long", "anchor": [[[1, 1, 0]]], "samples": {}},
        {"wave": 0, "seconds": 1.0, "anchor": [], "samples": {}},
        {"wave": 0, "seconds": 1.0, "anchor": [[[1, 1, 0]]], "samples": 3},
        {"wave": 0, "seconds": 1.0, "anchor": [[[1, 1, 0]]], "samples": {"block_00000": 3}},
        {"wave": 0, "seconds": 1.0, "anchor": [[[1, 1]]], "samples": {}},
        {"failed": ["x"], "why": "y"},
        {"failed": "x", "why": 3},
    ],
)
def test_strange_lines_of_a_journal_are_passed_over(small_plan, tmp_path, line):
    bench = Bench(small_plan, lambda name, run: true_ms(name))
    first = measure(small_plan, bench, tmp_path / "j", rounds=4)
    with (tmp_path / "j").open("a") as file:
        file.write(json.dumps(line) + "\n")
    again = measure(small_plan, bench, tmp_path / "j", rounds=4)
    assert again["items"] == first["items"]
    assert again["failed"] == {}
