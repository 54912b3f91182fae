"""ONNX Runtime: the runtime that ships. Graph optimisation at its highest level, as a deployed session has it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from deploy.device import DeviceError, DeviceSpec
from ofa.errors import OfaError


class ModelError(OfaError):
    """The runtime cannot read or run a model."""


class OrtSession:
    """An ONNX Runtime session with one input and one output."""

    def __init__(self, model: bytes, device: DeviceSpec) -> None:
        if device.provider not in ort.get_available_providers():
            raise DeviceError(
                f"device {device.name}: provider {device.provider!r} is not in this ONNX Runtime; "
                f"it has: {', '.join(ort.get_available_providers())}"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = device.num_threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # failures are raised; the log would only repeat them
        try:
            self._session = ort.InferenceSession(model, options, providers=[device.provider])
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"not a model that ONNX Runtime {ort.__version__} can read ({_first_line(error)})") from None
        if len(self._session.get_inputs()) != 1 or len(self._session.get_outputs()) != 1:
            raise ModelError("model does not have exactly one input and one output")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            out: NDArray[np.float32] = self._session.run([self._output], {self._input: inputs})[0]
        except Exception as error:
            raise ModelError(f"model does not run on input {inputs.shape} ({_first_line(error)})") from None
        return out

    def prepare(self, inputs: NDArray[np.float32]) -> Callable[[], object]:
        output = self.run(inputs)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, ort.OrtValue.ortvalue_from_numpy(inputs))
        binding.bind_ortvalue_output(self._output, ort.OrtValue.ortvalue_from_numpy(output))
        session = self._session
        return lambda: session.run_with_iobinding(binding)


def open_session(model: bytes, device: DeviceSpec) -> OrtSession:
    """Open a model; see deploy.runtimes.open_session."""
    return OrtSession(model, device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
