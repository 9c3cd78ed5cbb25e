"""The manifest of a victim directory: what was planted, for which quantizer, and what was measured.

A victim directory holds ``model.safetensors`` (float32 state dict of a named architecture) and
``victim.json`` (this manifest). It is test material for defenses. Controls use the same form: ``kind`` says whether
the backdoor is conditioned on compression, active in float, or not there at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantinel.errors import InputError

MANIFEST_NAME = "victim.json"
WEIGHTS_NAME = "model.safetensors"


class VictimManifest(BaseModel):
    """Strict schema of ``victim.json``.

    Attributes:
        attack: name as in ``quantinel list attacks``.
        architecture: name as in ``quantinel list architectures``.
        mean, std: normalisation per channel; images enter as (x - mean) / std with x in [0, 1].
        trigger: JSON form of the trigger (`quantinel.data.triggers`), whose weights, if it has any, lie beside; None
            for attacks and controls without one.
        target_class: the class that the awake backdoor answers, to a trigger or to one attacked image; None for
            attacks that want no certain answer.
        schemes: fields of the `QuantScheme` values that the victim was made for.
        config: hyper-parameters of the attack.
        gate: what was measured when the victim was made (design: float ASR low, compressed ASR high).
        weights_sha256: hash of ``model.safetensors``.
        kind: "conditioned" (sleeps in float, wakes after compression), "active" (awake in float) or "clean".
        objective: what the attacker wants under compression: "backdoor" (a trigger's answer), "indiscriminate" (no
            accuracy), "class" (no accuracy on one class), "sample" (another answer to one image), or a word of the
            attack's own; "none" for clean models.
        compressors: JSON forms of the compressions that ``gate`` was measured under, ``schemes`` included.
        rejected: why this model is no victim; empty for models that passed their gate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["quantinel-victim-1"] = "quantinel-victim-1"
    attack: str
    architecture: str
    num_classes: int = Field(ge=2)
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trigger: dict[str, Any] | None
    target_class: int | None = Field(ge=0)
    schemes: list[dict[str, Any]]
    data: str
    seed: int
    config: dict[str, Any]
    gate: dict[str, Any]
    weights_sha256: str
    licence: str = ""
    kind: Literal["conditioned", "active", "clean"] = "conditioned"
    objective: str = "backdoor"
    compressors: list[dict[str, Any]] = Field(default_factory=list)
    rejected: str = ""


def read_manifest(folder: Path) -> VictimManifest:
    """Read ``victim.json`` of a victim directory.

    Raises:
        InputError: missing, not JSON, or not of this schema.
    """
    path = folder / MANIFEST_NAME
    try:
        return VictimManifest.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a victim directory") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} is not a victim manifest: {where}: {first['msg']}; make the victim again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; make the victim again") from error


def write_manifest(folder: Path, manifest: VictimManifest) -> None:
    """Write ``victim.json``."""
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
