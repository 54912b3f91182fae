"""Files: written whole or not at all, and a seal that notices every change."""

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from ofa.artefacts import ArtefactError, format_json, read_json, write_all, write_json
from ofa.json_text import BLANK

VALUE = {"schema": "s/1", "name": "kühl", "values": {"a.kernel_size": 3, "b": 2.5}, "list": [1, None, True, "x"]}


def test_files_that_belong_together_appear_together(tmp_path):
    write_all(tmp_path / "new", {"a": b"1", "b": b"", "c": b"3" * 10_000})
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == {"a": b"1", "b": b"", "c": b"3" * 10_000}
    assert stat.S_IMODE((tmp_path / "new" / "a").stat().st_mode) == 0o644


def test_a_file_that_cannot_be_written_changes_none(tmp_path, monkeypatch):
    write_all(tmp_path, {"a": b"old", "b": b"old"})
    written, fsync = [], os.fsync

    def full_at_the_second(handle):
        written.append(handle)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_all(tmp_path, {"a": b"new", "b": b"new", "c": b"new"})
    assert caught.value.filename == str(tmp_path / "b")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_a_link_is_replaced_and_what_it_points_to_is_left(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to("mine")
    write_all(tmp_path, {"a": b"new"})
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


# -- seals ----------------------------------------------------------------------------------------------------------


def test_a_seal_is_the_digest_of_the_file_with_its_digits_as_zeros(tmp_path):
    write_json(tmp_path / "a.json", VALUE, sealed=True)
    content = (tmp_path / "a.json").read_text()
    *_, last = json.loads(content).items()
    assert last == ("seal", hashlib.sha256(content.replace(last[1], BLANK).encode()).hexdigest())
    assert read_json(tmp_path / "a.json", schema="s/1") == VALUE


def test_a_value_that_holds_what_looks_like_a_blank_seal_is_sealed_all_the_same(tmp_path):
    value = {"schema": "s/1", "sha256": BLANK, "text": f'"seal": "{BLANK}"\n}}'}
    write_json(tmp_path / "a.json", value, sealed=True)
    assert read_json(tmp_path / "a.json", schema="s/1") == value


def test_files_without_a_seal_are_read(tmp_path):
    for value in (VALUE, {**VALUE, "sha256": "a" * 64}, {**VALUE, "weights_sha256": "0" * 64}, {**VALUE, "id": "a" * 63}):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json", schema="s/1") == value


def test_every_flipped_bit_and_every_cut_of_a_sealed_file_is_noticed(tmp_path):
    path, good = tmp_path / "a.json", format_json(VALUE, sealed=True)
    damaged = [good[:cut] for cut in range(len(good))]
    for at in range(len(good)):
        for bit in range(8) if at > len(good) - 90 else (at % 8,):  # every bit of the seal, one of every other byte
            flipped = bytearray(good)
            flipped[at] ^= 1 << bit
            damaged.append(bytes(flipped))
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(good) - 16, 300):
        damaged.append(good[:at] + bytes(16) + good[at + 16 :])
        damaged.append(good[:at] + rng.bytes(16) + good[at + 16 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ArtefactError) as caught:
            read_json(path, schema="s/1")
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("2.5", "2.50"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(" ", ""),
        lambda text: text.replace('"seal"', '"s\\u0065al"'),
        lambda text: text.replace('"seal"', '"saal"'),
        lambda text: text.rstrip("}\n") + ', "more": 1}\n',
        lambda text: text + "\n",
        lambda text: '{"seal": 3, "schema": "s/1"}',
    ],
)
def test_a_changed_file_says_how_to_keep_the_change(tmp_path, change):
    path = tmp_path / "a.json"
    path.write_text(change(format_json(VALUE, sealed=True).decode()), newline="")
    with pytest.raises(ArtefactError, match=r'it is damaged; if the change is yours, remove its last field, "seal"'):
        read_json(path, schema="s/1")


def test_a_pipe_is_read_no_further_than_a_file_may_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa.artefacts.MAX_JSON_BYTES", 1000)
    (tmp_path / "large.json").write_bytes(b" " * 1001)
    for source in (Path("/dev/zero"), tmp_path / "large.json"):
        with pytest.raises(ArtefactError, match=r"larger than 0 MiB, expected a s/1 file"):
            read_json(source, schema="s/1")


def test_a_name_given_twice_among_very_many_is_found_at_once(tmp_path):
    names = [f'"{i}": 0' for i in range(200_000)] + ['"199999": 1']
    (tmp_path / "a.json").write_text("{" + ", ".join(names) + "}")
    with pytest.raises(ArtefactError, match="holds '199999' twice"):
        read_json(tmp_path / "a.json", schema="s/1")
