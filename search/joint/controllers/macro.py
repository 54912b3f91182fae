"""The controller of ENAS' macro space: for each layer an operation and the earlier outputs that are added to its input.

Tokens stand in the order of ENAS' arc strings: for layer l its operation, then l bits. Bit 0 is the stem, bit j > 0 the output of
layer j - 1; the layer right before is the input anyway and has no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.errors import OfaError
from search.joint.controllers import Controller, Variant, draw_weights
from search.joint.controllers.lstm import Attention, Choice, StackedLstm, bounded
from search.joint.controllers.micro import INITIAL_BOUND, LSTM_SIZE
from search.joint.controllers.sequences import Sequences


class MacroController(Controller):
    """Writes a chain of layers with skips, whose rate is held near a target by a penalty.

    The logits of a skip are C tanh of (-q, q), q by attention of the layer's state to that of an earlier one. The next input of
    the LSTM is the sum of the states that were chosen, divided by one more than their number.

    The penalty of a layer is the divergence of its skips from independent ones of rate `skip_target`, and that of a sequence the
    mean over the layers that have skips. Variants:

    - "paper": the chance of a skip is the one by which it is drawn, softmax(-q, q) = sigmoid(2q); entropies are those of the
      choices; 100 units.
    - "release": the penalty takes sigmoid(q) for that chance, so that it is least where skips are drawn at a rate of 0.31 instead
      of 0.4; -log p times p of what was drawn stands for its entropy; 64 units.

    The tanh constant is the release's in both, which has no temperature (the paper: 2.5 and a temperature of 5).
    Source: Pham et al. 2018 (arXiv 1802.03268), sections 2.2 and 3.2, and its code, general_controller.py.
    """

    def __init__(
        self,
        layers: int = 12,
        operations: int = 6,
        skip_target: float = 0.4,
        *,
        variant: Variant = "paper",
        tanh_constant: float | None = 1.5,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights.

        Args:
            skip_target: wanted rate of skips, in (0, 1).
            generator: of the weights; None = torch's own.
        Raises:
            OfaError: for a target out of range.
        """
        super().__init__()
        if not 0 < skip_target < 1:
            raise OfaError(f"skip_target is {skip_target}, expected above 0 and below 1")
        self.layers, self.operations, self.skip_target, self.variant = layers, operations, skip_target, variant
        self.sampled_entropy = variant == "release"
        self._tanh_constant, self._temperature = tanh_constant, temperature
        self.options = sum(((operations,) + (2,) * layer for layer in range(layers)), ())
        size = LSTM_SIZE[variant]
        self.lstm, self.attention = StackedLstm(size), Attention(size)
        self.start = nn.Parameter(torch.empty(size))
        self.operation = Choice(size, operations)
        draw_weights(self, INITIAL_BOUND, generator)

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        state = self.lstm.begin(sequences.n)
        start = self.start.expand(sequences.n, -1)
        inputs, place = start, 0
        anchors: list[Tensor] = []
        keys: list[Tensor] = []
        penalties: list[Tensor] = []
        taken = sequences.zeros
        for layer in range(self.layers):
            output, state = self.lstm(inputs, state)
            chosen = sequences.choose(place, self._bounded(self.operation.logits(output)))
            output, state = self.lstm(self.operation.embed(chosen), state)
            if layer:
                fit = self.attention(keys, output)  # (n, layer)
                logits = self._bounded(torch.stack([-fit, fit], 2))
                skips = sequences.choose(place + 1, logits).to(output.dtype)
                penalties.append(self._divergence(logits).sum(1))
                count = skips.sum(1)
                inputs = torch.einsum("nl,nls->ns", skips, torch.stack(anchors, 1)) / (1 + count)[:, None]
                taken = taken + count
            else:
                inputs = start
            anchors.append(output)
            keys.append(self.attention.key(output))
            place += 1 + layer
        penalty = torch.stack(penalties).mean(0) if penalties else sequences.zeros
        return penalty, taken / max(1, self.layers * (self.layers - 1) / 2)

    def _bounded(self, logits: Tensor) -> Tensor:
        return bounded(logits, self._tanh_constant, self._temperature)

    def _divergence(self, logits: Tensor) -> Tensor:
        """Return how far the chances of skips are from their target, (n, layer, 2) -> (n, layer), nats."""
        target = logits.new_tensor([1 - self.skip_target, self.skip_target])
        log_p = F.logsigmoid(logits) if self.variant == "release" else F.log_softmax(logits, -1)
        return (log_p.exp() * (log_p - target.log())).sum(-1)
