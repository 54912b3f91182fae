"""Files that other commands rely on: written whole or not at all, read with a clear error.

JSON for what is decided, JSON lines for what grows. A file is written to a temporary name beside its target, flushed to
disk and renamed, so that a crash or a full disk leaves the old file as it was.

What must not change unnoticed is sealed (ofa.json_text); a file without a seal, written by hand or by an older version, is read
as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ofa import json_text
from ofa.errors import OfaError

MAX_JSON_BYTES = 64 * 2**20  # in memory it can take twenty times as much; the largest of ours have ten


class ArtefactError(OfaError):
    """A file is missing, damaged or of another kind than expected."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: temporary name, fsync, rename, fsync of the directory."""
    write_all(path.parent, {path.name: data})


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together, by name; `folder` is made if need be.

    All of them are on disk under temporary names before the first is renamed, so that a full disk changes nothing. The order
    of the renames is that of `files`.

    Raises:
        OSError: naming the file that could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporaries: dict[str, str] = {}
    try:
        for name, data in files.items():
            handle, temporaries[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(folder / name)) from None
            os.chmod(temporaries[name], 0o644)  # mkstemp makes private files; artefacts are shared like any other file
        for name, temporary in temporaries.items():
            os.replace(temporary, folder / name)
    except BaseException:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise
    sync_directory(folder)


def sync_directory(path: Path) -> None:
    """Flush a directory entry to disk, so that a rename survives a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Mapping[str, Any], *, sealed: bool = False) -> None:
    """Write a JSON object atomically, with a seal if it must not change unnoticed. NaN and infinity are refused."""
    write_bytes(path, format_json(value, sealed=sealed))


def format_json(value: Mapping[str, Any], *, sealed: bool = False) -> bytes:
    """Return a JSON object as it is written, with a seal if it must not change unnoticed."""
    return json_text.sealed(value) if sealed else json_text.dumps(value)


def read_json(path: Path, *, schema: str) -> dict[str, Any]:
    """Read a JSON object whose "schema" field is `schema`.

    Raises:
        ArtefactError: if the file is missing, too large, not JSON, not an object, of another schema, holds a name twice,
            or was changed after it was sealed.
    """
    return parse_json(read_bounded(path, what=f"a {schema} file", limit=MAX_JSON_BYTES), path, schema=schema)


def read_bounded(path: Path, *, what: str, limit: int) -> bytes:
    """Read a file that holds at most `limit` bytes; `what` says what was expected, in the error.

    Raises:
        ArtefactError: if the file is missing, unreadable or larger.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read((size or limit) + 1) if size <= limit else None  # the memory is taken before it is read
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file, expected {what}") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}), expected {what}") from None
    if content is None or len(content) > limit:  # a pipe does not say how much it holds
        raise ArtefactError(f"{path}: larger than {limit >> 20} MiB, expected {what}")
    return content


def parse_json(content: bytes, path: Path, *, schema: str) -> dict[str, Any]:
    """Return the JSON object that `content`, read from `path`, holds.

    Raises:
        ArtefactError: as `read_json`.
    """
    value = parse_object(content, path, what=f"a {schema} file")
    if value.get("schema") != schema:
        raise ArtefactError(
            f"{path}: schema is {repr(value.get('schema'))[:100]}, expected {schema!r}; it is not the file this command needs"
        )
    return value


def parse_object(content: bytes, path: Path, *, what: str) -> dict[str, Any]:
    """Return the JSON object of any schema that `content`, read from `path`, holds, without its seal.

    Raises:
        ArtefactError: if it is not JSON, no object, holds a name twice, or was changed after it was sealed.
    """
    try:
        value = json_text.loads(content)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(f"{path}: not valid JSON ({reason}); it is damaged or not {what}") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: holds a {type(value).__name__}, expected {what}")
    if json_text.is_changed(value, content):
        raise ArtefactError(
            f"{path}: changed after it was written, it is damaged; "
            f'if the change is yours, remove its last field, "{json_text.SEAL}"'
        )
    value.pop(json_text.SEAL, None)
    return value


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be run again, if the file is there."""
    if path.exists():
        kept = [record for record in read_jsonl(path) if record.get("step", 0) <= step]
        write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record as a line and flush it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        # A crash can leave half a line behind; starting on a fresh one keeps the new record readable.
        if file.tell() and not _ends_with_newline(file):
            line = "\n" + line
        file.write(line.encode())
        file.flush()


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file; lines that a crash cut off are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_JSON_BYTES):
            with contextlib.suppress(ValueError, RecursionError):
                record = json_text.loads(line)
                if isinstance(record, dict):
                    yield record


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_positive(value: object) -> bool:
    """Whether `value` is a finite number above zero (and not a bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
