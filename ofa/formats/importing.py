"""Turn other projects' files into ours: a checkpoint into a run directory, an architecture into an arch.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ofa.artefacts import MAX_JSON_BYTES, ArtefactError, parse_object, read_bounded, sha256_of, write_json
from ofa.formats import attentive_nas, mit_ofa, spos, torchvision
from ofa.formats.published import FormatError
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ARCH_SCHEMA, ArchConfig, InvalidArchError, SearchSpace
from ofa.spaces import get_space
from ofa.training.checkpoint import save_weights
from ofa.training.data import ORIENTED, Preprocessing, load_images

FORMATS: dict[str, ModuleType] = {
    "mit_ofa": mit_ofa,
    "attentive_nas": attentive_nas,
    "spos": spos,
    "torchvision": torchvision,
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what those without a NORMALISATION have
Channels = tuple[float, float, float]
VALIDATION_FRACTION, SEED = 0.1, 0  # as in training


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    format: str,
    space: str | None = None,
    data: str | None = None,
    arch: ArchConfig | Path | str | None = None,
    resolution: int | None = None,
) -> Run:
    """Make a run directory of a published checkpoint, which the other commands then read.

    Without images, profile and report work, and `ofa train --init` may start from it; search and export need images, because
    they re-estimate BatchNorm statistics.

    Args:
        path: .pth, .pt or .safetensors file.
        out: run directory to make; run.json is written last, so an interrupted import leaves no run.
        format: one of FORMATS.
        space: name of the space; None = the published one that the checkpoint, or `arch`, fits.
        data: images (ofa.training.data.load_images) with as many classes as the checkpoint; a part is held out for search.
            None = none.
        arch: the checkpoint is a static sub-network of this architecture, and the run holds it alone; a published architecture
            (as for `import_arch`) or an arch.json. None = it is a supernet, or a static largest network.
        resolution: input pixels of `arch`; None = what it says, or else the largest.
    Raises:
        OfaError: if the file cannot be read or does not fit, if `out` is a run already, or if the data does not fit.
    """
    path, out = Path(path), Path(out)
    if (out / "run.json").exists():
        raise FormatError(f"{out}: is a run already; give another --out")
    module = _get_format(format)
    only = None
    if arch is not None:
        whole, only = _find_only(arch, format, space, resolution)
        net = module.load_supernet(path, whole.restrict(only))
    elif resolution is not None:
        raise FormatError(f"resolution is given, but no architecture that it could be of; {path} says none: leave it out")
    else:
        net = module.load_supernet(path, module.detect_space(path) if space is None else space)
    whole = get_space(net.space.name, num_classes=net.space.num_classes)
    if whole.size() == 1:
        only = whole.largest
    source = None if data is None else _describe(data, whole, *getattr(module, "NORMALISATION", (IMAGENET_MEAN, IMAGENET_STD)))
    save_weights(out / "supernet", net)
    return Run.create(out, whole, source, only, imported={"file": path.name, "format": format, "sha256": sha256_of(path)})


def import_arch(
    path: Path | str, out: Path | str, *, format: str, space: str | None = None, resolution: int | None = None
) -> Path:
    """Write the arch.json of a published architecture (a dict of choices, or MIT's net config) and return its path.

    Args:
        path: JSON file.
        out: .json file to write, or a folder for an arch.json.
        format: one of FORMATS.
        space: name of the space; None = the published one that the architecture fits.
        resolution: input pixels; None = what the file says, or else the largest.
    Raises:
        OfaError: if the file cannot be read, fits no space or more than one, or if the file to write is there already.
    """
    path, out = Path(path), Path(out)
    target = out if out.suffix == ".json" else out / "arch.json"
    if target.exists():
        raise FormatError(f"{target}: exists already; give another --out")
    found, arch = _read_arch(path, format, space, resolution)
    write_json(target, found.to_json(arch), sealed=True)
    return target


def is_arch_file(path: Path) -> bool:
    """Whether a file is an architecture rather than weights; MIT calls its own net.config."""
    return path.suffix in (".json", ".config")


def _find_only(
    arch: ArchConfig | Path | str, format: str, space: str | None, resolution: int | None
) -> tuple[SearchSpace, ArchConfig]:
    """Return the space and the architecture that the one network of a checkpoint is of."""
    if not isinstance(arch, ArchConfig):
        path = Path(arch)
        config = _read_config(path)
        if config.get("schema") != ARCH_SCHEMA:
            return _read_arch(path, format, space, resolution)
        found = get_space(space or str(config.get("space")))
        arch = found.from_json(config)
    if resolution is not None:
        raise FormatError(f"resolution is {resolution}, but the architecture says its resolution itself; leave one of them out")
    found = get_space(space or arch.space)
    return found, found.check(arch)


def _read_arch(path: Path, format: str, space: str | None, resolution: int | None) -> tuple[SearchSpace, ArchConfig]:
    config = _read_config(path)
    if "blocks" in config:
        return mit_ofa.from_net_config(config, space, resolution=resolution)
    return _find_arch(_get_format(format), config, space, resolution)


def _read_config(path: Path) -> dict[str, Any]:
    what = "the object of an architecture"
    try:
        return parse_object(read_bounded(path, what=what, limit=MAX_JSON_BYTES), path, what=what)
    except ArtefactError as error:
        raise FormatError(str(error)) from None


def _get_format(name: str) -> ModuleType:
    if name not in FORMATS:
        raise FormatError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _find_arch(
    module: ModuleType, config: Mapping[str, Any], space: str | None, resolution: int | None
) -> tuple[SearchSpace, ArchConfig]:
    if not hasattr(module, "to_arch"):
        raise FormatError("architecture: this format has weights only; its networks go by name, as in: ofa train --arch NAME")
    if space is not None:
        return get_space(space), module.to_arch(get_space(space), config, resolution=resolution)
    fitting, reasons = {}, []
    for name in module.SPACES:
        try:
            fitting[name] = module.to_arch(get_space(name), config, resolution=resolution)
        except (FormatError, InvalidArchError) as error:
            reasons.append(f"not {name}: {error}")
    if len(fitting) > 1:
        raise FormatError(f"architecture: fits {' and '.join(fitting)}; say which with --space")
    if not fitting:
        raise FormatError(f"architecture: fits no space of this format ({'; '.join(reasons)})")
    ((name, arch),) = fitting.items()
    return get_space(name), arch


def _describe(data: str, space: SearchSpace, mean: Channels, std: Channels) -> DataSource:
    """Load the images once, to know which they are."""
    images = load_images(data, "train", max_size=round(1.25 * max_resolution(space)))
    if len(images.classes) != space.num_classes:
        raise FormatError(
            f"{data}: has {len(images.classes)} classes, the checkpoint {space.num_classes}; "
            "give images of the same classes, or import it without --data"
        )
    preprocess = Preprocessing(mean, std, flip=data not in ORIENTED)
    return DataSource.of(data, images, preprocess, validation_fraction=VALIDATION_FRACTION, seed=SEED)
