"""Accepted findings: a TOML file that says which, why, and until when.

    [[suppress]]
    rule = "QCB003"
    statement = "Trained with fake quantization by ourselves; ticket 4711."
    expires = 2030-01-31
    target = "int8"        # optional: one scheme, pruning or artefact; all without it
    model = "3f1d..."      # optional: SHA-256 of the model's file; any model without it
    artefact = "91c0..."   # optional, for QCB005: SHA-256 of the shipped file; any file without it

A suppressed finding stays in every report and no longer counts. What could not be judged (QCB007) cannot be
suppressed: an accepted finding is a decision, a check that did not run is not.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quantinel.audit.rules import NOT_ASSESSABLE, RULES
from quantinel.errors import InputError

_MAX_BYTES = 1 << 20


class Suppression(BaseModel):
    """One accepted rule.

    Attributes:
        rule: id of the rule.
        statement: why the finding is accepted.
        expires: last day on which it counts.
        target: scheme, pruning or artefact that it is limited to; None for all.
        model: SHA-256 of the model's file that it is limited to; None for all.
        artefact: SHA-256 of the shipped file that it is limited to; None for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str
    statement: Annotated[str, Field(min_length=10, max_length=2000)]
    expires: datetime.date
    target: str | None = None
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    artefact: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule == NOT_ASSESSABLE:
            raise ValueError("what could not be judged cannot be suppressed")
        if rule not in RULES:
            raise ValueError(f"{rule} is no rule; choose one of {', '.join(RULES)}")
        return rule

    def covers(self, rule: str, target: str, sha256: str | None, artefact: str | None = None) -> bool:
        """Whether it speaks of this finding, on a model and a shipped file with these hashes, expired or not."""
        about = self.rule == rule and self.target in (None, target)
        return about and self.model in (None, sha256) and self.artefact in (None, artefact)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    suppress: list[Suppression]


def load_suppressions(path: Path) -> tuple[Suppression, ...]:
    """Read a suppression file.

    Raises:
        InputError: missing, no TOML, or not of this form.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is larger than a suppression file can be; give the TOML file")
        found = tomllib.loads(path.read_text("utf-8"))
        return tuple(_File.model_validate(found).suppress)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a suppression file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file ({error}); see docs/scan.md for an example") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}; see docs/scan.md for an example") from error
