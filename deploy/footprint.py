"""What a deployed network takes: memory for its activations while it runs, and bytes on disk.

Both follow from the operators that deploy/emit.py writes, so they stand beside it.

Memory: the activations of one image that are there at once, operators in the emitted order. An activation function works in
place, except that swish = x * sigmoid(x) needs a second tensor; a block's input stays as long as its shortcut needs it; weights
are not counted. A network needs what its hungriest block needs: a maximum, not a sum. In a cell, what other blocks have yet to
read waits meanwhile: `network_peak` counts that of one network; a space's slots say how much it is at most (`Slot.waiting`).

ONNX Runtime (1.31, AVX-512, one image, fp32) plans one region of memory for all activations. Over random networks of the spaces
for images of 32 px and more it is 1.0 to 1.8 times our number, in the median 1.13 to 1.19 (mobile blocks) and 1.0 to 1.25
(bottlenecks): tensors are placed one after the other and leave holes that the next does not fit into, and channels are rounded
up to the vector width. It is down to 0.7 times where a convolution is added into its shortcut's memory (wide bottlenecks), and
up to 2.5 times below 100 KiB, where rounding rules. In int8 our number is one byte each, as an executor has it that computes
everything in integers, such as one for microcontrollers; ONNX Runtime takes 2 to 10 times that (float HardSwish, scratch space).

Size: what deploy/export.py writes as model.onnx: weights with BatchNorm folded in, and around them nodes, names and metadata.
It is read off the graph with constant weights that the emitter writes for a block, so every precision that the emitter has is
counted exactly; only names of blocks and classes are taken as of average length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import onnx
from onnx import TensorProto, numpy_helper

from deploy.emit import emit
from ofa.block_spec import IMAGES, BlockSpec, last_readers, wiring
from ofa.shufflenet import branch_channels
from ofa.slots import se_channels
from ofa.space import SearchSpace

STAGE_BLOCK, CELL_BLOCK, OTHER_BLOCK = "stage1_block0", "cell12_node3_from1", "final"  # names of usual length
FRAME_BYTES = 130  # of a file of no blocks
FACT_BYTES, CLASS_BYTES = 630, 10  # of metadata: all but the architecture and the classes; one class


def block_peak(spec: BlockSpec) -> int:
    """Return the largest number of activations that are there at once while a block runs on one image."""
    return max(PEAKS[spec.kind](spec), _shortcut_peak(spec))


def _in(s: BlockSpec) -> int:
    return s.in_channels * (1 if s.kind == "linear" else s.resolution**2)


def _out(s: BlockSpec) -> int:
    return s.out_channels * s.out_resolution**2


def _kept(s: BlockSpec) -> int:
    """Activations of the input that wait for the shortcut."""
    return 0 if s.shortcut == "none" else _in(s)


def _activated(s: BlockSpec, tensor: int) -> int:
    """Activations that are there while an activation function turns a tensor into the next."""
    return 2 * tensor if s.act == "swish" else tensor


def _layer_peak(s: BlockSpec) -> int:
    return max(_in(s) + _out(s), _kept(s) + _activated(s, _out(s)))


def _mbconv_peak(s: BlockSpec) -> int:
    hidden, kept = s.hidden_channels, _kept(s)
    wide, narrow = hidden * s.resolution**2, hidden * s.out_resolution**2  # before and after the depthwise convolution
    expand = max(_in(s) + wide, kept + _activated(s, wide)) if hidden != s.in_channels else 0
    depthwise = max((kept if expand else 0) + wide + narrow, kept + _activated(s, narrow))
    squeeze = kept + narrow + hidden + se_channels(s) if s.se else 0
    return max(expand, depthwise, squeeze, kept + narrow + _out(s))


def _bottleneck_peak(s: BlockSpec) -> int:
    kept = _kept(s)
    wide, narrow = s.hidden_channels * s.resolution**2, s.hidden_channels * s.out_resolution**2
    reduce = max(_in(s) + wide, kept + _activated(s, wide))
    spatial = max(kept + wide + narrow, kept + _activated(s, narrow))
    return max(reduce, spatial, kept + narrow + _out(s), _activated(s, _out(s)))


def _pool_peak(s: BlockSpec) -> int:
    return _in(s) + _out(s)


def _shortcut_peak(s: BlockSpec) -> int:
    """Peak while the shortcut is computed, the branch being done."""
    if s.shortcut in ("none", "identity"):
        return 0
    pooled = s.in_channels * s.out_resolution**2  # the input itself where the stride is 1
    pool = _out(s) + _in(s) + pooled if s.stride > 1 else 0
    conv = _out(s) + pooled + _out(s) if s.shortcut != "pool" else 0
    return max(pool, conv)


def _sep_conv_peak(s: BlockSpec) -> int:
    middle = s.in_channels * s.out_resolution**2
    return max(_in(s) + middle, 2 * middle, middle + _out(s))


def _dil_conv_peak(s: BlockSpec) -> int:
    middle = s.in_channels * s.out_resolution**2
    return max(_in(s) + middle, middle + _out(s))


def _row_column_peak(s: BlockSpec) -> int:
    middle = s.in_channels * s.resolution * s.out_resolution
    return max(_in(s) + middle, middle + _out(s))


def _basic_peak(s: BlockSpec) -> int:
    kept = _kept(s)
    return max(kept + _in(s), (kept if kept else 0) + _in(s) + _out(s), kept + 2 * _out(s))


def _sum_peak(s: BlockSpec) -> int:
    return s.num_inputs * _in(s)


def _shuffle_peak(s: BlockSpec) -> int:
    wide, narrow = s.hidden_channels * s.resolution**2, s.hidden_channels * s.out_resolution**2
    return _two_halves_peak(s, max(_branch_in(s) + wide, wide + narrow, narrow + _branch_out(s)))


def _xception_peak(s: BlockSpec) -> int:
    narrow, hidden = (channels * s.out_resolution**2 for channels in (branch_channels(s)[0], s.hidden_channels))
    return _two_halves_peak(s, max(_branch_in(s) + narrow, narrow + hidden, 2 * hidden, hidden + _branch_out(s)))


def _two_halves_peak(s: BlockSpec, branch: int) -> int:
    """Peak of a choice block whose branch takes so many activations, besides those that wait for it to end."""
    out = _branch_out(s)
    if s.stride == 1:
        kept = _in(s) // 2
        return max(2 * _in(s), kept + branch, kept + out + _out(s))
    projected = s.in_channels * s.out_resolution**2
    return max(_in(s) + branch, _in(s) + out + projected, out + 2 * projected, out + projected + _out(s))


def _branch_in(s: BlockSpec) -> int:
    """What only the branch reads: half of the channels, or nothing, where the projection reads all of them too."""
    return _in(s) // 2 if s.stride == 1 else 0


def _branch_out(s: BlockSpec) -> int:
    return branch_channels(s)[1] * s.out_resolution**2


PEAKS: dict[str, Callable[[BlockSpec], int]] = {
    "conv": _layer_peak,
    "mbconv": _mbconv_peak,
    "bottleneck": _bottleneck_peak,
    "maxpool": _pool_peak,
    "pad": _pool_peak,
    "pool": _pool_peak,
    "linear": _layer_peak,
    "relu_conv": _layer_peak,
    "factorized_reduce": _layer_peak,
    "sep_conv": _sep_conv_peak,
    "dil_conv": _dil_conv_peak,
    "relu_sep": _dil_conv_peak,
    "row_column_conv": _row_column_peak,
    "avgpool": _pool_peak,
    "basic": _basic_peak,
    "norm": _layer_peak,
    "sum": _sum_peak,
    "concat": _pool_peak,
    "zeros": _in,
    "shuffle": _shuffle_peak,
    "xception": _xception_peak,
}
CELL_KINDS = (
    *("relu_conv", "factorized_reduce", "sep_conv", "dil_conv", "relu_sep", "row_column_conv", "avgpool"),
    *("sum", "concat", "zeros", "pad"),
)
# begin with a step in the place of their input, which others may read too
IN_PLACE = ("relu_conv", "factorized_reduce", "sep_conv", "dil_conv", "relu_sep", "row_column_conv", "basic", "sum", "zeros")


def network_peak(blocks: Mapping[str, BlockSpec]) -> int:
    """Return the largest number of activations that are there at once while a network runs on one image."""
    wires = wiring(blocks)
    done = last_readers(wires)
    first = next(iter(blocks.values()))
    live, peak = {IMAGES: _in(first)}, 0
    for name, sources in wires.items():
        spec = blocks[name]
        waiting = sum(size for source, size in live.items() if source not in sources)
        if spec.kind in IN_PLACE and not set(sources) & set(done[name]):
            waiting += _in(spec)
        peak = max(peak, waiting + block_peak(spec))
        live[name] = _out(spec)
        for source in done[name]:
            del live[source]
    return peak


def block_file_bytes(spec: BlockSpec, precision: str = "fp32") -> int:
    """Return what a block adds to the size of a file, bytes.

    Args:
        precision: one of deploy.limits.PRECISIONS.
    """
    return _block_file_bytes(replace(spec, resolution=1), precision)  # weights and nodes are the same at every resolution


def frame_file_bytes(space: SearchSpace) -> int:
    """Return the size of a file without its blocks, bytes: what every file holds, and the metadata of an export."""
    arch = json.dumps(space.to_json(space.largest)["values"])
    return FRAME_BYTES + FACT_BYTES + len(arch) + CLASS_BYTES * space.num_classes


@lru_cache(maxsize=4096)
def _block_file_bytes(spec: BlockSpec, precision: str) -> int:
    # in a chain of two, the first is as in a network: what stands between it and the next is its own
    name = STAGE_BLOCK if spec.hidden_channels else CELL_BLOCK if spec.kind in CELL_KINDS else OTHER_BLOCK
    return _dense_bytes({name: spec, "next": spec}, precision) - _dense_bytes({"next": spec}, precision)


def _dense_bytes(blocks: dict[str, BlockSpec], precision: str) -> int:
    """Size of a file if every tensor of constants in it were stored in full."""
    content = emit(blocks, precision=precision)
    graph = onnx.load_from_string(content).graph
    constants = {node.input[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    size = len(content)
    for shape in graph.initializer:
        if shape.name in constants:
            node = constants[shape.name]
            value, dims = node.attribute[0].t, numpy_helper.to_array(shape).tolist()
            item = numpy_helper.to_array(value).itemsize
            tensor = TensorProto(name=node.output[0], dims=dims, data_type=value.data_type)
            size += _framed(tensor.ByteSize() + _framed(item * math.prod(dims)))
            size -= _framed(node.ByteSize()) + _framed(shape.ByteSize())
    return size


def _framed(length: int) -> int:
    """Size of a field of `length` bytes in a protobuf message: a tag, the length in steps of seven bits, the bytes."""
    return 1 + -(-max(1, length.bit_length()) // 7) + length
