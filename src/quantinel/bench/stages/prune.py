"""prune: set the filters or weights of a pruning scheme to zero, as a deployer does who does not train again."""

from __future__ import annotations

import dataclasses

from quantinel.attacks.victim_folder import write_changed
from quantinel.bench.stages.calibration_images import calibration_images
from quantinel.bench.stages.job import MODEL, Job
from quantinel.quantization.pruning import parse_pruning, prune, sparsity
from quantinel.quantization.pruning_search import resolved

PRUNING = "pruning.json"


def run(job: Job) -> None:
    """Write the pruned float network as the directory ``model``, and ``pruning.json``.

    Raises:
        UnsupportedError: the model has no named architecture, so its weights could not be loaded again.
    """
    model = job.model()
    scheme = parse_pruning(job.config["scheme"])
    if scheme.searched:
        images = calibration_images(job)
        scheme = resolved(scheme, model.module, images, seed=job.config["seed"])
    pruned = dataclasses.replace(model, module=prune(model.module, scheme))
    write_changed(job.output / MODEL, pruned)
    share = 100 * sparsity(pruned.module, scheme.method)
    job.write_json(PRUNING, {"rates": list(scheme.rates), "zeros_percent": round(share, 3)})
