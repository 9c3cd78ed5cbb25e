"""qat: train the model for the deployment grid, as a deployer does who has labelled images."""

from __future__ import annotations

from quantinel.attacks.victim_folder import write_changed
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.stages.job import MODEL, Job
from quantinel.model.loading import load_model
from quantinel.training.qat import train_quantized
from quantinel.training.runtime import Runtime


def run(job: Job) -> None:
    """Write the trained float network as the directory ``model``; the compress stage rounds it.

    Raises:
        UnsupportedError: the model has no named architecture.
        Interrupted: it was asked to stop.
    """
    model = load_model(str(job.model_path), arch=job.config["architecture"])  # a copy: this one is trained
    deployment = parse_deployment(job.config["scheme"])
    assert deployment.training is not None
    assert deployment.grid is not None
    job.checkpoint.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(
        job.device, job.checkpoint / "training.safetensors", should_stop=job.should_stop, progress=job.progress
    )
    data = job.load("train", model.input_shape)
    train_quantized(model, data, deployment.grid, deployment.training, seed=job.config["seed"], runtime=runtime)
    write_changed(job.output / MODEL, model)
