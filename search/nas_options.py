"""Options that several searches of `ofa nas` have, told once."""

from __future__ import annotations

from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Option(
        help="digits, cifar10, cifar100, fashion_mnist, or a directory or .tar[.xz] with train/ and test/, a folder a class."
    ),
]
Resolution = Annotated[int | None, typer.Option(help="Input pixels; default 32.")]
MaxImages = Annotated[int | None, typer.Option(help="Search on so many training images only, for small machines; default: all.")]
Seed = Annotated[int | None, typer.Option(help="Everything random follows from it; default 0.")]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Mirror images at random; default: unless digits or clothes.")
]
