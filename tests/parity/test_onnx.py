"""Emitted ONNX graphs against PyTorch, torch's own exporter, and the promise of reproducible bytes."""

import dataclasses
import itertools
import json
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from torch.utils.flop_counter import FlopCounterMode

from deploy.device import get_device
from deploy.emit import emit, input_shape, layer_names, short_names
from deploy.fold import fold
from deploy.parity import parity_error
from deploy.rounded_parity import file_parity_error
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.counts import block_macs, block_params
from ofa.errors import OfaError
from ofa.layers import ACTIVATIONS
from ofa.spaces import get_space, list_elastic_spaces
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate

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


@pytest.mark.parametrize("name", list_elastic_spaces())
def test_onnx_equals_pytorch_for_random_archs(name, random_archs):
    space = get_space(name)
    archs = random_archs(space, 4)
    if name == "enas_micro":  # the deepest is a chain of 340 convolutions, in which float32 itself loses all digits
        archs.remove(space.largest)
    net = settled(space)
    for arch in archs:
        static = net.extract(arch)
        if name.startswith("enas"):  # whose nodes may add a state to itself, again and again
            calibrate(static, [torch.randn(16, 3, space.resolution(arch), space.resolution(arch))])
        content = emit(space.blocks(arch), fold(static))
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        # float32 with another order of summation; random statistics let some 1e-7 of each layer grow to some 1e-5
        assert file_parity_error(static, content, space.resolution(arch)) < 1e-4


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
    for kernel_size, stride in itertools.product((3, 5, 7), (1, 2)):
        for kind in ("relu_conv", "relu_sep", "sep_conv", "dil_conv", "row_column_conv", "avgpool"):
            yield BlockSpec(kind, 8, 8, resolution, kernel_size=kernel_size, stride=stride)
    if resolution % 2 == 0:
        yield BlockSpec("factorized_reduce", 8, 10, resolution, stride=2)
        yield BlockSpec("basic", 8, 16, resolution, kernel_size=3, stride=2, shortcut="pool_conv")
    yield BlockSpec("basic", 8, 8, resolution, kernel_size=3, shortcut="identity")
    yield BlockSpec("norm", 8, 8, resolution, act="relu")
    yield BlockSpec("sum", 8, 8, resolution, num_inputs=3)
    yield BlockSpec("concat", 8, 8, resolution)
    yield BlockSpec("zeros", 8, 8, resolution)
    for (kind, kernel_size), hidden in itertools.product((("shuffle", 3), ("shuffle", 7), ("xception", 3)), (3, 10)):
        yield BlockSpec(kind, 8, 14, resolution, kernel_size=kernel_size, stride=2, hidden_channels=hidden, act="relu")
        for out in (8, 14):
            yield BlockSpec(kind, 8, out, resolution, kernel_size=kernel_size, hidden_channels=hidden, act="relu")
    for padded, (height, width), stride in itertools.product((0, 1, 4), ((1, 7), (5, 3), (3, 1)), (1, 3)):
        yield BlockSpec("pad", 8, 8, resolution, padded=resolution + padded)
        yield BlockSpec("conv", 8, 12, resolution, kernel_size=height, kernel_width=width, stride=stride, act="relu")


@pytest.mark.parametrize("resolution", [6, 7, 8])
def test_every_variant_of_a_block_equals_pytorch_and_its_counts(resolution):
    for spec in variants(resolution):
        images = torch.randn(2, 8, resolution, resolution)
        net, weights = with_random_statistics(build_network({"block": spec}))
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


def operators(content, path):
    """What ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def test_constant_filled_graph_becomes_the_same_operators_as_the_dense_one(tmp_path):
    """What is timed must be what ships."""
    space = get_space("mbv3_tiny_image")
    static = settled(space).extract(space.largest)
    blocks = space.blocks(space.largest)
    assert operators(emit(blocks, fold(static)), tmp_path / "dense") == operators(emit(blocks), tmp_path / "constant")


def scales(content, images):
    """Scale and zero point of every activation: its range on some images, zero included."""
    model = onnx.load_from_string(content)
    names = [node.output[0] for node in model.graph.node if node.output[0] != "logits"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = {"images": images, **dict(zip(names, session.run(names, {"images": images}), strict=True))}
    ranges = {name: (min(0.0, float(x.min())), max(1e-6, float(x.max()))) for name, x in found.items()}
    return {name: ((high - low) / 255, round(-low / (high - low) * 255)) for name, (low, high) in ranges.items()}


# of which ONNX Runtime has no integer kernel, or one of their decomposition; Sub: a node of a cell that has no input
FLOAT_IN_INT8 = {"HardSigmoid", "HardSwish", "Mul", "Sub"}


def test_int8_blocks_of_constants_become_the_same_integer_operators_as_dense_ones(tmp_path):
    heads = [BlockSpec("pool", 8, 8, 7), BlockSpec("linear", 8, 5, 1, bias=True), BlockSpec("linear", 8, 12, 1, act="h_swish")]
    for spec in [*variants(7), *heads]:
        _, weights = with_random_statistics(build_network({"block": spec}))
        images = np.random.default_rng(0).standard_normal((4, *input_shape(spec)), dtype=np.float32)
        known = scales(emit({"block": spec}, weights), images)
        dense = emit({"block": spec}, weights, precision="int8", scales=known)
        onnx.checker.check_model(onnx.load_from_string(dense), full_check=True)
        found = operators(dense, tmp_path / "dense")
        assert found == operators(emit({"block": spec}, precision="int8"), tmp_path / "constant"), spec
        moves = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Flatten", "MaxPool", "NhwcMaxPool", "Pad", "Slice"}
        assert not {op for op in found if not op.startswith("Q")} - moves - FLOAT_IN_INT8, spec


class Once(CalibrationDataReader):
    """One batch, as ONNX Runtime's quantiser takes it."""

    def __init__(self, images):
        self.batches = iter([{"images": images}])

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.parametrize("name", ["mbv3_tiny_image", "resnet_small_image"])
def test_int8_network_is_what_onnxruntimes_quantiser_makes(name, tmp_path):
    """The same integer operators, as near to fp32, as small; and what is timed is what ships."""
    space = get_space(name)
    static, blocks = settled(space).extract(space.smallest), space.blocks(space.smallest)
    side = space.resolution(space.smallest)
    images = np.random.default_rng(0).standard_normal((64, 3, side, side), dtype=np.float32)
    calibrate(static, [torch.from_numpy(images)])
    reference = emit(blocks, fold(static))
    ours = emit(blocks, fold(static), precision="int8", scales=scales(reference, images))
    (tmp_path / "fp32.onnx").write_bytes(reference)
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "theirs.onnx",
        Once(images),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    theirs = (tmp_path / "theirs.onnx").read_bytes()

    dense = operators(ours, tmp_path / "dense")
    assert dense == operators(emit(blocks, precision="int8"), tmp_path / "constant")
    integer = [op for op in dense if op.startswith("Q") and op != "QuantizeLinear"]
    assert integer == [op for op in operators(theirs, tmp_path / "other") if op.startswith("Q") and op != "QuantizeLinear"]
    assert len(ours) < 1.1 * len(theirs)

    expected, found, other = (open_session(content, CPU).run(images) for content in (reference, ours, theirs))
    error, usual = (np.sqrt(((x - expected) ** 2).mean() / (expected**2).mean()) for x in (found, other))
    # each of some 45 tensors is rounded to 1/255 of its range, which is some 2 % of its standard deviation; sqrt(45) * 2 % = 13 %
    assert error < 0.2
    assert error < 1.2 * usual


def test_int8_bias_of_a_channel_without_weights_survives():
    spec = BlockSpec("linear", 4, 3, 1, bias=True)
    weight = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [1e-20, 0, 0, 0]], np.float32)
    weights = {"block.weight": weight, "block.bias": np.array([0.5, 3.0, -2.0], np.float32)}
    content = emit({"block": spec}, weights, precision="int8", scales={"images": (1 / 64, 128)})
    found = open_session(content, CPU).run(np.full((1, 4), 0.5, np.float32))
    np.testing.assert_allclose(found, [[5.5, 3.0, -2.0]], atol=0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "bf16"}, "unknown precision 'bf16'; known: fp32, fp16, int8, a16w8, and a4w4"),
        ({"precision": "a17w8"}, "unknown precision 'a17w8'"),
        ({"precision": "int8", "weights": {"block.weight": np.ones((3, 4), np.float32)}}, "int8 needs the scales of all"),
        ({"layers": {"block": "int8"}}, "layer block: int8 in a network of fp32"),
        ({"precision": "int8", "layers": {"block": "fp16"}}, "layer block: fp16 in a network of int8; leave it in fp32"),
        ({"precision": "int8", "layers": {"blok": "fp32"}}, "layer 'blok' is not one of this network; it has: block"),
        ({"opset": 12}, "opset 12: a file can be written in 13 to"),
        ({"precision": "a16w8", "opset": 17}, "opset 17: activations of more than 8 bits can be written in 21 to"),
        ({"precision": "int8", "layers": {"block": "a16w8"}, "opset": 20}, "opset 20: activations of more than 8 bits"),
        (
            {"precision": "fp16", "weights": {"block.weight": np.full((3, 4), 1e5, np.float32)}},
            "holds 1e[+]05, which fp16 cannot",
        ),
    ],
)
def test_graphs_that_cannot_be_written_are_refused(options, match):
    with pytest.raises(OfaError, match=match):
        emit({"block": BlockSpec("linear", 4, 3, 1)}, **options)


def test_fp16_network_computes_the_same_to_its_precision_and_takes_half():
    for name in ("mbv3_tiny_image", "resnet_small_image"):
        space = get_space(name)
        static, blocks = settled(space).extract(space.smallest), space.blocks(space.smallest)
        whole, half = (emit(blocks, fold(static), precision=precision) for precision in ("fp32", "fp16"))
        assert len(half) < 0.55 * len(whole)
        images = np.random.default_rng(0).standard_normal((3, *input_shape(next(iter(blocks.values())))), dtype=np.float32)
        expected, found = (open_session(content, CPU).run(images) for content in (whole, half))
        # eleven bits a number: 5e-4 in each of some 45 tensors, partly averaged out
        assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


def test_a_layer_in_float_is_the_layer_of_the_float_network():
    """All layers in float but the last: its integers are all that differs; all in float: nothing does."""
    space = get_space("mbv3_tiny_image")
    static, blocks = settled(space).extract(space.smallest), space.blocks(space.smallest)
    images = np.random.default_rng(0).standard_normal((8, *input_shape(next(iter(blocks.values())))), dtype=np.float32)
    reference = emit(blocks, fold(static))
    known, expected = scales(reference, images), open_session(reference, CPU).run(images)

    def error(layers):
        content = emit(blocks, fold(static), precision="int8", scales=known, layers=layers)
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        return np.abs(open_session(content, CPU).run(images) - expected).max() / np.abs(expected).max()

    floats = dict.fromkeys(layer_names(blocks), "fp32")
    spared = {name: "fp32" for name in floats if name != "final"}
    assert error(floats) < error(spared) or error(floats) < 0.02  # what is left are the additions and gates
    assert error(spared) < error({})
    assert error({"final": "fp32"}) != error({})
    assert error(dict.fromkeys(floats, "a16w8")) < error({})


@pytest.mark.parametrize(("bits", "levels"), [("a8w8", 256), ("a4w8", 16), ("a2w8", 4), ("a12w8", 4096)])
def test_activations_take_no_more_values_than_their_bits(bits, levels):
    spec = BlockSpec("linear", 1, 1, 1)
    scale, zero_point = 2.0 / (levels - 1), levels // 2
    content = emit(
        {"block": spec}, {"block.weight": np.ones((1, 1), np.float32)}, precision=bits, scales={"images": (scale, zero_point)}
    )
    found = open_session(content, CPU).run(np.linspace(-2, 2, 20_001, dtype=np.float32).reshape(-1, 1))
    assert len(np.unique(found)) == levels
    assert found.min() == pytest.approx(-zero_point * scale, rel=1e-5)
    assert found.max() == pytest.approx((levels - 1 - zero_point) * scale, rel=1e-5)
    assert 0.0 in found


@pytest.mark.parametrize(("bits", "levels"), [("a8w8", 127), ("a8w4", 7), ("a8w2", 1)])
def test_weights_take_no_more_values_than_their_bits(bits, levels):
    weight = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    blocks = {"block": BlockSpec("linear", 500, 3, 1)}
    content = emit(blocks, {"block.weight": weight}, precision=bits, scales={"images": (1 / 255, 0)})
    found = open_session(content, CPU).run(np.eye(500, dtype=np.float32))  # row i: the weights of input i
    for channel in range(3):
        step = np.abs(weight[channel]).max() / levels
        np.testing.assert_allclose(found[:, channel], np.rint(weight[channel] / step) * step, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 14, 17, 21])
def test_other_opsets_compute_the_same(opset):
    space = get_space("mbv3_tiny_image")
    static, blocks = settled(space).extract(space.smallest), space.blocks(space.smallest)
    content = emit(blocks, fold(static), opset=opset)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    assert model.ir_version <= {13: 7, 14: 7, 17: 8, 21: 10}[opset]
    assert parity_error(static, open_session(content, CPU), space.resolution(space.smallest)) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "a16w8"])
def test_a_space_is_emitted_in_no_time(precision):
    blocks = dataclasses.replace(get_space("ofa_mbv3_w1_0"), resolutions=(128, 176, 224)).all_blocks
    start = time.process_time()
    for spec in blocks:
        emit({"block": spec}, precision=precision)
    assert time.process_time() - start < 1.0  # 0.06 s and 0.2 s where this was written


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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_with_short_names_is_the_same_network(precision):
    space = get_space("mbv3_tiny_image")
    static, blocks = settled(space).extract(space.largest), space.blocks(space.largest)
    images = np.random.default_rng(0).standard_normal((3, *input_shape(next(iter(blocks.values())))), dtype=np.float32)
    known = None if precision == "fp32" else scales(emit(blocks, fold(static)), images)
    content = emit(blocks, fold(static), precision=precision, scales=known, metadata={"ofa.a": "1"})
    short = short_names(content)
    onnx.checker.check_model(onnx.load_from_string(short), full_check=True)
    np.testing.assert_array_equal(open_session(short, CPU).run(images), open_session(content, CPU).run(images))
    before, after = onnx.load_from_string(content), onnx.load_from_string(short)
    assert len(short) < len(content)
    assert after.metadata_props == before.metadata_props
    layers = [[node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")] for model in (before, after)]
    assert layers[0] == layers[1]
    names = [name for node in after.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert short_names(short) == short
