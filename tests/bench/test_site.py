from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tests.bench import site_rows
from tests.bench.site_rows import HOSTILE, figures, made_row

from quantinel.bench.site import build_site
from quantinel.bench.site.build import MARKER
from quantinel.bench.site.charts import _range
from quantinel.bench.site.curves import Roc
from quantinel.bench.site.entries import file_name, gather
from quantinel.bench.site.summary import by_method, heat_map
from quantinel.bench.store import LOG, Address, Store, write_stored
from quantinel.errors import UsageError

VOID = {"wbr", "meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements, attributes and text; complains about tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path, self.html = path, path.read_text("utf-8")
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.feed(self.html)
        self.close()
        assert not self.open, path

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.path

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).replace("\u00a0", " ").split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with every kind of row, one suite without rows, one without a definition."""
    output = tmp_path_factory.mktemp("made") / "site"
    rows = {"made": [*site_rows.many(), *site_rows.troubled()], "hostile": site_rows.hostile()}
    made = site_rows.made_suite()
    empty = made.model_copy(update={"name": "empty", "published": []})
    summary = build_site({"made": made, "empty": empty, "hostile": None}, rows, None, output)
    assert summary.index == output / "index.html"
    assert (summary.suites, summary.evidence) == (3, 0)
    assert summary.cells == len(list(output.glob("*/cells/*.html")))
    return output


@pytest.fixture(scope="module")
def every_page(site: Path) -> list[Page]:
    return [Page(path) for path in sorted(site.rglob("*.html"))]


def cell(site: Path, identity: str, suite: str = "made") -> Page:
    return Page(site / suite / "cells" / f"{file_name(identity)}.html")


def test_pages_are_well_formed_and_load_nothing(every_page: list[Page]) -> None:
    for page in every_page:
        for _, name, value in page.attributes:
            assert not name.startswith("on"), page.path
            if name in ("src", "href", "srcset", "action", "poster"):
                assert not re.match(r"(?i)\s*(https?:|//|javascript:|file:|data:text)", value), (page.path, value)
        assert "default-src 'none'" in page.html
        assert "url(" not in page.html
        assert "http://" not in page.html.replace("http://www.w3.org", "")
        assert page.tags["h1"] == 1
        assert page.tags["script"] == (1 if page.path.parent.name in ("made", "empty", "hostile") else 0)


def test_links_lead_to_files_and_anchors(every_page: list[Page]) -> None:
    identifiers = {page.path.resolve(): page.values("id") for page in every_page}
    for page in every_page:
        assert len(page.values("id")) == len(set(page.values("id")))
        for link in page.values("href"):
            if link == "data:,":
                continue
            file, _, anchor = link.partition("#")
            target = (page.path.parent / unquote(file)).resolve() if file else page.path.resolve()
            assert target.is_file(), (page.path, link)
            if anchor and "=" not in anchor:
                assert anchor in identifiers[target], (page.path, link)


def test_tables_can_be_read_aloud(every_page: list[Page]) -> None:
    for page in every_page:
        assert page.tags["table"] == page.tags["caption"], page.path
        assert sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes) == page.tags["th"]
        assert page.html.count('<svg class="chart"') == page.html.count("</desc>"), page.path


def test_index_counts_cells(site: Path) -> None:
    text = Page(site / "index.html").text
    assert "Made up <b>" in text
    assert "241 ✓ measured 1 △ gate failed 1 ✗ failed 2 ○ not run" in text
    assert "✓ reproduced" in text
    assert "≠ differs" in text
    assert "Cells that have no row are not listed: its definition is not at hand." in text


def test_the_leaderboard_is_complete_without_a_script(site: Path) -> None:
    page = Page(site / "made" / "index.html")
    rows = [*site_rows.many(), *site_rows.troubled()]
    cells = {row.cell for row in rows}
    assert cells < set(page.values("data-id"))
    assert len(page.values("data-id")) == len(cells) + 2  # not run
    assert page.html.count("<tr data-") == len(cells) + 2
    assert 'id="filter" role="search" aria-label="Filter cells" hidden' in page.html
    assert page.html.count('class="chart"') == 2 + 4  # a scatter of each grid, a curve of each detector and grid
    assert "n = 10,000 clean and 9,000 triggered images" in page.text
    assert "paper 90.00" in page.text
    assert "no longer in the suite" in page.text


def test_downloads_hold_the_newest_rows(site: Path) -> None:
    found = json.loads((site / "made" / "rows.json").read_text("utf-8"))
    with (site / "made" / "rows.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["cell"] for row in found] == [row["cell"] for row in table]
    assert len({row["cell"] for row in found}) == len(found) == 243
    late = next(row for row in table if row["cell"].endswith("/late/s0"))
    assert (late["cda"], late["key"]) == ("85.0", "2" * 32)
    assert {"cda_interval.low", "extra.flips_percent", "standing", "versions.torch"} <= set(table[0])
    assert {row["standing"] for row in found} == {"reproduced", "differs", "-"}


def test_a_cell_page_tells_everything(site: Path) -> None:
    page = cell(site, "net-0/none/int8/efrap/s0")
    for words in (
        "quantinel bench run made --only net-0/none/int8/efrap/s0", "A paper, table 1", "within 5 points",
        "other images", "abc1234", "x86_64, 2 cores", "n = 10,000", "built without a store", "nearest ONNX Runtime",
    ):  # fmt: skip
        assert words in page.text, words
    history = cell(site, "net-0/none/int8/late/s0").text
    assert history.rindex("111111111111") < history.rindex("222222222222")
    assert "out of memory" in cell(site, "net-0/dormant/int2/nearest/s0").text
    failed = cell(site, "net-0/short/int8/nearest/s0").text
    assert "The attack made no victim" in failed
    assert "the gate says no" in failed
    waiting = cell(site, "net-0/none/int4/efrap/s7").text
    assert "not run" in waiting
    assert "quantinel bench run made --only" in waiting


def test_hostile_names_are_text(site: Path, every_page: list[Page]) -> None:
    for page in every_page:
        assert "<script>alert" not in page.html
        assert "\u202e" not in page.html
    hostile = [page for page in every_page if "hostile" in page.path.parts]
    assert len(hostile) == 5
    assert all("<script>alert('x')</script>&\"'`{{7*7}}/../\\u202e=cmd" in page.text for page in hostile)
    assert {path.parent.name for path in site.rglob("*") if path.is_file()} == {
        "site", "made", "empty", "hostile", "cells",
    }  # fmt: skip


def test_labels_that_spreadsheets_would_run_are_quoted(tmp_path: Path) -> None:
    row = made_row("a/none/int8/x/s0", **{**figures(50, 50), "commit": "=HYPERLINK()", "float_cda": -1.0})
    build_site({}, {"made": [row]}, None, tmp_path / "site")
    text = (tmp_path / "site" / "made" / "rows.csv").read_text("utf-8")
    assert "'=HYPERLINK()" in text
    assert ",-1.0," in text


def test_file_names_are_safe_and_different() -> None:
    names = ["a/b", "a-b", "A/b", "..", "../../etc", "", "x" * 500, HOSTILE, "ü", "a/b ", "\ud800"]
    files = [file_name(name) for name in names]
    assert len({name.lower() for name in files}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,115}", name) for name in files)
    assert file_name("efrap", plain=True) == "efrap"
    assert file_name("Index.html", plain=True) != "Index.html"


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    rows = {"made": site_rows.many(1, 1, defenses=2, seeds=1), "hostile": site_rows.hostile()}
    contents = []
    for name in ("one", "two"):
        build_site({"made": site_rows.made_suite()}, rows, None, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_an_output_is_replaced_only_on_request(tmp_path: Path) -> None:
    build_site({}, {}, None, tmp_path / "site")
    assert "There are no results yet" in Page(tmp_path / "site" / "index.html").text
    (tmp_path / "site" / "old").touch()
    with pytest.raises(UsageError, match="--force"):
        build_site({}, {}, None, tmp_path / "site")
    build_site({}, {}, None, tmp_path / "site", overwrite=True)
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", MARKER}


def test_a_thousand_cells(tmp_path: Path) -> None:
    rows = site_rows.many(4, 3, ("int8", "int4", "int6"), defenses=6, seeds=3)
    assert len(rows) >= 1000
    summary = build_site({}, {"big": rows}, None, tmp_path / "site")
    assert summary.cells == len(rows)
    page = tmp_path / "site" / "big" / "index.html"
    assert page.read_text("utf-8").count("<tr data-") == len(rows)
    assert page.stat().st_size < 2500 * len(rows)
    pages = list((tmp_path / "site").rglob("cells/*.html"))
    assert len(pages) == len(rows)
    assert max(path.stat().st_size for path in pages) < 60_000


def stored(store: Store, stage: str, inputs: dict[str, str], files: dict[str, str], code: str = "c") -> Address:
    """A result in a store."""
    where = Address(stage, f"content-{stage}", code)
    with store.write(where) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        write_stored(folder, where, f"{stage} it", {}, {}, inputs, "ok", None, 1.0)
    return where


def test_logs_and_pictures_come_from_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    layer = {"layer": "conv<1>", "weights": 10, "changed": 0.5, "error_nearest": None, "error_chosen": 0.1}
    defend = stored(store, "defend", {}, {LOG: "moved <b>weights</b>", "layers.json": json.dumps([layer])})
    digest = store.find(defend).digest  # type: ignore[union-attr]
    shown = {"clean_png": site_rows.PNG, "triggered_png": "<svg>", "label": "cat", "float_answer": "cat", "answer": "x"}
    where = stored(
        store, "evaluate", {"quantized": digest},
        {LOG: f"counted in {store.root}/objects", "pictures.json": json.dumps([shown])},
    )  # fmt: skip
    failures = store.root / "failed"
    failures.mkdir()
    (failures / "x.txt").write_text(
        "10:00:00 attack net on x86_64, torch 2\n10:00:01 failed: no memory in /a/b/c.py\n", "utf-8"
    )
    rows = [
        made_row("net/none/int8/efrap/s0", key=where.key, **figures(90, 1)),
        made_row("net/none/int8/nearest/s0", key="elsewhere", **figures(90, 1)),
        made_row("net/a/int8/nearest/s0", status="failed", error="attack net: no memory in /a/b/c.py"),
        made_row("net/b/int8/nearest/s0", status="failed", error="attack other: no memory"),
    ]
    summary = build_site({}, {"made": rows}, store, tmp_path / "site")
    assert summary.evidence == 2
    page = cell(tmp_path / "site", "net/none/int8/efrap/s0")
    assert page.text.index("moved <b>weights</b>") < page.text.index("counted in objects")
    assert "conv<1>" in page.text
    assert page.tags["img"] == 1
    assert "not a PNG picture" in page.text
    assert "does not hold this result (key elsewhere)" in cell(tmp_path / "site", "net/none/int8/nearest/s0").text
    assert "failed: no memory in c.py" in cell(tmp_path / "site", "net/a/int8/nearest/s0").text
    assert "holds no log of this failure" in cell(tmp_path / "site", "net/b/int8/nearest/s0").text


def test_summary_means_victims_only() -> None:
    rows = [
        made_row("n/none/int8/efrap/s0", float_cda=90.0, **figures(80, 0)),
        made_row("n/bad/int8/efrap/s0", float_cda=90.0, **figures(88, 10)),
        made_row("n/bad/int8/efrap/s1", float_cda=90.0, **figures(86, 30)),
        made_row("n/bad/int8/efrap/s2", status="gate_failed", **figures(10, 100)),
    ]
    line = by_method(gather({}, {"made": rows})[0])[0]
    assert (line.cells, line.of, line.cda, line.asr, line.change) == (2, 3, 87.0, 20.0, -3.0)
    assert (line.clean_cells, line.clean_change) == (1, -10.0)
    assert line.worst is not None
    assert line.worst.id.endswith("s1")


def test_heat_map_holds_victims_under_nearest_rounding() -> None:
    pages = gather({}, {"made": site_rows.many(1, 2, seeds=3)})[0]
    heat = heat_map(pages)
    assert heat is not None
    assert heat.schemes == ["float", "int4", "int8"]
    assert [line[1] for line in heat.lines] == ["pq-backdoora", "qu-anti-zationa"]
    for _, _, cells in heat.lines:
        assert [len(item.entries) for item in cells] == [3, 3, 3]
        assert [item.own for item in cells[1:]] == [item.level == 10 for item in cells[1:]]
    assert heat_map(gather({}, {"made": [made_row(**figures(90, 1))]})[0]) is None


def test_heat_map_leaves_out_nearest_rounding_with_options() -> None:
    """Regression: `nearest-bias` was one more seed of plain nearest rounding."""
    corrected: dict[str, Any] = {"defense": "nearest", "settings": {"defense": {"bias_correction": True}}}
    rows = [
        made_row("n/bad/int8/nearest/s0", **figures(88, 90)),
        made_row("n/bad/int8/nearest-bias/s0", **corrected, **figures(89, 10)),
    ]
    heat = heat_map(gather({}, {"made": rows})[0])
    assert heat is not None
    (item,) = [item for item in heat.lines[0][2] if item.entries]
    assert ([entry.cell.defense for entry in item.entries], item.asr) == (["nearest"], 90.0)


def test_roc_of_known_scores() -> None:
    roc = Roc("d", "int8", (0.4, 0.8, 0.8), (0.1, 0.4))
    assert roc.points == [(0.0, 0.0), (0.0, 2 / 3), (0.5, 1.0), (1.0, 1.0)]
    assert roc.area.value == pytest.approx(5.5 / 6)
    assert "no clean model" in Roc("d", "int8", (1.0,), ()).missing
    assert "no victim" in Roc("d", "int8", (), (1.0,)).missing


@pytest.mark.parametrize(
    ("values", "ends"), [([91.0, 92.0], (90.0, 100.0)), ([3.0], (2.5, 12.5)), ([0.0, 100.0], (0.0, 100.0)),
                         ([71.0, 89.0], (70.0, 90.0)), ([100.0], (90.0, 100.0)), ([], (0.0, 100.0))],
)  # fmt: skip
def test_the_axis_holds_all_values(values: list[float], ends: tuple[float, float]) -> None:
    assert _range(values) == ends


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from quantinel.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        caught = capfd.readouterr()
        return code, caught.out, caught.err

    return call


def test_command(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    results, output = tmp_path / "results", tmp_path / "site"
    common = ("--results", results, "--store", tmp_path / "store", "-o", output)
    code, _, error = run("bench", "site", *common)
    assert code == 4
    assert "run a suite first" in error
    results.mkdir()
    lines = [row.model_dump_json() + "\n" for row in site_rows.many(1, 1, seeds=1)]
    (results / "made.jsonl").write_text("".join(lines), "utf-8")
    code, out, error = run("bench", "site", *common)
    assert (code, error) == (0, "")
    assert str(output / "index.html") in out.replace("\n", "")
    assert f"1 suite, {len(lines)} cells" in out
    assert run("bench", "site", *common)[0] == 4
    code, out, _ = run("bench", "site", "smoke", *common, "--force", "--json")
    assert code == 0
    assert json.loads(out) == {"index": str(output / "index.html"), "suites": 1, "cells": 13, "with_logs": 0}
    assert run("bench", "site", "nosuch", *common, "--force")[0] == 4
    (output / MARKER).unlink()
    code, _, error = run("bench", "site", *common, "--force")
    assert code == 4
    assert "did not write" in error
