"""Targets: one search answers for several sets of limits, such as one a device or a sweep over a limit's values."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from deploy.limits import ON_DEVICE, LimitError, format_value, parse_limit
from ofa.errors import OfaError

MOST = 100  # targets of a sweep
_SWEEP = re.compile(r"\s*([^:<>=\s]+)\s*:\s*(\S+?)\s*\.\.\s*(\S+)\s+x\s*(\d{1,6})\s*")
_DEVICE = re.compile(r"\s*(?:" + "|".join(ON_DEVICE) + r")@([\w.-]+)")


def per_device(where: Sequence[str]) -> dict[str, list[str]]:
    """Make a target of every device that limits name: its own limits, and those that name none.

    Raises:
        OfaError: if no limit names a device.
    """
    devices = [found[1] if (found := _DEVICE.match(text)) else None for text in where]
    names = list(dict.fromkeys(device for device in devices if device))
    if not names:
        raise OfaError('no limit names a device, expected one for each, e.g. --where "latency@pi4 <= 12ms"')
    return {name: [text for text, device in zip(where, devices, strict=True) if device in (None, name)] for name in names}


def sweep(text: str, where: Sequence[str] = ()) -> dict[str, list[str]]:
    """Make a target of every value of a sweep, e.g. "latency@pi4: 4ms..20ms x9", each with the other limits.

    Raises:
        OfaError: for a sweep that cannot be read, or a limit on the quantity that is swept.
    """
    match = _SWEEP.fullmatch(text)
    if not match:
        raise OfaError(f'sweep {text!r}: expected QUANTITY[@DEVICE]: FROM..TO xCOUNT, e.g. "latency@pi4: 4ms..20ms x9"')
    key, first, last, count = match[1], match[2], match[3], int(match[4])
    shares = first.endswith("%") and last.endswith("%")
    try:
        ends = [parse_limit(f"{key} <= {value}", largest=(lambda limit: 100.0) if shares else None) for value in (first, last)]
    except LimitError as error:
        raise OfaError(f"sweep {text!r}: {error}") from None
    low, high = ends[0].bound, ends[1].bound
    if not 2 <= count <= MOST or not low < high:
        raise OfaError(f"sweep {text!r}: expected 2 to {MOST} values, from a smaller to a larger one")
    for limit in where:
        if limit.partition("<")[0].strip() in (key, ends[0].key):
            raise OfaError(f"sweep {text!r}: --where {limit!r} limits the same quantity, expected one of the two")
    bounds = np.linspace(low, high, count).tolist()
    values = [f"{value:.4g}%" if shares else format_value(ends[0].quantity, value, digits=4) for value in bounds]
    if len(set(values)) < count:
        raise OfaError(f"sweep {text!r}: {count} values lie so close that four digits do not tell them apart, expected fewer")
    return {f"{ends[0].key}_{value.replace('%', 'pct')}": [f"{ends[0].key} <= {value}", *where] for value in values}
