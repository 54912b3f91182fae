"""Evaluation networks of published cells against the original code: parameters, multiply-adds, logits in float64; ONNX of them."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.parity import parity_error
from deploy.runtimes import open_session
from ofa.blocks import build_network
from ofa.counts import macs, params
from ofa.formats.darts import AUXILIARY, key_map, load_auxiliary, load_network
from ofa.genotype import genotype_from_json
from ofa.genotypes import get_genotype
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.auxiliary import make_head

PATH = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="figures of the original code are not here")
CELLS = json.loads(PATH.read_text()) if PATH.exists() else {"evaluation_networks": {}, "eval_logits": []}
SIZES = {
    "cifar_C36_L20": ("", 10, "macs_32x32_no_aux"),
    "cifar_C16_L8": (":cells=8,channels=16", 10, "macs_32x32_no_aux"),
    "imagenet_C48_L14": (":cells=14,channels=48,resolution=224,stem=imagenet", 1000, "macs_224_no_aux"),
}
TOLERANCE = 1e-8  # relative: float64 sums in another order


def space_of(genotype, numbers="", num_classes=10):
    return get_space(("darts" if len(genotype.normal) == 4 else "nasnet") + numbers, num_classes=num_classes)


def fill(key, shape):
    """The value of a tensor of the original network, from its key."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_mean"):
        return torch.tensor(0.1 * rng.randn(*shape))
    if key.endswith("running_var"):
        return torch.tensor(0.5 + rng.rand(*shape))
    if len(shape) >= 2:
        return torch.tensor(rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:])))
    values = 0.1 * rng.randn(*shape)
    return torch.tensor(1 + values if key.endswith("weight") else values)


def published_state(space, genotype):
    """The state_dict that the original code would have saved, with an auxiliary head."""
    blocks = space.blocks(space.from_genotype(genotype))
    net, names = build_network(blocks), key_map(genotype, blocks)
    state = {names[ours]: fill(names[ours], tensor.shape) for ours, tensor in net.state_dict().items()}
    head = make_head(space.restrict(space.from_genotype(genotype)))
    return state | {AUXILIARY + key: fill(AUXILIARY + key, tensor.shape) for key, tensor in head.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CELLS["evaluation_networks"])
def test_parameters_and_macs_are_the_originals(name, size):
    numbers, classes, key = SIZES[size]
    told = CELLS["evaluation_networks"][name]
    genotype = genotype_from_json(told["genotype"])
    space = space_of(genotype, numbers, classes)
    arch = space.from_genotype(genotype)
    one = space.restrict(arch)
    assert params(one, one.encode([arch])) == told[size]["params_no_aux"]
    assert macs(one, one.encode([arch])) == told[size][key]
    head = make_head(one)
    assert told[size]["params_no_aux"] + sum(p.numel() for p in head.parameters()) == told[size]["params_with_aux"]


@pytest.mark.parametrize(("name", "size"), [("p_darts", 3_433_798), ("amoebanet_a", 3_145_078)])
def test_sizes_that_only_their_authors_told(name, size):
    genotype = get_genotype(name)
    space = space_of(genotype)
    assert params(space, space.encode([space.from_genotype(genotype)])) == size


@pytest.mark.parametrize("case", CELLS["eval_logits"], ids=lambda case: case["genotype"])
def test_logits_are_the_originals_in_float64(case):
    genotype = genotype_from_json(CELLS["evaluation_networks"][case["genotype"]]["genotype"])
    space = space_of(genotype, f":cells={case['layers']},channels={case['C']}")
    state = published_state(space, genotype)
    found, arch, net = load_network(state, genotype)
    assert found == space
    images = torch.tensor(np.random.RandomState(zlib.crc32(b"x")).randn(case["batch"], 3, case["size"], case["size"]))
    net.double().load_state_dict({ours: state[theirs] for ours, theirs in key_map(genotype, space.blocks(arch)).items()})
    head = load_auxiliary(state, make_head(space.restrict(arch))).double()
    head.load_state_dict({key: state[AUXILIARY + key] for key in head.state_dict()})
    with torch.no_grad():
        assert_close(net(images), case["logits_eval"])
    features = {}
    supernet = Supernet(space.restrict(arch)).double()
    supernet.load_state_dict({f"layers.{name.replace('.', '.largest.', 1)}": value for name, value in net.state_dict().items()})
    with torch.no_grad():
        assert_close(supernet.train()(images, arch, observe=features.__setitem__), case["logits_train_nodroppath"])
        assert_close(head.train()(features[space.auxiliary_block]), case["logits_aux_train"])


def assert_close(found, told):
    told = torch.tensor(told, dtype=found.dtype).view_as(found)
    assert (found - told).abs().max() <= TOLERANCE * told.abs().max()


@pytest.mark.parametrize("name", ["darts_v2", "nasnet_a", "amoebanet_a"])
def test_exported_cells_compute_what_pytorch_does(name):
    genotype = get_genotype(name)
    space = space_of(genotype, ":cells=5,channels=8")
    _, arch, net = load_network(published_state(space, genotype), genotype)
    session = open_session(emit(space.blocks(arch), fold(net)), get_device("ort_cpu_1t"))
    assert parity_error(net, session, 32) < 1e-5
