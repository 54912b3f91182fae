"""The runner that travels with a model: stands alone, prepares images as training did, notices what changed."""

import ast
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from deploy import runner
from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.runtimes import open_session
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.data import Preprocessing
from ofa.training.image_files import SUFFIXES, read_image_folder

SOURCE = Path(runner.__file__)
CPU = get_device("ort_cpu_1t")
STORED, MEAN, STD = 20, (0.48, 0.45, 0.4), (0.23, 0.22, 0.25)
LABELS = ("zero", "ärger", "a, b", '"c"', "d\x1b[31m", "e\u202e", "", "日本", "eight", "nine")


@pytest.fixture(scope="module")
def network():
    """A tiny network whose logits differ clearly from image to image."""
    torch.manual_seed(0)
    space = get_space("mbv3_tiny_image")
    net = Supernet(space).extract(space.largest)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running_mean" in name or name.endswith("bn.bias"):
                tensor.normal_(0, 0.2)
    return space, net.eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """A bundle as an export writes it. Tests must not change it."""
    space, net = network
    folder = tmp_path_factory.mktemp("exported")
    content = emit(space.blocks(space.largest), fold(net))
    resolution = space.resolution(space.largest)
    images = np.random.default_rng(0).integers(0, 256, (5, STORED, STORED, 3), dtype=np.uint8)
    inputs = project_inputs(images, resolution)
    (folder / "model.onnx").write_bytes(content)
    np.savez(
        folder / "golden.npz",
        images=images,
        logits=open_session(content, CPU).run(np.ascontiguousarray(inputs.numpy())),
        reference=net(inputs).detach().numpy(),
        tolerance=np.array(1e-4),
    )
    settings = {**runner.KNOWN, "stored_size": STORED, "resolution": resolution, "scale": 1 / 255}
    settings |= {"mean": MEAN, "std": STD, "input": "images", "output": "logits"}
    (folder / "preprocess.json").write_text(json.dumps(settings))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    shutil.copy(SOURCE, folder / "run.py")
    sign(folder)
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy of the bundle that a test may spoil."""
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders, beside what is no image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / ".cache").mkdir()
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.JPG", "c.bmp", "more/d.png", "more/e.png", ".hidden.png", ".cache/f.png"):
        Image.fromarray(rng.integers(0, 256, (31, 26, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def project_inputs(images, resolution):
    """What training feeds a network with: images (n, s, s, 3) uint8 -> (n, 3, r, r)."""
    return Preprocessing(MEAN, STD, flip=False)(torch.from_numpy(images).permute(0, 3, 1, 2), resolution)


def sign(folder):
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def run(capsys, *arguments):
    """Run in this process; return exit code, stdout, stderr."""
    code = runner.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def fails(capsys, *arguments, code=1):
    """Run what must fail with one line; return it."""
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# -- what it is -------------------------------------------------------------------------------------------------------

ALONE = """
import os, runpy, sys

absent = set(sys.argv[1].split(","))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        assert not writes or path == os.devnull, f"writes {path}"
    allowed = ("os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv", "os.add_dll_directory")
    assert not event.startswith(("socket.", "subprocess.", "urllib.", "os.")) or event in allowed, event

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[2:]
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FOREIGN = "torch,torchvision,onnx,scipy,sklearn,typer,pydantic,rich,safetensors,ofa,deploy,latency,search"


def alone(folder, *arguments, without="", **kwargs):
    """Run a bundle's run.py where neither this project nor torch exists, and nothing may be written or connected to."""
    absent = f"{FOREIGN},{without}" if without else FOREIGN
    command = [sys.executable, "-I", "-B", "-c", ALONE, absent, str(folder / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, **kwargs)


def test_it_needs_python_3_8_numpy_onnxruntime_and_pillow_only():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


def test_it_stands_alone(exported, photos):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    tested = alone(exported, "--self-test", without="PIL")
    assert (tested.returncode, tested.stderr) == (0, "")
    assert tested.stdout.startswith("ok: 5 files as exported; logits of 5 images differ by ")
    done = alone(exported, photos, "--json", "--threads", 1, cwd="/")
    assert done.returncode == 0, done.stderr
    assert [Path(image["file"]).name for image in json.loads(done.stdout)] == ["a.png", "b.JPG", "c.bmp", "d.png", "e.png"]
    assert "5 images in " in done.stderr
    assert " images/s; the network took " in done.stderr
    assert {path: path.read_bytes() for path in exported.iterdir()} == before


def test_what_is_not_installed_is_said(exported, photos):
    missing = alone(exported, photos, without="PIL")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "pip install pillow" in missing.stderr
    missing = alone(exported, "--self-test", without="onnxruntime")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "error: onnxruntime is not installed here: pip install onnxruntime\n"


def test_it_runs_networks_with_the_options_of_the_runtime_that_was_timed(exported, monkeypatch):
    import onnxruntime as ort

    from deploy.runtimes.onnxruntime import session_options

    given = []
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda content, options, **kw: given.append(options) or real(content, options, **kw)
    )
    runner.Classifier(exported, threads=1)
    names = [n for n in dir(given[0]) if not n.startswith("_") and not callable(getattr(given[0], n))]
    differ = {n for n in names if getattr(given[0], n) != getattr(session_options(CPU), n)}
    assert differ <= {"inter_op_num_threads"}  # of no effect where operators run one after the other


def test_it_looks_for_the_images_that_training_looks_for():
    assert runner.SUFFIXES == SUFFIXES


# -- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "resolution"),
    [(20, 16), (24, 24), (16, 41), (64, 7), (65, 64), (256, 224), (160, 128), (96, 97), (5, 224), (300, 1), (1, 8)],
)
def test_second_resize_is_torchs(exported, stored, resolution):
    images = np.random.default_rng(stored).integers(0, 256, (3, stored, stored, 3), dtype=np.uint8)
    classifier = runner.Classifier(exported)
    classifier.settings = classifier.settings._replace(stored_size=stored, resolution=resolution)
    classifier._matrix = runner.resize_matrix(stored, resolution)
    found = classifier.preprocess(images)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    expected = project_inputs(images, resolution).numpy()
    assert (np.abs(found - expected).max((0, 2, 3)) * STD).max() <= 1e-6  # of a pixel's range


def every_kind_of_image(folder):
    """Save an image of each kind that can be read; sides are odd, wide, high, and smaller than what is stored."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        coarse = rng.integers(0, 256, (7, 5, *shape[2:]), dtype=np.uint8)
        return np.array(Image.fromarray(coarse).resize(shape[1::-1], Image.Resampling.BICUBIC))

    colour = Image.fromarray(noise(37, 53, 3))
    colour.save(folder / "wide.png")
    Image.fromarray(noise(301, 97, 3)).save(folder / "high.jpg")
    Image.fromarray(noise(STORED, STORED, 3)).save(folder / "as stored.png")
    Image.fromarray(noise(3, 4, 3)).save(folder / "enlarged.png")
    Image.fromarray(noise(1, 1, 3)).save(folder / "one pixel.png")
    Image.fromarray(noise(41, 30, 4)).save(folder / "alpha.png")
    Image.fromarray(noise(41, 30, 4)).save(folder / "alpha.webp", lossless=True)
    Image.fromarray(noise(33, 44)).convert("LA").save(folder / "grey alpha.png")
    Image.fromarray(noise(33, 44)).save(folder / "grey.jpg")
    Image.fromarray(noise(33, 44)).convert("1").save(folder / "one bit.png")
    Image.fromarray((noise(33, 44).astype(np.uint16) << 8) + 77).save(folder / "grey16.png")
    Image.fromarray((noise(33, 44).astype(np.uint16) << 8) + 77).save(folder / "grey16.tiff")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.gif")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "transparent.png", transparency=3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colour.save(folder / f"turned {orientation}.jpg", exif=exif)


def test_every_kind_of_image_file_is_decoded_as_training_does(tmp_path):
    folder = tmp_path / "train" / "all"
    folder.mkdir(parents=True)
    every_kind_of_image(folder)
    for size in (STORED, 33, 64):
        expected, _, _ = read_image_folder(tmp_path, ("train",), size=size, max_size=size, classes=None, strict=True)
        found = [runner.decode(path, size) for path in runner.find_images([str(folder)])]
        assert len(found) == len(list(folder.iterdir()))
        np.testing.assert_array_equal(np.stack(found), expected)


def test_16_bit_png_of_older_pillows_keeps_its_range():
    """They call its mode "I", which elsewhere has no known range."""
    grey = Image.fromarray(np.array([[0, 258, 65535]], np.int32))
    assert grey.mode == "I"
    np.testing.assert_array_equal(np.asarray(runner.to_rgb(grey, png=True))[0, :, 0], [0, 1, 255])
    with pytest.raises(ValueError, match="mode I has no known range"):
        runner.to_rgb(grey, png=False)


def test_predictions_are_those_of_the_network(exported, network, photos):
    space, net = network
    classifier = runner.Classifier(exported)
    paths = list(runner.find_images([str(photos)]))
    images = np.stack([runner.decode(path, STORED) for path in paths])
    with torch.no_grad():
        expected = net(project_inputs(images, space.resolution(space.largest))).double()
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.classify(images), expected.softmax(1), rtol=1e-4)
    probabilities, order = expected.softmax(1).sort(descending=True)
    for row, path in enumerate(paths):
        found = classifier.predict(path, top=3)
        assert [label for label, _ in found] == [LABELS[i] for i in order[row, :3]]
        assert [p for _, p in found] == pytest.approx(probabilities[row, :3].tolist(), rel=1e-4)
    with pytest.raises(ValueError, match=r"images are uint8 \(1, 8, 8, 3\), expected uint8 \(n, 20, 20, 3\)"):
        classifier.logits(np.zeros((1, 8, 8, 3), np.uint8))


def test_probabilities_of_large_logits():
    found = runner.softmax(np.array([[1000, 1000, -1000], [-1000, -1001, -5000]], np.float32))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]])


def test_preprocessing_takes_less_time_than_decoding(exported, tmp_path):
    """A hundred photos of 640x480 to 256 px to 224 px, one thread: see the figures in the failure."""
    settings = runner.parse_settings((exported / "preprocess.json").read_bytes())
    classifier = runner.Classifier(exported)
    classifier.settings = settings._replace(stored_size=256, resolution=224)
    classifier._matrix = runner.resize_matrix(256, 224)
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=90)

    def seconds(call):
        began = time.thread_time()
        call()
        return time.thread_time() - began

    photo = str(tmp_path / "photo.jpg")
    decoding = min(seconds(lambda: [runner.decode(photo, 256) for _ in range(100)]) for _ in range(3))
    images = np.stack([runner.decode(photo, 256)] * 10)
    preparing = min(seconds(lambda: [classifier.preprocess(images) for _ in range(10)]) for _ in range(3))
    print(f"100 images: decoding {decoding:.3f} s, preprocessing {preparing:.3f} s")
    assert preparing < decoding


# -- what it prints ---------------------------------------------------------------------------------------------------


def test_table_is_for_people(exported, photos, capsys):
    code, out, err = run(capsys, "--model", exported, photos / "a.png", photos / "more", "--top", 2, "--batch", 2, "--threads", 1)
    header, *rows = out.splitlines()
    assert code == 0
    assert header.split() == ["file", "label", "probability"]
    assert len(rows) == 6
    assert [row.split()[0] for row in rows[::2]] == [str(photos / name) for name in ("a.png", "more/d.png", "more/e.png")]
    assert all(row.startswith(" ") for row in rows[1::2])
    assert len({len(row) for row in [header, *rows]}) == 1
    assert 0 < float(rows[0].split()[-1]) < 1
    assert err.startswith("3 images in ")
    assert "(batches of 2, 1 thread, CPUExecutionProvider)" in err


def test_csv_and_json_say_the_same(exported, photos, capsys):
    code, out, _ = run(capsys, "--model", exported, photos, "--json", "--top", 99)
    record = json.loads(out)
    assert (code, len(record)) == (0, 5)
    assert [sum(p["probability"] for p in image["predictions"]) for image in record] == pytest.approx([1.0] * 5)
    assert {p["label"] for p in record[0]["predictions"]} == set(LABELS)
    assert len(out.splitlines()) == 5 + 1  # an image a line, so that it can be read while it grows
    code, out, _ = run(capsys, "--model", exported / "model.onnx", photos, "--csv", "--top", 99, "--batch", 1)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, 50)
    flat = [(image["file"], p) for image in record for p in image["predictions"]]
    for row, (file, prediction) in zip(rows, flat, strict=True):
        assert (row["file"], row["label"]) == (file, runner.shown(prediction["label"]))
        assert float(row["probability"]) == pytest.approx(prediction["probability"], rel=1e-4)
    assert [row["rank"] for row in rows[:10]] == [str(rank) for rank in range(1, 11)]


@pytest.mark.parametrize("style", [[], ["--csv"], ["--json"]])
def test_control_characters_are_shown_not_obeyed(exported, photos, capsys, style):
    os.rename(photos / "a.png", photos / "\x1b[2J\x07\n\u202e.png")
    os.rename(photos / "notes.txt", os.fsencode(photos) + b"/\x1b[31m\xff.png")
    code, out, err = run(capsys, "--model", exported, photos, "--top", 10, *style)
    assert code == 1
    assert not [c for c in out + err if not (c.isprintable() or c == "\n")]
    for text in ("\\x1b[2J\\x07\\n\\u202e.png", "d\\x1b[31m", "e\\u202e") if not style or style == ["--csv"] else ():
        assert text in out
    assert "\\x1b[31m\\udcff.png: cannot be read (not an image that Pillow knows)" in err
    if style == ["--json"]:
        assert {p["label"] for p in json.loads(out)[0]["predictions"]} == set(LABELS)


def test_label_that_the_terminal_has_no_characters_for(exported, photos):
    command = [sys.executable, str(exported / "run.py"), str(photos / "a.png"), "--top", "10"]
    done = subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"\\u65e5\\u672c" in done.stdout


def test_unreadable_images_are_reported_and_the_rest_goes_on(exported, photos, capsys):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    (photos / "empty.jpg").write_bytes(b"")
    code, out, err = run(capsys, "--model", exported, photos, photos / "none.png", photos / "notes.txt", "--json")
    assert code == 1
    assert len(json.loads(out)) == 5
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {photos / 'broken.png'}: cannot be read (")
    assert lines[1] == f"error: {photos / 'empty.jpg'}: cannot be read (not an image that Pillow knows)"
    assert lines[2] == f"error: {photos / 'none.png'}: cannot be read (no such file)"
    assert lines[3] == f"error: {photos / 'notes.txt'}: cannot be read (not an image that Pillow knows)"
    assert lines[4].startswith("5 images in ")
    assert lines[5] == "error: 4 of 9 images could not be read"
    code, out, err = run(capsys, "--model", exported, photos / "none.png", "--json")
    assert (code, json.loads(out)) == (1, [])
    assert "images/s" not in err


def test_what_pillow_warns_of_is_no_matter_of_the_user(exported, photos, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31 * 26 - 1)
    with warnings.catch_warnings(record=True) as told:
        assert run(capsys, "--model", exported, photos)[0] == 0
    assert told == []


def test_an_image_that_is_a_bomb_is_left_out(exported, photos, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    code, out, err = run(capsys, "--model", exported, photos / "a.png", "--json")
    assert (code, json.loads(out)) == (1, [])
    assert "decompression bomb" in err


def test_folders_are_read_in_batches(exported, photos):
    classifier = runner.Classifier(exported, threads=2)
    asked = []

    def endless():
        while True:
            asked.append(str(photos / "a.png"))
            yield asked[-1]

    results = runner.classify_files(classifier, endless(), top=1, batch=4, fail=pytest.fail, took=[])
    for _ in range(101):
        next(results)
    results.close()
    assert len(asked) <= 104 + 2 * 4 + 1


@pytest.mark.parametrize("times", [1, 400])  # a result in one piece, and one that is still growing
def test_reader_that_leaves_is_no_error(exported, photos, times):
    command = [sys.executable, str(exported / "run.py"), *[str(photos)] * times, "--batch", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    lines = process.stderr.read().decode().splitlines()
    assert [line for line in lines if " images/s; " not in line] == []
    assert process.wait(timeout=60) == 1


# -- what it refuses --------------------------------------------------------------------------------------------------


def flip(path, at=None):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "preprocess.json", "golden.npz", "run.py"])
def test_self_test_notices_a_flipped_bit_and_a_missing_file(bundle, capsys, name):
    flip(bundle / name)
    assert f"{name}: SHA-256 is " in fails(capsys, "--model", bundle, "--self-test", code=4)
    (bundle / name).unlink()
    assert f"{name}: no such file" in fails(capsys, "--model", bundle, "--self-test", code=4)


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "preprocess.json"])
def test_changed_files_are_refused_before_they_are_parsed(bundle, photos, capsys, name):
    (bundle / name).write_bytes(b"\xff" * 100)
    assert f"{name}: SHA-256 is " in fails(capsys, "--model", bundle, photos)
    assert "SHA-256" not in fails(capsys, "--model", bundle, photos, "--no-check")
    sums = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    (bundle / "SHA256SUMS").write_text("".join(line for line in sums if name not in line))
    assert f"{name}: not in SHA256SUMS" in fails(capsys, "--model", bundle, photos)
    assert f"{name}: not in SHA256SUMS" in fails(capsys, "--model", bundle, "--self-test", code=4)


def test_other_labels_are_taken_where_nobody_checks(bundle, photos, capsys):
    (bundle / "labels.txt").write_text("".join(f"mine {i}\n" for i in range(10)))
    assert "labels.txt" in fails(capsys, "--model", bundle, photos)
    code, out, _ = run(capsys, "--model", bundle, photos, "--no-check", "--top", 1)
    assert (code, out.count("mine ")) == (0, 5)


def rewrite_golden(bundle, **changed):
    with np.load(bundle / "golden.npz") as arrays:
        np.savez(bundle / "golden.npz", **{**arrays, **changed})
    sign(bundle)


def test_self_test_compares_logits(bundle, capsys):
    code, out, err = run(capsys, "--model", bundle, "--self-test", "--json", "--threads", 1)
    found = json.loads(out)
    assert (code, err, found["files"], found["images"], found["threads"]) == (0, "", 5, 5, 1)
    assert 0 <= found["error"] < 1e-5
    assert 0 <= found["batch_error"] < 1e-5
    assert 0 < found["latency_ms"] < 1000

    with np.load(bundle / "golden.npz") as arrays:
        logits, images = arrays["logits"], arrays["images"]
    off = logits.copy()
    off[3, 2] += 1e-3 * np.abs(logits).max()
    rewrite_golden(bundle, logits=off)
    line = fails(capsys, "--model", bundle, "--self-test", code=4)
    assert "model.onnx: logits differ from those of the export by 1.0e-03 of the largest logit, at most 1.0e-04" in line
    rewrite_golden(bundle, logits=off, tolerance=np.array(1e-2))
    assert run(capsys, "--model", bundle, "--self-test")[0] == 0
    rewrite_golden(bundle, logits=logits, tolerance=np.array(1e-4), images=images[::-1])
    assert "logits differ" in fails(capsys, "--model", bundle, "--self-test", code=4)


def test_self_test_notices_other_weights_and_other_preprocessing(bundle, capsys):
    settings = json.loads((bundle / "preprocess.json").read_text())
    (bundle / "preprocess.json").write_text(json.dumps({**settings, "mean": [0.4, 0.45, 0.48]}))
    sign(bundle)
    assert "logits differ" in fails(capsys, "--model", bundle, "--self-test", code=4)
    (bundle / "preprocess.json").write_text(json.dumps(settings))
    model = onnx.load(bundle / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1000)
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.5).tobytes()
    onnx.save(model, bundle / "model.onnx")
    sign(bundle)
    assert "logits differ" in fails(capsys, "--model", bundle, "--self-test", code=4)


@pytest.mark.parametrize(
    ("alone", "batched", "message"),
    [  # tolerance is 1e-4
        (0, 1.5e-4, "logits differ from those of the export by 1.5e-04"),
        (1.5e-4, 0, "logits differ from those of the export by 1.5e-04"),
        (-7e-5, 7e-5, "logits of one image differ from those in a batch of 5 by 1.4e-04"),
    ],
)
def test_self_test_notices_a_batch_that_depends_on_its_neighbours(bundle, capsys, monkeypatch, alone, batched, message):
    with np.load(bundle / "golden.npz") as arrays:
        largest = np.abs(arrays["logits"]).max()
    real = runner.Classifier.run

    def off(n):
        return np.float32((batched if n > 1 else alone) * largest)

    monkeypatch.setattr(runner.Classifier, "run", lambda self, inputs: real(self, inputs) + off(len(inputs)))
    assert message in fails(capsys, "--model", bundle, "--self-test", code=4)


def test_values_that_are_not_finite_are_refused(bundle, photos, capsys):
    model = onnx.load(bundle / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1000)
    weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()
    onnx.save(model, bundle / "model.onnx")
    sign(bundle)
    assert "not finite" in fails(capsys, "--model", bundle, "--self-test", code=4)
    code, out, err = run(capsys, "--model", bundle, photos, "--json")
    assert (code, err) == (1, "error: model.onnx: computes values that are not finite with CPUExecutionProvider\n")
    assert out == ""


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("preprocess.json", {"schema": "ofa.preprocess/2"}, "schema is 'ofa.preprocess/2', this run.py knows"),
        ("preprocess.json", {"channels": "BGR"}, "channels is 'BGR', this run.py knows 'RGB'"),
        ("preprocess.json", {"std": [0.2, 0, 0.2]}, "impossible"),
        ("preprocess.json", {"std": [0.2]}, "impossible"),
        ("preprocess.json", {"mean": [0.2, float("nan"), 0.2]}, "impossible"),
        ("preprocess.json", {"stored_size": 10**9}, "impossible"),
        ("preprocess.json", {"resolution": True}, "impossible"),
        ("preprocess.json", {"scale": None}, "cannot be read (TypeError"),
        ("preprocess.json", {"input": "pixels"}, "model.onnx: has input images, preprocess.json says pixels"),
        ("preprocess.json", {"resolution": 3000}, "model.onnx: "),
        ("preprocess.json", b"[" * 100_000, "cannot be read (RecursionError"),
        ("preprocess.json", b"{", "cannot be read (JSONDecodeError"),
        ("preprocess.json", b"\0" * (runner.MAX_TEXT_BYTES + 1), "larger than 16 MiB"),
        ("labels.txt", b"a\nb\n", "model.onnx: tells 10 classes apart, labels.txt names 2"),
        ("labels.txt", b"\xff", "labels.txt: not UTF-8 text"),
        ("model.onnx", b"", "model.onnx: ONNX Runtime"),
        ("model.onnx", b"\x08\x08garbage", "model.onnx: ONNX Runtime"),
        ("golden.npz", b"", "golden.npz: cannot be read"),
        ("golden.npz", {"logits": np.zeros((5, 10), np.float32)}, "golden.npz: not images of 20 px and their 10 logits"),
        ("golden.npz", {"logits": np.full((5, 10), np.inf, np.float32)}, "golden.npz: not images"),
        ("golden.npz", {"images": np.zeros((5, 8, 8, 3), np.uint8)}, "golden.npz: not images"),
        ("golden.npz", {"tolerance": np.array(np.nan)}, "golden.npz: not images"),
        ("golden.npz", {"logits": np.array([{}], object)}, "golden.npz: cannot be read (Object arrays cannot be loaded"),
    ],
)
def test_self_test_of_a_signed_file_that_makes_no_sense_is_one_line(bundle, capsys, name, change, message):
    if isinstance(change, bytes):
        (bundle / name).write_bytes(change)
    elif name == "golden.npz":
        rewrite_golden(bundle, **change)
    else:
        (bundle / name).write_text(json.dumps({**json.loads((bundle / name).read_text()), **change}))
    sign(bundle)
    assert message in fails(capsys, "--model", bundle, "--self-test", code=4)


@pytest.mark.parametrize(
    "line", ["", "00  model.onnx", f"{'0' * 64}  ../model.onnx", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ..", "\x1b[2J", "\xff"]
)
def test_sums_that_name_other_places_are_refused(bundle, capsys, line):
    (bundle / "SHA256SUMS").write_bytes((bundle / "SHA256SUMS").read_bytes() + f"{line}\n".encode("latin-1"))
    message = fails(capsys, "--model", bundle, "--self-test", code=4)
    assert "SHA256SUMS: " in message
    assert "\x1b" not in message


def test_golden_file_that_unpacks_without_end_is_refused(bundle, capsys, monkeypatch):
    monkeypatch.setattr(runner, "MAX_GOLDEN_BYTES", 2**20)
    np.savez_compressed(bundle / "golden.npz", images=np.zeros(2**21, np.uint8))
    sign(bundle)
    assert "unpacks to more than 1 MiB" in fails(capsys, "--model", bundle, "--self-test", code=4)


def test_weights_outside_the_file_are_not_read(bundle, photos, capsys, monkeypatch):
    monkeypatch.chdir(bundle)  # where ONNX Runtime would look for them
    outside = onnx.load("model.onnx")
    onnx.save(outside, "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    sign(bundle)
    assert "model.onnx: keeps tensors in another file" in fails(capsys, "--model", bundle, photos)
    content = (bundle / "model.onnx").read_bytes()
    for longer in (
        b"\n\x88\x00location",
        b"\n\x88\x80\x80\x00location",
        b"\x8a\x80\x00\x08location",
    ):  # other forms of these lengths
        assert runner.OUTSIDE.search(content.replace(b"\n\x08location", longer))


def test_what_cannot_be_run_is_one_line(exported, photos, tmp_path, capsys):
    assert "no such file; expected the folder of a model" in fails(capsys, "--model", tmp_path / "none", photos)
    assert "preprocess.json" in fails(capsys, "--model", tmp_path, photos, "--no-check")
    assert "SHA256SUMS: no such file" in fails(capsys, "--model", tmp_path, photos)
    assert "provider 'NoneProvider' is not in this" in fails(capsys, "--model", exported, photos, "--provider", "NoneProvider")
    (tmp_path / "empty").mkdir()
    assert "empty: no images in it; known: .jpg" in fails(capsys, "--model", exported, tmp_path / "empty")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--self-test", "a.png"],
        ["--self-test", "--csv"],
        ["--self-test", "--top", "3"],
        ["--self-test", "--no-check"],
        ["a.png", "--json", "--csv"],
        ["a.png", "--top", "0"],
        ["a.png", "--batch", "0"],
        ["a.png", "--threads", "-1"],
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        runner.main(arguments)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err
