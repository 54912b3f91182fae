"""The search network of DARTS against the original code, in float64: logits, gradients of alphas, derived cells, sizes."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ofa.formats.darts_search import load_original, original_keys
from ofa.mixed import MixedNetwork
from search.joint.architect import first_order, momentum_buffers, second_order, second_order_exact
from search.joint.derive import derive, derive_cyclic

PATH = Path(__file__).parents[2].parent / "shared" / "parity" / "cells_public.json"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="figures of the original code are not here")
FIXTURES = json.loads(PATH.read_text()) if PATH.exists() else {"search_logits": [], "architect": []}
DIRECT = 1e-8  # relative: float64 sums in another order
DIFFERENCE = 1e-6  # relative: finite differences divide such errors by 2R = 0.005


def drawn(key):
    return np.random.RandomState(zlib.crc32(key.encode()))


def alphas_of(case):
    scale, tag = case["alpha_scale"], case["tag"]
    return [torch.tensor(scale * drawn(f"alphas_{kind}:{tag}").randn(14, 8), requires_grad=True) for kind in ("normal", "reduce")]


def batch_of(case, x="x", y="y"):
    images = drawn(x).randn(case["batch"], 3, case["size"], case["size"])
    return torch.tensor(images), torch.tensor(drawn(y).randint(0, 10, size=case["batch"]))


def filled(case):
    net = MixedNetwork(10, cells=case["layers"], channels=case["C"]).double()
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    state = {}
    for key, parts in original_keys(net).items():
        rows, *rest = shapes[key]
        state |= {part: fill(part, (rows // len(parts), *rest)) for part in parts}
    load_original(net, state)
    return net


def fill(key, shape):
    r = drawn(key)
    if key.endswith("running_mean"):
        value = 0.1 * r.randn(*shape)
    elif key.endswith("running_var"):
        value = 0.5 + r.rand(*shape)
    elif len(shape) >= 2:
        value = r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = 1 + 0.1 * r.randn(*shape)
    else:
        value = 0.1 * r.randn(*shape)
    return torch.tensor(value)


def loss_of(net, alphas, batch):
    return F.cross_entropy(net(batch[0], *(a.softmax(1) for a in alphas)), batch[1])


def close(ours, theirs, tolerance):
    theirs = torch.as_tensor(theirs, dtype=torch.float64).reshape(ours.shape)
    assert torch.linalg.vector_norm(ours - theirs) <= tolerance * torch.linalg.vector_norm(theirs)


def ids(cases):
    return [pytest.param(case, id=f"C{case['C']}-{case['tag']}") for case in cases]


@pytest.mark.parametrize("case", ids(FIXTURES["search_logits"]))
def test_logits_and_first_order_gradients_equal_the_original(case):
    net, alphas, batch = filled(case), alphas_of(case), batch_of(case)
    assert sum(p.numel() for p in net.parameters()) == case["n_params"]
    with torch.no_grad():
        logits = net.eval()(batch[0], *(a.softmax(1) for a in alphas))
    close(logits, case["logits_eval"], DIRECT)
    net.train()
    with torch.no_grad():
        close(net(batch[0], *(a.softmax(1) for a in alphas)), case["logits_train"], DIRECT)
    loss, gradients = first_order(lambda: loss_of(net, alphas, batch), alphas)
    close(loss, case["loss_train"], DIRECT)
    close(gradients[0], case["first_order_grad_normal"], DIRECT)
    close(gradients[1], case["first_order_grad_reduce"], DIRECT)
    cells = derive(*(a.softmax(1) for a in alphas))
    assert [[*edge] for node in cells.normal for edge in node] == case["genotype"]["normal"]
    assert [[*edge] for node in cells.reduce for edge in node] == case["genotype"]["reduce"]


@pytest.mark.parametrize("case", ids(FIXTURES["search_logits"]))
def test_running_statistics_equal_the_original_after_one_pass(case):
    net = filled(case).train()
    with torch.no_grad():
        net(batch_of(case)[0], *(a.softmax(1) for a in alphas_of(case)))
    (key,) = (ours for ours, theirs in original_keys(net).items() if theirs == ["cells.0.preprocess0.op.2.running_mean"])
    close(net.state_dict()[key][:4], case["running_mean_after_one_train_fwd_cells0_preproc0_first4"], DIRECT)


@pytest.mark.parametrize("name", ["SEARCH_C4_L3", "SEARCH_C16_L8"])
def test_tensors_are_as_many_as_the_originals(name):
    told = FIXTURES["search_networks"][name]
    channels, cells = (int(part[1:]) for part in name.split("_")[1:])
    net = MixedNetwork(10, cells=cells, channels=channels)
    theirs = [part for parts in original_keys(net).values() for part in parts]
    counters = sum(part.endswith("running_mean") for part in theirs)  # BatchNorm's counts of batches, which are read by nobody
    assert len(set(theirs)) == len(theirs)
    assert len(theirs) + counters == told["state_dict_keys"]
    assert sum("running" not in part for part in theirs) == told["named_parameters"]
    assert sum(p.numel() for p in net.parameters()) == told["params_weights"]


@pytest.mark.parametrize("case", ids(FIXTURES["architect"]))
def test_architect_steps_equal_the_original(case):
    net, alphas = filled(case), alphas_of(case)
    weights = list(net.parameters())
    losses = [lambda: loss_of(net, alphas, batch_of(case, "xt", "yt")), lambda: loss_of(net, alphas, batch_of(case, "xv", "yv"))]
    check(first_order(losses[1], alphas).gradients, alphas, case["first"], DIRECT)
    optimizer = torch.optim.SGD(weights, lr=case["eta"], momentum=case["momentum"])
    before = [weight.detach().clone() for weight in weights]
    step = {
        "eta": case["eta"],
        "momentum": case["momentum"],
        "weight_decay": case["weight_decay"],
        "buffers": momentum_buffers(optimizer, weights),
    }
    second = second_order(*losses, weights, alphas, **step)
    close(second.loss, case["unrolled_val_loss"], DIRECT)
    check(second.gradients, alphas, case["second"], DIFFERENCE)
    exact = second_order_exact(*losses, weights, alphas, **step)
    for kind, gradient in zip(("normal", "reduce"), exact.gradients, strict=True):
        product = np.array(case[f"implicit_exact_{kind}"])
        close(gradient, np.array(case[f"direct_grad_{kind}"]) - case["eta"] * product, DIRECT)
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, before, strict=True))


def check(gradients, alphas, expected, tolerance):
    copies = [alpha.detach().clone().requires_grad_() for alpha in alphas]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient
    torch.optim.Adam(copies, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3).step()
    for kind, copy, gradient in zip(("normal", "reduce"), copies, gradients, strict=True):
        close(gradient, expected[f"grad_{kind}"], tolerance)
        close(copy.detach(), expected[f"alpha_{kind}_after_adam"], tolerance)


def test_cyclic_derivation_equals_the_original():
    for case in FIXTURES["cdarts_derive"]["cases"]:
        nodes = [torch.tensor(drawn(f"cdarts_alpha{i}:{case['tag']}").randn(i + 2, 8)).softmax(1) for i in range(4)]
        betas = [torch.tensor(drawn(f"cdarts_beta{i}:{case['tag']}").randn(i + 2)).softmax(0) for i in range(4)]
        edges = betas if case["use_beta"] else None
        cells = derive_cyclic(nodes, nodes, normal_edges=edges, reduce_edges=edges)
        assert [[[*edge] for edge in node] for node in cells.normal] == case["gene"]


def test_sizes_equal_the_original():
    expected = FIXTURES["search_networks"]
    for name, net in (("SEARCH_C16_L8", MixedNetwork(10)), ("SEARCH_C4_L3", MixedNetwork(10, cells=3, channels=4))):
        assert sum(p.numel() for p in net.parameters()) == expected[name]["params_weights"]
