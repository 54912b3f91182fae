"""Public names of a package without the price of importing them: `ofa --help` must not wait for torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy_exports(package: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module `__getattr__` (PEP 562) that imports a name from its module when it is first asked for."""

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has: {', '.join(names)}")
        return getattr(importlib.import_module(names[name]), name)

    return get
