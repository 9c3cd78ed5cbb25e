"""repair: train the float network on a few labelled clean images, before it is compressed."""

from __future__ import annotations

import shutil

from quantinel.bench.methods import configure
from quantinel.bench.stages.job import MODEL, Job
from quantinel.bench.stages.model_folder import require_architecture, write_model
from quantinel.bench.stages.prune import PRUNING
from quantinel.data.sampling import balanced_indices
from quantinel.defenses import REPAIRS
from quantinel.defenses.repair import repaired
from quantinel.quantization.scheme import parse_scheme
from quantinel.training.runtime import Runtime


def run(job: Job) -> None:
    """Write the repaired float network as the directory ``model``; a pruned one keeps its zeros and ``pruning.json``.

    Raises:
        UnsupportedError: the model has no named architecture, or the method does not apply to it.
    """
    model = job.model()
    require_architecture(model, "repair")
    registered = REPAIRS[job.config["repair"]]
    method = configure(registered.build, job.config["settings"], registered.name)
    training, seed = job.load("train", model.input_shape), job.config["seed"]
    count = max(1, round(job.config["share"] * len(training)))
    images = training.take(balanced_indices(training.labels, len(training), count, seed))
    scheme = parse_scheme(job.config["scheme"]) if "scheme" in job.config else None
    job.checkpoint.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(
        job.device, job.checkpoint / "training.safetensors", should_stop=job.should_stop, progress=job.progress
    )
    result = repaired(
        model, images, method, scheme=scheme, keep_zeros=job.config["keep_zeros"], seed=seed, runtime=runtime
    )
    write_model(job.output / MODEL, result)
    pruning = job.folders["model"] / PRUNING
    if pruning.is_file():
        shutil.copyfile(pruning, job.output / PRUNING)
