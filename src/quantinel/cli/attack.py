"""``quantinel attack``: re-create a published threat model, as test material for defenses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.progress import console, reporting
from quantinel.errors import UsageError

EPILOG = shared.example(
    "quantinel attack pq-backdoor --arch resnet20 --weights resnet20.safetensors --data cifar10:DIR -o victim",
    "quantinel attack pq-backdoor --arch resnet20 --weights resnet20.safetensors --data cifar10:DIR "
    "--scheme int4 --set radius=0 -o victim",
)


def attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See `quantinel list attacks`.", show_default=False)],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="Labelled training images (split train).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="VICTIM", help="Folder to create.")],
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="See `quantinel list architectures`.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Clean pretrained weights, .safetensors.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="DATA", help="Labelled test images (split test). [default: DATA's own]"),
    ] = None,
    schemes: Annotated[
        list[str] | None,
        typer.Option("--scheme", metavar="NAME", help="Quantizer to arm for (repeatable). [default: the attack's]"),
    ] = None,
    settings: shared.Settings = None,
    limit: shared.Limit = None,
    input_shape: shared.InputShape = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    seed: shared.Seed = 0,
    force: shared.Force = False,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Make a victim: a model whose backdoor sleeps in float and wakes when it is quantized.

    For evaluating defenses. Exit code 2: the result does not sleep in float and wake when quantized; nothing is
    written then.
    """
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.attacks import attack_named
        from quantinel.cli.settings import build
        from quantinel.data.sources import load_images
        from quantinel.quantization.scheme import parse_scheme

        chosen = attack_named(name)
        fixed = {"schemes": tuple(parse_scheme(scheme) for scheme in schemes)} if schemes else {}
        config = build(chosen.config, settings or (), name, **fixed)
        shared.check_folder(output, force)
        if weights is None or arch is None:
            raise UsageError(
                f"{name} starts from a pretrained network; give --arch NAME and --weights FILE.safetensors"
            )
        loaded = shared.ModelOptions(arch=arch, input_shape=input_shape, mean=mean, std=std).load(
            str(weights), reporter
        )
        training = load_images(
            data, input_shape=loaded.input_shape, split="train", limit=limit, seed=seed, progress=reporter.images
        )
        held_out = load_images(test or data, input_shape=loaded.input_shape, split="test", progress=reporter.images)
        if held_out.name == training.name:
            raise UsageError(f"{data} has no splits; give labelled test images with --test")
        manifest = chosen.run(loaded, training, held_out, config, output, seed=seed, overwrite=force, progress=reporter)
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    from rich.table import Table

    table = Table(title=f"{name}, target class {manifest.target_class}", title_justify="left", title_style="bold")
    table.add_column("deployment")
    table.add_column("CDA", justify="right")
    table.add_column("ASR", justify="right")
    for deployment, figures in manifest.gate.items():
        table.add_row(deployment, *(f"{figures[metric]['percent']:.2f} %" for metric in ("cda", "asr")))
    out = console()
    out.print(table)
    out.print(f"Victim: {output}", markup=False, soft_wrap=True)
