"""``quantinel list``: what can be named on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Protocol

import typer

from quantinel.cli import shared
from quantinel.cli.progress import console
from quantinel.errors import UsageError

EPILOG = shared.example("quantinel list", "quantinel list schemes --json")


class _Named(Protocol):
    @property
    def summary(self) -> str: ...


def _attacks() -> Mapping[str, str]:
    from quantinel.attacks import ATTACKS

    return _summaries(ATTACKS)


def _defenses() -> Mapping[str, str]:
    from quantinel.defenses import DEFENSES

    return _summaries(DEFENSES)


def _repairs() -> Mapping[str, str]:
    from quantinel.defenses import PRUNING_DEFENSES, REPAIRS

    return {**_summaries(REPAIRS), **_summaries(PRUNING_DEFENSES)}


def _detectors() -> Mapping[str, str]:
    from quantinel.detectors import DETECTORS

    return _summaries(DETECTORS)


def _schemes() -> Mapping[str, str]:
    from quantinel.quantization.scheme import SCHEMES

    return SCHEMES


def _backends() -> Mapping[str, str]:
    from quantinel.backends.onnx_qdq import PROFILES

    return _summaries(PROFILES)


def _architectures() -> Mapping[str, str]:
    from quantinel.model.zoo import ARCHITECTURES

    return _summaries(ARCHITECTURES)


def _data() -> Mapping[str, str]:
    from quantinel.data.sources import DATA_SOURCES

    return DATA_SOURCES


def _summaries(registry: Mapping[str, _Named]) -> dict[str, str]:
    return {name: entry.summary for name, entry in registry.items()}


GROUPS = {
    "attacks": _attacks,
    "defenses": _defenses,
    "repairs": _repairs,
    "detectors": _detectors,
    "schemes": _schemes,
    "backends": _backends,
    "architectures": _architectures,
    "data": _data,
}


def list_names(
    group: Annotated[
        str | None, typer.Argument(metavar=f"[{'|'.join(GROUPS)}]", help="One group only.", show_default=False)
    ] = None,
    as_json: shared.Json = False,
) -> None:
    """List the names of methods, schemes, backends, architectures and data sources."""
    if group is not None and group not in GROUPS:
        raise UsageError(f"unknown group {group!r}; choose one of {', '.join(GROUPS)}")
    groups = {name: read() for name, read in GROUPS.items() if group in (None, name)}
    if as_json:
        listed = {
            name: [{"name": entry, "summary": summary} for entry, summary in entries.items()]
            for name, entries in groups.items()
        }
        shared.print_json(listed if group is None else listed[group])
        return
    from rich.text import Text

    out = console()
    for index, (name, entries) in enumerate(groups.items()):
        if group is None:
            out.print(Text(("\n" if index else "") + name, style="bold"))
        width = max(map(len, entries), default=0)
        for entry, summary in entries.items():
            line = Text("  " if group is None else "").append(entry.ljust(width), "cyan").append(f"  {summary}")
            out.print(line, soft_wrap=True)
