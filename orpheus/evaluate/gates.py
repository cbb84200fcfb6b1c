"""Gates: has a voice what its recordings have? Each gate asks one thing of every utterance of a battery.

    ended       it ended by itself, after some speech
    slots       no id was out of its slot
    letters     the recogniser hears its letters
    pace        it takes the seconds that its letters and tags need
    tail        it does not fall silent long before its end
    loops       it says no frames over and over
    pitch       it has the pitch of its voice
    tags        its tags are heard

What an utterance may be is learnt from recordings, heard through the codec, since nothing better can come out of a
model (`Limits`). Drawing is chance, so one utterance in eight may miss a gate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.usual import Heard as Usual
from orpheus.data.usual import Silence, SpeechStatistics, longest_silence_s, repeats_of
from orpheus.data.usual import learn as learn_usual
from orpheus.evaluate.clips import Recording
from orpheus.evaluate.listen import Ears
from orpheus.evaluate.report import Heard
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import Codes, Stop
from orpheus.hearing.metrics import letters_heard, median_f0_hz
from orpheus.speak.guard import FRAME_S
from orpheus.speak.guard import Limits as Watched
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

ONE_IN = 8  # utterances may miss a gate
TAIL = 5.0  # per cent of the recordings that lie beyond a limit, at either end
SEMITONE = 2 ** (1 / 12)  # that a voice may be off its recordings' pitch
HEARD = 0.5  # of the recordings' letters: a recogniser that hears less judges nothing
LEAST = 3  # recordings that a limit can be learnt from


@dataclass(frozen=True)
class Facts:
    """What was measured on a sound, spoken or recorded; None where there was nothing to measure, or nothing to do it.

    letters: share heard right, 0 to 1; tail_s: silence at the end; held, repeated: frames (`repeats_of`); tags: share
    of those written that are heard.
    """

    text: str
    voice: str | None
    seconds: float
    letters: float | None = None
    tail_s: float = 0.0
    held: int = 0
    repeated: int = 0
    f0_hz: float | None = None
    tags: float | None = None
    finish_reason: str = Stop.END_OF_SPEECH


def hear(ears: Ears, samples: np.ndarray) -> Heard:
    """What gates need to know of a sound, float32 [n] at 24 kHz, and no more: words, pitch, tags."""
    detected = ears.detector.detect_tags(samples) if ears.detector and len(samples) else ()
    said = ears.recogniser.transcribe(samples) if ears.recogniser and len(samples) else ""
    return Heard(len(samples) / SAMPLE_RATE_HZ, median_f0_hz(samples), transcript=said if ears.recogniser else None,
                 tags=tuple({detection.tag for detection in detected}) if ears.detector else None)  # fmt: skip


def facts_of(ears: Ears, heard: Heard, text: str, voice: str | None, samples: np.ndarray,
             usual: SpeechStatistics, spoken: Speech | NoSpeech | None = None) -> Facts:  # fmt: skip
    """From what was heard in samples, float32 [n] at 24 kHz: a recording's, or those of what was `spoken`."""
    silence = Silence(usual.silent_db)
    silence.push(samples)
    facts = Facts(text, voice, heard.seconds, tail_s=silence.now_s, f0_hz=heard.f0_hz)
    if ears.recogniser and heard.transcript is not None:
        facts = replace(facts, letters=letters_heard(text, heard.transcript, ears.recogniser.language))
    known = {f"<{name}>" for name in find_tags(text)} & set(ears.detector.KNOWN_TAGS if ears.detector else ())
    if known and heard.tags is not None:
        facts = replace(facts, tags=len(known & set(heard.tags)) / len(known))
    if isinstance(spoken, Speech):
        held, repeated = repeats_of(spoken.codes.coarse)
        facts = replace(facts, held=held, repeated=repeated)
    return replace(facts, finish_reason=spoken.finish_reason) if spoken else facts


def usual_in(clips: Sequence[Recording], codes: Sequence[Codes], otherwise: SpeechStatistics) -> SpeechStatistics:
    """What is usual in recordings that no training has seen; `otherwise` where they are too few to say."""
    heard = []
    for clip, coded in zip(clips, codes, strict=True):
        loudness_db = 10 * math.log10(float(np.mean(np.square(clip.samples, dtype=np.float64))))
        silence_s = longest_silence_s(clip.samples, loudness_db)
        heard.append(Usual(clip.text, len(clip.samples) / SAMPLE_RATE_HZ, loudness_db, silence_s, coded))
    learnt = learn_usual(heard)
    return learnt if learnt.clips else otherwise


@dataclass(frozen=True)
class Limits:
    """What utterances of a voice may be. None, or a voice without pitches: not known, and not asked."""

    usual: SpeechStatistics
    recordings: int
    letters: float | None
    tail_s: float | None
    pitch_hz: dict[str | None, tuple[float, float]]
    tags: bool  # they are heard in the recordings
    missing: dict[str, str]  # why a gate can't be asked


def learn(recordings: Sequence[Facts], usual: SpeechStatistics, ears: Ears) -> Limits:
    """The limits from what was heard in recordings of the voice, through the codec, and what is `usual` in it."""
    missing = {}
    letters = [clip.letters for clip in recordings if clip.letters is not None]
    if ears.recogniser is None:
        missing["letters"] = "there is no recogniser"
    elif len(letters) < LEAST:
        missing["letters"] = "too few recordings with words"
    elif (middle := float(np.median(letters))) < HEARD:
        missing["letters"] = f"the recogniser hears only {middle:.0%} of the recordings' own letters"
    pitches = defaultdict(list)
    for clip in recordings:
        if clip.f0_hz is not None:
            pitches[clip.voice].append(clip.f0_hz)
    pitch_hz = {voice: _between(values) for voice, values in pitches.items() if len(values) >= LEAST}
    if not pitch_hz:
        missing["pitch"] = "too few recordings with a pitch"
    tags = [clip.tags for clip in recordings if clip.tags is not None]
    if ears.detector is None:
        missing["tags"] = "the detector knows the sounds of the embedded voices only"
    elif not tags or float(np.mean(tags)) < HEARD:
        missing["tags"] = "they are not heard in the recordings"
    tail_s = None
    if len(recordings) < LEAST:
        missing["tail"] = "too few recordings"
    else:
        tail_s = float(np.percentile([clip.tail_s for clip in recordings], 100 - TAIL)) + FRAME_S
    least = (
        None if "letters" in missing else max(float(np.percentile(letters, TAIL)), HEARD * float(np.median(letters)))
    )
    return Limits(usual, len(recordings), least, tail_s, pitch_hz, "tags" not in missing, missing)


def _between(pitches: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(pitches, [TAIL, 100 - TAIL])
    return float(low) / SEMITONE, float(high) * SEMITONE


@dataclass(frozen=True)
class Gate:
    """What one gate says of a battery. `grades`: 1 where an utterance passed, one for each that it concerns."""

    name: str
    asks: str  # in words: 'ended by themselves'
    grades: tuple[float, ...]
    missing: str = ""  # why it could not be asked

    @property
    def share(self) -> float | None:
        """The mean grade; None where it could not be asked."""
        return float(np.mean(self.grades)) if self.grades else None

    @property
    def failed(self) -> int:
        """How many utterances miss it."""
        return sum(grade < 1 for grade in self.grades)

    @property
    def passed(self) -> bool | None:
        """Whether the battery passes; None where it could not be asked."""
        return self.failed <= len(self.grades) // ONE_IN if self.grades else None

    def __str__(self) -> str:
        if self.passed is None:
            return f"{self.name:8} not asked: {self.missing or 'no utterance that it concerns'}"
        count = len(self.grades)
        verdict = "passed" if self.passed else f"FAILED, {count - count // ONE_IN} are needed"
        return f"{self.name:8} {count - self.failed} of {count} {self.asks}: {verdict}"


@dataclass(frozen=True)
class Gates:
    """All gates of a battery, and what was measured on its utterances."""

    gates: tuple[Gate, ...]
    facts: tuple[Facts, ...]

    @property
    def score(self) -> float:
        """The mean of the gates' shares, 0 to 1."""
        return float(np.mean([gate.share for gate in self.gates if gate.share is not None]))

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        asked = [gate for gate in self.gates if gate.passed is not None]
        failed = [f"{g.name} ({len(g.grades) - g.failed} of {len(g.grades)})" for g in asked if not g.passed]
        if not failed:
            return f"all {len(asked)} gates passed"
        return f"{len(failed)} of {len(asked)} gates failed: {', '.join(failed)}"

    def shares(self) -> dict[str, float]:
        """Each gate's share that could be asked."""
        return {gate.name: gate.share for gate in self.gates if gate.share is not None}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "score": round(self.score, 4),
            "sentence": self.sentence,
            "gates": {gate.name: {"passed": gate.passed, "share": gate.share, "failed": gate.failed,
                                  "utterances": len(gate.grades), "verdict": str(gate)} for gate in self.gates},
        }  # fmt: skip


def judge(facts: Iterable[Facts], limits: Limits) -> Gates:
    """Ask every gate of the utterances of a battery."""
    spoken = tuple(facts)
    asked: dict[str, tuple[str, Callable[[Facts], float | bool | None]]] = {
        "ended": ("ended by themselves", _ended),
        "slots": ("kept to their slots", lambda f: f.finish_reason != Stop.OUT_OF_RANGE),
        "letters": (
            f"have {limits.letters or 0:.0%} of their letters heard, or more",
            lambda f: None if f.letters is None or not limits.letters else min(1.0, f.letters / limits.letters),
        ),
        "pace": (
            f"take {limits.usual.quickest:.2f} to {limits.usual.slowest:.2f} times the seconds that their text needs",
            lambda f: _in_pace(f, limits.usual),
        ),
        "tail": (
            f"end with {limits.tail_s or 0:.2f} s of silence or less",
            lambda f: None if limits.tail_s is None or not f.seconds else f.tail_s <= limits.tail_s,
        ),
        "loops": ("say no frames over and over", lambda f: _unlooped(f, limits.usual)),
        "pitch": (f"have the pitch of their voice ({_ranges(limits)})", lambda f: _in_pitch(f, limits)),
        "tags": ("have their tags heard", lambda f: f.tags if limits.tags else None),
    }

    def gate(name: str) -> Gate:
        asks, grade = asked[name]
        grades = tuple(float(g) for f in spoken if (g := grade(f)) is not None)
        return Gate(name, asks, grades, limits.missing.get(name, ""))

    return Gates(tuple(gate(name) for name in asked), spoken)


def _ended(facts: Facts) -> bool:
    return facts.seconds > 0 and facts.finish_reason == Stop.END_OF_SPEECH


def _in_pace(facts: Facts, usual: SpeechStatistics) -> bool:
    expected_s = usual.expected_s(facts.text)
    return usual.quickest * expected_s - FRAME_S <= facts.seconds <= usual.slowest * expected_s + FRAME_S


def _unlooped(facts: Facts, usual: SpeechStatistics) -> bool:
    watched = Watched.of(usual, facts.text)
    return facts.held <= watched.held and facts.repeated <= watched.repeated


def _in_pitch(facts: Facts, limits: Limits) -> bool | None:
    between = limits.pitch_hz.get(facts.voice)
    if between is None:
        return None
    return facts.f0_hz is not None and between[0] <= facts.f0_hz <= between[1]


def _ranges(limits: Limits) -> str:
    return ", ".join(f"{voice + ' ' if voice else ''}{low:.0f} to {high:.0f} Hz"
                     for voice, (low, high) in limits.pitch_hz.items())  # fmt: skip
