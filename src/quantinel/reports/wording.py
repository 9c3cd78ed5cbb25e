"""Words and figures that all renderings share; nothing here knows HTML, Markdown or terminals.

A report carries names from files that nobody vouches for. `clean` takes the control characters out of them
(terminal escapes, text that runs right to left); each rendering then escapes for its own syntax.
"""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from datetime import datetime
from typing import Any

from quantinel.audit.report import Rate

NOT_MEASURED = "not measured"
VARIANTS = {"float": "Float", "nearest": "Nearest", "hardened": "Hardened"}
BACKENDS = {"float": "PyTorch", "simulated": "simulated", "onnxruntime": "ONNX Runtime"}
STATUSES = {"pass": "Passed", "fail": "Failed", "not_run": "Not run"}
SCAN_STATUSES = {"pass": "passed", "fail": "FAILED", "undecided": "undecided", "not_run": "not run"}
SCAN_LEVELS = {"note": "note", "warning": "warning", "error": "SERIOUS"}
OUTCOMES = {
    "applied": "was accepted",
    "expired": "was accepted, but that has expired: it counts again",
    "unused": "is accepted, but was not found",
}
SCAN_VERDICTS = {
    "PASS": "Every required check ran and passed. This is no proof: read what the scan could not see.",
    "FAIL": "A check found what harmless models do not show: do not deploy the ordinary compression of this model.",
    "INCONCLUSIVE": "A required check could not judge this model: there is no verdict.",
}
LEVELS = {"info": "Note", "warning": "Warning", "error": "Serious"}
VERDICTS = {
    "PASS": "Every required check of the emitted model ran and passed.",
    "FAIL": "A check of the emitted model failed: do not deploy it.",
    "INCONCLUSIVE": "A required check of the emitted model could not run: there is no verdict.",
}

_LISTED = 12
_COMMANDS = ("quantinel ", "python ", "python3 ", "pip ", "$ ")
_LABELS = {"num_classes": "Classes", "p_value": "P-value", "class_names": "Names of the classes"}
_SPELLED = {"sha256": "SHA-256", "onnx": "ONNX", "onnxruntime": "ONNX Runtime", "cpu": "CPU", "gpu": "GPU"}


def clean(text: object) -> str:
    """``text`` with control, format and unassigned characters spelled out; line breaks stay."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c == "\n" or _is_visible(c) else _spelled_out(c) for c in plain)


def one_line(text: object) -> str:
    """``clean`` text without line breaks."""
    return " ".join(clean(text).split())


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return not (category.startswith("C") or category in ("Zl", "Zp"))


def _spelled_out(character: str) -> str:
    return " " if character in "\t\r" else character.encode("unicode_escape").decode("ascii")


def figure(value: float | None) -> str:
    """A number to four significant digits; an integer in full."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """``value`` percent to one decimal, with more where one would round it to exactly 0 or 100."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    decimals = 1
    while decimals < 4 and round(value, decimals) in (0.0, 100.0) and value not in (0.0, 100.0):
        decimals += 1
    return f"{value:.{decimals}f} %"


def share(value: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return percent(None if value is None else 100 * value)


def rate(value: Rate | None) -> str:
    """The percentage of a rate."""
    return percent(None if value is None else value.percent)


def interval(value: Rate) -> str:
    """The 95 % interval of a rate, in percent."""
    low, high = value.interval95
    return f"{low:.1f} to {high:.1f}"


def rate_in_full(value: Rate | None) -> str:
    """Percentage, interval and n on one line."""
    if value is None or value.percent is None:
        return NOT_MEASURED
    return f"{rate(value)} [{interval(value)}], n = {value.n}"


def bare(value: Rate | None) -> str:
    """The base rate of attack success where there is no column for it; empty where it was not measured."""
    return "" if value is None or value.percent is None else f"bare {rate(value)}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if not math.isfinite(seconds):
        return "not finite"
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds >= 0.05 else f"{1000 * seconds:.0f} ms"


def moment(created: str) -> str:
    """An ISO 8601 time for people; anything else as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = time.strftime(" %Z") if time.tzinfo else ""
    return f"{time:%Y-%m-%d %H:%M}{zone}"


def label(key: str) -> str:
    """A dictionary key as the head of a line: ``input_shape`` becomes ``Input shape``."""
    if key in _LABELS:
        return _LABELS[key]
    words = [_SPELLED.get(word, word) for word in re.split(r"[_\s]+", key) if word]
    text = " ".join(words)
    return text[:1].upper() + text[1:] if len(text) > 1 and text.islower() else text


def _inner_label(key: str) -> str:
    head = label(key)
    return head if head.split(" ")[0] in _SPELLED.values() else head.lower()


def described(value: Any) -> str:
    """Any JSON value on one line: ``{"name": "efrap", "flip_weight": 1.0}`` is ``efrap (flip weight 1)``."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(value)
    if isinstance(value, dict):
        named = [f"{_inner_label(str(key))} {described(item)}" for key, item in value.items() if key != "name"]
        inner = ", ".join(named)
        if "name" not in value:
            return inner or "–"
        return f"{described(value['name'])} ({inner})" if inner else described(value["name"])
    if isinstance(value, list | tuple):
        return _listed(list(value))
    return str(value)


def _listed(values: list[Any]) -> str:
    if 1 < len(values) <= 5 and all(isinstance(value, int) for value in values):
        return " × ".join(str(value) for value in values)
    shown = ", ".join(described(value) for value in values[:_LISTED])
    more = len(values) - _LISTED
    return (f"{shown} and {more:,} more" if more > 0 else shown) or "none"


def command_line(value: Any) -> str:
    """A command given as text or as a list of arguments."""
    return shlex.join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


def is_command(text: str) -> bool:
    """Whether a next step is something to type, not a sentence."""
    return text.startswith(_COMMANDS) and "\n" not in text


def segments(text: str) -> list[tuple[str, bool]]:
    """Split at pairs of backticks into (text, is code)."""
    parts = re.split(r"`([^`]+)`", text)
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]
