"""Export any PyTorch image classifier, such as one of torchvision, into the same bundle through the same checks."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.comparison import compare
from deploy.convert import to_fp16, to_int8
from deploy.device import get_device
from deploy.graphs import UINT16_OPSET
from deploy.memory import measure_peak
from deploy.pack import GOLDEN_IMAGES, ExportedModel, Source, metadata, pack, preprocessing
from deploy.parity import REFERENCE_DEVICE
from deploy.precision import COMMON, PrecisionError
from deploy.rounding import CALIBRATION_IMAGES, JUDGED_IMAGES, describe
from deploy.runtimes import first_line, open_session
from deploy.torch_export import Exporter, onnx_of_module
from ofa.errors import OfaError
from ofa.find_arch import find_genotype
from ofa.formats.darts import load_network
from ofa.formats.published import read_tensors
from ofa.functions import load_function
from ofa.genotype import Genotype
from ofa.progress import say
from ofa.training.data import Images, Preprocessing, calibration_batches, load_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # that DARTS and what builds on it normalise with
Three = tuple[float, float, float]


def export_module(
    net: nn.Module,
    out: Path | str,
    *,
    resolution: int = 224,
    stored_size: int | None = None,
    mean: Three = IMAGENET_MEAN,
    std: Three = IMAGENET_STD,
    classes: Sequence[str] | None = None,
    data: str | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    exporter: Exporter = "torchscript",
) -> ExportedModel:
    """Write a network as one ONNX file, and check it.

    Args:
        net: maps images (n, 3, resolution, resolution) to logits (n, classes).
        out: folder to write.
        resolution: of the network's input, px.
        stored_size: what images are resized to first, px; None = the resolution.
        mean: of pixels in [0, 1], by which the network's input is normalised; ImageNet's by default.
        std: likewise.
        classes: their names in the order of the logits; None = those of `data`, or numbers.
        data: images as for training (ofa.training.data.load_images): verified on its test split; rounding to integers needs it.
        precision: fp32, fp16, int8 or a16w8.
        opset: None = 17, or 21 where the precision needs it.
        exporter: of torch, see deploy.torch_export.

    Raises:
        OfaError: if the network cannot be written, does not fit the classes, or integers are asked for without images.
        ParityError: if ONNX Runtime and PyTorch disagree; nothing is written then.
    """
    if precision not in COMMON:
        raise PrecisionError(f"precision {precision!r}: a module can be exported in {', '.join(COMMON)}")
    if precision in ("int8", "a16w8") and data is None:
        raise OfaError(f"precision {precision}: needs images to calibrate on; name some with data")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise OfaError(f"mean {mean}, std {std}: expected finite numbers, those of std above zero")
    size = stored_size or resolution
    how = Preprocessing(mean, std, flip=False)
    train = None if data is None else load_images(data, "train", size=size, classes=None if classes is None else tuple(classes))
    size = size if train is None else train.size  # named data sets come in a size of their own
    net = copy.deepcopy(net).cpu().eval()
    names = list(train.classes) if train is not None else list(classes or [])
    source = _describe(net, resolution, size, how, names, train, {"name": Path(out).resolve().name, "data": _source_name(data)})
    opset = opset or (UINT16_OPSET if precision == "a16w8" else 17)
    told = metadata(source, precision)
    reference = onnx_of_module(net, (3, resolution, resolution), opset=opset, exporter=exporter, metadata=told)
    content, quantisation = reference, None
    if precision == "fp16":
        content = to_fp16(reference)
        # some runtimes die of fp16 attention: in a process of its own, that is an error with a reason
        measure_peak(content, get_device(REFERENCE_DEVICE), (1, 3, resolution, resolution))
    elif precision != "fp32":
        assert train is not None
        batches = calibration_batches(train, how, resolution, num_images=CALIBRATION_IMAGES, batch_size=32)
        inputs = (np.ascontiguousarray(batch.numpy()) for batch in batches)
        content = to_int8(reference, inputs, activation_bits=8 if precision == "int8" else 16)
    if precision != "fp32" and train is not None:
        judged = train.subset(np.random.default_rng(1).permutation(len(train))[:JUDGED_IMAGES])
        ours, theirs = (open_session(each, get_device(REFERENCE_DEVICE)) for each in (content, reference))
        cost = compare(ours, theirs, judged, how, resolution)
        say(describe(precision, cost, {}, split="training"))
        quantisation = {**asdict(cost), "split": "training"}
    return pack(out, content, source, reference=reference, precision=precision, quantisation=quantisation)


class Cells(NamedTuple):
    """A network of published cells, and the images that it was trained on."""

    net: nn.Module
    resolution: int  # px
    mean: Three
    std: Three


def load_cells(cells: str, weights: Path | str) -> Cells:
    """Return a network of published cells with the weights of its authors' code.

    Args:
        cells: name of a published cell, or a file with a genotype.
        weights: its state_dict (ofa.formats.darts).
    Raises:
        OfaError: if there are no such cells, or the weights are not theirs.
    """
    genotype = find_genotype(cells)
    if not isinstance(genotype, Genotype):
        raise OfaError(f"{cells}: takes no --weights: its run has them; they are for a published cell, such as darts_v2")
    space, arch, net = load_network(weights, genotype)
    small = space.stem == "cifar"
    return Cells(net, space.resolution(arch), *((CIFAR_MEAN, CIFAR_STD) if small else (IMAGENET_MEAN, IMAGENET_STD)))


def make_module(function: str, *, num_classes: int | None = None, weights: Path | str | None = None) -> nn.Module:
    """Call a function that returns a network, such as "torchvision.models:mobilenet_v3_large", and load its weights.

    Args:
        function: package.module:function, called with `num_classes` if it takes that and it is given.
        weights: a state_dict (.safetensors, .pth); None = those that the function returns it with.

    Raises:
        OfaError: if there is no such function, it fails, returns something else, or the weights do not fit.
    """
    make = load_function(function, what="network", expected="package.module:function, e.g. torchvision.models:mobilenet_v3_large")
    arguments: dict[str, Any] = {}
    if num_classes is not None and _takes(make, "num_classes"):
        arguments["num_classes"] = num_classes
    try:
        net = make(**arguments)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise OfaError(
            f"network {function!r}: fails when called with {arguments or 'no arguments'} ({first_line(error)})"
        ) from None
    if not isinstance(net, nn.Module):
        raise OfaError(f"network {function!r}: returns a {type(net).__name__}, expected a torch.nn.Module")
    if weights is None:
        say(f"warning: {function} is exported with the weights that it is made with; name trained ones with --weights")
        return net
    try:
        net.load_state_dict(read_tensors(weights))
    except RuntimeError as error:
        raise OfaError(f"{weights}: not the weights of {function} ({' '.join(str(error).split())[:200]})") from None
    return net


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@torch.no_grad()
def _describe(
    net: nn.Module, resolution: int, size: int, how: Preprocessing, names: list[str], train: Images | None, record: dict[str, Any]
) -> Source:
    images = torch.zeros(1, 3, resolution, resolution)
    try:
        outputs = net(images)
        count = int(outputs.shape[1])
    except Exception as error:  # whatever the network's own code raises
        raise OfaError(
            f"{type(net).__name__}: does not map images {tuple(images.shape)} to (1, classes) logits ({first_line(error)})"
        ) from None
    if unprintable := [name for name in names if not name.isprintable() or not name]:
        raise OfaError(f"class {unprintable[0]!a}: expected names of printable characters, one a line of labels.txt")
    if names and len(names) != count:
        raise OfaError(
            f"{type(net).__name__}: has {count} logits, but there are {len(names)} classes ({', '.join(names[:5])}, ...)"
        )
    return Source(
        net=net,
        preprocess=preprocessing(resolution, size, how),
        examples=_examples(train, size),
        facts={"space": None, "arch": None, "classes": names or [str(i) for i in range(count)], "weights_sha256": None},
        record=record,
    )


def _examples(train: Images | None, size: int) -> NDArray[np.uint8]:
    """Some images for the golden output: of the data, or noise."""
    if train is None:
        return np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, size, size, 3), dtype=np.uint8)
    return train.images[:GOLDEN_IMAGES].permute(0, 2, 3, 1).contiguous().numpy()


def _source_name(data: str | None) -> str | None:
    """Name data as a run does: paths so that they are found from elsewhere."""
    return data if data is None or not Path(data).exists() else str(Path(data).resolve())
