"""MIT's trained predictors of ImageNet top-1 (github.com/mit-han-lab/once-for-all): an MLP over one-hot choices, as arrays.

A .npz file holds w0, b0, ..., w3, b3 (w: outputs x inputs, float32; ReLU between the layers). The last bias is b3, or `base_acc`
where that layer has none. Inputs, in this order, all one-hot and zero for blocks that do not stand:

    ofa_mbv3_w1_2   kernel size of 20 blocks, expand ratio of 20 blocks, resolution from 112 px in steps of 16
    ofa_resnet50d   resolution (128, 144, 160, 176, 192, 224, 240, 256), whether the stem keeps its residual convolution,
                    width of the stem's two layers and of the four stages, expand ratio of 18 blocks

Sources: ofa/tutorial/accuracy_predictor.py and ofa/nas/accuracy_predictor/arch_encoder.py there, and the tutorial's notebooks.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofa.artefacts import ArtefactError
from ofa.errors import OfaError
from ofa.space import ArchConfig, Population, SearchSpace, Value

NAMES = ("w0", "b0", "w1", "b1", "w2", "b2", "w3", "b3")  # "base_acc" may stand for the last
CHUNK = 512  # architectures at a time, so that activations stay in the nearest caches
MAX_BYTES = 64 * 2**20
NEGLIGIBLE = 1e-12  # weights below it move no top-1 by as much as float32 resolves

Array = NDArray[np.float32]


@dataclass(frozen=True)
class MitPredictor:
    """Predicted top-1 of the networks of one space."""

    space: SearchSpace
    weights: tuple[Array, ...]  # (inputs, outputs) of every layer; the first one's inputs are those of space.one_hot
    biases: tuple[Array, ...]  # (outputs,)
    known: NDArray[np.bool_]  # for every option of the resolution, whether the predictor was trained on it

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Predict top-1 in [0, 1], (n,); NaN for a resolution that the predictor was not trained on."""
        return self.predict(self.space.encode(archs))

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict top-1 in [0, 1], (n,); NaN for a resolution that the predictor was not trained on."""
        top1 = np.empty(len(population))
        for start in range(0, len(population), CHUNK):
            chunk = population[start : start + CHUNK]
            hidden = self.space.one_hot(chunk)
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                hidden = hidden @ weight  # (chunk, outputs)
                hidden += bias
                np.maximum(hidden, 0, out=hidden)
            top1[start : start + CHUNK] = (hidden @ self.weights[-1] + self.biases[-1])[:, 0]
        top1[~self.known[population[:, self.space.column["resolution"]]]] = np.nan
        return top1


def load_mit_predictor(path: Path | str, space: SearchSpace) -> MitPredictor:
    """Read one of MIT's predictors.

    Args:
        path: acc_predictor_mbv3_w1.2.npz for the space ofa_mbv3_w1_2, acc_predictor_resnet50.npz for ofa_resnet50d.
        space: the space whose networks it judges; the file does not say.
    Raises:
        OfaError: if there is no predictor for this space.
        ArtefactError: if the file is damaged or is not this space's predictor.
    """
    if space.name not in INPUTS:
        raise OfaError(f"space {space.name}: MIT's accuracy predictors are for {' and '.join(INPUTS)}")
    inputs, trained = INPUTS[space.name][0](space), INPUTS[space.name][1]
    weights, biases = _read(Path(path), len(inputs), space.name)
    rows = {pair: i for i, pair in enumerate((d.name, option) for d in space.dimensions for option in d.options)}
    first = np.zeros((len(rows), weights[0].shape[1]), dtype=np.float32)
    for row, pair in zip(weights[0], inputs, strict=True):
        if pair in rows:
            first[rows[pair]] = row
    known = np.array([side in trained for side in space.dimensions[space.column["resolution"]].options])
    weights, biases = _without_dead_units([first, *weights[1:]], biases)
    return MitPredictor(space, tuple(weights), tuple(biases), known)


# -- what the inputs mean ----------------------------------------------------------------------------------------------

Input = tuple[str, Value]  # a dimension and its option; one that the space does not have is never set


def _mobilenet_inputs(space: SearchSpace) -> list[Input]:
    blocks = [
        (d.name, option)
        for kind in (".kernel_size", ".expand_ratio")
        for d in space.dimensions
        if d.name.endswith(kind)
        for option in d.options
    ]
    return blocks + [("resolution", side) for side in range(112, 225, 16)]


def _resnet_inputs(space: SearchSpace) -> list[Input]:
    dimensions = {d.name: d.options for d in space.dimensions}
    inputs: list[Input] = [("resolution", side) for side in RESNET_SIDES]
    inputs += [("stem.depth", option) for option in dimensions["stem.depth"]]
    for name in ("stem.mid.width", "stem.out.width", *(f"stage{s}.width" for s in range(1, 5))):
        # two of the stem's three width multipliers round to the same 24 channels; the smallest stands for both
        smallest, *others = dimensions[name]
        inputs += [(name, value) for value in (smallest, *(["unused"] * (2 - len(others))), *others)]
    return inputs + [
        (name, option) for name, options in dimensions.items() if name.endswith(".expand_ratio") for option in options
    ]


RESNET_SIDES = (128, 144, 160, 176, 192, 224, 240, 256)
INPUTS: dict[str, tuple[Callable[[SearchSpace], list[Input]], tuple[int, ...]]] = {  # and the resolutions of the training
    "ofa_mbv3_w1_2": (_mobilenet_inputs, (160, 176, 192, 208, 224)),  # the inputs below 160 still hold what they began with
    "ofa_resnet50d": (_resnet_inputs, RESNET_SIDES),
}


# -- the file ----------------------------------------------------------------------------------------------------------


def _read(path: Path, num_inputs: int, space: str) -> tuple[list[Array], list[Array]]:
    """Return weights (inputs, outputs) and biases (outputs,) of every layer."""
    arrays = _arrays(path)
    names = [name if name in arrays or name != NAMES[-1] else "base_acc" for name in NAMES]
    if sorted(arrays) != sorted(names):
        raise ArtefactError(
            f"{path}: holds {', '.join(sorted(arrays))[:80] or 'nothing'}, expected the arrays {', '.join(NAMES)} (or base_acc)"
        )
    found = [arrays[name] for name in names]
    width = num_inputs
    for weight, bias, name in zip(found[::2], found[1::2], names[::2], strict=True):
        outputs = 1 if name == "w3" else len(bias)
        if weight.shape != (outputs, width) or bias.shape != (outputs,):
            raise ArtefactError(
                f"{path}: {name} is {weight.shape}, expected ({outputs}, {width}); it is damaged or not a predictor for {space}"
            )
        width = outputs
    if not all(np.isfinite(array).all() for array in found):
        raise ArtefactError(f"{path}: holds numbers that are not finite; it is damaged")
    arrays32 = [np.ascontiguousarray(array.T, dtype=np.float32) for array in found]
    return arrays32[::2], arrays32[1::2]


def _arrays(path: Path) -> dict[str, NDArray[np.floating]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise ArtefactError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MiB, expected a predictor of about 1 MiB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ArtefactError:
        raise
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file, expected MIT's accuracy predictor (.npz)") from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged archives, from zlib.error to SyntaxError
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ArtefactError(f"{path}: not a .npz file of plain arrays ({reason})") from None
    wrong = next((name for name, array in arrays.items() if array.dtype.kind != "f" or array.ndim not in (1, 2)), None)
    if wrong is not None:
        raise ArtefactError(
            f"{path}: {wrong[:40]} is {arrays[wrong].dtype} {arrays[wrong].shape}, expected floats of 1 or 2 axes"
        )
    return arrays


def _without_dead_units(weights: list[Array], biases: list[Array]) -> tuple[list[Array], list[Array]]:
    """Leave out hidden units that are constant or that nothing listens to, and round denormal numbers to 0.

    Weight decay has left the ResNet predictor 26 live units of 400; what is left of the others is mostly denormal, with which
    processors calculate a hundred times slower.
    """
    weights = [np.where(np.abs(w) < NEGLIGIBLE, np.float32(0), w) for w in weights]
    biases = [np.where(np.abs(b) < NEGLIGIBLE, np.float32(0), b) for b in biases]
    for i in range(len(weights) - 1):  # a unit without inputs is a constant, which the next bias takes over
        constant = ~weights[i].any(0)
        biases[i + 1] = biases[i + 1] + (np.maximum(biases[i][constant], 0) @ weights[i + 1][constant]).astype(np.float32)
        weights[i], biases[i], weights[i + 1] = weights[i][:, ~constant], biases[i][~constant], weights[i + 1][~constant]
    for i in range(len(weights) - 1, 0, -1):
        heard = weights[i].any(1)
        weights[i], biases[i - 1], weights[i - 1] = weights[i][heard], biases[i - 1][heard], weights[i - 1][:, heard]
    return [np.ascontiguousarray(w) for w in weights], biases
