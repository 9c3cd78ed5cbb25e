from __future__ import annotations

import ast

import pytest
import sample_report
import yaml
from markdown_it import MarkdownIt

from quantinel.audit.report import Report
from quantinel.reports.model_card import code, markdown, prose, render_model_card, yaml_string

FILES = ["README.md", "manifest.json", "model.onnx", "odd `name`.txt"]


def front_matter(card: str) -> dict[str, object]:
    _, text, _ = card.split("---\n", 2)
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def html(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])


def test_front_matter_is_what_the_hub_reads(full_report: Report) -> None:
    metadata = front_matter(render_model_card(full_report, FILES))
    assert metadata["base_model_relation"] == "quantized"
    assert metadata["library_name"] == "onnx"
    assert "base_model" not in metadata
    assert {"quantinel", "int8", "onnx"} <= set(metadata["tags"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("base_model", "known"),
    [("org/resnet-20", True), ("no-organisation", False), ("a/b: c", False), ("a/b\n---", False)],
)
def test_base_model_is_a_hub_name_or_absent(base_model: str, known: bool) -> None:
    metadata = front_matter(render_model_card(sample_report.full(model={"base_model": base_model}), []))
    assert metadata.get("base_model") == (base_model if known else None)


@pytest.mark.parametrize("text", ["plain", 'quote " and \\', "- list", "a: b # c", "\u2028\x85\x00", "{x}", "é ☃ 𝄞"])
def test_yaml_string_round_trips(text: str) -> None:
    assert yaml.safe_load(f"key: {yaml_string(text)}") == {
        "key": ast.literal_eval(repr(yaml.safe_load(yaml_string(text))))
    }
    assert isinstance(yaml.safe_load(yaml_string(text)), str)


def test_card_tells_figures_with_n_and_interval(full_report: Report) -> None:
    page = html(render_model_card(full_report, FILES))
    assert '<td style="text-align:right">1.3 % [0.7 to 2.5], n = 670</td>' in page
    assert '<td style="text-align:right">4.6 % [3.3 to 6.5], n = 670</td>' in page  # nearest, without the trigger
    assert page.count("<tr>") == 4


def test_card_tells_every_check_and_every_limit(full_report: Report) -> None:
    card = render_model_card(full_report, FILES)
    verified, not_checked = card.split("## What was not checked")
    for check in full_report.checks:
        assert check.title in (not_checked if check.status == "not_run" else verified)
    for sentence in full_report.not_checked:
        assert sentence in not_checked
    for finding in full_report.findings:
        assert finding.title in verified


def test_card_shows_how_to_run_and_verify(full_report: Report) -> None:
    card = render_model_card(full_report, FILES)
    snippet = card.split("```python\n")[1].split("```")[0]
    ast.parse(snippet)
    assert '{"images": images}' in snippet
    assert '["logits"]' in snippet
    assert "np.zeros((1, 3, 32, 32), dtype=np.float32)" in snippet
    assert "```sh\nquantinel verify .\n```" in card


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("PASS", "Every required check of this file ran and passed."),
        ("FAIL", "A check of this file failed: do not deploy it."),
        ("INCONCLUSIVE", "do not deploy it before they can."),
    ],
)
def test_card_promises_no_more_than_the_verdict(verdict: str, sentence: str) -> None:
    card = render_model_card(sample_report.full(verdict=verdict), [])
    assert f"**{verdict}.**" in card
    assert sentence in card


def test_files_are_listed_when_known(full_report: Report) -> None:
    card = render_model_card(full_report, FILES)
    assert "- `model.onnx`: the network" in card
    assert "- ``odd `name`.txt``" in card
    assert "## Files" not in render_model_card(full_report, [])


def test_missing_labels_and_trigger_are_said(unlabelled_report: Report, minimal_report: Report) -> None:
    card = render_model_card(unlabelled_report, [])
    assert "No trigger was given, so attack success was not measured." in card
    assert "no labels" in card
    assert "nothing was evaluated" in render_model_card(minimal_report, [])


def test_hostile_names_stay_text(hostile_report: Report) -> None:
    card = render_model_card(hostile_report, [sample_report.HOSTILE])
    assert front_matter(card)["base_model_relation"] == "quantized"
    assert "base_model" not in front_matter(card)
    page = html(card)
    assert "<script" not in page
    assert "<a " not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in card
    assert "\u202e" not in card


@pytest.mark.parametrize(
    "text",
    [
        "# head",
        "- item",
        "1. one",
        "2) two",
        "a_b_c *d*",
        "x | y",
        "<b>",
        "&lt;",
        "[a](b)",
        "![a](b)",
        "~~a~~",
        "===",
        "+ x",
    ],
)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(text))
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert rendered == f"<p>{escaped}</p>\n"


def test_markdown_leaves_decimals_alone() -> None:
    assert markdown("31.8 % of the weights") == "31.8 % of the weights"
    assert prose("run `a_b` and a_b") == "run `a_b` and a\\_b"


@pytest.mark.parametrize("text", ["plain", "a`b", "`a`", "``", "a``b`"])
def test_code_holds_backticks(text: str) -> None:
    assert MarkdownIt("commonmark").render(code(text)) == f"<p><code>{text}</code></p>\n"


def test_command_with_backticks_stays_in_its_block() -> None:
    report = sample_report.full(request={"command": "a\n```\n# not a heading"})
    assert "<h1>not a heading</h1>" not in html(render_model_card(report, []))
