"""The guard: silent on the recordings it learnt from, and quick on loops, silence, runaways and speech too short."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orpheus.config import PRESETS, SamplingOptions, embedded_path
from orpheus.data.usual import LEAST_CLIPS, PERIODS, Heard, SpeechStatistics, learn, longest_silence_s, repeats_of
from orpheus.format.tokens import Codes
from orpheus.model.provenance import Provenance
from orpheus.speak.guard import FRAME_S, Limits, Watch
from orpheus.speak.utterance import FADE_S
from tests.support.voices import some_codes

TEXT = "I missed you so much, it has been a very long day."  # 3.7 s to speak, by the defaults
USUAL = SpeechStatistics()


def frames(coarse: list[int], seed: int = 0) -> Codes:
    """Codes with these coarse ones, the others by chance."""
    codes = some_codes(len(coarse), seed)
    return Codes(np.array(coarse), codes.middle, codes.fine)


def watched(codes: Codes, samples: np.ndarray | None = None, text: str = TEXT) -> Watch:
    watch = Watch(USUAL, text)
    for i in range(codes.frames):
        watch.frame(codes.slice(i, i + 1))
        if samples is not None:
            watch.sound(samples[i * 2048 : (i + 1) * 2048])
        if watch.cut:
            break
    return watch


def clip(text: str, frame_count: int, seed: int) -> Heard:
    return Heard(text, frame_count * FRAME_S, -20.0, 0.2, some_codes(frame_count, seed))


def test_learning():
    clips = [clip("word " * n + "<laughs>" * (n % 2), 5 + 4 * n + 9 * (n % 2), n) for n in range(1, 30)]
    usual = learn(clips)
    assert usual.clips == 29 and usual.per_letter_s == pytest.approx(4 * FRAME_S / 5, rel=0.01)
    assert usual.per_tag_s == pytest.approx(9 * FRAME_S, rel=0.05)
    assert usual.quickest == pytest.approx(1) and usual.slowest == pytest.approx(1)
    assert (usual.loudness_db, usual.silence_s, usual.longest_text) == (-20, 0.2, 29 * 5 - 1 + 8)
    assert learn(clips[: LEAST_CLIPS - 1]) == SpeechStatistics()
    # Longer texts that take less time: no length is below zero all the same.
    odd = learn([clip("a" * (40 - n), 10 + n, n) for n in range(20)])
    assert odd.per_letter_s == 0 and odd.expected_s("a") > 0


def test_statistics_travel_with_a_provenance(layout, tmp_path):
    usual = learn([clip("word " * n, 5 + 4 * n, n) for n in range(1, 30)])
    made = Provenance("b", "c", layout, speech_statistics=usual.as_dict())
    made.save(tmp_path)
    for read in (Provenance.load(tmp_path), Provenance.from_json(made.to_json(), "here")):  # beside weights; in a .gguf
        assert SpeechStatistics.of(read.speech_statistics).as_dict() == usual.as_dict()
    old = json.loads(made.to_json())
    del old["speech_statistics"]
    assert SpeechStatistics.of(Provenance.from_json(json.dumps(old), "here").speech_statistics) == SpeechStatistics()


def test_the_embedded_base_knows_its_voices():
    from pathlib import Path

    made = Provenance.load(Path(embedded_path(PRESETS["tiny"].base)))
    usual = SpeechStatistics.of(made.speech_statistics)
    assert usual.clips == 36 and 12 < 1 / usual.per_letter_s < 25 and usual.longest_text == 87


def test_good_speech_passes():
    rng = np.random.default_rng(1)
    watch = watched(some_codes(45, 3), rng.standard_normal(45 * 2048).astype(np.float32) * 0.1)
    assert watch.cut is None and watch.verdict(45 * FRAME_S) == ()


@pytest.mark.parametrize("period", [1, 2, 3, 8, PERIODS])
def test_loops(period):
    """Found within some repeats; the same sounds twice in a row are no loop yet."""
    start, phrase = list(range(100, 110)), list(range(200, 200 + period))
    assert watched(frames([*start, *phrase, *phrase[:6], *range(300, 310)]), text=TEXT * 3).cut is None
    watch = watched(frames([*start, *phrase * 40]), text=TEXT * 3)
    assert "a loop: " + (f"{period} frames" if period > 1 else "one frame held") in watch.cut
    limits = Limits.of(USUAL, TEXT)
    within = 1 + (limits.held if period == 1 else limits.repeated)
    assert watch.frames == len(start) + period + within


def test_silence_and_runaways():
    codes, sound = some_codes(400, 5), np.full(400 * 2048, 0.1, np.float32)
    limits = Limits.of(USUAL, TEXT)
    watch = watched(codes, sound)
    assert "a runaway" in watch.cut and watch.seconds == pytest.approx(limits.longest_s, abs=FRAME_S)
    sound[20 * 2048 :] = 1e-4
    watch = watched(codes, sound)
    assert "silence" in watch.cut and watch.seconds == pytest.approx(20 * FRAME_S + limits.silence_s, abs=2 * FRAME_S)
    assert "too short" in watched(some_codes(5)).verdict(5 * FRAME_S)[0]


def test_helpers():
    assert repeats_of(np.array([1, 1, 1, 2, 3, 2, 3, 2, 4])) == (2, 3) and repeats_of(np.array([1])) == (0, 0)
    assert repeats_of(np.zeros(0, int)) == (0, 0)
    quiet = np.concatenate([np.full(4800, 0.1), np.zeros(7200), np.full(480, 0.1), np.zeros(2400)]).astype(np.float32)
    assert longest_silence_s(quiet, -20.0) == pytest.approx(0.3, abs=0.03)


# ---- at work ----


@pytest.fixture
def scripted(tts, layout, monkeypatch):
    """A function that makes `tts` speak codes: for each seed its own, in any number of calls."""

    class Engine:
        name = "scripted"

        def __init__(self, by_seed):
            self.layout, self.by_seed, self.seeds, self.drawn = layout, by_seed, [], 0

        def stream(self, prompts, sampling, seeds):
            self.seeds.append(list(seeds))
            scripts = [[*layout.flatten(self.by_seed(s)).tolist(), layout.end_of_speech] for s in seeds]
            for step in range(max(map(len, scripts))):
                for row, script in enumerate(scripts):
                    if step < len(script):
                        self.drawn += 1
                        yield row, script[step]

    def use(by_seed):
        engine = Engine(by_seed)
        monkeypatch.setattr(tts, "engine", engine)
        # The tiny test codec hums softly; silence has tests of its own.
        monkeypatch.setattr(tts, "usual", SpeechStatistics(loudness_db=-100.0))
        return engine

    return use


LOOP = frames([*range(10), *[1, 2, 3] * 60])


def test_a_loop_is_cut_the_same_streamed_and_whole(tts, scripted):
    engine = scripted(lambda seed: LOOP)
    speech = tts.generate(TEXT, seed=1, guard=True)[0]
    (note,) = speech.guard
    assert speech.finish_reason == "guard" and speech.finish_detail == note and "a loop: 3 frames" in note
    assert speech.describe()["guard"] == [note]
    assert speech.codes.frames < 40 and engine.drawn == 7 * speech.codes.frames  # not a token more
    fade = round(FADE_S * 24000)
    raw = tts.codec.decode(speech.codes, seed=1)
    np.testing.assert_allclose(speech.samples[:-fade], raw[:-fade], atol=1e-5)
    assert speech.samples[-1] == 0
    assert np.array_equal(np.concatenate(list(tts.stream(TEXT, seed=1, guard=True))), speech.samples)
    plain = tts.generate(TEXT, seed=1)[0]
    assert plain.codes.frames == 1200 // 7 and plain.guard == () and "guard" not in plain.describe()


def test_a_seed_that_is_given_is_kept(tts, scripted):
    engine = scripted(lambda seed: some_codes(3))
    (note,) = tts.generate(TEXT, seed=1, guard=True)[0].guard
    assert "too short: 0.3 s" in note and engine.seeds == [[1]]


def test_without_a_seed_bad_rows_are_spoken_again_and_the_best_is_kept(tts, scripted, monkeypatch):
    monkeypatch.setattr("orpheus.speak.inference.secrets.randbelow", lambda n: 0)
    bad = {1: LOOP, 2: some_codes(0), 1 + 1_000_003: some_codes(3)}
    engine = scripted(lambda seed: bad.get(seed, some_codes(45, 7)))
    speeches = tts.generate([TEXT, TEXT, TEXT], guard=True)
    assert engine.seeds == [[0, 1, 2], [1 + 1_000_003, 2 + 1_000_003], [1 + 2 * 1_000_003]]
    assert [s.codes.frames for s in speeches] == [45, 45, 45] and [s.index for s in speeches] == [0, 1, 2]
    assert speeches[0].guard == () and speeches[2].guard == ("seed 2 discarded: no audio",)
    assert [note.split(":")[0] for note in speeches[1].guard] == ["seed 1 discarded", "seed 1000004 discarded"]


def test_when_all_attempts_are_bad_the_first_speech_is_kept(tts, scripted, monkeypatch):
    monkeypatch.setattr("orpheus.speak.inference.secrets.randbelow", lambda n: 0)
    engine = scripted(lambda seed: {0: some_codes(0), 1_000_003: LOOP}.get(seed, some_codes(2)))
    speech = tts.generate(TEXT, guard=True, retries=2)[0]
    assert len(engine.seeds) == 3 and speech.seed == 1_000_003 and len(speech.guard) == 3


def test_rows_of_a_batch_that_are_cut_do_not_stop_the_others(tts, scripted):
    scripted(lambda seed: LOOP if seed == 5 else some_codes(45, 7))
    cut, good = tts.generate([TEXT, TEXT], seed=5, guard=True)
    assert cut.finish_reason == "guard" and good.finish_reason == "end_of_speech" and good.codes.frames == 45
    alone = tts.generate(TEXT, seed=6)[0]
    np.testing.assert_allclose(good.samples, alone.samples, atol=1e-5)


def test_readings_try_again_only_what_nobody_has_heard(tts, scripted, monkeypatch):
    from orpheus.config import ReadingOptions

    monkeypatch.setattr("orpheus.speak.inference.secrets.randbelow", lambda n: 0)
    engine = scripted(lambda seed: {0: some_codes(2), 1: LOOP}.get(seed, some_codes(45, 7)))
    text = f"{TEXT} {TEXT}"
    reading = tts.read(text, reading=ReadingOptions(guard=True, piece_chars=60))
    list(reading)
    assert engine.seeds == [[0], [1_000_003], [1]]
    first, second = reading.pieces
    assert first.guard[0].startswith("seed 0 discarded: too short: 0.2 s") and first.seed == 1_000_003
    assert second.finish_reason == "guard" and "a loop" in second.guard[0]
    assert first.tokens == 7 * (2 + 45) + 2
    engine.seeds.clear()
    given = tts.read(text, sampling=SamplingOptions(seed=0), reading=ReadingOptions(guard=True, piece_chars=60))
    list(given)
    assert engine.seeds == [[0], [1]] and "too short" in given.pieces[0].guard[0]
