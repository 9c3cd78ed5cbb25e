"""Do the detectors of poisoned images work where their papers say so? Ordinary BadNets and blended backdoors, CPU size.

    python -m benchmarks.input_detectors --cifar10 FOLDER --clean resnet20_cifar10.safetensors [--victim VICTIM]

A fixed training set of 5,000 CIFAR-10 images, a tenth of it stamped and labelled as class 0, trains a ResNet-20 on
from pretrained weights (no attack of the package: `badnets` stamps anew in every batch, and Spectral Signatures judge
a data set). Nothing is augmented, so that few steps plant the backdoor; a victim that obeys less than 80 % is an
error. Spectral Signatures look at that set without most of its poisoned images, so that they are a tenth of class 0
as in the paper; STRIP and the frequency detector look at stamped and clean test images, and STRIP asks the float and
the int8 model. The detectors have clean training images that neither set holds. The last trigger is the blended one
without its high frequencies, for the frequency detector alone. Last, STRIP looks at the bundled victim, whose
backdoor sleeps in float. The length of the trainings was chosen after looking at test images, thresholds were not; see
docs/input-detectors.md.

VICTIM is a victim directory of data-poisoning, such as dirty-p5 of the suite data-poisoning in a benchmark store. Its
poisoned set is drawn again from its manifest. The frequency detector sees its trigger, and the same noise without the
paper's removal of high frequencies; Spectral Signatures see its set whole too, because an attacker chooses the rate.
A surrogate (data-poisoning-trigger) has no such set: its trigger goes to the frequency detector alone, under --name.
Appends rows to benchmarks/results/input-detectors.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.data_poisoned import GENERATED, generated_trigger, generated_triggers, is_surrogate, training_set
from torch import Tensor

from quantinel.attacks.gate import stamp_bytes
from quantinel.bench.auc import area_under_curve
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.cifar10 import load_cifar10
from quantinel.data.frequency import dct2, idct2, low_pass
from quantinel.data.images import ImageSet, as_float
from quantinel.data.sampling import balanced_indices
from quantinel.data.triggers import BlendedTrigger, GeneratedTrigger, PatchTrigger, Trigger, trigger_from_dict
from quantinel.detectors import STRIP, FrequencyDetector, InputScores, Inspection, SpectralSignatures
from quantinel.detectors.corruptions import corrupted
from quantinel.detectors.frequency import frequency_scores, train_frequency_network
from quantinel.detectors.spectral_signatures import detect_spectral
from quantinel.detectors.strip import detect_strip
from quantinel.errors import GateError
from quantinel.metrics import Proportion, accuracy, attack_success
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel, load_model
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.run import TrainingRun, predictions
from quantinel.training.schedule import Schedule

RESULTS = Path(__file__).parent / "results" / "input-detectors.jsonl"
COMMAND = "python -m benchmarks.input_detectors --cifar10 CIFAR10 --clean RESNET20 --victim VICTIM"
TARGET, POISON_RATE, SEED = 0, 0.1, 0
SETTINGS: dict[str, Any] = {
    "train": 5000, "clean": 2000, "test": 1000, "inspected": 200, "steps": 200, "batch_size": 64,
    "learning_rate": 0.01, "overlays": 10, "poisoned_of_class": 0.1,
    "frequency_epochs": 6.0, "frequency_learning_rate": 1.0,
    "frequency_decay": "cosine",
}  # fmt: skip


def triggers() -> dict[str, Trigger]:
    """The triggers by name."""
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = idct2(low_pass(dct2(noise), 0.25)).clamp(0, 1)
    return {
        "badnets": PatchTrigger(row=28, column=28, height=3, width=3, value=1.0),
        "blended": BlendedTrigger.from_image((noise * 255).round().to(torch.uint8)),
        "blended, low-passed": BlendedTrigger.from_image((smooth * 255).round().to(torch.uint8)),
    }


def poisoned_set(clean: ImageSet, trigger: Trigger) -> tuple[ImageSet, Tensor]:
    """A training set with a stamped and relabelled share, and where it is (N,) bool."""
    assert clean.labels is not None
    others = (clean.labels != TARGET).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(SEED))
    chosen = others[order[: round(POISON_RATE * len(clean))]]
    images, labels = clean.images.clone(), clean.labels.clone()
    images[chosen], labels[chosen] = stamp_bytes(trigger, images[chosen]), TARGET
    where = torch.zeros(len(clean), dtype=torch.bool)
    where[chosen] = True
    return dataclasses.replace(clean, images=images, labels=labels), where


def minority(data: ImageSet, where: Tensor) -> tuple[ImageSet, Tensor]:
    """The training set with fewer of its poisoned images, so that they are the paper's tenth of the target class."""
    assert data.labels is not None
    share = SETTINGS["poisoned_of_class"]
    clean = int((data.labels[~where] == TARGET).sum())
    poisoned = where.nonzero()[:, 0][: round(clean * share / (1 - share))]
    kept = torch.cat([(~where).nonzero()[:, 0], poisoned])
    return data.take(kept), where[kept]


def train_victim(model: LoadedModel, data: ImageSet) -> None:
    """Ordinary training on the poisoned set."""
    run = TrainingRun(model, data, seed=SEED)
    schedule = Schedule(SETTINGS["steps"], SETTINGS["learning_rate"], batch_size=SETTINGS["batch_size"])

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(run.logits(as_float(images), mixed_precision=True), labels)

    with run.isolated():
        run.module.train()
        run.train("poisoned", run.module.parameters(), schedule, loss)


def write(trigger: str, detector: str, found: InputScores, poisoned: Tensor, seconds: float, **about: Any) -> None:
    """One row."""
    caught, false = found.rates(poisoned)
    area = area_under_curve(found.scores[poisoned].tolist(), found.scores[~poisoned].tolist())
    pinned: dict[str, Any] = {name: about[name] for name in ("trigger_sha256", "victim_sha256") if name in about}

    def share(of: Proportion) -> dict[str, Any]:
        return {"percent": round(of.percent, 3), "interval95": [round(end, 3) for end in of.interval], "n": of.n}

    row = {
        "suite": "input-detectors", "trigger": trigger, "detector": detector, "caught": share(caught),
        "false": share(false), "auc": [round(value, 4) for value in (area.value, area.low, area.high)],
        "seconds": round(seconds, 1), **about,
        **provenance({"trigger": trigger, "detector": detector, **SETTINGS, **pinned}, COMMAND),
    }  # fmt: skip
    append_line(RESULTS, row)
    print({key: row[key] for key in list(row)[1:7]}, flush=True)


def held_out(network: torch.nn.Module, images: ImageSet, options: FrequencyDetector) -> Proportion:
    """Clean and corrupted training images that the frequency network has not seen, told apart."""
    clean = as_float(images.images[:500])
    changed = corrupted(clean, torch.Generator().manual_seed(SEED + 1))
    both = ImageSet((torch.cat([clean, changed]) * 255).round().to(torch.uint8), None, "held out")
    truth = torch.arange(len(both)) >= len(clean)
    return accuracy(frequency_scores(network, both, options).flagged.long(), truth.long())


def suspects_of(trigger: Trigger, test: ImageSet) -> tuple[ImageSet, Tensor]:
    """Stamped and clean images, none of the target class and none in both forms, and which are stamped (N,) bool."""
    assert test.labels is not None
    others, half = (test.labels != TARGET).nonzero()[:, 0], SETTINGS["inspected"]
    images = torch.cat([stamp_bytes(trigger, test.images[others[:half]]), test.images[others[half : 2 * half]]])
    return ImageSet(images, None, "suspects"), torch.arange(2 * half) < half


def figures(model: LoadedModel, trigger: Trigger, test: ImageSet) -> dict[str, float]:
    """CDA and ASR of the float model."""
    assert test.labels is not None
    answers, obeyed = (predictions(model.module, images) for images in (test.images, stamp_bytes(trigger, test.images)))
    return {
        "cda": round(accuracy(answers, test.labels).percent, 2),
        "asr": round(attack_success(obeyed, test.labels, TARGET).percent, 2),
    }


def spectral(
    name: str, detector: str, model: LoadedModel, data: ImageSet, where: Tensor, about: dict[str, Any]
) -> None:
    """Spectral Signatures of a training set."""
    started = time.perf_counter()
    found = detect_spectral(Inspection(data, module=model.module), SpectralSignatures())
    write(name, detector, found, where, time.perf_counter() - started, **about)


def strip(
    name: str, model: LoadedModel, trigger: Trigger, clean: ImageSet, test: ImageSet, about: dict[str, Any]
) -> None:
    """STRIP on the float model and on the int8 one."""
    suspects, stamped = suspects_of(trigger, test)
    graph = trace(model.module, model.input_shape)
    quantized = quantize_nearest(graph, calibrate(graph, clean.take(torch.arange(256)), QuantScheme())).simulate()
    few = clean.take(torch.arange(300))
    for kind, classify in (("float", model.module), ("int8", quantized)):
        started = time.perf_counter()
        found = detect_strip(Inspection(suspects, few, classify, seed=SEED), STRIP(overlays=SETTINGS["overlays"]))
        write(name, f"strip, {kind} model", found, stamped, time.perf_counter() - started, **about)


def frequency(named: dict[str, Trigger], clean: ImageSet, base: ImageSet, test: ImageSet) -> None:
    """The frequency detector on triggers; it needs no victim."""
    options = FrequencyDetector(
        SETTINGS["frequency_epochs"], learning_rate=SETTINGS["frequency_learning_rate"],
        decay=SETTINGS["frequency_decay"],
    )  # fmt: skip
    started = time.perf_counter()
    network = train_frequency_network(clean, options, seed=SEED)
    seconds = time.perf_counter() - started
    right = held_out(network, base, options)
    print(f"held-out training images: {right}", flush=True)
    for name, trigger in named.items():
        suspects, stamped = suspects_of(trigger, test)
        found = frequency_scores(network, suspects, options)
        pinned = {"trigger_sha256": trigger.sha256} if isinstance(trigger, GeneratedTrigger) else {}
        write(name, "frequency", found, stamped, seconds, held_out_percent=round(right.percent, 2), **pinned)


def victims(weights: Path, clean: ImageSet, base: ImageSet, test: ImageSet) -> None:
    """Spectral Signatures and STRIP, on trained victims and on one that sleeps in float."""
    for name in ("badnets", "blended"):
        trigger = triggers()[name]
        data, where = poisoned_set(base, trigger)
        model = load_model(weights, arch="resnet20")
        train_victim(model, data)
        about = figures(model, trigger, test)
        if about["asr"] < 80:
            raise GateError(f"{name} made no victim: {about}; train it for more steps")
        spectral(name, "spectral-signatures", model, *minority(data, where), about)
        strip(name, model, trigger, clean, test, about)
    sleeping = load_model("bundled:victim_int8")
    assert sleeping.victim is not None
    assert sleeping.victim.trigger is not None
    trigger = trigger_from_dict(sleeping.victim.trigger)
    strip("pq, sleeps in float", sleeping, trigger, clean, test, figures(sleeping, trigger, test))


def data_poisoned(name: str, model: LoadedModel, train: ImageSet, test: ImageSet) -> None:
    """Spectral Signatures and STRIP on a victim of data-poisoning."""
    trigger = generated_trigger(model)
    assert model.victim is not None
    assert model.victim.target_class == TARGET
    data, where, others = training_set(model, train)
    about: dict[str, Any] = {
        **figures(model, trigger, test), "poison_rate": model.victim.config["poison_rate"],
        "trigger_sha256": trigger.sha256, "victim_sha256": model.victim.weights_sha256,
    }  # fmt: skip
    spectral(name, "spectral-signatures", model, *minority(data, where), about)
    spectral(name, "spectral-signatures, whole set", model, data, where, about)
    clean = others.take(balanced_indices(others.labels, len(others), SETTINGS["clean"], SEED))
    strip(name, model, trigger, clean, test, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--victim", type=Path, help="victim directory of data-poisoning, or of its first stage")
    parser.add_argument("--name", default=GENERATED, help="what rows call its trigger")
    parser.add_argument(
        "--only", choices=("frequency", "victims", GENERATED),
        help="the detector without a model, the others, or all of them on --victim alone",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.only == GENERATED and arguments.victim is None:
        parser.error(f"--only {GENERATED} needs --victim")
    torch.set_num_threads(1)
    train, test = load_cifar10(arguments.cifar10, "train"), load_cifar10(arguments.cifar10)
    chosen = train.take(balanced_indices(train.labels, len(train), SETTINGS["train"] + SETTINGS["clean"], SEED))
    clean, base = chosen.split(SETTINGS["clean"], torch.Generator().manual_seed(SEED))
    test = test.take(balanced_indices(test.labels, len(test), SETTINGS["test"], SEED))
    named = {} if arguments.only == GENERATED else triggers()
    poisoned = None if arguments.victim is None else load_model(arguments.victim)
    if poisoned is not None:
        named |= generated_triggers(generated_trigger(poisoned), arguments.name)
    if arguments.only != "victims":
        frequency(named, clean, base, test)
    if arguments.only not in ("frequency", GENERATED):
        victims(arguments.clean, clean, base, test)
    if arguments.only != "frequency" and poisoned is not None and not is_surrogate(poisoned):
        data_poisoned(arguments.name, poisoned, train, test)


if __name__ == "__main__":
    main()
