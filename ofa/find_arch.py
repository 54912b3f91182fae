"""Which architecture a word on the command line means: a file, a folder that a search wrote, a published cell or network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofa.artefacts import MAX_JSON_BYTES, ArtefactError, read_bounded, read_json
from ofa.cell_space import CellSpace
from ofa.formats import enas
from ofa.formats.nasbench201 import parse_nasbench201
from ofa.genotype import Genotype, RecurrentGenotype, parse_genotype
from ofa.genotypes import get_genotype, list_genotypes
from ofa.recurrent_spaces import cell_of_record, cell_of_text, is_recurrent_arc
from ofa.space import ARCH_SCHEMA, ArchConfig, InvalidArchError, SearchSpace
from ofa.spaces import get_space, list_spaces
from ofa.tree_genotype import TreeGenotype

CELL_SPACES = ("darts", "nasnet")  # the first that a genotype fits is its space


def find_arch(text: str | Path, *, space: str | None = None, **numbers: int) -> tuple[SearchSpace, ArchConfig]:
    """Return an architecture and its space.

    Args:
        text: an arch.json, a folder with one, a text file with a genotype or an architecture as ENAS, SPOS or NAS-Bench-201 write
            it, or the name of a published cell or network, which may have a number: "mobilenet_v3_small:resolution=32".
        space: name of its space; None = the one that it says, or, for a genotype, the first of CELL_SPACES that it fits.
        numbers: of the network around the cells, e.g. cells=20, channels=36; they replace those that the file says.
    Raises:
        OfaError: if there is no such architecture, or it does not fit its space.
    """
    path = Path(text)
    if str(text) in enas.PUBLISHED and not path.exists():
        return enas.published_arch(str(text), space=space, **numbers)
    if path.suffix == ".txt" and path.exists() and enas.is_arc(_read_text(path)) and not is_recurrent_arc(_read_text(path)):
        return enas.arch_of_arc(enas.parse_arc(_read_text(path)), space=space, **numbers)
    if str(text).partition(":")[0] in list_spaces() and str(text) not in list_genotypes() and not path.exists():
        return _only_network(str(text), space, numbers)
    if (choices := _of_choice_blocks(path)) is not None:
        from ofa.formats.spos import find_architecture  # which needs torch

        return find_architecture(choices, space, **numbers)
    if path.suffix == ".txt" and path.exists() and _read_text(path).lstrip().startswith("|"):  # a cell of NAS-Bench-201
        found = get_space(space or "nasbench201").with_numbers(**numbers)
        operations = parse_nasbench201(_read_text(path))
        edges = [d.name for d in found.dimensions if d.name != "resolution"]
        return found, found.arch(**{name.replace(".", "__"): o for name, o in zip(edges, operations, strict=True)})
    genotype = find_genotype(text)
    if isinstance(genotype, RecurrentGenotype | TreeGenotype):
        raise InvalidArchError(f"{text}: is a recurrent cell, which reads text, not images; train it with: ofa train-text {text}")
    if genotype is not None:
        cells = _cell_space(genotype, space).with_numbers(**numbers)
        return cells, cells.from_genotype(genotype)
    record = read_json(arch_file(path), schema=ARCH_SCHEMA)
    whole = get_space(space or str(record.get("space")))
    if not numbers:
        return whole, whole.from_json(record)
    found = whole.with_numbers(**numbers)
    values = dict(zip(whole.column, whole.from_json(record).values, strict=True))
    return found, found.from_values({**values, "resolution": found.dimensions[found.column["resolution"]].options[0]})


def list_networks() -> list[str]:
    """Return the names of published networks: spaces of one."""
    return [name for name in list_spaces() if get_space(name).size() == 1]


def find_genotype(text: str | Path) -> Genotype | RecurrentGenotype | TreeGenotype | None:
    """Return the cell of a published name, a file of text, or a recurrent arch.json; None where it is another architecture.

    Raises:
        OfaError: if there is nothing of this name.
    """
    path = Path(text)
    if str(text) in list_genotypes() and not path.exists():
        return get_genotype(str(text))
    if not path.exists():
        known = ", ".join([*list_genotypes(), *enas.PUBLISHED, "spos", *list_networks()])
        raise ArtefactError(f"{text}: no such file; expected an arch.json, a text file with a genotype, or one of: {known}")
    if path.suffix != ".txt" and not arch_file(path).exists() and (path / "genotype.txt").exists():  # a cell of no space
        path = path / "genotype.txt"
    if path.suffix == ".txt":
        return cell_of_text(_read_text(path)) or parse_genotype(_read_text(path))
    return cell_of_record(read_json(arch_file(path), schema=ARCH_SCHEMA))


def _only_network(name: str, space: str | None, numbers: Mapping[str, int]) -> tuple[SearchSpace, ArchConfig]:
    found = get_space(name).with_numbers(**numbers) if numbers else get_space(name)
    if found.size() > 1:
        raise InvalidArchError(f"{name}: is a space of many networks, not one; give --space {name}, or an arch.json of it")
    if space is not None and get_space(space).name != found.name:
        raise InvalidArchError(f"{name}: is a network by itself, not one of space {space}; leave --space out")
    return found, found.largest


def _of_choice_blocks(path: Path) -> str | None:
    """What stands for an architecture of Single Path One-Shot: the name of the published one, or a text `(2, 1, 0, ...)`."""
    if not path.exists():
        return str(path) if str(path).partition(":")[0] == "spos" else None
    text = _read_text(path) if path.suffix == ".txt" else ""
    return text if text.lstrip()[:1] in ("(", "[") else None


def _read_text(path: Path) -> str:
    return read_bounded(path, what="a genotype", limit=MAX_JSON_BYTES).decode("utf-8", errors="replace")


def arch_file(path: Path) -> Path:
    """Return the file of an architecture, or of the folder of one."""
    return path / "arch.json" if path.is_dir() else path


def _cell_space(genotype: Genotype, space: str | None) -> CellSpace:
    """The space that is asked for, or the first that has such cells."""
    is_darts = len(genotype.normal) == len(genotype.reduce) == 4
    found = get_space(space or CELL_SPACES[0 if is_darts else 1])
    if not isinstance(found, CellSpace):
        raise InvalidArchError(f"{space} has no such cells; a genotype belongs to one of: {', '.join(CELL_SPACES)}")
    return found
