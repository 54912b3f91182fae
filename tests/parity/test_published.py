"""Published supernets, number by number: logits, gradients, calibration, channel sorting, parameters and MACs.

The references were computed in float64 with the original code on weights that a rule fills by key (fill.py). Some of them are in
published/; all of those in ../shared/parity are used where that folder is.
"""

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.counts import macs, params
from ofa.formats import attentive_nas, mit_ofa
from ofa.formats.published import canonical, canonical_names
from ofa.sorting import sort_channels
from ofa.training.calibration import calibrate

SPACES = {
    "ofa_mbv3_d234_e346_k357_w1.0": "ofa_mbv3_w1_0",
    "ofa_mbv3_d234_e346_k357_w1.2": "ofa_mbv3_w1_2",
    "ofa_proxyless_d234_e346_k357_w1.3": "ofa_proxyless_w1_3",
    "ofa_resnet50": "ofa_resnet50d",
    "attentive_nas": "attentive_nas",
}
HERE = Path(__file__).parent / "published"
SHARED = Path(__file__).parents[2].parent / "shared" / "parity"
TOLERANCE = 1e-4  # of the largest logits: sums of float32 in another order; the original's own float32 is off by up to 1.2e-5

spec = importlib.util.spec_from_file_location("fill", HERE / "fill.py")
fill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fill)


def read_cases(net):
    paths = [HERE / f"cases_{net}.json", *sorted(SHARED.glob(f"*_{net}.json"))]
    found = {}
    for path in paths:
        for case in json.loads(path.read_text()).get("cases", []):
            found.setdefault((case["index"], str(case["arch"])), case)
    return [found[key] for key in sorted(found)]


CASES = [pytest.param(net, case, id=f"{net}-{case['index']}") for net in SPACES for case in read_cases(net)]


def having(key):
    return [case for case in CASES if key in case.values[1]]


@lru_cache(maxsize=1)  # cases come net by net
def state_of(net):
    keys = json.loads(gzip.decompress((HERE / f"keys_{net}.json.gz").read_bytes()))["keys"]
    return fill.fill_state(keys)


def fresh(net):
    module = attentive_nas if net == "attentive_nas" else mit_ofa
    return module.load_supernet(state_of(net), SPACES[net]), module


filled = lru_cache(maxsize=1)(fresh)


def set_up(net, case, load=filled):
    supernet, module = load(net)
    arch = module.to_arch(supernet.space, case["arch"], resolution=case["resolution"])
    images = torch.from_numpy(fill.make_input(net, case["index"], case["resolution"]))
    return supernet.eval(), arch, images


def deviation(logits, reference):
    """Largest difference of logits and of their norms, relative to three times their root mean square."""
    norms = np.array(reference["l2"])
    scale = 3 * norms / np.sqrt(logits.shape[1])
    of_logits = np.abs(logits[:, :8].numpy() - np.array(reference["logits8"])).max(1) / scale
    of_norms = np.abs(np.linalg.norm(logits.double().numpy(), axis=1) / norms - 1)
    return max(of_logits.max(), of_norms.max())


def assert_equal(logits, reference):
    assert deviation(logits, reference) < TOLERANCE
    assert logits.argmax(1).tolist() == reference["argmax"]


@pytest.mark.parametrize(("net", "case"), CASES)
def test_logits_params_and_macs_of_supernet_and_subnet(net, case):
    supernet, arch, images = set_up(net, case)
    with torch.no_grad():
        logits, subnet = supernet(images, arch), supernet.extract(arch)
        assert_equal(logits, case)
        assert torch.equal(subnet(images), logits)
    population = supernet.space.encode([arch])
    expected = case.get("params_without_dead_identity_shortcuts", case["params"])
    assert params(supernet.space, population)[0] == sum(p.numel() for p in subnet.parameters()) == expected
    assert macs(supernet.space, population)[0] == case["macs"]


@pytest.mark.parametrize(("net", "case"), having("train_step"))
def test_loss_and_gradients_of_a_training_step(net, case):
    supernet, arch, images = set_up(net, case, load=fresh)
    reference = case["train_step"]
    supernet.double().train()  # float32 gradients through BatchNorm of two images are off by up to 0.2 %
    labels = torch.from_numpy(fill.make_labels(net, case["index"]))
    loss = F.cross_entropy(supernet(images.double(), arch), labels, label_smoothing=reference["label_smoothing"])
    loss.backward()
    assert loss.item() == pytest.approx(reference["loss"], rel=1e-7)
    names = {theirs: ours for ours, theirs in canonical_names(supernet).items()}
    for key, norm in reference["grad_l2"].items():
        gradient = supernet.get_parameter(names[canonical(key)]).grad
        if norm is None:
            assert gradient is None, key
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-6), key
    total = torch.stack([p.grad.norm() for p in supernet.parameters() if p.grad is not None]).norm()
    assert total.item() == pytest.approx(reference["grad_l2_total"], rel=1e-6)


@pytest.mark.parametrize(("net", "case"), having("bn_recalibrated"))
def test_recalibrated_batchnorm(net, case):
    supernet, arch, images = set_up(net, case)
    subnet = supernet.extract(arch)
    sizes = case["bn_recalibrated"]["calib_batches"]
    batches = [fill.make_input(f"{net}:calib", 100 + j, case["resolution"], size) for j, size in enumerate(sizes)]
    calibrate(subnet, [torch.from_numpy(batch) for batch in batches])
    with torch.no_grad():
        assert_equal(subnet(images), case["bn_recalibrated"])


@pytest.mark.parametrize(("net", "case"), having("reorganized"))
def test_sorted_channels(net, case):
    for name, reference in case["reorganized"].items():
        supernet, arch, images = set_up(net, case, load=fresh)
        with torch.no_grad():
            largest = supernet(images, supernet.space.largest) if name.endswith("0") else None
            sort_channels(supernet, num_trained=int(name.rpartition("=")[2]))
            assert_equal(supernet(images, arch), reference)
            if largest is not None:  # a sum in another order
                torch.testing.assert_close(
                    supernet(images, supernet.space.largest), largest, rtol=0, atol=1e-4 * largest.abs().max()
                )


@pytest.mark.parametrize(("net", "case"), having("train_mode_logits8"))
def test_logits_in_training_mode(net, case):
    supernet, arch, images = set_up(net, case, load=fresh)
    with torch.no_grad():
        logits = supernet.train()(images, arch)
    reference = np.array(case["train_mode_logits8"])
    assert np.abs(logits[:, :8].numpy() - reference).max() < TOLERANCE * logits.abs().max()


def test_all_published_cases_were_there():
    if not SHARED.exists():
        pytest.skip("../shared/parity is not here: only the cases in published/ were run")
    assert len(CASES) >= 30
