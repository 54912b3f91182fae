"""BatchNorms folded in ONNX graphs: what is computed stays the same, and each goes where it costs nothing."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.fold_norms import fold_norms
from deploy.graph_edit import GraphEdit
from deploy.hard_swish import join_hard_swish
from ofa.errors import OfaError

SIDE = 7


class Net:
    """A graph under construction; methods append a node and return its output's name."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.tensors = [], []

    def constant(self, values):
        self.tensors.append(numpy_helper.from_array(np.asarray(values, np.float32), f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def node(self, op, *inputs, output=None, **attributes):
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, x, width, out, *, kernel=1, pad=0, group=1, bias=True, **attributes):
        weight = self.rng.normal(0, (group / width) ** 0.5 / kernel, (out, width // group, kernel, kernel))
        rest = [self.constant(self.rng.normal(size=out))] if bias else []
        return self.node("Conv", x, self.constant(weight), *rest, pads=[pad] * 4, group=group, **attributes)

    def gemm(self, x, width, out, *, flipped=False, bias=True, **attributes):
        weight = self.rng.normal(0, width**-0.5, (width, out) if flipped else (out, width))
        rest = [self.constant(self.rng.normal(size=out))] if bias else []
        return self.node("Gemm", x, self.constant(weight), *rest, **({} if flipped else {"transB": 1}), **attributes)

    def norm(self, x, width, **attributes):
        low, high = ([0.5, -1, -1, 0.5], [1.5, 1, 1, 2])
        numbers = [self.constant(self.rng.uniform(a, b, width)) for a, b in zip(low, high, strict=True)]
        return self.node("BatchNormalization", x, *numbers, **attributes)

    def model(self, output, opset=17):
        self.node("Identity", output, output="logits")
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, SIDE, SIDE])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "test", [images], [logits], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
        onnx.checker.check_model(model, full_check=True)
        return model


def run(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": np.random.default_rng(1).standard_normal((3, 4, SIDE, SIDE), dtype=np.float32)})[0]


def rewritten(model, rewrite=fold_norms):
    """The operators of a model after a rewrite, which must not change what it computes."""
    expected = run(model)
    rewrite(model)
    onnx.checker.check_model(model, full_check=True)
    found = run(model)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("group", "bias"), [(1, True), (2, False), (4, True)])
def test_norms_go_into_the_convolution_before(group, bias):
    net = Net()
    x = net.norm(net.norm(net.conv("images", 4, 8, kernel=3, pad=1, group=group, bias=bias), 8), 8, epsilon=0.1)
    assert rewritten(net.model(x)) == {"Conv": 1}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_go_into_the_linear_layer_before_and_after(flipped, bias):
    net = Net()
    features = net.node("Flatten", net.node("GlobalAveragePool", "images"))
    hidden = net.gemm(net.norm(features, 4), 4, 6, flipped=flipped, bias=bias)
    x = net.norm(net.node("Relu", net.norm(hidden, 6)), 6)
    x = net.gemm(net.node("Relu", x), 6, 5, flipped=flipped, bias=bias)
    # the third stands between two Relus: (n, 6) * (6,) + (6,)
    assert rewritten(net.model(x)) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 2, "Relu": 2, "Mul": 1, "Add": 1}


def test_a_linear_layer_that_scales_its_products_is_left_alone():
    net = Net()
    x = net.norm(net.gemm(net.node("Flatten", net.node("GlobalAveragePool", "images")), 4, 6, alpha=0.5), 6)
    assert rewritten(net.model(x)) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Mul": 1, "Add": 1}


def test_a_product_with_constants_is_a_linear_layer():
    net = Net()
    features = net.node("Flatten", net.node("GlobalAveragePool", "images"))
    x = net.norm(net.node("MatMul", features, net.constant(net.rng.normal(size=(4, 6)))), 6)
    assert rewritten(net.model(x)) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    net = Net()
    x = net.node("MatMul", "images", net.constant(net.rng.normal(size=(SIDE, 6))))  # along the width of images
    assert rewritten(net.model(x))["MatMul"] == 1


def test_a_norm_after_a_concatenation_goes_into_every_branch():
    net = Net()
    inner = net.node("Concat", net.conv("images", 4, 2), net.conv("images", 4, 3), axis=1)
    outer = net.node("Concat", inner, net.conv("images", 4, 4, group=2), axis=1)
    assert rewritten(net.model(net.norm(outer, 9))) == {"Conv": 3, "Concat": 2}


def test_a_branch_that_is_read_elsewhere_keeps_its_weights():
    net = Net()
    shared = net.conv("images", 4, 4)
    x = net.norm(net.node("Concat", shared, net.conv("images", 4, 4), axis=1), 8)
    x = net.node("Concat", x, shared, axis=1)
    assert rewritten(net.model(x)) == {"Conv": 2, "Concat": 2, "Mul": 1, "Add": 1}


def test_a_branch_that_is_joined_twice_keeps_its_weights():
    net = Net()
    shared = net.conv("images", 4, 4)
    assert rewritten(net.model(net.norm(net.node("Concat", shared, shared, axis=1), 8)))["Mul"] == 1


@pytest.mark.parametrize(("pad", "expected"), [(0, {"Conv": 1}), (1, {"Conv": 1, "Mul": 1, "Add": 1})])
def test_a_norm_goes_into_the_convolution_after_it_only_without_padding(pad, expected):
    net = Net()
    assert rewritten(net.model(net.conv(net.norm("images", 4), 4, 6, kernel=3, pad=pad, group=2))) == expected


def test_a_norm_that_shifts_nothing_goes_into_a_padded_convolution():
    net = Net()
    zero = [net.constant(np.full(4, value)) for value in (2, 0, 0, 3)]
    x = net.conv(net.node("BatchNormalization", "images", *zero), 4, 6, kernel=3, pad=1)
    assert rewritten(net.model(x)) == {"Conv": 1}


def test_automatic_padding_counts_as_padding():
    net = Net()
    weight = net.constant(net.rng.normal(size=(4, 4, 3, 3)))
    x = net.node("Conv", net.norm("images", 4), weight, auto_pad="SAME_UPPER")
    assert rewritten(net.model(x)) == {"Conv": 1, "Mul": 1, "Add": 1}


def test_a_convolution_whose_output_is_read_twice_keeps_its_weights():
    net = Net()
    x = net.conv("images", 4, 4)
    assert rewritten(net.model(net.node("Add", x, net.norm(x, 4)))) == {"Conv": 1, "Mul": 1, "Add": 2}


def test_weights_that_two_convolutions_share_are_told_apart():
    net = Net()
    weight = net.constant(net.rng.normal(size=(4, 4, 1, 1)))
    bias = net.node("Identity", net.constant(net.rng.normal(size=4)))  # as torch writes equal constants
    branches = [net.norm(net.node("Conv", "images", weight, bias), 4) for _ in range(2)]
    assert rewritten(net.model(net.node("Sub", *branches))) == {"Conv": 2, "Sub": 1}


def test_constant_nodes_count_as_constants():
    net = Net()
    values = [numpy_helper.from_array(net.rng.uniform(1, 2, (4, 4, 1, 1)).astype(np.float32))]
    values += [numpy_helper.from_array(net.rng.uniform(1, 2, 4).astype(np.float32)) for _ in range(4)]
    weight, *numbers = [net.node("Constant", value=value) for value in values]
    assert rewritten(net.model(net.node("BatchNormalization", net.node("Conv", "images", weight), *numbers))) == {"Conv": 1}


def test_a_norm_whose_input_leaves_the_graph_too_is_spelt_out():
    net = Net()
    x = net.conv("images", 4, 4)
    model = net.model(net.norm(x, 4))
    model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 4, SIDE, SIDE]))
    assert rewritten(model) == {"Conv": 1, "Mul": 1, "Add": 1}


def test_names_that_a_branch_of_the_graph_reads_stay():
    net = Net()
    x = net.conv("images", 4, 4)
    y = net.norm(x, 4)
    condition = net.node("Less", net.node("ReduceMax", "images", keepdims=0), net.constant(1e9))
    branches = {
        name: helper.make_graph(
            [helper.make_node("Relu", [read], ["out"])], name, [], [helper.make_empty_tensor_value_info("out")]
        )
        for name, read in (("then_branch", x), ("else_branch", y))
    }
    z = net.node("If", condition, **branches)
    counted = rewritten(net.model(net.node("Add", z, y)))
    assert counted["Mul"] == 1


def test_norms_that_cannot_be_folded_are_refused():
    net = Net()
    computed = [net.node("Relu", net.constant(np.ones(4))) for _ in range(4)]
    model = net.model(net.node("BatchNormalization", "images", *computed))
    with pytest.raises(OfaError, match="takes numbers that the graph computes, expected constants"):
        fold_norms(model)
    net = Net()
    norm = net.norm("images", 4, training_mode=1)
    net.nodes[-1].output.extend(["mean", "var"])
    with pytest.raises(OfaError, match="is in training mode; export the network in eval mode"):
        fold_norms(net.model(norm))


def random_model(seed):
    """A random graph of some twenty nodes over a pool of tensors, each of which any later node may read again."""
    net = Net(seed)
    rng = net.rng
    pool = [("images", 4)]
    for _ in range(rng.integers(8, 24)):
        x, width = pool[-1 if rng.random() < 0.7 else rng.integers(len(pool))]
        y, other = pool[rng.integers(len(pool))]
        kind = rng.choice(["Conv", "Conv", "norm", "norm", "norm", "Concat", "Relu", "AveragePool", "Add", "Identity"])
        if kind == "Conv":
            group, (kernel, pad) = int(rng.choice([g for g in (1, 2, 4) if width % g == 0])), [(1, 0), (3, 1)][rng.integers(2)]
            out = int(rng.choice([4, 8]))
            pool.append((net.conv(x, width, out, kernel=kernel, pad=pad, group=group, bias=bool(rng.integers(2))), out))
        elif kind == "norm":
            pool.append((net.norm(x, width), width))
        elif kind == "Concat" and width + other <= 24:
            pool.append((net.node("Concat", x, y, axis=1), width + other))
        elif kind == "AveragePool":
            pool.append((net.node(kind, x, kernel_shape=[3, 3], pads=[1] * 4), width))
        elif kind == "Add" and width == other:
            pool.append((net.node("Add", x, y), width))
        elif kind in ("Relu", "Identity"):
            pool.append((net.node(kind, x), width))
    x, width = pool[-1]
    if rng.integers(2):
        x = net.norm(net.gemm(net.node("Flatten", net.node("GlobalAveragePool", x)), width, 5, bias=bool(rng.integers(2))), 5)
    return net.model(x)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_compute_the_same_without_norms(seed):
    rewritten(random_model(seed))


def hard_sigmoid(net, x, order):
    """relu6(x + 3) / 6, with the division as asked."""
    total = net.node("Add", *((x, net.constant(3)) if order != "constant first" else (net.constant(3), x)))
    clipped = net.node("Clip", total, net.constant(0), net.constant(6))
    if order == "constant first":
        return net.node("Mul", net.constant(1 / 6), clipped)
    return clipped if order == "divided later" else net.node("Div", clipped, net.constant(6))


@pytest.mark.parametrize("order", ["divided at once", "divided later", "constant first"])
@pytest.mark.parametrize(
    ("opset", "operators"), [(17, {"Conv": 1, "HardSwish": 1}), (13, {"Conv": 1, "HardSigmoid": 1, "Mul": 1})]
)
def test_hard_swish_that_is_written_out_becomes_one_operator(order, opset, operators):
    net = Net()
    x = net.conv("images", 4, 4)
    y = net.node("Mul", x, hard_sigmoid(net, x, order))
    if order == "divided later":
        y = net.node("Div", y, net.constant(6))
    assert rewritten(net.model(y, opset), join_hard_swish) == operators


def test_a_gate_of_another_tensor_becomes_a_hard_sigmoid():
    net = Net()
    x = net.conv("images", 4, 4)
    gate = hard_sigmoid(net, net.node("GlobalAveragePool", x), "divided at once")
    operators = {"Conv": 1, "GlobalAveragePool": 1, "HardSigmoid": 1, "Mul": 1}
    assert rewritten(net.model(net.node("Mul", x, gate)), join_hard_swish) == operators


@pytest.mark.parametrize(("plus", "low", "high", "by"), [(3, 0, 6, 5), (3, 0, 5, 6), (2, 0, 6, 6), (3, -1, 6, 6)])
def test_what_is_nearly_hard_swish_stays(plus, low, high, by):
    net = Net()
    clipped = net.node("Clip", net.node("Add", "images", net.constant(plus)), net.constant(low), net.constant(high))
    y = net.node("Mul", "images", net.node("Div", clipped, net.constant(by)))
    assert rewritten(net.model(y), join_hard_swish) == {"Add": 1, "Clip": 1, "Div": 1, "Mul": 1}


def test_a_gate_that_is_read_twice_stays():
    net = Net()
    clipped = net.node("Clip", net.node("Add", "images", net.constant(3)), net.constant(0), net.constant(6))
    y = net.node("Mul", net.node("Mul", "images", net.node("Div", clipped, net.constant(6))), clipped)
    assert rewritten(net.model(y), join_hard_swish)["HardSwish"] == 0


@pytest.mark.parametrize("alpha", [0.2, 1 / 6])
def test_hard_sigmoid_is_joined_where_its_slope_is_a_sixth(alpha):
    net = Net()
    y = net.node("Mul", net.node("HardSigmoid", "images", alpha=alpha, beta=0.5), "images")
    assert rewritten(net.model(y), join_hard_swish)["HardSwish"] == (alpha != 0.2)


def test_written_nodes_stand_after_what_they_read_and_nothing_is_left_over():
    net = Net()
    net.constant(np.ones(3))  # nothing reads it
    model = net.model(net.conv(net.node("Relu", net.norm("images", 4)), 4, 4))
    fold_norms(model)
    seen = {"images", *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        assert set(node.input) <= seen
        seen.update(node.output)
    assert len(model.graph.initializer) == 4
    assert GraphEdit(model).scalar("images") is None
