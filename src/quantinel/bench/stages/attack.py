"""attack: train a victim from a clean model, or from random weights where the attack starts there."""

from __future__ import annotations

import dataclasses
from typing import Any

from quantinel.attacks import ATTACKS
from quantinel.attacks.protocol import Attack
from quantinel.attacks.victim_folder import rejected_folder
from quantinel.bench.methods import attack_config
from quantinel.bench.stages.job import MODEL, Job
from quantinel.data.images import ImageSet
from quantinel.errors import GateError, InputError
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.untrained import untrained_model
from quantinel.model.victim import read_manifest
from quantinel.training.runtime import Runtime


def run(job: Job) -> None:
    """Write the victim directory ``model``; one that failed its gate is written too, and the error raised.

    Raises:
        GateError: the result does not sleep in float and wake after compression.
    """
    attack = ATTACKS[job.config["attack"]]
    config = attack_config(attack.config, job.config["settings"], job.config["schemes"], attack.name)
    train_victim(job, attack, config)


def train_victim(job: Job, attack: Attack, config: object) -> None:
    """Run an attack, or clean training, with the job's data, checkpoint and device."""
    training = named(job, "train")
    model = _start(job, training)
    test = named(job, "test", model.input_shape)
    job.checkpoint.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(
        job.device, job.checkpoint / "training.safetensors", should_stop=job.should_stop, progress=job.progress
    )
    output = job.output / MODEL
    try:
        attack.run(model, training, test, config, output, seed=job.config["seed"], runtime=runtime, **_lent(job))
    except GateError as error:
        rejected_folder(output).rename(output)
        raise GateError(read_manifest(output).rejected) from error  # the reason without a place


def named(job: Job, role: str, shape: tuple[int, int, int] | None = None) -> ImageSet:
    """Images under the suite's name for them, so that manifests hold no paths."""
    return dataclasses.replace(job.load(role, shape), name=job.images[role].name)


def _lent(job: Job) -> dict[str, Any]:
    """The trigger of an upstream victim, for attacks that take one."""
    if "trigger" not in job.folders:
        return {}
    trigger = load_model(str(job.folders["trigger"] / MODEL)).trigger()
    if trigger is None:
        raise InputError("the attack named in trigger_of makes no trigger; name another")
    return {"trigger": trigger}


def _start(job: Job, training: ImageSet) -> LoadedModel:
    """A copy of the clean model, or random weights."""
    if "model" in job.folders:
        return load_model(str(job.model_path), arch=job.config.get("architecture"))
    if training.labels is None:
        raise InputError(f"{training.name} has no labels; training needs them")
    classes = int(training.labels.max()) + 1 if training.class_names is None else len(training.class_names)
    return untrained_model(job.config["architecture"], classes, training.shape, seed=job.config["seed"])
