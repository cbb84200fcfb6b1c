"""For tests of the page: a headless Chromium, the stand-in server, and a visit that notices what must not happen."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.page_server import PageServer, create_app, running

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What the page hands to the audio hardware, and when: noted where it leaves the page, by no code of the page.
LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  const samples = Array.from(this.buffer.getChannelData(0), (x) => x * 32768);
  heard.push({ now: Date.now() / 1000, when, samples });
  return start.call(this, when);
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips the test, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)}): apt-get install chromium")
    # Root may not use the sandbox, and containers have little shared memory.
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=[*root, "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


class Visit:
    """One visit to a page. `check` fails for an error on the console and for a request to any other host."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.problems: list[str] = []
        self.refusals = 0  # answers with an error status that the test expects: browsers put them on the console
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("request", self._request)
        self.page.add_init_script(LISTEN)
        self.page.goto(url)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.problems.append(f"a request to {request.url}")

    def check(self) -> None:
        expected = [p for p in self.problems if p.startswith("Failed to load resource")]
        assert len(expected) == self.refusals, self.problems
        assert len(self.problems) == self.refusals, self.problems

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def speak(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.click("#speak")

    def wait(self, what: Callable[[], Any], timeout_s: float = 15) -> Any:
        """The first true value of `what`; it fails with the page's state when there is none in time."""
        until = time.monotonic() + timeout_s
        while not (value := what()):
            state = (self.text("#status"), self.text("#error"), self.problems) if time.monotonic() > until else None
            assert state is None, state
            self.page.wait_for_timeout(20)
        return value

    def status(self, words: str) -> None:
        """Wait until the status line says so."""
        self.wait(lambda: self.text("#status") == words)

    def heard(self) -> list[dict[str, Any]]:
        """What was scheduled so far: {now, when, samples} of each buffer."""
        return self.page.evaluate("heard")

    def samples(self, start: int = 0) -> np.ndarray:
        """The samples of the buffers from number `start` on, as 16-bit integers."""
        joined = np.concatenate([np.asarray(buffer["samples"]) for buffer in self.heard()[start:]])
        assert (joined == np.rint(joined)).all()
        return joined.astype("<i2")


@pytest.fixture
def server() -> Iterator[PageServer]:
    """The stand-in, served."""
    server = PageServer()
    with running(create_app(server)) as server.url:
        yield server


@pytest.fixture
def visit(browser: Any, server: PageServer) -> Iterator[Callable[..., Visit]]:
    """Opens the page; more of the browser's options by arguments. Nothing may be on its console at the end."""
    visits: list[Visit] = []

    def open(**options: Any) -> Visit:
        v = Visit(browser, server.url, **options)
        visits.append(v)
        v.wait(lambda: v.page.locator("#voice option").count())
        return v

    yield open
    for v in visits:
        v.check()
        v.context.close()
