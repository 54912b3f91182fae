"""BatchNorm re-calibration and accuracy of an extracted subnet.

The supernet's running statistics are a mixture of all subnets that were trained; a subnet needs its own before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ofa.training.data import Images, Preprocessing, in_batches


@torch.no_grad()
def calibrate(net: nn.Module, batches: list[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by those of some training images.

    Mean and biased variance within each batch, averaged over batches with their sizes as weights; each layer meanwhile
    normalises with its own batch's statistics, and the rest of the network (dropout) stays in eval mode.

    Args:
        net: an extracted subnet; its running statistics are overwritten, the mode of its modules is left as it was.
        batches: normalised float images (n, 3, r, r), r = the architecture's resolution.
    Raises:
        ValueError: if there are no images.
    Source: Yu and Huang 2019 (arXiv 1903.05134), section 3.4; the weighting is that of MIT's once-for-all.
    """
    if not sum(len(batch) for batch in batches):
        raise ValueError("calibrate needs at least one image")
    with recording(net) as recorder:
        for batch in batches:
            net(batch)
            recorder.take(len(batch))


class Recorder:
    """Gathers the statistics of each batch that ran through a network; see `recording`."""

    def __init__(self, norms: list[nn.BatchNorm2d]) -> None:
        self._total = 0
        self._statistics = {norm: (norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for norm in norms}
        self._sums = {norm: [torch.zeros_like(each) for each in pair] for norm, pair in self._statistics.items()}
        self._values = dict.fromkeys(norms, 0)  # values per channel that the last batch's variance was taken over
        self.hooks = [norm.register_forward_pre_hook(self._count) for norm in norms]

    def take(self, num_images: int) -> None:
        """Take in the statistics of the batch that just ran."""
        self._total += num_images
        for norm, (mean, var) in self._statistics.items():
            biased = (self._values[norm] - 1) / self._values[norm]  # torch keeps the unbiased variance
            self._sums[norm][0] += mean * num_images
            self._sums[norm][1] += var * (biased * num_images)

    def write(self) -> None:
        """Make the averages the running statistics."""
        for norm, pair in self._statistics.items():
            for statistic, total in zip(pair, self._sums[norm], strict=True):
                statistic.copy_(total / self._total)

    def _count(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        self._values[norm] = inputs[0].numel() // inputs[0].shape[1]


@contextmanager
def recording(net: nn.Module) -> Iterator[Recorder]:
    """Inside, BatchNorm normalises with each batch's own statistics; at the end their averages become the running ones."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    modes, momenta = {module: module.training for module in net.modules()}, {norm: norm.momentum for norm in norms}
    recorder = Recorder(norms)
    try:
        net.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become exactly those of the batch
        yield recorder
    finally:
        for hook in recorder.hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for norm in norms:
            norm.momentum = momenta[norm]
    recorder.write()


@torch.no_grad()
def top1(
    predict: Callable[[Tensor], Tensor], data: Images, preprocess: Preprocessing, resolution: int, *, batch_size: int = 250
) -> float:
    """Return the share of images classified right, in [0, 1].

    Args:
        predict: normalised images (n, 3, r, r) to logits (n, classes): a network in eval mode, or an exported file.
    """
    right = 0
    for images, labels in in_batches(data, batch_size):
        right += int((predict(preprocess(images, resolution)).argmax(1) == labels).sum())
    return right / len(data)
