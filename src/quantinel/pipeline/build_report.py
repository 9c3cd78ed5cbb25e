"""Assemble the report of a hardening run from what was measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from quantinel.audit import checks
from quantinel.audit.report import Check, EvaluationRow, Finding, LayerRow, Report, Verification
from quantinel.backends.runtime import Execution, runtime_name
from quantinel.backends.verification import IntegerComparison, OutputComparison
from quantinel.data.copies import different
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger
from quantinel.detectors.weight_residuals import Residuals
from quantinel.model.graph import float_products
from quantinel.model.loading import LoadedModel
from quantinel.pipeline.calibration_findings import calibration_findings
from quantinel.pipeline.identity import describe_images, describe_labels, describe_model, environment, histogram
from quantinel.pipeline.measure import Variant, evaluation_row, examples, rate
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.reconstruction import LayerOutcome, RoundingMethod
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class Verified:
    """What re-opening the emitted file showed, and the simulation's logits on the calibration images."""

    integers: IntegerComparison
    graph: Check
    outputs: OutputComparison
    execution: Execution
    simulated: Tensor


@dataclass(frozen=True)
class Run:
    """Everything that one hardening run was asked and measured."""

    model: LoadedModel
    scheme: QuantScheme
    rounding: RoundingMethod
    backend: str
    seed: int
    command: str
    calibration: ImageSet
    synthetic: bool
    evaluation: ImageSet
    trigger: Trigger | None
    target_class: int | None
    stamped: Tensor | None
    hardened: QuantizedModel
    outcomes: tuple[LayerOutcome, ...]
    residuals: Residuals
    input_findings: list[Finding]
    verified: Verified
    variants: tuple[Variant, Variant, Variant]
    seconds: dict[str, float]
    version: str

    @property
    def rounding_options(self) -> dict[str, Any]:
        """Hyper-parameters of the rounding method."""
        return dataclasses.asdict(self.rounding)  # type: ignore[call-overload,no-any-return]


def recipe(run: Run) -> dict[str, Any]:
    """Resolved configuration, for ``recipe.toml``."""
    return {
        "version": run.version,
        "model": run.model.source,
        "data": run.evaluation.name,
        "backend": run.backend,
        "calibration_images": len(run.calibration),
        "seed": run.seed,
        "rounding": run.rounding.name,
        "scheme": run.scheme.to_dict(),
        "rounding_options": run.rounding_options,
    }


def build_report(run: Run) -> Report:
    """Checks, verdict, findings and all figures of one run."""
    floating, nearest, final = (evaluation_row(variant, run.variants[0]) for variant in run.variants)
    execution, layers = run.verified.execution, run.hardened.layers
    in_float = [name for name, operator in execution.by_layer.items() if operator is None]
    all_checks = [
        checks.integers_check(run.verified.integers, len(layers)),
        run.verified.graph,
        checks.outputs_check(run.verified.outputs),
        checks.execution_check(run.scheme, execution.integer_layers, len(layers), in_float),
        checks.agreement_check(floating, final, run.scheme, different(run.evaluation.images)),
        checks.trigger_check(floating, final, run.trigger is not None, len(run.evaluation)),
    ]
    findings = list(run.input_findings)
    if not run.synthetic:
        findings[:0] = calibration_findings(run.calibration, run.verified.simulated.argmax(1))
    woken = checks.trigger_finding(floating, nearest)
    if woken is not None:
        findings.insert(0, woken)
    decision = checks.verdict(all_checks)
    outcome = {item.layer: item for item in run.outcomes}
    agreement = rate(run.verified.outputs.agreement)
    assert agreement is not None
    return Report(
        version=run.version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=decision,
        summary=_summary(decision, all_checks, woken is not None and woken.level == "error"),
        request={
            "source": run.model.source,
            "data": run.evaluation.name,
            "scheme": run.scheme.name,
            "scheme_fields": run.scheme.to_dict(),
            "rounding": run.rounding.name,
            "rounding_options": run.rounding_options,
            "backend": run.backend,
            "seed": run.seed,
            "command": run.command,
        },
        model=describe_model(run.model, sum(layer.codes.numel() for layer in layers.values())),
        data={
            "calibration": {**describe_images(run.calibration), "used_to_choose_integers": run.outcomes[0].images},
            "evaluation": {**describe_images(run.evaluation), **describe_labels(run.evaluation)},
        },
        trigger=None if run.trigger is None else {**run.trigger.to_dict(), "target_class": run.target_class},
        checks=all_checks,
        findings=findings,
        not_checked=_not_checked(run, floating),
        next_steps=_next_steps(decision, run),
        evaluation=[floating, nearest, final],
        layers=[
            LayerRow(
                name=name,
                kind=layer.layer.kind,
                shape=list(layer.codes.shape),
                changed=outcome[name].changed,
                error_nearest=outcome[name].error_nearest,
                error_chosen=outcome[name].error_chosen,
                executed=execution.by_layer.get(name),
                edge_share=run.residuals.by_layer[name],
                seconds=round(outcome[name].seconds, 4),
            )
            for name, layer in layers.items()
        ],
        residuals=histogram(run.residuals),
        verification=Verification(
            layers_equal=len(run.verified.integers.equal),
            layers=len(layers),
            integer_layers=execution.integer_layers,
            float_layers=in_float,
            agreement=agreement,
            max_difference_steps=run.verified.outputs.max_steps,
            runtime=runtime_name(),
        ),
        examples=[] if run.stamped is None else examples(run.evaluation, run.stamped, run.variants),
        seconds={stage: round(value, 3) for stage, value in run.seconds.items()},
        environment=environment(),
    )


def _summary(decision: str, all_checks: list[Check], woke: bool) -> str:
    if decision == "PASS":
        lead = "Ordinary quantization wakes the backdoor; the hardened file does not. " if woke else ""
        return lead + "The emitted file holds the audited integers and passed every check that could run."
    if decision == "FAIL":
        failed = next(check for check in all_checks if check.status == "fail")
        return f'Do not deploy this file: the check "{failed.title}" failed.'
    missing = next(check for check in all_checks if check.required and check.status == "not_run")
    return f"No verdict: a required check could not run ({missing.detail})."


def _not_checked(run: Run, floating: EvaluationRow) -> list[str]:
    items = [
        "Unknown triggers, and whether the input holds a backdoor at all: `quantinel scan` looks for both.",
        "A backdoor that is awake in the float model itself: hardening stays near the float model's "
        "behaviour, its faults included.",
        "Other runtimes and processors than the one named below.",
    ]
    names, weights = float_products(run.hardened.graph)
    if names:
        held = f"; {weights} stored weights in them were not audited" if weights else ""
        items.insert(0, f"Operators that stay in float, because only layers are quantized: {', '.join(names)}{held}.")
    if run.trigger is None:
        items.insert(0, "Attack success: no trigger was given.")
    elif floating.asr is None:
        items.insert(0, f"Attack success: {checks.unmeasured_trigger(floating.cda is not None, len(run.evaluation))}.")
    if not len(run.evaluation):
        items.insert(0, "Behaviour on real images: there were none, so nothing was evaluated.")
    elif run.evaluation.labels is None:
        items.insert(0, "Accuracy: the images have no labels; agreement with the float model was measured instead.")
    if run.synthetic:
        items.insert(
            0,
            f"Whether {len(run.calibration)} synthetic images stand for the real ones: activation ranges and integers "
            "were chosen on them, a weaker form of the method.",
        )
    return items


def _next_steps(decision: str, run: Run) -> list[str]:
    if decision == "PASS":
        return [
            "Deploy model.onnx from this folder, unchanged.",
            "On the target machine: `quantinel verify FOLDER`",
        ]
    if decision == "INCONCLUSIVE" and not len(run.evaluation):
        return [
            "Give images of the model's own kind, labels are not needed: the file is then calibrated and evaluated on "
            "them.",
            "If there are none, look at what the file answers before anything relies on it.",
        ]
    if decision == "INCONCLUSIVE":
        return ["Give the images that the checks which did not run ask for, and harden again: there is no verdict yet."]
    return [
        "Do not deploy this file.",
        f"Try more calibration images (now {len(run.calibration)}) or another --rounding or --scheme.",
        "If the float model itself answers the trigger, no rounding can help: repair or replace the model.",
    ]
