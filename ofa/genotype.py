"""Cells as text: which operation reads from which state, for every node of a cell.

The field writes cells as Python expressions, `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), ...)`: flat,
two entries a node (DARTS, PC-DARTS, NASNet), or nested, a list for each node (CDARTS, pt.darts). Both are parsed, never
evaluated. States 0 and 1 are a cell's inputs (the outputs of the last cell but one and of the last), state 2 is its first node. A
recurrent cell has one entry a node and state 0 alone as its input. This module needs no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ofa.errors import OfaError

Edge = tuple[str, int]  # an operation and the state that it reads
Node = tuple[Edge, ...]  # whose results are added

INPUTS = 2  # states that a convolutional cell begins with
MAX_TEXT = 20_000  # characters; real ones have about 800
CELL_FIELDS, RECURRENT_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat"), ("recurrent", "concat")
FIRST, USUAL_FIRST = (
    "first",
    "tanh",
)  # optional field of a recurrent cell: the function that makes state 0, and what it is without


class GenotypeError(OfaError):
    """A text is no genotype, or one that no network can be built of."""


@dataclass(frozen=True, slots=True)
class Genotype:
    """The two cells of a convolutional network."""

    normal: tuple[Node, ...]
    normal_concat: tuple[int, ...]  # states whose channels a cell hands on, one after the other
    reduce: tuple[Node, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_nodes("normal", self.normal, self.normal_concat, INPUTS)
        _check_nodes("reduce", self.reduce, self.reduce_concat, INPUTS)

    def __str__(self) -> str:
        """Write the flat form, or the nested one where a node has not two inputs."""
        return self.text()

    def text(self, *, nested: bool = False) -> str:
        """Write the form that the field's code evaluates and `parse_genotype` reads."""
        pairs = all(len(node) == 2 for node in (*self.normal, *self.reduce))
        write = _nested if nested or not pairs else _flat
        return (
            f"Genotype(normal={write(self.normal)}, normal_concat={list(self.normal_concat)}, "
            f"reduce={write(self.reduce)}, reduce_concat={list(self.reduce_concat)})"
        )


@dataclass(frozen=True, slots=True)
class RecurrentGenotype:
    """A recurrent cell: each node reads one state; the new hidden state is the mean of those in `concat`."""

    recurrent: tuple[Edge, ...]
    concat: tuple[int, ...]
    first: str = USUAL_FIRST  # function of state 0, which is made of the input and the last hidden state

    def __post_init__(self) -> None:
        _check_nodes("recurrent", tuple((edge,) for edge in self.recurrent), self.concat, 1)

    def __str__(self) -> str:
        """Write the form that `parse_genotype` reads, and the field's code evaluates where state 0 is as usual."""
        first = "" if self.first == USUAL_FIRST else f", {FIRST}={self.first!r}"
        return f"Genotype(recurrent={list(self.recurrent)}, concat={list(self.concat)}{first})"


def parse_genotype(text: str) -> Genotype | RecurrentGenotype:
    """Read a genotype in its flat or nested form.

    Raises:
        GenotypeError: if it is none; it says what is wrong.
    """
    if len(text) > MAX_TEXT:
        raise GenotypeError(f"genotype of {len(text)} characters, expected at most {MAX_TEXT}")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise GenotypeError(f"not a genotype: {_short(text)}, expected Genotype(normal=[...], ...)") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
        raise GenotypeError(f"not a genotype: {_short(text)}, expected Genotype(normal=[...], ...)")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    names = RECURRENT_FIELDS if "recurrent" in given or len(call.args) == len(RECURRENT_FIELDS) else CELL_FIELDS
    given |= dict(zip(names, call.args, strict=False))
    _check_fields(map(str, given), names)
    if len(call.args) + len(call.keywords) != len(given):
        raise GenotypeError(f"genotype has a field twice, expected {', '.join(names)}")
    values = {str(name): _literal(node) for name, node in given.items()}
    if names is RECURRENT_FIELDS:
        return _recurrent(values)
    return Genotype(
        _nodes(values["normal"]),
        _states(values["normal_concat"]),
        _nodes(values["reduce"]),
        _states(values["reduce_concat"]),
    )


def genotype_from_json(value: Mapping[str, object]) -> Genotype | RecurrentGenotype:
    """Read a genotype from a JSON object with the same fields, nodes flat or nested.

    Raises:
        GenotypeError: if it is none.
    """
    names = RECURRENT_FIELDS if "recurrent" in value else CELL_FIELDS
    _check_fields(value, names)
    if names is RECURRENT_FIELDS:
        return _recurrent(value)
    return Genotype(
        _nodes(value["normal"]), _states(value["normal_concat"]), _nodes(value["reduce"]), _states(value["reduce_concat"])
    )


def _check_fields(given: Iterable[str], names: tuple[str, ...]) -> None:
    found = set(given)
    if found - ({FIRST} if names is RECURRENT_FIELDS else set()) != set(names):
        raise GenotypeError(f"genotype has the fields {sorted(found)}, expected {', '.join(names)}")


def _recurrent(values: Mapping[str, object]) -> RecurrentGenotype:
    first = values.get(FIRST, USUAL_FIRST)
    if not isinstance(first, str):
        raise GenotypeError(f"{FIRST} is {_short(repr(first))}, expected the name of a function, such as '{USUAL_FIRST}'")
    return RecurrentGenotype(tuple(_edges(values["recurrent"])), _states(values["concat"]), first)


def _literal(node: ast.expr) -> object:
    """Value of a literal, in which `range(a, b)` may stand for its numbers."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        ends = [_literal(argument) for argument in node.args]
        if 1 <= len(ends) <= 2 and all(type(end) is int and 0 <= end < 100 for end in ends):
            return list(range(*ends))  # type: ignore[call-overload]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise GenotypeError(f"genotype holds {_short(ast.unparse(node))}, expected lists of names and numbers") from None


def _nodes(value: object) -> tuple[Node, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise GenotypeError(f"cell {_short(repr(value))}, expected a list of (operation, state)")
    if _is_edge(value[0]):
        edges = _edges(value)
        if len(edges) % 2:
            raise GenotypeError(f"flat cell of {len(edges)} entries, expected two for each node; write a list for each node")
        return tuple(zip(edges[::2], edges[1::2], strict=True))
    return tuple(tuple(_edges(node)) for node in value)


def _edges(value: object) -> list[Edge]:
    if not isinstance(value, list | tuple) or not value:
        raise GenotypeError(f"node {_short(repr(value))}, expected a list of (operation, state)")
    wrong = next((edge for edge in value if not _is_edge(edge)), None)
    if wrong is not None:
        raise GenotypeError(f"entry {_short(repr(wrong))}, expected (operation, state) such as ('sep_conv_3x3', 0)")
    return [(str(name), int(source)) for name, source in value]


def _is_edge(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _states(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(state) is int for state in value):
        raise GenotypeError(f"concat is {_short(repr(value))}, expected a list of states")
    return tuple(value)


def _check_nodes(name: str, nodes: Sequence[Node], concat: Iterable[int], inputs: int) -> None:
    if not nodes:
        raise GenotypeError(f"genotype: {name} has no nodes")
    for state, node in enumerate(nodes, inputs):
        if not node:
            raise GenotypeError(f"genotype: node {state} of {name} has no input")
        for operation, source in node:
            if not 0 <= source < state:
                raise GenotypeError(
                    f"genotype: node {state} of {name} reads state {source} ({operation}), expected 0 to {state - 1}"
                )
    states = list(concat)
    if not states or len(set(states)) < len(states) or not all(0 <= state < inputs + len(nodes) for state in states):
        raise GenotypeError(f"genotype: {name} hands on the states {states}, expected distinct ones below {inputs + len(nodes)}")


def _flat(nodes: Sequence[Node]) -> str:
    return str([edge for node in nodes for edge in node])


def _nested(nodes: Sequence[Node]) -> str:
    return str([list(node) for node in nodes])


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
