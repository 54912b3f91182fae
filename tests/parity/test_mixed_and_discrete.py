"""The mixed network with one-hot probabilities is the network that its space builds of the cells, by another code path."""

import numpy as np
import pytest
import torch

from ofa.blocks import build_network
from ofa.formats.darts import key_map
from ofa.formats.darts_search import original_keys
from ofa.mixed import PRIMITIVES, MixedNetwork
from ofa.spaces import get_space

SPACE = get_space("darts:cells=3,channels=4,resolution=16")
EDGES = [(node, source) for node in range(2, 6) for source in range(node)]
POOLS = ("max_pool_3x3", "avg_pool_3x3")  # BatchNorm follows them in the search network alone


def without_pools(seed):
    """A random architecture whose two networks differ in nothing."""
    rng = np.random.default_rng(seed)
    values = {}
    for dimension in SPACE.dimensions:
        options = [option for option in dimension.options if option not in POOLS]
        values[dimension.name] = options[int(rng.integers(len(options)))]
    return SPACE.from_values(values)


def original_state(net):
    """The weights of a mixed network under the keys of the original code."""
    state, found = net.state_dict(), {}
    for ours, parts in original_keys(net).items():
        found |= dict(zip(parts, state[ours].chunk(len(parts)), strict=True))
    return found


def chosen_key(key, genotype, reductions):
    """The key that a tensor of the discrete network has in the mixed one."""
    cell, _, rest = key.removeprefix("cells.").partition(".")
    if not rest.startswith("_ops."):
        return key
    place, _, rest = rest.removeprefix("_ops.").partition(".")
    nodes = genotype.reduce if int(cell) in reductions else genotype.normal
    operation, source = [edge for node in nodes for edge in node][int(place)]
    edge = EDGES.index((2 + int(place) // 2, source))
    return f"cells.{cell}._ops.{edge}._ops.{PRIMITIVES.index(operation)}.{rest}"


def one_hot(nodes):
    rows = torch.zeros(len(EDGES), len(PRIMITIVES), dtype=torch.float64)
    for node, edges in enumerate(nodes, 2):
        for operation, source in edges:
            rows[EDGES.index((node, source)), PRIMITIVES.index(operation)] = 1
    return rows


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_one_hot_probabilities_are_the_discrete_network(seed, training):
    torch.manual_seed(seed)
    arch = without_pools(seed)
    genotype, blocks = SPACE.to_genotype(arch), SPACE.blocks(arch)
    mixed = MixedNetwork(10, cells=3, channels=4).double()
    with torch.no_grad():
        for name, value in mixed.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    state = original_state(mixed)
    discrete = build_network(blocks, bn_eps=SPACE.bn_eps).double()
    names = key_map(genotype, blocks)
    with torch.no_grad():
        for ours, value in discrete.state_dict().items():
            key = chosen_key(names[ours], genotype, reductions=(1, 2))
            if key in state:  # or a scale or shift of BatchNorm, which the search goes without
                value.copy_(state[key])
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = mixed.train(training)(images, one_hot(genotype.normal), one_hot(genotype.reduce))
        found = discrete.train(training)(images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
