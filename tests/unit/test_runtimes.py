"""Devices and the runtimes behind them: settings, refusals, equal results, and the clock that may time them."""

import dataclasses
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from deploy.device import DeviceError, DeviceSpec, get_device, list_devices, make_device
from deploy.emit import emit, input_shape
from deploy.fold import fold
from deploy.runtimes import ModelError, list_runtimes, open_session, runtime_version
from deploy.runtimes.onnxruntime import session_options
from deploy.timing import clock_of, visit
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network, init_weights
from ofa.spaces import get_space

SPACES = {
    "mbv3_tiny_image": get_space("mbv3_tiny_image"),
    "resnet_small_image": get_space("resnet_small_image"),
    "attentive_nas": dataclasses.replace(get_space("attentive_nas"), resolutions=(51,)),  # swish, pools around odd sides
}
BLOCK = BlockSpec("conv", 8, 16, 12, kernel_size=3, act="relu")


def device(**fields):
    return DeviceSpec.model_validate({"name": "d", "runtime": "onnxruntime", **fields})


def usable(name):
    """A shipped device; the test is skipped where its package or its processor is missing."""
    found = get_device(name)
    if found.runtime == "openvino":
        ov = pytest.importorskip("openvino", reason="optional package openvino is not installed")
        if found.precision.upper() not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip(f"this processor has no {found.precision}")
    return found


def network(space, seed=0):
    """Blocks and folded weights of a random subnet with random BatchNorm statistics."""
    torch.manual_seed(seed)
    (arch,) = space.decode(space.sample(np.random.default_rng(seed), 1))
    net = build_network(space.blocks(arch), bn_eps=space.bn_eps)
    init_weights(net)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running_var" in name or name.endswith("bn.weight"):
                tensor.uniform_(0.5, 1.5)
                if name.endswith(("project.bn.weight", "expand.bn.weight")) and "shortcut" not in name:
                    tensor.mul_(0.5)  # or activations grow from block to block until float32 itself is far from float64
    return space.blocks(arch), fold(net)


def images_for(blocks, batch=1):
    shape = (batch, *input_shape(next(iter(blocks.values()))))
    return np.random.default_rng(batch).standard_normal(shape, dtype=np.float32)


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_devices())
def test_every_shipped_device_runs_graphs_of_its_precision(name):
    spec = usable(name)
    blocks = {"stem": BLOCK}
    session = open_session(emit(blocks, precision=spec.graph_precision), spec)
    assert session.run(images_for(blocks, 2)).shape == (2, 16, 12, 12)
    assert visit(session.prepare(images_for(blocks)), warm_up=0, runs=1)[0][1] > 0
    assert runtime_version(spec.runtime)[0].isdigit()


def test_device_of_an_earlier_model_json_loads(tmp_path):
    fields = {"name": "old", "description": "", "runtime": "onnxruntime", "provider": "CPUExecutionProvider"}
    old = make_device({**fields, "num_threads": 2, "batch_size": 1}, tmp_path / "model.json")
    assert (old.precision, old.optimization, old.provider_options) == ("fp32", "all", {})
    assert make_device(old.model_dump(), tmp_path / "model.json") == old
    assert len({old, make_device(old.model_dump(), tmp_path)}) == 1


@pytest.mark.parametrize(
    ("runtime", "precision", "graph"),
    [
        *(("onnxruntime", precision, precision) for precision in ("fp32", "fp16", "int8", "a16w8")),
        *(("openvino", precision, "fp32") for precision in ("fp32", "fp16", "bf16")),
        ("openvino", "int8", "int8"),
    ],
)
def test_what_a_file_must_be_for_a_device(runtime, precision, graph):
    assert device(runtime=runtime, precision=precision).graph_precision == graph


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"precision": "bf16"},
            r"precision 'bf16' is not in this ONNX Runtime; it has: fp32, fp16, int8, a16w8 \(bf16 is a setting of",
        ),
        ({"provider": "NoProvider"}, "provider 'NoProvider' is not in this ONNX Runtime; it has: .*CPUExecutionProvider"),
        ({"runtime": "tpu"}, "unknown runtime 'tpu'; known: onnxruntime, openvino, torch_eager"),
        ({"runtime": "torch_eager"}, "provider 'CPUExecutionProvider' is not in this PyTorch runtime; it has: cpu"),
        ({"runtime": "torch_eager", "provider": "cpu", "precision": "bf16"}, "precision 'bf16' is not in"),
        ({"runtime": "torch_eager", "provider": "cpu", "optimization": "none"}, "optimization 'none' is not in"),
        ({"runtime": "torch_eager", "provider": "cpu", "provider_options": {"a": "b"}}, "torch_eager has none"),
    ],
)
def test_a_runtime_refuses_what_it_does_not_have(fields, message):
    with pytest.raises(DeviceError, match=message):
        open_session(emit({"stem": BLOCK}), device(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "provider 'CPUExecutionProvider' is not in this OpenVINO; it has: .*CPU"),
        ({"provider": "CPU", "optimization": "basic"}, "optimization 'basic' is not in this OpenVINO; it has: all"),
        (
            {"provider": "CPU", "provider_options": {"NUM_STREAMS": "2"}},
            "provider option NUM_STREAMS is set by the toolkit, to 1",
        ),
    ],
)
def test_openvino_refuses_what_it_does_not_have(fields, message):
    usable("openvino_1t")
    with pytest.raises(DeviceError, match=message):
        open_session(emit({"stem": BLOCK}), device(runtime="openvino", **fields))


def test_missing_openvino_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "deploy.runtimes.openvino", raising=False)
    with pytest.raises(DeviceError, match=r"pip install 'ofa-toolkit\[openvino\]'"):
        open_session(emit({"stem": BLOCK}), get_device("openvino_1t"))


def test_int8_device_refuses_an_fp32_file():
    with pytest.raises(DeviceError, match=r"device ort_int8_1t runs int8 files, this one is not; .* --precision int8"):
        open_session(emit({"stem": BLOCK}), get_device("ort_int8_1t"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_replaced_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(
        DeviceError, match="CUDAExecutionProvider does not start here, ONNX Runtime would use CPUExecutionProvider"
    ):
        open_session(emit({"stem": BLOCK}), device(provider="CUDAExecutionProvider"))
    assert "EP Error" not in capsys.readouterr().out


def test_onnxruntime_follows_a_device(monkeypatch):
    options = session_options(device(optimization="extended", num_threads=3))
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert options.intra_op_num_threads == 3
    assert session_options(device()).graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    asked = []
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, providers, **k: asked.append(providers) or real(*a, **k))
    open_session(emit({"stem": BLOCK}), device(provider_options={"key": "value"}))
    assert asked == [[("CPUExecutionProvider", {"key": "value"})]]


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["openvino_1t", "torch_1t", "ort_extended_1t"])
def test_runtimes_agree(name, space):
    blocks, weights = network(SPACES[space])
    content = emit(blocks, weights)
    spec = usable(name)
    reference, session = open_session(content, get_device("ort_cpu_1t")), open_session(content, spec)
    session.prepare(images_for(blocks, 2))()  # must not fix the batch of `run`
    for batch in (1, 3):
        images = images_for(blocks, batch)
        expected = reference.run(images)
        # float32 with another order of summation; some 1e-7 of each layer grow to some 1e-5
        assert relative_error(session.run(images), expected) < 1e-4
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()  # images are told apart


def test_bf16_is_coarser_than_fp32():
    blocks, weights = network(SPACES["resnet_small_image"])
    content, images = emit(blocks, weights), images_for(blocks, 8)
    expected = open_session(content, get_device("ort_cpu_1t")).run(images)
    found = open_session(content, usable("openvino_bf16_1t")).run(images)
    # 8 bits of mantissa are 2e-3 at each rounding; a processor with them but a plan without would show 1e-6
    assert 1e-4 < relative_error(found, expected) < 0.2


def one_operator(op, *, inputs=("x",), shape=(2, 3, 7, 7), constants=(), **attributes):
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        *(
            ("AveragePool", {**WINDOW, "pads": pads, "count_include_pad": count})
            for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 2, 0])
            for count in (0, 1)
        ),
        ("MaxPool", {**WINDOW, "pads": [1, 1, 1, 1]}),
        ("MaxPool", {**WINDOW, "pads": [0, 1, 2, 0]}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", {}),
        ("Flatten", {"axis": 2}),
        ("GlobalAveragePool", {}),
    ],
)
def test_torch_eager_computes_an_operator_as_onnx_means_it(op, attributes):
    content = one_operator(op, **attributes)
    images = np.random.default_rng(0).standard_normal((2, 3, 7, 7), dtype=np.float32)
    expected = open_session(content, device()).run(images)
    np.testing.assert_allclose(open_session(content, get_device("torch_1t")).run(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (None, 0.5)])
def test_torch_eager_clips(bounds):
    given = [(name, value) for name, value in zip(("low", "high"), bounds, strict=True) if value is not None]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in given]
    content = one_operator("Clip", inputs=("x", "low" if bounds[0] is not None else "", "high"), constants=constants)
    images = 4 * np.random.default_rng(0).standard_normal((2, 3, 7, 7), dtype=np.float32)
    found = open_session(content, get_device("torch_1t")).run(images)
    np.testing.assert_array_equal(found, np.clip(images, *bounds))


def test_torch_eager_names_an_operator_that_it_does_not_know():
    with pytest.raises(ModelError, match="operator Softmax is not one that torch_eager runs; it has: Add, AveragePool"):
        open_session(one_operator("Softmax"), get_device("torch_1t"))
    with pytest.raises(ModelError, match="operator ConstantOfShape of constants does not run"):
        open_session(
            one_operator("ConstantOfShape", inputs=("s",), constants=[helper.make_tensor("s", TensorProto.INT64, [1], [2])]),
            get_device("torch_1t"),
        )
    with pytest.raises(ModelError, match=r"does not run on input .* 'auto_pad'"):
        open_session(one_operator("MaxPool", auto_pad="SAME_UPPER", **WINDOW), get_device("torch_1t")).run(
            np.ones((2, 3, 7, 7), np.float32)
        )


def test_torch_eager_leaves_the_number_of_threads_as_it_was():
    seen = []
    session = open_session(emit({"stem": BLOCK}), device(runtime="torch_eager", provider="cpu", num_threads=3))
    steps = session._program._steps
    steps.insert(0, dataclasses.replace(steps[0], function=lambda *_, **__: seen.append(torch.get_num_threads()), spent=[]))
    before = torch.get_num_threads()
    session.run(images_for({"stem": BLOCK}))
    assert seen == [3]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["ort_cpu_1t", "openvino_1t", "torch_1t"])
def test_a_bad_file_and_a_bad_input_are_one_line(name):
    spec = usable(name)
    with pytest.raises(ModelError, match=r"^not an? .*model"):
        open_session(b"\x00garbage", spec)
    session = open_session(emit({"stem": BLOCK}), spec)
    for call in (session.run, session.prepare):
        with pytest.raises(ModelError, match=r"does not run on input \(1, 5, 12, 12\)") as failure:
            call(np.ones((1, 5, 12, 12), np.float32))
        assert "\n" not in str(failure.value)


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in list_devices() if clock_of(get_device(name)) == "cpu"])
def test_cpu_clock_holds_all_the_work(name):
    """Where the CPU clock is used, the calling thread must do the work: in a run that nothing disturbs both clocks agree."""
    spec = usable(name)
    blocks = {"stem": BlockSpec("conv", 32, 64, 48, kernel_size=3, act="relu")}  # about a millisecond
    call = open_session(emit(blocks, precision=spec.graph_precision), spec).prepare(images_for(blocks))
    shares = [cpu / wall for cpu, wall in visit(call, warm_up=3, runs=60)]
    assert max(shares) > 0.9  # in another thread it would be some 0.01
    assert max(shares) < 1.1


@pytest.mark.parametrize(
    "fields",
    [
        {"num_threads": 2},
        {"provider": "CUDAExecutionProvider"},
        {"runtime": "openvino", "provider": "GPU"},
        {"runtime": "torch_eager", "provider": "cpu", "num_threads": 2},
    ],
)
def test_other_devices_are_timed_by_wall_clock(fields):
    assert clock_of(device(**fields)) == "wall"


def test_every_runtime_has_a_device_that_ships():
    assert {get_device(name).runtime for name in list_devices()} == set(list_runtimes())
