"""Pieces of inline SVG, drawn by hand and escaped.

Horizontal positions are percentages, so that text keeps its size on any screen. Colours come from the style sheet of
the page, so that charts follow light and dark mode. Every chart carries its figures as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from quantinel.reports import wording


def element(tag: str, content: str = "", /, **attributes: object) -> Markup:
    """An SVG element; foreign text is cleaned and escaped, a trailing ``_`` and inner ``_`` are spelling."""
    rendered = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_foreign(value)}"' for name, value in attributes.items()
    )
    return Markup(f"<{tag}{rendered}>{_foreign(content)}</{tag}>")


def _foreign(value: object) -> Markup:
    """Text that may hold a foreign name."""
    return value if isinstance(value, Markup) else escape(wording.clean(value))


def at(share: float) -> str:
    """A share in [0, 1] as a position; anything else is moved to the nearest end."""
    inside = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return f"{100 * inside:.3f}".rstrip("0").rstrip(".") + "%"


def chart(title: str, description: str, height: int, parts: Sequence[Markup]) -> Markup:
    """A chart with its title and its figures in words."""
    content = Markup("").join([element("title", title), element("desc", description), *parts])
    label = f"{title}. {description}"
    return element("svg", content, class_="chart", width="100%", height=height, role="img", aria_label=label)
