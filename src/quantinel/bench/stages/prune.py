"""prune: set the filters or weights of a pruning scheme to zero, as a deployer does who does not train again.

A pruning defense chooses other ones than the scheme would.
"""

from __future__ import annotations

import dataclasses

from quantinel.bench.methods import configure
from quantinel.bench.stages.job import MODEL, Job
from quantinel.bench.stages.model_folder import require_architecture, write_model
from quantinel.defenses import PRUNING_DEFENSES
from quantinel.defenses.pruning import prune_with
from quantinel.quantization.pruning import parse_pruning, prune, sparsity
from quantinel.quantization.pruning_search import resolved

PRUNING = "pruning.json"


def run(job: Job) -> None:
    """Write the pruned float network as the directory ``model``, and ``pruning.json``.

    Raises:
        UnsupportedError: the model has no named architecture, so its weights could not be loaded again.
    """
    model = job.model()
    require_architecture(model, "prune")
    scheme = parse_pruning(job.config["scheme"])
    if scheme.searched:
        images = job.load("calibration", model.input_shape)
        scheme = resolved(scheme, model.module, images, seed=job.config["seed"])
    if "defense" in job.config:
        defense = PRUNING_DEFENSES[job.config["defense"]]
        method = configure(defense.build, job.config["settings"], defense.name)
        module = prune_with(method, model.module, scheme, seed=job.config["seed"])
    else:
        module = prune(model.module, scheme)
    pruned = dataclasses.replace(model, module=module)
    write_model(job.output / MODEL, pruned)
    share = 100 * sparsity(pruned.module, scheme.method)
    job.write_json(PRUNING, {"rates": list(scheme.rates), "zeros_percent": round(share, 3)})
