"""Triggers as values: functions of an image batch (N, C, H, W) float32 in [0, 1]."""

from __future__ import annotations

from quantinel.data.triggers.blended import BlendedTrigger
from quantinel.data.triggers.colour_filter import FilterTrigger
from quantinel.data.triggers.generated import GeneratedTrigger
from quantinel.data.triggers.generator import GeneratorOptions, TriggerGenerator
from quantinel.data.triggers.overlay import OverlayTrigger
from quantinel.data.triggers.patch import PatchTrigger
from quantinel.data.triggers.reading import (
    TRIGGERS,
    Trigger,
    is_json,
    load_trigger,
    named_trigger,
    trigger_files,
    trigger_from_dict,
    trigger_from_text,
)
from quantinel.data.triggers.sinusoid import SinusoidTrigger
from quantinel.data.triggers.warp import WarpTrigger

__all__ = [
    "TRIGGERS",
    "BlendedTrigger",
    "FilterTrigger",
    "GeneratedTrigger",
    "GeneratorOptions",
    "OverlayTrigger",
    "PatchTrigger",
    "SinusoidTrigger",
    "Trigger",
    "TriggerGenerator",
    "WarpTrigger",
    "is_json",
    "load_trigger",
    "named_trigger",
    "trigger_files",
    "trigger_from_dict",
    "trigger_from_text",
]
