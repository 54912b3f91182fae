"""What every command of `ofa` shares: errors as one line with an exit code, and a record of the command in its run."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def command(function: Callable[..., Path | None]) -> Callable[..., None]:
    """Make a command line verb of a function that may return the run directory it wrote to."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from ofa.errors import OfaError

        warnings.showwarning = _show_warning  # type: ignore[assignment]  # the rest of the arguments is swallowed
        began = time.monotonic()
        try:
            run = function(*args, **kwargs)
            if run is not None:
                from ofa.run_dir import Run

                Run(run).log_command(["ofa", *sys.argv[1:]], time.monotonic() - began)
        except OfaError as error:
            _fail(None if error.told else str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(
                "interrupted; what was finished is kept: give the same command again (for train, train-text and nas, with "
                "--resume auto)",
                INTERRUPTED,
            )
        except MemoryError:
            _fail("there is not enough memory for this; is one of the files much larger than it should be?", 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say to it
            raise typer.Exit(1) from None
        except OSError as error:
            advice = "; free some space and give the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}{advice}", 1)

    # typer reads the signature; what the function returns is no concern of the command line
    wrapper.__annotations__ = {**function.__annotations__, "return": None}
    return wrapper


def print_json(value: Mapping[str, Any]) -> None:
    """Print a result for machines on stdout."""
    print(json.dumps(value, indent=2))


def _fail(message: str | None, code: int) -> None:
    if message is not None:
        print(f"error: {_line(message)}", file=sys.stderr)
    raise typer.Exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if category is UserWarning:  # ours; libraries warn of their own affairs in other categories
        print(f"warning: {_line(str(message))}", file=sys.stderr)


def _line(message: str) -> str:
    from ofa.progress import shown

    return shown(message.replace("\n", " "))
