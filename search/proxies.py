"""Zero-cost proxies: scores of networks that were never trained. They rank, if at all, among networks of like size.

A score is no accuracy: it has a scale of its own, and how well it ranks differs from space to space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.blocks import build_network, init_weights
from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace
from search.accuracy import GROUP, ONE_AT_A_TIME, JournalledAccuracy, OnResult
from search.engine import Engine
from search.journal import FIELDS, Journal

GATED = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)  # each lets positive inputs pass, and holds negative ones back
IMAGES = 32
VERSION = 1  # of the scores in journals: another one where a proxy, or how its networks are initialised, changes


class ProxyAccuracy(JournalledAccuracy):
    """A proxy's score of each architecture, as freshly initialised; the same for the same seed, up to the last bits of its sums.

    NaN where two images cannot be told apart, or for numbers too large.
    """

    scale = "any"

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        images: Tensor | None = None,
        *,
        seed: int = 0,
        journal: Path | Journal | None = None,
        engine: Engine | str | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        """Choose a proxy.

        Args:
            name: a key of PROXIES.
            images: (n, 3, r, r) float, normalised, scaled to each architecture's resolution; None = random ones, and synflow
                needs none.
            seed: of the weights and of random images.
            journal: where scores are kept; None = nowhere.
            engine: where to compute (search.engine).
            on_result: is told every new score as it arrives.
        Raises:
            OfaError: for an unknown name, or for images that are none.
        """
        if name not in PROXIES:
            raise OfaError(f"unknown proxy {name!r}; known: {', '.join(PROXIES)}")
        if images is not None and (images.ndim != 4 or images.shape[1] != 3 or len(images) < 2 or not images.is_floating_point()):
            raise OfaError(
                f"images are {images.dtype} of shape {tuple(images.shape)}, expected two or more as float of shape (n, 3, r, r)"
            )
        super().__init__(space, journal, on_result=on_result, field=FIELDS[1])
        self.name, self.seed, self.label = name, seed, f"{name} of untrained networks"
        self.engine = engine if isinstance(engine, Engine) else Engine(engine)
        self._images = None if name == "synflow" else images

    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        keys = list(todo)
        here = self.engine.kind == "in-process"
        size = 1 if here else max(1, min(GROUP, math.ceil(len(keys) / self.engine.workers)))  # images travel with every task
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        tasks = [[todo[key] for key in group] for group in groups]
        score = _Scorer(self.name, self.space, self._images, self.seed)
        for index, found in self.engine.map(score, tasks, name=lambda archs: f"{len(archs)} networks, first {archs[0].values}"):
            yield from zip(groups[index], found, strict=True)

    @cached_property
    def _context(self) -> str:
        shown = ""
        if self._images is not None:
            pixels = self._images.detach().cpu().float().contiguous().numpy()
            shown = f"{pixels.shape}{hashlib.sha256(pixels.tobytes()).hexdigest()}"
        return f"{self.space.name}|proxy|{self.name}|{VERSION}|{self.seed}|{shown or IMAGES}"


@dataclass(frozen=True)
class _Scorer:
    """Computes a proxy's scores, in whatever process."""

    name: str
    space: SearchSpace
    images: Tensor | None
    seed: int

    def __call__(self, archs: Sequence[ArchConfig]) -> list[float]:
        with ONE_AT_A_TIME:  # threads of a process share the generator that weights are drawn from
            return [PROXIES[self.name](self._build(arch), self._images_for(arch)) for arch in archs]

    def _build(self, arch: ArchConfig) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = build_network(self.space.blocks(arch), bn_eps=self.space.bn_eps)
            init_weights(net)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # those that training starts from zero would hide their blocks
        return net

    def _images_for(self, arch: ArchConfig) -> Tensor:
        resolution = self.space.resolution(arch)
        if self.images is None:
            return torch.randn(IMAGES, 3, resolution, resolution, generator=torch.Generator().manual_seed(self.seed))
        size = (resolution, resolution)
        return (
            self.images if self.images.shape[-2:] == size else F.interpolate(self.images, size, mode="bilinear", antialias=True)
        )


@torch.no_grad()
def naswot(net: nn.Module, images: Tensor) -> float:
    """Return log |K|, K[i, j] = the number of activations at which images i and j agree whether they pass.

    An activation passes where its input is above zero. For ReLU that is what the source counts; h_swish and swish have the sign
    of their input (as far as they are not zero), so that it is the same question. BatchNorm takes the statistics of the images.
    Source: Mellor et al. 2021 (arXiv 2006.04647), section 3.

    Args:
        net: changed to training mode; running statistics of its BatchNorm layers move.
        images: (n, 3, r, r).
    """
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        signs = torch.where(inputs[0].flatten(1) > 0, 1.0, -1.0)  # (n, units)
        # signs agree in (units + their product) / 2 places; exact in float32 up to 2^24 units of a layer
        kernel.add_((signs @ signs.T).double().add_(signs.shape[1]).div_(2))

    hooks = [module.register_forward_pre_hook(add) for module in net.modules() if isinstance(module, GATED)]
    net.train()(images)
    for hook in hooks:
        hook.remove()
    sign, log_determinant = torch.linalg.slogdet(kernel)
    return float(log_determinant) if sign > 0 else float("nan")


def synflow(net: nn.Module, images: Tensor) -> float:
    """Return the logarithm of the sum over weights of |w dR/dw|, R = the sum of outputs for an image of ones and weights |w|.

    What passes is then positive everywhere, where a ReLU does nothing; the other activations are treated as if they were one.
    BatchNorm is left out, as it would undo the scale that is measured. In float64, in which deep networks do not overflow.
    Source: Tanaka et al. 2020 (arXiv 2006.05467), section 5; for whole networks Abdelfattah et al. 2021 (arXiv 2101.08134).

    Args:
        net: its weights become absolute, its activations and BatchNorm layers are left out.
        images: only their shape counts.
    """
    net = net.double().eval()
    weights = []
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, (*GATED, nn.BatchNorm2d)):
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights.append(module.weight)
            for parameter in module.parameters():
                parameter.data.abs_()
    flow = net(torch.ones(1, *images.shape[1:], dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    total = sum(
        (weight * gradient).abs().sum() for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None
    )
    return float(torch.as_tensor(total).detach().log())


PROXIES: dict[str, Callable[[nn.Module, Tensor], float]] = {"naswot": naswot, "synflow": synflow}
