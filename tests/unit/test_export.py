"""Bundles: what an export writes, in every precision and by both doors, and that it can be proved."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save
from torch import nn

from deploy.bundle import open_bundle, write_bundle
from deploy.comparison import paired_interval
from deploy.device import get_device
from deploy.emit import emit, layer_names
from deploy.export import export_searches, export_subnet
from deploy.export_module import export_module, make_module
from deploy.file_under_test import FileUnderTest
from deploy.fold import fold
from deploy.limits import parse_limit
from deploy.pack import ParityError, Source, check_file, format_arrays, metadata, pack, preprocessing
from deploy.precision import PrecisionError
from deploy.prove import prove
from deploy.runtimes import open_session
from deploy.timing import measure
from deploy.verify import verify_model
from deploy.verify_latency import Anchor, TimedFile, open_anchor, time_file
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.errors import OfaError
from ofa.spaces import get_space
from ofa.training.data import Preprocessing

PARTS = {
    "MODEL_CARD.md",
    "arch.json",
    "golden.npz",
    "labels.txt",
    "model.json",
    "model.onnx",
    "model.safetensors",
    "preprocess.json",
    "run.py",
}
SPACE = get_space("mbv3_tiny_image")


@pytest.fixture
def best(trained):
    return trained.path / "search" / "best"


def test_a_bundle_holds_all_parts_and_sha256sum_agrees(trained):
    folder = trained.path / "export" / "best"
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == PARTS
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    record = open_bundle(folder).record
    assert (record["precision"], record["opset"], record["ir_version"], record["quantisation"]) == ("fp32", 17, 8, None)
    assert (folder / "labels.txt").read_text().splitlines() == record["classes"] == [str(i) for i in range(10)]
    stored = {entry.key: json.loads(entry.value) for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert stored["ofa.preprocess"] == json.loads((folder / "preprocess.json").read_text()) == record["preprocess"]
    assert (stored["ofa.arch"], stored["ofa.precision"]) == (record["arch"], "fp32")


def test_equal_exports_have_equal_files(trained, best, tmp_path):
    for name in ("a", "b"):
        export_subnet(best, tmp_path / name / "out", precision="int8")
    first, second = (open_bundle(tmp_path / name / "out") for name in ("a", "b"))
    assert first.digests == second.digests


def test_the_runner_in_the_bundle_stands_alone(trained):
    done = subprocess.run(
        [sys.executable, "-I", trained.path / "export" / "best" / "run.py", "--self-test"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.55), ("int8", 0.45), ("a16w8", 0.45)])
def test_every_precision_is_smaller_as_good_and_proved(best, tmp_path, precision, most):
    whole = export_subnet(best, tmp_path / "fp32")
    model = export_subnet(best, tmp_path / precision, precision=precision)
    assert model.size_bytes < most * whole.size_bytes
    assert model.parity_error < 1e-5 < model.deviation
    for part in (
        "model.safetensors",
        "arch.json",
        "labels.txt",
        "preprocess.json",
    ):  # the network in fp32, whatever it was rounded to
        assert (tmp_path / precision / part).read_bytes() == (tmp_path / "fp32" / part).read_bytes()
    record = open_bundle(tmp_path / precision).record
    assert record["precision"] == precision
    cost = record["quantisation"]
    assert cost["top1_fp32"] - cost["top1"] <= 0.005
    assert cost["agreement"] > 0.9
    low, high = cost["drop_interval"]
    assert low <= cost["top1_fp32"] - cost["top1"] <= high
    found = verify_model(tmp_path / precision, limits=["top1 >= 0.2", "size <= 500KB", f"size@{precision} <= 500KB"], seconds=0.1)
    assert found.ok, found.checks
    assert found.fp32 is not None
    alone = verify_model(tmp_path / "fp32", limits=[], seconds=0.1)
    assert found.fp32.top1_fp32 == alone.top1  # what was lost is lost against the fp32 file
    names = [check.name for check in found.checks]
    assert names == ["file", "golden", "parity", "accuracy", "size", f"size@{precision}"]
    card = (tmp_path / precision / "MODEL_CARD.md").read_text()
    assert f"## Quantisation\n\n{precision}: top-1 on {cost['images']} validation images" in card
    assert "| accuracy | ok |" in card


def test_layers_keep_the_precision_that_was_asked_for(best, tmp_path):
    model = export_subnet(
        best, tmp_path / "out", precision="int8", layers={"*.depthwise": "a16w8", "final": "fp32"}, max_drop=1.0
    )
    record = open_bundle(model.path).record
    blocks = SPACE.blocks(model.arch)
    depthwise = [name for name in layer_names(blocks) if name.endswith(".depthwise")]
    assert record["layers"] == {**dict.fromkeys(depthwise, "a16w8"), "final": "fp32"}
    assert record["opset"] == 21  # sixteen bits need it
    stored = onnx.load(model.path)
    assert {tensor.data_type for tensor in stored.graph.initializer} >= {onnx.TensorProto.UINT16, onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "int9"}, "unknown precision 'int9'"),
        ({"finetune_epochs": 2}, "finetune 2: is for integers, this export is fp32; for fp32 use: ofa specialize"),
        ({"layers": {"final": "int8"}}, "differ in an export in integers only"),
        ({"precision": "int8", "layers": {"nothing*": "fp32"}}, r"layer 'nothing\*' fits none of this network; it has: stem"),
        ({"precision": "int8", "layers": {"final": "fp64"}}, "unknown precision 'fp64'"),
        ({"opset": 12}, "opset 12: a file can be written in 13 to"),
        ({"precision": "a16w8", "opset": 17}, "opset 17: activations of more than 8 bits can be written in 21 to"),
    ],
)
def test_exports_that_cannot_be_are_refused_and_write_nothing(best, tmp_path, options, match):
    with pytest.raises(OfaError, match=match):
        export_subnet(best, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_exports_whatever_its_searches_found(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.path, run, ignore=shutil.ignore_patterns("export"))
    shutil.copytree(run / "search" / "best", run / "search" / "fast" / "best")
    models = export_searches(run, tmp_path / "out")
    assert [model.path.parent.name for model in models] == ["best", "fast"]
    assert models[0].sha256 == models[1].sha256
    for model in models:
        assert open_bundle(model.path).record["limits"] == ["params <= 200K"]
    shutil.rmtree(run / "search")
    with pytest.raises(OfaError, match="holds no finished search; run: ofa search"):
        export_searches(run, tmp_path / "out")


def test_old_runtimes_get_an_old_opset(best, tmp_path):
    model = export_subnet(best, tmp_path / "out", opset=13)
    stored = onnx.load(model.path)
    assert (stored.opset_import[0].version, stored.ir_version) == (13, 7)
    assert not any(node.op_type == "HardSwish" for node in stored.graph.node)  # it came with 14


# -- what every file passes -------------------------------------------------------------------------------------------


def source_of(net, resolution=16):
    facts = {"space": None, "arch": None, "classes": list("0123456789"), "weights_sha256": None}
    examples = np.random.default_rng(0).integers(0, 256, (2, resolution, resolution, 3), dtype=np.uint8)
    how = Preprocessing((0.5,) * 3, (0.25,) * 3, flip=False)
    return Source(net, preprocessing(resolution, resolution, how), examples, facts, {})


def tiny():
    torch.manual_seed(0)
    blocks = SPACE.blocks(SPACE.smallest)
    return blocks, build_network(blocks, bn_eps=SPACE.bn_eps).eval()


def test_a_file_of_other_weights_is_not_packed(tmp_path):
    blocks, net = tiny()
    content = emit(blocks, {name: 1.01 * weight for name, weight in fold(net).items()})
    with pytest.raises(ParityError, match="differs from PyTorch by"):
        pack(tmp_path / "out", content, source_of(net, SPACE.resolution(SPACE.smallest)), reference=content)
    assert not (tmp_path / "out").exists()


def test_a_file_with_a_batch_norm_is_not_packed(tmp_path):
    blocks, net = tiny()
    model = onnx.load_from_string(emit(blocks, fold(net)))
    node = model.graph.node[-1]
    ones = [onnx.numpy_helper.from_array(np.ones(10, np.float32), f"bn{i}") for i in range(4)]
    model.graph.initializer.extend(ones)
    norm = onnx.helper.make_node("BatchNormalization", [node.input[0], *(tensor.name for tensor in ones)], ["normed"])
    node.input[0] = "normed"
    model.graph.node.insert(len(model.graph.node) - 1, norm)
    with pytest.raises(OfaError, match="a BatchNormalization was not folded"):
        check_file(model.SerializeToString(), tmp_path)


def test_arrays_are_written_without_the_time_and_read_by_numpy(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array(0.5, np.float32)}
    assert format_arrays(arrays) == format_arrays(arrays)
    (tmp_path / "x.npz").write_bytes(format_arrays(arrays))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].shape == array.shape


def test_metadata_is_text_that_json_reads():
    found = metadata(source_of(tiny()[1]), "int8")
    assert json.loads(found["ofa.precision"]) == "int8"
    assert json.loads(found["ofa.classes"]) == list("0123456789")


def signed(folder, **files):
    """Change files of a bundle as somebody would who can write SHA256SUMS too."""
    content = {name.replace("__", "."): data for name, data in files.items()}
    kept = open_bundle(folder)
    parts = {name: kept.read(name) for name in kept.digests} | content
    record = json.loads(parts["model.json"]) | {"sha256": hashlib.sha256(parts["model.onnx"]).hexdigest()}
    write_bundle(folder, {**parts, "model.json": json.dumps(record).encode()})


def test_a_file_or_weights_of_another_network_do_not_pass_for_this_one(trained, best, tmp_path):
    int8 = export_subnet(best, tmp_path / "int8", precision="int8").path
    others = {name: np.random.default_rng(0).permuted(value) for name, value in fold(net_of(int8.parent)).items()}
    file = emit(SPACE.blocks(trained.space.from_json(json.loads((int8.parent / "arch.json").read_text()))), others)
    signed(tmp_path / "int8", model__onnx=file)
    failed = [check.name for check in verify_model(int8, limits=[], seconds=0.1).checks if not check.ok]
    assert failed == ["golden", "parity"]
    export_subnet(best, tmp_path / "int8", precision="int8")
    assert verify_model(int8, limits=[], seconds=0.1).ok
    state = {name: torch.zeros_like(value) for name, value in net_of(int8.parent).state_dict().items()}
    signed(tmp_path / "int8", model__safetensors=save(state))
    failed = [check for check in verify_model(int8, limits=[], seconds=0.1).checks if not check.ok]
    assert [check.name for check in failed] == ["parity"]
    assert "its weights, rebuilt, by" in failed[0].detail


def net_of(folder):
    """The PyTorch network of a bundle."""
    return FileUnderTest(open_bundle(folder), [], ()).net


def test_a_record_of_another_precision_is_refused(best, tmp_path):
    model = export_subnet(best, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    signed(tmp_path / "out", model__json=json.dumps({**record, "precision": "int8"}).encode())
    with pytest.raises(ArtefactError, match=r'is "fp32", model\.json says int8'):
        verify_model(model.path, limits=[], seconds=0.1)


@pytest.mark.parametrize(("lose", "win", "n"), [(0.01, 0.01, 135), (0.01, 0.003, 135), (0.004, 0.0, 135), (0.02, 0.01, 5000)])
def test_the_interval_of_a_drop_holds_what_it_promises(lose, win, n):
    """Draw images that one file gets right and the other wrong; the true difference lies inside in 95 % of the cases or more."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [lose, win, 1 - lose - win], 2000)
    inside = [low <= lose - win <= high for low, high in (paired_interval(int(b), int(c), n) for b, c, _ in draws)]
    assert np.mean(inside) > 0.93
    low, high = paired_interval(0, 0, 135)
    assert low < 0 < high  # no difference among 135 images proves none


def test_a_network_that_leaves_fp16_is_refused():
    from deploy.rounding import _require_in_fp16

    blocks = {"block": BlockSpec("linear", 4, 3, 1)}
    images = [np.ones((2, 4), np.float32)]
    _require_in_fp16(blocks, {"block.weight": np.full((3, 4), 1e3, np.float32)}, images)
    with pytest.raises(PrecisionError, match=r"reaches 8e\+04, which fp16 cannot hold"):
        _require_in_fp16(blocks, {"block.weight": np.full((3, 4), 2e4, np.float32)}, images)


def test_a_result_that_was_cut_off_costs_no_model(trained, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    verify_model(folder, limits=[], seconds=0.1)
    (folder / "verify.json").write_text("{")
    bundle = open_bundle(folder)
    assert not bundle.has("verify.json")
    assert "verify.json: SHA-256 is" in capsys.readouterr().err
    assert verify_model(folder, limits=[], seconds=0.1).ok
    assert open_bundle(folder).has("verify.json")


# -- any module -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A network of no space, with a BatchNorm that no exporter folds: after a concatenation."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 1, 2)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, num_classes)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(nn.functional.hardswish(self.norm(x)).mean((2, 3)))


def test_any_module_ends_in_the_same_checks(tmp_path):
    torch.manual_seed(0)
    model = export_module(Net(), tmp_path / "out", resolution=16)
    record = open_bundle(model.path).record
    assert (record["space"], record["arch"], len(record["classes"])) == (None, None, 10)
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(model.path).graph.node)
    found = verify_model(model.path, devices=["ort_cpu_1t"], limits=["latency <= 1s", "size <= 1MB"], seconds=0.1)
    assert found.ok
    assert found.top1 is None  # there are no images
    assert [check.name for check in found.checks] == ["file", "golden", "parity", "size", "latency@ort_cpu_1t"]
    for limit, message in (
        ("accuracy >= 0.5", "names no images; name some with --data"),
        ("macs <= 1M", "only a file of one of our spaces tells"),
        ("memory <= 1MB", "only a file of one of our spaces tells"),
    ):
        with pytest.raises(OfaError, match=message):
            verify_model(model.path, limits=[limit], seconds=0.1)


@pytest.mark.parametrize("precision", ["fp16", "int8", "a16w8"])
def test_any_module_in_every_precision(tmp_path, precision):
    torch.manual_seed(0)
    model = export_module(Net(), tmp_path / "out", resolution=16, data="digits", precision=precision)
    record = open_bundle(model.path).record
    assert record["precision"] == precision
    assert record["quantisation"]["agreement"] > 0.8
    found = verify_model(model.path, limits=[], seconds=0.1)
    assert found.ok
    assert [check.name for check in found.checks] == ["file", "golden", "parity", "accuracy"]


def test_modules_that_cannot_be_exported_get_one_line(tmp_path):
    for make, match in (
        (lambda: export_module(Net(), tmp_path / "a", resolution=16, precision="int8"), "needs images to calibrate on"),
        (lambda: export_module(Net(7), tmp_path / "a", resolution=16, data="digits"), "has 7 logits, but there are 10 classes"),
        (lambda: export_module(nn.Conv2d(1, 2, 1), tmp_path / "a"), "does not map images"),
        (lambda: export_module(Net(), tmp_path / "a", std=(0.0, 1.0, 1.0)), "those of std above zero"),
        (lambda: make_module("torchvision.models:nothing"), "has no function 'nothing'"),
        (lambda: make_module("nowhere.at:all"), "no module 'nowhere'"),
        (lambda: make_module("json:dumps"), "fails when called with no arguments"),
        (lambda: make_module("builtins:dict"), "returns a dict, expected a torch.nn.Module"),
    ):
        with pytest.raises(OfaError, match=match) as caught:
            make()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_weights_of_a_module_are_read_without_running_code(tmp_path):
    torch.manual_seed(0)
    net = Net()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    again = make_module(f"{__name__}:Net", weights=tmp_path / "net.pth")
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again.eval()(images), net.eval()(images))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(OfaError, match="not the weights of"):
        make_module(f"{__name__}:Net", weights=tmp_path / "other.pth")


# -- latency ----------------------------------------------------------------------------------------------------------


def test_a_limit_without_a_device_is_one_on_those_that_are_named():
    from deploy.file_under_test import _limits

    assert _limits(["latency <= 3ms"], []) == [parse_limit("latency@ort_cpu_1t <= 3ms")]
    assert _limits(["latency <= 3ms", "top1 >= 0.5"], ["a", "b.toml"]) == [
        parse_limit("latency@a <= 3ms"),
        parse_limit("latency@b <= 3ms"),
        parse_limit("top1 >= 0.5"),
    ]


def timed(then_ms, now_ms, ratio=1.0):
    latency = measure(lambda: None, clock="cpu", seconds=0.05)
    return TimedFile(latency, Anchor(then_ms, now_ms, ratio, 0.9 * ratio, 1.1 * ratio), 0.0, 0.0)


def test_an_anchor_at_another_speed_is_told():
    for now_ms in (0.5, 1.04):  # a machine that is faster than then needs no excuse
        assert not timed(1.0, now_ms).anchor.is_slower
        assert "its latency table" not in str(timed(1.0, now_ms))
    slow = timed(2.0, 4.0, 1.5)
    assert slow.anchor.factor == 2.0
    assert timed(1.0, 1500.0).anchor.is_elsewhere
    assert "not the machine of its latency table" in str(timed(1.0, 1500.0))
    assert "takes 2.00 of the time" in str(slow)
    assert "at that speed 3 ms" in str(slow)


def test_a_file_beside_itself_takes_its_anchors_time():
    """The anchor is the file: whatever speed the machine has, at the table's speed it takes what the anchor took then."""
    blocks, side = SPACE.blocks(SPACE.smallest), SPACE.resolution(SPACE.smallest)
    device, content = get_device("ort_cpu_1t"), emit(blocks)
    then_ms = time_file(content, device, side, [], seconds=0.2).latency.median_ms / 1.8
    fields = {
        "blocks": {name: spec.to_dict() for name, spec in blocks.items()},
        "latency_ms": then_ms,
    }  # as on a machine of twice the speed
    found = time_file(content, device, side, [], seconds=0.2, anchor=open_anchor(fields, device, Path()))
    if found.anchor.is_slower and not found.anchor.is_elsewhere:  # the machine itself may change meanwhile
        assert found.low_ms <= then_ms * 1.1
        assert found.high_ms >= then_ms * 0.9
    assert found.anchor.ratio == pytest.approx(1.0, abs=0.25)  # two sessions of one graph, on a machine that others use
    assert open_anchor(None, device, Path()) is None
    assert open_anchor({**fields, "latency_ms": -1}, device, Path()) is None
    with pytest.raises(ArtefactError, match="is no block that can be built"):
        open_anchor({**fields, "blocks": {"stem": {**fields["blocks"]["stem"], "in_channels": 10**9}}}, device, Path())


def test_prove_writes_the_bench_and_the_verification(trained, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    rows, found = prove(folder, seconds=0.1)
    assert found.ok
    assert {row.batch_size for row in rows} == {1, 8}
    bundle = open_bundle(folder)
    assert bundle.has("bench.json")
    assert bundle.has("verify.json")
    golden = bundle.arrays("golden.npz")
    session = open_session(bundle.read("model.onnx"), get_device("ort_cpu_1t"))
    pre = bundle.record["preprocess"]
    how = Preprocessing(tuple(pre["mean"]), tuple(pre["std"]), flip=False)
    images = how(torch.from_numpy(golden["images"]).permute(0, 3, 1, 2), pre["resolution"]).numpy()
    np.testing.assert_allclose(session.run(np.ascontiguousarray(images)), golden["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(golden["reference"], golden["logits"], rtol=1e-3, atol=1e-4)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["torchvision.models:resnet18", "--finetune", "1"], "--finetune with torchvision.models:resnet18"),
        (["BEST", "--resolution", "64"], "--resolution with"),
        (["BEST", "--layer", "final"], "--layer 'final': expected PATTERN=PRECISION"),
        (["BEST", "--max-drop", "1%"], "--max-drop with fp32: these options are for int8 and a16w8"),
        (["BEST", "--device", "ort_cpu_1t", "--no-prove"], "--device with --no-prove"),
        (["BEST", "--device", "nonsense"], "unknown device 'nonsense'"),
        (["BEST", "--precision", "int8", "--max-drop", "much"], "--max-drop 'much': expected a share"),
        (["torchvision.models:resnet18", "--mean", "1,2"], "--mean '1,2': expected three numbers"),
        (["torchvision.models:resnet18", "--labels", "none.txt"], "--labels none.txt: cannot be read"),
        (["torchvision.models:resnet18", "--exporter", "magic"], "exporter 'magic' is not known"),
        (["RUN", "--run", "RUN"], "is a run itself; leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(trained, best, tmp_path, capsys, arguments, match):
    from typer.testing import CliRunner

    from search.cli import app

    words = {"BEST": str(best), "RUN": str(trained.path)}
    command = ["export", *(words.get(word, word) for word in arguments), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert match in result.output + capsys.readouterr().err
    assert not (tmp_path / "out").exists()
