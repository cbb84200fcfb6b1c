"""Texts that an illegal id cuts short: drawn again where nobody has heard them, and told where they have been heard."""

from __future__ import annotations

import numpy as np
import pytest

from orpheus.config import ReadingOptions, SamplingOptions
from tests.support.voices import ScriptedEngine, some_codes

TEXT = "I missed you so much, it has been a very long day."  # 3.7 s to speak, by the defaults
GUARDED = ReadingOptions(guard=True)
STEP = 1_000_003


@pytest.fixture
def drawn(tts, layout, monkeypatch):
    """A function that makes `tts` draw whole speech, but so many frames and an illegal id with the seeds given."""
    monkeypatch.setattr("orpheus.speak.inference.secrets.randbelow", lambda n: 0)

    def use(cut: dict[int, int]):
        class Engine(ScriptedEngine):
            def __init__(self):
                super().__init__(layout, [])
                self.seeds = []

            def stream(self, prompts, sampling, seeds):
                self.seeds += seeds
                scripts = []
                for seed in seeds:
                    ids = layout.flatten(some_codes(cut.get(seed, 45), seed)).tolist()
                    scripts.append([*ids, layout.pad if seed in cut else layout.end_of_speech])
                return ScriptedEngine(layout, scripts).stream(prompts, sampling, seeds)

        engine = Engine()
        monkeypatch.setattr(tts, "engine", engine)
        return engine

    return use


@pytest.mark.parametrize("frames, collected", [(1, False), (2, False), (1, True), (30, True)])
def test_it_is_drawn_again_where_nothing_was_handed_out(tts, drawn, frames, collected):
    engine = drawn({0: frames})
    reading = tts.read(TEXT, reading=GUARDED, collected=collected)
    samples = np.concatenate(list(reading))
    (piece,) = reading.pieces
    assert engine.seeds == [0, STEP] and len(samples) == 45 * 2048 and piece.finish_reason == "end_of_speech"
    assert piece.guard[-1].startswith("seed 0 discarded: ") and piece.tokens == 7 * (frames + 45) + 2


def test_what_was_heard_is_kept_and_told(tts, drawn):
    engine = drawn({0: 30})
    reading = tts.read(TEXT, reading=GUARDED)
    assert len(np.concatenate(list(reading))) == 30 * 2048 and engine.seeds == [0]
    assert reading.pieces[0].finish_reason == "out_of_range"


@pytest.mark.parametrize("sampling, reading", [(SamplingOptions(seed=0), GUARDED), (None, ReadingOptions())])
def test_with_a_seed_or_without_the_guard_it_is_that_draw(tts, drawn, sampling, reading):
    engine = drawn({0: 30})
    read = tts.read(TEXT, sampling=sampling, reading=reading, collected=True)
    assert len(np.concatenate(list(read))) == 30 * 2048 and engine.seeds == [0]
    assert read.pieces[0].finish_reason == "out_of_range"


@pytest.mark.parametrize("longest", range(3))
def test_when_no_draw_is_whole_the_longest_is_kept(tts, drawn, longest):
    cut = {STEP * i: 33 if i == longest else 28 + i for i in range(3)}
    engine = drawn(cut)
    read = tts.read(TEXT, reading=GUARDED, collected=True)
    assert len(np.concatenate(list(read))) == 33 * 2048 and len(read.pieces[0].guard) == 2
    speech = tts.generate(TEXT, guard=True)[0]
    assert len(speech.samples) == 33 * 2048 and len(speech.guard) == 2
    assert engine.seeds == [0, STEP, 2 * STEP] * 2


def test_rows_of_a_batch_are_drawn_again(tts, drawn):
    engine = drawn({1: 30})
    speeches = tts.generate([TEXT, TEXT], guard=True)
    assert engine.seeds == [0, 1, 1 + STEP] and [s.finish_reason for s in speeches] == ["end_of_speech"] * 2
    assert speeches[1].guard[0].startswith("seed 1 discarded: ")


def test_collected_and_streamed_are_the_same_samples(tts, drawn):
    drawn({})
    texts = [TEXT, f"{TEXT} {TEXT}"]
    for text in texts:
        said = [np.concatenate(list(tts.read(text, sampling=SamplingOptions(seed=5), collected=c))) for c in (0, 1)]
        np.testing.assert_array_equal(*said)
