"""Reading long text: pieces in order, one piece is generate(), carry, constant memory, threads, closing."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest

from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.data.usual import SpeechStatistics
from orpheus.errors import UserError
from orpheus.speak import reading as reading_module
from orpheus.speak.inference import NoSpeech
from tests.support.voices import ScriptedEngine, some_codes


@pytest.fixture
def scripted(tts, layout, monkeypatch):
    """A function that makes `tts` speak scripted ids, one script a call of the engine, the last for all others."""

    def use(*scripts):
        class Engine(ScriptedEngine):
            def __init__(self):
                super().__init__(layout, [])
                self.prompts, self.context_length = [], 16384

            def stream(self, prompts, sampling, seeds):
                script = scripts[min(len(self.prompts), len(scripts) - 1)]
                self.prompts.append(list(prompts[0]))
                return ScriptedEngine(layout, [script]).stream(prompts, sampling, seeds)

        engine = Engine()
        monkeypatch.setattr(tts, "engine", engine)
        monkeypatch.setattr(tts, "usual", SpeechStatistics(loudness_db=-60.0))
        return engine

    return use


def ids_of(layout, frames: int, seed: int = 0) -> list[int]:
    return [*layout.flatten(some_codes(frames, seed)).tolist(), layout.end_of_speech]


def short(**options) -> ReadingOptions:
    return ReadingOptions(piece_chars=14, **options)


def test_one_piece_is_generate(tts, layout, scripted):
    scripted(ids_of(layout, 6))
    whole = tts.generate("Hello there.", seed=4)[0]
    reading = tts.read("Hello there.", sampling=SamplingOptions(seed=4))
    assert (reading.first_audio_s, reading.duration_s, reading.pieces, reading.finished) == (None, 0, [], False)
    chunks = list(reading)
    assert np.array_equal(np.concatenate(chunks), whole.samples)
    assert all(c.dtype == np.float32 and c.ndim == 1 and len(c) for c in chunks) and len(chunks) > 3
    (piece,) = reading.pieces
    assert (piece.text, piece.seed, piece.finish_reason, piece.tokens) == ("Hello there.", 4, "end_of_speech", 43)
    assert reading.seed == 4 and reading.tokens == 43 and reading.duration_s == whole.duration_s and reading.finished
    assert 0 < reading.first_audio_s <= reading.total_s


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_pieces_come_out_whole(tts, layout, scripted, frames):
    scripted(ids_of(layout, frames))
    assert np.array_equal(np.concatenate(list(tts.read("Hi.", sampling=SamplingOptions(seed=0)))),
                          tts.generate("Hi.", seed=0)[0].samples)  # fmt: skip
    assert len(np.concatenate(list(tts.stream("Hi.", seed=0)))) == frames * 2048


def test_pieces_come_in_order_each_with_its_seed(tts, layout, scripted):
    engine = scripted(*(ids_of(layout, n, n) for n in (4, 5, 6)))
    reading = tts.read("Hello there.\n\n<laughs> More.\nThe end.", sampling=SamplingOptions(seed=7), reading=short())
    samples = np.concatenate(list(reading))
    assert [p.text for p in reading.pieces] == ["Hello there.", "<laughs> More.", "The end."]
    assert [p.seed for p in reading.pieces] == [7, 8, 9] and [p.tokens for p in reading.pieces] == [29, 36, 43]
    assert engine.prompts == [tts.renderer.prompt(p.text) for p in reading.pieces]
    assert sum(p.duration_s for p in reading.pieces) == pytest.approx(len(samples) / 24000)
    first = tts.codec.decode(some_codes(4, 4), seed=7)
    assert np.allclose(samples[: len(first) - 240], first[:-240], atol=1e-5)  # the fall to zero comes after it
    told = reading.describe()
    assert told["finished"] and len(told["pieces"]) == 3 and told["seed"] == 7 and told["sampling"]["top_p"] == 0.95


def test_pieces_are_no_longer_than_what_the_voice_was_trained_on(tts, layout, scripted, monkeypatch):
    scripted(ids_of(layout, 4))
    monkeypatch.setattr(tts, "usual", SpeechStatistics(longest_text=14))
    assert tts.read("Hello there. And more. The end.").texts == ["Hello there.", "And more.", "The end."]


def test_a_voice_s_name_before_the_text_is_for_all_of_it(tts, layout, scripted, monkeypatch):
    engine = scripted(ids_of(layout, 3))
    monkeypatch.setattr(tts, "base_voices", ("tara",))
    monkeypatch.setattr(tts, "trained_voices", ())
    reading = tts.read(" tara: Hello there.\n\nAnd more.", reading=short())
    list(reading)
    assert engine.prompts == [tts.renderer.prompt(text, "tara") for text in ("Hello there.", "And more.")]
    assert reading.voice == "tara"


def test_carry_shows_the_model_the_piece_before(tts, layout, scripted):
    engine = scripted(ids_of(layout, 4, 1), ids_of(layout, 5, 2), [*ids_of(layout, 3, 3)[:-1], layout.pad],
                      ids_of(layout, 4, 4))  # fmt: skip
    reading = tts.read("Hello there. And more. The end. Not yet.", reading=short(carry=True))
    list(reading)
    continued = tts.renderer.continued
    assert engine.prompts[1] == continued("Hello there.", some_codes(4, 1), "And more.")
    assert engine.prompts[2] == continued("And more.", some_codes(5, 2), "The end.")
    # An example under way: what a training would have shown for both texts.
    both = tts.renderer.example("Hello there. And more.", some_codes(4, 1)).input_ids
    assert engine.prompts[1] == both[:-2]
    assert engine.prompts[3] == tts.renderer.prompt("Not yet.")  # the one before broke off
    assert [p.carried for p in reading.pieces] == [False, True, True, False]
    engine.context_length = len(engine.prompts[1]) + 1199
    engine.prompts.clear()
    tight = tts.read("Hello there. And more.", reading=short(carry=True))
    list(tight)
    assert engine.prompts[1] == tts.renderer.prompt("And more.")  # no room
    assert not tight.pieces[1].carried


def test_silence_after_a_carry_is_spoken_without(tts, layout, scripted):
    engine = scripted(ids_of(layout, 4, 1), [layout.end_of_speech], ids_of(layout, 5, 2))
    reading = tts.read("Hello there. And more.", sampling=SamplingOptions(seed=1), reading=short(carry=True))
    list(reading)
    second = reading.pieces[1]
    assert engine.prompts[2] == tts.renderer.prompt("And more.") and second.seed == 2 and not second.carried
    assert second.guard == ("no audio with carry: spoken without",) and second.tokens == 1 + 36


def test_memory_does_not_grow_with_the_text(tts, layout, scripted, monkeypatch):
    """2,000 words: no chunk and no codes are kept, and 240 s of speech take no more room than 20 do."""
    scripted(ids_of(layout, 10))
    codes = some_codes(10)
    ids = [int(i) for i in [*layout.flatten(codes), layout.end_of_speech]]

    class Quick:
        """Decodes nothing: this is about what is kept, not what is heard."""

        def push_many(self, streams, codes):
            return [np.full(2048, 0.1, np.float32) for _ in streams]

        def streaming(self, seed):
            return self

        def finish(self):
            return np.full(10, 0.1, np.float32)

    monkeypatch.setattr(tts, "codec", Quick())
    monkeypatch.setattr(tts.engine, "stream", lambda prompts, sampling, seeds: ((0, i) for i in ids))
    text = " ".join(f"This is the sentence with number {'abcdefg'[i % 7]}." for i in range(2000 // 7))
    reading = tts.read(text, reading=ReadingOptions(piece_chars=40, guard=True, carry=True))
    alive: list[weakref.ref] = []
    sizes: list[int] = []
    tracemalloc.start()
    try:
        for n, chunk in enumerate(reading):
            alive.append(weakref.ref(chunk))
            if n % 400 == 200:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0] - 200 * n)  # the references of this test
    finally:
        tracemalloc.stop()
    del chunk
    assert reading.finished and len(reading.pieces) == 2000 // 7 and reading.duration_s > 200
    assert sum(ref() is not None for ref in alive) == 0
    assert len(sizes) > 5 and max(sizes) < sizes[0] + 200_000  # what is known of the pieces; the audio is 20 MB


def test_readings_in_many_threads(tts, layout, scripted):
    scripted(ids_of(layout, 6))
    alone = np.concatenate(list(tts.read("Hello there. And more.", sampling=SamplingOptions(seed=1), reading=short())))
    heard: dict[int, np.ndarray] = {}

    def speak(i: int) -> None:
        reading = tts.read("Hello there. And more.", sampling=SamplingOptions(seed=1), reading=short())
        heard[i] = np.concatenate(list(reading))

    threads = [threading.Thread(target=speak, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 4 and all(np.allclose(samples, alone, atol=1e-6) for samples in heard.values())


def test_closing_stops_the_engine(tts, layout, scripted, monkeypatch):
    engine = ScriptedEngine(layout, [ids_of(layout, 9)])
    monkeypatch.setattr(tts, "engine", engine)
    reading = tts.read("Hello. And more.")
    next(reading)
    reading.close()
    reading.close()
    assert engine.closed and list(reading) == [] and not reading.finished


def test_closing_from_another_thread_stops_at_the_next_token(tts, layout, monkeypatch):
    class Slow(ScriptedEngine):
        drawn = 0

        def stream(self, *arguments):
            try:
                for item in super().stream(*arguments):
                    self.drawn += 1
                    time.sleep(0.005)
                    yield item
            finally:
                self.closed = True

    engine = Slow(layout, [ids_of(layout, 100)])
    monkeypatch.setattr(tts, "engine", engine)
    reading = tts.read("Hello.")
    thread = threading.Thread(target=lambda: list(reading))
    thread.start()
    while engine.drawn < 10:
        time.sleep(0.001)
    reading.close()
    at = engine.drawn
    thread.join(5)
    assert not thread.is_alive() and engine.drawn <= at + 1 and engine.closed and reading.pieces == []


def test_a_silent_piece_ends_it(tts, layout, scripted):
    scripted(ids_of(layout, 4), [layout.end_of_speech])
    reading = tts.read("Hello there. And more.", reading=short())
    with pytest.raises(NoSpeech, match="'And more.'"):
        list(reading)
    assert len(reading.pieces) == 1 and not reading.finished


@pytest.mark.parametrize("text, says", [("", "empty"), (3, "expected a string"), ("a <b", "not closed")])
def test_bad_texts_are_refused_at_once(tts, text, says):
    with pytest.raises(UserError, match=says):
        tts.read(text)


def test_the_contract(tts):
    """What the server builds on."""
    names = {"close", "seed", "pieces", "tokens", "duration_s", "first_audio_s", "total_s"}
    assert names <= set(dir(tts.read("Hello.")))
    fields = set(reading_module.Piece.__dataclass_fields__)
    assert {"text", "seed", "finish_reason", "finish_detail", "tokens", "duration_s", "guard"} <= fields
    defaults = ReadingOptions()
    assert (defaults.guard, defaults.retries, defaults.carry) == (False, 2, False)
