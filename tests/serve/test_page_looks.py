"""The web page for hands and eyes: keyboard, cursor, small screens, contrast, and the picture that it draws."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.support.browser import browser, server, visit  # noqa: F401
from tests.support.page_server import TAGS

TEXT = "Oh no, <sighs> not again, and it rained."

# ---- hands, eyes, sizes ----


def test_everything_by_keyboard(visit, server):
    server.hold_after = 1
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
    server.go_on.set()
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
