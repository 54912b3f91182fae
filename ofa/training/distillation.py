"""Losses that teach a subnet."""

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's probabilities, mean over the batch (Hinton et al. 2015, temperature 1).

    Args:
        logits: (n, classes) of the student.
        teacher_logits: (n, classes); no gradient flows into them.
    """
    return -(teacher_logits.detach().softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()
