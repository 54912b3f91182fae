"""Weights and architectures of other projects: read into ours, and architectures written back."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from ofa.formats.importing import import_arch, import_checkpoint

__all__ = ["import_arch", "import_checkpoint"]

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "ofa.formats.importing"))
