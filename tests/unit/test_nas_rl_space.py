"""The space of NAS with reinforcement learning: every point is a network, by the paper's three rules."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deploy.device import get_device
from deploy.emit import emit
from deploy.export import export_subnet
from deploy.fold import fold
from deploy.footprint import network_peak
from deploy.model_record import read_blocks
from deploy.parity import parity_error
from deploy.runtimes import open_session
from latency.cost import CountCost, MemoryCost, SizeCost
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.counts import block_macs, block_params
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet

SMALL = "nas_rl_cnn:layers=7,least_depth=3,strides=3,resolution=11"


def random_points(space, n, seed=0):
    return space.decode(space.sample(np.random.default_rng(seed), n))


def randomised(space, arch, seed=0):
    """A network whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    net = build_network(space.blocks(arch), bn_eps=space.bn_eps).eval()
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return net


def by_the_rules(space, arch, net, images):
    """The paper's section 3.3 with the weights of `net`, written from the choices without looking at blocks."""
    value = dict(zip(space.column, arch.values, strict=True))

    def stacked(tensors):
        height = max(t.shape[-1] for t in tensors)
        padded = []
        for t in tensors:
            out = torch.zeros(*t.shape[:2], height, height)
            start = (height - t.shape[-1]) // 2
            out[:, :, start : start + t.shape[-1], start : start + t.shape[-1]] = t
            padded.append(out)
        return torch.cat(padded, 1)

    outputs, read = [], set()
    for i in range(value["depth"]):
        sources = [j for j in range(i) if value[f"layer{i}.from{j}"]]
        read |= set(sources)
        x = stacked([outputs[j] for j in sources]) if sources else images
        height, width = value[f"layer{i}.filter_height"], value[f"layer{i}.filter_width"]
        layer = net.get_submodule(f"layer{i}")
        assert layer.conv.weight.shape == (value[f"layer{i}.filters"], x.shape[1], height, width)
        x = F.conv2d(x, layer.conv.weight, stride=value[f"layer{i}.stride"], padding=(height // 2, width // 2))
        outputs.append(F.relu(layer.bn(x)))
    features = stacked([out for j, out in enumerate(outputs) if j not in read]).mean((2, 3))
    return F.linear(features, net.classifier.linear.weight, net.classifier.linear.bias)


def test_every_random_point_is_the_papers_network_counts_and_exports():
    space = get_space(SMALL)
    device = get_device("ort_cpu_1t")
    images = torch.randn(2, 3, 11, 11)
    for arch in [*random_points(space, 25), space.smallest, space.largest]:
        net, blocks = randomised(space, arch), space.blocks(arch)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = net(images)
        torch.testing.assert_close(logits, by_the_rules(space, arch, net, images), rtol=1e-4, atol=1e-4)
        assert counter.get_total_flops() == 2 * len(images) * sum(map(block_macs, blocks.values()))
        assert sum(p.numel() for p in net.parameters()) == sum(map(block_params, blocks.values()))
        content = emit(blocks, fold(net))
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        assert parity_error(net, open_session(content, device), 11) < 1e-4  # as in tests/parity/test_onnx.py
        open_session(emit(blocks, precision="int8"), device)


def test_the_published_sizes_have_the_papers_choices():
    space = get_space("nas_rl_cnn")
    names = [d.name for d in space.dimensions]
    assert space.dimensions[1].options == (6, 8, 10, 12, 14, 15)
    assert len(names) == 2 + 15 * 4 + 15 * 14 // 2
    assert names[:10] == [
        *("resolution", "depth", "layer0.filter_height", "layer0.filter_width", "layer0.stride", "layer0.filters"),
        *("layer1.filter_height", "layer1.filter_width", "layer1.stride", "layer1.filters"),
    ]
    assert names[10] == "layer1.from0"
    assert get_space("nas_rl_cnn:strides=3,layers=20").dimensions[4].options == (1, 2, 3)
    arch = random_points(space, 1)[0]
    assert list(space.blocks(arch)) == [slot.name for slot in space.slots if slot.name in space.blocks(arch)]


def test_blocks_are_those_that_the_slots_say():
    space = get_space(SMALL)
    for arch in random_points(space, 5):
        found, expected = SearchSpace.blocks(space, arch), space.blocks(arch)
        assert dict(found) == dict(expected)
        assert found.reads == expected.reads


def test_three_layers_are_laid_out_as_drawn_by_hand():
    space = get_space("nas_rl_cnn:layers=3,strides=3,resolution=10")
    chosen = {d.name.replace(".", "__"): d.options[0] for d in space.dimensions}
    arch = space.arch(**chosen | {"layer0__stride": 2, "layer0__filter_height": 3, "layer2__from0": 1, "layer2__from1": 1})
    blocks = space.blocks(arch)
    assert blocks == {
        "layer0": BlockSpec("conv", 3, 24, 10, kernel_size=3, kernel_width=1, stride=2, act="relu"),
        "layer1": BlockSpec("conv", 3, 24, 10, act="relu"),  # reads no layer, so the images
        "layer2_pad0": BlockSpec("pad", 24, 24, 5, padded=10),
        "layer2_concat": BlockSpec("concat", 48, 48, 10),
        "layer2": BlockSpec("conv", 48, 24, 10, act="relu"),
        "pool": BlockSpec("pool", 24, 24, 10),
        "classifier": BlockSpec("linear", 24, 10, 1, bias=True),
    }
    assert blocks.reads["layer2_concat"] == ("layer2_pad0", "layer1")
    alone = space.arch(**chosen | {"layer0__stride": 3})
    assert space.blocks(alone).reads["head_concat"] == ("head_pad0", "layer1", "layer2")


def test_what_deeper_layers_would_do_has_no_effect():
    space = get_space(SMALL)
    population = space.sample(np.random.default_rng(0), 200)
    np.testing.assert_array_equal(population, space.canonical(population))
    for arch in space.decode(population):
        depth = dict(zip(space.column, arch.values, strict=True))["depth"]
        assert f"layer{depth - 1}" in space.blocks(arch)
        assert f"layer{depth}" not in space.blocks(arch)
    small = get_space("nas_rl_cnn:layers=2,least_depth=1")
    assert small.size() == len(small.distinct(small.everything())) == 64 + 64 * 64 * 2


def test_a_space_of_one_network_is_priced_without_tables():
    space = get_space("nas_rl_cnn")
    for arch in random_points(space, 3, seed=1):
        alone, blocks = space.restrict(arch), space.blocks(arch)
        assert CountCost("macs", alone)(arch) == sum(map(block_macs, blocks.values()))
        assert MemoryCost(alone)(arch) == 4 * network_peak(blocks)
        size = len(emit(blocks, fold(randomised(space, arch))))
        # names and the metadata of an export come on top
        assert size < SizeCost(alone)(arch) < 1.02 * size + 10_000
        other = alone.with_num_classes(3)
        assert other.blocks(arch)["classifier"].out_channels == 3
        assert Supernet(other, device="meta").extract(arch).classifier.linear.out_features == 3


def test_a_supernet_of_one_network_is_that_network():
    space = get_space(SMALL)
    images = torch.randn(2, 3, 11, 11)
    for arch in random_points(space, 25, seed=2):  # many: layers padded from different heights to one must not be mixed up
        net = Supernet(space.restrict(arch)).eval()
        torch.testing.assert_close(net.extract(arch)(images), net(images, arch))


def test_what_cannot_be_listed_is_refused_at_once():
    space = get_space("nas_rl_cnn")
    for ask in (lambda: space.all_blocks, lambda: Supernet(space), lambda: CountCost("macs", space)(space.smallest)):
        with pytest.raises(OfaError, match="too many to list"):
            ask()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("layers=0", "layers is 0, expected at least 1"),
        ("layers=65", "65 layers"),
        ("strides=4", "4 strides"),
        ("resolution=1", "resolution is 1"),
        ("cells=3", "has no number 'cells'"),
        ("layers=x", "layers is 'x', expected something like 15"),
    ],
)
def test_numbers_that_no_network_has_are_refused(numbers, message):
    with pytest.raises(OfaError, match=message):
        get_space(f"nas_rl_cnn:{numbers}")


def test_names_of_spaces_are_found_again():
    space = get_space(SMALL)
    assert get_space(space.name) == space
    assert get_space("nas_rl_cnn:layers=15").name == "nas_rl_cnn"
    assert get_space("nas_rl_cnn:layers=4").depths == (4,)
    with pytest.raises(OfaError, match="least_depth is 5, expected at most layers, 4"):
        get_space("nas_rl_cnn:layers=4,least_depth=5")
    assert dataclasses.replace(space, num_classes=3).name == space.name


@pytest.mark.parametrize(
    "damaged",
    [
        {"kind": "pad", "padded": 7},
        {"kind": "pad", "padded": 10**9},
        {"kind": "conv", "kernel_width": -3},
        {"kind": "conv", "kernel_width": 10**9},
    ],
)
def test_records_of_blocks_that_cannot_be_built_are_refused(damaged):
    fields = BlockSpec("conv", 8, 8, 8).to_dict()
    read_blocks({"block": fields | {"kind": "pad", "padded": 9}}, Path("model.json"))
    with pytest.raises(ArtefactError, match="no block that can be built"):
        read_blocks({"block": fields | damaged}, Path("model.json"))


def test_an_architecture_is_trained_and_exported_like_any_other(tmp_path):
    space = get_space("nas_rl_cnn:layers=3,strides=2,resolution=8")
    arch = random_points(space, 1, seed=4)[0]
    run = train_supernet(
        space.name, "digits", tmp_path / "run", arch=arch, config=TrainConfig(epochs=2, batch_size=128, warmup=0.0)
    )
    assert Run(run.path).space.largest == arch
    assert isinstance(arch, ArchConfig)
    bundle = tmp_path / "out"
    export_subnet(tmp_path / "run", bundle)
    assert json.loads((bundle / "model.json").read_text())["parity_error"] < 1e-4
