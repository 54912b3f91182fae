"""Reading files that anybody may have changed: what they lack becomes an error that names them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ofa.artefacts import ArtefactError
from ofa.errors import OfaError

Record = TypeVar("Record")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a file lacks into an error that names the file."""
    try:
        yield
    except ArtefactError:
        raise
    except OfaError as error:
        raise ArtefactError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path}: incomplete or damaged ({type(error).__name__}: {error})") from None


def number(value: object) -> float:
    """Return a finite number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def numbers(value: Mapping[str, object]) -> dict[str, float]:
    """Return name -> finite number; ValueError for anything else."""
    return {str(name): number(item) for name, item in value.items()}


def build(cls: type[Record], value: object) -> Record:
    """Make a dataclass of what a file holds, checked against its annotations; ValueError naming the first field that is wrong."""
    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
