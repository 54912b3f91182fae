"""Tables of one network: a space that holds no more, and one network of a space whose blocks cannot be listed."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.device import get_device
from latency import agent
from latency.calibration import Calibration
from latency.freshness import check_table
from latency.profile import ProfileConfig, merge_results, plan_space, profile_device, profiled_space, write_plan
from latency.results import check_results, fit_table
from latency.table import LatencyTable, MissingBlockError
from ofa.artefacts import write_json
from ofa.counts import block_macs
from ofa.errors import OfaError
from ofa.run_dir import DataSource, Run
from ofa.spaces import get_space
from ofa.training.loop import train_supernet
from search.cli import app
from search.next_steps import next_commands

CPU = get_device("ort_cpu_1t")
CHAINS = get_space("nas_rl_cnn")
FIRST, OTHER = CHAINS.decode(CHAINS.sample(np.random.default_rng(0), 2))
NETWORK_MS = 3.0
DATA = DataSource("digits", 10, "0" * 64, 32, tuple("0123456789"), 0.1, 0, (0.5,) * 3, (0.5,) * 3, False)


def alone_ms(spec):
    return 0.001 + block_macs(spec) / 1e8


def results_of(plan, *, failing=()):
    """What an agent would write for a device that needs `alone_ms` for each block and NETWORK_MS for the network."""
    items, failed = {}, {}
    for item in plan.manifest["items"]:
        if item["id"] in failing or item["kind"] in failing:
            failed[item["id"]] = "no such operator"
            continue
        ms = NETWORK_MS
        if item["kind"] == "block":
            ms = alone_ms(next(spec for spec in CHAINS.blocks(FIRST).values() if spec.to_dict() == item["block"]))
        quantiles = {f"p{q}": ms for q in agent.QUANTILES}
        items[item["id"]] = {"n": 9, "disturbed": 0.0, "noisy": False, "ms": quantiles, "wall_ms": quantiles}
    return {
        "schema": "ofa.results/1",
        "plan": {"id": plan.id, **plan.manifest},
        "device": plan.manifest["device"],
        "runtime": {"name": "onnxruntime", "version": "1.2.3"},
        "host": {"name": "board"},
        "clock": "cpu",
        "conditions": None,
        "measured": "2026-11-22",
        "rounds": 9,
        "seconds": 60.0,
        "drift": 0.0,
        "clock_faults": 0,
        "items": items,
        "failed": failed,
    }


def run_of(folder, arch):
    return Run.create(folder, CHAINS, DATA, arch)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


@pytest.fixture(scope="module")
def plan():
    return plan_space(CHAINS.restrict(FIRST), CPU, ProfileConfig())


@pytest.fixture
def merged(plan, tmp_path):
    """A run of FIRST with the table `board`."""
    run = run_of(tmp_path / "first", FIRST)
    write_json(tmp_path / "results.json", results_of(plan))
    merge_results(run, tmp_path / "results.json", "board")
    return run


def test_plan_holds_the_blocks_and_the_network_as_its_anchor(plan):
    items = plan.manifest["items"]
    blocks = [item["block"] for item in items if item["kind"] == "block"]
    distinct = dict.fromkeys(CHAINS.blocks(FIRST).values())
    assert blocks == [spec.to_dict() for spec in distinct]
    (network,) = [item for item in items if item["kind"] == "network"]
    assert network["arch"] == CHAINS.to_json(FIRST)["values"]
    assert network["fitted"]
    assert plan.manifest["anchor"] == network["id"]


def test_table_is_one_factor_and_states_no_error(merged):
    table = LatencyTable.load(merged.latency_path("board"), merged.space)
    total = sum(map(alone_ms, CHAINS.blocks(FIRST).values()))
    assert table.calibration == Calibration(per_ms=pytest.approx(NETWORK_MS / total, rel=1e-12))
    assert table(FIRST) == pytest.approx(NETWORK_MS, rel=1e-9)
    parts = table.explain(FIRST)
    assert [part.latency_ms for part in parts] == pytest.approx([NETWORK_MS / total * alone_ms(part.spec) for part in parts])
    assert (table.error, table.macs_error, table.margin, table.validation) == (None, None, None, ())
    assert "nothing is left to tell the error by" in table.provenance["no_error"]
    population = merged.space.encode([FIRST])
    np.testing.assert_array_equal(table.upper(population), table.predict(population))
    with pytest.raises(OfaError, match="states no error, so its predictions have no interval; one network was timed"):
        table.interval(population)


def test_another_network_is_refused_in_one_line(merged, plan, tmp_path):
    other = run_of(tmp_path / "other", OTHER)
    table = LatencyTable.load(merged.latency_path("board"), other.space)
    assert np.isinf(table.upper(other.space.encode([OTHER]))).all()
    with pytest.raises(MissingBlockError, match=r"no entry for .*it is the table of one network, another needs its own: ofa"):
        table(OTHER)
    with pytest.raises(OfaError, match="results are of other networks of nas_rl_cnn than the one of this run"):
        merge_results(other, tmp_path / "results.json", "board")


@pytest.mark.parametrize(
    ("failing", "message"),
    [("network", "the network itself did not run.*no such operator"), ("block_00000", "could not run the")],
)
def test_what_did_not_run_is_said(plan, failing, message):
    found = check_results(results_of(plan, failing=[failing]), "x")
    with pytest.raises(OfaError, match=message):
        fit_table(CHAINS.restrict(FIRST), found, device="x", measured_by="agent", command="again")


def test_commands_take_such_a_table(merged, tmp_path):
    write_json(tmp_path / "arch.json", CHAINS.to_json(FIRST))
    done = invoke("predict", merged.path, "--arch", tmp_path / "arch.json")
    assert done.exit_code == 0
    assert "on board: 3 ms, error not known" in done.stderr
    assert invoke("report", merged.path).exit_code == 0
    assert "The error is not known: one network was timed" in (merged.path / "report.html").read_text()
    done = invoke("profile", merged.path, "--merge", tmp_path / "results.json", "--as", "board")
    assert "error not known: one network was timed" in done.stderr
    assert "the network takes 3 ms" in done.stderr


def test_space_of_one_network_is_measured_here_and_checked(tmp_path):
    whole = get_space("mobilenet_v3_small:resolution=32", num_classes=10)
    run = Run.create(tmp_path / "run", whole, DATA, whole.largest)
    table = profile_device(run, "ort_cpu_1t", config=ProfileConfig(rounds=3))
    (network,) = table.provenance["networks"]
    assert set(table.entries) == set(whole.all_blocks)
    assert table(whole.largest) == pytest.approx(network["measured_ms"])
    assert table.error is None
    assert write_plan(run, "ort_cpu_1t", tmp_path / "plan" / "plan.zip").manifest["anchor"] == "network_000"
    found = check_table(run.latency_path("ort_cpu_1t"), whole)
    assert len(found.networks) == 1
    assert found.verdict in ("fresh", "rescaled")  # as fast as this machine is now


def test_run_of_one_network_still_gets_the_table_of_a_space_that_can_be_listed(tmp_path):
    space = get_space("mbv3_tiny_image")
    run = Run.create(tmp_path / "run", space, DATA, space.largest)
    assert profiled_space(run) is run.whole_space


def test_space_whose_blocks_cannot_be_listed_is_refused_before_any_work(tmp_path):
    run = run_of(tmp_path / "run", None)
    with pytest.raises(OfaError, match="too many to time; train one network of it"):
        profile_device(run, "ort_cpu_1t")
    with pytest.raises(OfaError, match="too many to list, so no supernet holds them; train one network of it"):
        train_supernet("nas_rl_cnn", "no_such_images", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_search_leads_to_the_training_of_what_it_found(tmp_path):
    run = run_of(tmp_path / "run", None)
    assert next_commands(run, [], {})["train"] == ""
    write_json(run.path / "arch.json", CHAINS.to_json(FIRST))
    command = f"ofa train --arch {run.path}/arch.json --data digits --out {run.path}-trained"
    assert next_commands(run, [], {})["train"] == command


def test_search_by_nas_rl_of_a_small_space_leads_there_too(tmp_path):
    small = get_space("nas_rl_cnn:layers=2")
    assert small.is_tabulated
    run = Run.create(tmp_path / "run", small, DATA, None)
    write_json(run.path / "arch.json", small.to_json(small.largest))
    assert "--space nas_rl_cnn:layers=2" in next_commands(run, [], {})["train"]
    write_json(run.path / "nas" / "config.json", {"schema": "ofa.nas/1", "method": "nas_rl"})
    assert f"--arch {run.path}/arch.json" in next_commands(run, [], {})["train"]
    assert json.loads((run.path / "run.json").read_text())["arch"] is None
