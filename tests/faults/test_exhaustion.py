"""Full disks, bombs, and numbers without end: what was there stays, and what is read takes no more than it may."""

import errno
import gc
import io
import json
import os
import resource
import signal
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.bundle import open_bundle, write_bundle
from deploy.device import get_device
from deploy.integrity import read_arrays
from deploy.limits import parse_limit
from latency.calibration import Calibration, FitError
from latency.formats.importing import import_timings
from latency.open import open_latency
from latency.predictor import fit_latency
from latency.table import LatencyTable
from ofa.artefacts import parse_object, read_json, write_json
from ofa.errors import OfaError
from ofa.formats.importing import import_arch, import_checkpoint
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.training.checkpoint import load_latest, save_checkpoint
from ofa.training.data import load_images
from search.journal import Journal

SPACE = get_space("mbv3_tiny_image")
MIB = 2**20


# -- full disks -----------------------------------------------------------------------------------------------------


def table(scale):
    return LatencyTable(SPACE, "pi4", {spec: scale * (1 + i / 7) for i, spec in enumerate(SPACE.all_blocks)})


def weights(value):
    return {"weight": torch.full((40, 50), float(value)), "bias": torch.zeros(3)}


def parts(seed):
    rng = np.random.default_rng(seed)
    return {"model.onnx": rng.bytes(6000), "model.json": b"{}", "model.safetensors": rng.bytes(9000), "labels.txt": b"cat\n"}


ARTEFACTS = {
    "bundle": lambda folder, n: write_bundle(folder, parts(n)),
    "results": lambda folder, n: open_bundle(folder).add({"bench.json": np.random.default_rng(n).bytes(5000)}),
    "checkpoint": lambda folder, n: save_checkpoint(folder, weights(n), 7, training=weights(-n)),
    "next checkpoint": lambda folder, n: save_checkpoint(folder, weights(n), 7 + n, training=weights(-n)),
    "table": lambda folder, n: table(n).save(folder / "pi4.json"),
    "architecture": lambda folder, n: write_json(folder / "arch.json", SPACE.to_json(SPACE.largest), sealed=True),
}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_a_disk_that_is_full_at_any_byte_leaves_what_was_there(artefact, tmp_path):
    if artefact == "results":
        write_bundle(tmp_path, parts(0))
    write = ARTEFACTS[artefact]
    write(tmp_path, 1)
    before = contents(tmp_path)
    largest = 5000 if artefact == "results" else max(len(content) for content in before.values() if content is not None)
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for offset in sorted({round(x) for x in np.linspace(0, largest - 1, 20)}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                write(tmp_path, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename.startswith(str(tmp_path))
        assert contents(tmp_path) == before, f"full at byte {offset}"
    signal.signal(signal.SIGXFSZ, handler)
    write(tmp_path, 2)
    if artefact != "architecture":
        assert contents(tmp_path) != before


# -- bombs ----------------------------------------------------------------------------------------------------------


def bounded(function, *arguments, mib=256, seconds=60):
    """Call in a child that may take only so much more memory and processor time; return the one line with which it is refused."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + mib * MIB, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            gc.freeze()  # a collection would walk through, and so copy, all that the tests before have left
            function(*arguments)
            result = "it was accepted"
        except OfaError as error:
            result = f"refused: {error}"
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        result = file.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"ended with {status}"
    assert result.startswith("refused: "), result
    assert result.isprintable(), result
    return result.removeprefix("refused: ")


DOORS = {
    "arch.json": lambda path: read_json(path, schema=ARCH_SCHEMA),
    "net.config": lambda path: import_arch(path, path.parent / "a", format="mit_ofa"),
    "pi4.json": lambda path: open_latency(path, SPACE),
    "run.json": lambda path: Run(path.parent),
    "mit.json": lambda path: import_timings(path, "mit_ofa", get_space("ofa_mbv3_w1_2"), "pi4"),
    "timings.csv": lambda path: import_timings(path, "csv", SPACE, "pi4"),
    "pi4.toml": lambda path: get_device(str(path)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bomb", ["deep", "deep objects", "huge"])
def test_deep_and_huge_files_are_refused_in_little_time_and_memory(door, bomb, tmp_path):
    path = tmp_path / door
    if bomb == "huge":
        with path.open("wb") as file:
            file.truncate(2**30)
    else:
        path.write_bytes((b"a = " if door.endswith("toml") else b"") + {"deep": b"[", "deep objects": b'{"a":'}[bomb] * 100_000)
    assert door in bounded(DOORS[door], path)


@pytest.mark.parametrize("door", ["arch.json", "pi4.json", "mit.json"])
def test_a_file_of_lists_that_take_twenty_times_its_size_is_refused(door, tmp_path):
    (tmp_path / door).write_bytes(b"[" + b"[]," * (21 * MIB))
    assert door in bounded(DOORS[door], tmp_path / door)


def test_too_little_memory_is_one_line(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from search.cli import app

    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr("ofa.run_dir.Run.__init__", too_much)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: there is not enough memory for this")


@pytest.mark.parametrize("name", ["SHA256SUMS", "model.json", "golden.npz"])
def test_a_huge_part_of_a_bundle_is_refused(name, tmp_path):
    write_bundle(tmp_path, {"model.onnx": b"m", "model.json": b"{}", "golden.npz": b"g"})
    with (tmp_path / name).open("r+b") as file:
        file.truncate(2**30)
    assert f"{name}: larger than" in bounded(open_bundle, tmp_path)


def test_a_deep_record_of_a_bundle_is_refused(tmp_path):
    write_bundle(tmp_path, {"model.onnx": b"m", "model.json": b"[" * 100_000})
    assert "model.json: not valid JSON" in bounded(lambda: open_bundle(tmp_path).record)


def npz(name="images.npy", *, data=b"", shape=(2,), dtype="<f4", said=None):
    """An archive of one array; `said` is the size that the archive's directory tells."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(header.getvalue())
            member.write(data)
        if said is not None:
            archive.infolist()[0].file_size = said
    return file.getvalue()


ARRAYS = {
    "unpacks to much": lambda: npz(data=bytes(300 * MIB), shape=(75 * MIB,)),
    "says that it unpacks to little": lambda: npz(data=bytes(300 * MIB), shape=(75 * MIB,), said=1000),
    "says that it is large": lambda: npz(data=bytes(8), shape=(2**31,)),
    "says that it is larger than any memory": lambda: npz(data=bytes(8), shape=(2**60, 2**60)),
    "has a negative side": lambda: npz(data=bytes(8), shape=(-2, -1)),
    "has elements of no size": lambda: npz(shape=(2**62,), dtype="|V0"),
    "holds objects": lambda: npz(data=bytes(8), dtype="|O"),
    "has deep code for a header": lambda: npz(data=bytes(8), dtype="[" * 9000),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_archives_of_arrays_that_lie_are_refused(kind, tmp_path):
    content = ARRAYS[kind]()
    assert len(content) < MIB
    assert "golden.npz: " in bounded(read_arrays, content, tmp_path / "golden.npz")


def test_a_checkpoint_that_unpacks_to_more_than_it_takes_is_refused(tmp_path):
    torch.save({"a": torch.zeros(16 * MIB)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as plain:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < MIB
    torch.save({"a": torch.zeros(1).expand(2**34)}, tmp_path / "repeats.pth")
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    for name in ("bomb.pth", "repeats.pth", "header.safetensors"):
        assert name in bounded(lambda name=name: import_checkpoint(tmp_path / name, tmp_path / "run", format="mit_ofa"))


def test_archives_of_images_that_lie_are_refused(tmp_path):
    info = tarfile.TarInfo("train/a/x.png")
    info.size = 2**40
    (tmp_path / "images.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "images.tar: " in bounded(lambda: load_images(str(tmp_path / "images.tar"), "train", size=24))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_an_image_larger_than_any_is_left_out(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "train" / "a").mkdir(parents=True)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "train" / "a" / "x.png").write_bytes(image)
    assert "1 of 1 images cannot be read" in bounded(lambda: load_images(str(tmp_path), "train", size=24))


# -- NaN and infinity -----------------------------------------------------------------------------------------------

WORDS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400)


def full_table(path):
    """A table with every number that a table may hold; returns its text without a seal."""
    error = FitError(4, 0.03, 0.041, 0.75, 1.0, 0.91)
    LatencyTable(
        SPACE, "pi4", dict.fromkeys(SPACE.all_blocks, 0.5), Calibration(1.0, 0.25, 0.125, 0.0625), margin=0.08,
        error=error, macs_error=error, validation=((0.02, 0.021),), energy={"watts": 3.0, "offset_mj": 0.5, "rmspe": 0.1, "meter": "m"},
        provenance={"host": {"cores": 4}, "seconds": 3.5, "networks": [{"arch": {"resolution": 8}, "measured_ms": 0.3, "fitted": True}]},
    ).save(path)  # fmt: skip
    return parse_object(path.read_bytes(), path, what="a table")


def numbers(value, where=()):
    """The place of every number in a JSON value, of a list only in its first element."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in numbers(item, (*where, name))]
    if isinstance(value, list):
        return numbers(value[0], (*where, 0)) if value else []
    return [where] if isinstance(value, int | float) and not isinstance(value, bool) else []


def with_number(value, where, word):
    """JSON text with a number replaced by a word."""
    changed = inner = json.loads(json.dumps(value))
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = "@"
    return json.dumps(changed).replace('"@"', word)


@pytest.mark.parametrize("word", WORDS)
def test_no_number_of_a_latency_table_may_be_without_end(word, tmp_path):
    path = tmp_path / "pi4.json"
    value = full_table(path)
    places = numbers(value)
    assert len(places) >= 30
    for where in places:
        path.write_text(with_number(value, where, word))
        with pytest.raises(OfaError, match=r"pi4.json: ") as caught:
            open_latency(path, SPACE)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("word", WORDS)
def test_no_number_of_a_latency_predictor_may_be_without_end(word, tmp_path):
    path = tmp_path / "pi4.json"
    population = SPACE.sample(np.random.default_rng(0), 40)
    fit_latency(SPACE, "pi4", population, np.linspace(1, 2, 40)).save(path)
    value = parse_object(path.read_bytes(), path, what="timings")
    for where in numbers(value):
        path.write_text(with_number(value, where, word))
        with pytest.raises(OfaError, match=r"pi4.json: "):
            open_latency(path, SPACE)


@pytest.mark.parametrize("word", WORDS)
def test_no_number_of_a_run_or_a_checkpoint_may_be_without_end(word, tmp_path):
    run = Run.create(tmp_path / "run", SPACE, None, None, note={"number": 1.5})
    record = read_json(run.path / "run.json", schema="ofa.run/1")
    (run.path / "run.json").write_text(with_number(record, ("note", "number"), word))
    with pytest.raises(OfaError, match=r"run.json: not valid JSON"):
        Run(run.path)
    net = torch.nn.Linear(2, 2)
    checkpoint = save_checkpoint(tmp_path / "c", net.state_dict(), 3, score=0.5)
    state = read_json(checkpoint.path / "state.json", schema="ofa.checkpoint/2")
    (checkpoint.path / "state.json").write_text(with_number(state, ("score",), word))
    with pytest.raises(OfaError, match=r"state.json: not valid JSON"):
        load_latest(tmp_path / "c", net)


@pytest.mark.parametrize("field", ["top1", "score"])
@pytest.mark.parametrize("word", WORDS)
def test_no_result_of_a_journal_may_be_without_end(field, word, tmp_path):
    (tmp_path / "j").write_text(
        f'{{"key": "a", "values": [1], "{field}": {word}}}\n{{"key": "b", "values": [1], "{field}": 0.5}}\n'
    )
    journal = Journal(tmp_path / "j", field=field)
    journal.refresh()
    assert journal.trials.keys() == {"b"}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "NaN", "Infinity", "1e999", "-1e999", "1e-999", "1_0", "0x10", "١"])
@pytest.mark.parametrize(
    "limit", ["latency@pi4 <= {}ms", "macs <= {}M", "top1 >= {}", "energy@pi4 <= {}mJ", "size <= {}MB", "macs <= {}%"]
)
def test_no_limit_may_be_without_end(number, limit):
    with pytest.raises(OfaError, match=r"^limit ") as caught:
        parse_limit(limit.format(number), largest=lambda _: 1e9)
    assert "\n" not in str(caught.value)
