"""Triggers as values: functions of an image batch (N, C, H, W) float32 in [0, 1]."""

from __future__ import annotations

from quantinel.data.triggers.blended import BlendedTrigger
from quantinel.data.triggers.overlay import OverlayTrigger
from quantinel.data.triggers.patch import PatchTrigger
from quantinel.data.triggers.reading import TRIGGERS, Trigger, load_trigger, named_trigger, trigger_from_dict
from quantinel.data.triggers.sinusoid import SinusoidTrigger
from quantinel.data.triggers.warp import WarpTrigger

__all__ = [
    "TRIGGERS",
    "BlendedTrigger",
    "OverlayTrigger",
    "PatchTrigger",
    "SinusoidTrigger",
    "Trigger",
    "WarpTrigger",
    "load_trigger",
    "named_trigger",
    "trigger_from_dict",
]
