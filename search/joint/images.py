"""The images of a search of weights and architecture: one share for each of them, and one held out."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ofa.run_dir import DataSource
from ofa.training.data import ORIENTED, Images, Preprocessing, load_images, split_validation
from search.joint.record import SearchError


class ImageSettings(Protocol):
    """What a search's config says of its images."""

    @property
    def seed(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def max_images(self) -> int: ...
    @property
    def train_portion(self) -> float: ...


class SearchImages(NamedTuple):
    """Images as a search uses them."""

    source: DataSource
    preprocess: Preprocessing
    weights: Images  # that weights learn from
    alphas: Images  # that the architecture is decided by: alphas learn from them, or a controller is rewarded on them
    held_out: Images

    def __str__(self) -> str:
        return (
            f"images of {len(self.source.classes)} classes: {len(self.weights)} for weights, {len(self.alphas)} for the "
            f"architecture; {len(self.held_out)} held out"
        )


def open_images(data: str, settings: ImageSettings, *, validation_fraction: float, flip: bool | None) -> SearchImages:
    """Load training images and split them.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        validation_fraction: share held out, which decides nothing in the search.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
    Raises:
        OfaError: for unreadable data, no such share, or too few images for a batch.
    """
    if not 0 < validation_fraction < 1:
        raise SearchError(f"validation_fraction is {validation_fraction!r}, expected a share between 0 and 1")
    images = load_images(data, "train", max_size=round(1.25 * settings.resolution))
    train, held_out = split_validation(images, fraction=validation_fraction, seed=settings.seed)
    preprocess = Preprocessing.of(train, flip=data not in ORIENTED if flip is None else flip)
    source = DataSource.of(data, images, preprocess, validation_fraction=validation_fraction, seed=settings.seed)
    return SearchImages(source, preprocess, *split_halves(train, settings), held_out)


def split_halves(train: Images, settings: ImageSettings) -> tuple[Images, Images]:
    """Split training images into those for weights and those for the architecture, the same share of every class.

    Raises:
        SearchError: if either would be smaller than a batch.
    """
    rng = np.random.default_rng((settings.seed, 0x4A1F))
    shares: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    used = min(1.0, settings.max_images / len(train)) if settings.max_images else 1.0
    for label in range(len(train.classes)):
        members = rng.permutation(np.flatnonzero(train.labels.numpy() == label))
        members = members[: round(used * len(members))]
        cut = round(settings.train_portion * len(members))
        shares[0].append(members[:cut])
        shares[1].append(members[cut:])
    first, second = (train.subset(np.sort(np.concatenate(share))) for share in shares)
    least = min(len(first), len(second))
    if least < settings.batch_size:
        raise SearchError(
            f"{len(first)} images for weights and {len(second)} for the architecture, fewer than batch_size "
            f"{settings.batch_size}; lower --batch-size or give more images"
        )
    return first, second
