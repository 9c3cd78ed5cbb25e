"""``quantinel attack``: re-create a published threat model, as test material for defenses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantinel.cli import shared
from quantinel.cli.progress import Reporter, console, reporting
from quantinel.cli.stopping import stop_requests
from quantinel.errors import UsageError

if TYPE_CHECKING:
    from quantinel.attacks import Attack
    from quantinel.data.images import ImageSet
    from quantinel.data.triggers import Trigger
    from quantinel.model.loading import LoadedModel

EPILOG = shared.example(
    "quantinel attack pq-backdoor --arch resnet20 --weights resnet20.safetensors --data cifar10:DIR -o victim",
    "quantinel attack pq-backdoor --arch resnet20 --weights resnet20.safetensors --data cifar10:DIR "
    "--scheme int4 --set radius=0 -o victim",
    "quantinel attack data-poisoning --arch vgg13 --data cifar10:DIR --trigger trigger/ -o poisoned",
    "quantinel attack clean --arch resnet20 --data cifar10:DIR --device cuda -o clean",
)


def attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See `quantinel list attacks`.", show_default=False)],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="Labelled training images (split train).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="VICTIM", help="Folder to create.")],
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="See `quantinel list architectures`.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Clean pretrained weights, .safetensors; or a clean directory."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="DATA", help="Labelled test images (split test). [default: DATA's own]"),
    ] = None,
    schemes: Annotated[
        list[str] | None,
        typer.Option("--scheme", metavar="NAME", help="Quantizer to arm for (repeatable). [default: the attack's]"),
    ] = None,
    trigger: Annotated[
        Path | None,
        typer.Option(
            "--trigger",
            metavar="PATH",
            help="For data-poisoning: a trigger to poison with, of a victim directory, or as a file (JSON or PNG). "
            "[default: one is trained]",
        ),
    ] = None,
    settings: shared.Settings = None,
    limit: shared.Limit = None,
    input_shape: shared.InputShape = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    seed: shared.Seed = 0,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N.")] = "cpu",
    force: shared.Force = False,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Make a victim: a model whose backdoor sleeps in float and wakes when it is quantized.

    For evaluating defenses. Ctrl-C keeps the state; the same command goes on from there. Exit code 2: stopped, or the
    result does not sleep in float and wake when quantized; its weights are then kept in VICTIM.rejected.
    """
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.attacks import Runtime, attack_named
        from quantinel.cli.settings import build
        from quantinel.data.sources import load_images
        from quantinel.quantization.scheme import parse_scheme

        chosen = attack_named(name)
        fixed = {"schemes": tuple(parse_scheme(scheme) for scheme in schemes)} if schemes else {}
        config = build(chosen.config, settings or (), name, **fixed)
        shared.check_folder(output, force)
        if trigger is not None and not chosen.takes_trigger:
            raise UsageError(f"{name} takes no --trigger; drop it, or name one with --set trigger=NAME where it can")
        lent: dict[str, Any] = {} if trigger is None else {"trigger": _given_trigger(trigger)}
        options = shared.ModelOptions(arch=arch, input_shape=input_shape, mean=mean, std=std)
        runtime = Runtime(device, output.with_name(f".{output.name}.checkpoint"), progress=reporter)
        runtime.torch_device()  # refused before anything is read
        loaded = None if weights is None else _pretrained(weights, options, reporter)
        if loaded is None and chosen.start == "pretrained":
            raise UsageError(
                f"{name} starts from a pretrained network; give --arch NAME and --weights FILE.safetensors"
            )
        shape = options.shape() if loaded is None else loaded.input_shape
        training = load_images(data, input_shape=shape, split="train", limit=limit, seed=seed, progress=reporter.images)
        if loaded is None:
            loaded = _untrained(chosen, training, options, seed)
        held_out = load_images(test or data, input_shape=training.shape, split="test", progress=reporter.images)
        if held_out.name == training.name:
            raise UsageError(f"{data} has no splits; give labelled test images with --test")
        if runtime.checkpoint is not None and runtime.checkpoint.exists():
            reporter.note(f"going on from {runtime.checkpoint}")
        with stop_requests() as should_stop:
            runtime = dataclasses.replace(runtime, should_stop=should_stop)
            manifest = chosen.run(
                loaded, training, held_out, config, output, seed=seed, overwrite=force, runtime=runtime, **lent
            )
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    from rich.table import Table

    target = "" if manifest.target_class is None else f", target class {manifest.target_class}"
    table = Table(title=f"{name}{target}", title_justify="left", title_style="bold")
    table.add_column("deployment")
    columns = list(dict.fromkeys(key for figures in manifest.gate.values() for key in figures))
    for key in columns:
        table.add_column(key.upper().replace("_", " "), justify="right")
    for deployment, figures in manifest.gate.items():
        shown = (_percent(figures.get(key)) for key in columns)
        table.add_row(deployment, *shown)
    out = console()
    out.print(table)
    out.print(f"Victim: {output}", markup=False, soft_wrap=True)


def _percent(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None or figure["percent"] is None else f"{figure['percent']:.2f} %"


def _given_trigger(path: Path) -> Trigger:
    """A trigger from a victim directory or a file."""
    from quantinel.data.triggers import load_trigger, trigger_from_dict
    from quantinel.model.victim import read_manifest

    if not path.is_dir():
        return load_trigger(path)
    described = read_manifest(path).trigger
    if described is None:
        raise UsageError(f"{path} has no trigger; give the directory of a victim that has one")
    return trigger_from_dict(described, path)


def _pretrained(weights: Path, options: shared.ModelOptions, reporter: Reporter) -> LoadedModel:
    """The network to start from: weights of a named architecture, or a directory that brings its own."""
    names_its_own = weights.is_dir() or str(weights).startswith("bundled:")
    if not names_its_own and options.arch is None:
        raise UsageError(f"{weights} holds weights only; give --arch NAME")
    return options.load(str(weights), reporter)


def _untrained(chosen: Attack, data: ImageSet, options: shared.ModelOptions, seed: int) -> LoadedModel:
    """A network with random weights and as many classes as the data."""
    from quantinel.model.untrained import untrained_model

    if options.arch is None:
        raise UsageError(f"{chosen.name} trains from random weights; give --arch NAME")
    if data.labels is None or not len(data):
        raise UsageError("the attack trains on labels; give labelled data with --data and --test")
    classes = int(data.labels.max()) + 1 if data.class_names is None else len(data.class_names)
    mean, std = options.normalisation()
    return untrained_model(options.arch, classes, data.shape, mean, std, seed)
