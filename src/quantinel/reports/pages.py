"""What every HTML page of this package shares: escaping, pictures, style.

Names on a page come from files that nobody vouches for. Everything is escaped by Jinja2, control characters are
spelled out, and pictures must be PNG in base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from quantinel.reports import facts, plots, wording

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(encoded: str) -> str | None:
    """A data URI of a base64 PNG, or None when it is anything else."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return f"data:image/png;base64,{encoded}" if content.startswith(_PNG_SIGNATURE) else None


def template(name: str) -> str:
    """The text of a template or style sheet of this package."""
    return resources.files("quantinel.reports").joinpath("templates", name).read_text("utf-8")


def style(*sheets: str) -> Markup:
    """The style of a page: the common sheet, then others as text. Nothing foreign belongs in it."""
    return Markup("\n".join([template("base.css").rstrip(), *(sheet.rstrip() for sheet in sheets)]))


def _finalize(value: Any) -> Any:
    # Markup is what this package drew itself; everything else may carry a foreign name.
    return value if isinstance(value, Markup) else re.sub(r"(?<=\d) %", "\u00a0%", wording.clean(value))


def environment(load: Callable[[str], str | None] = template, **globals_: Any) -> Environment:
    """Templates in which everything is escaped and a missing name is an error.

    Args:
        load: text of a template by name.
        globals_: further names for the templates.
    """
    made = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals.update(facts=facts, plots=plots, wording=wording, picture=picture, **globals_)
    return made
