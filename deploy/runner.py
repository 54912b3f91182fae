#!/usr/bin/env python3
"""Classify images with the model beside this file, or check that it computes here what it computed when it was exported.

It needs Python 3.8, numpy and onnxruntime, and Pillow for image files; nothing else. It writes nothing and uses no network.

    python run.py photo.jpg holiday/ --top 3
    python run.py --self-test

From Python:

    from run import Classifier
    classifier = Classifier()
    classifier.predict("photo.jpg")  # [("cat", 0.93), ("dog", 0.05), ...]

Files of the model are read only if their SHA-256 is that of SHA256SUMS: a damaged ONNX file often loads, and is wrong in silence.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import sys
import time
import warnings
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

try:
    import numpy as np
except ImportError:
    sys.exit("error: numpy is not installed here: pip install numpy")

SUMS, MODEL, SETTINGS, LABELS, GOLDEN = "SHA256SUMS", "model.onnx", "preprocess.json", "labels.txt", "golden.npz"
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")  # looked for in folders
KNOWN = {  # the only preprocessing there is; sizes, mean and std vary
    "schema": "ofa.preprocess/1",
    "layout": "NCHW",
    "channels": "RGB",
    "crop": "centre square",
    "resize": "to stored_size, then to resolution; bilinear, antialiased",
}
AGAIN = "copy the bundle here again"
MAX_TEXT_BYTES = 16 * 2**20  # of SHA256SUMS, preprocess.json, labels.txt
MAX_GOLDEN_BYTES = 256 * 2**20  # unpacked
MAX_SIDE = 8192  # pixels
MAX_THREADS = 1024  # each has a stack of its own
# of a tensor that is kept in another file, as protobuf writes it, shortest or not: field 1, 8 bytes, "location"
OUTSIDE = re.compile(rb"(?:\n|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
BAND = 32  # new pixels that are made by one matrix product
TIMED_SECONDS, TIMED_RUNS = 2.0, (5, 200)  # of the self-test: at most, and between

Prediction = Tuple[str, float]  # label, probability
Results = Iterable[Tuple[str, List[Prediction]]]  # path and what its image shows, the most probable first


class RunError(Exception):
    """Something the user can put right, in one line."""


class BundleError(RunError):
    """A file of the bundle is missing, damaged, or computes something else."""


class ImageError(RunError):
    """An image cannot be read."""


# -- the model --------------------------------------------------------------------------------------------------------


class Classifier:
    """A model, its preprocessing and its labels, as they lie in a folder.

    Args:
        folder: the bundle, or an .onnx file in it; None = where this file lies.
        threads: of ONNX Runtime.
        provider: execution provider of ONNX Runtime.
        check: refuse files whose SHA-256 is not that of SHA256SUMS.
    Raises:
        RunError: if the bundle is damaged (BundleError), or cannot run here.
    """

    def __init__(
        self, folder: Optional[str] = None, *, threads: int = 1, provider: str = "CPUExecutionProvider", check: bool = True
    ) -> None:
        where, self.name = locate(folder)
        sums = read_sums(where) if check else None
        self.settings = parse_settings(read_file(where, SETTINGS, sums))
        self.labels = parse_labels(read_file(where, LABELS, sums))
        self.threads, self.provider = threads, provider
        self._matrix = resize_matrix(self.settings.stored_size, self.settings.resolution)
        self._session = open_session(read_file(where, self.name, sums, limit=2**31), self.name, self.threads, provider)
        for kind, found, wanted in (
            ("input", self._session.get_inputs(), self.settings.input),
            ("output", self._session.get_outputs(), self.settings.output),
        ):
            if [value.name for value in found] != [wanted]:
                names = ", ".join(value.name for value in found)
                raise BundleError(f"{self.name}: has {kind} {names}, {SETTINGS} says {wanted}; {AGAIN}")
        classes = self._session.get_outputs()[0].shape[-1]
        if isinstance(classes, int) and classes != len(self.labels):
            raise BundleError(f"{self.name}: tells {classes} classes apart, {LABELS} names {len(self.labels)}; {AGAIN}")

    def predict(self, path: str, *, top: int = 5) -> List[Prediction]:
        """Classify an image file: its `top` most probable labels. Raises ImageError if it cannot be read."""
        return self.ranked(self.classify(decode(path, self.settings.stored_size)[None])[0], top)

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities (n, classes), float64, of images as `logits` takes them."""
        return softmax(self.logits(images))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits (n, classes), float32, of images (n, s, s, 3), uint8 RGB, s = settings.stored_size pixels."""
        return self.run(self.preprocess(images))

    def preprocess(self, images: np.ndarray) -> np.ndarray:
        """Return the network's input (n, 3, r, r), float32, r = settings.resolution, of images as `logits` takes them."""
        side = self.settings.stored_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (n, {side}, {side}, 3)")
        pixels = images.transpose(0, 3, 1, 2).astype(np.float32)
        if side != self.settings.resolution:
            pixels = resize_rows(pixels, self._matrix)
            pixels = resize_rows(pixels.swapaxes(2, 3), self._matrix).swapaxes(2, 3)
        mean, std = (np.array(stat, np.float32).reshape(3, 1, 1) for stat in (self.settings.mean, self.settings.std))
        return np.ascontiguousarray((pixels * np.float32(self.settings.scale) - mean) / std)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Return logits (n, classes) of preprocessed images."""
        try:
            logits = self._session.run([self.settings.output], {self.settings.input: inputs})[0]
        except Exception as error:  # runtimes raise whatever they like
            raise BundleError(f"{self.name}: does not run on {inputs.shape} ({first_line(error)})") from None
        if logits.shape != (len(inputs), len(self.labels)):
            raise BundleError(
                f"{self.name}: gives {logits.shape} for {len(inputs)} images and {len(self.labels)} labels; {AGAIN}"
            )
        if not np.isfinite(logits).all():
            raise BundleError(f"{self.name}: computes values that are not finite with {self.provider}")
        return logits

    def ranked(self, probabilities: np.ndarray, top: int) -> List[Prediction]:
        """Return the `top` labels of one image, the most probable first."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.labels[i], float(probabilities[i])) for i in order]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, classes), float64."""
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def open_session(content: bytes, name: str, threads: int, provider: str) -> Any:
    """Open a session as a deployed one is: all optimisations, no other provider than the one asked for."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise RunError("onnxruntime is not installed here: pip install onnxruntime") from None
    except Exception as error:  # a build for another numpy, or for another system
        raise RunError(f"onnxruntime does not start here ({first_line(error)}); install a build for this system") from None
    if provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise RunError(f"provider {provider!r} is not in this ONNX Runtime; it has: {have} (--provider)")
    if OUTSIDE.search(content):  # ONNX Runtime would follow it, from wherever it was started
        raise BundleError(f"{name}: keeps tensors in another file, which is not followed; {AGAIN}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures are raised; the log would only repeat them
    try:  # without the fallback: it prints, and starts what was not asked for
        session = ort.InferenceSession(content, options, providers=[provider], enable_fallback=0)
    except Exception as error:
        raise BundleError(f"{name}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)})") from None
    if session.get_providers()[0] != provider:
        raise RunError(f"{provider} does not start here, ONNX Runtime would use {session.get_providers()[0]} (--provider)")
    return session


# -- the bundle -------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What turns an image into network input: preprocess.json."""

    stored_size: int  # pixels; image files become squares of it, uint8
    resolution: int  # pixels; the network's input
    scale: float  # of a pixel's value, before mean and std
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    input: str
    output: str


def locate(path: Optional[str]) -> Tuple[str, str]:
    """Return the bundle's folder and the model's file name."""
    path = os.path.dirname(os.path.abspath(__file__)) if path is None else os.fspath(path)
    if os.path.isdir(path):
        return path, MODEL
    if not os.path.isfile(path):
        raise RunError(f"{path}: no such file; expected the folder of a model, or its {MODEL} (--model)")
    return os.path.dirname(path) or ".", os.path.basename(path)


def read_sums(folder: str) -> Dict[str, str]:
    """Read SHA256SUMS: name -> SHA-256 of every file of the bundle."""
    sums: Dict[str, str] = {}
    for line in decode_text(read_file(folder, SUMS, None), SUMS).splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9_.-]*)", line)
        if not match or match.group(2) in sums:
            raise BundleError(f"{SUMS}: has the line {line[:80]!r}, expected a SHA-256, two blanks, a file name; {AGAIN}")
        sums[match.group(2)] = match.group(1)
    return sums


def read_file(folder: str, name: str, sums: Optional[Dict[str, str]], *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a file of the bundle, and compare it with `sums` where they are given."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise BundleError(f"{path}: no such file; {AGAIN}")
    if os.path.getsize(path) > limit:
        raise BundleError(f"{path}: larger than {limit >> 20} MiB, not a file of a bundle; {AGAIN}")
    with open(path, "rb") as file:
        data = file.read()
    if sums is not None:
        require_sum(name, hashlib.sha256(data).hexdigest(), sums)
    return data


def require_sum(name: str, digest: str, sums: Dict[str, str]) -> None:
    """Refuse a file with another SHA-256 than the bundle's."""
    if name not in sums:
        raise BundleError(f"{name}: not in {SUMS}, so it may be any file; {AGAIN}")
    if digest != sums[name]:
        raise BundleError(
            f"{name}: SHA-256 is {digest[:16]}..., {SUMS} says {sums[name][:16]}...; damaged or another file; {AGAIN}"
        )


def check_files(folder: str, needed: Sequence[str]) -> int:
    """Compare every listed file with SHA256SUMS, and return how many there are."""
    sums = read_sums(folder)
    for name in {**sums, **dict.fromkeys(needed)}:
        path, digest = os.path.join(folder, name), hashlib.sha256()
        if not os.path.isfile(path):
            raise BundleError(f"{path}: no such file, {SUMS} lists it; {AGAIN}")
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(2**20), b""):
                digest.update(part)
        require_sum(name, digest.hexdigest(), sums)
    return len(sums)


def parse_settings(data: bytes) -> Settings:
    """Parse preprocess.json; any other preprocessing than ours is refused."""
    try:
        record = json.loads(data)
        for name, known in KNOWN.items():
            if record[name] != known:
                raise BundleError(f"{SETTINGS}: {name} is {str(record[name])[:80]!r}, this run.py knows {known!r}")
        found = Settings(
            stored_size=record["stored_size"],
            resolution=record["resolution"],
            scale=float(record["scale"]),
            mean=tuple(map(float, record["mean"])),
            std=tuple(map(float, record["std"])),
            input=record["input"],
            output=record["output"],
        )
        sound = all(type(side) is int and 0 < side <= MAX_SIDE for side in (found.stored_size, found.resolution))
        sound = sound and len(found.mean) == len(found.std) == 3 and min(found.scale, *found.std) > 0
        sound = sound and all(map(math.isfinite, (found.scale, *found.mean, *found.std)))
        sound = sound and isinstance(found.input, str) and isinstance(found.output, str)
    except BundleError:
        raise
    except Exception as error:  # not JSON, nested without end, a key or a type that is not as it should be
        raise BundleError(f"{SETTINGS}: cannot be read ({type(error).__name__}: {first_line(error)}); {AGAIN}") from None
    if not sound:
        raise BundleError(f"{SETTINGS}: has impossible sizes, scale, mean, std or names; {AGAIN}")
    return found


def parse_labels(data: bytes) -> Tuple[str, ...]:
    """Parse labels.txt, one class a line."""
    labels = decode_text(data, LABELS).split("\n")
    return tuple(labels[:-1] if labels[-1] == "" else labels)


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BundleError(f"{name}: not UTF-8 text; {AGAIN}") from None


# -- images -----------------------------------------------------------------------------------------------------------


def decode(path: str, size: int) -> np.ndarray:
    """Decode an image file to its centre square (size, size, 3), uint8."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise RunError("Pillow, which reads image files, is not installed here: pip install pillow") from None
    try:
        with Image.open(path) as image:
            colours = to_rgb(ImageOps.exif_transpose(image), png=image.format == "PNG")
        side = min(colours.size)
        left, top = (colours.width - side) // 2, (colours.height - side) // 2
        if colours.size != (size, size):
            bilinear = getattr(Image, "Resampling", Image).BILINEAR  # its place before and since Pillow 9.1
            colours = colours.resize((size, size), bilinear, box=(left, top, left + side, top + side))
        return np.asarray(colours)
    except Exception as error:  # Pillow's plug-ins raise anything on damaged files
        known = {"UnidentifiedImageError": "not an image that Pillow knows", "FileNotFoundError": "no such file"}
        why = known.get(type(error).__name__, first_line(error))
        raise ImageError(f"{path}: cannot be read ({why})") from None


def to_rgb(image: Any, *, png: bool) -> Any:
    """Convert any colour model; transparent parts become white, 16-bit grey keeps its full range."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and png):  # older Pillows call 16-bit PNG "I"
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def resize_matrix(size: int, resolution: int) -> np.ndarray:
    """Return weights (resolution, size) of an antialiased bilinear resize along one axis.

    Each new pixel sees the old ones through a triangle centred on it, whose half width is one pixel of the coarser grid.
    Centres are rounded to float32 as PyTorch rounds them: that moves pixels by up to 2e-5, more than all other rounding.
    """
    ratio = np.float32(size / resolution)
    centres = ((np.arange(resolution) + 0.5) * float(ratio)).astype(np.float32)  # of new pixels, counted in old ones
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None].astype(np.float64)) / max(float(ratio), 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_rows(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resize (n, 3, rows, columns) along the rows; in bands, because most of the matrix is zero."""
    out = np.empty((*pixels.shape[:2], len(matrix), pixels.shape[3]), np.float32)
    for start in range(0, len(matrix), BAND):
        band = matrix[start : start + BAND]
        used = np.flatnonzero(band.any(axis=0))
        first, last = used[0], used[-1] + 1
        np.matmul(band[:, first:last], pixels[:, :, first:last], out=out[:, :, start : start + BAND])
    return out


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Yield image files: those named, and those below the folders that are named; hidden ones do not count."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        closed: List[OSError] = []
        for folder, folders, names in os.walk(path, onerror=closed.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield os.path.join(folder, name)
        yield from (error.filename for error in closed)  # a folder that may not be read cannot be read as an image either


def decode_ahead(paths: Iterable[str], size: int, *, ahead: int, workers: int) -> Iterator[Tuple[str, Future[np.ndarray]]]:
    """Yield (path, its decoded image) in order, while threads decode at most `ahead` images that come next."""
    waiting: Deque[Tuple[str, Future[np.ndarray]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:  # decoding leaves the interpreter lock
        for path in paths:
            waiting.append((path, pool.submit(decode, path, size)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


# -- the two things to do ---------------------------------------------------------------------------------------------


def classify_files(
    classifier: Classifier, paths: Iterable[str], *, top: int, batch: int, fail: Callable[[ImageError], None], took: List[float]
) -> Iterator[Tuple[str, List[Prediction]]]:
    """Yield (path, its `top` predictions) in order, in memory for a few batches.

    Args:
        classifier: the model.
        paths: image files.
        top: labels an image.
        batch: images that the network gets at once.
        fail: called for every image that cannot be read, which is left out.
        took: gets (seconds in the network) of every batch.
    """

    def readable() -> Iterator[Tuple[str, np.ndarray]]:
        size = classifier.settings.stored_size
        for path, image in decode_ahead(paths, size, ahead=2 * batch, workers=classifier.threads):
            try:
                yield path, image.result()
            except ImageError as error:
                fail(error)

    images = readable()
    while True:
        chunk = list(itertools.islice(images, batch))
        if not chunk:
            return
        inputs = classifier.preprocess(np.stack([image for _, image in chunk]))
        began = time.perf_counter()
        logits = classifier.run(inputs)
        took.append(time.perf_counter() - began)
        for (path, _), row in zip(chunk, softmax(logits)):
            yield path, classifier.ranked(row, top)


def self_test(folder: Optional[str], *, threads: int, provider: str) -> Dict[str, Any]:
    """Check the files, then compare logits of the golden images with those of the export.

    Raises:
        BundleError: if a file or a logit is not as it was.
    """
    where, name = locate(folder)
    files = check_files(where, (name, SETTINGS, LABELS, GOLDEN))
    classifier = Classifier(folder, threads=threads, provider=provider, check=False)
    images, expected, tolerance = read_golden(os.path.join(where, GOLDEN), classifier)
    together = classifier.logits(images)
    single = np.concatenate([classifier.logits(image[None]) for image in images])

    def worst(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / np.abs(expected).max())

    error, apart = max(worst(together, expected), worst(single, expected)), worst(single, together)
    bound = f"of the largest logit, at most {tolerance:.1e} expected, with {provider}"
    if not error <= tolerance:
        raise BundleError(f"{name}: logits differ from those of the export by {error:.1e} {bound}")
    if not apart <= tolerance:
        raise BundleError(f"{name}: logits of one image differ from those in a batch of {len(images)} by {apart:.1e} {bound}")
    return {
        "files": files,
        "images": len(images),
        "error": error,
        "batch_error": apart,
        "tolerance": tolerance,
        "latency_ms": median_ms(classifier, images[:1]),
        "threads": classifier.threads,
        "provider": provider,
    }


def read_golden(path: str, classifier: Classifier) -> Tuple[np.ndarray, np.ndarray, float]:
    """Read golden.npz: images (n, s, s, 3) uint8, logits (n, classes) float32, tolerance."""
    side, classes = classifier.settings.stored_size, len(classifier.labels)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ValueError(f"unpacks to more than {MAX_GOLDEN_BYTES >> 20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            images, logits, tolerance = arrays["images"], arrays["logits"], float(arrays["tolerance"])
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise BundleError(f"{GOLDEN}: cannot be read ({first_line(error)}); {AGAIN}") from None
    sound = images.dtype == np.uint8 and images.shape == (len(logits), side, side, 3) and len(logits) > 0
    sound = sound and logits.dtype == np.float32 and logits.shape[1:] == (classes,) and bool(np.isfinite(logits).all())
    if not sound or not np.abs(logits).max() > 0 or not 0 < tolerance < 1:
        raise BundleError(f"{GOLDEN}: not images of {side} px and their {classes} logits; {AGAIN}")
    return images, logits, tolerance


def median_ms(classifier: Classifier, images: np.ndarray) -> float:
    """Time the network on one batch, warm, by wall clock."""
    inputs = classifier.preprocess(images)
    times: List[float] = []
    classifier.run(inputs)
    end, (least, most) = time.monotonic() + TIMED_SECONDS, TIMED_RUNS
    while len(times) < least or (len(times) < most and time.monotonic() < end):
        began = time.perf_counter()
        classifier.run(inputs)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


# -- the shell --------------------------------------------------------------------------------------------------------


def as_table(results: Results, paths: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    """Lines for people, as wide as the longest of `paths` and `labels`: a file's name stands before its first label."""
    left, middle = (max(map(len, (title, *map(shown, texts)))) for title, texts in (("file", paths), ("label", labels)))
    yield f"{'file':<{left}}  {'label':<{middle}}  probability"
    for path, predictions in results:
        for rank, (label, probability) in enumerate(predictions):
            yield f"{shown(path) if rank == 0 else '':<{left}}  {shown(label):<{middle}}  {probability:11.4f}"


def as_csv(results: Results) -> Iterator[str]:
    """Lines of a table: file, rank, label, probability."""
    yield "file,rank,label,probability"
    for path, predictions in results:
        for rank, (label, probability) in enumerate(predictions, start=1):
            line = io.StringIO()
            csv.writer(line, lineterminator="").writerow((shown(path), rank, shown(label), probability))
            yield line.getvalue()


def as_json(results: Results) -> Iterator[str]:
    """Lines of one list, an image a line."""
    opening = "["
    for path, predictions in results:
        named = [{"label": label, "probability": probability} for label, probability in predictions]
        yield opening + json.dumps({"file": path, "predictions": named})
        opening = ","
    yield "[]" if opening == "[" else "]"


def shown(text: str) -> str:
    """Return text with escapes for what a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Print a line for people."""
    print(shown(text), file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]


def run_images(options: argparse.Namespace) -> bool:
    """Classify options.images and print the results; returns whether all could be read."""
    began = time.perf_counter()
    paths = list(find_images(options.images))
    if not paths:
        raise RunError(f"{options.images[0]}: no images in it; known: {' '.join(SUFFIXES)}")
    classifier = Classifier(options.model, threads=options.threads, provider=options.provider, check=not options.no_check)
    failed: List[ImageError] = []
    took: List[float] = []

    def fail(error: ImageError) -> None:
        failed.append(error)
        say(f"error: {error}")

    batch = options.batch or 16
    results = classify_files(classifier, paths, top=options.top or 5, batch=batch, fail=fail, took=took)
    lines = as_json(results) if options.json else as_csv(results) if options.csv else as_table(results, paths, classifier.labels)
    for line in lines:
        print(line)
    done, seconds = len(paths) - len(failed), time.perf_counter() - began
    if done:
        say(
            f"{done} images in {seconds:.2f} s: {done / seconds:.1f} images/s; the network took {sum(took) / done * 1e3:.2f} ms "
            f"an image (batches of {batch}, {classifier.threads} thread{'s' * (classifier.threads > 1)}, {classifier.provider})"
        )
    if failed:
        say(f"error: {len(failed)} of {len(paths)} images could not be read")
    return not failed


def run_self_test(options: argparse.Namespace) -> None:
    """Test options.model and print what was found."""
    found = self_test(options.model, threads=options.threads, provider=options.provider)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"ok: {found['files']} files as exported; logits of {found['images']} images differ by {found['error']:.1e} of the "
        f"largest (limit {found['tolerance']:.1e}); {found['latency_ms']:.3f} ms an image "
        f"(median, batch 1, {found['threads']} thread{'s' * (found['threads'] > 1)}, {found['provider']})"
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run from the shell; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--self-test", action="store_true", help="check files, logits and latency instead")
    parser.add_argument("--top", type=int, help="labels an image (5)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print JSON")
    style.add_argument("--csv", action="store_true", help="print CSV")
    parser.add_argument("--batch", type=int, help="images that the network gets at once (16)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime, and for decoding (%(default)s)")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="execution provider of ONNX Runtime (%(default)s)")
    parser.add_argument("--model", help="another bundle's folder, or an .onnx file in it")
    parser.add_argument("--no-check", action="store_true", help="do not compare files with SHA256SUMS (slow devices, big models)")
    options = parser.parse_args(arguments)
    if options.self_test == bool(options.images):
        parser.error("expected either images or --self-test")
    for name in ("top", "batch", "csv", "no_check"):
        if options.self_test and getattr(options, name):
            parser.error(f"--{name.replace('_', '-')} goes with images, not with --self-test")
    if options.threads > MAX_THREADS:
        parser.error(f"--threads {options.threads}: expected {MAX_THREADS} at most")
    for name in ("top", "batch", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: expected at least 1")
    warnings.simplefilter("ignore")  # Pillow's, of oddities that it copes with
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label need not be in this terminal's character set
    try:
        if options.self_test:
            run_self_test(options)
            return 0
        done = run_images(options)
        sys.stdout.flush()  # here, where a reader that left is no surprise
        return 0 if done else 1
    except RunError as error:
        say(f"error: {error}")
        return 4 if options.self_test and isinstance(error, BundleError) else 1
    except KeyboardInterrupt:
        say("error: interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say to it
        return 1
    except OSError as error:
        say(f"error: {error.filename or 'output'}: {error.strerror or error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
