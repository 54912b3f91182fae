"""Several processes train one supernet: started by torchrun, or alone, through the same code.

Every process holds all weights and draws the same subnets; each computes gradients of its part of the batch. They are added up
once an optimiser step, in one flat buffer, whatever the number of subnets: wrappers such as DistributedDataParallel reduce after
every backward pass and must be told of parameters that a subnet does not use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofa.errors import OfaError

TIMEOUT = timedelta(minutes=30)  # the others wait that long while the first process looks at validation images


@dataclass(frozen=True)
class World:
    """The processes that train together, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def first_does(self, action: Callable[[], object]) -> None:
        """Let the first process do something while the others wait; what goes wrong there is an error everywhere.

        Raises:
            Exception: as `action` does; in the other processes an OfaError marked as told.
        """
        if self.size == 1:
            action()
            return
        failure: Exception | None = None
        message: list[str | None] = [None]
        if self.is_first:
            try:
                action()
            except Exception as error:  # whatever it is, the others must not wait for ever
                failure, message[0] = error, str(error)
        dist.broadcast_object_list(message)
        if failure is not None:
            raise failure
        if message[0] is not None:
            echo = OfaError(message[0])
            echo.told = True
            raise echo

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
        """Add up gradients, in place, and some numbers over all processes: one reduction.

        A parameter without a gradient must be without one everywhere, which holds as all processes run the same subnets.

        Args:
            numbers: (k,) float.
        Returns:
            The numbers' sums, (k,).
        """
        if self.size == 1:
            return numbers
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [numbers.to(gradients[0])])
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in gradients] + [len(numbers)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[-1].to(numbers.device)


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; without it, be the only one.

    Args:
        device: "auto" (a GPU if there is one), or a name that torch knows.
    Raises:
        OfaError: for a device that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{local}"  # one GPU a process
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OfaError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try --device cpu") from None
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World(0, 1, chosen)
        return
    if dist.is_initialized():  # by the caller, who also ends it
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the statistics of all processes' images; torch's own needs a GPU.

    In training mode a small part of the batch a process then costs no accuracy, and gradients equal those of one process with
    the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        given, x = x.dtype, x if x.dtype is torch.float64 else x.float()  # sums need the range and precision of float32
        # sums rather than means: processes may hold different numbers of images
        counts = torch.tensor([x.numel() // x.shape[1]], dtype=x.dtype, device=x.device)
        dist.all_reduce(counts)
        count = counts[0]
        mean = _all_sum(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        var = _all_sum(centred.square().sum((0, 2, 3))) / count  # biased
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.get_buffer("running_mean").lerp_(mean, momentum)
            self.get_buffer("running_var").lerp_(var * count / (count - 1), momentum)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(given)


def synchronize_batchnorm(net: nn.Module) -> nn.Module:
    """Make every BatchNorm of a network use the statistics of all processes, in place."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return net


def _all_sum(x: Tensor) -> Tensor:
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)
