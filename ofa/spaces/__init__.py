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


def get_space(name: str, *, num_classes: int | None = None) -> SearchSpace:
    """Load a space by name, e.g. "mbv3_small_image", or by a dotted module name such as "my_lab.wide".

    Raises:
        UnknownSpaceError: listing the names that exist, or if a module's SPACE goes by another name than the module.
    """
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
    return space if num_classes is None else space.with_num_classes(num_classes)
