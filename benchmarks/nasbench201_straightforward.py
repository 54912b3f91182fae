"""The search network of NAS-Bench-201 written plainly: every operation of every edge by itself, NCHW, as the field does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofa.formats.nasbench201 import EDGES, OPERATIONS


class StraightforwardNetwork(nn.Module):
    """Takes the same arguments as ofa.mixed_nasbench201.MixedNasBench201 and computes the same."""

    def __init__(self, num_classes: int, *, cells_per_stage: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        layers: list[nn.Module] = []
        for width in (channels, 2 * channels, 4 * channels):
            layers += [Residual(width // 2, width)] if width > channels else []
            layers += [Cell(width) for _ in range(cells_per_stage)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.BatchNorm2d(4 * channels)
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, images: Tensor, edges: Tensor) -> Tensor:
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x, edges) if isinstance(layer, Cell) else layer(x)
        return self.classifier(torch.relu(self.norm(x)).mean((2, 3)))


class Cell(nn.Module):
    """Four nodes; each the sum of its mixed edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(nn.ModuleList(operation(name, channels) for name in OPERATIONS) for _ in EDGES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        operations: list[nn.ModuleList] = list(self.edges)  # type: ignore[arg-type]
        nodes = [x]
        for node in (1, 2, 3):
            total = torch.zeros_like(x)
            for i, (to, source) in enumerate(EDGES):
                if to == node:
                    for probability, run in zip(edges[i], operations[i], strict=True):
                        total = total + probability * run(nodes[source])
            nodes.append(total)
        return nodes[3]


class Zero(nn.Module):
    """The operation `none`."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class Residual(nn.Module):
    """Halves the resolution between stages."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*relu_conv_norm(inputs, outputs, 3, 2), *relu_conv_norm(outputs, outputs, 3, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def operation(name: str, channels: int) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(*relu_conv_norm(channels, channels, 1 if name == "nor_conv_1x1" else 3, 1, affine=False))


def relu_conv_norm(inputs: int, outputs: int, kernel: int, stride: int, *, affine: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [nn.ReLU(), conv, nn.BatchNorm2d(outputs, affine=affine)]
