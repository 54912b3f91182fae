"""Image files: from a directory or an archive with a folder a class to square arrays of one size."""

from __future__ import annotations

import io
import os
import statistics
import tarfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ofa.errors import OfaError

MAX_IMAGE_BYTES = 256 * 2**20
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")


class DataError(OfaError):
    """Images are missing, unreadable or do not make a classification task."""


@dataclass(frozen=True)
class ImageFile:
    """An image that was found but not decoded yet."""

    label: str
    name: str
    read: Callable[[], bytes]


def read_image_folder(
    source: Path, folders: Sequence[str], *, size: int | None, max_size: int, classes: tuple[str, ...] | None, strict: bool
) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    """Decode <source>/<folder>/<class>/**/<image>, the first of `folders` that exists.

    Every image is cropped to its centre square and resized once, to `size` px or, where that is None, to the median side of all
    images but at most `max_size`.

    Returns:
        images (n, size, size, 3) uint8, class indices, class names (`classes` where given).

    Raises:
        DataError: if nothing is found, images cannot be read under `strict`, or classes are not those asked for.
    """
    files = find_files(source, folders)
    found = tuple(sorted({file.label for file in files}))
    if not files:
        raise DataError(f"{source}: no images found, expected {' or '.join(folders)}/<class>/<image> inside")
    if unprintable := [label for label in found if not label.isprintable()]:  # bytes that are no UTF-8 are not printable either
        raise DataError(f"{source}: class folder {unprintable[0]!a} has no readable name; rename it")
    if classes is not None and (unknown := sorted(set(found) - set(classes))):
        raise DataError(f"{source}: class {unknown[0]!r} is not among those trained on: {', '.join(classes)}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding leaves the interpreter lock
        if size is None:
            sides = [side for side in pool.map(_side, files) if side]
            size = min(max_size, round(statistics.median(sides))) if sides else max_size
            if enlarged := sum(side < size for side in sides):
                warnings.warn(
                    f"{source}: {enlarged} of {len(files)} images are smaller than {size} px and are enlarged", stacklevel=2
                )
        decoded = list(pool.map(lambda file: _decode(file, size), files))
    broken = [file.name for file, image in zip(files, decoded, strict=True) if image is None]
    if broken:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        if strict or len(broken) == len(files):
            raise DataError(
                f"{source}: {len(broken)} of {len(files)} images cannot be read: {some}; remove them or leave out --strict"
            )
        warnings.warn(f"{source}: left out {len(broken)} of {len(files)} images that cannot be read: {some}", stacklevel=2)
    names = found if classes is None else classes
    index = {label: i for i, label in enumerate(names)}
    kept = [(image, index[file.label]) for file, image in zip(files, decoded, strict=True) if image is not None]
    return np.stack([image for image, _ in kept]), [label for _, label in kept], names


def find_files(source: Path, folders: Sequence[str]) -> list[ImageFile]:
    """List the images of the first of `folders` that the directory or archive holds, sorted by name; hidden ones do not count."""
    entries = _directory_entries(source) if source.is_dir() else _archive_entries(source)
    split: dict[str, list[ImageFile]] = {folder: [] for folder in folders}
    others = 0
    for name, read in entries:
        parts = PurePosixPath(name).parts
        # <folder>/<class>/.../<image>, below at most one folder that holds it all
        at = next((i for i, part in enumerate(parts[:2]) if part in split), None)
        if at is None or len(parts) < at + 3 or any(part.startswith(".") for part in parts):
            continue
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            split[parts[at]].append(ImageFile(parts[at + 1], name, read))
        else:
            others += 1
    if others:
        warnings.warn(f"{source}: passed over {others} files that are no images (known: {' '.join(SUFFIXES)})", stacklevel=3)
    chosen = next((files for files in split.values() if files), [])
    return sorted(chosen, key=lambda file: file.name)


def _directory_entries(source: Path) -> list[tuple[str, Callable[[], bytes]]]:
    return [(path.relative_to(source).as_posix(), path.read_bytes) for path in source.rglob("*") if path.is_file()]


def _archive_entries(source: Path) -> list[tuple[str, Callable[[], bytes]]]:
    """Read a tar archive as a stream; nothing is unpacked to disk."""
    entries: list[tuple[str, Callable[[], bytes]]] = []
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                if member.size > MAX_IMAGE_BYTES:
                    raise ValueError(f"{member.name[:100]!r} takes {member.size / 2**20:.0f} MiB, no image does")
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    entries.append((member.name.removeprefix("./"), io.BytesIO(file.read()).getvalue))
    except Exception as error:  # tarfile, lzma, zlib and bz2 share no base
        raise DataError(f"{source}: not a readable tar archive ({error})") from None
    return entries


def _side(file: ImageFile) -> int:
    """Shorter side in pixels, from the header; 0 if it cannot be read."""
    try:
        with Image.open(io.BytesIO(file.read())) as image:
            return min(image.size)
    except Exception:  # Pillow's plug-ins raise anything on damaged files; decoding counts and names them
        return 0


def _decode(file: ImageFile, size: int) -> NDArray[np.uint8] | None:
    """Decode to the centred square (size, size, 3); None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(file.read())) as image:
            colours = _to_rgb(ImageOps.exif_transpose(image))
    except Exception:  # as in `_side`; the caller counts and names them
        return None
    side = min(colours.size)
    left, top = (colours.width - side) // 2, (colours.height - side) // 2
    if colours.size != (size, size):
        colours = colours.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(colours)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any colour model; transparent parts become white, 16-bit grey keeps its full range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")
