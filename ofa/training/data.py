"""Images: from a name, a directory or an archive into memory, and from memory into augmented batches.

Small-image data sets live in memory as uint8, so that decoding never starves a step and augmentation is a few array
operations per batch. What a batch holds is a function of (seed, step) alone: a resumed run sees the same images.
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa.errors import OfaError

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
TEST_FOLDERS = ("test", "val", "validation")
ORIENTED = ("digits", "fashion_mnist")  # a mirrored 2 is no 2: these are not flipped


class DataError(OfaError):
    """Images are missing, unreadable or do not make a classification task."""


@dataclass(frozen=True)
class Images:
    """One split in memory: images (n, 3, h, w) uint8, labels (n,) int64, class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Images:
        chosen = torch.from_numpy(indices)
        return Images(self.images[chosen], self.labels[chosen], self.classes)


@dataclass(frozen=True)
class Preprocessing:
    """What turns uint8 images into network input; it travels with the exported file."""

    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]
    flip: bool  # whether training may mirror images

    @classmethod
    def of(cls, data: Images, *, flip: bool) -> Preprocessing:
        """Measure mean and standard deviation per channel on training images."""
        pixels = data.images[:: max(1, len(data) // 10_000)].float() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)
        rounded = [tuple(round(float(v), 5) for v in stat) for stat in (mean, std)]
        return cls(rounded[0], rounded[1], flip)  # type: ignore[arg-type]

    def __call__(self, images: Tensor, resolution: int) -> Tensor:
        """Convert (n, 3, h, w) uint8 to normalised float (n, 3, r, r), resized bilinearly with antialiasing."""
        pixels = images.float() / 255
        if pixels.shape[-1] != resolution:
            pixels = F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(stat).view(1, 3, 1, 1) for stat in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


# -- loading --------------------------------------------------------------------------------------------------------


def load_images(source: str, split: Split, *, max_size: int, strict: bool = False) -> Images:
    """Load one split of a data set into memory.

    Args:
        source: "digits", "cifar10", "cifar100", "fashion_mnist", a directory or a .tar[.xz|.gz|.bz2] with train/ and test/
            (or val/) inside, each with one folder a class.
        split: "test" images are for the final proof only.
        max_size: largest input resolution of the space, pixels; larger images are stored no larger than about this.
        strict: stop at the first image that cannot be read, instead of leaving it out with a warning.
    Raises:
        DataError: naming what is wrong with the source.
    """
    if source == "digits":
        data = _digits(split)
    elif source in TORCHVISION:
        data = _torchvision(source, split)
    else:
        data = _image_folder(Path(source), split, max_size=max_size, strict=strict)
    if len(data.classes) < 2:
        raise DataError(f"{source}: {len(data.classes)} class ({', '.join(data.classes)}), expected at least two class folders")
    return data


def split_validation(data: Images, *, fraction: float, seed: int) -> tuple[Images, Images]:
    """Split training images into (training, validation), the same share of every class, at most 10,000 for validation."""
    rng = np.random.default_rng((seed, 0x5A17))
    fraction = min(fraction, 10_000 / len(data))
    held_out = np.zeros(len(data), dtype=bool)
    for label in range(len(data.classes)):
        members = np.flatnonzero(data.labels.numpy() == label)
        if len(members) < 2:
            raise DataError(f"class {data.classes[label]!r} has {len(members)} training image(s), expected at least 2")
        held_out[rng.permutation(members)[: max(1, round(len(members) * fraction))]] = True
    return data.subset(np.flatnonzero(~held_out)), data.subset(np.flatnonzero(held_out))


def _digits(split: Split) -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8x8 px; a fixed quarter of them is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = np.random.default_rng(0).permutation(len(bunch.target)) < len(bunch.target) // 4
    chosen = np.flatnonzero(test if split == "test" else ~test)
    grey = torch.from_numpy((bunch.images[chosen] * (255 / 16)).round().astype(np.uint8))
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    return Images(images, torch.from_numpy(bunch.target[chosen].astype(np.int64)), tuple("0123456789"))


def _torchvision(name: str, split: Split) -> Images:
    import torchvision

    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ofa-toolkit" / "data"
    try:
        dataset = getattr(torchvision.datasets, TORCHVISION[name])(str(root), train=split == "train", download=True)
    except Exception as error:  # torchvision raises whatever its downloader met: URLError, RuntimeError, OSError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: cannot be downloaded ({reason}); put its files into {root} or give --data a directory"
        ) from None
    images = torch.as_tensor(np.asarray(dataset.data))
    grey = images.ndim == 3  # (n, h, w), otherwise (n, h, w, 3)
    images = images[:, None].expand(-1, 3, -1, -1) if grey else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(dataset.targets), dtype=torch.int64)
    return Images(images.contiguous(), labels, tuple(dataset.classes))


def _image_folder(source: Path, split: Split, *, max_size: int, strict: bool) -> Images:
    if source.is_dir():
        files = _directory_files(source, split)
    elif source.is_file():
        files = _archive_files(source, split)
    else:
        names = ", ".join(["digits", *TORCHVISION])
        raise DataError(f"--data {source}: no such directory, archive or name; names: {names}")
    if not files:
        wanted = "train" if split == "train" else " or ".join(TEST_FOLDERS)
        raise DataError(f"{source}: no images found, expected {wanted}/<class>/<image> inside")
    classes = tuple(sorted({label for label, _, _ in files}))
    index = {label: i for i, label in enumerate(classes)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding leaves the interpreter lock
        decoded = list(pool.map(lambda file: _decode(file[2], max_size), files))
    broken = [name for (_, name, _), image in zip(files, decoded, strict=True) if image is None]
    if broken:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        if strict or len(broken) == len(files):
            raise DataError(
                f"{source}: {len(broken)} of {len(files)} images cannot be read: {some}; remove them or leave out --strict"
            )
        warnings.warn(f"{source}: left out {len(broken)} of {len(files)} images that cannot be read: {some}", stacklevel=2)
    kept = [(index[label], image) for (label, _, _), image in zip(files, decoded, strict=True) if image is not None]
    # one size for all: that of the smallest image, so that none is blown up in memory
    size = min(image.shape[0] for _, image in kept)
    images = torch.from_numpy(np.stack([_resized(image, size) for _, image in kept])).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor([label for label, _ in kept]), classes)


def _directory_files(source: Path, split: Split) -> list[tuple[str, str, bytes]]:
    """(class, name, content) of every image of a split."""
    folder = next((source / name for name in _folders(split) if (source / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"{source}: no {' or '.join(f'{n}/' for n in _folders(split))} inside, expected train/ and test/, a folder a class"
        )
    return [
        (path.parent.name, str(path), _read(path)) for path in sorted(folder.glob("*/*")) if path.suffix.lower() in IMAGE_SUFFIXES
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # counted among the images that cannot be read


def _archive_files(source: Path, split: Split) -> list[tuple[str, str, bytes]]:
    """As `_directory_files`, read as a stream; nothing is unpacked to disk."""
    files = []
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                parts = Path(member.name).parts
                if not (member.isfile() and len(parts) >= 3 and parts[-3] in _folders(split)):
                    continue
                if parts[-1].startswith("._") or Path(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                content = archive.extractfile(member)
                files.append((parts[-2], member.name, content.read() if content else b""))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{source}: not a readable tar archive ({error})") from None
    except Exception as error:  # lzma.LZMAError, zlib.error: no common base
        raise DataError(f"{source}: not a readable tar archive ({error})") from None
    return sorted(files)


def _folders(split: Split) -> tuple[str, ...]:
    return ("train",) if split == "train" else TEST_FOLDERS


def _decode(content: bytes, max_size: int) -> np.ndarray | None:
    """Decode to a centred square (h, h, 3) uint8 of at most 1.25 * max_size pixels; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            square = _centre_square(image.convert("RGB"))
    except Exception:  # Pillow's plug-ins raise anything on damaged files; the caller counts and names them
        return None
    limit = round(1.25 * max_size)  # room for random crops
    if square.width > limit:
        square = square.resize((limit, limit), Image.Resampling.BILINEAR)
    return np.asarray(square)


def _centre_square(image: Image) -> Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.width == image.height else image.crop((left, top, left + side, top + side))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


# -- batches --------------------------------------------------------------------------------------------------------


def steps_per_epoch(data: Images, batch_size: int) -> int:
    """Whole batches in an epoch; the images left over come up in another epoch's permutation."""
    return max(1, len(data) // batch_size)


def training_batch(data: Images, step: int, *, batch_size: int, seed: int, flip: bool) -> tuple[Tensor, Tensor]:
    """Return the augmented batch of a step: uint8 images (n, 3, h, w) and labels (n,).

    Augmentation: a random shift of up to an eighth of the side with black borders, and a mirror image at odds of one half
    (He et al. 2016, section 4.2).
    """
    epoch, position = divmod(step, steps_per_epoch(data, batch_size))
    order = np.random.default_rng((seed, epoch, 0xDA7A)).permutation(len(data))
    batch = data.subset(order[position * batch_size : (position + 1) * batch_size])
    rng = np.random.default_rng((seed, step, 0xA06))
    n, size = len(batch), data.images.shape[-1]
    shift = max(1, size // 8)
    rows = rng.integers(0, 2 * shift + 1, (n, 1)) + np.arange(size)  # (n, size)
    columns = rng.integers(0, 2 * shift + 1, (n, 1)) + np.arange(size)
    if flip:
        columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    padded = F.pad(batch.images, (shift,) * 4)
    samples, channels = torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None]
    y, x = torch.from_numpy(rows)[:, None, :, None], torch.from_numpy(np.ascontiguousarray(columns))[:, None, None, :]
    return padded[samples, channels, y, x], batch.labels


def in_batches(data: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) in order, the last batch possibly smaller."""
    for start in range(0, len(data), batch_size):
        yield data.images[start : start + batch_size], data.labels[start : start + batch_size]
