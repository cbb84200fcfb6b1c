"""What is measured on one sound, with whatever can be had: recogniser, detector of tags, pitch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.config import PRESETS
from orpheus.evaluate.clips import Recording
from orpheus.evaluate.report import Heard, Report, Take
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import Stop
from orpheus.hearing.metrics import median_f0_hz, word_errors, words
from orpheus.hearing.recognise import Recogniser
from orpheus.speak.inference import OrpheusInference
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

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


def find_detector(tts: OrpheusInference) -> TagDetector | None:
    """The detector, where it knows the sounds: those of the embedded voices."""
    if tts.codec.name != PRESETS["tiny"].codec:
        return None
    from orpheus.hearing import tags as detect

    return detect


class Listener:
    """Measures sounds with whatever recognisers and detector there are."""

    def __init__(self, recogniser: Recogniser | None, domain: Recogniser | None, detector: TagDetector | None) -> None:
        self.recogniser, self.domain, self.detector = recogniser, domain, detector

    def __call__(self, text: str, samples: np.ndarray) -> Heard:
        """A sound, float32 [n] at 24 kHz, against the text that it should say; n = 0 where nothing was said."""
        counts: dict[str, tuple[float, float]] = {}

        def transcript(name: str, recogniser: Recogniser | None) -> str | None:
            if recogniser is None:
                return None
            heard = recogniser.transcribe(samples) if len(samples) else ""
            language = recogniser.language
            counts[name] = (word_errors(text, heard, language), len(words(text, language)))
            return heard

        return Heard(
            seconds=len(samples) / SAMPLE_RATE_HZ,
            f0_hz=median_f0_hz(samples),
            transcript=transcript("wer", self.recogniser),
            transcript_domain=transcript("wer_domain", self.domain),
            tags=self._tags(text, samples, counts),
            counts=counts,
        )

    def _tags(self, text: str, samples: np.ndarray, counts: dict[str, tuple[float, float]]) -> tuple[str, ...] | None:
        if self.detector is None:
            return None
        found = {detection.tag for detection in self.detector.detect_tags(samples)} if len(samples) else set()
        known, written = set(self.detector.KNOWN_TAGS), {f"<{name}>" for name in find_tags(text)}
        if written <= known:
            counts["tag_hit_rate"] = (len(found & written), len(written))
            counts["tag_false_alarm_rate"] = (len(found - written), len(known - written))
        return tuple(sorted(found))

    def take(self, clip: Recording, speech: Speech | NoSpeech, work_s: float) -> Take:
        """The text of `clip`, spoken: what came of it."""
        if isinstance(speech, Speech):
            heard, tokens = self(clip.text, speech.samples), speech.timings.tokens
        else:
            heard, tokens = self(clip.text, np.zeros(0, np.float32)), speech.tokens
        heard.counts.update(
            out_of_slot_rate=(speech.finish_reason == Stop.OUT_OF_RANGE, tokens),
            end_of_speech_share=(heard.seconds > 0 and speech.finish_reason == Stop.END_OF_SPEECH, 1),
            duration_ratio=(heard.seconds, len(clip.samples) / SAMPLE_RATE_HZ),
            realtime_factor=(work_s, heard.seconds),
        )
        return Take(heard, speech.seed, tokens, speech.finish_reason, speech.finish_detail, work_s)


def missing(report: Report, recogniser: Recogniser | None, detector: TagDetector | None) -> dict[str, str]:
    """Why a figure could not be had, by its key."""
    known = ", ".join(detector.KNOWN_TAGS) if detector else ""
    reasons = {
        "wer": "no text has a word" if recogniser else NO_RECOGNISER,
        "tag": f"no text has tags of {known} alone" if detector else NO_DETECTOR,
        "f0": "nothing in these sounds is voiced",
        "realtime": "no audio was generated",
    }
    missing = {name: reasons[name.partition("_")[0]] for name, figure in report.figures().items() if figure is None}
    if len(report.rows) == 1:
        missing["*_ci"] = "one clip gives no interval"
    return missing
