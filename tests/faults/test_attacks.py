"""Files that somebody made to do harm: nothing is followed, unpacked, unpickled or obeyed, and nothing takes the machine."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from deploy.bundle import open_bundle, write_bundle
from deploy.device import get_device, make_device
from deploy.integrity import require_self_contained
from deploy.model_file import open_model_file
from latency import agent
from latency.open import open_latency
from latency.profile import require_foreign_name
from latency.remote import parse_remote
from latency.table import LatencyTable
from ofa.artefacts import append_jsonl, read_json, read_jsonl, sha256_of, write_json
from ofa.errors import OfaError
from ofa.formats.importing import import_arch, import_checkpoint
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.training.checkpoint import load_latest, save_checkpoint
from ofa.training.data import load_images
from search.formats.mit_predictor import load_mit_predictor
from search.journal import Journal
from search.menu import InfeasibleTarget
from search.predictor import AccuracyPredictor, fit_predictor
from search.report import write_report
from search.result import FRONT_SCHEMA
from search.run import open_run, search_run
from search.tables import show_menu

SPACE = get_space("mbv3_tiny_image")


def refused(function, *arguments):
    """Return the one line with which a call is refused."""
    with pytest.raises(OfaError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- tensors outside the file ---------------------------------------------------------------------------------------


def outside(location="../secret.bin"):
    """A tensor of four floats that lies in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def inside(name="w"):
    return helper.make_tensor(name, TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])


def graph(*nodes, tensors=(), sparse=()):
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("images", "logits"))
    made = helper.make_graph(list(nodes), "g", [inputs], [outputs], list(tensors))
    made.sparse_initializer.extend(sparse)
    return made


def model(*nodes, functions=(), **parts):
    nodes = nodes or (helper.make_node("MatMul", ["images", "w"], ["logits"]),)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph(*nodes, **parts), opset_imports=opsets, ir_version=8, functions=functions)


def constant(**value):
    return helper.make_node("Constant", [], ["w"], **value)


def branch(node):
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])])


def body(node, *, kind):
    """A node whose body holds another."""
    graphs = {"If": {"then_branch": branch(node), "else_branch": branch(constant(value=inside()))}}
    return helper.make_node(kind, ["images"], ["w"], **graphs.get(kind, {"body": branch(node)}))


def local_function(node):
    return helper.make_function("local", "F", ["x"], ["w"], [node], [helper.make_opsetid("", 17)])


def with_default(tensor):
    function = local_function(constant(value=inside()))
    function.attribute_proto.append(helper.make_attribute("weights", tensor))
    return function


def training(**parts):
    made = model(tensors=[inside()])
    made.training_info.add(**parts)
    return made


def sparse(values, indices):
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[2, 2])


PLACES = {
    "initializer": lambda t: model(tensors=[t]),
    "a later initializer": lambda t: model(tensors=[inside("v"), t]),
    "values of a sparse initializer": lambda t: model(sparse=[sparse(t, inside())]),
    "indices of a sparse initializer": lambda t: model(sparse=[sparse(inside(), t)]),
    "Constant": lambda t: model(constant(value=t)),
    "sparse Constant": lambda t: model(constant(sparse_value=sparse(t, inside()))),
    "list of tensors": lambda t: model(helper.make_node("Any", ["images"], ["w"], domain="local", tensors=[inside(), t])),
    "list of sparse tensors": lambda t: model(helper.make_node("Any", [], ["w"], domain="local", all=[sparse(t, inside())])),
    "If": lambda t: model(body(constant(value=t), kind="If")),
    "If in an If": lambda t: model(body(body(constant(value=t), kind="If"), kind="If")),
    "Loop": lambda t: model(body(constant(value=t), kind="Loop")),
    "Scan in a Loop": lambda t: model(body(body(constant(value=t), kind="Scan"), kind="Loop")),
    "initializer of a body": lambda t: model(helper.make_node("Loop", [], ["w"], body=graph(tensors=[t]))),
    "list of graphs": lambda t: model(helper.make_node("Any", [], ["w"], domain="local", graphs=[graph(tensors=[t])])),
    "function": lambda t: model(functions=[local_function(constant(value=t))], tensors=[inside()]),
    "body in a function": lambda t: model(functions=[local_function(body(constant(value=t), kind="If"))], tensors=[inside()]),
    "default of a function": lambda t: model(functions=[with_default(t)], tensors=[inside()]),
    "training": lambda t: training(initialization=graph(tensors=[t])),
    "a step of training": lambda t: training(algorithm=graph(constant(value=t))),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_the_file_is_refused_wherever_it_stands(place, tmp_path):
    require_self_contained(PLACES[place](inside()).SerializeToString(), tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(PLACES[place](outside()).SerializeToString())
    for read in (open_model_file, lambda path: require_self_contained(path.read_bytes(), path)):
        assert "model.onnx: keeps tensor 'w' outside the file, which is not followed" in refused(read, path)


@pytest.mark.parametrize("how", ["above", "absolute", "inside", "symlink", "hard link", "through a folder", "windows", "nothing"])
def test_a_tensor_outside_the_file_is_refused_wherever_it_lies(how, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(secret.read_bytes())
    (folder / "symlink").symlink_to(secret)
    (folder / "hard link").hardlink_to(secret)
    location = {
        "above": "../secret.bin",
        "absolute": str(secret),
        "inside": "weights.bin",
        "through a folder": "a/../../secret.bin",
        "windows": "..\\secret.bin",
        "nothing": "",
    }.get(how, how)
    content = model(tensors=[outside(location)]).SerializeToString()
    write_bundle(folder, {"model.onnx": content, "model.json": b"{}"})  # with digests that are right: its maker is who attacks
    for is_bundle in (True, False):
        if not is_bundle:
            (folder / "SHA256SUMS").unlink()
        assert "outside the file, which is not followed" in refused(open_model_file, folder / "model.onnx")


def test_half_a_reference_outside_is_one(tmp_path):
    without_location, without_mark = outside(), outside()
    without_location.ClearField("external_data")
    without_mark.ClearField("data_location")
    for tensor in (without_location, without_mark):
        assert "outside the file" in refused(require_self_contained, model(tensors=[tensor]).SerializeToString(), tmp_path)


def test_a_teacher_reads_nothing_that_does_not_lie_beside_it(tmp_path):
    from ofa.training.data import Preprocessing
    from ofa.training.teacher import _onnx_teacher

    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "link").symlink_to("../secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link", "a/../../secret.bin"):
        (folder / "teacher.onnx").write_bytes(model(tensors=[outside(location)]).SerializeToString())
        preprocess = Preprocessing((0.5,) * 3, (0.5,) * 3, flip=False)
        assert "teacher.onnx: not a readable ONNX file" in refused(_onnx_teacher, folder / "teacher.onnx", preprocess, 8)


def test_a_model_of_a_thousand_nested_bodies_is_refused(tmp_path):
    inner = _message(1, constant(value=outside()).SerializeToString())
    for depth, reason in ((1, "outside the file"), (10, "outside the file"), (1000, "not an ONNX file")):
        nested = inner
        for _ in range(depth):  # a graph of a node with an attribute that is a graph
            nested = _message(1, _message(5, _message(6, nested)))
        assert reason in refused(require_self_contained, _message(7, nested), tmp_path / "model.onnx")


def _message(field, content):
    """A protobuf field that holds a message."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


# -- names that are paths -------------------------------------------------------------------------------------------

PATHS = [
    "../x", "..", ".", "/etc/passwd", "a/../../b", "a/b", "..\\x", "C:\\x", "a\0b", "a\nb", "\x1b[2Jx", ".hidden", "-rf", "", " ", "a b",
    "~root", "$HOME", "ä/ö", "con\u202egpj",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_listing_that_names_a_path_is_refused(name, tmp_path):
    write_bundle(tmp_path / "out", {"model.onnx": b"m", "model.json": b"{}"})
    good = (tmp_path / "out" / "SHA256SUMS").read_bytes()
    content = good + f"{'0' * 64}  {name}\n".encode()
    (tmp_path / "out" / "SHA256SUMS").write_bytes(content)
    message = refused(open_bundle, tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'out' / 'SHA256SUMS'}: line ")
    assert message.isprintable()
    refused(write_bundle, tmp_path / "out", {"model.onnx": b"m", "model.json": b"{}", name: b"x"})
    assert (tmp_path / "out" / "SHA256SUMS").read_bytes() == content


@pytest.mark.parametrize("name", PATHS)
def test_a_device_or_a_tag_that_is_a_path_is_refused(name, tmp_path, monkeypatch):
    refused(get_device, name)
    fields = {"runtime": "onnxruntime", "name": name}
    refused(make_device, fields, tmp_path / "model.json")
    refused(parse_remote, f"{name}=ssh:pi@host")
    run = open_run(tmp_path / "deep" / "down" / "run", SPACE.name)
    before = sorted(tmp_path.rglob("*"))
    if name not in ("a b", "~root", "$HOME"):  # odd, but folders of the run like any other
        assert "expected a plain folder name" in refused(
            lambda: search_run(run, ["macs <= 1M"], accuracy=lambda _: 0.5, tag=name)
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_that_says_it_is_of_another_file_is_refused(tmp_path):
    path = tmp_path / "pi4.json"
    for device in ("../pi4", "pi5", "/pi4"):
        LatencyTable(SPACE, device, dict.fromkeys(SPACE.all_blocks, 1.0)).save(path)
        assert "pi4.json: " in refused(open_latency, path, SPACE)
    refused(require_foreign_name, "ort_cpu_1t")


# -- archives of images ---------------------------------------------------------------------------------------------


def png(size=24):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


MEMBERS = {
    "above": [("../train/a/x.png", tarfile.REGTYPE, ""), ("train/../../a/x.png", tarfile.REGTYPE, "")],
    "far above": [("train/a/../../../../../../tmp/x.png", tarfile.REGTYPE, "")],
    "symlink": [("train/a/x.png", tarfile.SYMTYPE, "/etc/passwd"), ("train/c/x.png", tarfile.SYMTYPE, "../../secret.png")],
    "hard link": [("train/a/x.png", tarfile.LNKTYPE, "/etc/passwd"), ("train/c/x.png", tarfile.LNKTYPE, "../secret.png")],
    "folder that is a link": [("train/c", tarfile.SYMTYPE, ".."), ("train/c/../x.png", tarfile.REGTYPE, "")],
    "devices": [("train/a/x.png", tarfile.CHRTYPE, ""), ("train/c/x.png", tarfile.BLKTYPE, ""), ("train/c/y.png", tarfile.FIFOTYPE, "")],
    "hidden": [("train/.c/x.png", tarfile.REGTYPE, ""), ("train/a/.x.png", tarfile.REGTYPE, "")],
}  # fmt: skip


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("compression", ["", "gz"])
def test_members_of_an_archive_that_point_elsewhere_do_not_count(kind, compression, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "images.tar", f"w:{compression}") as archive:
        for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png"):
            add_member(archive, name, tarfile.REGTYPE, "")
        for member in MEMBERS[kind]:
            add_member(archive, *member)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    images = load_images(str(folder / "images.tar"), "train", size=24)
    assert (images.classes, len(images)) == (("a", "b"), 4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing is ever unpacked to disk


def add_member(archive, name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(png()) if kind == tarfile.REGTYPE else 0
    archive.addfile(info, io.BytesIO(png()))


@pytest.mark.parametrize("name", ["train/\x1b[2Jc/x.png", "train/c\nd/x.png", "train/\u202ec/x.png"])
def test_a_class_whose_name_a_terminal_would_obey_is_refused(name, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        add_member(archive, "train/a/1.png", tarfile.REGTYPE, "")
        add_member(archive, name, tarfile.REGTYPE, "")
    message = refused(lambda: load_images(str(tmp_path / "images.tar"), "train", size=24))
    assert message.isprintable()
    assert "has no readable name; rename it" in message


@pytest.mark.parametrize(
    "names",
    [
        ["manifest.json", "graphs.bin", "manifest.json"],
        ["manifest.json", "graphs.bin", "graphs.bin/"],
        ["manifest.json", "graphs.bin", "..\\x"],
        ["manifest.json", "./graphs.bin"],
        ["Manifest.json", "graphs.bin"],
        ["manifest.json\0", "graphs.bin"],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_plan_with_odd_members_is_refused_and_not_unpacked(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "plan.zip", "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo("x"), b"{}") if "\0" in name else archive.writestr(name, b"{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(agent.AgentError, match=r"not a plan") as caught:
        agent.read_plan(str(tmp_path / "plan.zip"))
    assert str(caught.value).isprintable()
    assert sorted(tmp_path.rglob("*")) == before


# -- text that is more than text ------------------------------------------------------------------------------------

EVIL = "</script><img src=x onerror=alert(1)>\x1b[2J\x07{{7*7}}\"'&"


def hostile_run(tmp_path):
    """A run whose every name and note is hostile."""
    run = open_run(tmp_path / "run", SPACE.name)
    LatencyTable(SPACE, "pi4", dict.fromkeys(SPACE.all_blocks, 1.0), provenance={"command": EVIL, "host": {"cpu": EVIL}}).save(
        run.latency_path("pi4")
    )
    search_run(run, ["macs <= 1M"], accuracy=lambda arch: sum(arch.values) / 400, evals=12, rounds=1, predictor="none")
    data = {"source": f"/data/{EVIL}", "num_images": 9, "digest": "0" * 64, "image_size": 8, "classes": [EVIL, "b"]}
    data |= {"validation_fraction": 0.1, "seed": 0, "mean": [0.5] * 3, "std": [0.5] * 3, "flip": False}
    command = {"argv": ["ofa", "search", EVIL], "finished": EVIL, "seconds": 1.0, "host": {"cpu": EVIL}}
    record = json.loads((run.path / "run.json").read_text())
    write_json(
        run.path / "run.json", record | {"data": data, "commands": [command], "init": {"run": EVIL, "weights_sha256": EVIL}}
    )
    return run


def change_front(run, **fields):
    path = run.path / "search" / "front.json"
    write_json(path, read_json(path, schema=FRONT_SCHEMA) | fields)


def test_a_report_shows_hostile_text_as_text(tmp_path):
    run = hostile_run(tmp_path)
    change_front(run, strategy=EVIL, accuracy=EVIL, feasibility=[EVIL], objectives=["max top1", f"min {EVIL}"])
    html = write_report(run.path).read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<img src=x" not in html
    assert "{{7*7}}" in html  # not computed
    assert not {"\x1b", "\x07"} & {*html}


def test_a_report_of_names_that_are_no_text_is_written(tmp_path):
    run = hostile_run(tmp_path)
    (run.path / "search" / os.fsdecode(b"\xff\x1b[2J")).mkdir()
    (run.path / "search" / "front.json").rename(run.path / "search" / os.fsdecode(b"\xff\x1b[2J") / "front.json")
    write_report(run.path).read_text()


def test_the_shell_shows_what_a_terminal_would_obey_as_escapes(tmp_path, capsys, monkeypatch):
    from typer.testing import CliRunner

    from ofa.progress import say
    from search.cli import app

    say(f"{EVIL} [red]x[/y]")
    said = capsys.readouterr().err
    assert "\\x1b[2J\\x07" in said
    assert "\x1b[2J" not in said
    show_menu({"[/x]\x1b[2J": InfeasibleTarget("[/x]", (), "no\x1b[2J [red]network")})
    table = capsys.readouterr().err
    assert "[/x]\\x1b[2J" in table
    assert "no\\x1b[2J [red]network" in table
    run = hostile_run(tmp_path)
    for arguments in (
        ["search", run.path, "--where", f"macs <= {EVIL}"],
        ["report", tmp_path / EVIL],
        ["export", EVIL, "-o", "x"],
    ):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 1
        assert not {"\x1b", "\x07"} & {*done.output, *done.stderr}
        assert done.stderr.count("error: ") == 1


# -- pickles --------------------------------------------------------------------------------------------------------


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(path, mark):
    path.write_bytes(pickle.dumps({"weight": Payload(mark)}))


def in_npz(path, mark):
    np.savez(path.open("wb"), images=np.array([Payload(mark)], dtype=object))


def bundle_of_pickles(folder, mark):
    content = pickle.dumps({"weight": Payload(mark)})
    file = io.BytesIO()
    np.savez(file, images=np.array([Payload(mark)], dtype=object))
    names = ("model.onnx", "model.json", "model.safetensors", "labels.txt", "arch.json")
    write_bundle(folder, {**dict.fromkeys(names, content), "golden.npz": file.getvalue()})
    return open_bundle(folder)


def checkpoint_of_a_pickle(folder, mark):
    """A checkpoint whose digests are right."""
    net = torch.nn.Linear(2, 2)
    path = save_checkpoint(folder, net.state_dict(), 1).path
    pickled(path / "model.safetensors", mark)
    state = read_json(path / "state.json", schema="ofa.checkpoint/2")
    state["sha256"]["model.safetensors"] = sha256_of(path / "model.safetensors")
    write_json(path / "state.json", state)
    load_latest(folder, net)


def journal_of_a_pickle(folder, mark):
    pickled(folder / "trials.jsonl", mark)
    append_jsonl(folder / "trials.jsonl", {"key": "a", "values": [1], "top1": 0.5})
    journal = Journal(folder / "trials.jsonl")
    journal.refresh()
    if journal.trials.keys() == {"a"} and len(list(read_jsonl(folder / "trials.jsonl"))) == 1:
        raise OfaError("the line was passed over")


def image_of_a_pickle(folder, mark):
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / name).write_bytes(png())
    pickled(folder / "train" / "a" / "2.png", mark)
    load_images(str(folder), "train", size=24, strict=True)


def predictor_of_a_pickle(folder, mark):
    population = SPACE.sample(np.random.default_rng(0), 12)
    fit_predictor(SPACE, population, np.linspace(0.1, 0.9, 12), kinds=["ridge"]).save(folder / "p.json")
    pickled(folder / "p.safetensors", mark)
    record = read_json(folder / "p.json", schema="ofa.accuracy_predictor/1")
    write_json(folder / "p.json", record | {"arrays_sha256": sha256_of(folder / "p.safetensors")})
    AccuracyPredictor.load(folder / "p.json", SPACE)


def through(write, read, name):
    """Write a file's payload, then read the file."""

    def attack(folder, mark):
        write(folder / name, mark)
        read(folder / name)

    return attack


def imported(path):
    return import_checkpoint(path, path.parent / "run", format="mit_ofa")


PICKLES = {
    "a checkpoint of plain pickle": through(pickled, imported, "x.pth"),
    "a checkpoint of torch": through(lambda path, mark: torch.save({"a": Payload(mark)}, path), imported, "x.pth"),
    "a checkpoint of old torch": through(
        lambda path, mark: torch.save({"a": Payload(mark)}, path, _use_new_zipfile_serialization=False), imported, "x.pt"
    ),
    "a published safetensors": through(pickled, imported, "x.safetensors"),
    "a checkpoint of ours": checkpoint_of_a_pickle,
    "model.onnx": lambda folder, mark: open_model_file(bundle_of_pickles(folder / "out", mark).path),
    "model.json": lambda folder, mark: bundle_of_pickles(folder / "out", mark).record,
    "golden.npz": lambda folder, mark: bundle_of_pickles(folder / "out", mark).arrays("golden.npz"),
    "arch.json": through(pickled, lambda path: read_json(path, schema=ARCH_SCHEMA), "arch.json"),
    "a published architecture": through(
        pickled, lambda path: import_arch(path, path.parent / "a", format="mit_ofa"), "net.config"
    ),
    "a latency table": through(pickled, lambda path: open_latency(path, SPACE), "pi4.json"),
    "a journal": journal_of_a_pickle,
    "an image": image_of_a_pickle,
    "a predictor": predictor_of_a_pickle,
    "MIT's predictor": through(in_npz, lambda path: load_mit_predictor(path, get_space("ofa_mbv3_w1_0")), "acc.npz"),
    "a device": through(pickled, lambda path: get_device(str(path)), "pi4.toml"),
}


@pytest.mark.parametrize("door", PICKLES)
def test_a_pickle_is_not_executed(door, tmp_path):
    (tmp_path / "in").mkdir()
    assert refused(PICKLES[door], tmp_path / "in", tmp_path / "mark").isprintable()
    assert not (tmp_path / "mark").exists()


def test_the_pickle_would_leave_its_mark(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
