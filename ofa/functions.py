"""Functions that users name on the command line: package.module:function."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from ofa.errors import OfaError


def is_function_name(text: str) -> bool:
    """Whether a text has the form package.module:function."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", text) is not None


def load_function(text: str, *, what: str, expected: str) -> Callable[..., Any]:
    """Import a function; the first line of what goes wrong in its module is the user's to see.

    Args:
        text: package.module:function; modules of the working directory can be named too.
        what: what the function is for, which begins the message of an error.
        expected: what else could be named, which ends it.

    Raises:
        OfaError: if there is no such function, or its module cannot be imported.
    """
    module, _, name = text.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # behind everything else: a file beside the user replaces no library
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise OfaError(
                f"{what} {text!r}: no module {error.name!r} in {here} or among the installed ones, expected {expected}"
            ) from None
        raise OfaError(f"{what} {text!r}: {module} needs the module {error.name!r}, which is not installed") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise OfaError(f"{what} {text!r}: {module} cannot be imported ({': '.join([type(error).__name__, *reason])})") from None
    if not callable(found):
        raise OfaError(f"{what} {text!r}: {module} has no function {name!r}")
    return found
