"""`--help` and `--version`: quick, complete, with examples."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.cli.tiny_cli import Run

VERBS = ("harden", "scan", "verify", "evaluate", "report", "list", "attack", "demo")
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "matplotlib")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["harden", "--help"], ["harden"]], ids=" ".join)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from quantinel.cli.main import main; code = main(sys.argv[1:]);"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_help_lists_every_verb(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"\n  {verb} " in done.out for verb in VERBS)
    assert done.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert f"\n    quantinel {verb}" in done.out
    summary = done.out.split("\n\n")[1].strip()
    assert len(summary) > 20
    option_lines = [line for line in done.out.splitlines() if line.startswith("  --")]
    assert all(len(line.split("  ")) > 2 for line in option_lines), option_lines


def test_version(run: Run) -> None:
    from importlib import metadata

    done = run("--version")
    assert (done.code, done.out) == (0, f"quantinel {metadata.version('quantinel')}\n")


def test_no_verb_is_a_usage_error_with_help_on_stderr(run: Run) -> None:
    done = run()
    assert (done.code, done.out) == (4, "")
    assert "Usage: quantinel" in done.err


def test_python_m_quantinel() -> None:
    done = subprocess.run([sys.executable, "-m", "quantinel", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("quantinel ")


def test_no_colour_codes_without_a_terminal() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PY_COLORS")}
    for arguments in (["--help"], ["list", "schemes"], ["harden", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "quantinel", *arguments], capture_output=True, check=True, env=environment
        )
        assert b"\x1b" not in done.stdout + done.stderr
