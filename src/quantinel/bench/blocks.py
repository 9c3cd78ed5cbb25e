"""Generated tables in documents, between markers that are comments.

``<!-- table:NAME -->`` ... ``<!-- end:NAME -->`` takes a table by name; ``<!-- suite:NAME [options] -->`` ...
``<!-- end:NAME -->`` the tables of a suite. Options are those of ``quantinel bench table``, as KEY=VALUE:
``columns=model,cda sort=-asr only='victim-*' parts=figures,auc``; ``missing`` stands alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from quantinel.bench.methods import known
from quantinel.bench.tables import PARTS, TableOptions
from quantinel.errors import InputError

_BLOCK = re.compile(
    r"(?P<open><!-- (?P<kind>table|suite):(?P<name>[\w-]+)(?P<options>[^\n]*?) -->\n)(?P<body>.*?)"
    r"(?P<close><!-- end:(?P=name) -->)",
    re.DOTALL,
)
_OPENING = re.compile(r"<!-- (?:table|suite):([\w-]+)")
_OPTIONS = ("columns", "sort", "only", "parts", "missing")


def replace_blocks(text: str, kind: str, make: Callable[[str, str], str | None]) -> str:
    """Put generated text between all markers of a kind.

    Args:
        text: the document.
        kind: "table" or "suite".
        make: from the name and the options of a block to its text; None leaves the block as it is.

    Raises:
        InputError: an opening marker without an end.
    """
    closed = [match["name"] for match in _BLOCK.finditer(text)]
    for name in _OPENING.findall(text):
        if name not in closed:
            raise InputError(f"the block {name} has no end; write <!-- end:{name} --> behind it")

    def replaced(match: re.Match[str]) -> str:
        if match["kind"] != kind:
            return match[0]
        made = make(match["name"], match["options"].strip())
        return match[0] if made is None else f"{match['open']}{made.rstrip()}\n{match['close']}"

    return _BLOCK.sub(replaced, text)


def read_options(text: str) -> tuple[TableOptions, tuple[str, ...]]:
    """Options of a ``suite`` marker.

    Returns:
        The options, and the parts to show.

    Raises:
        UsageError: an unknown option or part.
        InputError: quotes that do not close.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"the options {text!r} of a suite block cannot be read ({error}); quote them") from error
    values: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, _, value = word.partition("=")
        known(key, _OPTIONS, "option of a suite block")
        values[key] = tuple(value.split(",")) if value else ()
    parts = values.pop("parts", PARTS)
    for part in parts:
        known(part, PARTS, "part")
    missing = values.pop("missing", None) is not None
    return TableOptions(**values, missing=missing), parts
