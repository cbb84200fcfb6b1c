"""What an evaluation counts, as pure functions: word errors, pitch, and figures with their 95 % intervals.

A figure is computed over clips. Its interval is the percentile bootstrap (Efron 1979): the clips are drawn again, with
replacement, 2000 times, and the interval holds the middle 95 % of the figures so obtained. All takes of a clip are
drawn together, because they share its text and so are no independent evidence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage
from orpheus.format.prompt import strip_tags
from orpheus.hearing.numerals import written_out

ENGLISH = "en"

RESAMPLES = 2000
CONFIDENCE = 0.95

F0_RANGE_HZ = (60.0, 500.0)
F0_WINDOW, F0_STEP = 2048, 720  # samples: 85 ms hold five periods of the lowest pitch; a value each 30 ms
F0_LEAST = 10  # values, 0.3 s, before a range is told from them


@dataclass(frozen=True)
class Figure:
    """A value, and the interval that holds 95 % of its bootstrap values; no interval for a single clip.

    An interval without width (all clips alike) says that the sample shows no spread, not that there is none.
    """

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Counted:
    """What was counted on N clips, ready to become a figure."""

    has_say: np.ndarray  # bool [N]: clips that have none make no interval narrower
    of: Callable[[np.ndarray], np.ndarray]  # the figures [B] of B draws of clips, by their indices [B, n]


def figure(counted: Counted | None) -> Figure | None:
    """The figure over all clips. None where there is none."""
    if counted is None:
        return None
    rows = np.flatnonzero(counted.has_say)
    return _figure(lambda chosen: counted.of(rows[chosen]), len(rows))


def difference(first: Counted | None, other: Counted | None) -> Figure | None:
    """How much `other` is above `first`, counted on the same clips, which are drawn for both together.

    Such a paired interval is narrower than the two intervals by themselves suggest: hard clips are hard for both.
    """
    if first is None or other is None:
        return None
    rows = np.flatnonzero(first.has_say | other.has_say)
    return _figure(lambda chosen: other.of(rows[chosen]) - first.of(rows[chosen]), len(rows))


def ratios(parts: Sequence[Any], wholes: Sequence[Any]) -> Counted | None:
    """The sum of all parts over the sum of all wholes, clip by clip: word errors over words, hits over tries.

    `parts` and `wholes`: numbers [N], or [N, takes]. None where the wholes add up to nothing.
    """
    table = np.stack([_sums(parts), _sums(wholes)])
    if not table[1].sum() > 0:
        return None

    def of(chosen: np.ndarray) -> np.ndarray:
        part, whole = table[:, chosen].sum(axis=-1)
        return part / np.where(whole > 0, whole, np.nan)

    return Counted(np.asarray(table.any(axis=0)), of)


def medians(values: Sequence[Any]) -> Counted | None:
    """The median of the values [N] or [N, takes], clip by clip; NaN and None are left out. None if nothing is left."""
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    known = np.asarray(np.isfinite(table).any(axis=1))
    if not known.any():
        return None

    def of(chosen: np.ndarray) -> np.ndarray:
        drawn = table[chosen].reshape(len(chosen), -1)
        some = np.isfinite(drawn).any(axis=1)  # a draw of clips that have no say has no median
        found = np.full(len(drawn), np.nan)
        found[some] = np.nanmedian(drawn[some], axis=1)
        return found

    return Counted(known, of)


def ratio(parts: Sequence[Any], wholes: Sequence[Any]) -> Figure | None:
    """`ratios` as a figure."""
    return figure(ratios(parts, wholes))


def median(values: Sequence[Any]) -> Figure | None:
    """`medians` as a figure."""
    return figure(medians(values))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], count: int, seed: int = 0) -> tuple[float, float]:
    """The interval of a statistic over `count` clips, the same for the same seed.

    `statistic` takes indices of clips, [RESAMPLES, count], and gives the values [RESAMPLES]; NaN is left out.
    """
    chosen = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(statistic(chosen), [tail, 100 - tail])
    return float(low), float(high)


def _figure(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> Figure:
    value = float(statistic(np.arange(count)[None])[0])
    return Figure(value, bootstrap(statistic, count) if count > 1 else None)


def _sums(values: Sequence[Any]) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1).sum(axis=1)


def words(text: str, language: str = ENGLISH) -> list[str]:
    """The words that are compared: lower case, without tags and punctuation, numbers written out.

    "It's <laughs> 9 o'clock -- NOW!" -> ["it's", "nine", "o'clock", "now"]. Letters, marks and digits of any script.
    """
    plain = unicodedata.normalize("NFC", written_out(strip_tags(text), language).lower()).replace("’", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return [word for part in kept.split() if (word := part.strip("'"))]


def word_errors(reference: str, transcript: str, language: str = ENGLISH) -> int:
    """How many words have to be replaced, left out or added to make the reference of the transcript (`words` each)."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingPackage("jiwer", "the word error rate") from error
    counted = jiwer.process_words(" ".join(words(reference, language)), " ".join(words(transcript, language)))
    return int(counted.substitutions + counted.deletions + counted.insertions)


def letters_heard(reference: str, transcript: str, language: str = ENGLISH) -> float | None:
    """1 - wrong, lacking and added letters / letters of the reference, 0 at least; None for one without letters."""
    try:
        import jiwer
    except ImportError as error:
        raise MissingPackage("jiwer", "comparing letters") from error
    wanted, heard = ("".join(words(text, language)) for text in (reference, transcript))
    return max(0.0, 1 - float(jiwer.cer(wanted, heard))) if wanted else None


def median_f0_hz(samples: np.ndarray) -> float | None:
    """The median pitch of the voiced parts of a clip, float32 [n] at 24 kHz; None where nothing is voiced."""
    voiced = voiced_f0_hz(samples)
    return float(np.median(voiced)) if len(voiced) else None


def voiced_f0_hz(samples: np.ndarray) -> np.ndarray:
    """The pitch of the voiced parts of a clip, float32 [n] at 24 kHz: a value each 30 ms, float64 [frames].

    Probabilistic YIN (Mauch and Dixon 2014): slower than YIN, but it says itself which parts are voiced.
    """
    if len(samples) < F0_WINDOW:
        return np.zeros(0)
    try:
        import librosa
    except ImportError as error:
        raise MissingPackage("librosa", "measuring pitch") from error
    low_hz, high_hz = F0_RANGE_HZ
    f0, _, _ = librosa.pyin(samples, fmin=low_hz, fmax=high_hz, sr=SAMPLE_RATE_HZ, frame_length=F0_WINDOW,
                            hop_length=F0_STEP, resolution=0.2)  # fmt: skip
    return f0[np.isfinite(f0)]


def range_st(f0_hz: np.ndarray) -> float | None:
    """How far a voice goes up and down: semitones between the 5th and the 95th percentile of its pitch, [frames].

    None with too few frames to say.
    """
    if len(f0_hz) < F0_LEAST:
        return None
    low, high = np.percentile(f0_hz, [5, 95])
    return float(12 * np.log2(high / low))


if __name__ == "__main__":  # numba compiles librosa's pitch tracker when it is first used, and keeps the code
    median_f0_hz((0.1 * np.sin(np.arange(SAMPLE_RATE_HZ) / 30)).astype(np.float32))
