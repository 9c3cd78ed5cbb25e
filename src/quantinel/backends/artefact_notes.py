"""What is said about a shipped file as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class StructureNote:
    """Something about the file as a whole.

    Attributes:
        id: stable name.
        level: "error" where no quantizer adds it, "warning" where one might.
        detail: a sentence.
    """

    id: str
    level: Literal["info", "warning", "error"]
    detail: str


@dataclass
class FileNotes:
    """What was found in a file as a whole, and sentences on what was not compared."""

    notes: list[StructureNote] = field(default_factory=list)
    not_assessed: list[str] = field(default_factory=list)
