"""``quantinel verify``: the folder on disk is the one that was audited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.guard import one_line
from quantinel.cli.progress import console, reporting

EPILOG = shared.example("quantinel verify out", "quantinel verify out --data photos/ --json")

_MARKS = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "not_run": ("not run", "yellow")}
_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that `quantinel harden` wrote.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Images to run beside the probe stored in the folder."),
    ] = None,
    split: shared.Split = "test",
    limit: shared.Limit = None,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Re-open a hardened folder: hashes, integers, answers, and what really runs in integers.

    Needs neither the float model nor, as a rule, images. Exit code 0: every check passed; 1: one failed; 2: a
    check could not run, or the folder is damaged.
    """
    with reporting(quiet) as reporter:
        reporter.stage("verifying")
        from quantinel.pipeline.verify import verify as run_verify

        images = None
        if data is not None:
            from quantinel.backends.runtime import Session
            from quantinel.data.sources import load_images
            from quantinel.pipeline.artefact_folder import MODEL

            channels, height, width = Session(folder / MODEL).input_shape
            images = load_images(
                data, input_shape=(channels, height, width), split=split, limit=limit, seed=seed,
                progress=reporter.images,
            )  # fmt: skip
        result = run_verify(folder, images)
    if as_json:
        checks = [check.model_dump(mode="json") for check in result.checks]
        shared.print_json({"folder": str(folder), "verdict": result.verdict, "checks": checks})
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        for check in result.checks:
            title, detail = (one_line(text) for text in (check.title, check.detail))
            table.add_row(Text(*_MARKS[check.status]), Text(title).append(f"\n{detail}", "dim"))
        out = console()
        out.print(table)
        verdict = Text(result.verdict, _STYLES[result.verdict])
        out.print(verdict.append(f"  {one_line(str(folder))}", "default"), soft_wrap=True)
    raise shared.exit_with(result.verdict)
