"""Images in memory: loaded by name or path, split, augmented in batches, and turned into network input.

Small-image data sets live in memory as uint8, so that decoding never starves a step and augmentation is a few array
operations per batch. What a batch holds is a function of (seed, step) alone: a resumed run sees the same images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa.training.augment import augment, blend, draw
from ofa.training.config import TrainConfig
from ofa.training.image_files import DataError, read_image_folder

Split = Literal["train", "test"]
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
NAMES = ("digits", *TORCHVISION)
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val", "validation")}
ORIENTED = ("digits", "fashion_mnist")  # a mirrored 2 is no 2: these are not flipped


@dataclass(frozen=True)
class Images:
    """One split in memory: images (n, 3, h, w) uint8, labels (n,) int64, class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Height and width, pixels."""
        return int(self.images.shape[-1])

    def digest(self) -> str:
        """SHA-256 over pixels, labels and class names: equal if and only if the images are."""
        found = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        found.update(self.images.numpy().data)
        found.update(self.labels.numpy().data)
        return found.hexdigest()

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
        mean, std = (torch.tensor(stat, device=images.device).view(1, 3, 1, 1) for stat in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


# -- loading --------------------------------------------------------------------------------------------------------


def load_images(
    source: str,
    split: Split,
    *,
    size: int | None = None,
    max_size: int = 256,
    classes: tuple[str, ...] | None = None,
    strict: bool = False,
) -> Images:
    """Load one split of a data set into memory.

    Args:
        source: one of NAMES, or a directory or .tar[.xz|.gz|.bz2] with train/ and test/ (or val/) inside, a folder a class.
        split: "test" images are for the final proof only.
        size: store images at this size, pixels; None = their median size, at most `max_size`. Named data sets come in theirs.
        max_size: see `size`.
        classes: class names that the labels must count in; None = those found.
        strict: stop at an image that cannot be read, instead of leaving it out with a warning.

    Raises:
        DataError: naming what is wrong with the source.
    """
    if source == "digits":
        data = _digits(split)
    elif source in TORCHVISION:
        data = _torchvision(source, split)
    elif not Path(source).exists():
        raise DataError(f"data {source}: no such directory, archive or name; names: {', '.join(NAMES)}")
    else:
        arrays, labels, found = read_image_folder(
            Path(source), FOLDERS[split], size=size, max_size=max_size, classes=classes, strict=strict
        )
        data = Images(torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), found)
    if len(data.classes) < 2:
        raise DataError(f"{source}: {len(data.classes)} class ({', '.join(data.classes)}), expected at least two class folders")
    if classes is not None and data.classes != classes:
        odd = sorted(set(data.classes) ^ set(classes))
        raise DataError(f"{source}: its classes are not those trained on; they differ in: {', '.join(odd[:5])}")
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


# -- batches --------------------------------------------------------------------------------------------------------


def steps_per_epoch(data: Images, batch_size: int) -> int:
    """Whole batches in an epoch; the images left over come up in another epoch's permutation."""
    return max(1, len(data) // batch_size)


def training_batch(
    data: Images, step: int, config: TrainConfig, *, flip: bool, rank: int = 0, num_ranks: int = 1
) -> tuple[Tensor, Tensor]:
    """Return one process's part of the augmented batch of a step: uint8 images (n, 3, h, w), labels (n,).

    With mixup or cutmix the labels are probabilities (n, classes).
    """
    epoch, position = divmod(step, steps_per_epoch(data, config.batch_size))
    order = np.random.default_rng((config.seed, epoch, 0xDA7A)).permutation(len(data))
    batch = order[position * config.batch_size : (position + 1) * config.batch_size]
    rng = np.random.default_rng((config.seed, step, 0xA06))
    draws = draw(rng, len(batch), data.size, flip=flip, crop_scale=config.crop_scale)
    mine = np.array_split(np.arange(len(batch)), num_ranks)[rank]
    images, labels = augment(data.images[batch[mine]], draws.rows(mine)), data.labels[batch[mine]]
    if not (config.mixup or config.cutmix):
        return images, labels
    partners = np.roll(np.arange(len(batch)), 1)[mine]
    others, other_labels = augment(data.images[batch[partners]], draws.rows(partners)), data.labels[batch[partners]]
    soft, other_soft = (F.one_hot(which, len(data.classes)).float() for which in (labels, other_labels))
    return blend(images, others, soft, other_soft, rng, mixup=config.mixup, cutmix=config.cutmix)


def in_batches(data: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) in order, the last batch possibly smaller."""
    for start in range(0, len(data), batch_size):
        yield data.images[start : start + batch_size], data.labels[start : start + batch_size]


def calibration_batches(
    train: Images, preprocess: Preprocessing, resolution: int, *, num_images: int = 2_000, batch_size: int = 200
) -> list[Tensor]:
    """Return normalised batches of a fixed random choice of training images, of about equal size.

    A last batch of one image would have no variance where the network ends at one pixel.
    """
    chosen = np.random.default_rng(0).permutation(len(train))[:num_images]
    parts = np.array_split(chosen, max(1, round(len(chosen) / batch_size)))
    return [preprocess(train.subset(part).images, resolution) for part in parts]
