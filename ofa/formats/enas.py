"""Architectures as ENAS writes them: a sequence of integers, the decisions of its controller in order.

| form  | integers                                                                                                |
|-------|---------------------------------------------------------------------------------------------------------|
| micro | for each node of the normal, then of the reduction cell: state, operation, state, operation             |
| macro | for each layer: operation, then for the stem and each layer before the last one 1 if it is skipped from |

The order of a node's two halves is of no effect; they are written with the lower state first. Source: Pham et al. 2018 (ENAS,
arXiv 1802.03268) and its code, from which the two published architectures are. This module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ofa.cell_edges import numbers_in
from ofa.cell_space import CellSpace
from ofa.enas_cells import EnasMicroSpace
from ofa.errors import OfaError
from ofa.genotype import INPUTS
from ofa.macro_space import MacroSpace
from ofa.space import ArchConfig, SearchSpace, Value
from ofa.spaces import get_space

MICRO_OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")
MACRO_OPERATIONS = ("conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")
MICRO_LENGTH = 40
MAX_TEXT = 20_000  # characters; that of 24 layers has 600

PUBLISHED = {  # name -> space, arc; the released code's final macro network has full convolutions in place of separable ones
    "enas_micro": (
        "enas_micro",
        "0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1 1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1",
    ),
    "enas_macro": (
        "enas_macro:layers=24,channels=96",
        """0  3 0  0 1 0  2 0 0 1  2 0 0 0 0  3 1 1 0 1 0  2 0 0 0 0 0 1  2 0 1 1 0 1 1 1  1 0 1 1 1 0 1 0 1
        0 0 0 0 0 0 0 0 0 0  2 0 0 0 0 0 1 0 0 0 0  0 1 0 0 1 1 0 0 0 0 1 1  2 0 1 0 0 0 0 0 1 0 1 1 0
        1 0 0 1 0 0 0 1 1 1 0 1 0 1  0 1 1 0 1 0 1 0 0 0 0 0 1 0 0  2 0 0 1 0 0 0 0 0 0 0 1 0 1 0 1
        2 0 1 0 0 0 1 0 0 1 1 1 1 0 0 1 0  2 0 0 0 0 1 0 1 0 1 0 0 1 0 1 0 0 1
        3 0 1 1 0 1 0 0 0 0 0 1 0 1 0 1 0 0 0  3 0 1 1 0 0 0 0 0 0 0 0 0 1 1 0 0 0 0 1
        0 1 0 0 1 0 1 1 0 0 0 1 0 0 0 0 0 1 1 0 0  3 0 1 0 1 1 0 0 1 0 1 1 0 1 1 0 1 0 0 1 0 0
        0 1 0 1 0 1 0 0 0 0 0 0 0 0 1 0 1 0 0 1 0 0 0  0 1 1 0 0 0 1 1 1 0 1 0 0 0 1 0 1 0 0 1 1 0 0 0""",
    ),
}


class ArcError(OfaError):
    """A sequence of integers is no architecture of ENAS."""


def is_arc(text: str) -> bool:
    """Tell whether a text is a sequence of integers."""
    return len(text) <= MAX_TEXT and bool(re.fullmatch(r"[\s,]*\d{1,3}([\s,]+\d{1,3})*[\s,]*", text))


def parse_arc(text: str) -> tuple[int, ...]:
    """Read integers, separated by spaces or commas.

    Raises:
        ArcError: if the text is anything else.
    """
    if not is_arc(text):
        raise ArcError(f"not an architecture of ENAS: {text[:60]!r}, expected integers such as '0 2 0 0 ...'")
    return tuple(map(int, re.findall(r"\d+", text)))


def format_arc(arc: Sequence[int]) -> str:
    """Write integers as ENAS' scripts do."""
    return " ".join(map(str, arc))


def published_arch(name: str, *, space: str | None = None, **numbers: int | str) -> tuple[SearchSpace, ArchConfig]:
    """Return a published architecture, one of PUBLISHED, and its space; see `arch_of_arc`."""
    published, arc = PUBLISHED[name]
    return arch_of_arc(parse_arc(arc), space=space or published, **numbers)


def arch_of_arc(arc: Sequence[int], *, space: str | None = None, **numbers: int | str) -> tuple[SearchSpace, ArchConfig]:
    """Return the architecture of a micro or macro arc, and its space.

    Args:
        space: its name; None = what the number of integers says, for macro that with so many layers.
        numbers: of the network around the choices.
    Raises:
        ArcError: if the integers are none.
    """
    if space is None:
        layers = round(((8 * len(arc) + 1) ** 0.5 - 1) / 2)
        space = "enas_micro" if len(arc) == MICRO_LENGTH else f"enas_macro:layers={layers}"
        if len(arc) != MICRO_LENGTH and (layers < 3 or layers * (layers + 1) // 2 != len(arc)):
            raise ArcError(
                f"arc of {len(arc)} integers, expected {MICRO_LENGTH} (micro) or n (n + 1) / 2 (macro, n layers: 78, 300, ...)"
            )
    found = get_space(space)
    found = found.with_numbers(**numbers) if numbers else found
    if isinstance(found, EnasMicroSpace):
        return found, micro_arch(found, arc)
    if isinstance(found, MacroSpace):
        return found, macro_arch(found, arc)
    raise ArcError(f"{space} has no architectures written as integers; expected enas_micro or enas_macro")


def micro_arch(space: CellSpace, arc: Sequence[int]) -> ArchConfig:
    """Return the architecture of a micro arc.

    Raises:
        ArcError: for too few or too many integers, an operation that is none, or a state that is not before its node.
    """
    if len(arc) != 8 * space.nodes:
        raise ArcError(f"micro arc of {len(arc)} integers, expected {8 * space.nodes}: 4 for each of {space.nodes} nodes, twice")
    values: dict[str, Value] = {"resolution": space.resolution_px}
    for place in range(2 * space.nodes):
        kind, node = ("normal", "reduce")[place // space.nodes], place % space.nodes + INPUTS
        first, op1, second, op2 = arc[4 * place : 4 * place + 4]
        for state, operation in ((first, op1), (second, op2)):
            if not (0 <= state < node and 0 <= operation < len(MICRO_OPERATIONS)):
                raise ArcError(
                    f"micro arc: node {node} of the {kind} cell has {state} {operation}, expected a state from 0 to {node - 1} "
                    f"and an operation from 0 to {len(MICRO_OPERATIONS) - 1}"
                )
        (low, low_op), (high, high_op) = sorted([(first, op1), (second, op2)])
        values |= {f"{kind}.node{node}.inputs": f"{low} {high}"}
        values |= {f"{kind}.node{node}.op1": MICRO_OPERATIONS[low_op], f"{kind}.node{node}.op2": MICRO_OPERATIONS[high_op]}
    return space.from_values(values)


def micro_arc(space: CellSpace, arch: ArchConfig) -> tuple[int, ...]:
    """Return the integers of a micro architecture."""
    values = dict(zip(space.column, space.check(arch).values, strict=True))
    arc: list[int] = []
    for kind in ("normal", "reduce"):
        for node in range(INPUTS, INPUTS + space.nodes):
            states = numbers_in(str(values[f"{kind}.node{node}.inputs"]))
            operations = (MICRO_OPERATIONS.index(str(values[f"{kind}.node{node}.op{place}"])) for place in (1, 2))
            arc += [number for half in zip(states, operations, strict=True) for number in half]
    return tuple(arc)


def macro_arch(space: MacroSpace, arc: Sequence[int]) -> ArchConfig:
    """Return the architecture of a macro arc.

    Raises:
        ArcError: for too few or too many integers, an operation that is none, or a skip that is neither 0 nor 1.
    """
    expected = space.layers * (space.layers + 1) // 2
    if len(arc) != expected:
        raise ArcError(f"macro arc of {len(arc)} integers, expected {expected} for {space.layers} layers")
    values: dict[str, Value] = {"resolution": space.resolution_px}
    numbers = iter(arc)
    for layer in range(space.layers):
        operation, *skips = (next(numbers) for _ in range(1 + layer))
        if not (0 <= operation < len(MACRO_OPERATIONS) and set(skips) <= {0, 1}):
            raise ArcError(
                f"macro arc: layer {layer} has {format_arc([operation, *skips])}, expected an operation from 0 to "
                f"{len(MACRO_OPERATIONS) - 1}, then {layer} times 0 or 1"
            )
        values[f"layer{layer}.op"] = MACRO_OPERATIONS[operation]
        values |= {f"layer{layer}.skip{source}": bit for source, bit in enumerate(skips)}
    return space.from_values(values)


def macro_arc(space: MacroSpace, arch: ArchConfig) -> tuple[int, ...]:
    """Return the integers of a macro architecture."""
    values = space.check(arch).values[1:]  # all but the resolution stand in the order of the arc
    return tuple(MACRO_OPERATIONS.index(value) if isinstance(value, str) else int(value) for value in values)
