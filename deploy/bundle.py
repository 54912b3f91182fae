"""A bundle: the folder that an export writes, and SHA256SUMS, by which every file of it is checked before it is parsed.

The export writes the parts; verify.json and bench.json are results of the commands that came after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deploy.integrity import MANIFEST, format_manifest, parse_manifest, read_arrays
from deploy.model_record import check_record
from ofa.artefacts import ArtefactError, parse_json, read_bounded, write_all
from ofa.progress import say

MODEL_SCHEMA = "ofa.model/2"
RESULTS = ("verify.json", "bench.json")
PARTS = (
    "model.onnx",
    "model.json",
    "model.safetensors",
    "arch.json",
    "preprocess.json",
    "labels.txt",
    "golden.npz",
    "run.py",
    "MODEL_CARD.md",
)
NEEDED = ("model.onnx", "model.json")
LARGE = ("model.onnx", "model.safetensors")
MAX_LARGE_BYTES, MAX_BYTES = 2**31, 256 * 2**20  # protobuf ends at 2 GiB
MAX_GOLDEN = 1000


class Bundle:
    """A bundle whose files were whole when it was opened; `open_bundle` makes one."""

    def __init__(self, path: Path, digests: Mapping[str, str]) -> None:
        self.path = path
        self.digests = dict(digests)  # hexadecimal SHA-256 by name

    def has(self, name: str) -> bool:
        """Whether the bundle holds a file of this name."""
        return name in self.digests

    def read(self, name: str) -> bytes:
        """Return a file's content: the very bytes that were held against SHA256SUMS.

        Raises:
            ArtefactError: if the bundle has no such file, or it is missing, damaged or too large.
        """
        path = self.path / name
        if name not in self.digests:
            raise ArtefactError(f"{path}: not in {MANIFEST}, the bundle holds {', '.join(self.digests)}; export it again")
        if not path.is_file():
            raise ArtefactError(f"{path}: no such file, but {MANIFEST} lists it; export it again")
        if path.resolve().parent != self.path.resolve():
            raise ArtefactError(f"{path}: a link out of the bundle, which is not followed; export it again")
        limit = MAX_LARGE_BYTES if name in LARGE else MAX_BYTES
        content = read_bounded(path, what="a part of an export", limit=limit)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.digests[name]:
            raise ArtefactError(
                f"{path}: SHA-256 is {digest[:16]}..., {MANIFEST} says {self.digests[name][:16]}...; "
                "the file is damaged or another one: export it again"
            )
        return content

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of an .npz file by name; nothing is unpickled.

        Raises:
            ArtefactError: as `read`; or if it holds anything else, or unpacks to more than it may.
        """
        return read_arrays(self.read(name), self.path / name)

    @cached_property
    def golden(self) -> dict[str, NDArray[Any]]:
        """golden.npz: `images` (n, stored_size, stored_size, 3) uint8, `logits` and `reference` (n, classes), `tolerance` ().

        Raises:
            ArtefactError: as `arrays`; or naming what is missing or of another shape.
        """
        golden, path = self.arrays("golden.npz"), self.path / "golden.npz"
        size, classes = self.record["preprocess"]["stored_size"], len(self.record["classes"])
        n = len(golden["images"]) if "images" in golden and golden["images"].ndim else 0
        logits = ((n, classes), "f")
        wanted = {
            "images": ((n, size, size, 3), "u"),
            "logits": logits,
            "reference": logits,
            "tolerance": ((), "f"),
        }
        for name, (shape, kind) in wanted.items():
            if name not in golden or not 0 < n <= MAX_GOLDEN:
                raise ArtefactError(
                    f"{path}: holds {n} images, expected up to {MAX_GOLDEN} with logits and tolerance; export it again"
                )
            if golden[name].shape != shape or golden[name].dtype.kind != kind:
                raise ArtefactError(
                    f"{path}: {name} are {golden[name].dtype} {golden[name].shape}, expected {shape}; export it again"
                )
        if not 0 < golden["tolerance"] < 1:
            raise ArtefactError(
                f"{path}: tolerance is {golden['tolerance']}, expected a share of the largest logit; export it again"
            )
        return golden

    @cached_property
    def record(self) -> dict[str, Any]:
        """model.json, checked field by field.

        Raises:
            ArtefactError: naming the field that is wrong.
        """
        path = self.path / "model.json"
        record = parse_json(self.read("model.json"), path, schema=MODEL_SCHEMA)
        check_record(record, path)
        if record["sha256"] != self.digests["model.onnx"]:
            raise ArtefactError(f"{path}: is of another model.onnx (its sha256 is {record['sha256'][:16]}...); export it again")
        return record

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write results beside the model, and the SHA256SUMS that lists them, together.

        Raises:
            ArtefactError: if another model was exported here since the bundle was opened; nothing is written then.
            OSError: naming the file that could not be written; nothing is changed then.
        """
        with _alone_in(self.path):
            now = open_bundle(self.path)  # another command may have added its results meanwhile
            if now.digests["model.onnx"] != self.digests["model.onnx"]:
                raise ArtefactError(f"{self.path}: another model was exported here meanwhile; the results were not written")
            self.digests = _write(self.path, files, now.digests)


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check every file that it lists, before anything is parsed.

    Args:
        path: the folder, or the model.onnx in it.
    Raises:
        ArtefactError: if it is no bundle, or naming the file that is missing, damaged, unlisted or listed twice.
    """
    path = Path(path)
    if not path.exists():
        raise ArtefactError(f"{path}: no such file or folder, expected an export: ofa export ARCH -o {path}")
    folder = path if path.is_dir() else path.parent
    if path != folder and path.name != "model.onnx":
        raise ArtefactError(f"{path}: expected an exported folder, or the model.onnx in it")
    listing = folder / MANIFEST
    if not listing.is_file():
        raise ArtefactError(f"{folder}: no exported bundle (no {MANIFEST} inside); make one: ofa export ARCH -o {folder}")
    digests = parse_manifest(read_bounded(listing, what="the digests of an export", limit=2**20), listing)
    for name in NEEDED:
        if name not in digests:
            raise ArtefactError(f"{listing}: does not list {name}; export it again")
    for name in (*PARTS, *RESULTS):
        if name not in digests and os.path.lexists(folder / name):
            raise ArtefactError(
                f"{folder / name}: not listed in {MANIFEST}, so nothing vouches for it; remove it or export again"
            )
    bundle = Bundle(folder, digests)
    for name in list(digests):
        try:
            bundle.read(name)
        except ArtefactError as error:
            if name not in RESULTS:
                raise
            # a result can be had again; a model must not be lost to it
            say(f"warning: {error}; until then it counts as not there")
            del bundle.digests[name]
    return bundle


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an export, by name, and their SHA256SUMS.

    What an earlier export wrote here and this one does not goes, with all results about it; files that are the user's own stay.

    Raises:
        ArtefactError: if the folder holds a file of a bundle's name that no earlier export wrote; nothing is written then.
        OSError: naming the file that could not be written; nothing is changed then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        earlier: dict[str, str] = {}
        with contextlib.suppress(ArtefactError):
            earlier = parse_manifest(read_bounded(folder / MANIFEST, what="digests", limit=2**20), folder / MANIFEST)
        for name in (*PARTS, *RESULTS):
            if name not in earlier and os.path.lexists(folder / name):
                raise ArtefactError(
                    f"{folder / name}: no export wrote this file, so none replaces it; choose another folder with -o"
                )
        _write(folder, files, {})
        for name in (*PARTS, *RESULTS):
            if name not in files:
                (folder / name).unlink(missing_ok=True)


def _write(folder: Path, files: Mapping[str, bytes], others: Mapping[str, str]) -> dict[str, str]:
    """Write files and a listing of them and `others`; return it."""
    digests = {**others, **{name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    manifest = format_manifest(digests)
    parse_manifest(manifest, folder / MANIFEST)  # a name that could not be read back is none
    write_all(folder, {MANIFEST: manifest, **files})  # first: after a crash in between, the next export knows what is ours
    return digests


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time change a bundle; where a file system knows no locks, hope."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
