"""Reports in one HTML file."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import soundfile as sf
from matplotlib.image import imread

from orpheus.audio.pages import Html, player, spectrogram, table, tag, write_page

TONE = (0.3 * np.sin(2 * np.pi * 3000 * np.arange(24_000) / 24_000)).astype(np.float32)


def test_a_text_is_shown_letter_by_letter_and_markup_as_it_is():
    assert (
        tag("p", "<laughs> & more", Html("<b>1</b>"), class_="a")
        == '<p class="a">&lt;laughs&gt; &amp; more<b>1</b></p>'
    )
    assert "<td>&lt;sighs&gt;</td>" in table(["text"], [["<sighs>"]])


def test_a_player_holds_the_sound():
    data = re.search(r"base64,([^\"]+)", player(TONE, "a tone"))[1]
    sound, rate_hz = sf.read(io.BytesIO(base64.b64decode(data)))
    assert rate_hz == 24_000 and abs(len(sound) - len(TONE)) < 3000


def test_a_spectrogram_shows_a_tone_where_it_is():
    data = re.search(r"base64,([^\"]+)", spectrogram(TONE, "a tone"))[1]
    pixels = imread(io.BytesIO(base64.b64decode(data)))[..., :3].sum(-1)
    assert abs(pixels.mean(1).argmax() / len(pixels) - 0.75) < 0.03  # 3 of 12 kHz, from below


def test_a_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = write_page(tmp_path / "a.html", "A <b> title", tag("p", "text"), player(TONE, "x")).read_text("utf-8")
    assert "<h1>A &lt;b&gt; title</h1>" in page and not re.search(r"(src|href)=\"(?!data:)", page)
