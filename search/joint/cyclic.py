"""What joins the two networks of Cyclic-DARTS: heads on the features of both, the distillation between them, the L1 term.

Yu et al. 2022 (arXiv 2006.10724), section 3. The search network (many operations, few cells) and the evaluation network (the
derived cells, many of them) halve the resolution twice; the outputs of their two reduction cells have equal shapes, so that one
pair of heads serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.genotype import Genotype
from ofa.mixed import PRIMITIVES
from search.joint.derive import derive_cyclic

POOL, WIDTHS = 6, (128, 768)  # of a head: pixels averaged, channels (those of DARTS' auxiliary classifier)
PENALISED = {"skip": ("skip_connect",), "skip_and_pools": ("skip_connect", "max_pool_3x3", "avg_pool_3x3")}
STATES = 2  # that a cell's first node reads; each node after it reads one more


class Features:
    """What a pass of a network shows of its reduction cells: pass it as `observe`."""

    def __init__(self, cells: int) -> None:
        self._names = [f"cell{cells // 3}", f"cell{2 * cells // 3}"]
        self._found: dict[str, Tensor] = {}

    def __call__(self, name: str, output: Tensor) -> None:
        if name in self._names:
            self._found[name] = output

    @property
    def outputs(self) -> list[Tensor]:
        """Features after the first and the second stage."""
        return [self._found[name] for name in self._names]


class DistillationHead(nn.Module):
    """Logits from the features after a stage: ReLU, averages of 6 x 6 pixels, two convolutions, classifier."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        """Make a head for features of `side` pixels, at least 3; of small ones it averages fewer, so that 2 x 2 are left."""
        super().__init__()
        first, second = WIDTHS
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(min(POOL, side - 2), stride=2),
            nn.Conv2d(channels, first, 1, bias=False),
            nn.BatchNorm2d(first, affine=False),
            nn.ReLU(),
            nn.Conv2d(first, second, 2, bias=False),
            nn.BatchNorm2d(second, affine=False),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of features (n, channels, side, side)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class FeatureEnsemble(nn.Module):
    """The logits of three depths as one: two heads and the network's own classifier, weighted by a softmax of three numbers."""

    def __init__(self, channels: int, resolution: int, num_classes: int, *, join: str, learned: bool = False) -> None:
        """Make heads for networks whose first cells have `channels`, on images of `resolution` px.

        Args:
            join: "sum" of the weighted logits, or "concat": all of them, one after the other along the batch.
            learned: whether the three numbers are parameters; otherwise each depth counts a third. No label anchors the heads,
                so that learned weights may lower the distillation by choosing the depth on which both networks say least.
        """
        super().__init__()
        nodes = 4
        self.join = join
        self.heads = nn.ModuleList(
            DistillationHead(nodes * channels * 2**stage, resolution // 2**stage, num_classes) for stage in (1, 2)
        )
        equal = torch.full((3,), 1 / 3)
        self.weights: Tensor
        if learned:
            self.weights = nn.Parameter(equal)
        else:
            self.register_buffer("weights", equal)

    def forward(self, features: Sequence[Tensor], logits: Tensor) -> Tensor:
        """Return logits, (n, classes), or (3 n, classes) with "concat"."""
        found = [*(head(x) for head, x in zip(self.heads, features, strict=True)), logits]
        weighted = [weight * one for weight, one in zip(self.weights.softmax(0), found, strict=True)]
        return torch.cat(weighted) if self.join == "concat" else sum(weighted[1:], weighted[0])


def distillation_loss(student: Tensor, teacher: Tensor, *, kind: str, temperature: float, kl_reduction: str) -> Tensor:
    """Return the distance between two sets of logits (n, classes), times T^2; gradients flow into both.

    Args:
        kind: "kl" of the probabilities at temperature T (equation 4 with `kl_reduction` "batchmean"; "mean" divides by the number
            of classes as well), "cosine" (negative similarity), "mse" or "smooth_l1" of the logits.
    """
    distances: dict[str, Callable[[], Tensor]] = {
        "kl": lambda: _divergence(student / temperature, teacher / temperature, kl_reduction),
        "cosine": lambda: -F.cosine_similarity(student, teacher, eps=1e-6).mean(),
        "mse": lambda: F.mse_loss(student, teacher),
        "smooth_l1": lambda: F.smooth_l1_loss(student, teacher),
    }
    return temperature**2 * distances[kind]()


def absolute_sum(alphas: Mapping[str, Tensor], penalised: str) -> Tensor:
    """Return the L1 norm of the raw alphas, each (edges, 8), of what an option of `PENALISED` names."""
    columns = [PRIMITIVES.index(operation) for operation in PENALISED[penalised]]
    return torch.stack([cell[:, columns].abs().sum() for cell in alphas.values()]).sum()


def derive_weighted(probabilities: Mapping[str, Tensor], edges: Mapping[str, Tensor]) -> Genotype:
    """Return the cells that alphas decide for.

    Args:
        probabilities: of "normal" and "reduce", (edges, 8) each, columns as in `PRIMITIVES`.
        edges: of the same cells, (edges,) probabilities of each node's edges; empty = all alike.
    """
    nodes = [split_nodes(probabilities[cell].roll(-1, 1)) for cell in ("normal", "reduce")]  # `none` goes last
    betas = {f"{cell}_edges": split_nodes(weights) for cell, weights in edges.items()}
    return derive_cyclic(*nodes, **betas)


def edge_probabilities(betas: Tensor) -> Tensor:
    """Return the softmax over each node's edges, (edges,), of betas (edges,) that go node by node."""
    return torch.cat([node.softmax(0) for node in split_nodes(betas)])


def split_nodes(rows: Tensor) -> list[Tensor]:
    """Split rows that go node by node, the first node having two."""
    sizes: list[int] = []
    while sum(sizes) < len(rows):
        sizes.append(STATES + len(sizes))
    return list(rows.split(sizes))


def _divergence(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
    log_p = F.log_softmax(teacher, 1)
    total = (log_p.exp() * (log_p - F.log_softmax(student, 1))).sum()
    # "mean" is what torch's loss does by default; by its own name it would warn with every search
    return total / (student.numel() if reduction == "mean" else len(student))
