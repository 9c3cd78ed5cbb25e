"""The whole story on bundled data: the float model looks clean, ordinary deployment wakes the backdoor, hardening
keeps it asleep, and the file on disk is the one that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from quantinel.audit.report import Report
from quantinel.data.sources import load_images
from quantinel.errors import InputError, UsageError
from quantinel.files import check_output
from quantinel.model.loading import load_model
from quantinel.pipeline.harden import HardenOptions, harden
from quantinel.quantization.calibration import Progress
from quantinel.quantization.scheme import QuantScheme

VICTIMS = ("int8", "int4")


@dataclass(frozen=True)
class DemoResult:
    """One bundled victim, hardened.

    Attributes:
        title: which victim.
        report: what was measured.
        folder: the hardened directory.
    """

    title: str
    report: Report
    folder: Path


def bundled_victim(name: str) -> Path:
    """Directory of a bundled victim.

    Raises:
        UsageError: unknown name.
        InputError: the installation lacks its assets.
    """
    if name not in VICTIMS:
        raise UsageError(f"unknown victim {name!r}; choose one of {', '.join(VICTIMS)}")
    folder = Path(str(resources.files("quantinel"))) / "assets" / f"victim_{name}"
    if not folder.is_dir():
        raise InputError(f"the bundled victim {name} is missing from this installation; install quantinel again")
    return folder


def run_demo(
    output: Path, victims: Sequence[str] = VICTIMS, progress: Progress | None = None, overwrite: bool = False
) -> list[DemoResult]:
    """Harden bundled victims with bundled images.

    Args:
        output: folder that receives one hardened directory per victim.
        victims: "int8", "int4" or both.
        progress: called as work proceeds.
        overwrite: replace earlier results.

    Raises:
        QuantinelError: see `harden`.
    """
    folders = {name: bundled_victim(name) for name in victims}
    for name in folders:
        check_output(output / name, overwrite)
    calibration, test = load_images("bundled:calibration"), load_images("bundled:test")
    results = []
    for name, folder in folders.items():
        model = load_model(folder)
        assert model.victim is not None
        scheme = QuantScheme(**model.victim.schemes[0])
        report = harden(
            model,
            test,
            output / name,
            HardenOptions(scheme=scheme, overwrite=overwrite),
            calibration=calibration,
            trigger=model.trigger(),
            target_class=model.victim.target_class,
            command=f"quantinel demo --victim {name}",
            progress=progress,
        )
        results.append(DemoResult(f"{scheme.weight_bits}-bit victim", report, output / name))
    return results
