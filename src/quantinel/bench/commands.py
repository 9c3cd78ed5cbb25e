"""Commands that recompute rows and tables, as one types them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from quantinel.bench.suite import Suite
from quantinel.plugins import loaded


def command(suite: Suite, verb: str, only: Sequence[str] = ()) -> str:
    """``quantinel bench VERB SUITE``, with the plugins that are loaded.

    Args:
        suite: named as the user named it.
        verb: run or table.
        only: patterns of cell ids.
    """
    plugins = [word for plugin in loaded() for word in ("--plugin", plugin.file)]
    chosen = [word for pattern in only for word in ("--only", pattern)]
    root = " --data-root DATA" if verb == "run" and suite.uses_root else ""
    return shlex.join(["quantinel", *plugins, "bench", verb, suite.given, *chosen]) + root
