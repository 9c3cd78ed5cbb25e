from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.tables.__main__ import main
from tests.bench.made_rows import EFRAP, made_row

from quantinel.bench.blocks import read_options, replace_blocks
from quantinel.bench.row_file import append_rows
from quantinel.bench.suite_files import load_suite
from quantinel.bench.tables import PARTS, TableOptions
from quantinel.errors import InputError, UsageError

ROOT = Path(__file__).parents[2]
TEXT = "before\n<!-- table:x -->\nold\n<!-- end:x -->\nbetween\n<!-- suite:y a=1 -->\nold\n<!-- end:y -->\nafter"
SUITE = """
title = "Made"
[data.cifar10]
test = "bundled:test"
[models.victim]
victim = "bundled:victim_int8"
data = "cifar10"
[[cells]]
models = "victim"
schemes = "int8"
defenses = ["nearest", "efrap"]
"""


def test_blocks_are_replaced_between_their_markers() -> None:
    made = replace_blocks(TEXT, "table", lambda name, options: f"| {name}{options} |")
    assert made == TEXT.replace("old", "| x |", 1)
    made = replace_blocks(TEXT, "suite", lambda name, options: f"| {name} {options} |\n")
    assert "<!-- suite:y a=1 -->\n| y a=1 |\n<!-- end:y -->\nafter" in made
    assert "<!-- table:x -->\nold\n" in made
    assert replace_blocks(TEXT, "suite", lambda *_: None) == TEXT


def test_a_block_without_an_end_is_an_error() -> None:
    with pytest.raises(InputError, match="<!-- end:y -->"):
        replace_blocks(TEXT.replace("<!-- end:y -->", ""), "table", lambda *_: "")


def test_options_are_those_of_the_command() -> None:
    options, parts = read_options("columns=model,cda sort=-cda only='victim-* x' missing parts=auc")
    assert options == TableOptions(("model", "cda"), ("-cda",), ("victim-* x",), True)
    assert parts == ("auc",)
    assert read_options("") == (TableOptions(), PARTS)
    for wrong in ("colums=model", "parts=figure"):
        with pytest.raises(UsageError, match="did you mean"):
            read_options(wrong)
    with pytest.raises(InputError, match="quote"):
        read_options("only='x")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "suites").mkdir(parents=True)
    (tmp_path / "benchmarks" / "suites" / "made.toml").write_text(SUITE, "utf-8")
    (tmp_path / "README.md").write_text("<!-- suite:made -->\n<!-- end:made -->\n", "utf-8")
    return tmp_path


def test_a_suite_without_rows_is_named_and_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], project) == 0
    assert "suite made has no rows yet" in capsys.readouterr().out


def test_check_fails_when_a_figure_and_its_row_differ(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = load_suite(project / "benchmarks" / "suites" / "made.toml")
    results = project / "benchmarks" / "results" / "made.jsonl"
    append_rows(results, [made_row(suite, EFRAP, cda=90.0, asr=2.0)])
    assert main(["--check"], project) == 1
    assert "README.md" in capsys.readouterr().out
    assert main([], project) == 0
    assert main(["--check"], project) == 0
    readme = project / "README.md"
    assert "90.00 [88.0, 91.7]" in readme.read_text("utf-8")
    assert "not run" in readme.read_text("utf-8")  # nearest has no row
    readme.write_text(readme.read_text("utf-8").replace("90.00", "91.00"), "utf-8")
    assert main(["--check"], project) == 1
    append_rows(results, [made_row(suite, EFRAP, cda=91.0, asr=2.0, key="new")])
    assert main(["--check"], project) == 1  # its interval is another one


def test_published_tables_equal_their_rows() -> None:
    """Every figure of README and docs comes from a committed row."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
