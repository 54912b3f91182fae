"""Searches by gradients: the architecture is what probabilities of operations, the softmax of alphas, decide for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ofa.artefacts import append_jsonl
from ofa.run_dir import Run
from search.joint.record import ALPHAS, METRICS
from search.joint.relaxation import Found
from search.joint.stepping import SteppedSearch

INITIAL_DEVIATION = 1e-3  # of alphas before the first step

Losses = tuple[float, float | None]  # of the weights and of the alphas, None while they wait


class AlphaSearch(SteppedSearch[Losses]):
    """Networks, alphas, and where their search stands."""

    lines = (METRICS, ALPHAS)
    loss_names = ("on images of the weights", "on those of the alphas")

    def __init__(self, run: Run, net: nn.Module, alphas: nn.ParameterDict, *, epoch_steps: int, epochs: int, advice: str) -> None:
        super().__init__(run, net, epoch_steps=epoch_steps, epochs=epochs, advice=advice)
        self.alphas = alphas

    @abstractmethod
    def probabilities(self) -> dict[str, Tensor]:
        """Return cell -> (edges, operations), with gradients to the alphas."""

    @abstractmethod
    def found(self, *, limited: bool = True) -> Found:
        """Return what the alphas decide for as they are now; `limited`: with at most as many skips as a guard allows."""

    def ends(self, epoch: int, skips: Mapping[str, int]) -> str:
        """Return why the search ends after an epoch; "" = it goes on."""
        return ""

    def begin(self) -> None:
        self._note_alphas()

    def end_epoch(self, epoch: int) -> str:
        skips = self._note_alphas()
        self.stopped = self.ends(epoch, skips)
        return "skips " + ", ".join(f"{n} ({cell})" for cell, n in skips.items())

    def learned(self) -> Iterable[Tensor]:
        return (*self.net.parameters(), *self.alphas.values())

    def tensors(self) -> dict[str, Tensor]:
        return {f"alphas|{cell}": alphas for cell, alphas in self.alphas.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for cell, alphas in self.alphas.items():
                alphas.copy_(tensors[f"alphas|{cell}"])

    def _note_alphas(self) -> dict[str, int]:
        """Write where the alphas stand; returns the number of skips that they decide for."""
        skips = self.found(limited=False).skips
        rows = {cell: [[round(p, 5) for p in row] for row in value.tolist()] for cell, value in self.probabilities().items()}
        record = {"step": self.step, "epoch": self.epoch, "skips": skips, "genotype": self.found().text}
        append_jsonl(self.folder / ALPHAS, record | {"probabilities": rows})
        return skips


def fresh_alphas(shapes: Mapping[str, tuple[int, ...]], seed: int, device: torch.device) -> nn.ParameterDict:
    """Return alphas before the first step: nearly nothing, but no two alike."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: (INITIAL_DEVIATION * torch.randn(shape, generator=generator)).to(device) for name, shape in shapes.items()}
    return nn.ParameterDict(found)
