from __future__ import annotations

import csv
import io
import re

import pytest

from quantinel.bench.formats import FORMATS, Column, Figure, Line, Table, csv_text, latex, latex_text, markdown
from quantinel.errors import UsageError

NASTY = r"a_b & 100 % #1 {x} \cmd ^~ <i> | $5 [0]"


@pytest.fixture
def table() -> Table:
    columns = (Column("name", "name"), Column("cda", "CDA %", True))
    lines = (
        Line((NASTY, Figure(90.0, 89.0, 91.0)), ("failed: x_y",), {"command": "run --only 'a,b'"}),
        Line(("[b]", Figure(50.126, 40.0, 60.0, "range")), ("failed: x_y", "other")),
        Line(("c", None)),
    )
    return Table("figures", "Title_1", columns, lines, 0, ("Made by `quantinel bench run a_b`.",))


def test_figures_tell_intervals_from_ranges() -> None:
    assert str(Figure(91.304, 90.71, 91.84)) == "91.30 [90.7, 91.8]"
    assert str(Figure(91.304, 90.71, 91.84, "range")) == "91.30 (90.7 to 91.8)"
    assert str(Figure(0.5, digits=3)) == "0.500"


def test_markdown_has_one_cell_per_column_and_shared_footnotes(table: Table) -> None:
    text = markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 5
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert rows[3] == "| [b] <sup>1, 2</sup> | 50.13 (40.0 to 60.0) |"
    assert "<sup>1</sup> failed: x_y<br>\n<sup>2</sup> other" in text
    assert "<i>" not in text
    assert text.endswith("Made by `quantinel bench run a_b`.")


def test_latex_is_balanced_and_escaped(table: Table) -> None:
    text = latex(table)
    bare = re.sub(r"\\[\\{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"]
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:-1]
    assert len(body) == 3
    for line in body:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert not re.search(r"(?<!\\)[%#_$]", line)
        assert not line.strip().startswith("[")  # it would be the optional argument of the line break before
    assert r"\texttt{quantinel bench run a\_b}" in text
    assert r"\caption{Title\_1}" in text


def test_latex_prints_every_special_character() -> None:
    assert latex_text("\\") == r"\textbackslash{}"
    assert latex_text("{~}") == r"\{\textasciitilde{}\}"
    assert latex_text("a ` b") == r"a \textasciigrave{} b"
    assert latex_text("`--only`") == r"\texttt{-{}-only}"


def test_csv_parses_and_spells_intervals_out(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["name"] for row in rows] == [NASTY, "[b]", "c"]
    assert [float(rows[0][name]) for name in ("cda", "cda_low", "cda_high")] == [90.0, 89.0, 91.0]
    assert rows[1]["notes"] == "failed: x_y; other"
    assert rows[0]["command"] == "run --only 'a,b'"
    assert rows[2]["cda"] == rows[2]["cda_low"] == rows[2]["command"] == ""


def test_a_csv_file_holds_one_table(table: Table) -> None:
    with pytest.raises(UsageError, match="one table"):
        FORMATS["csv"]([table, table])
    assert FORMATS["markdown"]([table, table]).count("**Title_1**") == 2
