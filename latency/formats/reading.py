"""Files of others: read whole, with an error in one line for whatever they hold instead of what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ofa.artefacts import ArtefactError
from ofa.json_text import distinct
from ofa.space import Dimension

MAX_BYTES = 64 * 2**20
MAX_MS = 1e9


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        ArtefactError: if it is missing, larger than any such file, or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path}: larger than {MAX_BYTES >> 20} MiB, expected a file of timings")
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file, expected a file of timings") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}), expected a file of timings") from None
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path}: not a text file ({error.reason} at byte {error.start})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that names no schema.

    Raises:
        ArtefactError: if it is none, or a key stands twice in one object: which of the values holds?
    """
    try:
        value = json.loads(read_text(path), object_pairs_hook=distinct)
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ArtefactError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(f"{path}: not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def milliseconds(value: object, where: str) -> float:
    """Return a time if it is one.

    Raises:
        ArtefactError: naming where it stands.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_MS:
        raise ArtefactError(f"{where} = {str(value)[:40]!r}: expected milliseconds, above 0")
    return float(value)


def option_index(dimension: Dimension, cell: str) -> int:
    """Return the index of the option that a cell means, -1 if none: 224 and 224.0 are one number."""
    names = list(map(str, dimension.options))
    if cell in names:
        return names.index(cell)
    try:
        number = float(cell)
    except ValueError:
        return -1
    return next((i for i, option in enumerate(dimension.options) if option == number), -1)
