"""Libraries that talk to the screen: what they print, log and warn of while they work for us says nothing to our users."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import warnings
from collections.abc import Iterator

SCREEN = (1, 2)  # file descriptors of stdout and stderr


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow prints, log records and warnings, those of C++ too; what is raised comes through. For the whole process."""
    logs_disabled = logging.root.manager.disable
    _flush()
    saved = [os.dup(descriptor) for descriptor in SCREEN]
    try:
        with open(os.devnull, "w") as null, warnings.catch_warnings():
            for descriptor in SCREEN:
                os.dup2(null.fileno(), descriptor)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                logging.disable(logging.CRITICAL)
                yield
    finally:
        logging.disable(logs_disabled)
        _flush()
        for descriptor, before in zip(SCREEN, saved, strict=True):
            os.dup2(before, descriptor)
            os.close(before)


def _flush() -> None:
    """Write out what C's own buffers hold, or it would appear where the descriptors point later."""
    ctypes.CDLL(None).fflush(None)
