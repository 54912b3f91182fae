"""Time and memory of a step of the search of recurrent cells, against each operation of each edge by itself.

    OMP_NUM_THREADS=1 python benchmarks/darts_rnn_step.py [--features 64 128 300] [--batch 64] [--time 35] [--repeats 5]

A step is a pass over a piece of text, forward and backward, with gradients of the alphas; vocabulary and classifier are left out,
they are the same for both. The bound is the matrix products alone, forward and backward, as single large ones. Runs take turns;
times are the least of the repeats, in seconds of the processor, which other processes disturb less. Memory is what stays
allocated for the backward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ofa.mix_activations import OPERATIONS
from ofa.recurrent import ACTIVATIONS, Masks, MixedCell, num_edges


class StraightforwardCell(MixedCell):
    """The same cell, an operation of an edge at a time."""

    def forward(self, inputs: Tensor, hidden: Tensor, probabilities: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the hidden states, (time, batch, features)."""
        matrices = self.node_weight.chunk(self.nodes, dim=1)

        def cell(first: Tensor) -> Tensor:
            states, row = [self.norm(first)], 0
            for matrix in matrices:
                total = torch.zeros_like(first)
                for state in list(states):
                    for column, name in enumerate(OPERATIONS):
                        if name != "none":
                            gate, candidate = (state @ matrix).chunk(2, dim=1)
                            moved = state + torch.sigmoid(gate) * (ACTIVATIONS[name](candidate) - state)
                            total = total + probabilities[row, column] * moved
                    row += 1
                states.append(self.norm(total))
            return torch.stack(states[1:]).mean(0)

        return self.unroll(inputs, hidden, masks, cell)


class SharedProductCell(MixedCell):
    """The same cell, an operation of an edge at a time, but one product an edge for all its operations."""

    def forward(self, inputs: Tensor, hidden: Tensor, probabilities: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the hidden states, (time, batch, features)."""
        matrices = self.node_weight.chunk(self.nodes, dim=1)

        def cell(first: Tensor) -> Tensor:
            states, row = [self.norm(first)], 0
            for matrix in matrices:
                total = torch.zeros_like(first)
                for state in list(states):
                    gate, candidate = (state @ matrix).chunk(2, dim=1)
                    for column, name in enumerate(OPERATIONS):
                        if name != "none":
                            moved = state + torch.sigmoid(gate) * (ACTIVATIONS[name](candidate) - state)
                            total = total + probabilities[row, column] * moved
                    row += 1
                states.append(self.norm(total))
            return torch.stack(states[1:]).mean(0)

        return self.unroll(inputs, hidden, masks, cell)


CELLS: dict[str, type[MixedCell]] = {
    "ours": MixedCell,
    "a product an edge": SharedProductCell,
    "a product an operation": StraightforwardCell,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128, 300])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--time", type=int, default=35, help="tokens of a piece")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"batch {args.batch}, {args.time} tokens, {torch.get_num_threads()} threads\n")
    print("| features | cell | ms a step | times ours | MiB kept |\n|---|---|---|---|---|")
    for features in args.features:
        one_size(features, args.batch, args.time, args.repeats)


def one_size(features: int, batch: int, steps: int, repeats: int) -> None:
    torch.manual_seed(0)
    inputs, hidden = torch.randn(steps, batch, features), torch.zeros(batch, features)
    alphas = (0.1 * torch.randn(num_edges(), len(OPERATIONS))).requires_grad_()
    cells = {name: kind(features) for name, kind in CELLS.items()}
    for cell in cells.values():
        cell.load_state_dict(cells["ours"].state_dict())
    runs: dict[str, Callable[[], object]] = {
        name: lambda cell=cell: cell(inputs, hidden, alphas.softmax(-1)).square().mean().backward()
        for name, cell in cells.items()
    }
    macs = 2 * features**2 * (num_edges() + 2)
    side = torch.randn(steps * batch, features), torch.randn(features, macs // features)
    runs["bound: products"] = lambda: [side[0] @ side[1] for _ in range(3)]
    seconds = {name: [timed(run) for _ in range(1)] for name, run in runs.items()}  # warm
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    for name in runs:
        least = min(seconds[name])
        kept = f"{kept_mib(cells[name], inputs, hidden, alphas):.0f}" if name in cells else ""
        print(f"| {features} | {name} | {1000 * least:.0f} | {least / min(seconds['ours']):.2f} | {kept} |", flush=True)


def timed(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def kept_mib(cell: MixedCell, inputs: Tensor, hidden: Tensor, alphas: Tensor) -> float:
    """Return the size of the storages that a forward pass keeps for the backward pass, each counted once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = cell(inputs, hidden, alphas.softmax(-1))
    del output
    return sum(storages.values()) / 2**20


if __name__ == "__main__":
    main()
