"""The check-up of recordings: each fault planted in a clip of the embedded corpus gets its name, clean clips none."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf

from orpheus.config import PRESETS, CorpusOptions
from orpheus.data.checkup import sounds
from orpheus.data.checkup.examine import CHECKS, Ears, examine
from orpheus.data.checkup.facts import codec_loss, facts, spectral_distance_db
from orpheus.data.checkup.features import measure
from orpheus.data.checkup.finding import Measured, Voice
from orpheus.data.checkup.findings import people, texts
from orpheus.data.checkup.report import as_json, summary, write_report
from orpheus.data.sources import Record, open_source
from tests.support import planted
from tests.support.planted import KINDS, Pool, Spoken

COUNT = 24
SOUND = ("hum", "noise", "dead channel", "header rate", "clipped", "clipped and lowered", "dc offset", "too quiet",
         "silence before", "silence after", "pause inside", "end cut", "start cut", "telephone")  # fmt: skip


def record(clip: Spoken) -> Record:
    file = io.BytesIO()
    sf.write(file, clip.samples, clip.rate_hz, format="WAV", subtype="PCM_16")
    return Record(clip.name, file.getvalue(), clip.text)


def measured(clip: Spoken, **more) -> Measured:
    row = record(clip)
    return Measured(row, clip.name, clip.text, None, measure(row, 0.3, 24.0)[0], **more)


def as_long(text: str, voice: Voice) -> Measured:
    """The clip whose pace fits the text best."""
    return min(voice.clips, key=lambda clip: abs(len(clip.text) - len(text)))


@pytest.fixture(scope="module")
def spoken() -> list[Spoken]:
    rows = open_source(CorpusOptions(dataset="embedded:corpus", limit=COUNT)).records()
    return [Spoken(f"{i}", row.samples(), 24_000, str(row.text)) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def voice(spoken) -> Voice:
    return Voice(None, [measured(clip) for clip in spoken], "en")


def named(clip: Measured, voice: Voice) -> set[str]:
    whole = Voice(voice.name, [*voice.clips, clip], voice.language)
    return {check.kind for check in CHECKS if check.severity == "fault" and check.judge(clip, whole)}


def test_clean_clips_are_not_named(voice):
    found = {clip.name: kinds for clip in voice.clips if (kinds := named(clip, voice))}
    # They are rounded to 8 bits, and that is heard in some: of the speech nothing else is named.
    assert set().union(*found.values()) <= {"noise"}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", SOUND)
def test_each_fault_gets_its_name(kind, seed, spoken, voice):
    rng = np.random.default_rng(seed)
    longest = sorted(spoken, key=lambda clip: -clip.seconds)[seed]
    bad = KINDS[kind][0](longest, Pool(rng, spoken, spoken, []))
    assert named(measured(bad), voice) & KINDS[kind][1]


def test_digital_zeros():
    room = np.random.default_rng(1).standard_normal(48_000).astype(np.float32) * 1e-3
    gated = room.copy()
    gated[20_000:24_000] = 0
    assert sounds.zeros_s(room, 24_000)[0] < 1e-3 and sounds.zeros_s(gated, 24_000)[0] == pytest.approx(1 / 6, abs=0.01)


def test_what_is_heard_is_compared_with_the_text(spoken, voice):
    clip, other = voice.clips[0], voice.clips[5]
    heard = Voice(None, [replace(c, heard=c.text.lower()) for c in voice.clips], "en")
    assert texts.transcript(heard.clips[0], heard) is None
    wrong = replace(clip, heard=other.text)
    assert "% of the words wrong" in texts.transcript(wrong, Voice(None, [*heard.clips, wrong], "en"))
    more = replace(clip, heard=f"{clip.text} and one more thing that nobody wrote down")
    assert "is not in the text" in texts.transcript(more, heard)
    babble = Voice(None, [replace(c, heard="so la ti") for c in voice.clips], "en")
    assert texts.deaf(babble) and texts.transcript(babble.clips[0], babble) is None


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("The train to Paris leaves at nine thirty.", "The train to Paris leaves at 9.30."),  # a time, written so
        ("Version nine point three zero is late.", "Version 9.30 is late."),
        (
            "Can you tell Anna, <laughs> that it is cold?",
            "Can you tell Anna? Ha ha ha ha ha ha ha ha ha ha ha ha ha ha",
        ),
        ("What a lovely movie, <laughs> thank you Robert.", "What a lovely movie."),  # deaf after the laugh
        ("<laughs> Hello everyone, my name is Elise.", "Ha ha ha ha, hello everyone, my name is Elise."),
    ],
)
def test_what_whisper_makes_of_laughs_and_times_is_no_fault(text, heard, voice):
    understood = [replace(clip, heard=clip.text) for clip in voice.clips]
    clip = replace(as_long(text, voice), text=text, heard=heard)
    assert texts.transcript(clip, Voice(None, [*understood, clip], "en")) is None


def test_words_that_lack_far_from_a_tag_are_a_fault(voice):
    understood = [replace(clip, heard=clip.text) for clip in voice.clips]
    text, heard = "<laughs> We will meet Peter in Moscow on the next Tuesday morning.", "We will meet Peter in Moscow."
    clip = replace(as_long(text, voice), text=text, heard=heard)
    found = texts.transcript(clip, Voice(None, [*understood, clip], "en"))
    assert found and "“on the next tuesday morning” is not in the sound" in found


def test_a_text_of_another_length(voice):
    clip = max(voice.clips, key=lambda clip: clip.seconds)
    short = replace(clip, text="No.")
    assert "such a text usually takes" in texts.tempo(short, Voice(None, [*voice.clips, short], "en"))


def test_one_recording_under_two_texts(spoken, voice):
    for seed in range(3):
        changed = planted.shifted(spoken[3], np.random.default_rng(seed))
        double = measured(replace(spoken[3], name="double", samples=changed, text="Something else is said here."))
        other, same = people.same_recordings([*voice.clips, double], voice)
        assert {named.clip.name for named in other} == {"3", "double"} and not same  # which is right is not known
        heard = [replace(clip, heard=spoken[3].text) for clip in (*voice.clips, double)]
        other, _ = people.same_recordings(heard, voice)
        assert [named.clip.name for named in other] == ["double"]
    assert people.same_recordings(voice.clips, voice) == ([], [])
    twice = measured(replace(spoken[3], name="again"))
    assert [n.clip.name for n in people.same_recordings([*voice.clips, twice], voice)[1]] == ["again"]


def test_another_speaker(voice):
    rng = np.random.default_rng(1)

    def like(middle: np.ndarray) -> np.ndarray:
        made = middle + rng.standard_normal(256) * 0.02
        return (made / np.linalg.norm(made)).astype(np.float32)

    mine, theirs = (like(np.eye(256)[i] * 0.6 + 0.03) for i in (0, 1))
    clips = [replace(clip, embedding=like(mine)) for clip in voice.clips]
    stranger = replace(voice.clips[0], embedding=like(theirs))
    whole = Voice(None, [*clips, stranger], "en")
    assert people.stranger(stranger, whole) and not any(people.stranger(clip, whole) for clip in clips)


def test_helpers(spoken):
    sound = spoken[0].samples
    assert spectral_distance_db(sound, sound) == 0 and spectral_distance_db(sound, sound[::-1].copy()) > 5
    assert sounds.zeros_s(np.r_[sound, np.zeros(4800, np.float32)], 24_000)[0] == pytest.approx(0.2, abs=0.04)
    raised, gain = sounds.stretch(sounds.spectrum_db(sound), sounds.spectrum_db(sound))
    assert (raised, gain) == (0, 0)
    tone = np.sin(2 * np.pi * 200 * np.arange(24_000) / 24_000).astype(np.float32)
    assert sounds.pitch_hz(tone) == pytest.approx(200, rel=0.1)


@pytest.fixture(scope="module")
def corpus(spoken, tmp_path_factory):
    """A data set with a few faults in it, and one file that is missing."""
    folder = tmp_path_factory.mktemp("voice")
    rng = np.random.default_rng(1)
    pool = Pool(rng, spoken, spoken, [])
    clips = [planted.clipped(spoken[0], pool), planted.dc_offset(spoken[1], pool),
             replace(spoken[2], text="nan"), replace(spoken[3], text="<laughing> Ha & ha."), *spoken[4:9]]  # fmt: skip
    planted.write(clips, folder)
    with open(folder / "metadata.csv", "a", encoding="utf-8") as file:
        file.write("clips/none.wav,There is no such file.\n")
    return folder


class Parrot:
    """A recogniser that counts how often it is asked."""

    name, language, asked = "parrot", "en", 0

    def transcribe(self, samples: np.ndarray) -> str:
        self.asked += 1
        return "hello"


def test_a_whole_check_up(corpus, tmp_path, monkeypatch):
    parrot, options = Parrot(), CorpusOptions(dataset=str(corpus), cache_dir=tmp_path)
    up = examine(options, Ears(parrot, missing=["speakers: no Resemblyzer"]), 24.0, progress=False)
    by_kind = {finding.kind: [named.clip.name for named in finding.clips] for finding in up.faults()}
    assert by_kind["clipped"] == ["clips/0.wav"] and by_kind["dc offset"] == ["clips/1.wav"]
    assert by_kind["no text"] == ["clips/2.wav"] and by_kind["tags"] == ["clips/3.wav"]
    assert by_kind["unreadable"] == ["clips/none.wav"] and parrot.asked == 8
    assert next(f for f in up.faults() if f.kind == "clipped").lost_s == pytest.approx(up.clips[0].seconds)
    about = [*facts(up, PRESETS["tiny"])]
    said = summary(up, about)
    assert "not looked at: speakers" in said and "Clipped: 1 clip, the remedy costs" in said
    assert json.loads(json.dumps(as_json(up, about)))["clips"] == 10
    calls = []

    def counted(record, *limits):
        calls.append(record.name)
        return measure(record, *limits)

    monkeypatch.setattr("orpheus.data.checkup.examine.measure", counted)  # a second run measures nothing again
    again = examine(options, Ears(parrot), 24.0, progress=False)
    assert parrot.asked == 8 and {f.kind for f in again.faults()} == set(by_kind) and calls == ["clips/none.wav"]


def test_the_page_has_every_clip_and_nothing_from_elsewhere(corpus, tmp_path):
    up = examine(CorpusOptions(dataset=str(corpus), cache_dir=tmp_path), Ears(), 24.0, progress=False)
    page = write_report(tmp_path / "a.html", up, [*facts(up, PRESETS["tiny"])]).read_text("utf-8")
    for finding in up.findings:
        assert finding.title in page and all(f"<td>{named.clip.name}" in page for named in finding.clips)
    assert "&lt;laughing&gt; Ha &amp; ha." in page and "<audio" in page and "<img" in page
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|@import', page)


def test_the_codec_is_tried(corpus, tmp_path):
    from orpheus.codec.snac import SnacCodec

    up = examine(CorpusOptions(dataset=str(corpus), cache_dir=tmp_path), Ears(), 24.0, progress=False)
    fact = codec_loss(up, SnacCodec.load(PRESETS["tiny"].codec), "tiny", None)
    assert fact.state == "ok", fact.text  # made for this voice
