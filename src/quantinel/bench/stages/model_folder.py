"""A float model that a stage made from another, as a directory that every later stage loads."""

from __future__ import annotations

from pathlib import Path

from quantinel.attacks.victim_folder import packed_model
from quantinel.errors import UnsupportedError
from quantinel.model.loading import LoadedModel
from quantinel.model.victim import WEIGHTS_NAME, VictimManifest, write_manifest


def require_architecture(model: LoadedModel, what: str) -> None:
    """The changed weights can be loaded again.

    Args:
        model: to be changed.
        what: "prune", "repair".

    Raises:
        UnsupportedError: the model has no named architecture.
    """
    if model.architecture is None:
        raise UnsupportedError(
            f"{model.name} has no named architecture; {what} models of `quantinel list architectures`"
        )


def write_model(folder: Path, model: LoadedModel) -> None:
    """Write the weights with the manifest of the model that they come from, trigger and target included."""
    weights, described = packed_model(model)
    if model.victim is None:
        manifest = VictimManifest(
            attack="clean", trigger=None, target_class=None, schemes=[], data="", seed=0, config={}, gate={},
            kind="clean", objective="none", **described,
        )  # fmt: skip
    else:
        manifest = model.victim.model_copy(update=described)
    folder.mkdir()
    (folder / WEIGHTS_NAME).write_bytes(weights)
    write_manifest(folder, manifest)
