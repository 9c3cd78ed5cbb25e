"""Verify a hardened directory: the file on disk is the one that was audited, and it still runs like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantinel.audit import checks
from quantinel.audit.report import Check, Verdict
from quantinel.backends.artefact import read_integers
from quantinel.backends.runtime import Session, execution
from quantinel.backends.verification import compare_integers, compare_outputs, load_onnx
from quantinel.data.images import ImageSet
from quantinel.errors import VerificationError
from quantinel.pipeline.artefact_folder import INTEGERS, MODEL, check_manifest, read_probe
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of `verify`."""

    verdict: Verdict
    checks: list[Check]


def verify(folder: str | Path, data: ImageSet | None = None) -> VerifyResult:
    """Re-open the artefact and compare it with the audit.

    Args:
        folder: a hardened directory.
        data: images to run; without them, the probe stored in the folder is used. With ``data`` the reference is
            ONNX Runtime without graph optimisation (float arithmetic between Q and DQ), because the float model
            is not part of the folder.

    Raises:
        VerificationError: the folder is not a hardened directory, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is no folder; give the output of `quantinel harden`")
    problems = check_manifest(folder)
    found = [
        Check(
            id="hashes",
            title="No file changed since it was hardened",
            status="fail" if problems else "pass",
            required=True,
            detail="; ".join(problems[:3]) if problems else "all recorded hashes agree (the manifest is not signed)",
        )
    ]
    stored = read_integers(folder / INTEGERS)
    path = folder / MODEL
    comparison = compare_integers(load_onnx(path), stored.layers, stored.activations)
    found.append(checks.integers_check(comparison, len(stored.layers)))
    session = Session(path)
    if data is not None:
        if data.shape != session.input_shape:
            raise VerificationError(
                f"the model takes images of shape {session.input_shape}, {data.name} has {data.shape}; resize them"
            )
        reference = Session(path, optimise=False).logits(data.images)
        found.append(
            checks.outputs_check(
                compare_outputs(session.logits(data.images), reference, stored.output_step, stored.tolerance)
            )
        )
    else:
        probe = read_probe(folder)
        if probe is None:
            found.append(
                Check(
                    id="runtime-agrees",
                    title="ONNX Runtime answers as the audited simulation",
                    status="not_run",
                    required=True,
                    detail="the folder holds no probe images; give some with --data",
                )
            )
        else:
            images, logits = probe
            outputs = compare_outputs(session.logits(images), logits, stored.output_step, stored.tolerance)
            found.append(checks.outputs_check(outputs))
    ran = execution(path, list(stored.layers))
    in_float = [name for name, operator in ran.by_layer.items() if operator is None]
    scheme = QuantScheme(**stored.scheme)  # type: ignore[arg-type]
    found.append(checks.execution_check(scheme, ran.integer_layers, len(stored.layers), in_float))
    return VerifyResult(checks.verdict(found), found)
