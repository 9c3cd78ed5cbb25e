"""What every verb prints where, and the code it ends with."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.tiny_cli import FACTORY, Run, Tiny

from quantinel.cli import guard, settings
from quantinel.cli import list as list_verb
from quantinel.cli.main import main
from quantinel.defenses import DEFENSES
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, EXIT_UNSUPPORTED, EXIT_USAGE, UsageError

OUTPUT = {
    "README.md", "manifest.json", "model.onnx", "probe.safetensors", "quantized.safetensors", "recipe.toml",
    "report.html", "report.json", "report.sarif",
}  # fmt: skip


def test_harden_passes_and_writes_the_whole_folder(run: Run, tiny: Tiny, empty: Path) -> None:
    done = run(*tiny.harden(empty / "out"))
    assert done.code == EXIT_PASS
    assert "PASS" in done.out
    assert done.err == ""
    assert {path.name for path in (empty / "out").iterdir()} == OUTPUT
    assert [path.name for path in empty.iterdir()] == ["out"]


def test_harden_prints_the_report_as_json(run: Run, tiny: Tiny, empty: Path) -> None:
    command = [*tiny.harden(empty / "out"), "--trigger", tiny.trigger, "--target", "1", "--json", "--no-probe"]
    done = run(*command)
    report = json.loads(done.out)
    assert done.code == EXIT_PASS
    assert report == json.loads((empty / "out" / "report.json").read_text("utf-8"))
    assert report["request"]["command"].startswith("quantinel harden ")
    assert report["trigger"]["target_class"] == 1
    assert not (empty / "out" / "probe.safetensors").exists()
    assert run("verify", empty / "out", "--quiet").code == EXIT_ERROR  # inconclusive: nothing to run it on
    assert run("verify", empty / "out", "--quiet", "--data", tiny.images).code == EXIT_PASS


def test_without_images_there_is_a_file_and_no_verdict(run: Run, tiny: Tiny, empty: Path) -> None:
    command = [str(word) for word in tiny.harden(empty / "out")]
    at = command.index("--data")
    without = [*command[:at], *command[at + 2 :]]
    done = run(*without, "--no-data")
    assert done.code == EXIT_ERROR
    assert "INCONCLUSIVE" in done.out
    assert {path.name for path in (empty / "out").iterdir()} == OUTPUT
    assert "give --data DATA, or --no-data" in run(*without, "--force").error
    assert "one of the two" in run(*command, "--no-data", "--force").error
    assert "neither" in run(*without, "--no-data", "--calibration", tiny.images, "--force").error
    triggered = run(*without, "--no-data", "--trigger", tiny.trigger, "--target", "1", "--force")
    assert (triggered.code, "tested on images" in triggered.error) == (EXIT_USAGE, True)


def test_progress_goes_to_stderr_as_lines(run: Run, tiny: Tiny, empty: Path) -> None:
    command = tiny.harden(empty / "out")
    command.remove("--quiet")
    done = run(*command)
    lines = done.err.splitlines()
    assert all(line.startswith("quantinel: ") for line in lines)
    assert lines.index("quantinel: calibrating") < lines.index("quantinel: choosing integers")
    assert len(lines) == len(set(lines))


def test_a_file_that_answers_differently_fails(run: Run, tiny: Tiny, empty: Path) -> None:
    options = ["--scheme", "int2-a2", "--rounding", "efrap", "--set", "flip_weight=1000000"]
    done = run(*tiny.harden(empty / "out"), *options)
    assert done.code == EXIT_FINDINGS
    assert "FAIL" in done.out
    assert json.loads((empty / "out" / "report.json").read_text("utf-8"))["verdict"] == "FAIL"


def test_no_images_left_is_inconclusive(run: Run, tiny: Tiny, empty: Path) -> None:
    import numpy as np

    with np.load(tiny.images) as arrays:
        np.savez(empty / "unlabelled.npz", images=arrays["images"][:4])
    done = run(*tiny.harden(empty / "out", data=empty / "unlabelled.npz"))
    assert done.code == EXIT_ERROR
    assert "INCONCLUSIVE" in done.out


def test_fewer_unlabelled_images_than_asked_for_are_shared_out(run: Run, tiny: Tiny, empty: Path) -> None:
    """Regression: 200 unlabelled pictures were all calibrated on, and the verdict was INCONCLUSIVE."""
    import numpy as np

    with np.load(tiny.images) as arrays:
        np.savez(empty / "unlabelled.npz", images=arrays["images"])
    done = run(*tiny.harden(empty / "out", data=empty / "unlabelled.npz"), "--calibration-images", "256")
    assert done.code == EXIT_PASS, done.out


def test_verify_passes_then_fails_when_a_byte_changed(run: Run, hardened: Path, tmp_path: Path) -> None:
    assert run("verify", hardened, "--quiet").code == EXIT_PASS
    changed = shutil.copytree(hardened, tmp_path / "changed")
    (changed / "README.md").write_text("changed", "utf-8")
    done = run("verify", changed, "--json", "--quiet")
    result = json.loads(done.out)
    assert done.code == EXIT_FINDINGS
    assert result["verdict"] == "FAIL"
    assert {check["id"]: check["status"] for check in result["checks"]}["hashes"] == "fail"


def test_verify_fails_when_another_model_lies_in_the_folder(
    run: Run, tiny: Tiny, hardened: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert run(*tiny.harden(other), "--rounding", "nearest", "--scheme", "int4").code == EXIT_PASS
    mixed = shutil.copytree(hardened, tmp_path / "mixed")
    shutil.copy(other / "model.onnx", mixed / "model.onnx")
    done = run("verify", mixed, "--quiet")
    assert done.code == EXIT_FINDINGS
    assert "FAIL" in done.out


def test_evaluate_a_model_and_its_hardened_folder(run: Run, tiny: Tiny, hardened: Path) -> None:
    model = [tiny.weights, "--factory", FACTORY, "--input-shape", "3,8,8"]
    trigger = ["--trigger", tiny.trigger, "--target", "2"]
    done = run("evaluate", *model, "--data", tiny.images, *trigger, "--scheme", "int8", "--json", "--quiet")
    rows = json.loads(done.out)["rows"]
    assert done.code == EXIT_PASS
    assert [row["variant"] for row in rows] == ["float", "nearest"]
    assert [row["cda"]["n"] for row in rows] == [32, 32]
    assert all(row["asr"]["n"] == 24 for row in rows)  # the target's own images do not count
    done = run("evaluate", hardened, "--data", tiny.images, "--quiet")
    assert done.code == EXIT_PASS
    assert "(64)" in done.out


def test_evaluate_says_why_a_trigger_is_not_measured(run: Run, tiny: Tiny, hardened: Path, tmp_path: Path) -> None:
    import numpy as np

    with np.load(tiny.images) as arrays:
        own = arrays["labels"] == 2
        np.savez(tmp_path / "own.npz", images=arrays["images"][own], labels=arrays["labels"][own])
    float_model = [tiny.weights, "--factory", FACTORY, "--input-shape", "3,8,8"]
    for model in (float_model, [hardened]):
        done = run("evaluate", *model, "--data", tmp_path / "own.npz", "--trigger", tiny.trigger, "--target", "2")
        assert done.code == EXIT_PASS
        assert "attack success is not measured: no image is of another class than the target" in done.err


def test_evaluate_says_why_accuracy_is_not_measured(run: Run, tiny: Tiny, hardened: Path, tmp_path: Path) -> None:
    import numpy as np

    with np.load(tiny.images) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"])
    done = run("evaluate", hardened, "--data", tmp_path / "bare.npz")
    assert "accuracy is not measured: the images have no labels" in " ".join(done.err.split())
    assert "not measured" not in run("evaluate", hardened, "--data", tiny.images).err


def test_report_renders_again(run: Run, hardened: Path, tmp_path: Path) -> None:
    written = (hardened / "report.html").read_text("utf-8")
    done = run("report", hardened / "report.json")
    assert (done.code, done.out.strip()) == (EXIT_PASS, written.strip())
    assert run("report", hardened / "report.json", "-f", "sarif", "-o", tmp_path / "again.sarif").code == EXIT_PASS
    assert json.loads((tmp_path / "again.sarif").read_text("utf-8"))["version"] == "2.1.0"
    assert run("report", hardened / "report.json", "-f", "pdf").code == EXIT_USAGE


def test_list_names_everything_that_is_registered(run: Run) -> None:
    groups = json.loads(run("list", "--json").out)
    assert list(groups) == [
        "attacks",
        "defenses",
        "repairs",
        "detectors",
        "schemes",
        "backends",
        "architectures",
        "data",
    ]
    assert {entry["name"] for entry in groups["defenses"]} == set(DEFENSES)
    assert all(entry["name"] and entry["summary"] for entries in groups.values() for entry in entries)
    assert json.loads(run("list", "defenses", "--json").out) == groups["defenses"]
    assert all(name in run("list").out for name in groups)


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["list", "nothing"],
        ["harden"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--seed", "-1"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--limit", "many"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--scheme", "int9"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--rounding", "magic"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--backend", "abacus"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--set", "flip_wieght=1"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--set", "sweeps=many"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--target", "3"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--input-shape", "3,32"],
        ["harden", "model.pt2", "--data", "data", "-o", "out", "--mean", "a,b,c", "--std", "1,1,1"],
        ["attack", "unheard-of", "--data", "data", "-o", "out"],
        ["attack", "pq-backdoor", "--data", "data", "-o", "out"],
        ["demo", "--victim", "int3", "-o", "out"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_4(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, *(["--quiet"] if "-o" in arguments else []))
    assert done.code == EXIT_USAGE
    assert len(done.error) > 30
    assert done.out == ""


def test_unknown_settings_are_answered_with_the_fields_and_their_defaults() -> None:
    with pytest.raises(UsageError, match=r"'lr' is unknown; efrap-released takes .*iterations=10000, learn"):
        settings.build(DEFENSES["efrap-released"].build, ["lr=1"], "efrap-released")
    with pytest.raises(UsageError, match="nearest takes bias_correction=False"):
        settings.build(DEFENSES["nearest"].build, ["lr=1"], "nearest")
    for pair in ("iterations=1.5", "learning_rate=nan", "normalization=other", "iterations", "iterations=1=2"):
        with pytest.raises(UsageError, match="efrap-released takes"):
            settings.build(DEFENSES["efrap-released"].build, [pair], "efrap-released")
    with pytest.raises(UsageError, match="given twice"):
        settings.build(DEFENSES["efrap"].build, ["sweeps=1", "sweeps=2"], "efrap")
    method = settings.build(DEFENSES["efrap"].build, ["flip-weight=1e-3", "flip_error=neuron", "sweeps=2"], "efrap")
    assert (method.flip_weight, method.flip_error, method.sweeps) == (1e-3, "neuron", 2)


def test_a_bug_is_one_line_that_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise ZeroDivisionError("a\nb \x1b[31m")

    monkeypatch.setitem(list_verb.GROUPS, "schemes", broken)
    done = run("list", "schemes")
    assert done.code == EXIT_ERROR
    assert "unexpected ZeroDivisionError: a b \\x1b[31m; this is a bug in Quantinel" in done.error
    monkeypatch.setenv(guard.DEBUG_VARIABLE, "1")
    assert "Traceback" in run("list", "schemes").err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), EXIT_ERROR, "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), EXIT_ERROR, "not enough"),
        (SystemExit(0), EXIT_ERROR, "ended from inside"),
        (OSError(28, "No space left on device", "there"), EXIT_ERROR, "there: the disk is full"),
        (PermissionError(13, "Permission denied", "there"), EXIT_ERROR, "there: Permission denied"),
        (BaseException("panicked"), EXIT_ERROR, "unexpected BaseException: panicked"),
    ],
    ids=repr,
)
def test_other_errors(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str) -> None:
    def fails() -> dict[str, str]:
        raise error

    monkeypatch.setitem(list_verb.GROUPS, "schemes", fails)
    done = run("list", "schemes")
    assert done.code == code
    assert words in done.error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_unwind(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    def signalled() -> dict[str, str]:
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal came too late")
        finally:
            os.kill(os.getpid(), number)  # impatient: cleaning up goes on
            (tmp_path / "cleaned").touch()

    # A parent such as nohup hands SIGHUP down as ignored, which the command line respects.
    inherited = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        before = signal.getsignal(number)
        monkeypatch.setitem(list_verb.GROUPS, "schemes", signalled)
        done = run("list", "schemes")
        assert done.code == code
        assert done.err == f"quantinel: stopped by {number.name}; no unfinished output was left\n"
        assert (tmp_path / "cleaned").exists()
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)


def test_an_ignored_hangup_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``nohup quantinel ...`` goes on when the terminal closes."""

    def signalled() -> dict[str, str]:
        os.kill(os.getpid(), signal.SIGHUP)
        return {}

    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setitem(list_verb.GROUPS, "schemes", signalled)
        assert run("list", "schemes").code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_a_closed_pipe_is_silent() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "quantinel", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "quantinel", "--version"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == EXIT_ERROR
    assert done.stderr == b"quantinel: error: the disk is full; free some space and run again\n"


def test_warnings_of_the_library_become_notes(run: Run, monkeypatch: pytest.MonkeyPatch, hardened: Path) -> None:
    import quantinel.pipeline.verify as module

    original = module.verify

    def talkative(*arguments: object) -> object:
        logging.getLogger("quantinel.model.loading").warning("weights are\nconverted")
        logging.getLogger("torch.something").warning("internal")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "verify", talkative)
    done = run("verify", hardened)
    assert done.err == "quantinel: verifying\nquantinel: note: weights are converted\n"
    assert run("verify", hardened, "--quiet").err == ""


def test_a_factory_that_ends_the_program_is_no_pass(run: Run, tiny: Tiny, empty: Path) -> None:
    command = [part.replace(":quadrants", ":exits") for part in tiny.harden(empty / "out")]
    done = run(*command)
    assert done.code == EXIT_ERROR
    assert done.error
    assert not list(empty.iterdir())


def test_main_takes_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quantinel", "list", "backends"])
    assert main() == EXIT_PASS
    assert "onnxruntime-x86" in capsys.readouterr().out
    assert {EXIT_PASS, EXIT_FINDINGS, EXIT_ERROR, EXIT_UNSUPPORTED, EXIT_USAGE} == set(range(5))
