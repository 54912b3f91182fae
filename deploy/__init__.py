"""How a network runs: devices, ONNX files, and the proof that a file keeps its promises."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from deploy.bench import BenchRow, bench_models
    from deploy.device import DeviceSpec, get_device, list_devices
    from deploy.export import export_searches, export_subnet
    from deploy.pack import ExportedModel
    from deploy.verify import Verification, verify_model

__all__ = [
    "BenchRow",
    "DeviceSpec",
    "ExportedModel",
    "Verification",
    "bench_models",
    "export_searches",
    "export_subnet",
    "get_device",
    "list_devices",
    "verify_model",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("BenchRow", "bench_models"), "deploy.bench"),
        **dict.fromkeys(("DeviceSpec", "get_device", "list_devices"), "deploy.device"),
        **dict.fromkeys(("export_searches", "export_subnet"), "deploy.export"),
        "ExportedModel": "deploy.pack",
        **dict.fromkeys(("Verification", "verify_model"), "deploy.verify"),
    },
)
