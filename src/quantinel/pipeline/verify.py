"""Verify a hardened directory: the file on disk is the one that was audited, and it still runs like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quantinel.audit import checks
from quantinel.audit.report import Check, Verdict
from quantinel.backends.artefact import StoredIntegers, read_integers
from quantinel.backends.runtime import Session, execution
from quantinel.backends.verification import (
    compare_integers,
    compare_outputs,
    compared_batch,
    parse_onnx,
    read_onnx,
)
from quantinel.data.copies import first_copies
from quantinel.data.images import ImageSet
from quantinel.errors import VerificationError
from quantinel.pipeline.artefact_folder import INTEGERS, MODEL, check_manifest, read_probe
from quantinel.pipeline.graph_check import graph_check

_AGREES = "ONNX Runtime answers as the audited simulation"
_CONSISTENT = "On the given images, ONNX Runtime answers alike with and without graph optimisation"
_EXECUTES = "Every convolution and linear layer executes in integers"
_NAMED = 3
"""Changed files that the check of the hashes names."""
_WIDEST_RANGE = 100.0
"""Largest calibrated range of logits, in ranges of the probe's: both come from the same images."""


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of `verify`."""

    verdict: Verdict
    checks: list[Check]


def verify(folder: str | Path, data: ImageSet | None = None) -> VerifyResult:
    """Re-open the artefact and compare it with the audit.

    Args:
        folder: a hardened directory.
        data: images to run beside the probe that is stored in the folder. Their reference is ONNX Runtime without
            graph optimisation (float arithmetic between Q and DQ), because the float model is not part of the
            folder; so they are an additional check, and the only run of a folder without probe.

    Raises:
        VerificationError: the folder is not a hardened directory, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is no folder; give the output of `quantinel harden`")
    _require_files(folder)
    problems = check_manifest(folder)
    stored = read_integers(folder / INTEGERS)
    probe = read_probe(folder)
    file = read_onnx(folder / MODEL)
    model = parse_onnx(file, str(folder / MODEL))
    found = [
        _hashes_check(problems),
        checks.integers_check(compare_integers(model, stored.layers, stored.activations), len(stored.layers)),
        graph_check(model, stored.graph),
    ]
    if found[-1].status == "pass":
        found += _behaviour(file, stored, probe, data)
    else:
        reason = "the file computes something else than what was audited, and was not run"
        found += [
            checks.not_run("runtime-agrees", _AGREES, reason),
            checks.not_run("integer-execution", _EXECUTES, reason),
        ]
    return VerifyResult(checks.verdict(found), found)


def _require_files(folder: Path) -> None:
    """Nothing is a pipe or a device: reading from one would wait for ever.

    Raises:
        VerificationError: something is.
    """
    for item in sorted(folder.iterdir()):
        if item.exists() and not (item.is_file() or item.is_dir()):
            raise VerificationError(
                f"{item} is no regular file, which no hardened folder holds; do not use this folder"
            )


def _hashes_check(problems: list[str]) -> Check:
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return Check(
        id="hashes",
        title="No file changed since it was hardened",
        status="fail" if problems else "pass",
        required=True,
        detail="; ".join(problems[:_NAMED]) + more
        if problems
        else "all recorded hashes agree (the manifest is not signed)",
    )


def _behaviour(
    file: bytes, stored: StoredIntegers, probe: tuple[Tensor, Tensor] | None, data: ImageSet | None
) -> list[Check]:
    """Run the file: answers on the probe, answers on the given images, integer execution."""
    session, batch = Session(file), compared_batch(stored.scheme)
    found = []
    if probe is not None:
        images, logits = _fitting(probe, session, stored)
        outputs = compare_outputs(session.logits(images, batch), logits, stored.output_step, stored.tolerance)
        found.append(checks.outputs_check(outputs))
    else:
        reason = "the folder holds no probe, so that agreement with the audited simulation could not be tested"
        advice = "" if data is not None else "; run the file on images with --data, or harden without --no-probe"
        found.append(checks.not_run("runtime-agrees", _AGREES, reason + advice, required=data is None))
    if data is not None:
        if data.shape != session.input_shape:
            raise VerificationError(
                f"the model takes images of shape {session.input_shape}, {data.name} has {data.shape}; resize them"
            )
        given = data.images[first_copies(data.images)]
        reference = Session(file, optimise=False).logits(given, batch)
        outputs = compare_outputs(session.logits(given, batch), reference, stored.output_step, stored.tolerance)
        consistent = {"id": "runtime-consistent", "title": _CONSISTENT}
        found.append(checks.outputs_check(outputs).model_copy(update=consistent))
    ran = execution(file, list(stored.layers))
    in_float = [name for name, operator in ran.by_layer.items() if operator is None]
    found.append(checks.execution_check(stored.scheme, ran.integer_layers, len(stored.layers), in_float))
    return found


def _fitting(probe: tuple[Tensor, Tensor], session: Session, stored: StoredIntegers) -> tuple[Tensor, Tensor]:
    """The different images of the probe, if it belongs to the file and a wrong answer on it would show."""
    images, logits = probe
    if images.shape[1:] != session.input_shape or logits.shape[1] != session.num_classes:
        raise VerificationError(
            f"the probe is of another model: images {tuple(images.shape[1:])} with {logits.shape[1]} logits, the file "
            f"takes {session.input_shape} and answers {session.num_classes}; harden the model again"
        )
    calibrated, spanned = stored.output_step * stored.scheme.activation_max, float(logits.max() - logits.min())
    if calibrated > _WIDEST_RANGE * spanned:
        raise VerificationError(
            f"the stored output step stands for logits that span {calibrated:.3g}, those of the probe span "
            f"{spanned:.3g}, so that no difference would show; harden the model again"
        )
    first = first_copies(images)
    return images[first], logits[first]
