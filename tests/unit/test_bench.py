"""Side-by-side timing of files: rows, rounds, ratios, memory, and what is said of files that cannot run."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import deploy.bench
import deploy.interleave
import deploy.memory
from deploy.bench import BenchError, BenchRow, bench_models
from deploy.bench_table import notes, show_table, to_csv, to_json
from deploy.bundle import open_bundle, write_bundle
from deploy.device import DeviceError, get_device
from deploy.emit import emit
from deploy.interleave import interleave, paired_ratio, wait_until_idle
from deploy.memory import PeakMemory, measure_peak
from deploy.model_file import open_model_file
from deploy.runtimes import ModelError, runtime_version
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from search.cli import app

BLOCKS = {"stem": BlockSpec("conv", 3, 8, 16, kernel_size=3, act="relu")}
IMAGE = ("n", 3, 8, 8)


@pytest.fixture
def files(tmp_path):
    """Write one network in three precisions; returns a function precision -> path."""
    for precision in ("fp32", "int8", "fp16"):
        (tmp_path / f"net-{precision}.onnx").write_bytes(emit(BLOCKS, precision=precision))
    return lambda precision: tmp_path / f"net-{precision}.onnx"


@pytest.fixture
def no_children(monkeypatch):
    """Tell a memory without starting a process."""
    monkeypatch.setattr(deploy.bench, "measure_peak", lambda content, device, shape: PeakMemory(3 * 2**20, "VmHWM"))


def linear(shape=IMAGE, outputs=4, *, kind=TensorProto.FLOAT, **facts):
    """An ONNX file of one linear layer, as somebody else may have written it."""
    inputs = int(np.prod([n for n in shape[1:] if isinstance(n, int)]))
    weight = numpy_helper.from_array(np.full((inputs, outputs), 0.5, helper.tensor_dtype_to_np_dtype(kind)), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, [shape[0], outputs])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    helper.set_model_props(model, facts)
    return model


def save(path, model):
    path.write_bytes(model.SerializeToString())
    return path


def bundle(folder, content):
    write_bundle(folder, {"model.onnx": content, "model.json": b"{}"})
    return folder


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_complete_and_in_the_order_of_devices_batches_and_files(files, no_children):
    paths = [files("fp32"), files("int8")]
    rows = bench_models(paths, ["ort_cpu_1t", "ort_cpu_2t"], batch_sizes=(1, 3), seconds=0.1)
    assert [(r.device, r.batch_size, r.file) for r in rows] == [
        (device, batch, str(path)) for device in ("ort_cpu_1t", "ort_cpu_2t") for batch in (1, 3) for path in paths
    ]
    for row in rows:
        assert row.error is None
        assert all(getattr(row, field.name) is not None for field in dataclasses.fields(row) if field.name != "error")
        assert 0 < row.low_ms <= row.median_ms <= row.high_ms
        assert row.p90_ms <= row.p99_ms
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.n >= deploy.bench.MIN_ROUNDS
        assert row.clock == ("cpu" if row.device == "ort_cpu_1t" else "wall")
        assert (row.size_bytes, row.precision) == (Path(row.file).stat().st_size, Path(row.file).stem[-4:])
    assert [(r.ratio, r.fp32_ratio) for r in rows if r.precision == "fp32"] == [(1.0, 1.0)] * 4


def test_a_row_follows_from_its_samples(files, no_children, monkeypatch):
    """Two rounds of two runs: CPU 1, 3 | 5, 7 ms and wall 10, 10 | 20, 20 ms; the second file takes three times as long."""
    once = np.array([[[1, 10], [3, 10]], [[5, 20], [7, 20]]], float)
    monkeypatch.setattr(deploy.bench, "interleave", lambda calls, runs, **_: [once, 3 * once])
    first, second = bench_models([files("fp32"), files("int8")], ["ort_cpu_1t"], batch_sizes=(4,), seconds=0.1)
    assert (first.median_ms, first.low_ms, first.high_ms, first.n) == (4, 2, 6, 4)  # medians of the rounds: 2 and 6
    assert first.p90_ms == pytest.approx(np.percentile([1, 3, 5, 7], 90))
    assert first.p99_ms == pytest.approx(np.percentile([1, 3, 5, 7], 99))
    assert first.images_per_second == pytest.approx((400 + 200) / 2)  # 8 images in 20 ms, and in 40
    assert (second.ratio, second.ratio_low, second.ratio_high) == (3, 3, 3)
    assert (second.fp32_ratio, second.memory_mib, second.memory_source) == (3, 3, "VmHWM")


def test_wall_time_is_of_devices_with_several_threads(files, no_children, monkeypatch):
    once = np.array([[[1, 10], [3, 10]]], float)
    monkeypatch.setattr(deploy.bench, "interleave", lambda calls, runs, **_: [once])
    (row,) = bench_models([files("fp32")], ["ort_cpu_2t"], batch_sizes=(1,), seconds=0.1)
    assert (row.median_ms, row.clock) == (10, "wall")


def test_ratios_to_fp32_are_of_the_same_network_only(tmp_path, files, no_children):
    other = save(tmp_path / "other-int8.onnx", linear(("n", 3, 16, 16), **{"ofa.precision": '"int8"'}))
    rows = bench_models([files("int8"), other, files("fp32")], ["ort_cpu_1t"], batch_sizes=(1,), seconds=0.1)
    assert [row.fp32_ratio is None for row in rows] == [False, True, False]
    assert [row.ratio is None for row in rows] == [False, False, False]
    assert rows[0].fp32_ratio != rows[0].ratio == 1


def test_csv_and_json_hold_every_field(files, no_children):
    rows = bench_models([files("fp32"), files("int8")], ["ort_cpu_1t", "ort_int8_1t"], batch_sizes=(1,), seconds=0.1)
    assert any(row.error for row in rows)
    assert [BenchRow(**row) for row in json.loads(json.dumps(to_json(rows), allow_nan=False))["rows"]] == rows
    kinds = {field.name: field.type.partition(" ")[0] for field in dataclasses.fields(BenchRow)}
    parse = {"str": str, "int": int, "float": float}
    read = csv.DictReader(io.StringIO(to_csv(rows)))
    assert [
        BenchRow(**{name: parse[kinds[name]](text) if text else None for name, text in line.items()}) for line in read
    ] == rows


# -- what cannot run --------------------------------------------------------------------------------------------------


def test_what_cannot_run_is_a_row_with_the_reason(tmp_path, files):
    fixed = save(tmp_path / "fixed.onnx", linear((2, 3, 8, 8)))
    free = save(tmp_path / "free.onnx", linear(("n", 3, "h", "w")))
    rows = bench_models([files("fp32"), fixed, free], ["ort_int8_1t", "ort_cpu_1t"], batch_sizes=(1,), seconds=0.1)
    errors = [row.error for row in rows]
    assert "int8" in errors[0]
    assert errors[1] == errors[4] == "takes batches of 2 only"
    assert errors[2] == "takes an input of (?, 3, ?, ?); name height and width with --resolution"
    assert errors[3] is None
    assert all((row.median_ms, row.n, row.ratio) == (None, 0, None) for row in rows if row.error)


def test_nothing_that_can_run_is_an_error_with_every_reason(tmp_path):
    fixed = save(tmp_path / "fixed.onnx", linear((2, 3, 8, 8)))
    with pytest.raises(BenchError, match=r"nothing could be measured; .*fixed.onnx on ort_cpu_1t: takes batches of 2 only"):
        bench_models([fixed], ["ort_cpu_1t"], batch_sizes=(1,))


def test_a_file_that_ends_the_process_ends_only_a_child(files, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BenchError, match="the process that ran it ended with code 1: the runtime failed, or memory ran out"):
        bench_models([files("fp32")], ["ort_cpu_1t"], batch_sizes=(1,))


def test_more_than_memory_holds_is_refused_before_any_session(files, no_children, monkeypatch):
    monkeypatch.setattr(deploy.bench, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(deploy.bench, "open_session", None)
    with pytest.raises(BenchError, match="name fewer files, devices or batch sizes"):
        bench_models([files("fp32")], ["ort_cpu_1t"], batch_sizes=(1,))


@pytest.mark.parametrize("arguments", [{"batch_sizes": (0,)}, {"batch_sizes": ()}, {"seconds": 0.0}, {"resolution": 32}])
def test_wrong_arguments_are_refused(files, arguments):
    with pytest.raises(BenchError, match=r"expected at least one of each|leave it out"):
        bench_models([files("fp32")], ["ort_cpu_1t"], **arguments)


def test_an_unknown_device_and_a_bad_file_are_refused_before_anything_runs(tmp_path, files, monkeypatch):
    monkeypatch.setattr(deploy.bench, "measure_peak", None)
    with pytest.raises(DeviceError, match="unknown device 'pi9'"):
        bench_models([files("fp32")], ["ort_cpu_1t", "pi9"])
    outside = linear()
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    outside.graph.initializer[0].external_data.add(key="location", value="../../secret")
    two = linear()
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    unknown = linear()
    unknown.graph.input[0].type.tensor_type.elem_type = 99
    bad = {
        r"keeps tensor 'w' outside the file": outside.SerializeToString(),
        r"takes 2 inputs, expected one": two.SerializeToString(),
        r"takes float16 numbers, expected float32": linear(kind=TensorProto.FLOAT16).SerializeToString(),
        r"takes type 99 numbers": unknown.SerializeToString(),
        r"takes an input of 1 dimensions": linear(("n",)).SerializeToString(),
        r"not an ONNX file": b"\xff garbage",
    }
    for number, (message, content) in enumerate(bad.items()):
        path = tmp_path / f"bad{number}.onnx"
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=message):
            bench_models([files("fp32"), path], ["ort_cpu_1t"])
    with pytest.raises(ArtefactError, match=r"none.onnx: no such file"):
        bench_models([tmp_path / "none.onnx"], ["ort_cpu_1t"])


# -- files of anybody -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "a16w8"])
def test_precision_is_told_by_metadata_or_seen_in_tensors(tmp_path, precision):
    seen = onnx.load_from_string(emit(BLOCKS, precision=precision))
    told = linear(**{"ofa.precision": json.dumps(precision)})
    for model in (seen, told):
        assert open_model_file(save(tmp_path / "m.onnx", model)).precision == precision


@pytest.mark.parametrize("text", ["", "fp64", '"\x1b[2J"', "[" * 5000, f"a{'9' * 5000}w8"])
def test_metadata_of_no_meaning_is_not_believed(tmp_path, text):
    assert open_model_file(save(tmp_path / "m.onnx", linear(**{"ofa.precision": text}))).precision == "fp32"


def test_networks_are_told_apart_by_architecture_or_by_name(tmp_path):
    def network(name, **facts):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        return open_model_file(save(tmp_path / name, linear(**facts))).network

    assert network("fast-fp32.onnx") == network("fast_int8.onnx") == network("fast.a8w4.onnx") == network("fast.onnx")
    assert network("fast-int8/model.onnx") == network("fast-fp32/model.onnx") != network("slow-fp32/model.onnx")
    arch = {"ofa.space": '"s"', "ofa.arch": '{"depth": 1}'}
    assert network("a.onnx", **arch) == network("b.onnx", **arch) != network("a.onnx", **{**arch, "ofa.arch": '{"depth": 2}'})
    assert network("a.onnx", **{"ofa.arch": "null"}) == network("a.onnx") != network("b.onnx", **{"ofa.arch": "null"})


def test_resolution_fills_what_a_graph_leaves_free(tmp_path):
    free = open_model_file(save(tmp_path / "m.onnx", linear(("n", 3, "h", "w"))))
    assert free.input_shape(5, 32) == (5, 3, 32, 32)
    assert open_model_file(save(tmp_path / "m.onnx", linear((-1, 3, 8, 0)))).dims == (None, 3, 8, None)
    assert open_model_file(save(tmp_path / "m.onnx", linear((2, 3, 8, 8)))).input_shape(2) == (2, 3, 8, 8)
    half_free = open_model_file(save(tmp_path / "m.onnx", linear(("n", "c", 8, 8))))
    with pytest.raises(ModelError, match=r"takes an input of \(\?, \?, 8, 8\), which nothing here tells"):
        half_free.input_shape(1, 32)


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_every_round_visits_every_call_once_in_an_order_of_its_own(monkeypatch):
    monkeypatch.setattr(deploy.interleave, "wait_until_idle", lambda: None)
    visits, done = [], []
    calls = [lambda i=i: visits.append(i) for i in range(6)]
    runs = [1, 2, 3, 1, 1, 4]
    samples = interleave(calls, runs, rounds=8, rng=np.random.default_rng(0), advance=lambda: done.append(None))
    assert [s.shape for s in samples] == [(8, n, 2) for n in runs]
    assert len(done) == 8 * 6
    orders, rest = [], visits
    for _ in range(8):
        order = []
        while len(order) < 6:
            i = rest[0]
            assert rest[: runs[i] + 1] == [i] * (runs[i] + 1)  # one to warm up, and all of a visit together
            order.append(i)
            rest = rest[runs[i] + 1 :]
        assert sorted(order) == list(range(6))
        orders.append(tuple(order))
    assert not rest
    assert len(set(orders)) >= 7
    assert len({order[0] for order in orders}) > 2  # no call always finds the machine as another left it


def test_ratios_hold_where_times_drift():
    """The machine slows down tenfold while it measures; one call takes 1.25 times as long as the other throughout."""
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 10, 20)[:, None, None]
    own, other = (factor * drift * rng.uniform(0.99, 1.01, (20, 5, 2)) for factor in (1.25, 1.0))
    for column in (0, 1):
        ratio, low, high = paired_ratio(own, other, column)
        assert low <= ratio <= high
        assert (low, high) == pytest.approx((1.25, 1.25), rel=0.02)
    assert paired_ratio(own, own, 0) == (1, 1, 1)


@pytest.mark.parametrize(("spins_ms", "waits_ms"), [(0, 2), (47, 48), (10_000, 200)])
def test_wait_until_idle_waits_for_threads_that_spin(monkeypatch, spins_ms, waits_ms):
    clock = SimpleNamespace(now_s=0.0)

    def sleep(seconds):
        clock.now_s += seconds

    fake = SimpleNamespace(monotonic=lambda: clock.now_s, process_time=lambda: min(clock.now_s, spins_ms / 1e3), sleep=sleep)
    monkeypatch.setattr(deploy.interleave, "time", fake)
    wait_until_idle()
    assert waits_ms <= clock.now_s * 1e3 <= waits_ms + 2.1


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_file_with_more_weights_takes_more_memory():
    small, large = (linear(outputs=mib * 2**18 // 192).SerializeToString() for mib in (4, 40))
    found = [measure_peak(content, get_device("ort_cpu_1t"), (1, 3, 8, 8)) for content in (small, large)]
    if any(peak.peak_bytes is None for peak in found):
        pytest.skip("this system does not tell")
    assert found[0].peak_bytes > 4 * 2**20
    assert found[1].peak_bytes - found[0].peak_bytes > 36 * 2**20


def test_a_larger_batch_takes_more_memory():
    content = linear().SerializeToString()
    found = [measure_peak(content, get_device("ort_cpu_1t"), (n, 3, 8, 8)).peak_bytes for n in (1, 20_000)]
    if None in found:
        pytest.skip("this system does not tell")
    assert found[1] - found[0] > 20_000 * 192 * 4 * 0.9


def test_a_child_tells_why_a_file_does_not_run(tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()  # of the user's own
    (tmp_path / "deploy" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    spec, content = get_device("ort_cpu_1t"), linear().SerializeToString()
    assert measure_peak(content, spec, (1, 3, 8, 8)).source in ("VmHWM", "ru_maxrss", "")
    with pytest.raises(ModelError, match=r"does not run on input \(1, 3, 9, 9\)"):
        measure_peak(content, spec, (1, 3, 9, 9))
    with pytest.raises(ModelError, match="does not fit into memory"):
        measure_peak(content, spec, (2**16, 3, 2**16, 2**16))  # more than there are addresses
    with pytest.raises(ModelError, match="not in this ONNX Runtime"):
        measure_peak(content, spec.model_copy(update={"provider": "NoProvider"}), (1, 3, 8, 8))


def test_memory_without_procfs_is_the_growth_of_the_highest_peak_or_nothing(monkeypatch):
    def refuse(self, text):
        raise PermissionError

    peaks = iter([100, 700])
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(deploy.memory, "_ru_maxrss", lambda: next(peaks, 700))
    before = deploy.memory._reset_peak()
    assert deploy.memory._peak_since(before) == PeakMemory(600, "ru_maxrss")
    assert deploy.memory._peak_since(deploy.memory._reset_peak()) == PeakMemory(None, "")


# -- bundles ----------------------------------------------------------------------------------------------------------


def test_rows_of_a_bundle_are_written_into_it(tmp_path, files, no_children):
    first, second = (bundle(tmp_path / name, files(name).read_bytes()) for name in ("fp32", "int8"))
    paths = [first, second / "model.onnx", files("fp16")]
    rows = bench_models(paths, ["ort_cpu_1t"], batch_sizes=(1, 2), seconds=0.1)
    for path, mine in ((first, rows[0::3]), (second, rows[1::3])):
        record = json.loads(open_bundle(path).read("bench.json"))  # SHA256SUMS lists it
        assert record["schema"] == "ofa.bench/1"
        assert record["sha256"] == open_bundle(path).digests["model.onnx"]
        assert record["first"] == {"sha256": open_bundle(first).digests["model.onnx"], "precision": "fp32"}
        assert record["host"]["cpu"]
        assert list(record["devices"]) == ["ort_cpu_1t"]
        spec = get_device("ort_cpu_1t")
        assert record["devices"]["ort_cpu_1t"] == {**spec.model_dump(), "runtime_version": runtime_version("onnxruntime")}
        assert [BenchRow(**row) for row in record["rows"]] == [dataclasses.replace(row, file="model.onnx") for row in mine]
    assert {path.name for path in tmp_path.iterdir()} == {"fp32", "int8", *(files(p).name for p in ("fp32", "int8", "fp16"))}
    bench_models([first], ["ort_cpu_1t"], batch_sizes=(1,), seconds=0.1)
    assert len(json.loads(open_bundle(first).read("bench.json"))["rows"]) == 1


def test_a_bundle_that_cannot_be_written_is_measured_all_the_same(tmp_path, files, no_children, monkeypatch, capsys):
    def full(self, added):
        raise OSError(28, "No space left on device", "bench.json")

    monkeypatch.setattr("deploy.bundle.Bundle.add", full)
    (row,) = bench_models([bundle(tmp_path / "b", files("fp32").read_bytes())], ["ort_cpu_1t"], batch_sizes=(1,), seconds=0.1)
    assert row.median_ms
    assert "bench.json was not written" in capsys.readouterr().err


def test_a_damaged_bundle_is_refused(tmp_path, files):
    folder = bundle(tmp_path / "b", files("fp32").read_bytes())
    (folder / "model.onnx").write_bytes(files("int8").read_bytes())
    for path in (folder, folder / "model.onnx"):
        with pytest.raises(ArtefactError, match="SHA-256"):
            bench_models([path], ["ort_cpu_1t"])


# -- what is said -----------------------------------------------------------------------------------------------------

FP32 = BenchRow("a.onnx", "d", "fp32", 1, 9, 2.0, 1.9, 2.1, 2.2, 2.3, 500.0, 99, "wall", 1.5, "VmHWM", 1, 1, 1, 1, 1, 1)


def lower(low, ratio, high, **fields):
    interval = {"fp32_ratio_low": low, "fp32_ratio": ratio, "fp32_ratio_high": high}
    return dataclasses.replace(FP32, **{"file": "b.onnx", "precision": "int8", **interval, **fields})


def test_where_a_lower_precision_is_not_faster_is_said():
    assert notes([FP32, lower(0.99, 1.02, 1.05)]) == [
        "int8 is not faster than fp32 on d at batch 1: 1.02 of its time (0.99-1.05)"
    ]
    assert notes([FP32, lower(1.5, 1.6, 1.7, precision="fp16", batch_size=8)]) == [
        "fp16 is slower than fp32 on d at batch 8: 1.60 of its time (1.50-1.70)"
    ]
    assert notes([FP32, lower(0.87, 0.91, 1.06)]) == [
        "int8 may be no faster than fp32 on d at batch 1: 0.91 of its time (0.87-1.06); time it longer"
    ]
    assert notes([FP32, lower(0.4, 0.5, 0.99)]) == []
    assert notes([FP32, lower(None, None, None)]) == []
    several = notes([FP32, lower(1, 1, 1), lower(0.5, 0.5, 0.5, file="c.onnx"), lower(2, 2, 2, file="c.onnx")])
    assert [line.partition(" is ")[0] for line in several] == ["b.onnx: int8", "c.onnx: int8"]


def test_clocks_failures_and_unknown_memory_are_said():
    failed = BenchRow("f.onnx", "d", "fp32", 1, 9, error="no")
    said = notes(
        [failed, failed, dataclasses.replace(failed, batch_size=8), dataclasses.replace(FP32, clock="cpu", memory_mib=None)]
    )
    assert said == [
        "Times on d are CPU time of its one thread; images/s are by wall clock.",
        "Memory marked - could not be measured on this system.",
        "f.onnx on d at batch 1, 8: no",
    ]
    (line,) = notes([dataclasses.replace(FP32, memory_source="ru_maxrss")])
    assert line.startswith("Memory is the growth of the process's highest peak so far (ru_maxrss)")


def test_a_table_shows_names_as_they_are(capsys):
    name = "/a/very/long/" + "path/" * 10 + "[red]model[/nothing].onnx"
    show_table(
        [
            dataclasses.replace(FP32, file=name, high_ms=123.4, ratio=0.0123),
            BenchRow(name, "other", "int8", 8, 9, error="no [/way] \x1b[2J"),
        ]
    )
    out = capsys.readouterr().out
    assert out.count(name) == 3
    assert "1.90-123" in out
    assert "0.0123 (1.0000-1.0000)" in out
    assert "cannot run" in out
    assert r"no [/way] \x1b[2J" in out


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_measures_and_prints_a_table(cli, tmp_path, files):
    names = ["--device", "ort_cpu_1t,ort_int8_1t", "--batch", "1", "--seconds", "0.1", "-o", tmp_path / "rows.json"]
    found = cli("bench", files("fp32"), files("int8"), *names)
    assert found.returncode == 0, found.stderr
    assert "net-int8.onnx" in found.stdout
    assert "cannot run" in found.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["device"], row["median_ms"] is None) for row in rows] == [
        ("ort_cpu_1t", False),
        ("ort_cpu_1t", False),
        ("ort_int8_1t", True),
        ("ort_int8_1t", False),
    ]


def test_the_command_prints_what_machines_read(tmp_path, files, no_children):
    command = ["bench", str(files("fp32")), "--batch", "2,1", "--seconds", "0.1", "-o", str(tmp_path / "rows.csv")]
    for option in ("--json", "--format=json"):
        found = CliRunner().invoke(app, [*command, option])
        assert [row["batch_size"] for row in json.loads(found.stdout)["rows"]] == [2, 1]
    found = CliRunner().invoke(app, [*command, "--format=csv"])
    assert found.stdout == (tmp_path / "rows.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(found.stdout)))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,x"], "expected numbers of images with commas"),
        (["--batch", "0"], "expected numbers of images with commas"),
        (["--out", "rows.txt"], "ends in .json or .csv"),
        (["--json", "--format", "csv"], "expected one of them"),
        (["--device", "ort_cpu_1t,"], "unknown device ''"),
        (["--device", "ort_int8_1t", "--batch", "1"], "nothing could be measured"),
    ],
)
def test_the_command_refuses_in_one_line(files, arguments, message):
    found = CliRunner().invoke(app, ["bench", str(files("fp32")), *arguments])
    assert found.exit_code == 1
    assert message in found.stderr
    assert found.stderr.count("error:") == 1


def test_the_child_needs_no_torch():
    code = "import sys, deploy.memory, deploy.bench, deploy.bench_table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
