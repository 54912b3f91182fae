"""Single Path One-Shot against the original code: parameters, multiply-adds, logits of the supernet in float64; ONNX of its networks."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.parity import parity_error
from deploy.runtimes import open_session
from ofa.counts import macs, params
from ofa.formats.spos import PUBLISHED, find_architecture, from_arch, load_original, load_supernet, original_keys, to_arch
from ofa.spaces import get_space
from ofa.supernet import Supernet

PATH = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="figures of the original code are not here")
FIXTURES = json.loads(PATH.read_text()) if PATH.exists() else {"spos_and_mobile": {}}
NETWORKS = {name: told for name, told in FIXTURES["spos_and_mobile"].items() if name.startswith("SPOS_")}
SPACE = get_space("shufflenet")
SMALL = get_space("shufflenet:resolution=64,channels=4", num_classes=10)


def fill(key, shape):
    """The value of a tensor of the original network, from its key."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_mean"):
        return torch.tensor(0.1 * rng.randn(*shape))
    if key.endswith("running_var"):
        return torch.tensor(0.5 + rng.rand(*shape))
    return torch.tensor(rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:])))


def published_state(net):
    """The state_dict that the original supernet would have saved: its BatchNorm has statistics only."""
    names, state = original_keys(net), net.state_dict()
    return {
        theirs: torch.zeros((), dtype=torch.int64) if theirs.endswith("tracked") else fill(theirs, state[ours].shape)
        for ours, theirs in names.items()
        if not (".bn." in ours and ours.endswith(("weight", "bias")))
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("space", [SPACE, get_space("shufflenet_channels")], ids=lambda space: space.name)
def test_parameters_and_macs_are_the_originals(name, space):
    told = NETWORKS[name]
    arch = to_arch(space, {key: told[key] for key in ("architecture", "channels_scales")})
    population = space.encode([arch])
    assert params(space, population) == told["params"]
    assert macs(space, population) == told["macs_224"]
    assert from_arch(space, arch) == {key: told[key] for key in ("architecture", "channels_scales")}


def test_supernet_has_as_many_parameters_as_the_original():
    net = Supernet(SPACE, device="meta")
    affine = sum(p.numel() for module in net.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters())
    assert sum(p.numel() for p in net.parameters()) - affine == 8_388_176  # its BatchNorm has no weights and biases


def test_logits_of_the_supernet_are_the_originals_in_float64():
    (told,) = FIXTURES["spos_supernet_logits"]
    net = Supernet(SPACE).double().eval()
    state = published_state(net)
    assert set(FIXTURES["spos_keys_example"]) <= set(state)
    assert len(state) == 1337
    load_original(net, state)
    images = torch.tensor(np.random.RandomState(zlib.crc32(b"x")).randn(1, 3, 224, 224))
    arch = to_arch(SPACE, {"architecture": told["path"]})
    with torch.no_grad():
        found = net(images.flip(1), arch)[0, :10]  # ours reads red first
    expected = torch.tensor(told["first10"], dtype=torch.float64)
    assert (found - expected).abs().max() <= 1e-8 * expected.abs().max()  # float64 sums in another order


def test_a_checkpoint_of_one_network_gives_what_the_supernet_has():
    """Retrained networks are saved without the number of the choice."""
    net = load_supernet(published_state(Supernet(SMALL)), SMALL)
    arch = to_arch(SMALL, {"architecture": PUBLISHED})
    alone = SMALL.restrict(arch)
    state = net.extract(arch).state_dict()
    names = {
        theirs: ours.replace("layers.", "").replace(".largest.", ".") for ours, theirs in original_keys(Supernet(alone)).items()
    }
    assert "features.0.branch_main.0.weight" in names
    one = {f"module.{theirs}": state[ours] for theirs, ours in names.items()}
    one["module.first_conv.0.weight"] = one["module.first_conv.0.weight"].flip(1)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_supernet({"state_dict": one}, alone)(images, arch), net(images, arch))


def test_exported_networks_compute_what_pytorch_does():
    space, arch = find_architecture("spos:resolution=64")
    net = load_supernet(published_state(Supernet(space)), space).extract(arch)
    session = open_session(emit(space.blocks(arch), fold(net)), get_device("ort_cpu_1t"))
    assert parity_error(net, session, 64) < 1e-4  # float32 with another order of summation, statistics at random
