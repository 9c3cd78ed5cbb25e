"""The site in a real browser: filters, sorting, links, both colour schemes, a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench import chromium, site_rows
from tests.bench.chromium import Browser

from quantinel.bench.site import build_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]
SHOWN = "Array.from(document.querySelectorAll('tr[data-id]')).filter((row) => !row.hidden)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "site"
    rows = {"made": [*site_rows.many(), *site_rows.troubled()], "hostile": site_rows.hostile()}
    build_site({"made": site_rows.made_suite(), "hostile": None}, rows, None, output)
    return output


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_problems(browser: Browser) -> Iterator[None]:
    browser.problems.clear()
    browser.view(1200, 900)
    yield
    assert browser.problems == []


def test_filter_sort_and_follow_a_link(site: Path, browser: Browser) -> None:
    browser.open((site / "index.html").as_uri())
    browser.follow(".card a[href='made/index.html']")
    assert browser.evaluate("document.getElementById('found').textContent") == "245 of 245 cells"
    browser.click("#filter input[name=q]")
    browser.type("EFRAP int4 qu-anti")
    wanted = browser.evaluate(f"{SHOWN}.map((row) => row.dataset.id)")
    assert wanted == [f"net-{model}/qu-anti-zationa/int4/efrap/s{seed}" for model in (0, 1) for seed in (0, 1)]
    assert browser.evaluate("document.getElementById('found').textContent") == "4 of 245 cells"
    assert "q=EFRAP+int4+qu-anti" in browser.evaluate("location.hash")
    for direction, order in (("ascending", 1), ("descending", -1)):
        browser.click("th[data-sort=asr] button")
        figures = browser.evaluate(f"{SHOWN}.map((row) => Number(row.cells[6].dataset.v))")
        assert figures == sorted(figures, key=lambda value: order * value)
        assert browser.evaluate("document.querySelector('th[data-sort=asr]').getAttribute('aria-sort')") == direction
    address = browser.evaluate("location.href")
    assert address.endswith("sort=-asr")
    browser.follow("tr[data-id]:not([hidden]) th a")
    assert browser.evaluate("document.querySelector('.subject').textContent") in wanted
    browser.open(address)  # a view can be linked
    assert browser.evaluate(f"{SHOWN}.length") == 4
    assert browser.evaluate(f"{SHOWN}.map((row) => Number(row.cells[6].dataset.v))") == figures
    browser.click("#reset")
    assert browser.evaluate(f"{SHOWN}.length") == 245
    assert browser.evaluate("location.hash") == ""


def test_addresses_choose_what_is_shown(site: Path, browser: Browser) -> None:
    page = (site / "made" / "index.html").as_uri()
    for address, count in (("#status=not+run", 2), ("#status=gate_failed", 1), ("#method=probe&scheme=int8", 16),
                           ("#q=nothing-like-this", 0), ("#model=no-such-model", 245), ("#cells", 245)):  # fmt: skip
        browser.open(page + address)
        assert browser.evaluate(f"{SHOWN}.length") == count, address
        assert browser.evaluate("document.getElementById('nothing').hidden") == (count > 0)
    browser.evaluate("location.hash = 'paper=differs'")
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")  # the event comes later
    assert browser.evaluate(f"{SHOWN}.every((row) => row.dataset.paper === 'differs')")


def test_figures_that_are_missing_come_last(site: Path, browser: Browser) -> None:
    for sort in ("cda", "-cda"):
        browser.open(f"{(site / 'made' / 'index.html').as_uri()}#model=net-0&attack=none&sort={sort}")
        values = browser.evaluate(
            f"{SHOWN}.filter((row) => !row.closest('table').querySelector('[data-sort=score]'))"
            ".map((row) => row.cells[5].dataset.v)"
        )
        assert values[-2:] == ["", ""]
        assert "" not in values[:-2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phone_and_both_colour_schemes(site: Path, browser: Browser, dark: bool) -> None:
    browser.view(390, 844, dark=dark)
    some = [*(site / "made" / "cells").iterdir()][:3]
    for path in [site / "index.html", *site.glob("*/index.html"), *(site / "hostile" / "cells").iterdir(), *some]:
        browser.open(path.as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, path
        ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(14, 19, 18)" if dark else "rgb(244, 246, 245)")


def test_hostile_rows_run_nothing(site: Path, browser: Browser) -> None:
    browser.open((site / "hostile" / "index.html").as_uri())
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate(f"{SHOWN}.length") == 4
