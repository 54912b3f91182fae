"""Cells of NAS-Bench-201 as text: `|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|...|`, parsed and never evaluated.

A cell has nodes 0 (its input) to 3 (its output). The text lists for nodes 1, 2 and 3, in turn, an operation and the node that it
reads, for every earlier node (Dong and Yang 2020, arXiv 2001.00326, section 2.1). This module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ofa.genotype import GenotypeError

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # their numbers in the benchmark's tables
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (to, from), in the order of the text
EXAMPLE = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
MAX_TEXT = 1_000  # characters; the longest has 115

Operations = tuple[str, str, str, str, str, str]  # one an edge


def parse_nasbench201(text: str) -> Operations:
    """Return the operations of a cell's six edges, in the order of EDGES.

    Raises:
        GenotypeError: if the text is no cell of this benchmark; it says what is wrong.
    """
    if len(text) > MAX_TEXT:
        raise GenotypeError(f"NAS-Bench-201 cell of {len(text)} characters, expected at most {MAX_TEXT}")
    nodes = text.strip().split("+")
    found = []
    for to, node in enumerate(nodes, 1):
        entries = re.fullmatch(r"\|((?:[^|~]+~[0-9]\|)+)", node)
        if entries is None:
            raise GenotypeError(f"NAS-Bench-201 cell: node {to} is {node[:60]!r}, expected the form {EXAMPLE}")
        for entry in entries[1].rstrip("|").split("|"):
            operation, _, source = entry.partition("~")
            found.append((to, int(source), operation))
    wires = tuple((to, source) for to, source, _ in found)
    if wires != EDGES:
        wrong = next((f"node {a[0]} reads {a[1]}" for a, b in zip(wires, EDGES, strict=False) if a != b), None)
        raise GenotypeError(
            f"NAS-Bench-201 cell: {wrong or f'{len(wires)} edges'}, expected the six edges of {EXAMPLE} in this order"
        )
    return _checked([operation for _, _, operation in found])


def format_nasbench201(operations: Sequence[str]) -> str:
    """Write a cell; the reverse of `parse_nasbench201`.

    Args:
        operations: of the six edges, in the order of EDGES.
    Raises:
        GenotypeError: for another number of operations, or one that the benchmark does not know.
    """
    checked = _checked(operations)
    nodes: dict[int, str] = {}
    for (to, source), operation in zip(EDGES, checked, strict=True):
        nodes[to] = f"{nodes.get(to, '|')}{operation}~{source}|"
    return "+".join(nodes.values())


def _checked(operations: Sequence[str]) -> Operations:
    if len(operations) != len(EDGES):
        raise GenotypeError(f"NAS-Bench-201 cell of {len(operations)} operations, expected {len(EDGES)}, one an edge")
    unknown = next((operation for operation in operations if operation not in OPERATIONS), None)
    if unknown is not None:
        raise GenotypeError(f"NAS-Bench-201 cell: operation {str(unknown)[:40]!r}, expected one of: {', '.join(OPERATIONS)}")
    first, second, third, fourth, fifth, sixth = operations
    return first, second, third, fourth, fifth, sixth
