"""Accuracy predictors on disk: JSON for what was decided, safetensors for what was learnt; never pickle."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ofa.artefacts import ArtefactError, read_json, write_bytes, write_json
from ofa.errors import OfaError
from search.features import Features
from search.regressors import expect, get_regressor
from search.scale import Scale

if TYPE_CHECKING:
    from search.predictor import AccuracyPredictor

SCHEMA = "ofa.accuracy_predictor/1"
MAX_BYTES = 256 * 2**20
FIELDS = ("kind", "widening", "taus", "macs_tau", "held_out", "arrays", "arrays_sha256", "inputs")


def save_predictor(predictor: AccuracyPredictor, path: Path) -> None:
    """Write a predictor's two files. The arrays come first, so that a JSON file always finds its own."""
    arrays = {f"model.{name}": array for name, array in predictor.regressor.arrays().items()}
    arrays |= {"scale.top1": predictor.scale.top1, "scale.scores": predictor.scale.scores}
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    target = _arrays_path(path)
    write_bytes(target, data)
    write_json(
        path,
        {
            "schema": SCHEMA,
            "space": predictor.features.space.name,
            "inputs": _inputs(predictor.features),
            "kind": predictor.kind,
            "kendall_tau": predictor.kendall_tau,
            "macs_tau": predictor.macs_tau if math.isfinite(predictor.macs_tau) else None,
            "taus": dict(predictor.taus),
            "widening": list(predictor.widening),
            "held_out": [{"predicted": p, "measured": m} for p, m in predictor.held_out],
            "arrays": target.name,
            "arrays_sha256": hashlib.sha256(data).hexdigest(),
        },
        sealed=True,
    )


def load_predictor(path: Path, features: Features) -> AccuracyPredictor:
    """Read a predictor.

    Raises:
        ArtefactError: if a file is missing, damaged, or of another space.
    """
    from search.predictor import AccuracyPredictor

    record = read_json(path, schema=SCHEMA)
    missing = next((name for name in FIELDS if name not in record), None)
    if missing is not None:
        raise ArtefactError(f"{path}: has no {missing!r}; it is damaged")
    if record.get("space") != features.space.name:
        raise ArtefactError(f"{path}: predictor of space {record.get('space')!r}, expected {features.space.name!r}")
    if record["inputs"] != _inputs(features):
        raise ArtefactError(f"{path}: its choices or costs are not those of this {features.space.name}; fit it again")
    arrays = _read_arrays(_arrays_path(path), str(record["arrays_sha256"]))
    learnt = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith("model.")}
    try:
        expect(arrays, **{"scale.top1": (None,), "scale.scores": arrays["scale.top1"].shape})
        factor, added = (_number(value) for value in record["widening"])
        return AccuracyPredictor(
            features=features,
            kind=record["kind"],
            regressor=get_regressor(record["kind"]).restore(learnt, features.layout),
            scale=Scale(arrays["scale.top1"], arrays["scale.scores"]),
            widening=(factor, added),
            taus={str(kind): _number(tau) for kind, tau in record["taus"].items() if record["taus"][record["kind"]] is not None},
            macs_tau=math.nan if record["macs_tau"] is None else _number(record["macs_tau"]),
            held_out=tuple((_number(pair["predicted"]), _number(pair["measured"])) for pair in record["held_out"]),
        )
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = str(error) if isinstance(error, OfaError | ValueError) else f"{type(error).__name__}: {error}"
        raise ArtefactError(f"{path}: not a predictor that can be used ({reason}); fit it again") from None


def _arrays_path(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _inputs(features: Features) -> dict[str, Any]:
    """Return what the predictor sees of an architecture, as JSON."""
    choices = json.dumps([[d.name, d.options, d.requires] for d in features.space.dimensions])
    return {"choices_sha256": hashlib.sha256(choices.encode()).hexdigest(), "costs": list(features.costs)}


def _read_arrays(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path}: larger than {MAX_BYTES >> 20} MiB, expected the arrays of a predictor")
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}), expected the arrays of a predictor") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtefactError(f"{path}: does not belong to the predictor beside it, or is damaged; fit it again")
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtefactError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:100]})") from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return float(value)
