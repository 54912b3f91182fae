"""OpenVINO: another runtime for Intel and AMD processors, and for Intel's GPUs; an optional package.

A provider is one of its devices ("CPU", "GPU"), provider options are its properties. bf16 and fp16 are how it runs an fp32 file;
they are refused where the hardware has them not, because it would silently take another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceError, DeviceSpec
from deploy.runtimes import ModelError, first_line, require

try:
    import openvino as ov
except ImportError as error:
    raise DeviceError(f"runtime openvino is not installed ({error}); run: pip install 'ofa-toolkit[openvino]'") from None

VERSION: str = ov.__version__.partition("-")[0]  # without the build
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}  # of an int8 file, for what it leaves in float


class OpenVinoSession:
    """An OpenVINO model with one input and one output, compiled once for each of `run` and `prepare`."""

    def __init__(self, model: bytes, device: DeviceSpec) -> None:
        self._core, self._device = ov.Core(), device
        require(device, "provider", self._core.available_devices, "OpenVINO")
        able = self._core.get_property(device.provider, "OPTIMIZATION_CAPABILITIES")
        require(device, "precision", [name for name in HINTS if name.upper() in able], "hardware's OpenVINO")
        require(device, "optimization", ("all",), "OpenVINO", "other levels are settings of onnxruntime")
        self._config = _config(device)
        try:
            self._model = self._core.read_model(model)
        except RuntimeError as error:
            raise ModelError(f"not a model that OpenVINO {VERSION} can read ({_reason(error)})") from None
        if len(self._model.inputs) != 1 or len(self._model.outputs) != 1:
            raise ModelError("model does not have exactly one input and one output")

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._one_line(inputs):
            out: NDArray[np.float32] = self._any_batch.infer(inputs)[0]
        return out

    def prepare(self, inputs: NDArray[np.float32]) -> Callable[[], object]:
        with self._one_line(inputs):
            request = self._compile(inputs.shape)
            request.get_input_tensor().data[:] = inputs
            request.infer()
        # infer, not start_async: it works in the calling thread; shared outputs, or each call would copy them
        return lambda: request.infer(share_outputs=True)

    @contextmanager
    def _one_line(self, inputs: NDArray[np.float32]) -> Iterator[None]:
        """Turn what goes wrong into a ModelError."""
        shape = self._model.inputs[0].partial_shape
        if not shape.compatible(ov.PartialShape(list(inputs.shape))):  # it would compute nothing, and say nothing
            raise ModelError(f"model does not run on input {inputs.shape} (it takes {shape})")
        try:
            yield
        except RuntimeError as error:
            raise ModelError(f"model does not run on input {inputs.shape} ({_reason(error)})") from None

    @cached_property
    def _any_batch(self) -> ov.InferRequest:
        return self._compile(None)

    def _compile(self, shape: Sequence[int] | None) -> ov.InferRequest:
        model = self._model.clone()
        if shape is not None:
            model.reshape(list(shape))
        return self._core.compile_model(model, self._device.provider, self._config).create_infer_request()


def _config(device: DeviceSpec) -> dict[str, str]:
    """Return OpenVINO's properties for a device."""
    config = {"INFERENCE_PRECISION_HINT": HINTS[device.precision], "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if device.provider == "CPU":
        config["INFERENCE_NUM_THREADS"] = str(device.num_threads)
    for name in config.keys() & device.provider_options:
        raise DeviceError(f"device {device.name}: provider option {name} is set by the toolkit, to {config[name]}; leave it out")
    return {**config, **device.provider_options}


def _reason(error: RuntimeError) -> str:
    """Leave out where in OpenVINO's sources an error was raised, which comes first."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check "))]
    return " ".join(lines)[:200] or first_line(error)


def open_session(model: bytes, device: DeviceSpec) -> OpenVinoSession:
    """Open a model; see deploy.runtimes.open_session."""
    return OpenVinoSession(model, device)
