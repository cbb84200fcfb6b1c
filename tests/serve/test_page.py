"""The web page in a real browser: it speaks as the bytes come, stops, keeps, downloads, and shows what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from orpheus.audio import recordings
from orpheus.serve.page import WEB_DIR, headers, page
from tests.support.browser import Visit, browser, server, visit  # noqa: F401
from tests.support.page_server import PageServer, create_app, encoded, running, sound

TEXT = "Oh no, <sighs> not again, and it rained."


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

    project = tomllib.loads((WEB_DIR.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["orpheus.serve"]
    for path in WEB_DIR.iterdir():
        assert any(path.relative_to(WEB_DIR.parent).match(pattern) for pattern in patterns), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


# ---- speaking ----


def test_it_sounds_before_the_last_bytes_are_sent(visit, server):
    server.hold_after = 2
    v = visit()
    v.speak(TEXT)
    first = v.wait(v.heard)[0]
    v.wait(lambda: len(server.sent) == 2)  # the server still holds the rest back
    server.go_on.set()
    v.status("Done.")
    assert first["now"] < server.sent[-1][0]
    assert v.samples().tobytes() == sent(server)
    buffers = v.heard()
    for one, after in pairwise(buffers):  # in order, and never two at a time
        assert after["when"] >= one["when"] + len(one["samples"]) / 24000 - 1e-9
    [body] = server.asked
    seed = body.pop("seed")
    assert body == {"model": "stand-in", "input": TEXT, "voice": "ben", "speed": 1, "response_format": "pcm"}
    assert 0 <= seed < 2**32 and sent(server) == recordings.pcm16(sound(TEXT, seed))
    seconds = len(v.samples()) / 24000
    assert v.text("#length") == f"{seconds:.1f} s"
    assert re.fullmatch(r"\d\.\d\d s", v.text("#first")) and float(v.text("#factor")) > 0


def test_buffers_join_without_a_gap(visit):
    """Rendered by the browser itself: what sounds is the clip, sample for sample, however it came and was cut."""
    v = visit()
    wave = np.frombuffer(recordings.pcm16(sound("Joined.", 3)), "<i2")
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
    gaps = [after["when"] - one["when"] - len(one["samples"]) / 24000 for one, after in pairwise(v.heard())]
    assert min(gaps) > -1e-9 and max(gaps) > 0.04  # the pause is there, and the rest after it


@pytest.mark.parametrize("how", ["button", "Escape", "a new text"])
def test_stopping_hangs_up(visit, server, how):
    server.hold_after = 3
    v = visit()
    v.speak("This goes on and on and on, and on and on.")
    v.wait(lambda: sum(len(buffer["samples"]) for buffer in v.heard()) >= 3 * 6000)  # all that was sent
    if how == "button":
        v.page.click("#stop")
    elif how == "Escape":
        v.page.keyboard.press("Escape")
    else:
        v.speak("Hi.")
    assert server.hung_up.wait(5)
    if how != "a new text":
        v.status("Stopped.")
        assert v.page.is_disabled("#stop")
        before = len(v.heard())
        v.page.wait_for_timeout(300)
        assert len(v.heard()) == before and len(server.sent) == 3
    seed = server.asked[0]["seed"]
    assert v.text("#history li:last-child .facts") == f"ben · 0.8 s · seed {seed} · stopped"


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
    seed = server.asked[0]["seed"]
    assert download.value.suggested_filename == f"speech-{seed}.{format}"
    data = Path(download.value.path()).read_bytes()
    made_here = format in ("wav", "pcm")
    assert data == (encoded(sound("Keep this.", seed), format) if made_here else sent(server)[2 * len(v.samples()) :])
    assert len(server.asked) == (1 if made_here else 2)
    if not made_here:
        assert server.asked[1] == {**server.asked[0], "response_format": format, "stream": False}


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


def test_words_that_the_voice_does_not_know_are_named(visit, server):
    v = visit()
    server.unknown = "pizza%2C%20caf%C3%A9"
    v.speak("Hello, pizza in the café.")
    v.status("Done.")
    assert v.text("#error") == "The embedded voice does not know: pizza, café"
    server.unknown = ""
    v.speak("Hello.")
    v.wait(lambda: v.text("#error") == "")


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
