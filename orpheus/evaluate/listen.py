"""What is measured on one sound, with whatever there is to listen with: recogniser, speaker encoder, pitch, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ, edge_silence_s
from orpheus.codec.snac import SnacCodec
from orpheus.config import PRESETS
from orpheus.errors import MissingPackage
from orpheus.evaluate.clips import Recording
from orpheus.evaluate.report import Heard, Report, Take
from orpheus.format.pieces import spoken_length
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import Stop
from orpheus.hearing.distance import mel_cepstral_db
from orpheus.hearing.metrics import range_st, voiced_f0_hz, word_errors, words
from orpheus.hearing.recognise import Recogniser
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

Tool = TypeVar("Tool", bound=Callable[[np.ndarray], Any])

NO_RECOGNISER = "no recogniser: pip install faster-whisper or pocketsphinx, and don't turn it off by --recogniser none"
NO_DETECTOR = "the tag detector knows the sounds of the embedded voices only"


class TagDetector(Protocol):
    """Finds the sounds of tags, as the module `orpheus.hearing.tags` does."""

    @property
    def KNOWN_TAGS(self) -> tuple[str, ...]:
        """The tags that it knows, as they are written: '<laughs>'."""
        ...

    def detect_tags(self, samples: np.ndarray) -> Sequence[Any]:
        """What was found in float32 [n] at 24 kHz, each with the attribute `tag`."""
        ...


class HasCodec(Protocol):
    """A voice, ready to speak or in training."""

    codec: SnacCodec


def find_detector(tts: HasCodec) -> TagDetector | None:
    """The detector, where it knows the sounds: those of the embedded voices."""
    if tts.codec.name != PRESETS["tiny"].codec:
        return None
    from orpheus.hearing import tags as detect

    return detect


@dataclass(frozen=True)
class Ears:
    """What there is to listen with. None leaves its figures out; `why` says the reason, by the figure's name.

    recogniser, domain: write the words down, the second with a language model of the domain.
    embed: a clip [n] -> who speaks, float32 [d] of unit length; dnsmos: -> how it sounds, 1 to 5.
    """

    recogniser: Recogniser | None = None
    domain: Recogniser | None = None
    detector: TagDetector | None = None
    embed: Callable[[np.ndarray], np.ndarray] | None = None
    dnsmos: Callable[[np.ndarray], float] | None = None
    why: dict[str, str] = field(default_factory=dict)


def find_ears(recogniser: Recogniser | None, domain: Recogniser | None, detector: TagDetector | None) -> Ears:
    """These, with the speaker encoder and DNSMOS where they are installed."""
    from orpheus.hearing.quality import dnsmos
    from orpheus.hearing.speakers import embed

    why: dict[str, str] = {}
    return Ears(recogniser, domain, detector, _installed(embed, "speaker", why), _installed(dnsmos, "dnsmos", why), why)


def _installed(tool: Tool, name: str, why: dict[str, str]) -> Tool | None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ)
    try:
        tool(noise.astype(np.float32))
    except MissingPackage as error:
        why[name] = str(error)
        return None
    return tool


@dataclass(frozen=True)
class Target:
    """What a sound is measured against: its recording, and the voice that the other recordings have."""

    clip: Recording
    voice: np.ndarray | None = None  # float32 [d], unit length; None: not known, or there is no other recording


def targets(clips: Sequence[Recording], ears: Ears) -> list[Target]:
    """The clips, each with the mean voice of the other clips of its speaker.

    A recording is never compared with itself: so the figure of the recordings is what a perfect copy could reach.
    """
    if ears.embed is None:
        return [Target(clip) for clip in clips]
    found = np.stack([ears.embed(clip.samples) for clip in clips])
    names = np.array([clip.voice or "" for clip in clips])
    rest = np.stack([found[names == name].sum(axis=0) for name in names]) - found
    several = [int((names == name).sum()) > 1 for name in names]
    return [Target(clip, voice / np.linalg.norm(voice) if known else None)
            for clip, voice, known in zip(clips, rest, several, strict=True)]  # fmt: skip


class Listener:
    """Measures sounds with the ears that there are."""

    def __init__(self, ears: Ears) -> None:
        self.ears = ears

    def __call__(self, target: Target, samples: np.ndarray, *, copy: bool = True) -> Heard:
        """A sound, float32 [n] at 24 kHz, against its target; n = 0 where nothing was said. copy: False: the original.

        What can't be measured on a sound (the voice of one without samples) is not counted.
        """
        counts: dict[str, tuple[float, float]] = {}
        text = target.clip.text
        f0_hz = voiced_f0_hz(samples)
        heard = Heard(
            seconds=len(samples) / SAMPLE_RATE_HZ,
            f0_hz=float(np.median(f0_hz)) if len(f0_hz) else None,
            f0_range_st=range_st(f0_hz),
            transcript=self._transcript("wer", self.ears.recogniser, text, samples, counts),
            transcript_domain=self._transcript("wer_domain", self.ears.domain, text, samples, counts),
            tags=self._tags(text, samples, counts),
            counts=counts,
        )
        if np.any(samples):
            counts.update({name: (value, 1) for name, value in self._qualities(target, samples, copy).items()})
            before_s, after_s = edge_silence_s(samples)
            counts["trailing_silence_s"] = (after_s, 1)
            counts["letters_per_s"] = (spoken_length(text), heard.seconds - before_s - after_s)
        return heard

    def _qualities(self, target: Target, samples: np.ndarray, copy: bool) -> dict[str, float]:
        """What has one value for a sound that is no digital silence."""
        found: dict[str, float | None] = {
            "mel_cepstral_db": mel_cepstral_db(target.clip.samples, samples) if copy else None,
            "dnsmos": self.ears.dnsmos(samples) if self.ears.dnsmos else None,
        }
        if self.ears.embed and target.voice is not None:
            found["speaker_similarity"] = float(self.ears.embed(samples) @ target.voice)
        return {name: value for name, value in found.items() if value is not None and np.isfinite(value)}

    @staticmethod
    def _transcript(name: str, recogniser: Recogniser | None, text: str, samples: np.ndarray,
                    counts: dict[str, tuple[float, float]]) -> str | None:  # fmt: skip
        if recogniser is None:
            return None
        heard = recogniser.transcribe(samples) if len(samples) else ""
        language = recogniser.language
        counts[name] = (word_errors(text, heard, language), len(words(text, language)))
        return heard

    def _tags(self, text: str, samples: np.ndarray, counts: dict[str, tuple[float, float]]) -> tuple[str, ...] | None:
        detector = self.ears.detector
        if detector is None:
            return None
        found = {detection.tag for detection in detector.detect_tags(samples)} if len(samples) else set()
        known, written = set(detector.KNOWN_TAGS), {f"<{name}>" for name in find_tags(text)}
        if written <= known:
            counts["tag_hit_rate"] = (len(found & written), len(written))
            counts["tag_false_alarm_rate"] = (len(found - written), len(known - written))
        return tuple(sorted(found))

    def take(self, target: Target, speech: Speech | NoSpeech, work_s: float) -> Take:
        """The text of a clip, spoken: what came of it."""
        if isinstance(speech, Speech):
            heard, tokens = self(target, speech.samples), speech.timings.tokens
        else:
            heard, tokens = self(target, np.zeros(0, np.float32)), speech.tokens
        heard.counts.update(
            out_of_slot_rate=(speech.finish_reason == Stop.OUT_OF_RANGE, tokens),
            end_of_speech_share=(heard.seconds > 0 and speech.finish_reason == Stop.END_OF_SPEECH, 1),
            duration_ratio=(heard.seconds, len(target.clip.samples) / SAMPLE_RATE_HZ),
            realtime_factor=(work_s, heard.seconds),
        )
        return Take(heard, speech.seed, tokens, speech.finish_reason, speech.finish_detail, work_s)


def missing(report: Report, ears: Ears) -> dict[str, str]:
    """Why a figure could not be had, by its key."""
    known = ", ".join(ears.detector.KNOWN_TAGS) if ears.detector else ""
    reasons = {
        "wer": "no text has a word" if ears.recogniser else NO_RECOGNISER,
        "tag": f"no text has tags of {known} alone" if ears.detector else NO_DETECTOR,
        "f0": "nothing in these sounds is voiced long enough",
        "speaker": "no voice has two recordings" if ears.embed else "no speaker encoder was given",
        "dnsmos": "no DNSMOS was given",
        "realtime": "no audio was generated",
        **ears.why,
    }
    found = {name: reasons.get(name.partition("_")[0], reasons["realtime"])
             for name, figure in report.figures().items() if figure is None}  # fmt: skip
    if len(report.rows) == 1:
        found["*_ci"] = "one clip gives no interval"
    return found
