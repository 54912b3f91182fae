"""fp16 and integers of graphs that no space describes."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from deploy.convert import ConversionError, to_fp16, to_int8
from deploy.device import get_device
from deploy.emit import emit
from deploy.runtimes import open_session
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec

SIDE = 12
BLOCKS = {
    "stem": BlockSpec("conv", 3, 8, SIDE, kernel_size=3, act="h_swish"),
    "block": BlockSpec("mbconv", 8, 8, SIDE, kernel_size=3, hidden_channels=16, act="h_swish", se=True, shortcut="identity"),
    "pool": BlockSpec("pool", 8, 8, SIDE),
    "classifier": BlockSpec("linear", 8, 10, 1, bias=True),
}
SHAPES = {
    "stem": (8, 3, 3, 3),
    "block.expand": (16, 8, 1, 1),
    "block.depthwise": (16, 1, 3, 3),
    "block.se.reduce": (8, 16, 1, 1),
    "block.se.expand": (16, 8, 1, 1),
    "block.project": (8, 16, 1, 1),
    "classifier": (10, 8),
}


def fp32_file(opset=17):
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in SHAPES.items():
        weights[f"{name}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    return emit(BLOCKS, weights, opset=opset, metadata={"ofa.classes": "[]"})


def batches(count=3):
    return [np.random.default_rng(i).standard_normal((8, 3, SIDE, SIDE), dtype=np.float32) for i in range(count)]


def run(content):
    return open_session(content, get_device("ort_cpu_1t")).run(batches(9)[8])


def noise_db(found, expected):
    return 10 * np.log10(((found - expected) ** 2).sum() / (expected**2).sum())


def checked(content):
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"ofa.classes": "[]"}
    assert (model.producer_name, model.producer_version) == ("ofa-toolkit", "")
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    return model


def test_fp16_halves_the_file_and_keeps_float32_at_its_ends():
    content = fp32_file()
    half = to_fp16(content)
    model = checked(half)
    stored = Counter(tensor.data_type for tensor in model.graph.initializer)
    assert stored.keys() == {TensorProto.FLOAT16}
    weights = [sum(len(t.raw_data) for t in onnx.load_from_string(c).graph.initializer) for c in (content, half)]
    assert weights[1] == weights[0] / 2
    assert noise_db(run(half), run(content)) < -50
    assert half == to_fp16(content)


def test_fp16_refuses_what_it_cannot_hold():
    model = onnx.load_from_string(fp32_file())
    tensor = next(t for t in model.graph.initializer if t.name == "stem.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.full(8, 7e4, np.float32), "stem.bias"))
    with pytest.raises(ConversionError, match=r"stem\.bias holds 7e\+04, fp16 ends at 65504; keep the file in fp32"):
        to_fp16(model.SerializeToString())


def test_int8_rounds_every_layer_but_the_logits(tmp_path):
    content = fp32_file()
    rounded = to_int8(content, batches())
    model = checked(rounded)
    grids = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    makers = {node.output[0]: node for node in model.graph.node}
    for layer in layers:
        weight = makers[layer.input[1]]
        values, scale, zero_point = (numpy_helper.to_array(grids[name]) for name in weight.input)
        assert (weight.op_type, values.dtype, len(scale)) == ("DequantizeLinear", np.int8, len(values))  # one for each channel
        assert not zero_point.any()
        activation = makers[layer.input[0]]
        assert numpy_helper.to_array(grids[activation.input[2]]).dtype == np.uint8
    assert makers["logits"].op_type in ("Gemm", "Identity")
    fused = operators(rounded, tmp_path)
    assert (fused["QLinearConv"], fused["QGemm"]) == (6, 1)
    assert noise_db(run(rounded), run(content)) < -20
    assert rounded == to_int8(content, iter(batches()))


def operators(content, folder):
    """What ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_nodes_that_are_excluded_stay_float(tmp_path):
    found = operators(to_int8(fp32_file(), batches(), exclude=["stem.conv", "classifier.gemm"]), tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["Gemm"]) == (5, 0, 1)


def test_activations_of_16_bits_have_steps_257_times_as_fine():
    content = fp32_file(opset=21)
    eight, sixteen = (checked(to_int8(content, batches(), activation_bits=bits)) for bits in (8, 16))
    assert [(entry.domain, entry.version) for entry in sixteen.opset_import] == [("", 21)]
    coarse, fine = activation_steps(eight), activation_steps(sixteen)
    assert fine.keys() == coarse.keys()
    for name, (step, kind) in fine.items():
        assert kind == np.uint16
        assert coarse[name][0] == pytest.approx(257 * step, rel=1e-5)
    assert noise_db(run(sixteen.SerializeToString()), run(content)) < -40


def activation_steps(model):
    """Scale and integer type of every tensor that is quantised, by its name."""
    grids = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node.input for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {x: (float(grids[scale]), grids[zero_point].dtype) for x, scale, zero_point in pairs}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "no images to calibrate with, expected at least one batch"),
        ({"batches": [np.zeros((2, 3, 5, 5), np.float32)]}, "ONNX Runtime cannot quantise this file"),
        ({"exclude": ["stem"]}, "node 'stem', which is to stay float, is not in this file; expected names of its nodes"),
        ({"activation_bits": 16}, "activations of 16 bits need opset 21, this file has 17"),
        ({"activation_bits": 4}, "activations of 4 bits are not to be had here, expected 8 or 16"),
    ],
)
def test_what_cannot_be_quantised_is_refused_in_one_line(options, message, capfd):
    with pytest.raises(ConversionError, match=message) as caught:
        to_int8(fp32_file(), **{"batches": batches(), **options})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_images_stays_what_it_is():
    def failing():
        yield batches()[0]
        raise ArtefactError("images/7.png: not an image")

    with pytest.raises(ArtefactError, match=r"images/7\.png: not an image"):
        to_int8(fp32_file(), failing())


@pytest.mark.parametrize("convert", [to_fp16, lambda content: to_int8(content, batches())])
def test_only_fp32_files_are_converted(convert):
    with pytest.raises(ConversionError, match="this file is quantised already, expected an fp32 one"):
        convert(to_int8(fp32_file(), batches()))
    with pytest.raises(ConversionError, match="this file is fp16 already, expected an fp32 one"):
        convert(to_fp16(fp32_file()))
    with pytest.raises(ArtefactError, match="not an ONNX file"):
        convert(b"\xff" * 100)
    model = onnx.load_from_string(fp32_file())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ArtefactError, match="outside the file"):
        convert(model.SerializeToString())


def test_converting_says_nothing_and_leaves_nothing(capfd, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    to_fp16(fp32_file())
    to_int8(fp32_file(), batches())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_another_process_writes_the_same_bytes():
    """The quantiser walks through sets, whose order hangs on the process."""
    program = (
        "import runpy, hashlib; t = runpy.run_path('tests/unit/test_convert.py');"
        "print(hashlib.sha256(t['to_int8'](t['fp32_file'](), t['batches']())).hexdigest())"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment, timeout=120)
    assert done.stdout.strip() == hashlib.sha256(to_int8(fp32_file(), batches())).hexdigest(), done.stderr
