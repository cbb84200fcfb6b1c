"""What is usual in a voice's recordings: seconds for a letter and for a tag, silence, repetition, loudness.

It is learnt from the clips of a training and kept with the voice; the guard (`speak/guard.py`) watches by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.format.pieces import length, spoken_length
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import Codes

PERIODS = 24  # frames, 2 s: longer phrases that come again are nearly always in the text
SILENCE_DB = -35.0  # against the loudness of the speech
LEAST_CLIPS = 8  # with fewer, nothing can be said about what is usual


@dataclass(frozen=True)
class SpeechStatistics:
    """What is usual in a voice's recordings. The defaults stand for voices that don't say: wide guesses, for speech
    between -20 and -30 dB, of 8 to 40 letters a second.

    A text should take `besides_s + per_letter_s x letters + per_tag_s x tags` seconds (`pieces.spoken_length`).
    """

    clips: int = 0  # that they were learnt from; 0: not learnt
    besides_s: float = 0.5
    per_letter_s: float = 0.065
    per_tag_s: float = 0.8
    slowest: float = 1.7  # seconds over those that the text should take: all but a hundredth of the clips lie between
    quickest: float = 0.5
    loudness_db: float = -25.0  # RMS of the whole clip, its median
    silence_s: float = 0.75  # the longest silence of a clip; of them, as below, the one that a hundredth exceeds
    held: float = 8.0  # how many frames in a row have the coarse code of the one before
    repeated: float = 6.0  # and of the one 2 to `PERIODS` before
    longest_text: int = 0  # as `pieces.length` counts; 0: not known

    def expected_s(self, text: str) -> float:
        """How long a text should take to speak."""
        return self.besides_s + self.per_letter_s * spoken_length(text) + self.per_tag_s * len(find_tags(text))

    @property
    def silent_db(self) -> float:
        """The level under which this voice says nothing."""
        return self.loudness_db + SILENCE_DB

    def as_dict(self) -> dict[str, float]:
        """For `Provenance.speech_statistics`."""
        return {name: round(value, 4) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, known: Mapping[str, Any] | None) -> SpeechStatistics:
        """From what a provenance holds; the defaults where it holds nothing."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in (known or {}).items() if name in names})


class Heard(NamedTuple):
    """A clip that is learnt from: its text, length, RMS level, longest silence (`longest_silence_s`) and codes."""

    text: str
    seconds: float
    loudness_db: float
    silence_s: float
    codes: Codes


def learn(clips: Iterable[Heard]) -> SpeechStatistics:
    """What is usual in the clips; the defaults if there are fewer than `LEAST_CLIPS`."""
    heard = list(clips)
    if len(heard) < LEAST_CLIPS:
        return SpeechStatistics()
    table = np.array([[1.0, spoken_length(c.text), len(find_tags(c.text))] for c in heard])
    seconds = np.array([c.seconds for c in heard])
    # Non-negative by leaving out what would be negative: a text of one letter must not take less than none.
    weights, used = np.zeros(3), [0, 1, 2]
    while used:
        fit, *_ = np.linalg.lstsq(table[:, used], seconds, rcond=None)
        if (fit >= 0).all():
            weights[used] = fit
            break
        used.remove(used[int(np.argmin(fit))])
    ratios = seconds / np.maximum(table @ weights, 1e-3)
    repeats = [repeats_of(c.codes.coarse) for c in heard]

    def most(values: Iterable[float]) -> float:
        return float(np.percentile(list(values), 99))

    return SpeechStatistics(
        clips=len(heard),
        besides_s=float(weights[0]),
        per_letter_s=float(weights[1]),
        per_tag_s=float(weights[2]),
        slowest=most(ratios),
        quickest=float(np.percentile(ratios, 1)),
        loudness_db=float(np.median([c.loudness_db for c in heard])),
        silence_s=most(c.silence_s for c in heard),
        held=most(held for held, _ in repeats),
        repeated=most(repeated for _, repeated in repeats),
        longest_text=max(length(c.text) for c in heard),
    )


def repeats_of(coarse: np.ndarray) -> tuple[int, int]:
    """In coarse codes [T]: how many frames in a row equal the one before; and the one 2 to `PERIODS` before."""
    found = [0, 0]
    for period in range(1, min(PERIODS, len(coarse) - 1) + 1):
        same = np.concatenate([[False], coarse[period:] == coarse[:-period], [False]])
        edges = np.flatnonzero(~same)
        found[period > 1] = max(found[period > 1], int(np.diff(edges).max(initial=1)) - 1)
    return found[0], found[1]


def longest_silence_s(samples: np.ndarray, loudness_db: float) -> float:
    """The longest time under `loudness_db` + SILENCE_DB in a clip, float32 [N] at 24 kHz, in steps of 20 ms."""
    silence = Silence(loudness_db + SILENCE_DB)
    silence.push(samples)
    return silence.longest_s


class Silence:
    """Follows samples as they come: how long they have been silent, and the longest time that they were."""

    def __init__(self, silent_db: float) -> None:
        self.silent_power = 10 ** (silent_db / 10)
        self.now_s = self.longest_s = 0.0
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> None:
        """Take samples [n], n >= 0."""
        samples = np.concatenate([self._rest, samples])
        blocks = len(samples) // LEVEL_BLOCK
        self._rest = samples[blocks * LEVEL_BLOCK :]
        for power in (samples[: blocks * LEVEL_BLOCK].reshape(-1, LEVEL_BLOCK).astype(np.float64) ** 2).mean(axis=1):
            self.now_s = self.now_s + LEVEL_BLOCK / SAMPLE_RATE_HZ if power < self.silent_power else 0.0
            self.longest_s = max(self.longest_s, self.now_s)
