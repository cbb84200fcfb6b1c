"""Gates: each fires on its own fault and on nothing else; limits are those of the recordings; nothing is made up."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from orpheus.config import DATA_DIR, SamplingOptions
from orpheus.data.usual import SpeechStatistics
from orpheus.evaluate.apart import Apart
from orpheus.evaluate.battery import FIXED, Battery, Line, battery_of, recordings_of, spread
from orpheus.evaluate.gates import Facts, Gate, facts_of, hear, judge, learn
from orpheus.evaluate.listen import Ears
from orpheus.format.prompt import unknown_words
from orpheus.format.tokens import Codes, Stop
from orpheus.model.provenance import own_words
from tests.support.codec_fixtures import speech_like
from tests.support.corpus_fixtures import dataset, recorded
from tests.support.voices import ScriptedEngine, some_codes

TEXT = "It rained all day, and nobody came."
USUAL = SpeechStatistics(clips=20, besides_s=0.2, per_letter_s=0.05, per_tag_s=0.7, slowest=1.2, quickest=0.8,
                         silence_s=0.2, held=2, repeated=2)  # fmt: skip
GOOD = Facts(TEXT, "anna", USUAL.expected_s(TEXT), letters=0.9, tail_s=0.1, f0_hz=200.0, tags=1.0)
EARS = Ears(SimpleNamespace(name="it", language="en"), None, SimpleNamespace(KNOWN_TAGS=("<laughs>",)))
DEAF = Ears()
RECORDINGS = [replace(GOOD, letters=0.8 + 0.01 * i, tail_s=0.01 * i, f0_hz=190.0 + i) for i in range(20)]
LIMITS = learn(RECORDINGS, USUAL, EARS)

FAULTS = {
    "letters": {"letters": 0.5},
    "pace": {"seconds": 1.5 * GOOD.seconds},
    "tail": {"tail_s": 0.6},
    "loops": {"repeated": 40},
    "pitch": {"f0_hz": 240.0},
    "tags": {"tags": 0.0},
    "ended": {"finish_reason": "max_new_tokens"},
}


def shares(*facts: Facts) -> dict[str, float]:
    return judge(facts, LIMITS).shares()


def test_good_speech_passes_them_all():
    found = judge([GOOD] * 8, LIMITS)
    assert found.score == 1 and found.sentence == "all 8 gates passed"
    assert all(gate.passed for gate in found.gates) and len(found.gates) == 8


@pytest.mark.parametrize("name", FAULTS)
def test_each_fires_on_its_own_fault_alone(name):
    found = judge([GOOD, *[replace(GOOD, **FAULTS[name])] * 7], LIMITS)
    assert [gate.name for gate in found.gates if not gate.passed] == [name]
    assert f"1 of 8 gates failed: {name} (1 of 8)" == found.sentence and found.score < 1
    assert "FAILED, 7 are needed" in found.as_dict()["gates"][name]["verdict"]


def test_too_quick_and_too_slow_are_both_out_of_pace():
    assert shares(replace(GOOD, seconds=0.5 * GOOD.seconds))["pace"] == 0
    assert shares(replace(GOOD, seconds=1.1 * GOOD.seconds))["pace"] == 1


def test_an_id_out_of_its_slot_did_not_end_the_utterance_either():
    wrong = replace(GOOD, finish_reason=Stop.OUT_OF_RANGE)
    found = shares(wrong)
    assert (found["slots"], found["ended"], found["letters"]) == (0, 0, 1)


def test_no_audio_at_all_fails_what_concerns_it():
    silent = Facts(TEXT, "anna", 0.0, letters=0.0, tags=0.0, finish_reason=Stop.END_OF_SPEECH)
    found = shares(silent)
    assert "tail" not in found  # there is no end to look at
    assert not any(found[name] for name in ("ended", "letters", "pace", "pitch", "tags"))


@pytest.mark.parametrize("count, allowed", [(7, 0), (8, 1), (16, 2)])
def test_one_in_eight_may_miss_a_gate(count, allowed):
    def passed(missed: int) -> bool | None:
        return Gate("ended", "", (0.0,) * missed + (1.0,) * (count - missed)).passed

    assert passed(allowed) and not passed(allowed + 1)


def test_letters_count_by_how_many_are_heard():
    assert shares(replace(GOOD, letters=LIMITS.letters / 2))["letters"] == pytest.approx(0.5)


def test_limits_are_those_of_the_recordings():
    assert LIMITS.letters == pytest.approx(np.percentile([r.letters for r in RECORDINGS], 5))
    low, high = LIMITS.pitch_hz["anna"]
    assert 175 < low < 185 and 215 < high < 225  # a semitone beyond 191 to 208
    assert 0.18 < LIMITS.tail_s < 0.3 and LIMITS.tags and LIMITS.missing == {}
    louder = learn([replace(r, tail_s=r.tail_s + 1) for r in RECORDINGS], USUAL, EARS)
    assert louder.tail_s == pytest.approx(LIMITS.tail_s + 1)


def test_each_voice_has_its_own_pitch():
    both = learn([*RECORDINGS, *(replace(r, voice="ben", f0_hz=r.f0_hz / 2) for r in RECORDINGS)], USUAL, EARS)
    ben = replace(GOOD, voice="ben", f0_hz=100.0)
    assert judge([GOOD, ben], both).shares()["pitch"] == 1
    assert judge([replace(GOOD, f0_hz=100.0), replace(ben, f0_hz=200.0)], both).shares()["pitch"] == 0
    assert "pitch" not in judge([replace(GOOD, voice="carl")], both).shares()


@pytest.mark.parametrize("recordings, ears, name, why", [
    (RECORDINGS, DEAF, "letters", "no recogniser"),
    (RECORDINGS, DEAF, "tags", "embedded voices only"),
    ([replace(r, letters=0.3) for r in RECORDINGS], EARS, "letters", "hears only 30%"),
    ([replace(r, tags=0.0) for r in RECORDINGS], EARS, "tags", "not heard in the recordings"),
    ([replace(r, f0_hz=None) for r in RECORDINGS], EARS, "pitch", "too few"),
    (RECORDINGS[:2], EARS, "tail", "too few"),
])  # fmt: skip
def test_what_can_t_be_judged_is_not_and_says_why(recordings, ears, name, why):
    found = judge([GOOD] * 8, learn(recordings, USUAL, ears))
    (gate,) = [gate for gate in found.gates if gate.name == name]
    assert gate.passed is gate.share is None and why in str(gate) and name not in found.shares()
    assert found.as_dict()["gates"][name]["passed"] is None


# ---- what is measured ----


def test_silence_at_the_end_and_letters_are_measured():
    class Recogniser:
        name, language = "it", "en"

        def transcribe(self, samples):
            return "it rained all night"

    speech = speech_like(1.0)
    padded = np.concatenate([speech, np.zeros(12000, np.float32)])
    usual = replace(USUAL, loudness_db=-20.0)
    ears, text = Ears(Recogniser()), "It rained all day."
    facts = facts_of(ears, hear(ears, padded), text, None, padded, usual)
    assert facts.tail_s == pytest.approx(0.5, abs=0.05) and facts.seconds == pytest.approx(1.5)
    assert facts.letters == pytest.approx(1 - 5 / 14) and facts.tags is None


# ---- the battery ----


@pytest.fixture
def corpus(run, tmp_path):
    texts = [f"It rained {'again and ' * (i % 5)}all day." for i in range(18)]
    voices = ["anna" if i % 2 else "ben" for i in range(18)]
    return run(dataset(recorded(18), [f"{text} {i}" for i, text in enumerate(texts)], source=voices),
               validation_share=0.2)  # fmt: skip


def test_the_fixed_texts_are_known_to_the_embedded_base():
    words = own_words(DATA_DIR / "tiny_orpheus")
    assert unknown_words(FIXED, (), frozenset(words)) == [] and len(FIXED) == 8


def test_texts_in_the_words_of_the_voice(corpus):
    lines = battery_of(corpus, own_words(DATA_DIR / "tiny_orpheus"))
    assert [line.voice for line in lines[:4]] == ["anna", "ben", "anna", "ben"]
    assert not any("<" in line.text for line in lines)  # the voice was taught no tags
    other = battery_of(corpus, ())  # no words.txt: the corpus's own words, in which the fixed texts can't be said
    assert {line.name.rpartition("_")[0] for line in other} == {"trained", "held_out"}
    held_out = {corpus.clips[i].text for i in corpus.held_out}
    assert {line.text for line in other if line.name.startswith("held_out")} == held_out
    assert not {line.text for line in other if line.name.startswith("trained")} & held_out
    assert {line.voice for line in other} == {"anna", "ben"} and battery_of(corpus, ()) == other


def test_short_and_long_clips_of_every_voice(corpus):
    chosen = spread(corpus.clips, 6)
    assert [clip.voice for clip in chosen] == ["anna"] * 3 + ["ben"] * 3
    assert max(len(c.text) for c in chosen) == max(len(c.text) for c in corpus.clips)
    assert len(spread(corpus.clips, 99)) == len(corpus.clips)


def test_recordings_are_heard_through_the_codec(corpus, codec, layout):
    facts = recordings_of(corpus, codec, layout, DEAF, {"anna", "ben"})
    assert sorted(f.text for f in facts) == sorted(clip.text for clip in corpus.clips)
    by_text = {clip.text: clip for clip in corpus.clips}
    assert {f.voice for f in recordings_of(corpus, codec, layout, DEAF, {"ben"})} == {"ben"}
    assert all(abs(f.seconds - by_text[f.text].seconds) < 0.1 and f.voice == by_text[f.text].voice for f in facts)


def test_it_is_spoken_as_users_do_and_kept(tts, layout, monkeypatch, tmp_path):
    def frames(count: int, *tail: int) -> list[int]:
        return [*layout.flatten(some_codes(count, seed=count)).tolist(), *tail]

    held = Codes.concatenate([some_codes(1)] * 30)
    scripts = [frames(30, layout.end_of_speech), frames(3, layout.slot_range(4)[0]), [layout.bos],
               [*layout.flatten(held).tolist(), layout.end_of_speech]]  # fmt: skip
    monkeypatch.setattr(tts, "engine", ScriptedEngine(layout, scripts))
    lines = [Line(TEXT, None, f"fixed_{i}") for i in range(4)]
    battery = Battery(lines, learn([], USUAL, DEAF), DEAF, SamplingOptions(seed=1))
    found = battery.speak(tts, tmp_path)
    by_name = {gate.name: gate.grades for gate in found.gates}
    assert by_name["ended"] == (1, 0, 0, 1) and by_name["slots"] == (1, 0, 0, 1)
    assert by_name["loops"] == (1, 1, 1, 0) and by_name["letters"] == ()
    assert {p.name for p in tmp_path.glob("*.wav")} == {"fixed_0.wav", "fixed_1.wav", "fixed_3.wav"}
    told = json.loads((tmp_path / "gates.json").read_text())
    assert told["gates"]["ended"]["failed"] == 2 and told["utterances"][3]["name"] == "fixed_3"
    assert told["sentence"] == found.sentence
    battery.speak(tts, tmp_path)  # a resumed training says it again


@pytest.mark.slow
def test_a_voice_in_a_process_of_its_own_says_the_same(adapter_dir, tts):
    sampling = SamplingOptions(seed=3, max_new_tokens=21, decoding="framed")
    with Apart(adapter_dir) as apart:
        there = apart.attempt([TEXT, "Well."], None, sampling)
    here = tts.attempt([TEXT, "Well."], None, sampling)
    assert [(a.seed, a.finish_detail) for a in there] == [(b.seed, b.finish_detail) for b in here]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(there, here, strict=True))
