"""BatchNorm re-calibration and accuracy of an extracted subnet.

The supernet's running statistics are a mixture of all subnets that were trained; a subnet needs its own before it is used.
"""

from __future__ import annotations

from collections.abc import Callable

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
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = {norm: (norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for norm in norms}
    values = dict.fromkeys(norms, 0)  # values per channel that the last batch's variance was taken over
    saved = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in norms}

    def count(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        values[norm] = inputs[0].numel() // inputs[0].shape[1]

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    sums = {norm: [torch.zeros_like(mean), torch.zeros_like(var)] for norm, (mean, var) in statistics.items()}
    total = 0
    try:
        net.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become exactly those of the batch
        for batch in batches:
            net(batch)
            total += len(batch)
            for norm, (mean, var) in statistics.items():
                biased = (values[norm] - 1) / values[norm]  # torch keeps the unbiased variance
                sums[norm][0] += mean * len(batch)
                sums[norm][1] += var * (biased * len(batch))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in saved.items():
            module.training = training
        for norm in norms:
            norm.momentum = momenta[norm]
    for norm, (mean, var) in statistics.items():
        mean.copy_(sums[norm][0] / total)
        var.copy_(sums[norm][1] / total)


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
