"""The check-up's page in a browser, without a network."""

from __future__ import annotations

from typing import Any

from orpheus.config import PRESETS, CorpusOptions
from orpheus.data.checkup.examine import Ears, examine
from orpheus.data.checkup.facts import facts
from orpheus.data.checkup.report import write_report
from tests.support.browser import browser  # noqa: F401
from tests.support.corpus_fixtures import write_metadata


def test_the_page_is_whole_without_a_network(browser: Any, tmp_path):
    options = CorpusOptions(dataset=str(write_metadata(tmp_path / "voice", ".csv")), cache_dir=tmp_path)
    up = examine(options, Ears(missing=["speakers: not here"]), 24.0, progress=False)
    path = write_report(tmp_path / "report.html", up, [*facts(up, PRESETS["tiny"])])
    page = browser.new_context(offline=True).new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{path}")
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == [] and said == []
    assert page.locator("h2").count() == 1 + len(up.findings)
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
