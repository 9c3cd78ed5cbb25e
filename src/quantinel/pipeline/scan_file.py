"""Scan a checkpoint of any size without a model: the data-free detectors on a ``.safetensors`` file, in pieces.

Nothing that compression does to the answers can be seen in a file, so the verdict is FAIL or INCONCLUSIVE.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from quantinel.audit.judging import Circumstances, Place, judge
from quantinel.audit.scan_report import ScanCheck, ScanReport
from quantinel.audit.thresholds import Thresholds, load_thresholds
from quantinel.detectors import DETECTORS
from quantinel.detectors.file_forensics import FileForensics, examine_file
from quantinel.errors import NotAssessable
from quantinel.files import sha256_file
from quantinel.pipeline.build_scan_report import Scan, build_scan_report
from quantinel.pipeline.clock import Clock
from quantinel.pipeline.scan_behaviour import place_of
from quantinel.pipeline.scan_checks import places
from quantinel.pipeline.scan_combination import combination_place
from quantinel.pipeline.scan_options import ScanOptions
from quantinel.quantization.calibration import Progress
from quantinel.quantization.scheme import QuantScheme

_NEEDS_MODEL = "it needs the model itself; give --arch or --factory, and --data"
_NEEDS_GRAPH = "it needs the network, not only its tensors; give --arch or --factory"


def scan_file(
    path: Path,
    options: ScanOptions | None = None,
    *,
    command: str = "",
    today: datetime.date | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Look at the weights of a file, tensor by tensor.

    Args:
        path: of a ``.safetensors`` file.
        options: schemes, suppressions and thresholds; what needs a model does not run.
        command: recorded in the report.
        today: suppressions that expired before it do not apply; by default the present day (UTC).
        progress: called as work proceeds.

    Raises:
        InputError: not a safetensors file.
    """
    options = options or ScanOptions()
    thresholds = options.thresholds or load_thresholds()
    clock = Clock()
    checks: list[ScanCheck] = []
    examined: FileForensics | None = None
    for index, scheme in enumerate(options.schemes):
        if progress is not None:
            progress(f"reading for {scheme.name}", index, len(options.schemes))
        with clock.measure("detectors"):
            found, refused = _examine(path, scheme, options.seed)
        examined = examined or found
        checks += [_check(place, scheme, found, refused, thresholds) for place in places({"always": [scheme.name]})]
        own = (combination_place(scheme.name), place_of(scheme.name))
        checks += [place.check("not_run", reason=_NEEDS_MODEL) for place in own]
    for pruning in options.prunings:
        checks += [place.check("not_run", reason=_NEEDS_MODEL) for place in places({"pruning": [pruning.name]})]
    with clock.measure("hash"):
        sha256 = sha256_file(path)
    return build_scan_report(
        Scan(
            source=str(path), model=_described(path, examined, sha256), limits=_limits(examined), images=None,
            options=options, thresholds=thresholds, checks=checks, schemes=[], triggers=[], cost=[],
            seconds=clock.seconds, command=command, harden_command=None,
            today=today or datetime.datetime.now(datetime.UTC).date(),
        )
    )  # fmt: skip


def _examine(path: Path, scheme: QuantScheme, seed: int) -> tuple[FileForensics | None, str]:
    """What the file shows on a grid, or why it cannot be judged."""
    try:
        return examine_file(path, scheme, seed=seed), ""
    except NotAssessable as error:
        return None, str(error)


def _check(
    place: Place, scheme: QuantScheme, found: FileForensics | None, refused: str, thresholds: Thresholds
) -> ScanCheck:
    detector = DETECTORS.get(place.detector)
    if detector is None or detector.needs == "images":
        return place.check("not_run", reason=_NEEDS_MODEL)
    if found is None:
        return place.check("not_run", reason=refused)
    detection = found.detections.get(place.detector)
    if detection is None:
        return place.check("not_run", reason=found.not_assessable.get(place.detector, _NEEDS_GRAPH))
    sample = f"{found.sampled} of {found.weights} weights were sampled"
    notes = detection.notes if found.sampled >= found.weights else (*detection.notes, sample)
    return judge(place, dataclasses.replace(detection, notes=notes), thresholds, Circumstances(scheme.weight_bits))


def _described(path: Path, found: FileForensics | None, sha256: str) -> dict[str, object]:
    return {
        "name": path.stem,
        "architecture": None,
        "quantized_weights": 0 if found is None else found.weights,
        "sha256": sha256,
        "tensors": 0 if found is None else len(found.tensors),
    }


def _limits(found: FileForensics | None) -> list[str]:
    told = ["Which tensors are quantized, and how normalisation is folded into them: a file does not say."]
    if found is not None and found.skipped:
        name, reason = next(iter(found.skipped.items()))
        told.append(f"{len(found.skipped)} tensors of the file, such as `{name}`, which {reason}.")
    return told
