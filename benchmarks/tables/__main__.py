"""Write the generated tables of README.md and docs/ from the committed rows; --check fails where they differ.

    python -m benchmarks.tables [--check]

Blocks are ``<!-- table:NAME -->`` (see `documents.TABLES`) and ``<!-- suite:NAME [options] -->``, up to
``<!-- end:NAME -->``; `quantinel.bench.blocks` says which options there are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.tables.documents import updated
from benchmarks.tables.lines import ROOT

from quantinel.errors import QuantinelError


def main(arguments: list[str], root: Path = ROOT) -> int:
    check = "--check" in arguments
    stale = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        try:
            text, waiting = updated(path, root)
        except QuantinelError as error:
            print(f"{path.name}: {error}")
            return 2
        for name in waiting:
            print(f"{path.name}: suite {name} has no rows yet, its block is left as it is")
        if text != path.read_text("utf-8"):
            stale.append(path.name)
            if not check:
                path.write_text(text, "utf-8")
    if stale and check:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}: run python -m benchmarks.tables")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
