"""The hardened directory: recipe, probe, renderings and, last of all, the manifest with every hash."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quantinel.audit.report import Report
from quantinel.data.images import ImageSet
from quantinel.errors import VerificationError
from quantinel.files import sha256_file
from quantinel.reports.model_card import render_model_card
from quantinel.reports.render import RENDERERS

MANIFEST = "manifest.json"
MODEL = "model.onnx"
INTEGERS = "quantized.safetensors"
PROBE = "probe.safetensors"
_PROBE_IMAGES = 128
_PROBE_BYTES = 4_000_000


def write_probe(folder: Path, images: ImageSet, simulated: Tensor) -> None:
    """Store some calibration images with the simulation's logits, so that ``verify`` needs no data.

    Args:
        folder: the hardened directory.
        images: calibration images.
        simulated: (N, K) logits of ``simulate()`` on them.
    """
    count = max(2, min(_PROBE_IMAGES, len(images), _PROBE_BYTES // images.images[0].numel()))
    tensors = {"images": images.images[:count].contiguous(), "logits": simulated[:count].float().contiguous()}
    (folder / PROBE).write_bytes(save(tensors))


def read_probe(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Probe images (N, C, H, W) uint8 and logits (N, K); None where none were stored.

    Raises:
        VerificationError: the file is damaged.
    """
    path = folder / PROBE
    if not path.is_file():
        return None
    try:
        tensors = load(path.read_bytes())
        images, logits = tensors["images"], tensors["logits"]
    except (OSError, SafetensorError, KeyError) as error:
        raise VerificationError(f"{path} was changed or is truncated; harden the model again") from error
    pixels = images.dtype == torch.uint8 and images.ndim == 4 and len(images) > 0
    answers = logits.dtype == torch.float32 and logits.ndim == 2 and logits.shape[1] > 1 and logits.isfinite().all()
    if not (pixels and answers) or len(images) != len(logits):
        raise VerificationError(f"{path} holds no images with their logits; harden the model again")
    return images, logits


def finish_folder(folder: Path, report: Report, recipe: Mapping[str, Any], model_sha256: str | None) -> None:
    """Write report, renderings, recipe, model card and manifest.

    Args:
        folder: holds the artefact's binary files already.
        report: the source of truth.
        recipe: resolved configuration, one level of tables.
        model_sha256: hash of the input model's file.
    """
    (folder / "report.json").write_text(report.model_dump_json(indent=2) + "\n", "utf-8")
    (folder / "report.html").write_text(RENDERERS["html"](report), "utf-8")
    (folder / "report.sarif").write_text(RENDERERS["sarif"](report), "utf-8")
    (folder / "recipe.toml").write_text(to_toml(recipe), "utf-8")
    listed = sorted([*(path.name for path in folder.iterdir()), "README.md", MANIFEST])
    (folder / "README.md").write_text(render_model_card(report, listed), "utf-8")
    manifest = {
        "format": "quantinel-manifest-1",
        "version": report.version,
        "created": report.created,
        "verdict": report.verdict,
        "seed": report.request["seed"],
        "inputs": {
            "model": {"source": report.request["source"], "sha256": model_sha256},
            "calibration": report.data["calibration"],
            "evaluation": report.data["evaluation"],
        },
        "outputs": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        "environment": report.environment,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML text of plain values and one level of tables (None is left out: TOML has no null)."""
    plain = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items() if value is not None]
    for name, table in tables.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, Path):
        value = str(value)
    if dataclasses.is_dataclass(value):
        raise TypeError("flatten dataclasses before writing TOML")
    return json.dumps(value)  # strings, numbers and booleans are written alike in JSON and TOML


def check_manifest(folder: Path) -> list[str]:
    """Problems with the folder's hashes: missing, changed, unlisted or additional files; empty when all agree.

    Raises:
        VerificationError: no readable manifest.
    """
    path = folder / MANIFEST
    try:
        outputs = json.loads(path.read_text("utf-8"))["outputs"]
        recorded = {str(name): str(digest) for name, digest in outputs.items()}
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror}); give a hardened directory") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerificationError(f"{path} is no manifest; it was changed, or the folder was not hardened") from error
    problems = []
    for name, digest in recorded.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            problems.append(f"{name} is missing")
        elif sha256_file(file) != digest:
            problems.append(f"{name} was changed")
    problems += [f"the manifest does not list {name}" for name in (MODEL, INTEGERS) if name not in recorded]
    additional = sorted(item.name for item in folder.iterdir() if item.name not in {MANIFEST, *recorded})
    return problems + [f"{name} was added; move it elsewhere" for name in additional if name not in (MODEL, INTEGERS)]
