"""A whole scan on a small network, with detectors that find what the test wants."""

from __future__ import annotations

import base64
import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tests.cli.tiny_cli import quadrant_images
from tests.cli.tiny_networks import Quadrants
from tests.pipeline.fake_detectors import calibrated, install, with_trigger
from tests.support import OddNet, make_images, randomise

from quantinel.audit.combination import PARTS
from quantinel.audit.rules import BEHAVIOUR, COMBINED
from quantinel.audit.scan_report import ScanReport, read_any_report
from quantinel.audit.suppressions import Suppression
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.data.images import ImageSet
from quantinel.detectors import Detection, Subject
from quantinel.errors import InputError, NotAssessable, UsageError
from quantinel.files import sha256_file
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.scan import scan
from quantinel.pipeline.scan_options import ScanOptions
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.pruning import parse_pruning
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme, parse_scheme

HARMLESS = Detection(0.1, p_value=0.5)
GOOD = dict.fromkeys(("weight-residuals", *PARTS), HARMLESS)
LIMITS = calibrated("weight-residuals", *PARTS, "pruning-divergence")


SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(Quadrants(), input_shape=SHAPE)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    images, labels = quadrant_images(40)
    return ImageSet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), "quadrants")


def options(**changes: Any) -> ScanOptions:
    return ScanOptions(**({"thresholds": LIMITS} | changes))


def outcomes(report: ScanReport) -> dict[str, str]:
    return {check.id: check.status for check in report.checks}


def test_a_harmless_model_passes(model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GOOD, weights=("weight-residuals",))
    steps: list[tuple[str, int, int]] = []
    report = scan(model, data, options(), command="test", progress=lambda *step: steps.append(step))
    assert outcomes(report) == {
        "int8/weight-residuals": "pass", "int8/re-rounding": "pass", "int8/trigger-probing": "pass",
        "int8/trigger-inversion": "pass", f"int8/{COMBINED}": "pass", f"int8/{BEHAVIOUR}": "pass",
    }  # fmt: skip
    assert (report.verdict, report.findings, report.triggers) == ("PASS", [], [])
    assert report.model["sha256"] is None
    assert report.model["layers"] == 2
    assert report.data is not None
    assert report.data["n"] == 40
    assert report.schemes[0].float_cda is not None
    assert sum(share.floating for share in report.schemes[0].classes) == pytest.approx(1.0)
    assert steps[0][0] == "checking int8/weight-residuals"
    assert report.budget.limit is None


def test_a_model_does_not_pass_without_all_that_is_combined(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {name: found for name, found in GOOD.items() if name != "trigger-inversion"})
    report = scan(model, data, options())
    assert report.verdict == "INCONCLUSIVE"
    (missed,) = [check for check in report.checks if check.required and check.status == "not_run"]
    assert missed.id == f"int8/{COMBINED}"
    assert missed.reason.endswith("there is none of trigger-inversion")


def test_signs_that_are_weak_alone_fail_a_model_together(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = {
        name: Detection(0.1, p_value=p, suspect_class=leaning)
        for name, p, leaning in zip(PARTS, (0.03, 0.02, 0.04), (1, 2, 1), strict=True)
    }
    install(monkeypatch, GOOD | weak)
    report = scan(model, data, options())
    (finding,) = report.findings
    assert (report.verdict, finding.rule, finding.checks) == ("FAIL", "QCB010", [f"int8/{COMBINED}"])
    check = next(check for check in report.checks if check.detector == COMBINED)
    assert check.suspect_class == "1"
    assert check.p_value == pytest.approx(0.00163, abs=1e-5)
    assert check.statistics["p_value of trigger-probing"] == 0.02


def test_the_report_survives_a_file(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, GOOD | {"trigger-probing": with_trigger(SHAPE[1])})
    report = scan(model, data, options(schemes=(QuantScheme(), parse_scheme("int4"))))
    (tmp_path / "scan.json").write_text(report.model_dump_json(), "utf-8")
    assert read_any_report(tmp_path / "scan.json") == report


def test_data_free_detectors_run_first_on_every_scheme(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def recorded(name: str) -> Any:
        return lambda subject: order.append(f"{subject.scheme.name}/{name}") or HARMLESS

    names = ("re-rounding", "trigger-probing", "weight-residuals")
    install(monkeypatch, {name: recorded(name) for name in names}, weights=("weight-residuals",))
    report = scan(model, data, options(schemes=(QuantScheme(), parse_scheme("int4"))))
    assert order[:2] == ["int8/weight-residuals", "int4/weight-residuals"]
    assert len(order) == 6
    assert {scheme.scheme for scheme in report.schemes} == {"int8", "int4"}


@pytest.mark.parametrize(
    ("found", "thresholds", "verdict", "status"),
    [
        (Detection(0.9), LIMITS, "FAIL", "fail"),
        (Detection(0.9), calibrated(), "INCONCLUSIVE", "undecided"),
        (NotAssessable("too few images; give more"), LIMITS, "INCONCLUSIVE", "not_run"),
        (InputError("its logits are not finite"), LIMITS, "INCONCLUSIVE", "not_run"),
        (Detection(math.nan), LIMITS, "INCONCLUSIVE", "undecided"),
    ],
)
def test_a_required_detector_decides(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch, found: Any, thresholds: Any, verdict: str,
    status: str,
) -> None:  # fmt: skip
    install(monkeypatch, GOOD | {"re-rounding": found})
    report = scan(model, data, options(thresholds=thresholds))
    assert report.verdict == verdict
    assert outcomes(report)["int8/re-rounding"] == status
    if status != "fail":
        assert any(finding.rule == "QCB007" for finding in report.findings)
        assert any(step.startswith("Missing: ") for step in report.next_steps)


def test_required_detectors_that_nobody_registered_are_missed(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {"weight-residuals": HARMLESS})
    report = scan(model, data, options())
    assert report.verdict == "INCONCLUSIVE"
    assert outcomes(report)["int8/re-rounding"] == "not_run"


def test_detectors_that_were_left_out_are_missed(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GOOD)
    report = scan(model, data, options(detectors=("trigger-probing",)))
    assert report.verdict == "INCONCLUSIVE"
    assert next(check.reason for check in report.checks if check.detector == "re-rounding").startswith("it was")


@pytest.mark.parametrize(("score", "verdict"), [(0.1, "INCONCLUSIVE"), (0.9, "FAIL")])
def test_without_images_a_scan_can_fail_and_never_pass(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, score: float, verdict: str
) -> None:
    install(monkeypatch, GOOD | {"weight-residuals": Detection(score)}, weights=("weight-residuals",))
    report = scan(model, None, options())
    assert report.verdict == verdict
    assert report.data is None
    assert report.schemes[0].agreement is None
    assert report.schemes[0].residuals.grid
    assert all("give --data" in check.reason for check in report.checks if check.status == "not_run")


def test_a_used_up_budget_leaves_checks_out_and_says_so(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(subject: Subject) -> Detection:
        time.sleep(0.3)
        return HARMLESS

    install(monkeypatch, {"activation-drift": slow, "re-rounding": HARMLESS})
    report = scan(model, data, options(budget=0.2))
    assert outcomes(report)["int8/re-rounding"] == "not_run"
    assert report.verdict == "INCONCLUSIVE"
    assert report.budget.limit == 0.2
    assert report.budget.cost == ["int8/re-rounding did not run: no power at all"]


def test_detectors_share_what_is_left_of_the_budget_and_can_be_cut_short(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def cut(subject: Subject) -> Detection:
        shares.append(subject.budget.seconds)
        return Detection(0.1, p_value=0.5, notes=("3 of 99 copies: p-values below 0.25 cannot be seen",))

    install(monkeypatch, dict.fromkeys(PARTS, cut))
    report = scan(model, data, options(budget=600.0))
    assert shares == pytest.approx([200.0, 300.0, 600.0], abs=30)
    assert report.verdict == "INCONCLUSIVE"
    assert outcomes(report)["int8/re-rounding"] == outcomes(report)[f"int8/{COMBINED}"] == "undecided"
    assert len(report.budget.cost) == 3
    unlimited = scan(model, data, options())
    assert unlimited.verdict == "PASS"
    assert unlimited.budget.cost == []


def test_remarks_of_a_detector_that_was_not_cut_cost_nothing(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Detection(0.1, p_value=0.5, remarks=("closest probe: a patch",))
    install(monkeypatch, GOOD | {"trigger-probing": named})
    report = scan(model, data, options(budget=600.0))
    assert (report.verdict, report.budget.cost) == ("PASS", [])
    check = next(check for check in report.checks if check.detector == "trigger-probing")
    assert check.notes == ["closest probe: a patch"]


def test_what_one_detector_measures_is_there_for_the_next(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def reads(subject: Subject) -> Detection:
        seen.append(id(subject.nearest))
        return HARMLESS

    install(monkeypatch, GOOD | {"re-rounding": reads, "trigger-probing": reads})
    scan(model, data, options(budget=600.0))
    assert len(set(seen)) == 1
    assert len(seen) == 2


def test_pruning_is_scanned_when_it_is_named(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def diverging(subject: Subject) -> Detection:
        seen.extend(pruning.name for pruning in subject.pruning)
        return Detection(0.9)

    install(monkeypatch, GOOD | {"pruning-divergence": diverging})
    assert scan(model, data, options()).verdict == "PASS"
    assert seen == []
    report = scan(model, data, options(prunings=(parse_pruning("prune-magnitude-0.5"),)))
    assert seen == ["prune-magnitude-0.5"]
    assert [(finding.rule, finding.target) for finding in report.findings] == [("QCB004", "prune-magnitude-0.5")]


@pytest.mark.parametrize("schemes", [("int8", "int3"), ("int3", "int8")])
def test_prunings_share_a_rate_whatever_the_grids(
    schemes: tuple[str, str], model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the first grid's bits chose the threshold, and each pruning had the whole rate."""
    install(monkeypatch, GOOD | {"pruning-divergence": Detection(2.2, p_value=0.006)})
    limits = LIMITS.model_copy(
        update={
            "entries": [
                entry.model_copy(update={"statistic": "p_value", "threshold": 0.01})
                for entry in LIMITS.entries if entry.detector == "pruning-divergence"
            ]
        }
    )  # fmt: skip
    grids = tuple(parse_scheme(name) for name in schemes)
    prunings = tuple(parse_pruning(f"prune-l1-filters-{rate}") for rate in (0.3, 0.5))
    for asked, status in ((prunings[:1], "fail"), (prunings, "pass")):
        report = scan(model, data, options(schemes=grids, prunings=asked, thresholds=limits))
        found = {check.target: check.status for check in report.checks if check.detector == "pruning-divergence"}
        assert found == {pruning.name: status for pruning in asked}


def test_comparisons_run_when_they_are_named(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GOOD | {"neural-cleanse": Detection(0.9)})
    assert scan(model, data, options()).verdict == "PASS"
    found = options(detectors=("neural-cleanse", *GOOD), thresholds=calibrated(*GOOD, "neural-cleanse"))
    report = scan(model, data, found)
    assert [(finding.rule, finding.target) for finding in report.findings] == [("QCB009", "float")]
    assert report.verdict == "FAIL"


def test_a_recovered_trigger_is_shown_on_images_of_other_classes(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GOOD | {"trigger-probing": with_trigger(SHAPE[1])})
    report = scan(model, data, options())
    (trigger,) = report.triggers
    assert (trigger.check, trigger.suspect_class) == ("int8/trigger-probing", "2")
    assert trigger.mask_png is not None
    assert trigger.pattern_png is not None
    assert 0 < len(trigger.examples) <= 6
    assert all(example.clean_png != example.triggered_png for example in trigger.examples)
    assert base64.b64decode(trigger.mask_png).startswith(b"\x89PNG")
    check = next(check for check in report.checks if check.detector == "trigger-probing")
    assert check.suspect_class == "2"
    assert [item.name for item in check.by_class] == ["0", "2"]


@pytest.mark.parametrize(
    "tensors",
    [
        {"triggered": torch.rand(4, *SHAPE)},
        {"mask": torch.ones(1, 4, 4), "pattern": torch.rand(3, 4, 4)},
        {"mask": torch.full((5, 8, 8), math.nan), "pattern": torch.rand(7, 8, 8)},
        {"triggered": torch.rand(400, *SHAPE)},
        {"triggered": torch.rand(3)},
    ],
)
def test_evidence_of_any_shape_does_no_harm(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor]
) -> None:
    install(monkeypatch, GOOD | {"trigger-probing": Detection(0.9, suspect_class=1, tensors=tensors)})
    report = scan(model, data, options())
    assert len(report.triggers) == 1
    json.loads(report.model_dump_json())


def test_accepted_findings_pass_until_they_expire(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GOOD | {"weight-residuals": Detection(0.9)}, weights=("weight-residuals",))
    until = datetime.date(2026, 5, 1)
    accepted = options(suppressions=(Suppression(rule="QCB003", statement="trained by ourselves", expires=until),))
    report = scan(model, data, accepted, today=until)
    assert report.verdict == "PASS"
    assert report.findings[0].suppressed is not None
    assert "1 accepted finding did not count" in report.summary
    late = scan(model, data, accepted, today=until + datetime.timedelta(days=1))
    assert late.verdict == "FAIL"
    assert [entry.outcome for entry in late.suppressions] == ["expired"]


def test_the_next_step_is_the_command_that_hardens(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_int4(subject: Subject) -> Detection:
        return Detection(0.9 if subject.scheme.weight_bits == 4 else 0.1, p_value=0.5)

    install(monkeypatch, GOOD | {"re-rounding": only_int4})
    schemes = (QuantScheme(), parse_scheme("int4"))
    report = scan(model, data, options(schemes=schemes), harden_command=lambda scheme: f"quantinel harden M {scheme}")
    assert "quantinel harden M int4" in report.next_steps
    assert "as int4" in report.summary
    plain = scan(model, data, options(schemes=schemes))
    assert any(step.startswith("quantinel harden module:") and "--scheme int4" in step for step in plain.next_steps)


def test_the_shipped_file_is_compared(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, GOOD)
    graph = trace(model.module, model.input_shape)
    plain = quantize_nearest(graph, calibrate(graph, data, QuantScheme()))
    moved = plain.with_codes(
        {name: (codes.int() + 1).clamp(max=127).to(torch.int8) for name, codes in plain.codes.items()}
    )
    for name, integers in (("plain", plain), ("moved", moved)):
        file = to_onnx(integers, PROFILES["onnxruntime-x86"]).SerializeToString()
        (tmp_path / f"{name}.onnx").write_bytes(file)
    report = scan(model, data, options(artefact=tmp_path / "plain.onnx"))
    assert report.verdict == "PASS"
    assert report.request["artefact_sha256"] == sha256_file(tmp_path / "plain.onnx")
    report = scan(model, data, options(artefact=tmp_path / "moved.onnx"))
    assert [(finding.rule, finding.target) for finding in report.findings] == [("QCB005", "moved.onnx")]
    swapped = to_onnx(plain, PROFILES["onnxruntime-x86"])
    swapped.graph.node[-1].CopyFrom(
        onnx.helper.make_node("Slice", [swapped.graph.node[-1].input[0], "ends", "starts", "axis", "back"], ["logits"])
    )
    for name, value in (("ends", -1), ("starts", -(2**31)), ("axis", 1), ("back", -1)):
        swapped.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]))
    (tmp_path / "swapped.onnx").write_bytes(swapped.SerializeToString())
    report = scan(model, data, options(artefact=tmp_path / "swapped.onnx"))
    assert [(finding.rule, finding.target) for finding in report.findings] == [("QCB005", "swapped.onnx")]
    assert f"of {len(data)} images" in report.findings[0].detail
    blind = scan(model, None, options(artefact=tmp_path / "plain.onnx"))
    (check,) = (check for check in blind.checks if check.rule == "QCB005")
    assert check.status == "undecided"
    assert "the file was not run: give images" in check.reason
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    broken = scan(model, data, options(artefact=tmp_path / "broken.onnx"))
    assert broken.verdict == "INCONCLUSIVE"
    assert outcomes(broken)["broken.onnx/artefact-comparison"] == "not_run"


def test_a_model_that_compression_breaks_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GOOD)
    torch.manual_seed(3)
    broken = load_model(randomise(OddNet(), 3), input_shape=(3, 16, 16))
    report = scan(broken, make_images(200), options(schemes=(parse_scheme("int2-a2"),)))
    assert report.verdict == "FAIL"
    assert [finding.rule for finding in report.findings] == ["QCB006"]
    assert "engineering bound" in report.findings[0].detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schemes": ()}, "give one or more"),
        ({"schemes": (QuantScheme(), QuantScheme())}, "each once"),
        ({"budget": 0.0}, "above 0"),
        ({"budget": math.nan}, "above 0"),
        ({"images": 1}, "at least 2"),
        ({"detectors": ("magic",)}, "unknown detector 'magic'"),
        ({"artefact": Path("missing.onnx")}, "missing.onnx does not exist"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(**changes)


def test_images_that_do_not_fit_are_refused(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="has 1 images; give at least 2"):
        scan(model, make_images(1, SHAPE), options())
    with pytest.raises(InputError, match=r"shape .3, 8, 8., synthetic has .3, 16, 16."):
        scan(model, make_images(40), options())


def test_no_more_images_are_used_than_asked_for(
    model: LoadedModel, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GOOD)
    report = scan(model, data, options(images=10))
    assert report.data is not None
    assert report.data["n"] == 10
