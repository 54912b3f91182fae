"""Bundles: what is written is read, and whatever was changed is refused by name before anything is parsed."""

import hashlib
import json
import os
import shutil
import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy.bundle import open_bundle, write_bundle
from deploy.integrity import format_manifest, parse_manifest, read_arrays, require_self_contained
from ofa.artefacts import ArtefactError


def network():
    """A linear layer as ONNX."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], np.eye(2, dtype=np.float32).tobytes(), raw=True)
    inputs, outputs = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in ("images", "logits"))
    node = helper.make_node("MatMul", ["images", "weight"], ["logits"], name="linear")
    graph = helper.make_graph([node], "g", [inputs], [outputs], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def record_of(content, **changes):
    return {
        "schema": "ofa.model/2",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "precision": "fp32",
        "opset": 17,
        "ir_version": 8,
        "layers": {},
        "space": None,
        "arch": None,
        "classes": ["cat", "dog"],
        "preprocess": {"resolution": 32, "stored_size": 36, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "weights_sha256": None,
        "limits": ["macs <= 1M"],
        "predicted": {"macs": 4.0},
        "devices": {},
        "versions": {},
        "host": {},
        "parity_error": 1e-7,
        "deviation": 1e-7,
        "quantisation": None,
        **changes,
    }


def parts(**changes):
    """The files of a small bundle."""
    content = network().SerializeToString()
    return {
        "model.onnx": content,
        "model.json": json.dumps(record_of(content, **changes)).encode(),
        "labels.txt": b"cat\ndog\n",
        "run.py": b"print('cat')\n",
    }


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "out", parts())
    return tmp_path / "out"


def test_what_is_written_is_read_and_sha256sum_agrees(folder):
    for path in (folder, folder / "model.onnx", str(folder)):
        bundle = open_bundle(path)
        assert bundle.path == folder
        assert bundle.read("labels.txt") == b"cat\ndog\n"
        assert bundle.record["classes"] == ["cat", "dog"]
        assert bundle.has("run.py")
        assert not bundle.has("arch.json")
    assert subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True).returncode == 0
    assert sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", "labels.txt", "model.json", "model.onnx", "run.py"]


def test_results_are_added_with_their_digests_and_go_with_the_next_export(folder):
    first, second = open_bundle(folder), open_bundle(folder)
    first.add({"verify.json": b"{}"})
    second.add({"bench.json": b"[]"})  # opened before the first one's result was there
    assert open_bundle(folder).read("verify.json") == b"{}"
    assert second.has("verify.json")
    first.add({"verify.json": b"{ }"})
    assert open_bundle(folder).read("verify.json") == b"{ }"
    assert open_bundle(folder).read("bench.json") == b"[]"
    (folder / "notes.txt").write_text("mine")
    write_bundle(folder, {**parts(), "arch.json": b"{}"})
    assert open_bundle(folder).has("arch.json")
    assert not open_bundle(folder).has("verify.json")
    write_bundle(folder, parts(classes=["a"]))
    assert sorted(p.name for p in folder.iterdir()) == [
        "SHA256SUMS",
        "labels.txt",
        "model.json",
        "model.onnx",
        "notes.txt",
        "run.py",
    ]


def test_results_about_an_earlier_model_are_not_added_to_another(folder):
    bundle = open_bundle(folder)
    other = network()
    other.doc_string = "another"
    content = other.SerializeToString()
    write_bundle(folder, {**parts(), "model.onnx": content, "model.json": json.dumps(record_of(content)).encode()})
    with pytest.raises(ArtefactError, match="another model was exported here meanwhile"):
        bundle.add({"verify.json": b"{}"})
    assert not open_bundle(folder).has("verify.json")


@pytest.mark.parametrize("name", ["arch.json", "run.py", "verify.json"])
def test_an_export_replaces_no_file_of_the_users(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ArtefactError, match=rf"{name}: no export wrote this file, so none replaces it"):
        write_bundle(tmp_path, parts())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_export_that_was_cut_off_between_two_files_can_be_made_again(tmp_path, monkeypatch):
    real, renames = os.replace, []

    def cut_off(source, target):
        renames.append(target)
        if len(renames) == 3:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path, parts())
    monkeypatch.setattr(os, "replace", real)
    with pytest.raises(ArtefactError, match="no such file, but SHA256SUMS lists it"):
        open_bundle(tmp_path)
    write_bundle(tmp_path, parts())
    assert open_bundle(tmp_path).has("run.py")


DAMAGE = {
    "missing": (lambda f: (f / "run.py").unlink(), r"run.py: no such file, but SHA256SUMS lists it"),
    "changed": (lambda f: (f / "run.py").write_text("print(1)"), r"run.py: SHA-256 is [0-9a-f]{16}..., SHA256SUMS says"),
    "unlisted": (lambda f: (f / "verify.json").write_text("{}"), r"verify.json: not listed in SHA256SUMS"),
    "unlisted link": (lambda f: (f / "golden.npz").symlink_to("nowhere"), r"golden.npz: not listed in SHA256SUMS"),
    "no listing": (lambda f: (f / "SHA256SUMS").unlink(), r"out: no exported bundle .* ofa export ARCH -o "),
    "a folder": (lambda f: ((f / "run.py").unlink(), (f / "run.py").mkdir()), r"run.py: no such file"),
    "nothing": (lambda f: shutil.rmtree(f), r"out: no such file or folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(folder, damage):
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(ArtefactError, match=message) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_file_changed_after_opening_is_not_returned(folder):
    bundle = open_bundle(folder)
    (folder / "labels.txt").write_text("dog\ncat\n")
    with pytest.raises(ArtefactError, match=r"labels.txt: SHA-256"):
        bundle.read("labels.txt")
    with pytest.raises(ArtefactError, match=r"golden.npz: not in SHA256SUMS, the bundle holds labels.txt, "):
        bundle.read("golden.npz")


def test_links_inside_the_folder_are_followed_and_others_are_not(folder, tmp_path):
    (folder / "run.py").rename(folder / "real.py")
    (folder / "run.py").symlink_to("real.py")
    assert open_bundle(folder).read("run.py") == b"print('cat')\n"
    (folder / "real.py").rename(tmp_path / "real.py")
    (folder / "run.py").unlink()
    (folder / "run.py").symlink_to("../real.py")
    with pytest.raises(ArtefactError, match=r"run.py: a link out of the bundle"):
        open_bundle(folder)


def test_too_large_a_part_is_refused_before_it_is_read(folder):
    with (folder / "labels.txt").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ArtefactError, match=r"labels.txt: larger than 256 MiB"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [{"precision": "fp4"},
        {"precision": f"a{'9' * 5000}w8"}, {"layers": {"stem": "int3"}}, {"layers": {"stem": None}}, {"classes": []}, {"classes": [1]}, {"preprocess": {}}, {"parity_error": True}, {"opset": None},
     {"predicted": {"macs": "few"}}, {"limits": [3]}, {"devices": {"x": 3}}, {"space": 3},
     {"preprocess": {"resolution": 2**40, "stored_size": 36, "mean": [0.5] * 3, "std": [0.2] * 3}},
     {"preprocess": {"resolution": 32, "stored_size": 36, "mean": [0.5] * 3, "std": [0.2, 0.2, 0]}}],
)  # fmt: skip
def test_a_record_that_its_readers_could_not_use_is_refused_by_field(tmp_path, change):
    files = parts() | {"model.json": json.dumps(record_of(parts()["model.onnx"], **change)).encode()}
    write_bundle(tmp_path, files)
    with pytest.raises(ArtefactError, match=rf"model.json: {next(iter(change))}.* is .*; the file is damaged"):
        _ = open_bundle(tmp_path).record


QUANTISED = {"images": 100, "split": "validation", "top1": 0.8, "top1_fp32": 0.81, "agreement": 0.97, "sqnr_db": 20.5}


@pytest.mark.parametrize(
    "change",
    [{"quantisation": {}}, {"quantisation": QUANTISED | {"split": "[x](y)"}}, {"quantisation": QUANTISED | {"agreement": 2.0}},
     {"arch": {"depth": 2}}, {"arch": {"depth": [2]}, "space": "s"}, {"data": 3}, {"top1_validation": None}, {"sha256": "x"}],
)  # fmt: skip
def test_facts_that_the_card_could_not_tell_are_refused(tmp_path, change):
    network = {"space": "s", "arch": {"depth": 2}, "blocks": {}, "bn_eps": 1e-5}
    write_bundle(tmp_path, parts(quantisation=QUANTISED, top1_validation=0.7, data="digits", **network))
    assert open_bundle(tmp_path).record["quantisation"] == QUANTISED
    write_bundle(tmp_path, parts(**change))
    with pytest.raises(ArtefactError, match=r"model.json: .*; the file is damaged") as caught:
        _ = open_bundle(tmp_path).record
    assert "\n" not in str(caught.value)


GOLDEN = {
    "images": np.zeros((3, 36, 36, 3), np.uint8),
    "logits": np.ones((3, 2), np.float32),
    "reference": np.ones((3, 2), np.float32),
    "tolerance": np.array(0.01, np.float32),
}


def test_golden_output_is_read(tmp_path):
    write_bundle(tmp_path, parts() | {"golden.npz": _npz(**GOLDEN)})
    golden = open_bundle(tmp_path).golden
    np.testing.assert_array_equal(golden["logits"], GOLDEN["logits"])


@pytest.mark.parametrize(
    "change",
    [{"images": None}, {"logits": None}, {"tolerance": None}, {"images": np.zeros((0, 36, 36, 3), np.uint8)}, {"images": np.array(3)},
     {"images": np.zeros((3, 36, 36), np.uint8)}, {"images": np.zeros((3, 36, 36, 3), np.float32)}, {"logits": np.ones((3, 3), np.float32)},
     {"images": np.zeros((3, 32, 32, 3), np.uint8)}, {"logits": np.ones((2, 2), np.float32)}, {"tolerance": np.ones(2, np.float32)},
     {"tolerance": np.array(np.nan, np.float32)}, {"tolerance": np.array(np.inf, np.float32)}, {"tolerance": np.array(0, np.float32)},
     {"images": np.zeros((5000, 36, 36, 3), np.uint8)}],
)  # fmt: skip
def test_golden_output_that_could_not_be_compared_is_refused(tmp_path, change):
    arrays = {name: value for name, value in {**GOLDEN, **change}.items() if value is not None}
    write_bundle(tmp_path, parts() | {"golden.npz": _npz(**arrays)})
    with pytest.raises(ArtefactError, match=r"golden.npz: .*; export it again") as caught:
        _ = open_bundle(tmp_path).golden
    assert "\n" not in str(caught.value)


def test_a_record_of_another_model_or_schema_is_refused(tmp_path):
    write_bundle(tmp_path, parts(sha256="0" * 64))
    with pytest.raises(ArtefactError, match=r"model.json: is of another model.onnx"):
        _ = open_bundle(tmp_path).record
    write_bundle(tmp_path, parts(schema="ofa.model/1"))
    with pytest.raises(ArtefactError, match=r"schema is 'ofa.model/1', expected 'ofa.model/2'"):
        _ = open_bundle(tmp_path).record


# -- the listing ----------------------------------------------------------------------------------------------------


def test_manifest_is_read_as_it_was_written(tmp_path):
    digests = {"b.json": "0" * 64, "A.md": "f" * 64}
    content = format_manifest(digests)
    assert content == f"{'f' * 64}  A.md\n{'0' * 64}  b.json\n".encode()
    assert parse_manifest(content, tmp_path) == digests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1"),
        ("\n", "line 1"),
        ("{0}  a", "cut short"),
        ("{0}  a\n\n", "line 2"),
        ("{0}  b\n{0}  a\n", "not sorted"),
        ("{0}  a\n{1}  a\n", "a is listed twice"),
        ("{0} a\n", "line 1"),
        ("{0} *a\n", "line 1"),
        ("{0}  a\r\n", "line 1"),
        ("{0}  a \n", "line 1"),
        ("{0}  .a\n", "line 1"),
        ("{0}  -rf\n", "line 1"),
        ("{0}  ö\n", "line 1"),
        ("{0}  a\0b\n", "line 1"),
        ("{0}  a\x1b[2Jb\n", "line 1"),
        (f"{'A' * 64}  a\n", "line 1"),
        (f"{'0' * 63}  a\n", "line 1"),
    ],
)
def test_manifest_of_any_other_form_is_refused(tmp_path, content, message):
    data = content.format("0" * 64, "1" * 64).encode()
    with pytest.raises(ArtefactError, match=message) as caught:
        parse_manifest(data, tmp_path / "SHA256SUMS")
    assert str(caught.value).isprintable()


# -- inside a model, inside an archive ------------------------------------------------------------------------------


def test_a_model_with_all_its_weights_inside_is_accepted(tmp_path):
    require_self_contained(network().SerializeToString(), tmp_path)


def test_no_model_at_all_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="not an ONNX file"):
        require_self_contained(b"PK\x03\x04 not a model", tmp_path)


def _npz(**arrays):
    import io

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_arrays_are_read_as_they_were_written(tmp_path):
    arrays = {
        "images": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "logits": np.eye(3, dtype=np.float32),
        "tolerance": np.array(0.1),
    }
    found = read_arrays(_npz(**arrays), tmp_path)
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_arrays_of_objects_and_damaged_ones_are_refused(tmp_path):
    good = _npz(a=np.arange(1000.0))
    for content in (_npz(a=np.array([{}], dtype=object)), good[:-30], b"", b"PK", good[:80] + b"\1" * 16 + good[96:]):
        with pytest.raises(ArtefactError, match="not an archive of arrays") as caught:
            read_arrays(content, tmp_path / "golden.npz")
        assert "\n" not in str(caught.value)


def test_onnx_reads_what_the_helper_made():
    onnx.checker.check_model(network(), full_check=True)
