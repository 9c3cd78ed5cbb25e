"""``quantinel bench clean``: a store without what runs left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import bench, shared
from quantinel.cli.progress import console

if TYPE_CHECKING:
    from quantinel.bench.cleaning import Leftover

EPILOG = shared.example("quantinel bench clean --dry-run", "quantinel bench clean --store STORE --all")


def clean(
    store: bench.StoreFolder = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also checkpoints of interrupted stages, and logs of failures."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: shared.Json = False,
) -> None:
    """Remove lock files and half-written results from a store; no stored result, and nothing a running process holds.

    Checkpoints that an interrupted run goes on from and logs of failures (which `bench site` shows) stay without --all.
    """
    from quantinel.bench.cleaning import clean as clean_store
    from quantinel.bench.store import Store

    folder = bench.store_folder(store)
    done = clean_store(Store(folder), everything, dry_run)
    if as_json:
        shared.print_json(
            {
                "store": str(folder),
                "dry_run": dry_run,
                **{name: [_described(item) for item in getattr(done, name)] for name in ("removed", "held", "wanted")},
            }
        )
        return
    out = console()

    def say(text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)

    if dry_run:
        for item in done.removed:
            say(f"{item.kind}: {item.path}")
    say(f"{folder}: {'would remove' if dry_run else 'removed'} {_summary(done.removed)}")
    if done.held:
        say(f"Left alone, a running process holds them: {_summary(done.held)}")
    if done.wanted:
        say(f"Left alone, --all removes them: {_summary(done.wanted)}")


def _described(item: Leftover) -> dict[str, object]:
    return {"kind": item.kind, "path": str(item.path), "bytes": item.size}


def _summary(items: Sequence[Leftover]) -> str:
    """``3 locks, 1 checkpoint; 12.0 MB``."""
    if not items:
        return "nothing"
    counts: dict[str, int] = {}
    for item in items:
        counts[item.kind] = counts.get(item.kind, 0) + 1
    size = sum(item.size for item in items)
    return f"{', '.join(_counted(kind, count) for kind, count in counts.items())}; {size / 1e6:.1f} MB"


def _counted(kind: str, count: int) -> str:
    plural = "logs of failures" if kind == "log of a failure" else f"{kind}s"
    return f"{count} {kind if count == 1 else plural}"
