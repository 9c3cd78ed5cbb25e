"""Quantinel: finds, removes and measures backdoors that wake when a network is quantized.

Everything public is listed here and imported on first use, so that ``import quantinel`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantinel import attacks, defenses, detectors
    from quantinel.audit.report import Check, EvaluationRow, Finding, Report, read_report
    from quantinel.audit.scan_report import ScanReport, read_any_report
    from quantinel.data.images import ImageSet
    from quantinel.data.sampling import split_calibration
    from quantinel.data.sources import load_images
    from quantinel.data.triggers import OverlayTrigger, PatchTrigger, load_trigger
    from quantinel.defenses import rounding_method
    from quantinel.errors import (
        GateError,
        InputError,
        Interrupted,
        OutputError,
        QuantinelError,
        UnsupportedError,
        UsageError,
        VerificationError,
    )
    from quantinel.model.graph import FloatGraph, trace
    from quantinel.model.loading import LoadedModel, load_model
    from quantinel.model.victim import VictimManifest
    from quantinel.pipeline.evaluate import evaluate, evaluate_file
    from quantinel.pipeline.harden import HardenOptions, harden
    from quantinel.pipeline.scan import scan
    from quantinel.pipeline.scan_options import ScanOptions
    from quantinel.pipeline.verify import VerifyResult, verify
    from quantinel.quantization.calibration import Calibration, calibrate
    from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
    from quantinel.quantization.reconstruction import choose_codes
    from quantinel.quantization.scheme import QuantScheme, parse_scheme

    __version__: str

_HOMES = {
    "quantinel.audit.report": ("Check", "EvaluationRow", "Finding", "Report", "read_report"),
    "quantinel.audit.scan_report": ("ScanReport", "read_any_report"),
    "quantinel.data.images": ("ImageSet",),
    "quantinel.data.sampling": ("split_calibration",),
    "quantinel.data.sources": ("load_images",),
    "quantinel.data.triggers": ("OverlayTrigger", "PatchTrigger", "load_trigger"),
    "quantinel.defenses": ("rounding_method",),
    "quantinel.errors": (
        "GateError", "InputError", "Interrupted", "OutputError", "QuantinelError", "UnsupportedError", "UsageError",
        "VerificationError",
    ),
    "quantinel.model.graph": ("FloatGraph", "trace"),
    "quantinel.model.loading": ("LoadedModel", "load_model"),
    "quantinel.model.victim": ("VictimManifest",),
    "quantinel.pipeline.evaluate": ("evaluate", "evaluate_file"),
    "quantinel.pipeline.harden": ("HardenOptions", "harden"),
    "quantinel.pipeline.scan": ("scan",),
    "quantinel.pipeline.scan_options": ("ScanOptions",),
    "quantinel.pipeline.verify": ("VerifyResult", "verify"),
    "quantinel.quantization.calibration": ("Calibration", "calibrate"),
    "quantinel.quantization.quantized_model": ("QuantizedModel", "quantize_nearest"),
    "quantinel.quantization.reconstruction": ("choose_codes",),
    "quantinel.quantization.scheme": ("QuantScheme", "parse_scheme"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Calibration",
    "Check",
    "EvaluationRow",
    "Finding",
    "FloatGraph",
    "GateError",
    "HardenOptions",
    "ImageSet",
    "InputError",
    "Interrupted",
    "LoadedModel",
    "OutputError",
    "OverlayTrigger",
    "PatchTrigger",
    "QuantScheme",
    "QuantinelError",
    "QuantizedModel",
    "Report",
    "ScanOptions",
    "ScanReport",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "VerifyResult",
    "VictimManifest",
    "__version__",
    "attacks",
    "calibrate",
    "choose_codes",
    "defenses",
    "detectors",
    "evaluate",
    "evaluate_file",
    "harden",
    "load_images",
    "load_model",
    "load_trigger",
    "parse_scheme",
    "quantize_nearest",
    "read_any_report",
    "read_report",
    "rounding_method",
    "scan",
    "split_calibration",
    "trace",
    "verify",
]

if not TYPE_CHECKING:  # hidden from type checkers, so that an unknown name is an error there too

    def __getattr__(name):
        """Import a public name on first use (PEP 562)."""
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("quantinel")
        if name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
            globals()[name] = value
            return value
        if name in __all__:
            return import_module(f"quantinel.{name}")
        raise AttributeError(f"module 'quantinel' has no attribute {name!r}")

    def __dir__():
        """The public names."""
        return sorted({*globals(), *__all__})
