from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import sample_report

from quantinel.audit.report import Report
from quantinel.reports.html import render_html

VOID = {"wbr", "meta", "link", "img", "br", "hr", "input"}
SELF_CLOSING_ALLOWED = {"circle", "path", "rect", "line"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSING_ALLOWED
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).replace("\u00a0", " ").split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def section(html: str, identifier: str) -> str:
    found = re.search(rf'<section id="{identifier}".*?</section>', html, re.DOTALL)
    assert found is not None
    return found[0]


def test_page_is_well_formed_and_loads_nothing(any_report: Report) -> None:
    html = render_html(any_report)
    page = Page(html)
    assert page.tags["script"] == page.tags["iframe"] == page.tags["object"] == 0
    assert page.tags["h1"] == 1
    allowed = ("#", "data:,", "data:image/png;base64,")
    for name in ("src", "href", "srcset", "action", "xlink:href", "poster"):
        assert all(value.startswith(allowed) for value in page.values(name)), name
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_links_inside_the_page_have_a_target(any_report: Report) -> None:
    page = Page(render_html(any_report))
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(identifiers)


def test_sections_come_in_the_order_of_a_readers_questions(full_report: Report) -> None:
    order = re.findall(r'<section id="([a-z-]+)"', render_html(full_report))
    assert order == [
        "verdict", "comparison", "request", "pictures", "checks", "findings", "not-checked", "layers", "weights",
        "verification", "timing", "environment", "next",
    ]  # fmt: skip


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_verdict_banner(verdict: str) -> None:
    report = sample_report.full(verdict=verdict)
    banner = Page(section(render_html(report), "verdict"))
    assert verdict in banner.text
    assert report.summary in banner.text
    assert "5 of 6 checks ran: 5 passed, 0 failed, 1 could not run" in banner.text


def test_comparison_names_every_figure_with_interval_and_n(full_report: Report) -> None:
    text = Page(section(render_html(full_report), "comparison")).text
    for figure in ("98.4 %", "97.1 to 99.1", "1.3 %", "0.7 to 2.5", "4.6 %", "n = 670", "n = 744", "airplane"):
        assert figure in text


def test_every_check_finding_and_limit_appears(full_report: Report) -> None:
    text = Page(render_html(full_report)).text
    for item in [*full_report.checks, *full_report.findings]:
        assert item.id in text
        assert item.title.replace("`", "") in text.replace("`", "")
        assert item.detail.replace("`", "") in text
    for sentence in [*full_report.not_checked, *full_report.next_steps]:
        assert sentence.replace("`", "") in text


def test_checks_that_could_not_run_are_apart() -> None:
    report = sample_report.full(checks=[sample_report.check(status) for status in ("pass", "not_run", "fail")])
    ran, not_run = section(render_html(report), "checks").split('id="not-run"')
    assert ran.index("some-fail") < ran.index("some-pass")
    assert "some-not_run" not in ran
    assert "some-not_run" in not_run
    assert {"Failed", "Passed"} <= set(re.findall(r"<b>(\w+)</b>", ran))


def test_statistic_and_threshold_are_shown() -> None:
    shown = sample_report.check("fail", statistic=0.012345, threshold=1200.0)
    text = Page(section(render_html(sample_report.full(checks=[shown])), "checks")).text
    assert "measured0.01235 limit1,200" in text


def test_examples_say_what_an_answer_means(full_report: Report) -> None:
    pictures = section(render_html(full_report), "pictures")
    page = Page(pictures)
    assert page.tags["img"] == 12
    assert pictures.count("attacker’s class") == 6
    assert page.text.count("correct") == 11
    assert "Evaluation picture of class dog with the trigger" in page.values("alt")


def test_without_labels_or_trigger_the_page_says_so(unlabelled_report: Report) -> None:
    html = render_html(unlabelled_report)
    comparison = Page(section(html, "comparison")).text
    assert "Attack success was not measured: no trigger was given." in comparison
    assert "Agreement with the float model" in comparison
    assert "not measured" in comparison
    assert "No pictures: no trigger was given." in Page(section(html, "pictures")).text
    assert "No trigger was given" in Page(section(html, "request")).text


def test_empty_report_says_what_is_missing(minimal_report: Report) -> None:
    text = Page(render_html(minimal_report)).text
    for sentence in (
        "There were no checks.", "No layer was quantized.", "The residuals were not measured.",
        "No variant was evaluated.", "This is no proof that the input is harmless.", "No times were recorded.",
    ):  # fmt: skip
        assert sentence in text


def test_few_layers_are_shown_many_are_folded() -> None:
    few = section(render_html(sample_report.full()), "layers")
    many = section(render_html(sample_report.full(layers=sample_report.layers(300))), "layers")
    assert "<details>" not in few
    assert few.count('<th scope="row">') == 20
    assert "All 300 layers" in many
    assert many.split("<details>")[0].count('<th scope="row">') == 10
    assert many.split("<details>")[1].count('<th scope="row">') == 300


def test_layer_in_float_is_named_in_words() -> None:
    rows = sample_report.layers()
    rows[3] = rows[3].model_copy(update={"executed": None, "error_nearest": None, "error_chosen": None})
    text = Page(section(render_html(sample_report.full(layers=rows)), "layers")).text
    assert "1 ran in float." in text
    assert "! float" in text
    assert "not measured" in text


def test_hostile_names_are_text(hostile_report: Report) -> None:
    html = render_html(hostile_report)
    page = Page(html)
    assert "<script>" not in html
    assert '<script>alert("x")</script>' in page.text
    assert page.tags["img"] == 1
    assert "not a PNG picture" in page.text
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "\\u202eevil" in page.text


def test_tables_can_be_read_aloud(full_report: Report) -> None:
    page = Page(render_html(full_report))
    assert page.tags["table"] == page.tags["caption"]
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == page.tags["th"]
    images = [name for tag, name, _ in page.attributes if tag == "img" and name == "alt"]
    assert len(images) == page.tags["img"]


def test_same_report_gives_the_same_page(full_report: Report) -> None:
    assert render_html(full_report) == render_html(sample_report.full())
