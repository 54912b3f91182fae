"""JSON that every reader can use, and the seal that tells whether it was changed.

A seal is a last field of an object, "seal": the SHA-256 of the file's bytes with these 64 digits as zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

SEAL, BLANK = "seal", "0" * 64
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SEALED = re.compile(rb'"seal": "([0-9a-f]{64})"\s*\}\s*\Z')


def dumps(value: Mapping[str, Any]) -> bytes:
    """Write an object. NaN and infinity are refused: other readers could not parse them."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sealed(value: Mapping[str, Any]) -> bytes:
    """Write an object with its seal."""
    blank = dumps({**value, SEAL: BLANK})
    head, _, tail = blank.rpartition(BLANK.encode())
    return head + hashlib.sha256(blank).hexdigest().encode() + tail


def loads(content: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: for anything else; also for NaN, numbers beyond a float, half characters, a name given twice.
    """
    shape = content.translate(_DIGITS, b"+")  # asking of every number is slow, of most files there is nothing to ask
    huge = b"e000" in shape or b"0" * 308 in shape
    exact: dict[str, Any] = {"parse_float": _finite, "parse_int": _finite_int} if huge else {}
    value = json.loads(content, object_pairs_hook=distinct, parse_constant=_no_number, **exact)
    if _SURROGATE.search(content):  # half a character, which nothing could print or write
        json.dumps(value, ensure_ascii=False).encode()
    return value


def is_changed(value: Mapping[str, Any], content: bytes) -> bool:
    """Whether an object, read from `content`, does not agree with its seal; one without a seal, written by hand, does."""
    if SEAL not in value:  # whose name may be what was damaged
        last = next(reversed(list(value)), "")
        return bool(re.fullmatch("[0-9a-f]{64}", str(value.get(last)))) and not last.endswith("sha256")
    found = _SEALED.search(content, max(0, len(content) - 200))
    if found is None:
        return True
    blank = content[: found.start(1)] + BLANK.encode() + content[found.end(1) :]
    return hashlib.sha256(blank).hexdigest() != value[SEAL]


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; of a name given twice, readers would believe one or the other."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"holds {twice[:100]!r} twice")
    return value


def _no_number(word: str) -> float:
    raise ValueError(f"holds {word}, which is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"holds {digits[:20] + '...' * (len(digits) > 20)}, which is too large")
    return value


def _finite_int(digits: str) -> int:
    _finite(digits)  # which every reader may make of it
    return int(digits)
