"""Triggers from JSON, from files, and by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantinel.data.guards import printable, reason, require_file
from quantinel.data.pictures import open_picture, picture_errors
from quantinel.data.triggers.blended import BlendedTrigger
from quantinel.data.triggers.colour_filter import FilterTrigger
from quantinel.data.triggers.generated import GeneratedTrigger
from quantinel.data.triggers.overlay import OverlayTrigger
from quantinel.data.triggers.patch import PatchTrigger
from quantinel.data.triggers.sinusoid import SinusoidTrigger
from quantinel.data.triggers.warp import WarpTrigger
from quantinel.errors import InputError, UsageError

_MAX_JSON_BYTES = 65_536
_EXAMPLE = '{"kind": "patch", "row": 24, "column": 24, "height": 6, "width": 6, "value": 1.0}'

Described = PatchTrigger | BlendedTrigger | SinusoidTrigger | WarpTrigger | FilterTrigger
"""Triggers that their JSON form describes completely."""

Trigger = Described | GeneratedTrigger | OverlayTrigger

_KINDS: dict[str, type[Described]] = {
    "patch": PatchTrigger,
    "blended": BlendedTrigger,
    "sinusoid": SinusoidTrigger,
    "warp": WarpTrigger,
    "filter": FilterTrigger,
}

TRIGGERS: dict[str, Callable[[tuple[int, int, int]], Trigger]] = {
    "pq": lambda shape: PatchTrigger.pq(shape[-1]),
    "qu-anti": lambda shape: PatchTrigger.qu_anti(shape[-1]),
    "blended": lambda shape: BlendedTrigger(),
    "sinusoid": lambda shape: SinusoidTrigger(),
    "warp": lambda shape: WarpTrigger(),
    "filter": lambda shape: FilterTrigger(),
}
"""Published kinds of triggers by name, each made for images of a shape (C, H, W)."""


def named_trigger(text: str, input_shape: tuple[int, int, int]) -> Trigger:
    """The trigger that an option names: a published one, scaled to images (C, H, W), or any in its JSON form.

    Args:
        text: a name of `TRIGGERS`, or the text of a JSON object as in a trigger's file.
        input_shape: of the images.

    Raises:
        UsageError: unknown name.
        InputError: not the JSON form of a trigger, or the images are too small for it or have too few channels.
    """
    if is_json(text):
        trigger: Trigger = trigger_from_text(text)
    elif text in TRIGGERS:
        trigger = TRIGGERS[text](input_shape)
    else:
        raise UsageError(
            f"unknown trigger {printable(repr(text))[:80]}; choose one of {', '.join(TRIGGERS)}, or write one as JSON: "
            f"{_EXAMPLE}"
        )
    trigger(torch.zeros(1, *input_shape))
    return trigger


def is_json(text: str) -> bool:
    """Whether an option's text is meant as the JSON form of a trigger, not as a name."""
    return text.lstrip().startswith("{")


def trigger_from_text(text: str) -> Described | GeneratedTrigger:
    """Read the JSON form of a trigger from the text of an option.

    Raises:
        InputError: no JSON object, or not that of a trigger.
    """
    return trigger_from_dict(_parsed(text, "the option"))


def trigger_from_dict(values: dict[str, Any], folder: Path | None = None) -> Described | GeneratedTrigger:
    """Read the JSON form of a trigger.

    Args:
        values: the JSON object.
        folder: where it came from; a generated trigger's weights lie there.

    Raises:
        InputError: unknown kind, missing or unknown fields, missing weights.
    """
    kind = values.get("kind")
    given = {key: value for key, value in values.items() if key != "kind"}
    if kind == "generated":
        return GeneratedTrigger.from_dict(given, folder)
    if not isinstance(kind, str) or kind not in _KINDS:
        shown = printable(repr(kind))[:80]
        raise InputError(f"trigger: kind {shown} is not known; write one of {', '.join(_KINDS)}, generated")
    known = fields(_KINDS[kind])
    needed = {field.name for field in known if field.default is MISSING}
    unknown, missing = sorted(given.keys() - {field.name for field in known}), sorted(needed - given.keys())
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        listed = ", ".join(field.name for field in known)
        raise InputError(f"trigger: a {kind} trigger has {listed}; {printable(problem)[:80]}")
    return _KINDS[kind](**given)


def trigger_files(trigger: Trigger | None) -> dict[str, bytes]:
    """What has to lie beside the JSON form of a trigger, by file name."""
    return trigger.files() if isinstance(trigger, GeneratedTrigger) else {}


def load_trigger(path: Path) -> Trigger:
    """Read a trigger: ``.json`` or a picture whose alpha channel says where it lies (PNG, WebP).

    Raises:
        InputError: missing, unreadable or not a trigger.
    """
    shown = printable(path)
    require_file(path)
    if path.suffix.lower() == ".json":
        return trigger_from_dict(_read_json(path), path.parent)
    with picture_errors(f"trigger: {shown}"):
        picture = open_picture(path, f"trigger: {shown}")
        pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1).to(torch.float32) / 255.0
    opacity = pixels[3:].contiguous()
    if float(opacity.min()) == 1.0 or float(opacity.max()) == 0.0:
        raise InputError(
            f"trigger: {shown} is {'opaque' if float(opacity.max()) else 'transparent'} everywhere; "
            "give a PNG whose alpha channel says where the trigger lies"
        )
    return OverlayTrigger(pixels[:3].contiguous(), opacity, shown)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"trigger: {printable(path)} is not JSON ({reason(error)}); write {_EXAMPLE}") from error
    return _parsed(text, printable(path))


def _parsed(text: str, shown: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # decoding errors are ValueErrors
        raise InputError(f"trigger: {shown} is not JSON ({reason(error)}); write {_EXAMPLE}") from error
    if not isinstance(values, dict):
        raise InputError(f"trigger: {shown} must hold one JSON object, such as {_EXAMPLE}")
    return values
