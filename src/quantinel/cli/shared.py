"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantinel.cli.progress import Reporter
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, InputError, UsageError

if TYPE_CHECKING:
    from quantinel.audit.report import Verdict
    from quantinel.data.images import ImageSet
    from quantinel.data.triggers import Trigger
    from quantinel.model.loading import LoadedModel
    from quantinel.model.victim import VictimManifest
    from quantinel.quantization.scheme import QuantScheme

_MAX_SEED = 2**63 - 1


def _check_seed(seed: int) -> int:
    if not 0 <= seed <= _MAX_SEED:
        raise UsageError(f"--seed is {seed}; give an integer from 0 to 2^63 - 1")
    return seed


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Float model: FILE.pt2, FILE.safetensors with --arch or --factory, a victim directory, "
        "bundled:victim_int8, timm:NAME or torchvision:NAME. Pickles are refused.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Images: a folder (one sub-folder per class), FILE.npz, FILE.parquet, cifar10:DIR, bundled, ...; see "
        "`quantinel list data`. Labels are optional.",
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Separate calibration images; without it, some of DATA are set aside and not evaluated.",
    ),
]
CalibrationSplit = Annotated[
    str, typer.Option("--calibration-split", metavar="NAME", help="Split of --calibration, where it has splits.")
]
CalibrationImages = Annotated[
    int, typer.Option("--calibration-images", metavar="N", help="How many images to calibrate on.")
]
TriggerFile = Annotated[
    Path | None,
    typer.Option(
        "--trigger",
        metavar="FILE",
        help="A known trigger to test: JSON (a patch) or a PNG whose alpha channel says where it lies. A victim "
        "directory brings its own.",
    ),
]
Target = Annotated[
    int | None, typer.Option("--target", metavar="N", help="Class that the trigger is meant to produce.")
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", metavar="NAME", help="Architecture of a .safetensors; see `quantinel list architectures`."),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--factory", metavar="PKG.MOD:CALL", help="Your function that builds the network of a .safetensors; it is run."
    ),
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", metavar="N", help="Class count to expect; an error if it differs.")
]
InputShape = Annotated[
    str | None,
    typer.Option("--input-shape", metavar="C,H,W", help="Shape of one image. [default with --arch: 3,32,32]"),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="A,B,C", help="Normalisation of images in [0, 1], where the model has none inside."),
]
Std = Annotated[str | None, typer.Option("--std", metavar="A,B,C", help="Goes with --mean.")]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="Split of DATA, where it has splits.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Use a random subset of N images.")]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", callback=_check_seed, help="Of every random choice of this run.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr, only errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Option of the method (repeatable); an unknown KEY lists them."),
]

_EXIT_CODES = {"PASS": EXIT_PASS, "FAIL": EXIT_FINDINGS, "INCONCLUSIVE": EXIT_ERROR}


def example(*commands: str) -> str:
    """The end of a verb's help: commands as one types them, not re-wrapped."""
    return "\n".join(["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {line}" for line in commands)])


def exit_with(verdict: Verdict) -> typer.Exit:
    """0 for PASS, 1 for FAIL, 2 for INCONCLUSIVE."""
    return typer.Exit(_EXIT_CODES[verdict])


def command_line(context: typer.Context) -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["quantinel", *(context.find_root().obj or [])])


def check_folder(output: Path, force: bool) -> None:
    """Refuse an output that exists, before any work is done; ``--force`` replaces earlier outputs and nothing else.

    Raises:
        UsageError: it exists, and is not to be replaced or not an output of Quantinel.
    """
    from quantinel.files import check_output
    from quantinel.model.earlier_output import check_replaceable

    check_output(output, force)
    if output.is_dir():
        check_replaceable(output)


def print_json(value: Any) -> None:
    """A result for machines."""
    print(json.dumps(value, indent=2, allow_nan=False))


@dataclass(frozen=True)
class ModelOptions:
    """Options of `quantinel.load_model` as they were typed."""

    arch: str | None = None
    factory: str | None = None
    num_classes: int | None = None
    input_shape: str | None = None
    mean: str | None = None
    std: str | None = None

    def given(self) -> str | None:
        """The first option that was given, as on the command line."""
        return next(iter(self.arguments()), None)

    def arguments(self) -> list[str]:
        """The options that were given, as one types them again."""
        names = ("arch", "factory", "num_classes", "input_shape", "mean", "std")
        given = [(name, getattr(self, name)) for name in names]
        return [
            word for name, value in given if value is not None for word in (f"--{name.replace('_', '-')}", str(value))
        ]

    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W), if it was given."""
        shape = _numbers("--input-shape", self.input_shape, int)
        if shape is None:
            return None
        if len(shape) != 3:
            raise UsageError(f"--input-shape is {self.input_shape!r}; give C,H,W, for example 3,32,32")
        return int(shape[0]), int(shape[1]), int(shape[2])

    def normalisation(self) -> tuple[list[float] | None, list[float] | None]:
        """Mean and standard deviation per channel, if they were given."""
        return _numbers("--mean", self.mean, float), _numbers("--std", self.std, float)

    def load(self, model: str, reporter: Reporter) -> LoadedModel:
        """Read the options and load the model."""
        shape = self.shape()
        mean, std = self.normalisation()
        reporter.stage("loading the model")
        from quantinel.model.loading import load_model

        return load_model(
            model,
            arch=self.arch,
            factory=self.factory,
            num_classes=self.num_classes,
            input_shape=shape,
            mean=mean,
            std=std,
        )


def _numbers(option: str, text: str | None, kind: Callable[[str], float]) -> list[float] | None:
    """``a,b,c`` as finite numbers."""
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) for value in values):
        kinds = "integers" if kind is int else "numbers"
        raise UsageError(f"{option} is {text!r}; give {kinds} separated by commas")
    return values


def read_trigger(file: Path | None, target: int | None) -> tuple[Trigger, int] | None:
    """The trigger that was given; None if there is none.

    Raises:
        UsageError: one of the two options without the other.
    """
    if (file is None) != (target is None):
        raise UsageError("a trigger and its target class belong together; give both --trigger and --target, or neither")
    if file is None or target is None:
        return None
    from quantinel.data.triggers import load_trigger

    return load_trigger(file), target


def victim_trigger(model: LoadedModel) -> tuple[Trigger, int] | None:
    """The trigger that a victim directory brings along; None for clean models and attacks without one."""
    trigger = model.trigger()
    if trigger is None or model.victim is None or model.victim.target_class is None:
        return None
    return trigger, model.victim.target_class


def victim_scheme(victim: VictimManifest) -> QuantScheme:
    """The first quantizer that a victim was made for."""
    from quantinel.quantization.scheme import QuantScheme

    if not victim.schemes:
        raise InputError("the victim's manifest names no scheme; give --scheme")
    try:
        return QuantScheme(**victim.schemes[0])
    except TypeError as error:
        raise InputError(f"the victim's manifest holds no valid scheme ({error}); give --scheme") from error


def load_two_sets(
    data: str,
    calibration: str | None,
    calibration_split: str,
    calibration_images: int,
    *,
    input_shape: tuple[int, int, int],
    split: str,
    limit: int | None,
    seed: int,
    reporter: Reporter,
) -> tuple[ImageSet, ImageSet | None]:
    """Evaluation images, and the separate calibration images if there are any.

    Raises:
        UsageError: both options name the same images.
    """
    from quantinel.data.sources import load_images

    images = load_images(data, input_shape=input_shape, split=split, limit=limit, seed=seed, progress=reporter.images)
    if calibration is None:
        return images, None
    separate = load_images(
        calibration, input_shape=input_shape, split=calibration_split, limit=calibration_images, seed=seed,
        progress=reporter.images,
    )  # fmt: skip
    if separate.name == images.name:
        raise UsageError(f"--data and --calibration name the same images ({images.name}); leave --calibration out")
    return images, separate
