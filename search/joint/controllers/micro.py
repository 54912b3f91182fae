"""The controller of ENAS' micro space: a normal and a reduction cell.

A cell's nodes 0 and 1 are its inputs; every further node takes two earlier ones and an operation for each. Tokens stand in the
order of ENAS' arc strings, for each node "input operation input operation", normal cell first; they are drawn in another order:
both inputs, then both operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.joint.controllers import Controller, Variant, draw_weights
from search.joint.controllers.lstm import Attention, Choice, StackedLstm, bounded, pick
from search.joint.controllers.sequences import Sequences

INPUTS = 2  # nodes that a cell is given
LSTM_SIZE: dict[Variant, int] = {"paper": 100, "release": 64}
INITIAL_BOUND = 0.1  # of weights
CONVOLUTIONS = 2  # among the operations, in front
LEARNT_BIAS, FIXED_BIAS = 10.0, 0.25  # in their favour, in the release: of all cells at first, of normal cells for ever


class MicroController(Controller):
    """Writes two cells; the reduction cell goes on from the LSTM's state after the normal one.

    Inputs are drawn from C tanh(attention), operations from C' tanh(h W), C' = C / op_tanh_divisor; the constants are those of
    the release in both variants (the paper: a temperature of 5 and a tanh constant of 2.5). A node that was chosen is the next
    input of the LSTM; the two given ones are zeros there, yet have a key that
    attention sees. Variants:

    - "paper": 100 units; all operations are alike at first.
    - "release": 64 units; operations are drawn from C' tanh(h W + b), b learnt, `LEARNT_BIAS` for convolutions and 0 for others
      at first, and in normal cells `FIXED_BIAS` is added for convolutions and taken off others. The slope of tanh is 8e-9 at
      `LEARNT_BIAS`: convolutions keep the largest logit, and which of them is the better one is never learnt.

    Source: Pham et al. 2018 (arXiv 1802.03268), section 2.3, and its code, micro_controller.py.
    """

    def __init__(
        self,
        nodes: int = 5,
        operations: int = 5,
        *,
        variant: Variant = "paper",
        tanh_constant: float = 1.10,
        op_tanh_divisor: float = 2.5,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights.

        Args:
            nodes: that are chosen, of each cell.
            operations: of an edge; in the release the first `CONVOLUTIONS` are favoured.
            generator: of the weights; None = torch's own.
        """
        super().__init__()
        self.nodes, self.operations = nodes, operations
        self._tanh_constant, self._op_tanh_constant = tanh_constant, tanh_constant / op_tanh_divisor
        self._temperature = temperature
        self.options = 2 * sum(((node, operations) * 2 for node in range(INPUTS, INPUTS + nodes)), ())
        size = LSTM_SIZE[variant]
        self.lstm, self.attention = StackedLstm(size), Attention(size)
        self.start = nn.Parameter(torch.empty(size))
        self.operation = Choice(size, operations)
        draw_weights(self, INITIAL_BOUND, generator)
        favoured = variant == "release"
        is_convolution = torch.arange(operations) < CONVOLUTIONS
        self.bias = nn.Parameter(LEARNT_BIAS * is_convolution.to(self.start.dtype)) if favoured else None
        self.normal_bias: Tensor | None
        normal_bias = FIXED_BIAS * torch.where(is_convolution, 1.0, -1.0)
        self.register_buffer("normal_bias", normal_bias if favoured else None, persistent=False)

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        state = self.lstm.begin(sequences.n)
        start = self.start.expand(sequences.n, -1)
        place = 0
        for is_normal in (True, False):
            inputs, anchors, keys = start, [torch.zeros_like(start)] * INPUTS, []
            for _ in range(INPUTS):
                output, state = self.lstm(inputs, state)
                keys.append(self.attention.key(output))
            for _ in range(self.nodes):
                for side in (0, 2):
                    output, state = self.lstm(inputs, state)
                    logits = bounded(self.attention(keys, output), self._tanh_constant, self._temperature)
                    inputs = pick(anchors, sequences.choose(place + side, logits))
                for side in (1, 3):
                    output, state = self.lstm(inputs, state)
                    inputs = self.operation.embed(sequences.choose(place + side, self._op_logits(output, is_normal)))
                output, state = self.lstm(inputs, state)
                anchors = [*anchors, output]
                keys.append(self.attention.key(output))
                inputs = start
                place += 4
        return sequences.zeros, sequences.zeros

    def _op_logits(self, output: Tensor, is_normal: bool) -> Tensor:
        """Return the logits of an operation, (n, size) -> (n, operations)."""
        logits = self.operation.logits(output)
        if self.bias is not None:
            logits = logits + self.bias
        logits = bounded(logits, self._op_tanh_constant, self._temperature)
        return logits + self.normal_bias if is_normal and self.normal_bias is not None else logits
