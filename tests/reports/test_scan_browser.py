"""The page of a scan in a real browser: both colour schemes, a phone, nothing loaded, nothing cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_scan
from tests.bench import chromium
from tests.bench.chromium import Browser

from quantinel.reports.scan_html import render_scan_html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("name", ["failing", "passing", "minimal", "hostile"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_nothing_overflows_and_nothing_is_loaded(
    browser: Browser, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page = tmp_path / "scan.html"
    page.write_text(render_scan_html(getattr(sample_scan, name)()), "utf-8")
    browser.problems.clear()
    browser.view(width, 900, dark)
    browser.open(page.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        browser.evaluate("performance.getEntriesByType('resource').filter((r) => !r.name.startsWith('data:')).length")
        == 0
    )
    assert browser.evaluate("Array.from(document.images).every((image) => image.naturalWidth > 0)")
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) < 64) == dark
    assert browser.problems == []
