"""Networks with bits of their own as files: what was trained is what ships."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploy.calibration import activation_ranges, scales_of
from deploy.device import get_device
from deploy.emit import block_bits, emit, layer_names, layers_of_bits, short_names
from deploy.export import export_subnet
from deploy.fold import fold
from deploy.footprint import block_file_bytes
from deploy.precision import PrecisionError
from deploy.rounded_parity import file_parity_error, given_levels, rounded_layers, taken_tensors
from deploy.runtimes import open_session
from deploy.runtimes.torch_eager import Program
from deploy.verify import verify_model
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.quantised_layers import FIRST_CLIPS, RoundedConv2d, rounded_weights, weight_steps
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet

CPU = get_device("ort_cpu_1t")
COMMON = {"kernel_size": 3, "hidden_channels": 12}
BLOCKS = [
    BlockSpec("conv", 8, 12, 8, kernel_size=3, stride=2, act="relu"),
    BlockSpec("conv", 8, 8, 8, kernel_size=3, shortcut="identity"),
    BlockSpec("mbconv", 8, 12, 8, act="relu", se=True, shortcut="pool_conv_bn", **COMMON),
    BlockSpec("mbconv", 8, 8, 8, act="h_swish", shortcut="identity", **COMMON),
    BlockSpec("mbconv", 8, 12, 8, act="relu6", kernel_size=5, hidden_channels=8, stride=2),
    BlockSpec("bottleneck", 8, 12, 8, act="relu", stride=2, shortcut="pool_conv", **COMMON),
    BlockSpec("shuffle", 8, 8, 8, act="relu", **COMMON),
    BlockSpec("shuffle", 8, 20, 8, act="relu", stride=2, **COMMON),
    BlockSpec("xception", 8, 20, 8, act="relu", stride=2, **COMMON),
    BlockSpec("xception", 8, 8, 8, act="relu", **COMMON),
]
PAIRS = [(1, 1), (1, 2), (2, 4), (4, 4), (8, 8)]


def settled(blocks, seed=0):
    """A network with random BatchNorm: folding must matter, and some of its scales are negative, one is zero."""
    torch.manual_seed(seed)
    net = build_network(blocks)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "running_mean" in name or name.endswith("bn.bias"):
                tensor.normal_(0, 0.3)
            elif name.endswith("bn.weight"):
                tensor.normal_()
                tensor[0] = 0
    return net.eval()


def network(spec, weight_bits, activation_bits):
    """A block with bits between layers without."""
    middle = replace(spec, weight_bits=weight_bits, activation_bits=activation_bits)
    return {
        "stem": BlockSpec("conv", 3, 8, 8, kernel_size=3, act="relu"),
        "middle": middle,
        "pool": BlockSpec("pool", spec.out_channels, spec.out_channels, middle.out_resolution),
        "head": BlockSpec("linear", spec.out_channels, 10, 1, bias=True),
    }


@pytest.mark.parametrize("bits", PAIRS, ids=lambda bits: "w{}a{}".format(*bits))
@pytest.mark.parametrize("spec", BLOCKS, ids=str)
def test_a_file_computes_what_the_network_does(spec, bits):
    blocks = network(spec, *bits)
    net = settled(blocks)
    content = emit(blocks, fold(net))
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert file_parity_error(net, content, 8) < 1e-5  # given the file's levels, float32 in another order
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(images)
    found = torch.from_numpy(open_session(content, CPU).run(images.numpy()))
    close = torch.isclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())).all(1)
    # of 64 images with thousands of activations each, few have one within float32's reach of a border of two levels
    assert close.float().mean() > 0.9
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    np.testing.assert_array_equal(open_session(short_names(content), CPU).run(images.numpy()), found)


@pytest.mark.parametrize("bits", PAIRS, ids=lambda bits: "w{}a{}".format(*bits))
def test_a_file_holds_the_integers_and_steps_of_training(bits):
    blocks = network(BLOCKS[2], *bits)
    net = settled(blocks)
    graph = onnx.load_from_string(emit(blocks, fold(net))).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    steps_of = {node.input[0]: tensors[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert len(rounded_layers(net)) == 4  # the gate's two stay in float
    for name, layer in rounded_layers(net).items():
        integers, step = weight_steps(layer.weight, layer.weight_bits)
        norm = net.get_submodule(name).bn
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        stored = tensors[f"{name}.weight"]
        assert stored.dtype == np.int8
        sign = torch.where(scale < 0, -1, 1).view(-1, 1, 1, 1)
        np.testing.assert_array_equal(stored, (integers * sign).numpy())
        np.testing.assert_allclose(steps_of[f"{name}.weight"][1:], (step * scale.abs()).numpy()[1:], rtol=1e-6)
    assert tensors["middle.se.expand.weight"].dtype == tensors["head.weight"].dtype == np.float32
    clips = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(float(tensors[node.input[1]]) for node in clips) == sorted(
        m.input_step.item() for m in rounded_layers(net).values()
    )


def test_levels_that_are_not_the_files_are_noticed():
    blocks = network(BLOCKS[6], 2, 2)
    net = settled(blocks)
    content = emit(blocks, fold(net))
    with torch.no_grad():
        rounded_layers(net)["middle.branch.depthwise"].clip *= 1.1
    assert file_parity_error(net, content, 8) == np.inf
    with torch.no_grad():
        rounded_layers(net)["middle.branch.depthwise"].clip /= 1.1
        rounded_layers(net)["middle.branch.project"].weight[1] *= -1
    assert file_parity_error(net, content, 8) > 1e-3


def test_a_value_on_a_border_may_go_either_way():
    blocks = network(BLOCKS[6], 2, 2)
    net = settled(blocks)
    layers = {"middle.branch.expand": rounded_layers(net)["middle.branch.expand"]}
    layer = layers["middle.branch.expand"]
    step = layer.input_step.item()
    x = torch.full((1, 4, 2, 2), 0.5 * step * (1 + 1e-6))  # its level is one step
    for given, off in ((0.0, 0.0), (step, 0.0), (2 * step, 1.0)):
        with torch.no_grad(), given_levels(layers, {"middle.branch.expand": torch.full_like(x, given)}) as beside:
            layer(x)
        assert beside["middle.branch.expand"] == pytest.approx(off, abs=1e-5)
    assert layer.taken(x).unique().tolist() == [pytest.approx(step)]  # rounds by itself again


def test_the_rest_may_be_in_integers_too(digits_network):
    known = digits_network
    blocks = {
        name: replace(spec, weight_bits=4, activation_bits=4) if name == "block1" else spec for name, spec in known.blocks.items()
    }
    net = settled(blocks)
    weights = fold(net)
    assert layers_of_bits(blocks) == dict.fromkeys(("block1.expand", "block1.depthwise", "block1.project"), "a4w4")
    assert set(layer_names(blocks)) & set(layers_of_bits(blocks)) == set()
    images = known.preprocess(known.train.images[:64], 8).contiguous()
    scales = scales_of(activation_ranges(blocks, weights, [images.numpy()]), 8, "minmax")
    found = open_session(emit(blocks, weights, precision="int8", scales=scales), CPU).run(images.numpy())
    expected = open_session(emit(blocks, weights), CPU).run(images.numpy())
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()  # eight bits more here and there
    eager = Program(emit(blocks, weights, precision="int8", scales=scales))(images).numpy()
    assert np.abs(found - eager).max() < 0.1 * np.abs(found).max()  # borders of levels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp16"}, "block middle has bits of its own"),
        ({"precision": "int8", "layers": {"middle.branch.expand": "fp32"}}, "its architecture gives it a2w2"),
    ],
)
def test_what_does_not_go_with_bits_is_refused(arguments, message):
    blocks = network(BLOCKS[6], 2, 2)
    with pytest.raises(PrecisionError, match=message):
        emit(blocks, **arguments)


def test_constant_graphs_have_the_operators_of_the_file_and_its_size():
    blocks = network(BLOCKS[8], 2, 4)
    files = [onnx.load_from_string(each).graph for each in (emit(blocks), emit(blocks, fold(settled(blocks))))]
    operators = [[node.op_type for node in graph.node if node.op_type != "ConstantOfShape"] for graph in files]
    assert operators[0] == operators[1]
    plain = replace(BLOCKS[8], weight_bits=0, activation_bits=0)
    wide = {"in_channels": 512, "out_channels": 1024, "hidden_channels": 256}
    ratio = block_file_bytes(replace(blocks["middle"], **wide)) / block_file_bytes(replace(plain, **wide))
    assert 0.25 < ratio < 0.3  # a byte a weight, whatever its bits
    assert block_bits(blocks)["middle"].weight_bits == 2


# -- a run ----------------------------------------------------------------------------------------------------------


TINY = """
from dataclasses import dataclass, replace

from ofa.block_spec import BlockSpec
from ofa.slots import fixed
from ofa.space import Dimension, SearchSpace, Slot

BITS = {"w1a2": (1, 2), "w2a2": (2, 2), "w4a4": (4, 4)}
BLOCKS = (
    BlockSpec("mbconv", 16, 24, 8, kernel_size=3, hidden_channels=48, act="relu"),
    BlockSpec("shuffle", 24, 64, 8, kernel_size=3, stride=2, hidden_channels=32, act="relu"),
    BlockSpec("shuffle", 64, 64, 4, kernel_size=3, hidden_channels=32, act="relu"),
)


@dataclass(frozen=True)
class Tiny(SearchSpace):
    name: str = "bitlab.tiny"
    num_classes: int = 10

    @property
    def dimensions(self):
        return (Dimension("resolution", (8,)), *(Dimension(f"block{i}.bits", tuple(BITS)) for i in range(len(BLOCKS))))

    @property
    def slots(self):
        def slot(i):
            def choose(bits):
                weight, activation = BITS[bits]
                return replace(BLOCKS[i], weight_bits=weight, activation_bits=activation)

            return Slot(f"block{i}", (f"block{i}.bits",), choose, stage=1)

        head = fixed("pool", "pool", 64, 64, 2), fixed("classifier", "linear", 64, self.num_classes, None, bias=True)
        return (fixed("stem", "conv", 3, 16, 1, kernel_size=3, act="relu"), *map(slot, range(len(BLOCKS))), *head)


SPACE = Tiny()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A supernet of 27 networks that differ in their bits, trained on digits for some seconds."""
    folder = tmp_path_factory.mktemp("bits")
    (folder / "bitlab").mkdir()
    (folder / "bitlab" / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        config = TrainConfig(recipe="single_path", epochs=14, batch_size=64, lr=0.2, label_smoothing=0.0)
        yield train_supernet("bitlab.tiny", "digits", folder / "digits", config=config)


def test_training_lowers_the_loss_and_moves_the_clips(run):
    lines = [json.loads(line) for line in (run.path / "supernet" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    clips = {name: p for name, p in run.load_supernet().named_parameters() if name.endswith("clip")}
    assert len(clips) == 3 + 5 + 3
    for clip in clips.values():
        assert torch.isfinite(clip).all()
        assert (clip.abs() > 0.01).all()
        first = [clip.new_tensor(found[: len(clip)]) for found in FIRST_CLIPS.values()]
        changed = torch.stack([clip.detach() != each for each in first]).all(0)
        assert changed.tolist() == [False, True, False, True]  # of one and of three bits nothing was trained


def test_accuracy_grows_with_bits_and_survives_the_export(run, tmp_path):
    for bits, least in (("w1a2", 0.5), ("w4a4", 0.8)):
        model = export_subnet(write_arch(run, tmp_path, [bits]), tmp_path / bits, run=run.path)
        assert verify_model(model.path, seconds=0.05).top1 > least


def write_arch(run, tmp_path, bits):
    arch = run.space.arch(**{f"block{i}__bits": bits[i % len(bits)] for i in range(3)})
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(run.space.to_json(arch)))
    return path


def test_the_chosen_bits_reach_the_file_and_its_proof(run, tmp_path, capsys):
    arch = write_arch(run, tmp_path, ["w1a2", "w4a4"])
    model = export_subnet(arch, tmp_path / "out", run=run.path)
    assert "layers in the bits that they were trained with" in capsys.readouterr().err
    assert model.parity_error < 1e-4
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert record["precision"] == "fp32"
    assert set(record["layers"].values()) == {"a2w1", "a4w4"}
    assert not {"stem", "classifier"} & set(record["layers"])
    assert "- a2w1: block0.expand, block0.depthwise, block0.project, block2" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    graph = onnx.load(model.path).graph
    integers = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(integers) == len(record["layers"])
    assert {len(np.unique(tensor)) for tensor in integers} <= {*range(2, 17)}
    found = verify_model(tmp_path / "out", seconds=0.05, limits=["bitops <= 100M"])
    assert found.ok, [check for check in found.checks if not check.ok]
    assert {check.name for check in found.checks} >= {"parity", "accuracy", "bitops"}


def test_the_rest_in_int8_and_what_is_refused(run, tmp_path):
    arch = write_arch(run, tmp_path, ["w2a2"])
    model = export_subnet(arch, tmp_path / "out", run=run.path, precision="int8", max_drop=1.0)
    record = json.loads(model.path.with_name("model.json").read_text())
    assert record["precision"] == "int8"
    assert "a2w2" in record["layers"].values()
    assert verify_model(tmp_path / "out", seconds=0.05).ok
    for how, message in (
        ({"precision": "fp16"}, "layers have bits of their own, and their integers stand beside fp32 or int8"),
        ({"precision": "int8", "finetune_epochs": 1}, "layers have bits of their own and were trained with them"),
    ):
        with pytest.raises(PrecisionError, match=message):
            export_subnet(arch, tmp_path / "no", run=run.path, **how)


def test_extracted_weights_round_as_they_did_in_the_supernet(run):
    space = run.space
    arch = space.arch(**{f"block{i}__bits": "w2a2" for i in range(3)})
    net = run.load_supernet()
    for module in net.extract(arch).modules():
        if isinstance(module, RoundedConv2d):
            assert len(rounded_weights(module.weight, 2)[0].unique()) <= 4
    assert taken_tensors(emit(space.blocks(arch))).keys() >= layers_of_bits(space.blocks(arch)).keys()
