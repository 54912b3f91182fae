"""PyTorch, eagerly: the operators of an ONNX file as torch functions, one after the other, as an undeployed network runs.

It knows the operators that deploy/emit.py writes in any precision; another is another entry of OPERATORS. Integers are computed
as the standard says, each pair that quantises and dequantises by itself, in float between: an independent check of what another
runtime makes of a file. What a Program computes has gradients, so that fine-tuning (deploy/finetune.py) trains what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from deploy.device import DeviceError, DeviceSpec
from deploy.runtimes import ModelError, first_line, require

VERSION: str = torch.__version__
Ints = list[int] | tuple[int, ...]
Operators = Mapping[str, Callable[..., Tensor]]
NO_PADS = (0, 0, 0, 0)  # top, left, bottom, right


@dataclass(frozen=True, slots=True)
class Step:
    """One node: what it computes from which tensors, and which of them nothing needs after it."""

    function: Callable[..., Tensor]
    inputs: Sequence[str]
    attributes: dict[str, Any]
    output: str
    spent: list[str]


class Program:
    """An ONNX graph with one input and one output as a list of calls."""

    def __init__(self, model: bytes, operators: Operators | None = None) -> None:
        """Read a file; `operators` take the place of those of OPERATORS that have their names."""
        try:
            graph = onnx.load_from_string(model).graph
        except Exception as error:  # protobuf's errors share no base with onnx's
            raise ModelError(f"not an ONNX model ({first_line(error)})") from None
        self.constants: dict[str, Tensor | None] = {"": None}  # an input that a node leaves out has an empty name
        self.constants.update({t.name: _channels_last(torch.tensor(numpy_helper.to_array(t))) for t in graph.initializer})
        inputs = [value.name for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError("model does not have exactly one input and one output")
        self._input, self._output = inputs[0], graph.output[0].name
        self._steps = self._plan(graph.node, {**OPERATORS, **(operators or {})})

    def __call__(
        self,
        images: Tensor,
        given: Mapping[str, Tensor] | None = None,
        visit: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute the output.

        Args:
            images: the input.
            given: tensors to use in place of the constants of these names, such as weights that are being trained.
            visit: called with every tensor's name and value as soon as it is computed; what it returns takes its place.
        """
        given = {name: _channels_last(tensor) for name, tensor in (given or {}).items()}
        tensors = {**self.constants, **given, self._input: images}
        for step in self._steps:
            value = step.function(*[tensors[name] for name in step.inputs], **step.attributes)
            tensors[step.output] = value if visit is None else visit(step.output, value)
            for name in step.spent:
                del tensors[name]
        out = tensors[self._output]
        assert out is not None
        return out

    def _plan(self, nodes: Iterable[onnx.NodeProto], operators: Operators) -> list[Step]:
        """Compute what depends on constants alone; return the rest as steps."""
        steps: list[Step] = []
        for node in nodes:
            op = f"{node.domain}.{node.op_type}".lstrip(".")
            if op not in OPERATORS:
                raise ModelError(f"operator {op} is not one that torch_eager runs; it has: {', '.join(OPERATORS)}")
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs, output = list(node.input), node.output[0]
            if all(name in self.constants for name in inputs):
                try:
                    value = OPERATORS[op](*[self.constants[name] for name in inputs], **attributes)
                except Exception as error:
                    raise ModelError(f"operator {op} of constants does not run ({first_line(error)})") from None
                self.constants[output] = _channels_last(value)
            else:
                steps.append(Step(operators[op], inputs, attributes, output, []))
        needed = {self._output, *self.constants}
        for step in reversed(steps):
            step.spent.extend(set(step.inputs) - needed)
            needed.update(step.inputs)
        return steps


class TorchSession:
    """A program on a number of threads, without gradients."""

    def __init__(self, model: bytes, device: DeviceSpec) -> None:
        require(device, "provider", ("cpu",), "PyTorch runtime")
        require(device, "precision", ("fp32",), "PyTorch runtime", "int8 is one of onnxruntime, bf16 of openvino")
        require(device, "optimization", ("all",), "PyTorch runtime", "levels are a setting of onnxruntime")
        if device.provider_options:
            raise DeviceError(
                f"device {device.name}: provider_options {device.provider_options}, torch_eager has none; drop them"
            )
        self._num_threads = device.num_threads
        self._program = Program(model)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._forward(torch.from_numpy(inputs)).numpy()

    def prepare(self, inputs: NDArray[np.float32]) -> Callable[[], object]:
        images = torch.from_numpy(inputs)
        self._forward(images)
        return lambda: self._forward(images)

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> Tensor:
        try:
            with _threads(self._num_threads):
                return self._program(images)
        except Exception as error:
            raise ModelError(f"model does not run on input {tuple(images.shape)} ({first_line(error)})") from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with so many threads. Their number belongs to the whole process in torch, so that of before is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _channels_last(tensor: Tensor) -> Tensor:
    """Weights in this layout spread it to all activations; measured 11-16 % faster than NCHW (4 spaces, AVX-512, 1 thread)."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _padded(x: Tensor, pads: Ints, value: float = 0.0) -> tuple[Tensor, Ints]:
    """Return (x, padding left to torch's functions, which know only equal ones on both ends); unequal ones are added to x."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Ints = (),
    strides: Ints = (1, 1),
    pads: Ints = NO_PADS,
    dilations: Ints = (1, 1),
    group: int = 1,
) -> Tensor:
    x, padding = _padded(x, pads)
    return F.conv2d(x, weight, bias, strides, padding, dilations, group)


def _max_pool(x: Tensor, *, kernel_shape: Ints, strides: Ints = (1, 1), pads: Ints = NO_PADS) -> Tensor:
    x, padding = _padded(x, pads, -torch.inf)
    return F.max_pool2d(x, kernel_shape, strides, padding)


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints = (1, 1),
    pads: Ints = NO_PADS,
    count_include_pad: int = 0,
) -> Tensor:
    outer, padding = _padded(x, pads)
    mean = F.avg_pool2d(outer, kernel_shape, strides, padding, count_include_pad=bool(count_include_pad))
    if outer is x or count_include_pad:
        return mean
    inside, _ = _padded(torch.ones_like(x[:1, :1]), pads)
    return mean / F.avg_pool2d(inside, kernel_shape, strides)  # the share of each window that lies on the image


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transB: int = 0) -> Tensor:
    return F.linear(x, weight if transB else weight.T, bias)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return (alpha * x + beta).clamp(0, 1)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(*[None if bound is None else bound.item() for bound in (low, high)])  # tensors as bounds are slower


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(x.shape[:axis].numel(), -1)


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor) -> Tensor:
    parts = [slice(None)] * x.ndim
    for axis, *bounds in zip(*(part.tolist() for part in (axes, starts, ends, steps)), strict=True):
        parts[axis] = slice(*bounds)
    return x[tuple(parts)]


def _cast(x: Tensor, *, to: int) -> Tensor:
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(to))).dtype)


def _quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    bounds = torch.iinfo(zero_point.dtype)
    steps = (x / scale).round_().add_(zero_point.to(x.dtype))  # rounds halves to even, as the standard does
    return steps.clamp_(bounds.min, bounds.max).to(zero_point.dtype)


def _dequantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1) -> Tensor:
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
    if scale.ndim:  # one for each index of an axis
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (x.to(scale.dtype) - zero) * scale


def _constant_of_shape(shape: Tensor, *, value: onnx.TensorProto) -> Tensor:
    return torch.tensor(numpy_helper.to_array(value)).expand(shape.tolist()).clone()


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *inputs, axis: torch.cat(inputs, axis),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "DequantizeLinear": _dequantize_linear,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "QuantizeLinear": _quantize_linear,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Sub": torch.sub,
}


def open_session(model: bytes, device: DeviceSpec) -> TorchSession:
    """Open a model; see deploy.runtimes.open_session."""
    return TorchSession(model, device)
