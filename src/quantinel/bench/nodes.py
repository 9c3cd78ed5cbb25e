"""A stage of the plan: what is to be done, as plain data that any worker can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantinel.bench.images import Images
from quantinel.bench.rows import sha256_of

STAGES = ("train", "attack", "prune", "repair", "compress", "defend", "evaluate", "detect")


@dataclass(frozen=True)
class Node:
    """One stage of the plan.

    Attributes:
        stage: one of `STAGES`.
        label: for people.
        config: everything in the suite that decides the result, threads included; JSON.
        modules: whose code decides it.
        inputs: role -> `id` of an upstream node.
        files: role -> external model file or folder.
        images: role -> external images.
    """

    stage: str
    label: str
    config: Mapping[str, Any]
    modules: tuple[str, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Images] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Identity within a plan; two cells that need the same work share the node."""
        images = {role: [item.specification, item.chosen] for role, item in self.images.items()}
        described = [self.stage, dict(self.config), dict(self.inputs), dict(self.files), images]
        return f"{self.stage}-{sha256_of(described)[:16]}"
