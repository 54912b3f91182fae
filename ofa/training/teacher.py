"""External teachers: another network, a trained run, or an ONNX file, asked for logits without gradient.

A network of ours is folded first: BatchNorm becomes part of the convolutions, which takes a third off the price of asking.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ofa.artefacts import sha256_of
from ofa.errors import OfaError
from ofa.layers import ConvBN
from ofa.run_dir import Run, max_resolution
from ofa.training.calibration import calibrate
from ofa.training.data import Images, Preprocessing, calibration_batches

Teacher = Callable[[Tensor], Tensor]  # uint8 images (n, 3, h, w) -> logits (n, classes)


class TeacherError(OfaError):
    """A teacher cannot be read or does not fit the task."""


def open_teacher(source: nn.Module | Path | str, train: Images, preprocess: Preprocessing, device: torch.device) -> Teacher:
    """Return a teacher of the run's classes.

    Args:
        source: a network that takes normalised images, a run directory (its largest network teaches), or an ONNX file that takes
            images normalised as the run's are.
        train: images to calibrate and to try it on.
    Raises:
        TeacherError: if it cannot be read, or has another number of classes.
    """
    if isinstance(source, nn.Module):
        teacher = network_teacher(source, preprocess, train.size, device)
    elif str(source).endswith(".onnx"):
        teacher = _onnx_teacher(Path(source), preprocess, train.size)
    else:
        run = Run(source)
        if run.data.classes != train.classes:
            raise TeacherError(f"teacher {source}: its classes are not those of the images; give one of the same classes")
        resolution = max_resolution(run.space)
        net = run.load_supernet().extract(run.space.largest)
        calibrate(net, calibration_batches(train, run.preprocess, resolution))
        teacher = network_teacher(net, run.preprocess, resolution, device)
    try:
        logits = teacher(train.images[:2].to(device))
    except Exception as error:  # whatever a foreign network raises
        raise TeacherError(f"teacher {_name(source)}: cannot run ({str(error).splitlines()[0]})") from None
    if logits.shape != (2, len(train.classes)):
        raise TeacherError(
            f"teacher {_name(source)}: gives {tuple(logits.shape)[1:]} logits an image, expected ({len(train.classes)},)"
        )
    return teacher


def fingerprint(source: nn.Module | Path | str) -> str:
    """Tell which teacher it is, so that a resumed run can insist on the same."""
    if isinstance(source, nn.Module):
        return f"network given from Python ({type(source).__name__})"
    path = Path(source)
    return sha256_of(path) if path.is_file() else Run(path).weights_sha256


def network_teacher(net: nn.Module, preprocess: Preprocessing, resolution: int, device: torch.device) -> Teacher:
    """Make a teacher of a copy of a network, in eval mode; the BatchNorms of a network that is not ours stay."""
    net = fold_batchnorm(copy.deepcopy(net)).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        logits: Tensor = net(preprocess(images, resolution))
        return logits

    return ask


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """Fold every BatchNorm of our blocks into its convolution, in place; the outputs in eval mode stay as they are."""
    for module in net.modules():
        if isinstance(module, ConvBN) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
            module.bn = nn.Identity()  # type: ignore[assignment]
    return net


def _onnx_teacher(path: Path, preprocess: Preprocessing, size: int) -> Teacher:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TeacherError(f"teacher {path}: not a readable ONNX file ({str(error).splitlines()[0]})") from None
    given = session.get_inputs()[0]
    side = given.shape[-1]
    resolution = side if isinstance(side, int) else size

    def ask(images: Tensor) -> Tensor:
        normalised = preprocess(images.cpu(), resolution).contiguous()
        return torch.from_numpy(session.run(None, {given.name: normalised.numpy()})[0]).to(images.device)

    return ask


def _name(source: nn.Module | Path | str) -> str:
    return type(source).__name__ if isinstance(source, nn.Module) else str(source)
