"""Losses by which a subnet learns from a teacher's logits: all take (n, classes) and return a mean over the batch.

No gradient flows into the teacher. With a temperature T both sides are softened by it and the loss is scaled by T^2, so that its
gradient keeps its size (Hinton et al. 2015, section 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

IMPORTANCE_CLIP = 5.0


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy against the teacher's probabilities."""
    target = (teacher_logits.detach() / temperature).softmax(1)
    return -(target * F.log_softmax(logits / temperature, 1)).sum(1).mean() * temperature**2


def kl_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the teacher: soft cross-entropy less the teacher's entropy, with the same gradient."""
    target = F.log_softmax(teacher_logits.detach() / temperature, 1)
    student = F.log_softmax(logits / temperature, 1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def adaptive_alpha(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The larger, for each image, of two alpha-divergences: alpha = -1 punishes over-, alpha = 1 underestimated uncertainty.

    Source: Wang et al. 2021 (AlphaNet, arXiv 2102.07954), equations 4 to 7: importance weights w = p/q clipped at 5; the gradient
    flows through log q only. The value is that of the divergence, the gradient that of the surrogate.
    """
    log_p = F.log_softmax(teacher_logits.detach() / temperature, 1)
    log_q = F.log_softmax(logits / temperature, 1)
    negative, positive = (_alpha_divergence(log_p, log_q, alpha) for alpha in (-1.0, 1.0))
    worse = negative[0] > positive[0]
    value = torch.where(worse, negative[0], positive[0])
    surrogate = torch.where(worse, negative[1], positive[1])
    # the surrogate's gradient with the divergence's value
    return (value + surrogate - surrogate.detach()).mean() * temperature**2


def _alpha_divergence(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return (value, surrogate loss) of an alpha-divergence, (n,) each; computed from logarithms, so that nothing underflows."""
    fixed = log_q.detach()
    if alpha == 1:  # Kullback-Leibler of p from q
        p = log_p.exp()
        return (p * (log_p - fixed)).sum(1), -(p * log_q).sum(1)
    power = (alpha * (log_p - fixed)).exp().clamp(max=IMPORTANCE_CLIP)  # w^alpha
    base = 1 / (alpha * (alpha - 1))
    value, rho = base * (power - 1), power / alpha + base
    q = fixed.exp()
    return (q * value).sum(1), -(q * rho * log_q).sum(1)


Distillation = Callable[[Tensor, Tensor, float], Tensor]
DISTILLATIONS: dict[str, Distillation] = {"soft_ce": soft_cross_entropy, "kl": kl_divergence, "alpha": adaptive_alpha}
