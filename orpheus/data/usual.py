"""What is usual in a voice's recordings: seconds for a letter and for a tag, silence, repetition, loudness.

It is learnt from the clips of a training and kept with the voice; the guard (`speak/guard.py`) watches by it. A clip
that is far from the others (another's text, minutes of silence) says nothing of what is usual and is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.format.pieces import length, spoken_length
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import Codes

PERIODS = 24  # frames, 2 s: longer phrases that come again are nearly always in the text
SILENCE_DB = -35.0  # against the loudness of the speech
LEAST_CLIPS = 8  # with fewer, nothing can be said about what is usual; with fewer that have tags, nothing about tags
FAR = 3.0  # interquartile ranges beyond the quartiles (Tukey's "far out"): in a normal distribution one of 400,000
LEAST_RANGES = {"ratio": 0.1, "silence_s": 0.15, "frames": 1.0}  # of values that are all but equal
FITTINGS = 30  # rounds of weighting until the least absolute deviations are near


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
    """What is usual in the clips, without those that are far from the others; the defaults for under `LEAST_CLIPS`."""
    heard = list(clips)
    if len(heard) < LEAST_CLIPS:
        return SpeechStatistics()
    weights, ratios = pace([c.text for c in heard], [c.seconds for c in heard])
    repeats = np.array([repeats_of(c.codes.coarse) for c in heard], np.float64)
    silences = np.array([c.silence_s for c in heard])
    good = within(np.log(ratios), LEAST_RANGES["ratio"]) & ~above(silences, LEAST_RANGES["silence_s"])
    for values in repeats.T:
        good &= ~above(values, LEAST_RANGES["frames"])
    good |= good.sum() < LEAST_CLIPS  # nothing is usual in such clips

    def most(values: np.ndarray) -> float:
        return float(np.percentile(values[good], 99))

    return SpeechStatistics(
        clips=int(good.sum()),
        besides_s=float(weights[0]),
        per_letter_s=float(weights[1]),
        per_tag_s=float(weights[2]),
        slowest=most(ratios),
        quickest=float(np.percentile(ratios[good], 1)),
        loudness_db=float(np.median([c.loudness_db for c in heard])),
        silence_s=most(silences),
        held=most(repeats[:, 0]),
        repeated=most(repeats[:, 1]),
        longest_text=max(length(c.text) for c, fine in zip(heard, good, strict=True) if fine),
    )


def pace(texts: Sequence[str], seconds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """How long texts take: seconds besides, for a letter, for a tag, [3]; and each clip's share of that, [N].

    By least squares, without the clips that are far from what the least absolute deviations say: a few clips with
    another's text can't move those. Where fewer than `LEAST_CLIPS` have tags, a tag keeps the default: of a laugh that
    was never heard it can't be said that it takes no time.
    """
    table = np.array([[1.0, spoken_length(text), len(find_tags(text))] for text in texts])
    took = np.maximum(np.asarray(seconds, np.float64), 1e-3)
    good = np.ones(len(took), bool)
    for fitted in (_least_deviations, _least_squares):
        weights = _weights(table[good], took[good], fitted)
        ratios = took / np.maximum(table @ weights, 1e-3)
        good = within(np.log(ratios), LEAST_RANGES["ratio"])
    return weights, ratios


def _weights(table: np.ndarray, took: np.ndarray, fitted: Callable[..., np.ndarray]) -> np.ndarray:
    weights, used = np.zeros(3), [0, 1, 2]
    if (table[:, 2] > 0).sum() < LEAST_CLIPS:
        weights[2], used = SpeechStatistics.per_tag_s, [0, 1]
    rest = took - table @ weights
    # Non-negative by leaving out what would be negative: a text of one letter must not take less than none.
    while used:
        fit = fitted(table[:, used], rest)
        if (fit >= 0).all():
            weights[used] = fit
            break
        used.remove(used[int(np.argmin(fit))])
    return weights


def _least_deviations(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x [K] for which the sum of |table x - wanted| is least: least squares, weighted anew and anew."""
    trust = np.ones(len(wanted))
    for _ in range(FITTINGS):
        fit = _least_squares(table * trust[:, None], wanted * trust)
        trust = 1 / np.sqrt(np.maximum(np.abs(table @ fit - wanted), 1e-3))
    return fit


def _least_squares(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(table, wanted, rcond=None)[0]


def above(values: np.ndarray, least_range: float) -> np.ndarray:
    """Which of the values [N] are far above the others, bool [N]. `least_range`: of quartiles that are closer."""
    low, high = np.percentile(values, [25, 75])
    return values > high + FAR * max(high - low, least_range)


def within(values: np.ndarray, least_range: float) -> np.ndarray:
    """Which of the values [N] are far neither above nor below the others, bool [N]."""
    return ~(above(values, least_range) | above(-values, least_range))


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
