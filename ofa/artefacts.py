"""Files that other commands rely on: written whole or not at all, read with a clear error.

JSON for what is decided, JSON lines for what grows. A file is written to a temporary name beside its target, flushed to
disk and renamed, so that a crash or a full disk leaves the old file as it was.

What must not change unnoticed is sealed: its last field, "seal", is the SHA-256 of the file's bytes with these 64 digits as
zeros. A file without one, written by hand or by an older version, is read as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ofa.errors import OfaError

MAX_JSON_BYTES = 64 * 2**20  # in memory it can take twenty times as much; the largest of ours have ten
SEAL, BLANK = "seal", "0" * 64
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SEALED = re.compile(rb'"seal": "([0-9a-f]{64})"\s*\}\s*\Z')


class ArtefactError(OfaError):
    """A file is missing, damaged or of another kind than expected."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: temporary name, fsync, rename, fsync of the directory."""
    write_all(path.parent, {path.name: data})


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together, by name; `folder` is made if need be.

    All of them are on disk under temporary names before the first is renamed, so that a full disk changes nothing. The order
    of the renames is that of `files`: what vouches for the others goes last.

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
    """Write a JSON object atomically. NaN and infinity are refused: other readers could not parse them."""
    write_bytes(path, format_json(value, sealed=sealed))


def format_json(value: Mapping[str, Any], *, sealed: bool = False) -> bytes:
    """Return a JSON object as it is written, with a seal if it must not change unnoticed."""
    if not sealed:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    blank = format_json({**value, SEAL: BLANK})
    head, _, tail = blank.rpartition(BLANK.encode())
    return head + hashlib.sha256(blank).hexdigest().encode() + tail


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
        value = _loads(content)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(f"{path}: not valid JSON ({reason}); it is damaged or not {what}") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: holds a {type(value).__name__}, expected {what}")
    if _is_changed(value, content):
        raise ArtefactError(
            f'{path}: changed after it was written, it is damaged; if the change is yours, remove its last field, "{SEAL}"'
        )
    value.pop(SEAL, None)
    return value


def _loads(content: bytes) -> Any:
    """Parse JSON that every reader can use: ValueError for NaN, numbers beyond a float, half characters, a name given twice."""
    shape = content.translate(_DIGITS, b"+")  # asking of every number is slow, of most files there is nothing to ask
    huge = b"e000" in shape or b"0" * 308 in shape
    exact: dict[str, Any] = {"parse_float": _finite, "parse_int": _finite_int} if huge else {}
    value = json.loads(content, object_pairs_hook=distinct, parse_constant=_no_number, **exact)
    if _SURROGATE.search(content):  # half a character, which nothing could print or write
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_changed(value: dict[str, Any], content: bytes) -> bool:
    """Whether an object does not agree with its seal; one without a seal, written by hand, does."""
    last = next(reversed(value), "")
    if SEAL not in value:  # whose name may be what was damaged
        return bool(re.fullmatch("[0-9a-f]{64}", str(value.get(last)))) and not last.endswith("sha256")
    found = _SEALED.search(content, max(0, len(content) - 200))
    if found is None:
        return True
    blank = content[: found.start(1)] + BLANK.encode() + content[found.end(1) :]
    return hashlib.sha256(blank).hexdigest() != value[SEAL]


def _no_number(word: str) -> float:
    raise ValueError(f"holds {word}, which is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"holds {digits[:20]}..., which is too large")
    return value


def _finite_int(digits: str) -> int:
    _finite(digits)  # which every reader may make of it
    return int(digits)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; of a name given twice, readers would believe one or the other."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"holds {next(name for name in names if names.count(name) > 1)!r} twice")
    return value


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
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = _loads(line)
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
