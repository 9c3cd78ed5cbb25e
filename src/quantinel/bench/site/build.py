"""Write the site: an index, a leaderboard per suite, a page per cell. Equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantinel.bench.rows import ResultRow
from quantinel.bench.site.downloads import rows_csv, rows_json
from quantinel.bench.site.entries import gather
from quantinel.bench.site.evidence import Archive
from quantinel.bench.site.pages import cell_page, index_page, suite_page
from quantinel.bench.store import Store
from quantinel.bench.suite import Suite
from quantinel.files import atomic_directory, output_errors

MARKER = "quantinel-site.txt"
"""Names a folder as one that may be replaced."""


@dataclass(frozen=True)
class SiteSummary:
    """What was written.

    Attributes:
        index: the page to open.
        suites: how many.
        cells: pages of cells.
        evidence: cells whose logs and pictures were found in the store.
    """

    index: Path
    suites: int
    cells: int
    evidence: int


def build_site(
    suites: Mapping[str, Suite | None],
    rows: Mapping[str, Sequence[ResultRow]],
    store: Store | None,
    output: Path,
    overwrite: bool = False,
) -> SiteSummary:
    """Write a static site that needs no server and loads nothing from anywhere.

    Args:
        suites: definitions by name; None where only rows are at hand.
        rows: of every suite, oldest first.
        store: where logs and pictures are looked for; None leaves them out.
        output: folder to create.
        overwrite: replace it.

    Raises:
        UsageError: the folder exists and is not to be replaced.
        OutputError: it cannot be written.
    """
    gathered = gather(suites, rows)
    archive = Archive(store)
    cells = evidence = 0
    with atomic_directory(output, overwrite=overwrite) as folder, output_errors(output):
        (folder / MARKER).write_text("Written by quantinel bench site; --force replaces this folder.\n", "utf-8")
        _write(folder / "index.html", index_page(gathered))
        for pages in gathered:
            place = folder / pages.folder
            (place / "cells").mkdir(parents=True)
            _write(place / "index.html", suite_page(pages))
            _write(place / "rows.json", rows_json(pages))
            _write(place / "rows.csv", rows_csv(pages))
            for entry in pages.entries:
                found = archive.of(entry.row)
                _write(place / "cells" / entry.page, cell_page(pages, entry, found))
                cells += 1
                evidence += not found.missing
    return SiteSummary(output / "index.html", len(gathered), cells, evidence)


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "replace"))
