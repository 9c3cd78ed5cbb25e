"""``quantinel scan`` as a gate: exit codes, formats, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.cli.tiny_cli import FACTORY, Run, Tiny
from tests.pipeline.fake_detectors import calibrated, install

from quantinel.audit.combination import PARTS
from quantinel.audit.scan_report import ScanReport
from quantinel.detectors import Detection
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, EXIT_UNSUPPORTED, EXIT_USAGE, NotAssessable

NAMES, MARKS = ("a.json", "a.sarif", "a.html", "a.xml", "a.txt"), ("{", "{", "<!", "<?xml", "╭")
ACCEPTED = '[[suppress]]\nrule = "QCB001"\nstatement = "known and accepted here"\nexpires = {expires}\n'


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    path = tmp_path / "limits.json"
    path.write_text(calibrated(*PARTS).model_dump_json(), "utf-8")
    return path


def scan(tiny: Tiny, *more: object) -> list[object]:
    return ["scan", tiny.weights, "--factory", FACTORY, "--input-shape", "3,8,8", "--quiet", *more]


def found(monkeypatch: pytest.MonkeyPatch, score: float = 0.1, **others: object) -> None:
    harmless = {name: Detection(0.1, p_value=0.5) for name in PARTS[1:]}
    install(monkeypatch, {"re-rounding": Detection(score, p_value=0.5)} | harmless | others)  # type: ignore[arg-type]


def test_a_model_that_passes_ends_with_0(run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits))
    assert (done.code, done.err) == (EXIT_PASS, "")
    assert "✓ PASS" in done.out


def test_findings_end_with_1_and_name_the_command(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, 0.9)
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits, "--json"))
    report = ScanReport.model_validate_json(done.out)
    assert (done.code, report.verdict) == (EXIT_FINDINGS, "FAIL")
    harden = next(step for step in report.next_steps if step.startswith("quantinel harden "))
    assert f"--factory {FACTORY} --input-shape 3,8,8 --data {tiny.images} --scheme int8 -o hardened" in harden
    assert report.request["command"].startswith("quantinel scan ")


def test_too_few_images_for_the_thresholds_are_said_before_the_work(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch)
    command = [word for word in scan(tiny, "--data", tiny.images) if word != "--quiet"]
    done = run(*command)
    said = " ".join(done.err.split())
    assert "fewer than the 256 that thresholds were measured with" in said
    assert said.index("fewer than") < said.index("checking int8")


def test_no_verdict_ends_with_2(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    done = run(*scan(tiny, "--data", tiny.images, "--scheme", "int5"))
    assert done.code == EXIT_ERROR
    assert "INCONCLUSIVE" in done.out
    assert "uncalibrated" in done.out


def test_what_cannot_be_assessed_ends_with_2(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {"re-rounding": NotAssessable("one class only"), "trigger-probing": Detection(0.1)})
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits))
    assert done.code == EXIT_ERROR
    assert "one class only" in done.out


def test_warnings_count_where_they_were_asked_for(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, **{"activation-drift": Detection(0.1, p_value=1e-6)})
    command = scan(tiny, "--data", tiny.images, "--thresholds", limits)
    assert run(*command).code == EXIT_PASS
    assert run(*command, "--fail-on", "warning").code == EXIT_FINDINGS


def test_accepted_findings_end_with_0_until_they_expire(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, 0.9)
    accepted = tmp_path / "accepted.toml"
    command = scan(tiny, "--data", tiny.images, "--thresholds", limits, "--suppress", accepted)
    accepted.write_text(ACCEPTED.format(expires="9999-12-31"), "utf-8")
    done = run(*command)
    assert done.code == EXIT_PASS
    assert "QCB001" in done.out
    assert "accepted until 9999-12-31" in done.out
    accepted.write_text(ACCEPTED.format(expires="2020-01-01"), "utf-8")
    done = run(*command)
    assert done.code == EXIT_FINDINGS
    assert "that has expired" in " ".join(done.out.split())


def test_the_weights_alone_are_never_a_pass(run: Run, tiny: Tiny) -> None:
    done = run(*scan(tiny, "--no-data"))
    assert done.code == EXIT_ERROR
    assert "INCONCLUSIVE" in done.out


def test_a_checkpoint_needs_no_architecture(run: Run, tiny: Tiny) -> None:
    done = run("scan", tiny.weights, "--no-data", "--json", "--quiet")
    report = ScanReport.model_validate_json(done.out)
    assert (done.code, report.verdict) == (EXIT_ERROR, "INCONCLUSIVE")
    assert any("give --arch or --factory" in check.reason for check in report.checks)
    assert "--arch" in run("scan", tiny.weights, "--data", tiny.images, "--quiet").error


@pytest.mark.parametrize("form", ["table", "json", "sarif", "html", "junit"])
def test_every_format_goes_to_stdout_or_a_file(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    found(monkeypatch)
    command = scan(
        tiny, "--data", tiny.images, "--thresholds", limits, "--scheme", "int8", "--scheme", "int4-weight-only"
    )
    done = run(*command, "-f", form)
    assert done.code == EXIT_PASS
    assert done.err == ""
    marks = {"table": "✓ PASS", "json": '"quantinel-scan-1"', "sarif": '"2.1.0"', "html": "<!DOCTYPE html>",
             "junit": "<testsuites"}  # fmt: skip
    assert marks[form] in done.out
    target = tmp_path / "out"
    assert run(*command, "-f", form, "-o", target).code == EXIT_PASS
    assert marks[form] in target.read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "mark"), [("a.json", "{"), ("a.sarif", "{"), ("a.html", "<!"), ("a.xml", "<?xml"), ("a.txt", "╭")]
)
def test_the_name_of_a_file_chooses_its_format(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, mark: str
) -> None:
    found(monkeypatch)
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits, "-o", tmp_path / name))
    assert done.code == EXIT_PASS
    assert (tmp_path / name).read_text("utf-8").startswith(mark)
    assert ("✓ PASS" in done.out) == (name != "a.txt")


def test_a_scan_is_rendered_again(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch)
    path = tmp_path / "scan.json"
    assert run(*scan(tiny, "--data", tiny.images, "--thresholds", limits, "-o", path)).code == EXIT_PASS
    assert "<!DOCTYPE html>" in run("report", path).out
    assert json.loads(run("report", path, "-f", "sarif").out)["version"] == "2.1.0"
    assert ElementTree.fromstring(run("report", path, "-f", "junit").out).tag == "testsuites"
    assert run("report", path, "-f", "markdown").code == EXIT_USAGE
    path.write_text(path.read_text("utf-8").replace('"PASS"', '"GREEN"'), "utf-8")
    assert "is not a scan report of this version (verdict: " in run("report", path).error


def test_a_model_without_layers_ends_with_3(run: Run, tiny: Tiny) -> None:
    factory = ["--factory", "tests.cli.tiny_networks:no_layers", "--input-shape", "3,8,8"]
    done = run("scan", tiny.weights, *factory, "--data", tiny.images, "--quiet")
    assert done.code == EXIT_UNSUPPORTED
    assert "no convolution or linear layer" in done.error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give --data DATA, or --no-data"),
        (["--data", "x.npz", "--no-data"], "one of the two"),
        (["--no-data", "-f", "pdf"], "unknown format 'pdf'; choose one of table, json"),
        (["--no-data", "--json", "-f", "html"], "contradict"),
        (["--no-data", "--fail-on", "panic"], "--fail-on is 'panic'; choose one of note"),
        (["--no-data", "--scheme", "int9"], "unknown scheme 'int9'"),
        (["--no-data", "--scheme", "int8", "--scheme", "int8"], "each once"),
        (["--no-data", "--prune", "half"], "unknown pruning 'half'"),
        (["--no-data", "--detectors", "magic"], "unknown detector 'magic'; choose from"),
        (["--no-data", "--budget", "0"], "give a number above 0"),
        (["--no-data", "--images", "1"], "give at least 2"),
        (["--no-data", "--seed", "-1"], "--seed is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_4(run: Run, more: list[str], words: str) -> None:
    done = run("scan", "model.pt2", "--quiet", *more)
    assert done.code == EXIT_USAGE
    assert words in done.error
    assert done.out == ""


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--suppress", "cannot be read"),
        ("--thresholds", "cannot be read"),
        ("--data", "missing"),
    ],
)
def test_missing_files_are_named(run: Run, tiny: Tiny, option: str, words: str) -> None:
    given = [] if option == "--data" else ["--no-data"]
    done = run(*scan(tiny, *given, option, "missing.npz"))
    assert done.code in (EXIT_ERROR, EXIT_USAGE)
    assert words in done.error


def test_a_pickle_is_refused(run: Run, tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "model.pth").write_bytes(b"\x80\x04K\x01.")
    done = run("scan", tmp_path / "model.pth", "--data", tiny.images, "--quiet")
    assert done.code == EXIT_ERROR
    assert "pickle" in done.error


def test_little_time_is_no_pass_and_says_what_it_cost(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch)
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits, "--budget", "1e-9"))
    assert done.code == EXIT_ERROR
    assert "What the time budget cost" in done.out
    assert "int8/re-rounding did not run: no power at all" in done.out


def test_an_interrupted_scan_leaves_nothing(
    run: Run, tiny: Tiny, limits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(subject: object) -> Detection:
        raise KeyboardInterrupt

    install(monkeypatch, {"re-rounding": interrupted, "trigger-probing": Detection(0.1)})
    target = tmp_path / "scan.json"
    done = run(*scan(tiny, "--data", tiny.images, "--thresholds", limits, "-o", target))
    assert (done.code, done.out) == (130, "")
    assert not target.exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    command = ["scan", tmp_path / "missing.pt2", "--data", tiny.images, "--quiet", "-o"]
    done = run(*command, tmp_path)
    assert (done.code, "is a folder; give the name of a file" in done.error) == (EXIT_USAGE, True)
    done = run(*command, tmp_path / "file" / "scan.json")
    assert (done.code, "file is no folder" in done.error) == (EXIT_ERROR, True)
    assert run("report", tmp_path / "missing.json", "-o", tmp_path).code == EXIT_USAGE
