"""The controller of ENAS' recurrent cells: for each node an earlier node and a function.

Tokens stand in the order of ENAS' arc strings, which is that of sampling: the function of node 0, then for every further node the
earlier node and the function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.joint.controllers import Controller, Variant, draw_weights
from search.joint.controllers.lstm import Attention, Choice, StackedLstm, bounded, pick
from search.joint.controllers.micro import INITIAL_BOUND, LSTM_SIZE
from search.joint.controllers.sequences import Sequences

PRIOR_SCALE = 6.0  # the logit of a node d before is lowered by d^2 / PRIOR_SCALE
NEAREST = 0.1  # added to the distance by which the state of a chosen node is divided


class RecurrentController(Controller):
    """Writes a recurrent cell; near nodes are likelier sources than far ones, by a prior added after the tanh.

    The next input of the LSTM is the state of the chosen node, divided by 0.1 + its distance. Variants:

    - "paper": entropies are those of the choices; 100 units.
    - "release": -log p times p of what was drawn stands for its entropy; 64 units.

    Temperature 5 and tanh constant 2.5 are those of the paper and of the release.
    Source: Pham et al. 2018 (arXiv 1802.03268), sections 2.1 and 3.1, and its code, ptb_enas_controller.py, whose prior this is.
    """

    def __init__(
        self,
        nodes: int = 12,
        functions: int = 4,
        *,
        variant: Variant = "paper",
        tanh_constant: float | None = 2.5,
        temperature: float | None = 5.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights, by `generator` or torch's own."""
        super().__init__()
        self.nodes, self.functions = nodes, functions
        self.sampled_entropy = variant == "release"
        self._tanh_constant, self._temperature = tanh_constant, temperature
        self.options = sum(((node, functions) for node in range(1, nodes)), (functions,))
        size = LSTM_SIZE[variant]
        self.lstm, self.attention, self.function = StackedLstm(size), Attention(size), Choice(size, functions)
        self.start = nn.Parameter(torch.empty(size))
        draw_weights(self, INITIAL_BOUND, generator)

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        state = self.lstm.begin(sequences.n)
        start = self.start.expand(sequences.n, -1)
        inputs = start
        anchors: list[Tensor] = []
        keys: list[Tensor] = []
        for node in range(self.nodes):
            output, state = self.lstm(inputs, state)
            if node:
                distance = torch.arange(node, 0, -1, dtype=output.dtype, device=output.device)  # of node 0 the largest
                logits = self._bounded(self.attention(keys, output)) - distance**2 / PRIOR_SCALE
                source = sequences.choose(2 * node - 1, logits)
                inputs = pick(anchors, source) / (NEAREST + distance[source])[:, None]
            else:
                inputs = start
            anchors.append(output)
            keys.append(self.attention.key(output))
            output, state = self.lstm(inputs, state)
            inputs = self.function.embed(sequences.choose(2 * node, self._bounded(self.function.logits(output))))
        return sequences.zeros, sequences.zeros

    def _bounded(self, logits: Tensor) -> Tensor:
        return bounded(logits, self._tanh_constant, self._temperature)
