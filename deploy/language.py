"""Export a language model as one step: tokens and hidden states in, log-probabilities and hidden states out.

A step is what a device runs: the caller keeps the hidden state, picks the next token, and calls again. Written through torch's
exporter; checked in ONNX Runtime against PyTorch over several steps before anything is written.

model.onnx        tokens (batch,) int64, hidden (batch, state_features) -> log_probabilities (batch, vocabulary), next_hidden
model.json        sizes, cell, digests, the check's error
vocabulary.json   what the numbers of tokens stand for
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from deploy.onnx_file import write_model
from deploy.pack import ParityError
from deploy.parity import BATCHES, relative_error
from deploy.quiet import quiet
from deploy.runtimes import first_line
from deploy.torch_export import TorchExportError
from ofa.artefacts import format_json, write_all
from ofa.language_model import LanguageModel
from ofa.training.language import VOCABULARY_SCHEMA, load_language_model

SCHEMA = "ofa.language_export/1"
OPSET = 17  # read by ONNX Runtime from 1.12 on
TOLERANCE = 1e-5  # of the largest |log-probability| or |state|: float32 sums in another order
STEPS = 20  # that the check runs, each from the hidden state of the one before
INPUTS, OUTPUTS = ("tokens", "hidden"), ("log_probabilities", "next_hidden")


@dataclass(frozen=True, slots=True)
class ExportedLanguageModel:
    """What was written."""

    path: Path
    vocabulary: int
    features: int
    state_features: int  # of the hidden state: the features, or more where a cell has a memory beside them
    parity_error: float  # largest relative difference to PyTorch
    size_mib: float


class OneStep(nn.Module):
    """One step of a language model."""

    def __init__(self, net: LanguageModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (batch, vocabulary) and the new hidden state for tokens (batch,) and the last one."""
        logits, hidden = self.net.step(tokens, hidden)
        return torch.log_softmax(logits, dim=-1), hidden


def export_language_model(folder: Path | str, out: Path | str) -> ExportedLanguageModel:
    """Write the best model of a training folder as ONNX, and check it.

    Args:
        folder: that `ofa.training.language.train_language_model` made.
        out: folder to write.
    Raises:
        ArtefactError: if there is no trained model, or it is damaged.
        TorchExportError: if torch's exporter cannot write the cell.
        ParityError: if ONNX Runtime and PyTorch disagree; nothing is written then.
    """
    net, vocabulary = load_language_model(folder)
    content = onnx_of_language_model(net)
    error = step_error(net, content)
    if not error <= TOLERANCE:
        raise ParityError(
            f"{folder}: ONNX Runtime and PyTorch differ by {error:.2g} of the largest value, allowed is {TOLERANCE:g}"
        )
    out = Path(out)
    facts = {
        "schema": SCHEMA,
        "genotype": str(net.cell.genotype) if hasattr(net.cell, "genotype") else None,
        "vocabulary": len(vocabulary),
        "features": net.cell.features,
        "state_features": net.cell.state_features,
        "opset": OPSET,
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "parity_error": error,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    tokens = {"schema": VOCABULARY_SCHEMA, "kind": vocabulary.kind, "tokens": list(vocabulary.tokens)}
    files = {
        "vocabulary.json": format_json(tokens, sealed=True),
        "model.onnx": content,
        "model.json": format_json(facts, sealed=True),
    }
    write_all(out, files)
    sizes = len(vocabulary), net.cell.features, net.cell.state_features
    return ExportedLanguageModel(out / "model.onnx", *sizes, error, len(content) / 2**20)


def onnx_of_language_model(net: LanguageModel) -> bytes:
    """Return the bytes of an ONNX model of one step, equal for equal networks; the batch is dynamic.

    Raises:
        TorchExportError: if torch's exporter cannot write it.
    """
    step = OneStep(net).eval()
    # two: one would be taken for a constant
    arguments = (torch.zeros(2, dtype=torch.long), net.no_text(2))
    buffer: Any = io.BytesIO()  # torch's annotation knows files only
    with quiet():
        try:
            torch.onnx.export(
                step,
                arguments,
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "batch"} for name in (*INPUTS, *OUTPUTS)},
            )
        except Exception as error:  # an exporter runs the network's own code and raises whatever it meets
            raise TorchExportError(f"torch's exporter cannot write this language model ({first_line(error)})") from None
    model = onnx.load_from_string(buffer.getvalue())
    for value, size in zip(model.graph.output, (len(net.embedding), net.cell.state_features), strict=True):
        value.type.tensor_type.shape.dim[1].dim_value = size  # the exporter knows it, and writes a name
    return write_model(model, {})


@torch.no_grad()
def step_error(net: LanguageModel, content: bytes) -> float:
    """Return the largest relative difference between ONNX Runtime and PyTorch over some steps of batches of 1, 3 and 8 texts."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    step, worst = OneStep(net).eval(), 0.0
    for batch in BATCHES:
        rng = np.random.default_rng(batch)
        hidden = net.no_text(batch)
        ours = hidden.numpy()
        for _ in range(STEPS):
            tokens = rng.integers(0, len(net.embedding), batch)
            expected = step(torch.from_numpy(tokens), hidden)
            found = session.run(list(OUTPUTS), {"tokens": tokens, "hidden": ours})
            worst = max([worst, *(relative_error(f, e.numpy()) for f, e in zip(found, expected, strict=True))])
            hidden, ours = expected[1], found[1]
    return worst
