"""Everything a user can get wrong: one line, the right exit code, nothing lost."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from deploy.export import export_subnet
from deploy.limits import format_value
from deploy.verify import verify_model
from ofa.artefacts import ArtefactError, read_json, write_bytes, write_json
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import UnknownSpaceError, get_space
from ofa.training.checkpoint import list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet

ROOT = Path(__file__).parent.parent.parent


def fails(process, code, *parts):
    """The process ended with `code` and exactly one line of error that holds `parts`."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    for part in parts:
        assert part in errors[0]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may damage."""
    shutil.copytree(trained.path, tmp_path / "run")
    return tmp_path / "run"


# -- names, options, directories ------------------------------------------------------------------------------------


def test_unknown_names_list_the_legal_ones(cli, run, tmp_path):
    fails(
        cli("train", "--space", "mbv4", "--data", "digits", "--out", tmp_path / "x"),
        1,
        "unknown space 'mbv4'",
        "mbv3_small_image",
    )
    fails(
        cli("train", "--space", "mbv3_tiny_image", "--data", "digits", "--out", tmp_path / "x", "--recipe", "r"),
        1,
        "unknown recipe",
        "sandwich",
    )
    fails(
        cli("train", "--space", "mbv3_tiny_image", "--data", "nowhere", "--out", tmp_path / "x"),
        1,
        "no such directory",
        "digits, cifar10",
    )
    fails(cli("profile", run, "--device", "pi4"), 1, "unknown device 'pi4'", "ort_cpu_1t, ort_cpu_2t")
    assert not (tmp_path / "x").exists()


def test_a_module_whose_space_has_another_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "lab_a").mkdir()
    (tmp_path / "lab_a" / "wide.py").write_text("from ofa.spaces.mbv3_tiny_image import SPACE")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownSpaceError, match=r"SPACE is named 'mbv3_tiny_image', expected 'lab_a.wide'"):
        get_space("lab_a.wide")
    with pytest.raises(UnknownSpaceError, match=r"unknown space 'lab_a.narrow'"):
        get_space("lab_a.narrow")
    (tmp_path / "lab_a" / "typo.py").write_text("from ofa.mobilenett import MobileNetSpace")
    with pytest.raises(UnknownSpaceError, match=r"cannot be imported \(No module named 'ofa.mobilenett'"):
        get_space("lab_a.typo")
    for name in ("./x", ".x", "x.", "..", "", "ofa.space"):
        with pytest.raises(UnknownSpaceError):
            get_space(name)


def test_wrong_usage_exits_with_2(cli):
    for arguments in (("train",), ("search",), ("fly",), ("verify", "x", "--seconds", "soon"), ("train", "--resume", "maybe")):
        process = cli(*arguments)
        assert process.returncode == 2
        assert "Traceback" not in process.stderr


def test_a_directory_that_is_no_run_is_refused_by_every_command(cli, tmp_path):
    for command in (["profile", tmp_path], ["search", tmp_path], ["report", tmp_path], ["profile", tmp_path / "none"]):
        fails(cli(*command), 1, "not a run directory", "ofa train")


def test_a_run_of_another_space_is_refused(cli, run):
    process = cli("train", "--space", "mbv3_small_image", "--data", "digits", "--out", run, "--resume", "auto")
    fails(process, 1, "is a run of space 'mbv3_tiny_image', not 'mbv3_small_image'")


def test_limits_are_checked_before_anything_is_measured(cli, run):
    trials = (run / "search" / "trials.jsonl").read_bytes()
    fails(cli("search", run, "--where", "latency@ort_cpu_1t <= 3"), 1, "no unit", "ms")
    fails(cli("search", run, "--where", "latency@pi4 <= 3ms"), 1, "no latency table of device 'pi4'", "ofa profile", "ort_cpu_1t")
    fails(cli("search", run, "--where", "macs <= 50%", "--where", "macs <= 1M"), 1, "macs is limited 2 times")
    fails(cli("search", run, "--where", "latncy@pi4 <= 3ms"), 1, "unknown quantity 'latncy'; known: latency, macs")
    fails(cli("search", run, "--per-device", "--sweep", "macs: 1M..2M x3"), 1, "expected one of them")
    fails(cli("search", run, "--accuracy", "supernett"), 1, "accuracy 'supernett': expected supernet, FILE.csv")
    fails(cli("search", run, "--space", "ofa_mbv3_w1_0"), 1, "is a run in space 'mbv3_tiny_image'")
    fails(cli("search", run, "--where", "latency@ort_cpu_1t <= 1us"), 3, "nearest feasible value: latency@ort_cpu_1t <= ")
    fails(cli("search", run, "--where", "params <= 1K", "--where", "macs <= 100M"), 3, "nearest feasible value: params <= ")
    fails(cli("search", run, "--evals", "0"), 1, "evals is 0, expected at least 1")
    for tag in ("../x", "best", "trials.jsonl", "front.json"):
        fails(cli("search", run, "--tag", tag), 1, "expected a plain folder name")
    assert (run / "search" / "trials.jsonl").read_bytes() == trials


def test_fewer_than_two_classes_and_unreadable_images(cli, image_folder, tmp_path):
    broken = image_folder / "train" / "dark" / "000.png"
    broken.write_bytes(b"?")
    train = ["train", "--space", "mbv3_tiny_image", "--data", image_folder, "--epochs", 1, "--batch-size", 16]
    fails(cli(*train, "--out", tmp_path / "a", "--strict"), 1, "1 of 80 images cannot be read", "000.png")
    process = cli(*train, "--out", tmp_path / "b")
    assert process.returncode == 0, process.stderr
    assert "left out 1 of 80 images" in process.stderr
    shutil.rmtree(image_folder / "train" / "dark")
    fails(cli(*train, "--out", tmp_path / "c"), 1, "1 class (bright), expected at least two")


# -- damaged and foreign files --------------------------------------------------------------------------------------


def sign(folder, files):
    """Change files of a bundle as somebody would who can write SHA256SUMS too."""
    digests = {line.split("  ")[1]: line.split("  ")[0] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    (folder / "SHA256SUMS").write_text("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)))


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign": lambda path: path.write_bytes(b'{"schema": "other/1"}'),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["model.json", "model.onnx", "model.safetensors"])
def test_damaged_export_is_refused_by_verify(trained, tmp_path, file, damage):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    DAMAGE[damage](folder / file)
    with pytest.raises(ArtefactError) as caught:
        verify_model(folder / "model.onnx", seconds=0.1)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_architecture_is_refused_by_export(cli, run, tmp_path, damage):
    DAMAGE[damage](run / "search" / "best" / "arch.json")
    fails(cli("export", run / "search" / "best", "-o", tmp_path / "out"), 1, "arch.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_latency_table_is_refused_by_search(cli, run, damage):
    DAMAGE[damage](run / "latency" / "ort_cpu_1t.json")
    process = cli("search", run, "--where", "latency@ort_cpu_1t <= 1ms")
    fails(process, 1, "ort_cpu_1t")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_damaged_checkpoint_is_refused_and_the_good_one_named(run, file, damage):
    checkpoints = list_checkpoints(run / "supernet")
    DAMAGE[damage](checkpoints[-1].path / file)
    with pytest.raises(ArtefactError, match=f"{checkpoints[0].path.name} is good: remove {checkpoints[-1].path.name}"):
        Run(run).load_supernet()


def test_flipped_bit_in_weights_is_noticed(run):
    path = list_checkpoints(run / "supernet")[-1].path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match="SHA-256"):
        Run(run).load_supernet()


def test_architecture_of_another_space_or_with_illegal_values(cli, run, tmp_path):
    path = run / "search" / "best" / "arch.json"
    good = read_json(path, schema=ARCH_SCHEMA)
    path.write_text(json.dumps({**good, "space": "mbv3_small_image"}))
    fails(cli("export", path, "-o", tmp_path / "out"), 1, "belongs to space 'mbv3_small_image'")
    path.write_text(json.dumps({**good, "values": {**good["values"], "stage1.depth": 5}}))
    fails(cli("export", path, "-o", tmp_path / "out"), 1, "stage1.depth = 5 is not one of: 2, 3, 4")


def test_foreign_onnx_file_is_refused(cli, tmp_path, trained):
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04 not a model")
    fails(cli("verify", tmp_path / "model.onnx"), 1, "no exported bundle (no SHA256SUMS inside)")
    fails(cli("verify", tmp_path / "none.onnx"), 1, "no such file")
    shutil.copytree(trained.path / "export" / "best", tmp_path / "out")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "out")
    fails(cli("verify", tmp_path / "out"), 1, "SHA-256")


def test_every_limit_is_checked_by_its_own_measurement(trained, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    limits = ["params <= 1K", "params <= 1G", "macs <= 1K", "macs <= 1G", "top1 >= 0.01", "top1 >= 0.999"]
    limits += ["latency@ort_cpu_1t <= 10s", "latency@ort_cpu_1t <= 1us"]
    found = verify_model(folder / "model.onnx", limits=limits, seconds=0.2)
    for name in ("params", "macs", "accuracy", "latency@ort_cpu_1t"):
        assert sorted(check.ok for check in found.checks if check.name == name) == [False, True]
    promised = verify_model(folder / "model.onnx", seconds=0.2)
    assert [check.name for check in promised.checks] == ["file", "golden", "parity", "accuracy", "params"]
    front = json.loads((trained.path / "search" / "front.json").read_text())
    (params,) = (check for check in promised.checks if check.name == "params")
    assert params.detail.startswith(format_value("params", front["best"]["costs"]["params"]))


@pytest.mark.parametrize("field", ["sha256", "arch", "classes", "preprocess", "precision", "space"])
@pytest.mark.parametrize("value", [3, {}])
def test_incomplete_model_json_is_refused_by_name(trained, tmp_path, field, value):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    record = json.loads((folder / "model.json").read_text())
    sign(folder, {"model.json": json.dumps({**record, field: value}).encode()})
    with pytest.raises(OfaError, match=field if value != {} or field not in ("arch", "preprocess") else None):
        verify_model(folder / "model.onnx", seconds=0.1)


def test_weights_outside_the_file_are_refused_before_any_runtime_reads_them(trained, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(trained.path / "export" / "best", folder)
    model = onnx.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    content = model.SerializeToString()
    record = json.loads((folder / "model.json").read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    sign(folder, {"model.onnx": content, "model.json": json.dumps(record).encode()})
    monkeypatch.setattr("deploy.file_under_test.open_session", lambda *_: pytest.fail("a runtime opened the file"))
    with pytest.raises(ArtefactError, match=r"outside the file, which is not followed"):
        verify_model(folder / "model.onnx")


def test_export_keeps_the_users_files_and_other_weights_other_numbers(cli, trained, tmp_path):
    out = tmp_path / "project"
    out.mkdir()
    (out / "README.md").write_text("my project")
    export_subnet(trained.path / "search" / "best", out)
    assert (out / "README.md").read_text() == "my project"
    arch = read_json(trained.path / "search" / "best" / "arch.json", schema=ARCH_SCHEMA)
    alone = train_supernet(
        "mbv3_tiny_image",
        "digits",
        tmp_path / "alone",
        config=TrainConfig(epochs=1, batch_size=512),
        arch=trained.space.from_json(arch),
    )
    model = export_subnet(trained.path / "search" / "best", tmp_path / "other", run=alone.path)
    record = json.loads((model.path.parent / "model.json").read_text())
    assert "top1_validation" not in record  # that was the supernet's
    assert record["limits"] == ["params <= 200K"]


def test_a_damaged_table_that_no_limit_needs_is_left_out_with_a_warning(cli, run):
    (run / "latency" / "other.json").write_text("{")
    process = cli("search", run, "--where", "macs <= 2M", "--evals", 20, "--rounds", 1)
    assert process.returncode == 0, process.stderr
    assert "other.json: not valid JSON" in process.stderr


def test_broken_promises_exit_with_4(cli, trained):
    model = trained.path / "export" / "best" / "model.onnx"
    fails(cli("verify", model, "--where", "latency@ort_cpu_1t <= 1us", "--seconds", "0.2"), 4, "latency@ort_cpu_1t failed")
    fails(cli("verify", model, "--where", "top1 >= 0.999", "--seconds", "0.2"), 4, "accuracy failed")


# -- full disks and interruptions -----------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"schema": "s/1", "value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"schema": "s/1", "value": float("nan")})
    assert read_json(path, schema="s/1")["value"] == 1

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_json(path, schema="s/1")["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(cli, run):
    """The error of a full disk is raised where the checkpoint is written, as the system would."""
    code = (
        "import errno, sys, ofa.artefacts\n"
        "import ofa.training.checkpoint as c\n"
        "def full(path, data): raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "c.write_bytes = full\n"
        "from search.cli import main; main()"
    )
    newest = list_checkpoints(run / "supernet")[-1]
    shutil.rmtree(newest.path)
    arguments = [
        "train",
        "--space",
        "mbv3_tiny_image",
        "--data",
        "digits",
        "--out",
        str(run),
        "--resume",
        "auto",
        "--epochs",
        "2",
        "--batch-size",
        "64",
    ]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)
    fails(process, 1, "No space left on device", "free some space")
    assert [c.step for c in list_checkpoints(run / "supernet")] == [18]
    assert not list((run / "supernet").glob(".*partial"))
    assert cli(*arguments).returncode == 0
    assert [c.step for c in list_checkpoints(run / "supernet")] == [18, 36]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_its_step_and_resumes(cli, tmp_path, number):
    arguments = [
        "train",
        "--space",
        "mbv3_tiny_image",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "x"),
        "--epochs",
        "200",
        "--batch-size",
        "64",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from search.cli import main; main()", *arguments],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = tmp_path / "x" / "supernet" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list_checkpoints(tmp_path / "x" / "supernet")[-1].step > 0


@pytest.mark.parametrize(
    ("arguments", "journal"),
    [
        (["profile", "--rounds", "100000"], "latency/ort_cpu_1t.journal.jsonl"),
        (["search", "--evals", "2000"], "search/trials.jsonl"),
    ],
)
def test_interrupted_measuring_keeps_what_was_measured(run, arguments, journal):
    process = subprocess.Popen(
        [sys.executable, "-c", "from search.cli import main; main()", arguments[0], str(run), *arguments[1:]],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a test run started in the background hands down an ignored SIGINT, and Python would leave it so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    before = (run / journal).read_bytes()
    deadline = time.monotonic() + 100
    while (run / journal).stat().st_size < len(before) + 100 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; what was finished is kept" in errors
    assert "Traceback" not in errors
    after = (run / journal).read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)


def test_killed_training_equals_an_uninterrupted_run(tmp_path):
    """SIGKILL while checkpoints are written and between them, then --resume auto: the same weights to the last bit."""
    base = ["train", "--space", "mbv3_tiny_image", "--data", "digits", "--epochs", "4", "--batch-size", "256", "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out):
        command = [sys.executable, "-c", "from search.cli import main; main()", *base, "--out", str(out)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)

    def kill_when(process, condition):
        deadline = time.monotonic() + 100
        while not condition() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.0005)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()

    assert start(tmp_path / "straight").wait(200) == 0
    supernet = tmp_path / "killed" / "supernet"
    kill_when(start(tmp_path / "killed"), lambda: list(supernet.glob(".step_*.partial")))  # a half-written first checkpoint
    kill_when(start(tmp_path / "killed"), lambda: list(supernet.glob("step_*")))
    begun = {c.step for c in list_checkpoints(supernet)}
    assert begun
    kill_when(start(tmp_path / "killed"), lambda: {c.step for c in list_checkpoints(supernet)} - begun)
    assert start(tmp_path / "killed").wait(200) == 0
    ends = [list_checkpoints(tmp_path / name / "supernet")[-1] for name in ("straight", "killed")]
    assert ends[0].step == ends[1].step == 16
    assert (ends[0].path / "model.safetensors").read_bytes() == (ends[1].path / "model.safetensors").read_bytes()
