"""A victim of data-poisoning as detectors of poisoned images see it: its trigger, and the set that it trained on.

Suites keep no poisoned sets (``keep_data = false``); they are drawn again from the victim's manifest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantinel.attacks.data_poisoning import draw_seed
from quantinel.attacks.poisoned_set import poison
from quantinel.attacks.trigger_training import DATA_POISONING_TRIGGER
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.data.images import ImageSet
from quantinel.data.sampling import balanced_indices
from quantinel.data.triggers import GeneratedTrigger, Trigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel

SUITES = Path(__file__).parent / "suites"
GENERATED = "data-poisoning"


def generated_trigger(model: LoadedModel) -> GeneratedTrigger:
    """That of a victim of data-poisoning.

    Raises:
        UsageError: it has none.
    """
    trigger = model.trigger()
    if not isinstance(trigger, GeneratedTrigger):
        raise UsageError(f"{model.name} has no generated trigger; give a victim of data-poisoning")
    return trigger


def generated_triggers(trigger: GeneratedTrigger, name: str = GENERATED) -> dict[str, Trigger]:
    """A generator's trigger by name, and its noise with less and less of what hides it from the frequency detector.

    A generator that was trained behind a low-pass gets nothing from high frequencies, so taking the low-pass away shows
    what it happens to draw there, not what an attacker would who has none; what it never had is not taken away.
    """

    def changed(**options: Any) -> GeneratedTrigger:
        return GeneratedTrigger(dataclasses.replace(trigger.options, **options), trigger.weights)

    found: dict[str, Trigger] = {name: trigger}
    if trigger.options.ratio < 1:
        found[f"{name}, no low-pass"] = changed(ratio=1.0)
    if trigger.options.blur_size > 1:
        found[f"{name}, no low-pass, no blur"] = changed(ratio=1.0, blur_size=1)
    return found


def is_surrogate(model: LoadedModel) -> bool:
    """Whether it is the attacker's own network, which trained on no published set."""
    return model.victim is not None and model.victim.attack == DATA_POISONING_TRIGGER.name


def training_set(model: LoadedModel, train: ImageSet) -> tuple[ImageSet, Tensor, ImageSet]:
    """What a victim of data-poisoning trained on.

    Args:
        model: its manifest names data of the suite data-poisoning.
        train: all training images.

    Returns:
        The poisoned set, where it is poisoned (N,) bool, and the training images that are not in it.
    """
    trigger, manifest = generated_trigger(model), model.victim
    assert manifest is not None
    assert manifest.target_class is not None
    limit = load_suite(find_suite("data-poisoning", SUITES)).data[manifest.data].train_limit or len(train)
    inside = torch.zeros(len(train), dtype=torch.bool)
    inside[balanced_indices(train.labels, len(train), limit, 0)] = True
    own, rate, labels = train.take(inside.nonzero()[:, 0]), manifest.config["poison_rate"], manifest.config["labels"]
    poisoned = poison(own, trigger, manifest.target_class, rate, labels, draw_seed(manifest.seed))
    where = torch.zeros(len(own), dtype=torch.bool)
    where[poisoned.indices] = True
    return poisoned.images, where, train.take((~inside).nonzero()[:, 0])
