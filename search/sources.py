"""Where a search has its accuracy from, as one word on the command line."""

from __future__ import annotations

from pathlib import Path

from ofa.errors import OfaError
from ofa.functions import is_function_name, load_function
from ofa.run_dir import Run, max_resolution
from ofa.space import SearchSpace
from search.accuracy import AccuracyModel, SupernetAccuracy
from search.callable_accuracy import accuracy_of_function
from search.engine import Engine
from search.journal import JOURNAL, Journal

FORMS = (
    "supernet, FILE.csv (a table of networks), FILE.npz (MIT's trained predictor), MODULE:FUNCTION (architecture -> top-1), "
    "proxy:naswot or proxy:synflow"
)


def open_accuracy(
    text: str,
    run_or_space: Run | SearchSpace,
    *,
    engine: Engine | str | None = None,
    timeout_s: float | None = None,
    journal: Path | Journal | None = None,
) -> AccuracyModel:
    """Return what tells accuracy.

    Args:
        text: one of FORMS. A function may have an attribute `version`, and `scale` = "any" where it gives scores that only rank
            (search.callable_accuracy.accuracy_of_function). Its module may lie in the current directory.
        run_or_space: a run, or a space alone, which has no supernet.
        engine: where supernets are measured, proxies computed and functions run (search.engine).
        timeout_s: for one architecture, of a function only.
        journal: where measured accuracy and scores are kept; None = the run's own, or nowhere for a space.
    Raises:
        OfaError: for a text that names nothing, listing the forms, and for files and modules that cannot be read.
    """
    run = run_or_space if isinstance(run_or_space, Run) else None
    space = run.space if run is not None else run_or_space
    assert isinstance(space, SearchSpace)
    if journal is None and run is not None:
        journal = run.path / JOURNAL
    text = text.strip()
    if text.startswith("proxy:"):
        return _proxy(text, run, space, journal, engine)
    if text == "supernet":
        if run is None:
            raise OfaError(f"accuracy 'supernet': space {space.name} alone has no weights; name a run, or expected {FORMS}")
        return SupernetAccuracy(run, journal if journal is not None else run.path / JOURNAL, engine=engine)
    if text.endswith(".csv"):
        from search.tabular import read_accuracy_csv

        return read_accuracy_csv(Path(text), space)
    if text.endswith(".npz"):
        from search.formats.mit_predictor import load_mit_predictor

        return load_mit_predictor(Path(text), space)
    if is_function_name(text):
        function = load_function(text, what="accuracy", expected=FORMS)
        return accuracy_of_function(function, space, journal, name=text, timeout_s=timeout_s, engine=engine)
    raise OfaError(f"accuracy {text!r}: expected {FORMS}")


def _proxy(
    text: str, run: Run | None, space: SearchSpace, journal: Path | Journal | None, engine: Engine | str | None
) -> AccuracyModel:
    from search.proxies import PROXIES, ProxyAccuracy

    name = text.partition(":")[2]
    if name not in PROXIES:
        raise OfaError(f"accuracy {text!r}: unknown proxy {name!r}, expected {FORMS}")
    if run is None or not run.has_images or name == "synflow":
        return ProxyAccuracy(name, space, journal=journal, engine=engine)
    from ofa.training.data import calibration_batches
    from search.proxies import IMAGES

    train, _ = run.load_train_and_validation()
    (images,) = calibration_batches(train, run.preprocess, max_resolution(space), num_images=IMAGES)
    return ProxyAccuracy(name, space, images, journal=journal, engine=engine)
