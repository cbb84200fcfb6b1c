"""The web page with the real server and the embedded voice: it sounds while the model still speaks."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.audio.recordings import pcm16, wav_header
from orpheus.config import PRESETS, ReadingOptions, SamplingOptions, embedded_path
from orpheus.speak.inference import OrpheusInference
from tests.support.browser import Visit, browser  # noqa: F401
from tests.support.page_server import running

TEXT = "It is a sunny day. <laughs> We walk to the park."


class Paced:
    """A voice whose readings wait after the first chunks until `go_on` is set; it notes when each chunk was made."""

    def __init__(self, tts: OrpheusInference) -> None:
        self.tts = tts
        self.go_on = threading.Event()
        self.made: list[float] = []
        self.closed = threading.Event()

    def __getattr__(self, name: str):
        return getattr(self.tts, name)

    def read(self, *arguments, **more):
        return PacedReading(self, self.tts.read(*arguments, **more))


class PacedReading:
    def __init__(self, voice: Paced, reading) -> None:
        self.voice, self.reading = voice, reading

    def __getattr__(self, name: str):
        return getattr(self.reading, name)

    def __iter__(self):
        for number, chunk in enumerate(self.reading):
            if number == 4:
                self.voice.go_on.wait(20)
            self.voice.made.append(time.time())
            yield chunk

    def close(self) -> None:
        self.reading.close()
        self.voice.closed.set()


@pytest.fixture(scope="module")
def tts() -> OrpheusInference:
    tiny = PRESETS["tiny"]
    return OrpheusInference(None, base=embedded_path(tiny.base), codec=embedded_path(tiny.codec), device="cpu")


@pytest.fixture
def voice(tts):
    return Paced(tts)


@pytest.fixture
def visit(browser, voice):
    from orpheus.serve.app import create_app

    with running(create_app(voice)) as url:
        v = Visit(browser, url)
        v.wait(lambda: v.page.locator("#voice option").count() == 3)
        yield v
        v.check()
        v.context.close()


def test_it_sounds_while_the_model_still_speaks(visit, voice, tts):
    visit.page.select_option("#voice", "leo")
    visit.page.fill("#seed", "7")
    visit.speak(TEXT)
    first = visit.wait(visit.heard)[0]
    assert len(voice.made) <= 4, "the model waits"
    voice.go_on.set()
    visit.status("Done.")
    assert first["now"] < voice.made[-1]
    read = tts.read(TEXT, "leo", SamplingOptions(seed=7), ReadingOptions(guard=True))
    whole, note = np.concatenate(list(read)), read.note
    assert note.startswith("Synthetic speech, made by a computer. Voice: leo, model: ") and "seed: 7" in note
    assert visit.samples().tobytes() == pcm16(whole)

    for format in ("wav", "flac", "mp3"):
        visit.page.select_option("#format", format)
        with visit.page.expect_download() as download:
            visit.page.click("#history .download")
        data = Path(download.value.path()).read_bytes()
        if format == "wav":
            assert data == wav_header(len(whole), note) + pcm16(whole)
            continue
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate_hz == 24000
        if format == "flac":
            assert samples.astype("<i2").tobytes() == pcm16(whole)
        else:
            assert len(whole) <= len(samples) <= len(whole) + 3 * 1152  # whole frames, and what the coder adds


def test_stop_ends_the_model_s_work(visit, voice):
    visit.speak(TEXT)
    visit.wait(visit.heard)
    visit.page.keyboard.press("Escape")
    visit.status("Stopped.")
    voice.go_on.set()
    assert voice.closed.wait(3)
    made = len(voice.made)
    time.sleep(0.3)
    assert len(voice.made) == made <= 8


def test_what_the_server_refuses_is_said(visit, voice):
    voice.go_on.set()
    visit.refusals = 1
    visit.speak("A tag that is <not closed.")
    visit.wait(lambda: "is not closed" in visit.text("#error"))
    assert visit.text("#count") == "26 of 4,096 characters"
