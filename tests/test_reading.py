"""Reading long text: pieces in order, one piece is generate(), what is known of each, closing."""

from __future__ import annotations

import numpy as np
import pytest

from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.errors import UserError
from orpheus.inference import NoSpeech
from tests.voices import ScriptedEngine, some_codes


@pytest.fixture
def scripted(tts, layout, monkeypatch):
    """A function that makes `tts` speak scripted ids, one script a call of the engine."""

    def use(*scripts):
        class Engine(ScriptedEngine):
            calls = 0

            def stream(self, prompts, sampling, seeds):
                self.scripts = [scripts[min(self.calls, len(scripts) - 1)]]
                self.calls += 1
                return super().stream(prompts, sampling, seeds)

        engine = Engine(layout, [])
        monkeypatch.setattr(tts, "engine", engine)
        return engine

    return use


def ids_of(layout, frames: int, seed: int = 0) -> list[int]:
    return [*layout.flatten(some_codes(frames, seed)).tolist(), layout.end_of_speech]


def test_one_piece_is_generate(tts, layout, scripted):
    scripted(ids_of(layout, 6))
    whole = tts.generate("Hello there.", seed=4)[0]
    scripted(ids_of(layout, 6))
    reading = tts.read("Hello there.", sampling=SamplingOptions(seed=4))
    assert (reading.first_audio_s, reading.duration_s, reading.pieces) == (None, 0, [])
    chunks = list(reading)
    assert np.array_equal(np.concatenate(chunks), whole.samples)
    assert all(c.dtype == np.float32 and c.ndim == 1 and len(c) for c in chunks)
    (piece,) = reading.pieces
    assert (piece.text, piece.seed, piece.finish_reason, piece.tokens) == ("Hello there.", 4, "end_of_speech", 43)
    assert reading.seed == 4 and reading.tokens == 43 and reading.duration_s == whole.duration_s
    assert 0 < reading.first_audio_s <= reading.total_s


def test_closing_stops_the_engine(tts, layout, scripted):
    engine = scripted(ids_of(layout, 9))
    reading = tts.read("Hello. And more.")
    next(reading)
    reading.close()
    reading.close()
    assert engine.closed and list(reading) == []


def test_a_silent_piece_ends_it(tts, layout, scripted):
    scripted(ids_of(layout, 4), [layout.end_of_speech])
    reading = tts.read("Hello there. And more.", reading=ReadingOptions(piece_chars=12))
    with pytest.raises(NoSpeech, match="'And more.'"):
        list(reading)
    assert len(reading.pieces) == 1


@pytest.mark.parametrize("text, says", [("", "empty"), (3, "expected a string"), ("a <b", "not closed")])
def test_bad_texts_are_refused_at_once(tts, text, says):
    with pytest.raises(UserError, match=says):
        tts.read(text)
