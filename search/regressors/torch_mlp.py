"""The predictor of once-for-all: three hidden layers of 400 ReLU units, trained by Adam; for thousands of measured networks.

Learning rate, weight decay and the last bias (the mean of the targets) are the authors' advice (their issue 30). Their predictor
saw thousands of networks; with hundreds, other kinds rank better and fit in a hundredth of the time, so it is asked for by name.
Source: Cai et al. 2020 (arXiv 1908.09791), section 3.3.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.perceptron import PerceptronMean, Perceptrons, standardisation

MEMBERS = 2
HIDDEN = (400, 400, 400)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
BATCH = 64
STEPS = 600  # at least, and at least EPOCHS passes
EPOCHS = 30


class TorchMlp(PerceptronMean):
    """The mean of perceptrons from different beginnings, trained side by side."""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> TorchMlp:
        import torch

        generator = torch.Generator().manual_seed(seed)
        mean, scale = standardisation(inputs)
        x = torch.from_numpy((inputs - mean) * scale)
        y = torch.from_numpy(targets.astype(np.float32))[:, None]
        sizes = (layout.width, *HIDDEN, 1)
        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for fan_in, outputs in itertools.pairwise(sizes):
            bound = fan_in**-0.5  # torch's default for linear layers
            for shape, found in (((fan_in, outputs), weights), ((1, outputs), biases)):
                found.append((torch.rand((MEMBERS, *shape), generator=generator) * 2 - 1) * bound)
        biases[-1].fill_(float(targets.mean()))
        parameters = [array.requires_grad_() for array in (*weights, *biases)]
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = max(STEPS, EPOCHS * -(-len(y) // BATCH))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            chosen = torch.randint(len(y), (MEMBERS, min(BATCH, len(y))), generator=generator)
            hidden = x[chosen]  # (members, batch, features)
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                hidden = torch.baddbmm(bias, hidden, weight)
                hidden = hidden.relu() if i < len(weights) - 1 else hidden
            loss = (hidden - y[chosen]).square().mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        learnt = [tuple(array.detach().numpy().copy() for array in arrays) for arrays in (weights, biases)]
        return cls(Perceptrons(mean, scale, learnt[0], learnt[1]))


REGRESSOR = TorchMlp
