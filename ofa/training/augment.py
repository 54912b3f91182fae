"""Augmentation of a batch of uint8 images as a few array operations.

All random numbers of a step are drawn for its whole batch, whatever part of the images a process then makes: processes that
share a batch agree on every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch: a row an image."""

    shift: NDArray[np.int64]  # (n, 2) rows and columns, [0, 2 x an eighth of the side]
    mirror: NDArray[np.bool_]  # (n,)
    crop: NDArray[np.float64] | None  # (n, 4) top, left, height, width, shares of the side; None = shift instead

    def rows(self, chosen: NDArray[np.int64]) -> Draws:
        return Draws(self.shift[chosen], self.mirror[chosen], None if self.crop is None else self.crop[chosen])


def draw(rng: np.random.Generator, n: int, size: int, *, flip: bool, crop_scale: float) -> Draws:
    """Draw what happens to each of n images of `size` px."""
    shift = rng.integers(0, 2 * _reach(size) + 1, (n, 2))
    mirror = (rng.random(n) < 0.5) & flip
    return Draws(shift, mirror, _crops(rng, n, crop_scale) if crop_scale < 1 else None)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Return (n, 3, h, w) uint8 images, each shifted (or cropped and enlarged again) and perhaps mirrored.

    A shift goes up to an eighth of the side, with black borders (He et al. 2016, section 4.2); a crop keeps a share of the area
    at an aspect ratio from 3/4 to 4/3 (Szegedy et al. 2015, section 6).
    """
    return _shifted(images, draws) if draws.crop is None else _cropped(images, draws.crop, draws.mirror)


def _reach(size: int) -> int:
    return max(1, size // 8)


def _shifted(images: Tensor, draws: Draws) -> Tensor:
    n, size = len(images), images.shape[-1]
    rows = draws.shift[:, :1] + np.arange(size)  # (n, size)
    columns = draws.shift[:, 1:] + np.arange(size)
    columns = np.where(draws.mirror[:, None], columns[:, ::-1], columns)
    padded = F.pad(images, (_reach(size),) * 4)
    samples, channels = torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None]
    y, x = torch.from_numpy(rows)[:, None, :, None], torch.from_numpy(np.ascontiguousarray(columns))[:, None, None, :]
    return padded[samples, channels, y, x]


def _crops(rng: np.random.Generator, n: int, crop_scale: float) -> NDArray[np.float64]:
    area = rng.uniform(crop_scale, 1, n)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), n))
    height, width = np.minimum(1, np.sqrt(area / ratio)), np.minimum(1, np.sqrt(area * ratio))
    top, left = rng.random(n) * (1 - height), rng.random(n) * (1 - width)
    return np.stack([top, left, height, width], axis=1)


def _cropped(images: Tensor, crop: NDArray[np.float64], mirror: NDArray[np.bool_]) -> Tensor:
    n, size = len(images), images.shape[-1]
    top, left, height, width = torch.from_numpy(crop.astype(np.float32)).T
    sign = torch.from_numpy(np.where(mirror, -1.0, 1.0).astype(np.float32))
    theta = torch.zeros(n, 2, 3)  # output to input coordinates, both in [-1, 1]
    theta[:, 0, 0], theta[:, 0, 2] = width * sign, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    # crops are only ever enlarged here, so bilinear interpolation needs no filter
    enlarged = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return enlarged.round_().clamp_(0, 255).to(torch.uint8)


def cut_out(images: Tensor, centres: NDArray[np.float64], side: int) -> Tensor:
    """Leave a square of `side` px out of every normalised image (n, 3, h, w): its pixels become zero, the mean.

    Squares may reach over the border, as published (DeVries and Taylor 2017, arXiv 1708.04552, section 3.2).

    Args:
        centres: (n, 2) row and column, shares of the side in [0, 1).
    """
    pixel = torch.arange(images.shape[-1], device=images.device)
    first = torch.from_numpy((centres * images.shape[-1]).astype(np.int64)).to(images.device) - side // 2  # (n, 2)
    inside = (pixel >= first[..., None]) & (pixel < first[..., None] + side)  # (n, 2, pixels)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (n, h, w)
    return images * ~hole[:, None]


def blend(
    images: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor, rng: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mix every image with another one: weighted (mixup) or with a rectangle of it (cutmix), labels (n, classes) alike.

    One share from Beta(a, a) and one rectangle serve the whole batch.
    Source: Zhang et al. 2018 (arXiv 1710.09412), Yun et al. 2019 (arXiv 1905.04899).
    """
    share = float(rng.beta(mixup or cutmix, mixup or cutmix))
    if mixup:
        mixed = (images.float() * share + others.float() * (1 - share)).round_().to(torch.uint8)
    else:
        size = images.shape[-1]
        side = round(size * (1 - share) ** 0.5)
        y, x = (int(v) for v in rng.integers(0, size, 2))
        top, bottom = max(0, y - side // 2), min(size, y + (side + 1) // 2)
        left, right = max(0, x - side // 2), min(size, x + (side + 1) // 2)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / size**2
    return mixed, labels * share + other_labels * (1 - share)
