"""Lines of committed results, the newest of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Line = dict[str, Any]


def newest(name: str, key: Callable[[Line], object], wanted: Callable[[Line], bool] = lambda _: True) -> list[Line]:
    """The newest wanted line of every key, in the order in which the keys first appear.

    Args:
        name: of a file of results.
        key: what makes a line replace an earlier one.
        wanted: which lines count.
    """
    lines = map(json.loads, (RESULTS / f"{name}.jsonl").read_text("utf-8").splitlines())
    return list({key(line): line for line in lines if wanted(line)}.values())


def victim_name(model: str, attack: str) -> str:
    """Short: of the network where nothing was made of it, of the attack where the network is the usual one."""
    if attack == "none":
        return model.removesuffix("-victim")
    return attack if model.endswith("resnet20") else f"{attack} ({model})"


def configuration(line: Line) -> tuple[str, str]:
    """What a comparison was measured on."""
    return line["name"], json.dumps(line["config"], sort_keys=True)
