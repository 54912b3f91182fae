"""A run directory: where each stage writes and the next one reads.

run.json                     space, classes, data, and the commands that were run, with versions and host
arch.json                    of a run of one network: which
supernet/                    config.json, metrics.jsonl, step_NNNNNN/
latency/<device>.json        a table and its error
search/<tag>/                trials.jsonl (shared by all tags, one level up), front.json, best/
export/<tag>/                model.onnx, model.json, ...
report.html
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofa.artefacts import ArtefactError, read_json, sha256_of, write_json
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space

if TYPE_CHECKING:
    from ofa.supernet import Supernet
    from ofa.training.data import Images, Preprocessing

SCHEMA = "ofa.run/1"


class RunError(OfaError):
    """A directory is no run, or a run of another space or data."""


@dataclass(frozen=True)
class DataSource:
    """Where the images came from, which they are, and how they are split and normalised."""

    source: str
    num_images: int
    digest: str  # of the training images as decoded
    image_size: int  # px, that all images of the run are stored at
    classes: tuple[str, ...]
    validation_fraction: float
    seed: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool

    @classmethod
    def of(cls, source: str, images: Images, preprocess: Preprocessing, *, validation_fraction: float, seed: int) -> DataSource:
        """Describe images that were loaded from a name, directory or archive."""
        from ofa.training.data import NAMES

        return cls(
            source=source if source in NAMES else str(Path(source).resolve()),
            num_images=len(images),
            digest=images.digest(),
            image_size=images.size,
            classes=images.classes,
            validation_fraction=validation_fraction,
            seed=seed,
            mean=preprocess.mean,
            std=preprocess.std,
            flip=preprocess.flip,
        )


class Run:
    """A run that exists; `Run.create` makes one."""

    def __init__(self, path: Path | str) -> None:
        """Open an existing run.

        Raises:
            RunError: if `path` is not a run directory.
        """
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunError(f"{path}: not a run directory (no run.json inside); make one with: ofa train --out {path}")
        self.record = read_json(self.path / "run.json", schema=SCHEMA)
        try:
            self._data = None if self.record["data"] is None else _data_source(self.record["data"])
            self.num_classes = int(self.record["num_classes"]) if self._data is None else len(self._data.classes)
            self.space_name = str(self.record["space"])
            self._only = self.record["arch"]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{self.path / 'run.json'}: incomplete ({error})") from None

    @classmethod
    def create(cls, path: Path, space: SearchSpace, data: DataSource | None, only: ArchConfig | None, **facts: Any) -> Run:
        """Start a run directory; `only` restricts its space to one architecture, `facts` are kept in its record."""
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "space": space.name,
            "arch": None if only is None else space.to_json(only),
            "num_classes": space.num_classes,
            "data": None if data is None else asdict(data),
            **facts,
            "commands": [],
        }
        if only is not None:
            write_json(path / "arch.json", space.to_json(only), sealed=True)
        write_json(path / "run.json", record)
        return cls(path)

    @property
    def has_images(self) -> bool:
        return self._data is not None

    @property
    def data(self) -> DataSource:
        """The images.

        Raises:
            RunError: if the run was imported without any.
        """
        if self._data is None:
            raise RunError(f"{self.path}: was imported without images, which this needs; import it again with --data")
        return self._data

    @cached_property
    def whole_space(self) -> SearchSpace:
        return get_space(self.space_name, num_classes=self.num_classes)

    @cached_property
    def space(self) -> SearchSpace:
        """What the run's weights are of: the whole space, or one network of it."""
        return self.whole_space if self._only is None else self.whole_space.restrict(self.whole_space.from_json(self._only))

    @property
    def supernet_dir(self) -> Path:
        return self.path / "supernet"

    def latency_path(self, device: str) -> Path:
        return self.path / "latency" / f"{device}.json"

    def load_supernet(self) -> Supernet:
        """Build the supernet with the weights of the newest checkpoint.

        Raises:
            ArtefactError: if there is no checkpoint, or it is damaged or of another network.
        """
        from ofa.supernet import Supernet
        from ofa.training.checkpoint import load_latest

        net = Supernet(self.space)
        load_latest(self.supernet_dir, net)
        return net.eval()

    @property
    def weights_sha256(self) -> str:
        """Fingerprint of the newest checkpoint's weights.

        Raises:
            RunError: if there is no checkpoint.
        """
        from ofa.training.checkpoint import list_checkpoints

        checkpoints = list_checkpoints(self.supernet_dir)
        if not checkpoints:
            raise RunError(f"{self.path}: holds no trained weights yet; train first: ofa train --out {self.path} --resume auto")
        return sha256_of(checkpoints[-1].path / "model.safetensors")

    @property
    def preprocess(self) -> Preprocessing:
        from ofa.training.data import Preprocessing

        return Preprocessing(self.data.mean, self.data.std, self.data.flip)

    def load_train_and_validation(self) -> tuple[Images, Images]:
        """Load the images that the supernet was trained on and those held out of them.

        Raises:
            RunError: if they are not there any more, or are not the ones that it was trained on: another set would be split
                otherwise, and validation images would be ones that it was trained on.
        """
        from ofa.training.data import NAMES, load_images, split_validation

        source, record = self.data.source, self.path / "run.json"
        if source not in NAMES and not Path(source).exists():
            raise RunError(
                f"{source}: the run's images are not there any more; put them back, or tell {record} (data.source) where they are"
            )
        data = load_images(source, "train", size=self.data.image_size, classes=self.data.classes)
        if data.digest() != self.data.digest:
            raise RunError(
                f"{source}: its {len(data)} training images are not the {self.data.num_images} that {self.path} was trained on; "
                "put those back, or train a new run"
            )
        return split_validation(data, fraction=self.data.validation_fraction, seed=self.data.seed)

    def move_data(self, source: str) -> None:
        """Remember that the same images lie elsewhere now."""
        self._update(lambda record: record["data"].update(source=source))

    def note_init(self, other: Run) -> None:
        """Remember which weights training began with."""
        init = {"run": os.path.relpath(other.path, self.path), "weights_sha256": other.weights_sha256}
        self._update(lambda record: record.update(init=init))

    def note_export(self, folder: Path) -> None:
        """Remember where a network was exported to, relative to the run, so that the report finds it."""
        name = os.path.relpath(folder, self.path)
        self._update(lambda record: record.update(exports=list(dict.fromkeys([*record.get("exports", []), name]))))

    def log_command(self, argv: Sequence[str], seconds: float) -> None:
        """Append a command to run.json: who wants to repeat the run finds it there."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"argv": list(argv), "finished": finished, "seconds": round(seconds, 1), "host": host_facts()}
        self._update(lambda record: record["commands"].append(entry))

    def _update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change run.json as it is now. A run that may only be read still serves; its record then stays as it was."""
        record = read_json(self.path / "run.json", schema=SCHEMA)
        change(record)
        try:
            write_json(self.path / "run.json", record)
        except OSError as error:
            say(f"warning: {self.path / 'run.json'} was not updated ({error.strerror})")


def _data_source(record: dict[str, Any]) -> DataSource:
    return DataSource(**{**record, **{name: tuple(record[name]) for name in ("classes", "mean", "std")}})


def max_resolution(space: SearchSpace) -> int:
    """Largest input resolution of a space, pixels."""
    options = space.dimensions[space.column["resolution"]].options
    return max(int(option) for option in options)


def host_facts() -> dict[str, str]:
    """Processor, system and versions: what a measurement depends on."""
    return {
        "cpu": cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    names = ("ofa-toolkit", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "scikit-learn")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu_model() -> str:
    """Processor name as the system gives it."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
