from __future__ import annotations

import re

import pytest
import sample_scan
from test_html import Page, section

from quantinel.audit.rules import RULES
from quantinel.audit.scan_report import ScanReport
from quantinel.reports.scan_html import render_scan_html


@pytest.fixture(params=["failing", "passing", "minimal", "hostile"])
def any_scan(request: pytest.FixtureRequest) -> ScanReport:
    return getattr(sample_scan, request.param)()  # type: ignore[no-any-return]


def text_of(report: ScanReport, part: str | None = None) -> str:
    html = render_scan_html(report)
    return Page(html if part is None else section(html, part)).text


def test_page_is_well_formed_and_loads_nothing(any_scan: ScanReport) -> None:
    html = render_scan_html(any_scan)
    page = Page(html)
    assert page.tags["script"] == page.tags["iframe"] == page.tags["object"] == 0
    assert page.tags["h1"] == 1
    for name in ("src", "href", "srcset", "action", "poster"):
        assert all(value.startswith(("#", "data:,", "data:image/png;base64,")) for value in page.values(name)), name
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_links_and_tables_are_complete(any_scan: ScanReport) -> None:
    page = Page(render_scan_html(any_scan))
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(identifiers)
    assert page.tags["table"] == page.tags["caption"]
    assert len([1 for tag, name, _ in page.attributes if tag == "img" and name == "alt"]) == page.tags["img"]


def test_what_was_found_and_what_to_do_come_first() -> None:
    order = re.findall(r'<section id="([a-z-]+)"', render_scan_html(sample_scan.failing()))
    assert order == [
        "verdict", "findings", "next", "triggers", "checks", "not-checked", "classes", "weights", "request", "timing",
        "environment",
    ]  # fmt: skip


def test_the_banner_names_verdict_summary_and_counts() -> None:
    report = sample_scan.failing()
    banner = text_of(report, "verdict")
    assert "FAIL" in banner
    assert report.summary in banner
    assert "10 checks: 4 passed, 3 failed, 2 undecided, 1 not run." in banner


def test_findings_are_explained_once_and_accepted_ones_stay() -> None:
    text = text_of(sample_scan.failing(), "findings")
    for rule in ("QCB001", "QCB002", "QCB003"):
        assert text.count(RULES[rule].explanation) == 1
    assert "Accepted until 2030-01-31: Trained for this grid by ourselves; ticket 4711." in text
    assert "QCB006 was accepted, but that has expired: it counts again (2020-01-01)" in text


def test_checks_show_figure_limit_and_false_alarms() -> None:
    html = section(render_scan_html(sample_scan.failing()), "checks")
    judged, not_judged = html.split('id="not-judged"')
    assert "0 of 60 harmless" in judged
    assert "uncalibrated: no threshold" in not_judged
    assert "it is no ONNX file" in not_judged
    assert "block-outliers" in not_judged
    assert "Time budget: 1 min 0 s" in Page(html).text


def test_recovered_triggers_are_pictures_with_answers() -> None:
    html = section(render_scan_html(sample_scan.failing()), "triggers")
    page = Page(html)
    assert page.tags["img"] == 2 + 2 * 6
    assert html.count("suspected class</span>") == 5
    assert page.text.count("unchanged") == 6


def test_classes_are_bars_and_the_suspect_is_marked() -> None:
    text = text_of(sample_scan.failing(), "classes")
    assert "airplane (suspected)" in text
    assert "10.0 % → 16.0 %" in text
    assert "91.8 % [87.8 to 94.6], n = 256" in text


def test_without_images_the_page_says_so() -> None:
    report = sample_scan.minimal()
    text = text_of(report)
    for sentence in (
        "There were no checks.", "No trigger was recovered.", "Not measured: no images were given.",
        "This is no proof that the model is harmless.", "The residuals were not measured.",
    ):  # fmt: skip
        assert sentence in text


def test_hostile_names_are_text() -> None:
    html = render_scan_html(sample_scan.hostile())
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "not a PNG picture" in html
    assert '<script>alert("x")</script>' in Page(html).text


def test_same_report_gives_the_same_page() -> None:
    assert render_scan_html(sample_scan.failing()) == render_scan_html(sample_scan.failing())
