"""The web page in a real browser: it speaks as the bytes come, stops, keeps, downloads, and shows what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from orpheus import audio
from orpheus.page import WEB_DIR, headers, page
from tests.browser import Visit, launched
from tests.page_server import TAGS, PageServer, create_app, encoded, running, sound

TEXT = "Oh no, <sighs> not again, and it rained."
browser = pytest.fixture(scope="module")(launched)


@pytest.fixture
def server():
    server = PageServer()
    with running(create_app(server)) as server.url:
        yield server


@pytest.fixture
def visit(browser, server):
    """Opens the page; more of the browser's options by arguments. Nothing may be on its console at the end."""
    visits = []

    def open(**options) -> Visit:
        visits.append(Visit(browser, server.url, **options))
        visits[-1].wait(lambda: visits[-1].text("#count") and visits[-1].page.locator("#voice option").count())
        return visits[-1]

    yield open
    for one in visits:
        one.check()
        one.context.close()


def sent(server: PageServer) -> bytes:
    return b"".join(data for _, data in server.sent)


# ---- the file ----


def test_the_page_is_one_file_that_its_policy_fits():
    html, policy = page().decode(), headers()["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", html) and "@import" not in html
    assert not re.search(r'\s(style|on\w+)="', html)  # the policy would forbid both
    for tag in ("style", "script"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        files = [
            (WEB_DIR / name).read_text()
            for name in (("page.css",), ("sound.js", "picture.js", "page.js"))[tag == "script"]
        ]
        assert [content.lstrip("\n") for content in contents] == files
        for content in contents:
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none'") and "http" not in policy


def test_the_page_s_files_are_short_and_packaged():
    import tomllib

    project = tomllib.loads((WEB_DIR.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["orpheus"]
    for path in WEB_DIR.iterdir():
        assert any(path.relative_to(WEB_DIR.parent).match(pattern) for pattern in patterns), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


# ---- speaking ----


def test_it_sounds_before_the_last_bytes_are_sent(visit, server):
    server.hold_after = 2
    v = visit()
    v.speak(TEXT)
    first = v.wait(v.heard)[0]
    assert len(server.sent) == 2, "the server still holds the rest back"
    server.go_on.set()
    v.status("Done.")
    assert first["now"] < server.sent[-1][0]
    assert v.samples().tobytes() == sent(server) == audio.pcm16(sound(TEXT, 1234))
    buffers = v.heard()
    for one, after in pairwise(buffers):  # in order, and never two at a time
        assert after["when"] >= one["when"] + len(one["samples"]) / 24000 - 1e-9
    body = {"model": "stand-in", "input": TEXT, "voice": "ben", "speed": 1, "response_format": "pcm"}
    assert server.asked == [body]
    seconds = len(v.samples()) / 24000
    assert v.text("#length") == f"{seconds:.1f} s"
    assert re.fullmatch(r"\d\.\d\d s", v.text("#first")) and float(v.text("#factor")) > 0


def test_buffers_join_without_a_gap(visit):
    """Rendered by the browser itself: what sounds is the clip, sample for sample, however it came and was cut."""
    v = visit()
    wave = np.frombuffer(audio.pcm16(sound("Joined.", 3)), "<i2")
    rendered = v.page.evaluate(
        """async (bytes) => {
          const clip = new Clip();
          for (let at = 0, n = 1; at < bytes.length; at += n, n = (3 * n) % 1001) {
            clip.push(new Uint8Array(bytes.slice(at, at + n)));
          }
          const context = new OfflineAudioContext(1, clip.length + 77, RATE);
          for (let at = 0, n = 1; at < clip.length; at += n, n = (5 * n) % 2003) {
            const count = Math.min(n, clip.length - at);
            schedule(context, context.destination, clip, at, count, 77 + at);
          }
          const buffer = await context.startRendering();
          return Array.from(buffer.getChannelData(0), (x) => x * 32768);
        }""",
        list(wave.tobytes()),
    )
    wanted = np.concatenate([np.zeros(77, np.int16), wave])
    assert np.abs(rendered - wanted).max() < 1e-6  # a start time is a fraction: 1e-12 of a step is rounded away


def test_it_waits_for_a_slow_server_and_loses_nothing(visit, server):
    server.hold_after, server.chunk_s = 2, 0.2
    v = visit()
    v.speak(TEXT)
    v.status("Waiting for more…")
    server.go_on.set()
    v.status("Done.")
    assert v.samples().tobytes() == sent(server)
    whens = [buffer["when"] for buffer in v.heard()]
    assert max(np.diff(whens)) > 0.4  # the pause is there, and the rest after it


@pytest.mark.parametrize("how", ["button", "Escape", "a new text"])
def test_stopping_hangs_up(visit, server, how):
    server.hold_after = 3
    v = visit()
    v.speak("This goes on and on and on, and on and on.")
    v.wait(v.heard)
    if how == "button":
        v.page.click("#stop")
    elif how == "Escape":
        v.page.keyboard.press("Escape")
    else:
        v.speak("Hi.")
    asked = time.monotonic()
    assert server.hung_up.wait(5) and time.monotonic() - asked < 2
    if how != "a new text":
        v.status("Stopped.")
        assert v.page.is_disabled("#stop")
        before = len(v.heard())
        v.page.wait_for_timeout(300)
        assert len(v.heard()) == before and len(server.sent) == 3
    assert v.text("#history li:last-child .facts").endswith("0.8 s · seed 1234 · stopped")


def test_speed_voice_and_seed_reach_the_server(visit, server):
    v = visit()
    v.page.select_option("#voice", "anna")
    v.page.fill("#speed", "2.5")
    v.page.fill("#seed", "7")
    v.speak("Fast.")
    v.status("Done.")
    [body] = server.asked
    assert (body["voice"], body["speed"], body["seed"]) == ("anna", 2.5, 7)
    assert v.text("#pace") == "2.5 ×"
    assert v.text("#history .facts") == "anna · 2.5 × · 0.1 s · seed 7"
    v.page.fill("#seed", "seven")
    v.speak("Fast.")
    assert "must be a whole number" in v.text("#error") and len(server.asked) == 1


# ---- what was spoken ----


def test_history_replays_and_deletes(visit, server):
    v = visit()
    v.speak("One.")
    v.status("Done.")
    first, count = v.samples(), len(v.heard())
    v.speak("Two, and a bit.")
    v.status("Done.")
    assert v.page.locator("#history .said").all_inner_texts() == ["Two, and a bit.", "One."]
    count = len(v.heard())
    v.page.click("#history li:last-child .replay")
    v.wait(lambda: len(v.heard()) > count)
    v.status("Done.")
    assert (v.samples(count) == first).all() and len(server.asked) == 2
    v.page.click("#history li:last-child .delete")
    v.page.click("#history .delete")
    assert v.page.locator("#history li").count() == 0 and v.page.is_visible("#nothing")
    assert v.page.evaluate("document.activeElement.id") == "text"


@pytest.mark.parametrize("format", ["wav", "pcm", "mp3", "opus", "aac", "flac"])
def test_downloads_hold_what_was_heard(visit, server, format):
    v = visit()
    v.speak("Keep this.")
    v.status("Done.")
    v.page.select_option("#format", format)
    with v.page.expect_download() as download:
        v.page.click("#history .download")
    assert download.value.suggested_filename == f"speech-1234.{format}"
    data = Path(download.value.path()).read_bytes()
    made_here = format in ("wav", "pcm")
    assert data == (encoded(sound("Keep this.", 1234), format) if made_here else sent(server)[2 * len(v.samples()) :])
    assert len(server.asked) == (1 if made_here else 2)
    if not made_here:
        assert server.asked[1] == {**server.asked[0], "response_format": format, "seed": 1234}


# ---- what goes wrong ----


def test_a_lost_connection_keeps_what_came(visit, server):
    server.break_after, server.pause_s = 2, 0.2
    v = visit()
    v.refusals = 1  # the browser reports the lost connection
    v.speak(TEXT)
    v.wait(lambda: v.text("#error"))
    assert re.fullmatch(
        r"The speech broke off after 0\.[35] s: the connection to the server was lost\. What was heard is kept\.",
        v.text("#error"),
    )
    v.status("Done.")  # it is played to where it broke off
    heard = v.samples()
    assert heard.tobytes() == sent(server)[: 2 * len(heard)] and len(heard) >= 6000
    assert v.text("#history .facts").endswith("broken off")
    count = len(v.heard())
    v.page.click("#history .replay")
    v.wait(lambda: len(v.heard()) > count)
    assert (v.samples(count) == heard).all() and v.text("#error") == ""


def test_errors_are_shown_as_text(visit, server):
    v = visit()
    v.refusals = 3
    evil = "<img src=x onerror=\"document.title='hit'\"><b>bold</b>"
    server.refuse = (400, {"error": {"message": f"bad text {evil}", "type": "invalid_request_error"}}, {})
    v.speak("Hello.")
    v.wait(lambda: v.text("#error") == f"bad text {evil}")
    assert v.text("#status") == "Not spoken." and v.page.is_disabled("#stop")
    server.refuse = (429, {"error": {"message": "8 requests wait already"}}, {"Retry-After": "3"})
    v.speak("Hello.")
    v.wait(lambda: v.text("#error") == "The server is busy: try again in 3 s. (8 requests wait already)")
    server.refuse = (500, {"detail": "no shape that is known"}, {})
    v.speak("Hello.")
    v.wait(lambda: v.text("#error").startswith("The server answered 500"))
    v.speak(f"<script>document.title='hit'</script> {evil}")
    v.status("Done.")
    assert v.text("#error") == ""
    assert v.text("#history .said") == f"<script>document.title='hit'</script> {evil}"
    assert v.page.title() == "Orpheus" and v.page.locator("img, b, li script").count() == 0
    v.page.click("#history .delete")
    v.speak("   ")
    assert v.text("#error") == "There is nothing to speak: write a text first." and len(server.asked) == 4


def test_a_server_that_is_gone(browser):
    server = PageServer()
    with running(create_app(server)) as server.url:
        v = Visit(browser, server.url)
        v.wait(lambda: v.page.locator("#voice option").count() == 2)
    v.refusals = 1
    v.speak("Hello.")
    v.wait(lambda: v.text("#error") == "The server can't be reached. Is it still running?")
    v.check()
    v.context.close()


def test_an_api_key_is_asked_for_and_kept_in_this_tab_alone(browser, server):
    server.key = "sesame"
    v = Visit(browser, server.url)
    v.wait(lambda: "enter it under “API key”" in v.text("#error"))
    v.page.fill("#key", "sesame")
    v.page.press("#key", "Tab")
    v.wait(lambda: v.page.locator("#voice option").count() == 2 and not v.text("#error"))
    v.speak("Open.")
    v.status("Done.")
    stored = v.page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
    assert stored == [{"orpheus-key": "sesame"}, {}, ""]
    assert "sesame" not in v.page.url and "sesame" not in json.dumps(server.asked)
    v.refusals = 2  # the two questions before the key
    v.check()
    v.context.close()


def test_foreign_scripts_do_not_run(visit):
    v = visit()
    blocked = v.page.evaluate(
        """() => {
          const tried = [];
          const script = document.createElement("script");
          try {
            script.text = "document.title = 'hit'";
            document.head.append(script);
          } catch (e) { tried.push(e.name); }
          try { document.body.innerHTML = "<b>x</b>"; } catch (e) { tried.push(e.name); }
          return tried;
        }"""
    )
    assert blocked == ["TypeError", "TypeError"] and v.page.title() == "Orpheus"
    assert all("TrustedScript" in p or "TrustedHTML" in p for p in v.problems)
    v.problems.clear()


# ---- hands, eyes, sizes ----


def test_everything_by_keyboard(visit, server):
    v = visit()
    keys = v.page.keyboard
    assert v.page.evaluate("document.activeElement.id") == "text"
    keys.type("No mouse here.")
    seen = []
    for _ in range(30):
        keys.press("Tab")
        name = v.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        if name in ("", "text") or "Text" in name:
            break
        seen.append(name)
        width = v.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width == "3px", f"{name} does not show its focus"
    assert seen == [*TAGS, "voice", "format", "speed", "seed", "API key", "speak"]
    v.page.focus("#speed")
    keys.press("ArrowRight")
    assert v.text("#pace") == "1.05 ×"
    v.page.focus("#seed")
    keys.press("Control+Enter")
    v.wait(v.heard)
    assert not v.page.is_disabled("#stop")
    v.page.focus("#stop")
    keys.press("Enter")
    v.status("Stopped.")
    assert v.page.evaluate("document.activeElement.id") == "speak"  # not lost with the button that is off now
    keys.press("Enter")
    v.status("Done.")
    assert len(server.asked) == 2


def test_tags_go_to_the_cursor(visit, server):
    v = visit()
    v.page.fill("#text", "Well then.")
    v.page.evaluate("document.getElementById('text').setSelectionRange(4, 4)")
    v.page.click("text=<sigh>")
    assert v.page.input_value("#text") == "Well <sigh> then."
    assert v.page.evaluate("[document.activeElement.id, document.activeElement.selectionStart]") == ["text", 11]
    v.page.keyboard.type("!")
    assert v.page.input_value("#text") == "Well <sigh>! then."
    assert v.text("#count") == "18 of 4,096 characters"


def test_many_tags_are_folded_and_the_limit_is_shown(visit, server):
    server.tags = [f"<tag{number}>" for number in range(40)]
    server.limit = 5
    v = visit()
    assert v.page.locator("#tags button").count() == 15
    v.page.click("text=26 more…")
    assert v.page.locator("#tags button").count() == 40
    assert v.page.evaluate("document.activeElement.textContent") == "<tag14>"
    v.speak("😀😀😀😀😀")  # five characters, though ten in JavaScript
    v.status("Done.")
    v.speak("Hello!")
    assert v.text("#error") == "The text has 6 characters, and this server takes 5: shorten it."
    assert "over" in v.page.get_attribute("#count", "class")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_the_screen_and_the_finger(visit, server, width):
    v = visit(viewport={"width": width, "height": 700}, has_touch=True)
    v.speak("Supercalifragilisticexpialidocious" * 4)
    v.wait(lambda: v.page.locator("#history li").count())
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    for target in v.page.locator("button, select, input, textarea, summary").all():
        if target.is_visible():
            box = target.bounding_box()
            assert box["height"] >= 44 and box["width"] >= 44, (target.inner_text(), box)
            assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(visit, scheme):
    """At least 4.5 : 1 (WCAG AA) for every colour of text on what lies behind it."""
    v = visit(color_scheme=scheme)
    pairs = [("text", "page"), ("text", "card"), ("text", "field"), ("text", "soft"), ("quiet", "page"),
             ("quiet", "card"), ("quiet", "field"), ("accent-text", "accent"), ("error", "error-soft")]  # fmt: skip
    read = "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)"
    colours = {name: v.page.evaluate(read, name) for pair in pairs for name in pair}

    def luminance(colour: str) -> float:
        parts = np.array([int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    for front, back in pairs:
        low, high = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


# ---- the picture ----


def test_the_spectrogram_shows_the_tones(visit):
    v = visit()
    x = np.random.default_rng(0).standard_normal((2, 256))
    re_, im = v.page.evaluate("([re, im]) => { fft(re, im); return [re, im]; }", x.tolist())
    assert np.allclose(np.array(re_) + 1j * np.array(im), np.fft.fft(x[0] + 1j * x[1]))
    tone = (0.5 * 32768 * np.sin(2 * np.pi * 1000 * np.arange(24000 * 20) / 24000)).astype("<i2")
    columns, row, level, around, peak = v.page.evaluate(
        """(bytes) => {
          const clip = new Clip();
          const binary = atob(bytes);
          clip.push(Uint8Array.from(binary, (c) => c.charCodeAt(0)));
          clip.done = true;
          picture.show(clip);
          while (picture.take());
          const bands = picture.bands[500];
          const row = bands.indexOf(Math.max(...bands));
          const used = Math.ceil(picture.seen / picture.per);
          return [used, BANDS[row].map((bin) => bin * RATE / SIZE), bands[row], bands[row + 12], picture.peaks[500]];
        }""",
        base64.b64encode(tone.tobytes()).decode(),
    )
    assert columns == 800  # 20 s in steps of 150 samples are 3200 spectra, four to a column
    assert row[0] - 24 <= 1000 <= row[1] + 24
    assert level == 1 and around < 0.3  # -6 dBFS is above the loudest that is told apart
    assert peak == pytest.approx(0.5, abs=1e-3)


def test_the_picture_is_drawn(visit, server):
    v = visit()
    v.speak(TEXT)
    v.status("Done.")
    colours = v.page.evaluate(
        """() => {
          const canvas = document.getElementById("picture");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    assert colours > 100
    assert v.text("#clock") == "1.2 s / 1.2 s" and v.page.is_hidden("#empty")
