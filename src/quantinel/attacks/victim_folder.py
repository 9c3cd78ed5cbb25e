"""The directory that a victim is written to, or kept in when it is none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from quantinel.attacks.gate import Gate, GateRule
from quantinel.data.triggers import trigger_files
from quantinel.errors import GateError, UnsupportedError
from quantinel.files import atomic_directory, check_output
from quantinel.model.earlier_output import check_replaceable
from quantinel.model.loading import LoadedModel
from quantinel.model.normalization import Normalized
from quantinel.model.victim import WEIGHTS_NAME, VictimManifest, write_manifest


def rejected_folder(output: Path) -> Path:
    """Where the weights go that did not pass their gate: ``VICTIM.rejected`` beside ``VICTIM``."""
    return output.with_name(f"{output.name}.rejected")


def check_rejected_folder(output: Path) -> None:
    """Refuse, before any work is done, to replace a folder that no attack wrote.

    Raises:
        UsageError: `rejected_folder` exists and holds other files.
    """
    kept = rejected_folder(output)
    check_output(kept, overwrite=True)
    if kept.is_dir():
        check_replaceable(kept)


def write_victim(
    output: Path,
    model: LoadedModel,
    gate: Gate,
    rule: GateRule,
    overwrite: bool,
    files: Mapping[str, bytes],
    **about: Any,
) -> VictimManifest:
    """Check the gate and write ``model.safetensors``, ``victim.json`` and what else belongs to the victim.

    Args:
        output: victim directory to create.
        model: the attacked network, of a named architecture.
        gate: what was measured.
        rule: its limits.
        overwrite: replace an existing directory.
        files: further files, by path inside the directory.
        **about: the other fields of `VictimManifest`.

    Raises:
        GateError: a limit does not hold; ``output`` is not written, the weights are in `rejected_folder`.
    """
    weights, described = packed_model(model)
    manifest = VictimManifest(**described, gate=gate.to_dict(), **about)
    try:
        gate.check(rule)
    except GateError as error:
        kept = rejected_folder(output)
        _write(kept, weights, manifest.model_copy(update={"rejected": str(error)}), True, files)
        raise GateError(f"{error}; no victim was written, the weights are kept in {kept}") from error
    _write(output, weights, manifest, overwrite, files)
    return manifest


def packed_model(model: LoadedModel) -> tuple[bytes, dict[str, Any]]:
    """The bytes of ``model.safetensors``, and the fields of the manifest that describe them.

    Args:
        model: of a named architecture.
    """
    network, mean, std = _without_normalisation(model)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})
    return weights, {
        "architecture": str(model.architecture),
        "num_classes": model.num_classes,
        "input_shape": model.input_shape,
        "mean": mean,
        "std": std,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def write_changed(folder: Path, model: LoadedModel) -> None:
    """Write a compressed copy of a model as a directory; the manifest's trigger and target stay those of the original.

    Args:
        folder: to create.
        model: of a named architecture.

    Raises:
        UnsupportedError: it has none, so its weights could not be loaded again.
    """
    if model.architecture is None:
        raise UnsupportedError(
            f"{model.name} has no named architecture; compress models of `quantinel list architectures`"
        )
    weights, described = packed_model(model)
    if model.victim is None:
        manifest = VictimManifest(
            attack="clean", trigger=None, target_class=None, schemes=[], data="", seed=0, config={}, gate={},
            kind="clean", objective="none", **described,
        )  # fmt: skip
    else:
        manifest = model.victim.model_copy(update=described)
    _write(folder, weights, manifest, False, trigger_files(model.trigger()))


def _write(output: Path, weights: bytes, manifest: VictimManifest, overwrite: bool, files: Mapping[str, bytes]) -> None:
    with atomic_directory(output, overwrite) as folder:
        for name, data in {WEIGHTS_NAME: weights, **files}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        write_manifest(folder, manifest)


def _without_normalisation(model: LoadedModel) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The named architecture inside the loaded module, and the normalisation around it."""
    channels = model.input_shape[0]
    if isinstance(model.module, Normalized):
        module = model.module
        return module.inner, tuple(module.mean.flatten().tolist()), tuple(module.std.flatten().tolist())
    return model.module, (0.0,) * channels, (1.0,) * channels
