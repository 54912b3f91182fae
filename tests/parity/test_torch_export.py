"""Networks of anybody through torch's exporter, against PyTorch and against our own emitter."""

import logging
import sys
import threading
import warnings
from collections import Counter

import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.parity import parity_error, random_images, relative_error
from deploy.runtimes import open_session
from deploy.torch_export import TorchExportError, onnx_of_module
from ofa.counts import block_params
from ofa.errors import OfaError
from ofa.formats.torchvision import load_network
from ofa.slots import se_channels
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate

CPU = get_device("ort_cpu_1t")
SIDE = 32


def settled(net, side=SIDE):
    """Statistics of random images: with those of a fresh network float32 itself drifts from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    calibrate(net, [torch.randn(16, 3, side, side, generator=generator) for _ in range(2)])
    return net.eval()


class FactorizedReduce(nn.Module):
    """Halve the sides by two shifted 1x1 convolutions, joined before one BatchNorm (Liu et al. 2019, DARTS)."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = F.relu(x)
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


class Separable(nn.Sequential):
    def __init__(self, channels, kernel, stride):
        def depthwise(stride):
            conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
            return [nn.ReLU(), conv, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False)]

        super().__init__(*depthwise(stride), *depthwise(1))


class Cell(nn.Module):
    """A reduction cell of DARTS: pooling with BatchNorm, separable convolutions, two skips that reduce."""

    def __init__(self, width_before, width, channels):
        super().__init__()
        self.before = FactorizedReduce(width_before, channels)
        self.now = nn.Sequential(nn.ReLU(), nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(channels, affine=False))
        self.mean = nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.BatchNorm2d(channels, affine=False))
        self.separable = Separable(channels, 3, 2)
        self.skip = FactorizedReduce(channels, channels)

    def forward(self, before, now):
        before, now = self.before(before), self.now(now)
        first = self.pool(now) + F.avg_pool2d(before, 2)
        second = self.separable(now) + self.mean(now)
        return torch.cat([first, second, self.skip(now)], 1)


class CellNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.down = FactorizedReduce(12, 12)
        self.cell = Cell(12, 12, 8)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x):
        before = self.stem(self.norm(x))
        now = self.down(before)
        x = self.cell(before, now)
        return self.classifier(x.mean((2, 3)).view(x.size(0), -1))


NETS = {
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 1e-5),
    "resnet18": (torchvision.models.resnet18, 1e-4),
    "cells": (CellNet, 1e-4),
}


def make(name):
    torch.manual_seed(0)
    return settled(NETS[name][0]())


def operators(content):
    return Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


@pytest.mark.parametrize("name", NETS)
def test_networks_compute_what_pytorch_computes(name):
    net = make(name)
    content = onnx_of_module(net, (3, SIDE, SIDE))
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert parity_error(net, open_session(content, CPU), SIDE) < NETS[name][1]  # batches of 1, 3 and 8
    assert not operators(content).keys() & {"BatchNormalization", "Identity", "Constant"}
    assert content == onnx_of_module(net, (3, SIDE, SIDE))


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (17, 8), (20, 9), (21, 10)])
def test_the_opset_is_the_one_asked_for_with_the_oldest_ir_version_that_goes_with_it(opset, ir_version):
    net = make("mobilenet_v3_small")
    content = onnx_of_module(net, (3, SIDE, SIDE), opset=opset)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == ir_version
    assert parity_error(net, open_session(content, CPU), SIDE) < 1e-5
    assert operators(content)["HardSwish"] == (19 if opset >= 14 else 0)


def test_norms_leave_no_trace_where_layers_can_take_them():
    """The two after pools and the one before a padded convolution cannot be folded."""
    found = operators(onnx_of_module(make("cells"), (3, SIDE, SIDE)))
    assert found["Mul"] == 3
    assert found["Conv"] == 12


def test_the_file_says_nothing_but_the_network():
    facts = {"ofa.classes": "[]", "ofa.a": "ä"}
    content = onnx_of_module(make("cells"), (3, SIDE, SIDE), metadata=facts)
    model = onnx.load_from_string(content)
    assert {entry.key: entry.value for entry in model.metadata_props} == facts
    assert (model.producer_name, model.producer_version, model.doc_string, model.graph.name) == ("ofa-toolkit", "", "", "ofa")
    assert not model.graph.value_info
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert b".py" not in content
    (images,), (logits,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (images, logits)]
    assert (images.name, logits.name, shapes) == ("images", "logits", [["batch", 3, SIDE, SIDE], ["batch", 10]])


def test_the_network_is_left_as_it_was_and_the_exporter_says_nothing(capfd, caplog):
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = CellNet()

        def forward(self, x):
            print("shape", x.shape)
            print("shape", file=sys.stderr)
            logging.warning("shape")
            if x.shape[1] != 3:  # of which tracing warns
                raise ValueError
            return self.net(x)

    net = Loud().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx_of_module(net, (3, SIDE, SIDE))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    logging.warning("heard again")
    assert caplog.records


def test_half_precision_weights_are_exported_as_float32():
    net = make("cells")
    content = onnx_of_module(net.half(), (3, SIDE, SIDE))
    assert parity_error(net.float(), open_session(content, CPU), SIDE) < 1e-4


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Function(lambda a, b: a + b), {}, r"does not run on images \(2, 3, 32, 32\) .*; expected a network of one tensor"),
        (Function(lambda x: (x, x)), {}, "returns a tuple, expected one tensor; wrap it in a module that picks one"),
        (Function(lambda x: x.argmax(1)), {}, r"returns int64 \(2, 32, 32\) for 2 images, expected one row of floating point"),
        (Function(lambda x: x.sum()), {}, r"returns float32 \(\) for 2 images, expected one row"),
        (Function(lambda x: torch.linalg.svd(x)[1]), {}, "torchscript exporter cannot write Function with opset 17 .*linalg_svd"),
        (nn.Identity(), {"opset": 99}, "torchscript exporter cannot write Identity with opset 99"),
        (nn.Identity(), {"opset": 12}, "opset 12 is not one that the torchscript exporter writes, expected 13 or later"),
        (nn.Identity(), {"opset": 17, "exporter": "dynamo"}, "expected 18 or later; the torchscript exporter writes older ones"),
        (nn.Identity(), {"exporter": "onnx"}, "exporter 'onnx' is not known, expected one of: torchscript, dynamo"),
        (nn.Conv2d(4, 8, 3), {}, "Conv2d does not run on images"),
        (Locked(), {}, "Locked cannot be copied"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(net, options, message, capfd):
    with pytest.raises(TorchExportError, match=message) as caught:
        onnx_of_module(net, (3, SIDE, SIDE), **options)
    assert isinstance(caught.value, OfaError)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_dynamo_without_its_library_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TorchExportError, match="needs onnxscript, which is not installed: pip install"):
        onnx_of_module(nn.Identity(), (3, SIDE, SIDE), opset=18, exporter="dynamo")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.reduce = FactorizedReduce(8, 8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(self.reduce(F.hardswish(self.bn(self.conv(x)))).mean((2, 3)))


def test_the_dynamo_exporter_writes_the_same_network(capfd):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = settled(Small())
    content, traced = (onnx_of_module(net, (3, SIDE, SIDE), opset=18, exporter=name) for name in ("dynamo", "torchscript"))
    assert capfd.readouterr() == ("", "")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert onnx.load_from_string(content).ir_version == 8
    assert b".py" not in content
    assert parity_error(net, open_session(content, CPU), SIDE) < 1e-5
    shared = ("Conv", "Gemm", "HardSwish", "BatchNormalization", "Mul")
    assert [operators(content)[op] for op in shared] == [operators(traced)[op] for op in shared] == [3, 1, 1, 0, 0]
    for images in random_images(SIDE):
        assert relative_error(open_session(content, CPU).run(images), open_session(traced, CPU).run(images)) < 1e-5


def optimised(content, path):
    """The layers that ONNX Runtime makes of a file, each with the activation that was fused into it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    layers = [
        node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "HardSwish")
    ]
    return Counter((node.op_type, *(a.s for a in node.attribute if a.name == "activation")) for node in layers)


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_both_doors_agree(which, tmp_path):
    space = get_space("mbv3_tiny_image")
    arch = getattr(space, which)
    side = space.resolution(arch)
    torch.manual_seed(0)
    net = settled(Supernet(space).extract(arch), side)
    emitted, exported = emit(space.blocks(arch), fold(net)), onnx_of_module(net, (3, side, side))
    for images in random_images(side):
        found, expected = (open_session(content, CPU).run(images) for content in (exported, emitted))
        assert relative_error(found, expected) < 1e-5
    assert optimised(exported, tmp_path / "exported") == optimised(emitted, tmp_path / "emitted")


def test_torchvisions_mobilenet_v3_large_is_a_network_of_our_blocks():
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_large()
    settled(net, 64)  # the statistics hang little on the size, and this is a twelfth of the time
    space = get_space("mobilenet_v3_large")
    blocks = space.blocks(space.largest)
    squeezed = [module.fc1.out_channels for module in net.modules() if isinstance(module, torchvision.ops.SqueezeExcitation)]
    assert squeezed == [se_channels(spec) for spec in blocks.values() if spec.se]
    chain = load_network(net.state_dict(), space)
    content = emit(blocks, fold(chain))
    assert sum(map(block_params, blocks.values())) == sum(p.numel() for p in net.parameters())
    images = random_images(224)[1]
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    assert relative_error(open_session(content, CPU).run(images), expected) < 1e-5
