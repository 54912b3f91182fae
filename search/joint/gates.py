"""Binary gates of ProxylessNAS: architecture parameters that learn from two paths at a time.

A choice between N blocks has N logits, whose softmax p says how likely each is to be drawn. The weights learn through one drawn
block. For the logits two are drawn, without replacement; one of them computes, the other's output is there with a gate of 0, and
the gradient of the loss by a gate g_j is the product of the output's gradient with what block j returns. With p renormalised over
the two,

    dL/dalpha_i ~ sum over the two of dL/dg_j p_j (delta_ij - p_i),

and after the step both logits are shifted so that the probabilities of all others are what they were. A network of two paths is
in memory, whatever the number of blocks. Source: Cai et al. 2019 (ProxylessNAS, arXiv 1812.00332), sections 3.1 and 3.2.1.

Here several choices may decide one block, such as its kernel and its expand ratio, and one choice several blocks. Each choice has
its pair; a block runs as chosen, and once more for each of its choices with only that one changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ofa.block_spec import IMAGES, last_readers, wiring
from ofa.supernet import Supernet
from search.joint.controllers import Controller
from search.joint.controllers.sequences import Sequences
from search.joint.open_choices import OpenChoices

INITIAL_DEVIATION = 1e-3  # of logits, as in the authors' code


class Gates(Controller):
    """Logits of every open choice; drawn independently of each other."""

    def __init__(self, choices: OpenChoices, generator: torch.Generator) -> None:
        super().__init__()
        self.choices = choices
        self.options = tuple(len(d.options) for d in choices.dimensions)
        drawn = [INITIAL_DEVIATION * torch.randn(number, generator=generator) for number in self.options]
        self.logits = nn.ParameterList([nn.Parameter(logits) for logits in drawn])

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        for place, logits in enumerate(self.logits):
            sequences.choose(place, logits.expand(sequences.n, -1))
        return sequences.zeros, sequences.zeros

    def probabilities(self) -> dict[str, Tensor]:
        """Return name of a choice -> (options,), with gradients to the logits."""
        return {d.name: logits.softmax(0) for d, logits in zip(self.choices.dimensions, self.logits, strict=True)}

    def entropy(self) -> Tensor:
        """Return the mean entropy of the choices, nats."""
        rows = [logits.log_softmax(0) for logits in self.logits]  # finite where the probability itself is rounded to 0
        return torch.stack([-(log_p.exp() * log_p).sum() for log_p in rows]).mean()

    def most_probable(self) -> list[int]:
        """Return the option of each choice that the search decides for as it stands."""
        return [int(logits.argmax()) for logits in self.logits]

    @torch.no_grad()
    def draw_pairs(self, rng: np.random.Generator) -> Pairs:
        """Draw two options of each choice, and which of them computes."""
        found = []
        for logits in self.logits:
            p = logits.double().softmax(0).cpu().numpy()
            if np.count_nonzero(p) > 1:
                two = rng.choice(len(p), 2, replace=False, p=p / p.sum())
            else:  # all but one are rounded to 0: the same draw by Gumbel noise on the logits
                two = np.argsort(-(logits.double().cpu().numpy() + rng.gumbel(size=len(p))))[:2]
            computes = rng.random() * p[two].sum() < p[two[0]]
            found.append(two if computes else two[::-1])
        return Pairs(torch.from_numpy(np.array(found)).to(self.logits[0].device))

    def of_pairs(self, pairs: Pairs) -> Tensor:
        """Return the logits of pairs, (choices, 2), with gradients."""
        return torch.stack([logits[two] for logits, two in zip(self.logits, pairs.options, strict=True)])

    def set_gradients(self, pairs: Pairs, gradients: Tensor) -> None:
        """Give all logits a gradient: 0, or that of a pair, (choices, 2)."""
        for logits, two, gradient in zip(self.logits, pairs.options, gradients, strict=True):
            logits.grad = torch.zeros_like(logits).index_copy(0, two, gradient.to(logits))

    @torch.no_grad()
    def rescale(self, pairs: Pairs, before: Tensor) -> None:
        """Shift the logits of pairs so that the options beside have the probabilities they had with the logits `before`.

        That takes the sum of exponentials of both to be what it was.
        """
        shift = self.of_pairs(pairs).logsumexp(1) - before.logsumexp(1)
        for logits, two, by in zip(self.logits, pairs.options, shift, strict=True):
            logits[two] -= by


class Pairs(NamedTuple):
    """Two options of each choice; the first computes, the gate of the second is 0."""

    options: Tensor  # (choices, 2) int64

    @property
    def chosen(self) -> list[int]:
        """Options that compute."""
        return [int(option) for option in self.options[:, 0]]

    def with_other(self, place: int) -> list[int]:
        """Return the options that compute, but for one choice the other option."""
        found = self.chosen
        found[place] = int(self.options[place, 1])
        return found

    def probabilities(self, gates: Gates, logits: Tensor) -> dict[str, Tensor]:
        """Return what probabilities are when no other options are there: name -> (options,), with gradients to `logits`."""
        rows = zip(gates.choices.dimensions, gates.logits, self.options, logits.softmax(1), strict=True)
        return {d.name: torch.zeros_like(whole).index_copy(0, two, p) for d, whole, two, p in rows}


def new_gates(pairs: Pairs) -> Tensor:
    """Return the gates of pairs, (choices, 2): 1 for what computes and 0 for the other, to be differentiated by."""
    ones = torch.ones(len(pairs.options), device=pairs.options.device)
    return torch.stack([ones, torch.zeros_like(ones)], 1).requires_grad_()


def gated_logits(net: Supernet, choices: OpenChoices, pairs: Pairs, gates: Tensor, images: Tensor) -> Tensor:
    """Compute logits (n, classes) of the network that computes, differentiable by all gates.

    Args:
        gates: (choices, 2), of `new_gates`.
        images: (n, 3, r, r).
    """
    gates = gates.to(images)
    x, states = images, {IMAGES: images}
    blocks = net.space.blocks(choices.arch(pairs.chosen))
    wires = wiring(blocks)
    done = last_readers(wires)
    slots = {slot.name: slot for slot in net.space.slots}
    for name, spec in blocks.items():
        inputs = [states[source] for source in wires[name]]
        x = net.run_block(name, spec, *inputs)
        places = choices.slots.get(name, ())
        if places:
            x = x * gates[list(places), 0].prod()
        for place in places:
            other = choices.block(slots[name], pairs.with_other(place))
            with torch.no_grad():  # its gate is 0: nothing before it, and none of its weights, has a gradient from it
                beside = net.run_block(name, other, *inputs)
            x = x + gates[place, 1] * beside
        states[name] = x
        for source in done[name]:
            del states[source]
    return x


def pair_gradients(logits: Tensor, by_gates: Tensor) -> Tensor:
    """Return the gradients by the logits of pairs, of those by their gates, (choices, 2) each."""
    p = logits.softmax(1)
    return p * (by_gates - (p * by_gates).sum(1, keepdim=True))


def rows_of(probabilities: Mapping[str, Tensor]) -> Iterator[tuple[str, list[float]]]:
    """Yield probabilities as they are written: five digits."""
    for name, p in probabilities.items():
        yield name, [round(value, 5) for value in p.detach().tolist()]
