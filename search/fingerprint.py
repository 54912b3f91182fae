"""A fingerprint of a function's code, so that an edited function does not keep the results of the one before.

It sees the function's own text, or of an object its class's; what the function was made with (its defaults, what a closure, a
partial or an object holds), where that is a plain value; and of functions and objects among these the same again. It does not see
what the function reaches by name - functions that it calls, modules, global variables - nor the contents of files and arrays:
where these matter, a version has to be changed by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import CellType, CodeType, FunctionType, MethodType

PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, range)
STDLIB = Path(inspect.__file__).parent


def fingerprint(function: Callable[..., object]) -> str:
    """Return 16 hexadecimal digits that differ for functions of different code; the same in every process."""
    told = "\n".join(_Reader(_package(getattr(function, "__module__", ""))).read(function))
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]


class _Reader:
    """Reads values, functions and classes once each: they may refer to one another."""

    def __init__(self, package: str) -> None:
        self._package = package  # is read even if it is installed
        self._seen: dict[int, int] = {}

    def read(self, value: object, *, fixed: bool = True) -> Iterator[str]:
        """Yield what makes a value what it is, as text.

        Args:
            fixed: whether lists and dictionaries count, or are taken for what a function writes down while it works.
        """
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, PLAIN):
            yield repr(value)
        elif isinstance(value, CodeType):
            yield from self._read_code(value)
        elif isinstance(value, functools.partial):
            yield from self._read_all(value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            yield from self.read(value.__func__)
            yield from self._read_once(value.__self__)
        elif isinstance(value, tuple) or (fixed and isinstance(value, list)):
            yield from self._read_all(len(value), *value)
        elif isinstance(value, frozenset) or (fixed and isinstance(value, set)):
            yield from sorted("\n".join(self.read(part)) for part in value)  # their own order differs between processes
        elif isinstance(value, dict):
            yield from self._read_all(*value.items()) if fixed else ()
        elif callable(value) or dataclasses.is_dataclass(value):
            yield from self._read_once(value)

    def _read_all(self, *values: object) -> Iterator[str]:
        for value in values:
            yield from self.read(value)

    def _read_once(self, value: object) -> Iterator[str]:
        if id(value) in self._seen:
            yield f"number {self._seen[id(value)]}"
        else:
            self._seen[id(value)] = len(self._seen)
            yield from self._read_made(value)

    def _read_made(self, value: object) -> Iterator[str]:
        """Read what was defined, or is of a class that was."""
        if isinstance(value, FunctionType):
            yield f"{value.__module__}.{value.__qualname__}"
            if not self._is_library(value.__code__.co_filename):
                yield from self._read_all(value.__code__, value.__defaults__, value.__kwdefaults__)
            for cell in value.__closure__ or ():  # a library's decorator holds the user's function
                yield from self._read_cell(cell)
        elif isinstance(value, type):
            yield f"{value.__module__}.{value.__qualname__}"
            for base in value.__mro__:
                yield from self._read_class(base)
        elif hasattr(value, "__wrapped__"):  # functools.cache
            yield from self.read(value.__wrapped__)
        else:
            yield from self.read(type(value))
            for name, part in sorted(getattr(value, "__dict__", {}).items()):
                yield name
                yield from self.read(part, fixed=False)

    def _read_cell(self, cell: CellType) -> Iterator[str]:
        try:
            content = cell.cell_contents
        except ValueError:  # it refers to what is not there yet
            return
        yield from self.read(content, fixed=False)

    def _read_class(self, kind: type) -> Iterator[str]:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if self._is_library(file or "") or (file is None and _package(kind.__module__) in sys.stdlib_module_names):
            return
        for name, part in sorted(vars(kind).items()):
            if isinstance(part, staticmethod | classmethod):
                part = part.__func__
            elif isinstance(part, property):
                part = part.fget
            if isinstance(part, FunctionType) or (isinstance(part, PLAIN) and not name.startswith("__")):
                yield name
                yield from self.read(part)

    def _read_code(self, code: CodeType) -> Iterator[str]:
        """Yield the text, which is the same for all versions of Python; else bytecode. Lambdas share their line with others."""
        text = "" if code.co_name == "<lambda>" else _text(code)
        if text:
            yield text
        else:
            yield code.co_code.hex()
            yield from self._read_all(code.co_names, code.co_varnames, code.co_freevars, code.co_consts)

    def _is_library(self, file: str) -> bool:
        """Whether a file is somebody else's: another release of it is no reason to measure again."""
        parts = Path(file).parts
        for folder in ("site-packages", "dist-packages"):
            if folder in parts[:-1]:
                return parts[parts.index(folder) + 1].partition(".")[0] != self._package
        return Path(file).is_relative_to(STDLIB)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _text(code: CodeType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError, SyntaxError, IndexError):  # typed in, or its file is not there
        return ""
