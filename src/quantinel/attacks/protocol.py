"""What an attack is: hyper-parameters and a training function. Checks, gate and writing are the same for all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from quantinel.attacks.compressors import Compressor, Quantizer
from quantinel.attacks.gate import GateRule, Measure, measure_figures, measure_gate
from quantinel.attacks.victim_folder import check_rejected_folder, write_victim
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger, named_trigger, trigger_files
from quantinel.errors import GateError, UsageError
from quantinel.files import check_output
from quantinel.metrics import Proportion, accuracy
from quantinel.model.loading import LoadedModel
from quantinel.model.victim import VictimManifest
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.run import TrainingRun, exact_kernels, predictions
from quantinel.training.runtime import Runtime

Kind = Literal["conditioned", "active", "clean"]


class RunAttack(Protocol):
    """Makes a victim and writes its directory."""

    def __call__(
        self,
        model: LoadedModel,
        data: ImageSet,
        test: ImageSet,
        config: Any,
        output: Path,
        *,
        seed: int = 0,
        overwrite: bool = False,
        runtime: Runtime = ...,
        licence: str = "",
        trigger: Trigger | None = None,
    ) -> VictimManifest:
        """Train, measure the gate, write.

        Args:
            model: where training starts, of a named architecture; its weights are changed.
            data: labelled training images.
            test: labelled test images, for the gate only.
            config: hyper-parameters, of the attack's own class.
            output: victim directory to create.
            seed: of batches, augmentation and calibration.
            overwrite: replace an existing directory.
            runtime: device, checkpoint, stopping, progress.
            licence: recorded in the manifest.
            trigger: for attacks with ``takes_trigger``; without it they make their own.

        Returns:
            The manifest that was written.

        Raises:
            UsageError: no labels, no named architecture, a config of another attack, an impossible target class, a
                trigger for an attack that takes none.
            GateError: the result is no victim; its weights are kept in ``<output>.rejected``.
            Interrupted: ``runtime.should_stop`` asked for it.
        """
        ...


@dataclass(frozen=True)
class Attack:
    """A registered attack or control.

    Attributes:
        name: as on the command line.
        summary: one line, with the paper.
        config: frozen dataclass of hyper-parameters.
        run: makes a victim directory; see `RunAttack`.
        conditioned_on: the compression that wakes the backdoor; None for controls.
        start: "pretrained" (a clean trained network) or "scratch" (`quantinel.model.untrained.untrained_model`).
        takes_trigger: it can be given a trigger as a value, such as the generated one of another victim.
    """

    name: str
    summary: str
    config: type[Any]
    run: RunAttack
    conditioned_on: Literal["quantization", "pruning"] | None = "quantization"
    start: Literal["pretrained", "scratch"] = "pretrained"
    takes_trigger: bool = False


@dataclass(frozen=True)
class Task:
    """What a training function receives besides its config.

    Attributes:
        run: the network, the data and the training loop.
        trigger: stamps float images; None for attacks without one, or whose training makes it.
        test: labelled test images. For reports only: no choice may depend on them.
        data: the training images as they were given.
    """

    run: TrainingRun
    trigger: Trigger | None
    test: ImageSet
    data: ImageSet

    def stamp(self) -> Trigger:
        """The trigger of an attack that has one."""
        assert self.trigger is not None
        return self.trigger


@dataclass(frozen=True)
class Made:
    """What a training function made besides the network.

    Attributes:
        trigger: of the backdoor, for attacks whose configuration names none.
        files: further files of the victim directory, by path inside it.
    """

    trigger: Trigger
    files: Mapping[str, bytes] = field(default_factory=dict)


def make_attack(
    name: str,
    summary: str,
    config: type[Any],
    train: Callable[[Task, Any], Made | None],
    *,
    conditioned_on: Literal["quantization", "pruning"] | None = "quantization",
    start: Literal["pretrained", "scratch"] = "pretrained",
    rule: GateRule | Callable[[Any], GateRule] = GateRule(),  # noqa: B008 (a frozen value)
    kind: Kind = "conditioned",
    objective: str = "backdoor",
    measure: Callable[[Any, ImageSet], Measure] | None = None,
    takes_trigger: bool = False,
) -> Attack:
    """An attack from its hyper-parameters and its training function.

    The config's fields ``schemes`` (tuple of `QuantScheme`), ``target_class`` (int) and ``trigger`` (what
    `quantinel.data.triggers.named_trigger` reads) mean the same in all attacks. A config without ``trigger`` has none.
    A config may define ``compressors() -> tuple[Compressor, ...]``; without it, they are the quantizers of ``schemes``.

    Args:
        name, summary, config, conditioned_on, start, takes_trigger: as in `Attack`.
        train: changes ``task.run.module`` into the victim; returns what else it made.
        rule: the gate's limits, or a function of the config that gives them.
        kind, objective: as in `VictimManifest`.
        measure: what the gate measures, from the config and the training data, which it also checks before any
            training; None for a trigger's figures.
    """

    def run(
        model: LoadedModel,
        data: ImageSet,
        test: ImageSet,
        config: Any,
        output: Path,
        *,
        seed: int = 0,
        overwrite: bool = False,
        runtime: Runtime = Runtime(),  # noqa: B008 (a frozen value)
        licence: str = "",
        trigger: Trigger | None = None,
    ) -> VictimManifest:
        if not isinstance(config, expected):
            raise UsageError(f"{name} takes a {expected.__name__}, not a {type(config).__name__}; pass that")
        _check_data(model, data, test)
        target_class = _target_class(config, model)
        if trigger is not None and not takes_trigger:
            raise UsageError(f"{name} takes no trigger of another victim; drop it")
        about = {"attack": name, "config": config}
        if trigger is not None:
            about["trigger"] = trigger.to_dict()
        if hasattr(config, "trigger"):
            trigger = named_trigger(config.trigger, model.input_shape)
        measured = None if measure is None else measure(config, data)
        limits = rule if isinstance(rule, GateRule) else rule(config)
        check_output(output, overwrite)
        check_rejected_folder(output)
        work = TrainingRun(model, data, seed=seed, runtime=runtime, about=about)
        with exact_kernels():
            start = None if limits.max_float_drop is None else _accuracy(model, test)
        with work.isolated():
            made = train(Task(work, trigger, test, data), config)
        trigger = trigger if made is None else made.trigger
        figures = measured or functools.partial(measure_figures, trigger=trigger, target_class=target_class)
        armed = compressors_of(config)
        with exact_kernels():
            device = runtime.torch_device()
            gate = measure_gate(model, figures, armed, data, test, start_cda=start, seed=seed, device=device)
        schemes: tuple[QuantScheme, ...] = getattr(config, "schemes", ())
        files = {**trigger_files(trigger), **({} if made is None else made.files)}
        try:
            manifest = write_victim(
                output, model, gate, limits, overwrite, files,
                attack=name, trigger=None if trigger is None else trigger.to_dict(), target_class=target_class,
                schemes=[scheme.to_dict() for scheme in schemes], data=data.name, seed=seed,
                config=recorded(config), licence=licence, kind=kind, objective=objective,
                compressors=[compressor.to_dict() for compressor in armed],
            )  # fmt: skip
        except GateError:
            work.checkpoint.remove()  # the weights are in the folder of rejected ones
            raise
        work.checkpoint.remove()
        return manifest

    expected = config
    return Attack(name, summary, config, run, conditioned_on, start, takes_trigger)


def _accuracy(model: LoadedModel, test: ImageSet) -> Proportion:
    assert test.labels is not None
    return accuracy(predictions(model.module.eval(), test.images), test.labels)


def _check_data(model: LoadedModel, data: ImageSet, test: ImageSet) -> None:
    if data.labels is None or test.labels is None:
        raise UsageError("the attack trains on labels; give labelled data with --data and --test")
    if model.architecture is None:
        raise UsageError("a victim names its architecture; load the model with --arch")
    for images in (data, test):
        if not len(images):
            raise UsageError(f"{images.name} holds no images; give some")
        if images.shape != model.input_shape:
            raise UsageError(
                f"{images.name} has images of shape {images.shape}, the model takes {model.input_shape}; resize them"
            )
        assert images.labels is not None
        if int(images.labels.max()) >= model.num_classes:
            raise UsageError(
                f"{images.name} has the label {int(images.labels.max())}, the model {model.num_classes} classes; give "
                "data of the model's own classes"
            )


def _target_class(config: Any, model: LoadedModel) -> int | None:
    target: int | None = getattr(config, "target_class", None)
    if target is not None and not 0 <= target < model.num_classes:
        raise UsageError(f"target class {target} is not one of {model.num_classes} classes")
    return target


def compressors_of(config: Any) -> tuple[Compressor, ...]:
    """What a configuration arms for: its own ``compressors()``, or the quantizers of its ``schemes``."""
    if hasattr(config, "compressors"):
        armed: tuple[Compressor, ...] = config.compressors()
        return armed
    return tuple(Quantizer(scheme) for scheme in getattr(config, "schemes", ()))


def recorded(config: Any) -> Mapping[str, Any]:
    """The hyper-parameters as JSON; schemes by name."""
    given = dataclasses.asdict(config)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if hasattr(config, "schemes"):
        values["schemes"] = [scheme.name for scheme in config.schemes]
    return values
