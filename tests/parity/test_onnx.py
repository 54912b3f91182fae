"""Emitted ONNX graphs against PyTorch, torch's own exporter, and the promise of reproducible bytes."""

import dataclasses
import itertools
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deploy.device import get_device
from deploy.emit import emit
from deploy.export import fold, parity_error
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.blocks import ACTIVATIONS, build_chain
from ofa.counts import block_macs, block_params
from ofa.spaces import get_space, list_spaces
from ofa.supernet import Supernet

CPU = get_device("ort_cpu_1t")


def settled(space, seed=0):
    """A supernet with random BatchNorm statistics: folding must matter."""
    torch.manual_seed(seed)
    net = Supernet(space)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running_var" in name or name.endswith("bn.weight"):
                tensor.uniform_(0.5, 1.5)
                if name.endswith("project.bn.weight"):
                    tensor.mul_(0.2)  # or activations grow from block to block until float32 itself is far from float64
            elif "running_mean" in name or name.endswith("bn.bias"):
                tensor.normal_(0, 0.2)
    return net.eval()


@pytest.mark.parametrize("name", list_spaces())
def test_onnx_equals_pytorch_for_random_archs(name, random_archs):
    space = get_space(name)
    net = settled(space)
    for arch in random_archs(space, 4):
        static = net.extract(arch)
        content = emit(space.blocks(arch), fold(static))
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        # float32 with another order of summation; random statistics let some 1e-7 of each layer grow to some 1e-5
        assert parity_error(static, open_session(content, CPU), space.resolution(arch)) < 1e-4


def variants(resolution):
    """Blocks of every kind, activation, stride and shortcut that goes with them."""
    for act, stride in itertools.product(ACTIVATIONS, (1, 2, 3)):
        common = {"kernel_size": 3, "stride": stride, "act": act}
        yield BlockSpec("conv", 8, 16, resolution, **common)
        yield BlockSpec("mbconv", 8, 12, resolution, hidden_channels=24, se=True, **common)
        if stride == 1:
            yield BlockSpec("conv", 8, 8, resolution, shortcut="identity", **common)
            yield BlockSpec("mbconv", 8, 8, resolution, hidden_channels=8, shortcut="identity", **common)
            yield BlockSpec("bottleneck", 8, 8, resolution, hidden_channels=4, shortcut="identity", **common)
        for kind, shortcut in itertools.product(("mbconv", "bottleneck"), ("pool", "pool_conv", "pool_conv_bn")):
            out = 8 if shortcut == "pool" else 16
            yield BlockSpec(kind, 8, out, resolution, hidden_channels=24, shortcut=shortcut, **common)
    yield BlockSpec("maxpool", 8, 8, resolution, kernel_size=3, stride=2)


@pytest.mark.parametrize("resolution", [6, 7, 8])
def test_every_variant_of_a_block_equals_pytorch_and_its_counts(resolution):
    for spec in variants(resolution):
        images = torch.randn(2, 8, resolution, resolution)
        net, weights = with_random_statistics(build_chain({"block": spec}))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            expected = net(images)
        session = open_session(emit({"block": spec}, weights), CPU)
        found = torch.from_numpy(session.run(images.numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=str(spec))
        assert found.shape[-1] == spec.out_resolution, spec
        assert counter.get_total_flops() == 2 * len(images) * block_macs(spec), spec
        assert sum(p.numel() for p in net.parameters()) == block_params(spec), spec


def with_random_statistics(net):
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return net.eval(), fold(net)


def test_emitted_graph_runs_the_same_operators_as_torchs_exporter(tmp_path):
    """After ONNX Runtime's optimisation both files must be the same work: nothing of ours is slower than the usual way."""
    space = get_space("mbv3_tiny_image")
    static = settled(space).extract(space.largest)
    torch.onnx.export(static, (torch.randn(2, 3, 16, 16),), str(tmp_path / "torch.onnx"), dynamo=False, opset_version=17)
    (tmp_path / "ours.onnx").write_bytes(emit(space.blocks(space.largest), fold(static)))

    def optimised(name):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.optimised.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(str(tmp_path / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        ops = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        return {op: ops.count(op) for op in set(ops)}

    ours, theirs = optimised("ours"), optimised("torch")
    assert ours["Conv"] == theirs["Conv"]
    assert sum(ours.values()) <= sum(theirs.values())


def test_constant_filled_graph_becomes_the_same_operators_as_the_dense_one(tmp_path):
    """What is timed must be what ships."""
    space = get_space("mbv3_tiny_image")
    static = settled(space).extract(space.largest)
    blocks = space.blocks(space.largest)
    found = []
    for name, content in (("dense", emit(blocks, fold(static))), ("constant", emit(blocks))):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / name)
        options.log_severity_level = 4
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found.append([node.op_type for node in onnx.load(tmp_path / name).graph.node])
    assert sorted(found[0]) == sorted(found[1])


def test_all_blocks_of_a_space_are_small_and_run():
    space = get_space("mbv3_small_image")
    graphs = [emit({"block": spec}) for spec in space.all_blocks]
    assert sum(map(len, graphs)) < 1_000_000
    for graph, spec in list(zip(graphs, space.all_blocks, strict=True))[:: len(graphs) // 12]:
        shape = (1, spec.in_channels) if spec.kind == "linear" else (1, spec.in_channels, spec.resolution, spec.resolution)
        assert np.isfinite(open_session(graph, CPU).run(np.ones(shape, np.float32))).all()


def test_bytes_and_metadata_are_reproducible():
    space = get_space("mbv3_tiny_image")
    static = settled(space).extract(space.smallest)
    facts = {"ofa.classes": json.dumps(["ä", "b"]), "ofa.a": "1"}
    first, second = (emit(space.blocks(space.smallest), fold(static), metadata=facts) for _ in range(2))
    assert first == second
    session = ort.InferenceSession(first, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == facts


@pytest.mark.parametrize("name", ["ofa_mbv3_w1_0", "ofa_resnet50d", "attentive_nas"])
def test_onnx_equals_pytorch_at_sides_that_strides_do_not_divide(name):
    space = dataclasses.replace(get_space(name), resolutions=(51, 75))  # 75, 38, 19, 10, 5, 3 px
    net = settled(space)
    for arch in space.decode(space.sample(np.random.default_rng(1), 3)):
        static = net.extract(arch)
        session = open_session(emit(space.blocks(arch), fold(static)), CPU)
        assert parity_error(static, session, space.resolution(arch)) < 1e-4
