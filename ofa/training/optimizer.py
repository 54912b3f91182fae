"""The optimiser, the moving average of weights, and both as named tensors for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofa.training.config import TrainConfig


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum 0.9, or AdamW.

    Weights of convolutions and linear layers decay; vectors (BatchNorm, biases) do not, nor do kernel transforms, which decay
    would draw from the identity to zero (MIT's code lets them decay). A tensor of which a step's subnets used no part has no
    gradient and is left out of the update: it neither decays nor moves by its momentum. One
    that was used in part is updated whole, the unused part by momentum and decay alone, as in MIT's once-for-all.
    """
    named = list(net.named_parameters())
    plain = [p for name, p in named if p.ndim <= 1 or "kernel_transforms" in name]
    kept = {id(p) for p in plain}
    decayed = [p for _, p in named if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    # fused: one pass over the weights instead of several, a third of the time on a processor too
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    for _, p in named:  # the fused step cannot begin some momenta later than others; from zero they begin alike
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the state to "<parameter name>|<key>"; a value that is None is left out."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` returned."""
    parameters = dict(net.named_parameters())
    for flat, value in tensors.items():
        name, _, key = flat.rpartition("|")
        parameter = parameters[name]
        # a layout other than the parameter's would change the order of the optimiser's sums
        same = value.shape == parameter.shape
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value) if same else value


class MovingAverage:
    """Exponential moving average of parameters (Polyak and Juditsky 1992); young averages forget faster."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.restart(net)

    def restart(self, net: nn.Module) -> None:
        """Forget the past: the averages are the weights as they are now."""
        self.shadow = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in net.parameters()], weight)

    @torch.no_grad()
    def swap(self, net: nn.Module) -> None:
        """Exchange the network's parameters and the averages."""
        for name, p in net.named_parameters():
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
