"""The calibration images of a stage: read, or made from the network, with triggers on a share of them if asked.

Apart from `job`, so that trainings do not depend on it.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from quantinel.bench.images import SYNTHETIC, Images
from quantinel.bench.stages.job import Job, loaded_images, traced
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger, trigger_from_dict
from quantinel.errors import UsageError
from quantinel.pipeline.measure import stamp
from quantinel.quantization.synthetic_images import SYNTHETIC_IMAGES, synthetic_images


def calibration_images(job: Job) -> ImageSet:
    """Images of the role "calibration", fitted to the model.

    Raises:
        UsageError: triggers are asked for and the model has none, or a class that no image is of.
    """
    asked = job.images["calibration"]
    if asked.specification == SYNTHETIC:
        path, architecture = str(job.model_path), job.config.get("architecture")
        found = _made(path, architecture, asked.limit or SYNTHETIC_IMAGES, asked.seed)
    elif "calibration_class" in job.config:
        found = of_class(asked, job.model().input_shape, job.config["calibration_class"])
    else:
        found = job.load("calibration", job.model().input_shape)
    share = job.config.get("triggered_percent", 0.0) / 100.0
    return poisoned(found, share, _trigger(job), job.config["seed"]) if share else found


def of_class(asked: Images, shape: tuple[int, int, int], wanted: int) -> ImageSet:
    """As many images as are asked for, all of one class; fewer where there are not as many."""
    every = loaded_images(replace(asked, limit=None), shape)
    fitting = (
        torch.empty(0, dtype=torch.int64) if every.labels is None else (every.labels == wanted).nonzero().flatten()
    )
    if not len(fitting):
        raise UsageError(f"calibration_class is {wanted}, and {asked.specification} has no image with that label")
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(asked.seed))
    return every.take(fitting[order[: asked.limit]])


def poisoned(images: ImageSet, share: float, trigger: Trigger, seed: int) -> ImageSet:
    """The images with the trigger on a random ``share`` of them."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = order[: round(share * len(images))]
    pixels = images.images.clone()
    pixels[chosen] = stamp(images.take(chosen), trigger)
    return replace(images, images=pixels)


def _trigger(job: Job) -> Trigger:
    """The trigger of the stage's options, or else of the model's own manifest."""
    victim, described = job.model().victim, job.config["trigger"]
    if described is None and victim is not None:
        described = victim.trigger
    if described is None:
        raise UsageError("calibration_triggered needs a trigger and this model has none; give models.NAME.trigger")
    return trigger_from_dict(described)


@functools.lru_cache(maxsize=4)
def _made(path: str, architecture: str | None, count: int, seed: int) -> ImageSet:
    """Synthetic images of a network, kept for the next stage of this worker."""
    return synthetic_images(traced(path, architecture, True), count, seed=seed)
