"""Search spaces by name: a file here is a space, its name is the file's name; a dotted module name works from outside."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ofa.errors import OfaError
from ofa.space import SearchSpace


class UnknownSpaceError(OfaError):
    """No space has this name."""


def list_spaces() -> list[str]:
    """Return the names of the spaces that ship with the toolkit."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def list_image_spaces() -> list[str]:
    """Return the names of those whose networks classify images; a recurrent cell reads text."""
    return [name for name in list_spaces() if get_space(name).slots]


def list_elastic_spaces() -> list[str]:
    """Return the names of those that a supernet can be made of: with choices, of which not too many decide one block."""
    spaces = {name: get_space(name) for name in list_image_spaces()}
    return [name for name, space in spaces.items() if space.size() > 1 and space.is_tabulated]


def get_space(name: str, *, num_classes: int | None = None) -> SearchSpace:
    """Load a space by name, e.g. "mbv3_small_image", or by a dotted module name such as "my_lab.wide".

    Numbers of a space that comes in several sizes follow its name: "darts:cells=8,channels=16".

    Raises:
        OfaError: for numbers that the space does not have.
        UnknownSpaceError: listing the names that exist, or if a module's SPACE goes by another name than the module.
    """
    name, colon, numbers = name.partition(":")
    unknown = UnknownSpaceError(
        f"unknown space {name!r}; known: {', '.join(list_spaces())} (or the dotted name of a module with a SPACE)"
    )
    if not (name in list_spaces() or ("." in name and all(part.isidentifier() for part in name.split(".")))):
        raise unknown
    module = name if "." in name else f"{__name__}.{name}"
    try:
        space: Any = getattr(importlib.import_module(module), "SPACE", None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise unknown from None
        raise UnknownSpaceError(f"space {name!r}: its module cannot be imported ({error})") from None
    if not isinstance(space, SearchSpace):
        raise UnknownSpaceError(f"space {name!r}: its module has no SPACE that is a SearchSpace")
    if space.name != name:  # runs remember a space by its name and must find it again
        raise UnknownSpaceError(f"module {name}: its SPACE is named {space.name!r}, expected {name!r}")
    if colon:
        space = space.with_numbers(**_parse_numbers(name, numbers))
    return space if num_classes is None else space.with_num_classes(num_classes)


def _parse_numbers(name: str, text: str) -> dict[str, int | str]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(key.isidentifier() and value for key, _, value in parts):
        raise UnknownSpaceError(f"space {name}:{text}: expected numbers such as {name}:cells=8,channels=16")
    return {key: int(value) if value.isdecimal() and len(value) < 6 else value for key, _, value in parts}
