"""Is a file what it says, before anything acts on it: digests of a folder, tensors inside a model, arrays inside an archive."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ofa.artefacts import ArtefactError

MANIFEST = "SHA256SUMS"
MAX_UNPACKED_BYTES = 256 * 2**20
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # one folder, nothing hidden, nothing that a shell or a terminal reads as more than a name
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({NAME})")


def format_manifest(digests: Mapping[str, str]) -> bytes:
    """Return SHA256SUMS: a line for every file, sorted by name, as `sha256sum` writes and `sha256sum -c` checks."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def parse_manifest(content: bytes, path: Path) -> dict[str, str]:
    """Return the hexadecimal SHA-256 of every file by name; only what `format_manifest` writes is read.

    Raises:
        ArtefactError: naming the first line that is wrong.
    """
    digests: dict[str, str] = {}
    for number, line in enumerate(content.decode("ascii", "replace").removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ArtefactError(f"{path}: line {number} is {line[:100]!r}, expected a SHA-256 and a file name; export it again")
        digest, name = match.groups()
        if name in digests:
            raise ArtefactError(f"{path}: {name} is listed twice; export it again")
        digests[name] = digest
    if format_manifest(digests) != content:
        raise ArtefactError(f"{path}: not sorted or cut short; export it again")
    return digests


def require_self_contained(content: bytes, path: Path) -> None:
    """Refuse tensors kept outside the file: they could name any path of the machine that loads it.

    Wherever a model can hold a tensor is looked at: initializers, sparse ones, attributes, subgraphs, functions, training.

    Raises:
        ArtefactError: naming the tensor; or if `content` is no ONNX model.
    """
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's errors share no base with onnx's
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ArtefactError(f"{path}: not an ONNX file ({reason})") from None
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ArtefactError(
                f"{path}: keeps tensor {tensor.name[:100]!r} outside the file, which is not followed; export it again"
            )


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor below a protobuf message, by its descriptors: no list of places that a later ONNX could add to."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:  # a message, or a container of them
                if isinstance(part, onnx.TensorProto):
                    yield part
                else:
                    yield from _tensors(part)


def read_arrays(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name. Nothing is unpickled, and no more is unpacked than the archive may hold.

    Raises:
        ArtefactError: if it is damaged, holds anything but arrays of numbers, or unpacks to more than MAX_UNPACKED_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise ArtefactError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB; export it again")
            # zipfile reads no more of an entry than its file_size, whatever else was packed
            return {entry.filename.removesuffix(".npy"): _array(archive.read(entry)) for entry in entries}
    except ArtefactError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ArtefactError(f"{path}: not an archive of arrays ({reason}); export it again") from None


def _array(data: bytes) -> NDArray[Any]:
    """Read a .npy file whose header says no more than follows: numpy would reserve the memory first."""
    file = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{dtype} {shape} is not the {len(data) - file.tell()} bytes that follow")
    file.seek(0)
    return np.load(file, allow_pickle=False)
