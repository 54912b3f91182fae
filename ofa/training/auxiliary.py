"""An auxiliary classifier: a second head on features two thirds into the network, there while it is trained and no longer.

Source: Szegedy et al. 2015 (arXiv 1409.4842), section 5; in the form of NASNet and DARTS (Liu et al. 2019, section 3.2), whose
loss counts 0.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.errors import OfaError
from ofa.space import SearchSpace
from ofa.training.config import TrainConfig
from ofa.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors

NARROW, WIDE = 128, 768  # channels
PUBLISHED_SIDES = (7, 8)  # px of the features for images of 224 and of 32 px


class AuxiliaryHead(nn.Module):
    """ReLU, average over 5x5 windows, a 1x1 and a 2x2 convolution, linear."""

    def __init__(self, channels: int, side: int, num_classes: int, *, last_norm: bool = True) -> None:
        """Make a fresh head.

        Args:
            channels: of the features.
            side: their height and width, px.
            last_norm: BatchNorm after the second convolution; DARTS' network for ImageNet goes without.
        """
        super().__init__()
        # both published sizes become 2x2; larger features are divided evenly instead
        pool = nn.AvgPool2d(5, side - 5, count_include_pad=False) if side <= max(PUBLISHED_SIDES) else nn.AdaptiveAvgPool2d(2)
        layers: list[nn.Module] = [nn.ReLU(), pool, nn.Conv2d(channels, NARROW, 1, bias=False), nn.BatchNorm2d(NARROW)]
        layers += [
            nn.ReLU(inplace=True),
            nn.Conv2d(NARROW, WIDE, 2, bias=False),
            nn.BatchNorm2d(WIDE) if last_norm else nn.Identity(),
        ]
        self.features = nn.Sequential(*layers, nn.ReLU(inplace=True))
        self.classifier = nn.Linear(WIDE, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (n, classes) of features (n, channels, side, side)."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def make_head(space: SearchSpace) -> AuxiliaryHead:
    """Return a fresh head for the one network of a space.

    Raises:
        OfaError: if the space has no place for it, or its features are too small.
    """
    if not space.auxiliary_block or space.size() > 1:
        raise OfaError(f"{space.name}: an auxiliary classifier goes with one network of cells (--arch); leave --auxiliary out")
    spec = space.blocks(space.largest)[space.auxiliary_block]
    if spec.out_resolution <= 5:
        raise OfaError(
            f"{space.name}: its features are {spec.out_resolution} px two thirds in, an auxiliary classifier needs 6; "
            "leave --auxiliary out, or train on larger images"
        )
    return AuxiliaryHead(
        spec.out_channels, spec.out_resolution, space.num_classes, last_norm="stem0" not in space.blocks(space.largest)
    )


class Auxiliary:
    """The head, its optimiser, and the features of the pass that is under way."""

    def __init__(self, space: SearchSpace, config: TrainConfig, device: torch.device) -> None:
        self.block, self.weight, self.smoothing = space.auxiliary_block, config.auxiliary, config.label_smoothing
        self.head = make_head(space).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.head, config)
        self._features: Tensor | None = None

    def observe(self, name: str, output: Tensor) -> None:
        """Keep the features when the network comes by (`Supernet.forward`)."""
        if name == self.block:
            self._features = output

    def loss(self, labels: Tensor) -> Tensor:
        """Return the weighted cross-entropy of the head on the features of the last pass."""
        assert self._features is not None
        features, self._features = self._features, None
        return self.weight * F.cross_entropy(self.head(features), labels, label_smoothing=self.smoothing)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        weights = {f"weights|{name}": value for name, value in self.head.state_dict().items()}
        return weights | {f"optimizer|{name}": value for name, value in optimizer_tensors(self.head, self.optimizer).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("|")
            parts[part][name] = value
        self.head.load_state_dict(parts["weights"])
        load_optimizer(self.head, self.optimizer, parts["optimizer"])
