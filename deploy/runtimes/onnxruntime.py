"""ONNX Runtime: the runtime that ships. By default with graph optimisation at its highest level, as a deployed session has it.

A provider is an execution provider that the installed build has (CPUExecutionProvider, CUDAExecutionProvider, ...), by that name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from deploy.device import DeviceError, DeviceSpec
from deploy.runtimes import ModelError, first_line, require

VERSION: str = ort.__version__
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,  # no layouts of a processor's own
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class OrtSession:
    """An ONNX Runtime session with one input and one output."""

    def __init__(self, model: bytes, device: DeviceSpec) -> None:
        require(device, "provider", ort.get_available_providers(), "ONNX Runtime")
        require(device, "precision", ("fp32", "fp16", "int8", "a16w8"), "ONNX Runtime", "bf16 is a setting of openvino")
        providers = [(device.provider, device.provider_options)]
        try:  # without the fallback: it prints, and starts what was not asked for
            self._session = ort.InferenceSession(model, session_options(device), providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"not a model that ONNX Runtime {VERSION} can read ({first_line(error)})") from None
        if self._session.get_providers()[0] != device.provider:
            raise DeviceError(
                f"device {device.name}: {device.provider} does not start here, ONNX Runtime would use "
                f"{self._session.get_providers()[0]} instead; see its page for the libraries and options that it needs"
            )
        if len(self._session.get_inputs()) != 1 or len(self._session.get_outputs()) != 1:
            raise ModelError("model does not have exactly one input and one output")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            out: NDArray[np.float32] = self._session.run([self._output], {self._input: inputs})[0]
        except Exception as error:
            raise ModelError(f"model does not run on input {inputs.shape} ({first_line(error)})") from None
        return out

    def prepare(self, inputs: NDArray[np.float32]) -> Callable[[], object]:
        output = self.run(inputs)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, ort.OrtValue.ortvalue_from_numpy(inputs))
        binding.bind_ortvalue_output(self._output, ort.OrtValue.ortvalue_from_numpy(output))
        session = self._session
        return lambda: session.run_with_iobinding(binding)


def session_options(device: DeviceSpec) -> ort.SessionOptions:
    """Return the options that fix how a device's sessions run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = LEVELS[device.optimization]
    options.log_severity_level = 4  # failures are raised; the log would only repeat them
    return options


def open_session(model: bytes, device: DeviceSpec) -> OrtSession:
    """Open a model; see deploy.runtimes.open_session."""
    return OrtSession(model, device)
