"""What the store still holds of a row: logs, pictures and layers, found by content address."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quantinel.bench.groups import without_paths
from quantinel.bench.rows import ResultRow
from quantinel.bench.stages.defend import LAYERS
from quantinel.bench.stages.evaluate import PICTURES
from quantinel.bench.store import LOG, RECORD, Address, Store, Stored, read_json, read_stored

_ROLES = {"model": ("train", "attack", "prune", "repair"), "compressed": ("compress",), "quantized": ("defend",)}
"""Upstream results whose logs belong to a cell; the float model has a page of its own."""


@dataclass(frozen=True)
class Evidence:
    """What was found.

    Attributes:
        logs: (stage, text), in the order in which they ran.
        pictures: triggered images with answers, as the evaluation wrote them.
        layers: what the defense did to each layer.
        missing: why there is nothing; "" if the result is there.
    """

    logs: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""


class Archive:
    """The stored results, by what rows know of them.

    Args:
        store: None where there is none at hand.
    """

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def of(self, row: ResultRow | None) -> Evidence:
        """Logs and pictures behind a row."""
        if row is None:
            return Evidence(missing="This cell has not been run.")
        if self._store is None:
            return Evidence(missing="These pages were built without a store, which holds the logs and pictures.")
        if row.status == "failed":
            return self._of_failure(row)
        folder = self._by_key.get(row.key)
        stored = None if folder is None else read_stored(folder)
        if folder is None or stored is None:
            return Evidence(
                missing="The store that these pages were built from does not hold this result (key "
                f"{row.key}); logs and pictures are kept where it was computed."
            )
        logs, layers = [], []
        for place, upstream in self._upstream(stored):
            logs.append((upstream.stage, _log(place / LOG)))
            if upstream.stage == "defend":
                layers = _items(place / LAYERS)
        logs.append((stored.stage, _log(folder / LOG)))
        return Evidence(logs, _items(folder / PICTURES), layers)

    def _of_failure(self, row: ResultRow) -> Evidence:
        assert self._store is not None
        path = self._store.root / "failed" / f"{row.key}.txt"
        text = _log(path) if path.is_file() else self._failures.get(without_paths(row.error or ""))
        if text is None:
            return Evidence(missing="The store that these pages were built from holds no log of this failure.")
        return Evidence([("failed", text)])

    def _upstream(self, stored: Stored) -> list[tuple[Path, Stored]]:
        """Results that went into one, upstream first; of equal ones the newest that is not younger."""
        created = str(stored.environment.get("created", ""))
        found: list[tuple[Path, Stored]] = []
        for role, stages in _ROLES.items():
            if role not in stored.inputs:
                continue
            same = [item for item in self._by_digest.get(stored.inputs[role], ()) if item[1].stage in stages]
            same.sort(key=lambda item: (str(item[1].environment.get("created", "")), str(item[0])))
            before = [item for item in same if str(item[1].environment.get("created", "")) <= created]
            for item in (before or same)[-1:]:
                found += [other for other in [*self._upstream(item[1]), item] if other not in found]
        return found

    @cached_property
    def _by_key(self) -> dict[str, Path]:
        assert self._store is not None
        return {
            Address(record.parents[2].name, record.parents[1].name, record.parents[0].name).key: record.parent
            for stage in ("evaluate", "detect")
            for record in sorted(self._store.root.glob(f"objects/{stage}/*/[!.]*/{RECORD}"))
        }

    @cached_property
    def _by_digest(self) -> dict[str, list[tuple[Path, Stored]]]:
        assert self._store is not None
        found: dict[str, list[tuple[Path, Stored]]] = defaultdict(list)
        for folder, stored in self._store.all():
            if stored.stage in ("train", "attack", "prune", "repair", "compress", "defend"):
                found[stored.digest].append((folder, stored))
        return found

    @cached_property
    def _failures(self) -> dict[str, str]:
        """Logs of failed stages by the error that rows give, which names the stage first."""
        assert self._store is not None
        found = {}
        for path in sorted(self._store.root.glob("failed/*.txt")):
            text = _log(path)
            lines = text.splitlines()
            label = lines[0].partition(" ")[2].rpartition(" on ")[0] if lines else ""
            errors = [line.partition(" failed: ")[2] for line in lines if " failed: " in line]
            if label and errors:
                found[f"{label}: {errors[-1]}"] = text
        return found


def _log(path: Path) -> str:
    """A log as it may be published: files are named without the folders of the machine that ran."""
    return without_paths(_text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _items(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects; empty where there is none."""
    try:
        found = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
