"""The commands that a run still waits for: written as a user would type them, with limits that can be met."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from deploy.limits import Limit
from latency.cost import CountCost
from latency.open import LatencyModel
from ofa.run_dir import Run
from ofa.training.checkpoint import list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.data import ORIENTED
from search.evidence import Network
from search.joint.record import read_search
from search.past_records import Search
from search.reading import reading

VALIDATION_FRACTION = 0.1  # what `ofa train` holds out unless it is told


def next_commands(run: Run, tables: Iterable[LatencyModel], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the commands that make what a run lacks, with limits that can be met."""
    where = shlex.quote(str(run.path))
    search = f"ofa search {where}"
    if run.space.slots and run.space.is_tabulated:  # of a space of choices alone no cost can be told
        some = run.space.sample(np.random.default_rng(0), 500)
        limit = Limit("macs", None, float(np.median(CountCost("macs", run.space).predict(some))))
        for table in tables:
            known = table.upper(some)
            if np.isfinite(known).any():
                limit = Limit("latency", table.device, float(np.median(known[np.isfinite(known)])))
        search += f" --where {shlex.quote(str(limit))}"
    if is_search_alone(run):
        search += " --accuracy ACCURACY"
    with reading(run.path / "run.json"):
        train = shlex.join(_train_again(run, config)) if run.has_images else ""
    return {
        "train": train,
        "import": shlex.join(_import_with_images(run)),
        "profile": f"ofa profile {where} --device ort_cpu_1t",
        "search": search,
        "export": shlex.join(["ofa", "export", str(run.path / "arch.json"), "-o", str(run.path / "export" / "network")]),
    }


def is_search_alone(run: Run) -> bool:
    """Tell whether a run was made to search a space, and has no supernet: `ofa search --space` makes such."""
    return not run.has_images and run.record.get("imported") is None and not list_checkpoints(run.supernet_dir)


def can_export(run: Run) -> bool:
    """Tell whether networks can be extracted: that takes the supernet's weights, and images to calibrate BatchNorm."""
    return run.has_images and bool(list_checkpoints(run.supernet_dir))


def instead_of_export(run: Run, waiting: Sequence[Network], commands: Mapping[str, str]) -> tuple[str, str] | None:
    """Return why the networks that wait for export cannot be exported, and the command that helps, "" = none does.

    None if they can, or if none waits.
    """
    if not waiting or can_export(run):
        return None
    if not run.space.slots:
        return "Nothing can be exported: the space is known by its choices alone, and has no weights.", ""
    if is_search_alone(run):
        first = waiting[0]
        argv = ["ofa", "train", "--space", run.space_name, "--data", "IMAGES", "--arch", str(first.path / "arch.json")]
        sentence = "Nothing can be exported: this run has no weights. Train a chosen architecture on images of yours:"
        return sentence, shlex.join([*argv, "--out", f"{run.path}-{first.name}"])
    if run.record.get("imported") is None:
        return "Nothing can be exported before the supernet has weights. Train it with:", commands["train"]
    lacking = "its imported weights are gone" if run.has_images else "it was imported without images, which export needs"
    return f"Nothing can be exported from this run: {lacking}. Import it again with:", commands["import"]


def round_command(run: Run, exports: Iterable[Network], searches: Iterable[Search]) -> str:
    """Return the command that writes the first exported network, or else the first that was found, in int8; "" = none can."""
    if not can_export(run):
        return ""
    found = {search.best.arch: search for search in searches}
    first = next((found[network.arch] for network in exports if network.arch in found), next(iter(found.values()), None))
    if first is None:
        return ""
    source, out = first.path.parent / "best", run.path / "export" / f"{first.name}_int8"
    return shlex.join(["ofa", "export", str(source), "-o", str(out), "--precision", "int8"])


def _train_again(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Return the command that trains a run, or goes on with it: the last that was given, or else what the run's files say.

    They do not say where an external teacher lies, unless it is what the weights began with. A search by NAS-RL trains networks
    one by one, and a space whose blocks cannot be listed has no supernet: there the network that was found is what is left to
    train, and before there is one, nothing.
    """
    if run.record["arch"] is None and (_is_of_nas_rl(run) or not run.space.is_tabulated):
        found = run.path / "arch.json"
        argv = ["ofa", "train", "--arch", str(found), "--data", run.data.source, "--out", f"{run.path}-trained"]
        return argv if found.exists() else []
    given = [list(command["argv"]) for command in run.record.get("commands", [])]
    given = [argv for argv in given if argv[1:2] in (["train"], ["specialize"])]
    if given:
        goes_on = ("--resume", "auto") in itertools.pairwise(given[-1])
        return given[-1] if goes_on else [*given[-1], "--resume", "auto"]
    argv = ["ofa", "train", "--space", run.space_name, "--data", run.data.source, "--out", str(run.path)]
    for field in fields(TrainConfig):
        if config.get(field.name, field.default) != field.default:
            argv += _option(field.name, config[field.name])
    if config.get("sync_batchnorm"):
        argv += _option("sync_batchnorm", True)
    if run.record["arch"] is not None:
        argv += _option("arch", run.path / "arch.json")
    init = run.record.get("init")
    begun_with = None if init is None else os.path.normpath(run.path / init["run"])
    if begun_with is not None:
        argv += _option("init", begun_with)
    if config.get("teacher"):
        argv += _option("teacher", begun_with if init and init["weights_sha256"] == config["teacher"] else "TEACHER")
    if run.data.validation_fraction != VALIDATION_FRACTION:
        argv += _option("validation_fraction", run.data.validation_fraction)
    if run.data.flip != (run.data.source not in ORIENTED):
        argv += _option("flip", run.data.flip)
    return [*argv, "--resume", "auto"]


def _is_of_nas_rl(run: Run) -> bool:
    search = read_search(run.path)
    return search is not None and search.method == "nas_rl"


def imported_from(run: Run) -> dict[str, str] | None:
    """Return what the weights were imported from: file, format, sha256; None if they were trained."""
    imported = run.record.get("imported")
    with reading(run.path / "run.json"):
        return None if imported is None else {name: str(imported[name]) for name in ("file", "format", "sha256")}


def _import_with_images(run: Run) -> list[str]:
    """Return the command that makes another run of an imported one, with images: only its user knows which."""
    imported = imported_from(run) or {"file": "FILE", "format": "FORMAT"}
    argv = ["ofa", "import", imported["file"], "--format", imported["format"], "--space", run.space_name]
    if run.record["arch"] is not None:
        argv += _option("arch", run.path / "arch.json")
    return [*argv, "--data", "IMAGES", "--out", f"{run.path}-2"]


def _option(name: str, value: object) -> list[str]:
    """Write a setting as an option of the command line; what can only be on or off has two names there and no value."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
