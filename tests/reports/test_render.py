from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantinel.audit.report import Report, read_report
from quantinel.errors import UsageError
from quantinel.reports.render import RENDERERS, render


@pytest.mark.parametrize("form", ["html", "sarif", "markdown", "json"])
def test_every_format_gives_text(form: str, any_report: Report) -> None:
    text = render(any_report, form)
    assert text == RENDERERS[form](any_report)
    assert text.endswith("\n")
    text.encode("utf-8")


def test_unknown_format_names_the_known_ones(full_report: Report) -> None:
    with pytest.raises(UsageError, match="choose one of html, sarif, markdown, json"):
        render(full_report, "pdf")


def test_json_is_the_report_again(full_report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(render(full_report, "json"), "utf-8")
    assert read_report(path) == full_report
    assert json.loads(path.read_text("utf-8"))["format"] == "quantinel-report-1"


@pytest.mark.parametrize("form", ["html", "sarif", "markdown"])
def test_a_report_that_was_read_again_renders_alike(form: str, full_report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(render(full_report, "json"), "utf-8")
    assert render(read_report(path), form) == render(full_report, form)
