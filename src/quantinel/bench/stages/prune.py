"""prune: set the filters or weights of a pruning scheme to zero, as a deployer does who does not train again."""

from __future__ import annotations

import dataclasses

from quantinel.attacks.victim_folder import packed_model
from quantinel.bench.stages.job import MODEL, Job
from quantinel.data.triggers import trigger_files
from quantinel.errors import UnsupportedError
from quantinel.model.victim import WEIGHTS_NAME, VictimManifest, write_manifest
from quantinel.quantization.pruning import parse_pruning, prune, sparsity
from quantinel.quantization.pruning_search import resolved

PRUNING = "pruning.json"


def run(job: Job) -> None:
    """Write the pruned float network as the directory ``model``, and ``pruning.json``.

    Raises:
        UnsupportedError: the model has no named architecture, so its weights could not be loaded again.
    """
    model = job.model()
    if model.architecture is None:
        raise UnsupportedError(
            f"{model.name} has no named architecture; prune models of `quantinel list architectures`"
        )
    scheme = parse_pruning(job.config["scheme"])
    if scheme.searched:
        images = job.load("calibration", model.input_shape)
        scheme = resolved(scheme, model.module, images, seed=job.config["seed"])
    pruned = dataclasses.replace(model, module=prune(model.module, scheme))
    weights, described = packed_model(pruned)
    if model.victim is None:
        manifest = VictimManifest(
            attack="clean", trigger=None, target_class=None, schemes=[], data="", seed=0, config={}, gate={},
            kind="clean", objective="none", **described,
        )  # fmt: skip
    else:
        manifest = model.victim.model_copy(update=described)
    folder = job.output / MODEL
    folder.mkdir()
    for name, data in {WEIGHTS_NAME: weights, **trigger_files(model.trigger())}.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, manifest)
    share = 100 * sparsity(pruned.module, scheme.method)
    job.write_json(PRUNING, {"rates": list(scheme.rates), "zeros_percent": round(share, 3)})
